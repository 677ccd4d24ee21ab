"""Lists of what the mesh knows, for people and programs. Pure.

Belongs here: the state's nouns as the schema's items, sorted. Does not belong here: manifests (documents.py), the
kernel (kernel_views.py).
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from controlplane.api import items
from controlplane.api.service_views import service_items
from controlplane.desired.address_identities import AddressIdentities
from controlplane.desired.facets import Facets, all_facets
from controlplane.desired.ipcache import host_prefix
from controlplane.desired.members import Members
from controlplane.desired.nodes import node_identities, sight_of
from controlplane.desired.policy_inputs import PolicyInputs
from controlplane.desired.prefixes import PrefixIdentities
from controlplane.labels import SOURCE_RESERVED
from controlplane.model import RESERVED_IDENTITIES, Endpoint, EndpointKey, Labels, Node, NodeKey, ObjectKey
from controlplane.policy.prefixes import EVERY_PREFIX
from controlplane.policy.rules import ParsedPolicy
from controlplane.policy.verdict import enforces, policies_of
from controlplane.projections.state import State
from datapath.abi.types import POLICY_EGRESS, POLICY_INGRESS

RowState = Callable[[str, str, int], str]
"""(cluster, node, endpoint id) -> "ready", "pending", "error" or "remote"."""


def items_of(kind: str, state: State, where: NodeKey | None, row_state: RowState) -> list[Any]:
    """The items of a kind; `where` is the node that answers, if one does. Raises KeyError."""
    if kind == "endpoint":
        return endpoint_items(state, row_state)
    if kind == "node":
        return [_node(state, key, state.nodes[key], key == where) for key in sorted(state.nodes)]
    if kind == "identity":
        return _identities(state, derived_identities(state, where))
    if kind == "service":
        return service_items(state, where)
    if kind == "ip":
        return _addresses(state, where, derived_identities(state, where))
    return _LISTS[kind](state)


class Policies:
    """The policies of the mesh, read once, and what they enforce on each set of labels."""

    def __init__(self, state: State) -> None:
        self._inputs: dict[str, PolicyInputs] = {}
        self._about: dict[tuple[str, Labels], Sequence[ParsedPolicy]] = {}
        self._state = state

    def of_cluster(self, cluster: str) -> PolicyInputs:
        """As they are meant now; one that cannot be read closes."""
        if cluster not in self._inputs:
            self._inputs[cluster] = PolicyInputs(cluster)
            self._inputs[cluster].fill(self._state)
        return self._inputs[cluster]

    def about(self, cluster: str, labels: Labels) -> Sequence[ParsedPolicy]:
        """Those that select these labels."""
        if (cluster, labels) not in self._about:
            self._about[cluster, labels] = policies_of(labels, list(self.of_cluster(cluster).policies.values()))
        return self._about[cluster, labels]

    def enforced(self, cluster: str, labels: Labels) -> tuple[bool, bool]:
        """Ingress, egress."""
        about, settings = self.about(cluster, labels), self.of_cluster(cluster).settings
        return enforces(about, POLICY_INGRESS, settings), enforces(about, POLICY_EGRESS, settings)


def endpoint_items(state: State, row_state: RowState) -> list[items.EndpointItem]:
    """All endpoints of the mesh."""
    policies = Policies(state)
    return [_endpoint(state.endpoints[key], policies, row_state) for key in sorted(state.endpoints)]


def endpoint_item(state: State, endpoint: Endpoint, row_state: RowState) -> items.EndpointItem:
    """One."""
    return _endpoint(endpoint, Policies(state), row_state)


def _endpoint(endpoint: Endpoint, policies: Policies, row_state: RowState) -> items.EndpointItem:
    ingress, egress = policies.enforced(endpoint.cluster, endpoint.labels)
    return items.EndpointItem(
        cluster=endpoint.cluster,
        node=endpoint.node,
        endpoint_id=endpoint.endpoint_id,
        namespace=endpoint.namespace,
        workload=endpoint.workload,
        ingress_enforced=ingress,
        egress_enforced=egress,
        identity=endpoint.identity,
        labels=list(endpoint.labels),
        ipv4=endpoint.ipv4,
        ipv6=endpoint.ipv6,
        device=endpoint.device.name,
        container_id=endpoint.container_id,
        interface=endpoint.interface,
        state=row_state(endpoint.cluster, endpoint.node, endpoint.endpoint_id),
        configured_audit=endpoint.is_audited,
        audited=endpoint.is_audited or policies.of_cluster(endpoint.cluster).settings.audit,
    )


def _node(state: State, key: NodeKey, node: Node, local: bool) -> items.NodeItem:
    return items.NodeItem(
        cluster=node.cluster,
        name=node.name,
        ipv4=next((address for address in node.addresses if ":" not in address), ""),
        ipv6=next((address for address in node.addresses if ":" in address), ""),
        pod_cidrs=list(node.blocks),
        device=node.device.name,
        labels=list(node.labels),
        endpoints=len(state.node_endpoints.get(key, ())),
        local=local,
    )


class Derived(NamedTuple):
    """The numbers that have no record, as a node of the cluster gives them."""

    prefixes: PrefixIdentities
    nodes: AddressIdentities
    facets: Facets

    @property
    def labels(self) -> dict[int, Labels]:
        """By number."""
        return {**self.prefixes.labels, **self.nodes.labels, **self.facets.labels}


def derived_identities(state: State, where: NodeKey | None) -> dict[str, Derived]:
    """By cluster: a node knows those of its own; two clusters may give one number to different labels. Without a node,
    as each would that has none of the addresses."""
    clusters = {where.cluster} if where else {key.cluster for held in (state.policies, state.nodes) for key in held}
    found = {}
    members = Members()
    members.fill(state)
    for cluster in sorted(clusters):
        sight, prefixes = sight_of(state, cluster), PrefixIdentities()
        prefixes.replace(sight.addresses.prefixes())
        nodes = node_identities(state, where or NodeKey(cluster, ""), sight)
        found[cluster] = Derived(prefixes, nodes, all_facets(state, members, sight.addresses))
    return found


def _identities(state: State, derived: dict[str, Derived]) -> list[items.IdentityItem]:
    reserved = [
        items.IdentityItem(number, "", [f"{SOURCE_RESERVED}:{name}"], 0)
        for name, number in sorted(RESERVED_IDENTITIES.items(), key=lambda item: item[1])
    ]
    allocated = [
        items.IdentityItem(
            number, identity.cluster, list(identity.labels), state.identity_users.get(number, 0)
        )
        for number, identity in sorted(state.identities.items())
    ]
    return reserved + allocated + [
        items.IdentityItem(number, cluster, list(labels), 0)
        for cluster, found in derived.items()
        for number, labels in sorted(found.labels.items())
    ]


def _policies(state: State) -> list[items.PolicyItem]:
    policies = Policies(state)
    selected: dict[tuple[str, ...], dict[str, None]] = {}
    for endpoint in state.endpoints.values():
        for parsed in policies.about(endpoint.cluster, endpoint.labels):
            selected.setdefault(tuple(parsed.key), {})[f"{endpoint.namespace}/{endpoint.workload}"] = None
    return [_policy(state, policies, key, sorted(selected.get(tuple(key), ()))) for key in sorted(state.policies)]


def _policy(state: State, policies: Policies, key: ObjectKey, endpoints: list[str]) -> items.PolicyItem:
    inputs = policies.of_cluster(key.cluster)
    parts = inputs.policies[key].parts
    ingress, egress = (enforces(parts, each, inputs.settings) for each in (POLICY_INGRESS, POLICY_EGRESS))
    revision = state.policy_revisions.get(key, 0)
    return items.PolicyItem(*key, len(endpoints), endpoints, ingress, egress, revision)


def _addresses(state: State, where: NodeKey | None, derived: dict[str, Derived]) -> list[items.IpItem]:
    """An address of a node has the number that its own cluster gives it, where no node is asked."""
    rows = _prefixes(state, where, derived)
    for endpoint in state.endpoints.values():
        for address in (endpoint.ipv4, endpoint.ipv6):
            if address:
                name = f"{endpoint.namespace}/{endpoint.workload}"
                rows.append(
                    _address(address, endpoint.identity, "endpoint", endpoint.cluster, endpoint.node, name)
                )
    for address, holder in state.addresses.items():
        if not isinstance(holder, EndpointKey):
            known = derived[where.cluster if where else holder.cluster].nodes.numbers
            identity = RESERVED_IDENTITIES["host"] if holder == where else known[address]
            rows.append(_address(address, identity, "node", holder.cluster, holder.node, holder.node))
    return sorted(rows, key=lambda row: (":" in row.prefix, row.cluster, row.node, row.prefix))


def _prefixes(state: State, where: NodeKey | None, derived: dict[str, Derived]) -> list[items.IpItem]:
    """Those that policies name, and the world. Whoever in the mesh has an address comes before its prefix."""
    found = [
        items.IpItem(prefix, number, "policy", cluster, "", "")
        for cluster, identities in derived.items()
        for prefix, number in identities.prefixes.numbers.items()
        if not _is_held(state, prefix)
    ]
    taken = {item.prefix for item in found} if where else ()
    world = RESERVED_IDENTITIES["world"]
    return found + [
        items.IpItem(prefix, world, "reserved", "", "", "world")
        for prefix in EVERY_PREFIX.values()
        if prefix not in taken
    ]


def _is_held(state: State, prefix: str) -> bool:
    address = prefix.partition("/")[0]
    return prefix == host_prefix(address) and address in state.addresses


def _address(address: str, identity: int, source: str, cluster: str, node: str, name: str) -> items.IpItem:
    return items.IpItem(host_prefix(address), identity, source, cluster, node, name)


_LISTS: dict[str, Callable[[State], list[Any]]] = {
    "policy": _policies,
}
