"""Who is meant by the end of a flow, and the policies that are about it, in one state. Pure.

Belongs here: "shop/cart", "ip:10.1.0.5", "entity:world" to an identity and its labels; policies as they are in force.
Does not belong here: the verdict (why.py).
"""

from ipaddress import ip_address

import msgspec

from controlplane.desired.address_identities import AddressIdentities
from controlplane.desired.facets import Facets, all_facets
from controlplane.desired.members import HOST, RESERVED_LABELS, Members
from controlplane.desired.nodes import RESERVED, Sight, node_identities
from controlplane.desired.policy_inputs import PolicyInputs
from controlplane.desired.policy_mesh import mesh_node
from controlplane.desired.prefixes import PrefixIdentities, prefix_identities
from controlplane.history.provenance import Origins
from controlplane.model import RESERVED_IDENTITIES, Endpoint, EndpointKey, Labels, NodeKey, ObjectKey
from controlplane.policy.mesh import host_labels
from controlplane.policy.prefixes import EVERY_PREFIX, AddressLabels
from controlplane.policy.resolve import PortNumbers
from controlplane.policy.rules import NamedPorts, ParsedPolicy
from controlplane.policy.verdict import policies_of
from controlplane.projections.services import service_key
from controlplane.projections.state import State
from controlplane.projections.workloads import workload_key

RIGHT = "right is NS/POD, CLUSTER:NS/POD, service:NS/NAME, node:NAME, ip:ADDRESS or entity:NAME"
ENDPOINT, NODE, SERVICE, WORLD, ENTITY = "endpoint", "node", "service", "world", "entity"


class NoSuchEnd(ValueError):
    """Nobody in the state is meant by the text."""


class End(msgspec.Struct, frozen=True):
    """One end of a flow. `key` is its key in the state, None of the world and of entities. `identity` 0: none."""

    text: str
    what: str
    cluster: str
    key: EndpointKey | NodeKey | ObjectKey | None
    identity: int
    labels: Labels
    address: str = ""

    @property
    def name(self) -> str:
        """For sentences."""
        return self.text if not self.address or self.address in self.text else f"{self.text} ({self.address})"


class Mesh:
    """One state, and what its policies say."""

    def __init__(self, state: State, origins: Origins, cluster: str) -> None:
        self.state = state
        self.origins = origins
        self.cluster = cluster
        self._inputs: dict[str, PolicyInputs] = {}
        self._addresses: dict[str, AddressLabels] = {}
        self._members: Members | None = None
        self._prefixes: dict[str, PrefixIdentities] = {}
        self._facets: dict[str, Facets] = {}
        self._nodes: dict[NodeKey, AddressIdentities] = {}

    @property
    def members(self) -> Members:
        """The endpoints of each identity."""
        if self._members is None:
            self._members = Members()
            self._members.fill(self.state)
        return self._members

    def named_ports(self, end: End) -> NamedPorts:
        """Of a workload."""
        if not isinstance(end.key, EndpointKey):
            return {}
        endpoint = self.state.endpoints[end.key]
        workload = self.state.workloads.get(workload_key(endpoint.cluster, endpoint.namespace, endpoint.workload))
        return workload.ports if workload else {}

    def inputs(self, cluster: str) -> PolicyInputs:
        """The policies of a cluster as they are meant in this state."""
        if cluster not in self._inputs:
            self._inputs[cluster] = PolicyInputs(cluster)
            self._inputs[cluster].fill(self.state)
        return self._inputs[cluster]

    def about(self, cluster: str, labels: Labels) -> list[ParsedPolicy]:
        """The policies of a cluster that select these labels."""
        return policies_of(labels, list(self.inputs(cluster).policies.values()))

    def about_end(self, end: End) -> list[ParsedPolicy] | None:
        """The policies about an endpoint, or about a node where host policies are in force; None of any other end."""
        if end.what == ENDPOINT:
            return self.about(end.cluster, end.labels)
        if isinstance(end.key, NodeKey) and self.inputs(end.cluster).settings.host_firewall:
            labels = host_labels(mesh_node(self.state.nodes[end.key]))
            return policies_of(labels, list(self.inputs(end.cluster).policies.values()), of_nodes=True)
        return None

    def addresses(self, cluster: str) -> AddressLabels:
        """What a cluster's policies say of addresses."""
        if cluster not in self._addresses:
            self._addresses[cluster] = self.inputs(cluster).address_labels(self.state)
        return self._addresses[cluster]

    def prefixes(self, cluster: str) -> PrefixIdentities:
        """The numbers of the prefixes that a cluster's policies name."""
        if cluster not in self._prefixes:
            self._prefixes[cluster] = prefix_identities(self.state, cluster)
        return self._prefixes[cluster]

    def facets(self, cluster: str) -> Facets:
        """The addresses of identities that a cluster's policies tell apart."""
        if cluster not in self._facets:
            self._facets[cluster] = all_facets(self.state, self.members, self.addresses(cluster))
        return self._facets[cluster]

    def ports(self, number: int, where: NodeKey) -> PortNumbers:
        """The named ports of an identity or facet in a node's rows."""
        return self.facets(where.cluster).ports(number)

    def sight(self, cluster: str) -> Sight:
        """By what a cluster's policies know nodes."""
        return Sight(self.inputs(cluster).settings, self.addresses(cluster))

    def nodes(self, where: NodeKey) -> AddressIdentities:
        """The numbers of the other nodes on one; of all where it is none of the mesh."""
        if where not in self._nodes:
            self._nodes[where] = node_identities(self.state, where, self.sight(where.cluster))
        return self._nodes[where]

    def labels_of(self, number: int, where: NodeKey) -> Labels:
        """What selectors see of an identity in a node's rows; () where the number is none there."""
        sight = self.sight(where.cluster)
        if number == HOST:
            return sight.of_host(self.state.nodes.get(where))
        found = (self.prefixes(where.cluster), self.nodes(where), self.facets(where.cluster))
        derived = next((each.labels[number] for each in found if number in each.labels), None)
        if derived is not None or (sight.tells_apart and number in RESERVED.values()):
            return derived or RESERVED_LABELS[number]
        identity = self.state.identities.get(number)
        labels = identity.labels if identity else RESERVED_LABELS.get(number, ())
        held = self.members.addresses(self.state, number, where, sight.addresses.api_servers)
        return tuple(sorted({*labels, *sight.addresses.of_mesh(held)}))

    def node_number(self, end: End, where: NodeKey) -> int:
        """Of an address of a node, on the node `where`."""
        return HOST if end.key == where else self.nodes(where).numbers[end.address]

    def shown(self, end: End, other: End) -> End:
        """A node as the other end knows it, where that is an endpoint or a node too."""
        if not isinstance(end.key, NodeKey) or not isinstance(other.key, (EndpointKey, NodeKey)):
            return end
        where = NodeKey(other.key.cluster, other.key.node)
        number = self.node_number(end, where)
        return msgspec.structs.replace(end, identity=number, labels=self.labels_of(number, where))

    def seen(self, own: End, end: End, version: int) -> Labels:
        """The labels by which the rows of `own` see the other end in a packet of IP `version`. The node that `own` is
        on is its host."""
        addresses = self.addresses(own.cluster)
        if end.what == WORLD:
            return addresses.of_world(end.address)
        if end.text == "entity:world":
            return addresses.of_prefix(EVERY_PREFIX[version])
        node = own.key
        where = NodeKey(node.cluster, node.node) if isinstance(node, (EndpointKey, NodeKey)) else NodeKey("", "")
        if isinstance(end.key, NodeKey):
            return self.labels_of(self.node_number(end, where), where)
        held = self.members.addresses(self.state, end.identity, where)
        if isinstance(end.key, EndpointKey):
            endpoint = self.state.endpoints[end.key]
            held = [each for each in (endpoint.ipv6 if version == 6 else endpoint.ipv4,) if each]
        return tuple(sorted({*end.labels, *addresses.of_mesh(held)}))

    def end(self, text: str) -> End:
        """Raises NoSuchEnd."""
        scheme, colon, rest = text.partition(":")
        if colon and scheme == "ip":
            return self.at_address(rest, text)
        if colon and scheme == "entity":
            return self._entity(rest, text)
        if colon and scheme == "node":
            return self._node(rest, text)
        if colon and scheme == "service":
            cluster, colon, name = rest.partition(":") if ":" in rest else (self.cluster, ":", rest)
            return self._service(cluster, name, text)
        cluster, name = (scheme, rest) if colon else (self.cluster, text)
        return self._workload(cluster, name, text)

    def at_address(self, address: str, text: str = "") -> End:
        """Whoever has the address. Raises NoSuchEnd."""
        try:
            canonical = str(ip_address(address))
        except ValueError:
            raise NoSuchEnd(f"{address!r} is no address; {RIGHT}") from None
        holder = self.state.addresses.get(canonical)
        if isinstance(holder, EndpointKey):
            return msgspec.structs.replace(self.of_endpoint(self.state.endpoints[holder], text), address=canonical)
        if holder is not None:
            number = RESERVED_IDENTITIES["remote-node"]
            name = text or f"node {holder.node}"
            return End(name, NODE, holder.cluster, holder, number, ("reserved:remote-node",), canonical)
        service = self.state.service_addresses.get((self.cluster, canonical))
        if service is not None:
            return End(text or str(service.name), SERVICE, service.cluster, service, 0, (), canonical)
        name, labels = text or f"ip:{canonical}", self.addresses(self.cluster).of_world(canonical)
        return End(name, WORLD, "", None, RESERVED_IDENTITIES["world"], labels, canonical)

    def of_endpoint(self, endpoint: Endpoint, text: str = "") -> End:
        """With the labels of its identity, which are what the kernel judges by."""
        key = EndpointKey(endpoint.cluster, endpoint.node, endpoint.endpoint_id)
        identity = self.state.identities.get(endpoint.identity)
        labels = endpoint.labels if identity is None else identity.labels
        addresses = [address for address in (endpoint.ipv4, endpoint.ipv6) if address]
        name = f"{endpoint.cluster}:{endpoint.namespace}/{endpoint.workload}"
        what = name if not text or text.startswith("ip:") else text
        return End(what, ENDPOINT, endpoint.cluster, key, endpoint.identity, labels, addresses[0] if addresses else "")

    def _node(self, rest: str, text: str) -> End:
        cluster, _, name = rest.rpartition(":")
        key = NodeKey(cluster or self.cluster, name)
        if key not in self.state.nodes:
            raise NoSuchEnd(f"there was no node {name!r} in cluster {key.cluster}{self._gone('node', key)}")
        return msgspec.structs.replace(self.of_node(key), text=text)

    def of_node(self, key: NodeKey) -> End:
        """By its first address."""
        return self.at_address(self.state.nodes[key].addresses[0])

    def _entity(self, name: str, text: str) -> End:
        if name not in RESERVED_IDENTITIES:
            raise NoSuchEnd(f"no entity is called {name!r}; there are: {', '.join(RESERVED_IDENTITIES)}")
        return End(text, ENTITY, "", None, RESERVED_IDENTITIES[name], (f"reserved:{name}",))

    def _service(self, cluster: str, name: str, text: str) -> End:
        namespace, _, service = name.partition("/")
        key = service_key(cluster, namespace, service)
        if key not in self.state.services:
            raise NoSuchEnd(f"there was no service {name!r} in cluster {cluster}{self._gone('service', key)}")
        address = next(iter(self.state.services[key].cluster_ips), "")
        return End(text, SERVICE, cluster, key, 0, (), address)

    def _workload(self, cluster: str, name: str, text: str) -> End:
        namespace, slash, workload = name.partition("/")
        if not slash or not namespace or not workload:
            raise NoSuchEnd(f"{text!r} names no end of a flow; {RIGHT}")
        found = self.state.workload_endpoints.get((cluster, namespace, workload))
        if not found:
            raise NoSuchEnd(f"{cluster}:{name} had no endpoint{self._gone_endpoint(cluster, namespace, workload)}")
        return self.of_endpoint(self.state.endpoints[found[0]], f"{cluster}:{name}")

    def _gone_endpoint(self, cluster: str, namespace: str, workload: str) -> str:
        for (kind, key), origin in reversed(self.origins.gone.items()):
            if kind == ENDPOINT and key.cluster == cluster and self.origins.gone_names.get((kind, key)) == (
                namespace, workload
            ):  # fmt: skip
                return f"; it went at revision {origin.revision} ({origin.event} by {origin.cluster}/{origin.writer})"
        declared = any(
            (key.cluster, key.namespace, key.name) == (cluster, namespace, workload) for key in self.state.workloads
        )
        return "; the workload is declared, and no node has attached it" if declared else ""

    def _gone(self, kind: str, key: ObjectKey | NodeKey) -> str:
        origin = self.origins.gone.get((kind, key))
        return f"; it went at revision {origin.revision}" if origin else ""
