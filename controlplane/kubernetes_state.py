"""Manifests of whole clusters as the state of a mesh, without a log: what `render` derives a node's tables from. Pure.

Belongs here: what a running mesh would have decided, as far as manifests do not say it: identity numbers, endpoint ids,
cluster addresses and node ports that are missing, each in a fixed order. Does not belong here: files (kubernetes.py),
rows (desired/). A document is understood exactly, or refused with the field and the reason.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from controlplane.addresses import family_of, is_address, service_addresses
from controlplane.commands.addresses import ApplyCidrGroup
from controlplane.commands.balancer_pools import ApplyBalancerPool, with_balancer_addresses
from controlplane.commands.namespace import ApplyNamespace
from controlplane.commands.node import sourced_labels
from controlplane.commands.node_ports import decide_node_ports
from controlplane.commands.policy import ApplyPolicy
from controlplane.commands.redirect import ApplyLocalRedirect
from controlplane.commands.service import ApplyService, ReportBackends, applied, wanted_families
from controlplane.commands.types import Rejection
from controlplane.commands.workload import ApplyWorkload
from controlplane.fields import Reading, Refusal, path_of
from controlplane.kubernetes_metadata import NAMESPACE_NAME_LABEL, Metadata
from controlplane.kubernetes_objects import KINDS, command_of
from controlplane.kubernetes_pods import ENDED
from controlplane.kubernetes_slices import read_address
from controlplane.model import (
    IDENTITY_BITS,
    IDENTITY_N_MIN,
    BackendSlice,
    BackendState,
    BalancerPool,
    CidrGroup,
    Cluster,
    Device,
    Endpoint,
    Identity,
    LocalRedirect,
    Namespace,
    Node,
    NodeKey,
    ObjectKey,
    Policy,
    Service,
    Workload,
)
from controlplane.policy.identity_labels import identity_labels
from controlplane.policy.settings import DEFAULTS, PolicySettings, settings_in_force
from controlplane.projections.balancer_pools import pool_key
from controlplane.projections.exposures import EXTERNAL_NAME
from controlplane.projections.redirects import ACTIVE, QUARANTINED, STATES
from controlplane.projections.services import hold_service, service_key
from controlplane.projections.state import Nouns, State, no_nouns

SERVICE_RANGES = {4: "10.96.0.0/12", 6: "fd00:10:96::/112"}
"""Kubernetes' usual ones: where a service without a cluster address gets one."""
NODE = "Node"
POD = "Pod"
ADDRESS_TYPES = ("InternalIP", "ExternalIP")
HEALTH = {"healthy": ACTIVE, "unhealthy": QUARANTINED, True: ACTIVE, False: QUARANTINED}
"""Other words for states."""
_PLACE = re.compile(r"\[?([0-9a-fA-F.:]+?)\]?:(\d+)(?:/(TCP|UDP|SCTP))?")


class NodeWords(msgspec.Struct, frozen=True):
    """What the command line says of the node that is asked about; it goes before its Node object."""

    addresses: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()


class Refused(msgspec.Struct, frozen=True):
    """A document that cannot be used: where it stands, and everything that is wrong with it."""

    source: str
    refusals: tuple[Refusal, ...]


class StateReader:
    """Takes documents one by one; `state` puts them together. `refused` and `skipped` say what was not taken."""

    def __init__(self, settings: PolicySettings = DEFAULTS) -> None:
        """`settings`: under which policies are read."""
        self._settings = settings
        self.refused: list[Refused] = []
        self.skipped: list[tuple[str, str]] = []
        """(source, kind) of documents that no row depends on."""
        self._clusters: dict[str, None] = {}
        self._nodes: dict[NodeKey, Node] = {}
        self._pods: dict[ObjectKey, tuple[str, ApplyWorkload, tuple[str, ...]]] = {}
        """With their source and addresses."""
        self._commands: dict[ObjectKey, tuple[str, Any]] = {}

    def take(self, document: Any, source: str, cluster: str) -> None:
        """A later document of the same kind and name takes the place of an earlier one."""
        self._clusters[cluster] = None
        kind = document.get("kind") if isinstance(document, dict) else None
        reading = Reading()
        if isinstance(kind, str) and kind not in KINDS and kind != NODE:
            self.skipped.append((source, kind))
        elif kind == NODE:
            self._take_node(reading, document, cluster)
        else:
            command = command_of(document, cluster, self._settings)
            if isinstance(command, tuple):
                reading.refusals += command
            else:
                addresses = _pod_addresses(reading, document) if kind == POD else ()
                key = ObjectKey(cluster, str(kind), getattr(command, "namespace", ""), getattr(command, "name", ""))
                if isinstance(command, ApplyNamespace):
                    key = ObjectKey(cluster, str(kind), "", command.namespace)
                if isinstance(command, ApplyWorkload):
                    self._pods[key] = source, command, addresses
                self._commands[key] = source, command
        if reading.refusals:
            self.refused.append(Refused(source, tuple(dict.fromkeys(reading.refusals))))

    def nodes(self, cluster: str) -> list[str]:
        """The cluster's nodes that a document is about or names."""
        named = {command.node for key, (_, command, _) in self._pods.items() if key.cluster == cluster and command.node}
        return sorted({*named, *(key.node for key in self._nodes if key.cluster == cluster)})

    def state(self, where: NodeKey, words: NodeWords, settings: Mapping[str, str], health: Mapping[str, str]) -> State:
        """`settings`: JSON by cluster. `health`: states by "address:port/protocol". What contradicts itself is refused
        like a document."""
        self._clusters[where.cluster] = None
        self._add_node(where, words)
        nouns = no_nouns()
        nouns.policy_settings += sorted(settings.items())
        for number, cluster in enumerate(sorted(self._clusters), 1):
            nouns.clusters.append(Cluster(cluster, number, (), (), ()))
        for key, (_, command) in sorted(self._commands.items()):
            self._put(nouns, key, command)
        nouns.services += self._services(nouns.balancer_pools)
        self._add_endpoints(nouns, settings)
        nouns.nodes += [self._nodes[key] for key in sorted(self._nodes)]
        nouns.backend_states += _judged(nouns, where.cluster, health)
        return State.of(nouns)

    def _put(self, nouns: Nouns, key: ObjectKey, command: Any) -> None:
        if isinstance(command, ApplyNamespace):
            nouns.namespaces.append(Namespace(key.cluster, command.namespace, command.labels))
        elif isinstance(command, ApplyWorkload):
            nouns.workloads.append(Workload(key.cluster, *msgspec.structs.astuple(command)))
        elif isinstance(command, ReportBackends):
            nouns.backend_slices.append(BackendSlice(key.cluster, *msgspec.structs.astuple(command)))
        elif isinstance(command, ApplyPolicy):
            nouns.policies.append(Policy(key.cluster, *msgspec.structs.astuple(command)))
        elif isinstance(command, ApplyCidrGroup):
            nouns.cidr_groups.append(CidrGroup(key.cluster, *msgspec.structs.astuple(command)))
        elif isinstance(command, ApplyLocalRedirect):
            nouns.local_redirects.append(LocalRedirect(key.cluster, *msgspec.structs.astuple(command)))
        elif isinstance(command, ApplyBalancerPool):
            nouns.balancer_pools.append(BalancerPool(key.cluster, *msgspec.structs.astuple(command)))

    def _services(self, pools: list[BalancerPool]) -> list[Service]:
        """With everything decided: what is asked for comes first, so that nothing that is chosen is in its way."""
        held = State()
        held.balancer_pools = {pool_key(pool.cluster, pool.name): pool for pool in pools}
        asked: list[tuple[bool, ObjectKey, str, ApplyService]] = []
        for key, (source, command) in self._commands.items():
            if isinstance(command, ApplyService):
                open_ports = any(not port.node_port for port in command.ports)
                asked.append((open_ports or not command.cluster_ips, key, source, command))
        for _, key, source, command in sorted(asked, key=lambda each: each[:2]):
            addresses = _cluster_ips(held, key.cluster, command)
            own = service_key(key.cluster, key.namespace, key.name)
            taken = [each for each in addresses if (key.cluster, each) in held.service_addresses]
            decided = decide_node_ports(held, own, command.ports, command.exposure, None)
            if taken:
                decided = Rejection(f"{', '.join(taken)}: another service has it", "spec.clusterIP")
            if isinstance(decided, Rejection):
                refusal = Refusal(decided.field, "", decided.reason)
                self.refused.append(Refused(source, (refusal,)))
                continue
            service = Service(key.cluster, *msgspec.structs.astuple(applied(command, addresses, *decided)))
            exposure = with_balancer_addresses(held, service)
            hold_service(held, own, msgspec.structs.replace(service, exposure=exposure))
        return [held.services[key] for key in sorted(held.services)]

    def _add_endpoints(self, nouns: Nouns, settings: Mapping[str, str]) -> None:
        """Of pods that have a node and an address; a set of labels gets its number by its place among all."""
        namespaces = {(each.cluster, each.name): each.labels for each in nouns.namespaces}
        labels = {
            key: identity_labels(
                key.cluster,
                key.namespace,
                {**namespaces.get((key.cluster, key.namespace), {}), NAMESPACE_NAME_LABEL: key.namespace},
                command.labels,
                command.service_account,
                settings_in_force(settings.get(key.cluster, "")).policy.labels,
            )
            for key, (_, command, addresses) in self._pods.items()
            if addresses and command.node and not command.host_network
        }
        numbers: dict[tuple[str, Any], int] = {}
        for cluster in nouns.clusters:
            base = (cluster.cluster_id << IDENTITY_BITS) + IDENTITY_N_MIN
            own = sorted({found for key, found in labels.items() if key.cluster == cluster.name})
            numbers.update({(cluster.name, found): base + place for place, found in enumerate(own)})
        nouns.identities += [Identity(number, found, cluster) for (cluster, found), number in numbers.items()]
        ids: dict[NodeKey, int] = {}
        holders: dict[str, ObjectKey] = {}
        for key in sorted(labels):
            source, command, addresses = self._pods[key]
            twice = [each for each in addresses if each in holders]
            if twice:
                reason = f"pod {holders[twice[0]].namespace}/{holders[twice[0]].name} has it too"
                self.refused.append(Refused(source, (Refusal("status.podIP", twice[0], reason),)))
                continue
            holders.update(dict.fromkeys(addresses, key))
            node = NodeKey(key.cluster, command.node)
            self._nodes.setdefault(node, _node(node, (), (), ()))
            number = ids[node] = ids.get(node, 0) + 1
            families = {":" in each: each for each in reversed(addresses)}
            nouns.endpoints.append(
                Endpoint(
                    key.cluster, node.node, number, key.namespace, key.name, labels[key],
                    numbers[key.cluster, labels[key]], families.get(False, ""), families.get(True, ""),
                    Device("", number, ""), f"{key.namespace}/{key.name}", "eth0",
                )
            )  # fmt: skip

    def _take_node(self, reading: Reading, document: dict[str, Any], cluster: str) -> None:
        metadata = Metadata(reading, document, NODE)
        status = reading.mapping(document.get("status"), "status")
        addresses = []
        for number, item in enumerate(reading.sequence(status.get("addresses"), "status.addresses")):
            path = f"status.addresses[{number}]"
            fields = reading.mapping(item, path)
            if fields.get("type") in ADDRESS_TYPES:
                addresses.append(read_address(reading, fields.get("address"), path_of(path, "address")))
        spec = reading.mapping(document.get("spec"), "spec")
        listed = reading.sequence(spec.get("podCIDRs"), "spec.podCIDRs")
        blocks = tuple(dict.fromkeys(map(str, listed or ([spec["podCIDR"]] if spec.get("podCIDR") else []))))
        key = NodeKey(cluster, metadata.name)
        labels = tuple(f"k8s:{name}={value}" for name, value in sorted(metadata.labels.items()))
        self._nodes[key] = _node(key, tuple(dict.fromkeys(each for each in addresses if each)), labels, blocks)

    def _add_node(self, key: NodeKey, words: NodeWords) -> None:
        known = self._nodes.get(key) or _node(key, (), (), ())
        said = sourced_labels(words.labels)
        names = {each.partition("=")[0] for each in said}
        kept = tuple(each for each in known.labels if each.partition("=")[0] not in names)
        self._nodes[key] = _node(key, words.addresses or known.addresses, (*kept, *said), known.blocks)


def _node(key: NodeKey, addresses: tuple[str, ...], labels: Iterable[str], blocks: tuple[str, ...]) -> Node:
    return Node(*key, addresses, Device("", 0, ""), tuple(sorted(labels)), blocks)


def _pod_addresses(reading: Reading, document: Mapping[str, Any]) -> tuple[str, ...]:
    """() of one that has ended: its address is free again."""
    status = reading.mapping(document.get("status"), "status")
    if status.get("phase") in ENDED:
        return ()
    listed = reading.sequence(status.get("podIPs"), "status.podIPs")
    given = [status.get("podIP"), *(item.get("ip") for item in listed if isinstance(item, dict))]
    found = dict.fromkeys(read_address(reading, each, "status.podIP") for each in given if each)
    return tuple(each for each in found if each)


def _cluster_ips(held: State, cluster: str, command: ApplyService) -> tuple[str, ...]:
    """Those asked for, or the lowest that are free."""
    if command.headless or command.exposure.type == EXTERNAL_NAME or command.cluster_ips:
        return () if command.headless else command.cluster_ips
    default = (4, 6) if command.family_policy and command.family_policy != "SingleStack" else (4,)
    ranges = (SERVICE_RANGES[family] for family in wanted_families(command, default))
    return tuple(
        next(each for each in service_addresses(cidr) if (cluster, each) not in held.service_addresses)
        for cidr in ranges
    )


def _judged(nouns: Nouns, cluster: str, health: Mapping[str, str]) -> Iterable[BackendState]:
    """A place without a port stands for every port that a service has there."""
    ports = {(port.port, port.protocol) for each in nouns.backend_slices for port in each.ports}
    ports |= {(port.target_port, port.protocol) for each in nouns.services for port in each.ports
              if isinstance(port.target_port, int)}  # fmt: skip
    ports |= {port for each in nouns.workloads for port in each.ports.values()}
    for text, state in health.items():
        found = _PLACE.fullmatch(text) if not is_address(text) else None
        address = found[1] if found else text
        for number, protocol in sorted(ports):
            wanted = found is None or (number == int(found[2]) and found[3] in (None, protocol))
            if wanted and state != ACTIVE:
                yield BackendState(cluster, address, number, protocol, state)


def read_health(document: Any) -> dict[str, str] | tuple[Refusal, ...]:
    """{"10.0.0.1:8080/TCP": "quarantined", "10.0.0.2:8080": "healthy", "10.0.0.3": "maintenance"}."""
    reading = Reading()
    found: dict[str, str] = {}
    for place, value in reading.mapping(document, "").items():
        match = _PLACE.fullmatch(place)
        if not (is_address(place) or (match and is_address(match[1]) and family_of(match[1]))):
            reading.refuse(place, value, "must be ADDRESS, ADDRESS:PORT or ADDRESS:PORT/PROTOCOL")
        state = HEALTH.get(value, value) if isinstance(value, (str, bool)) else ""
        if state not in STATES:
            reading.refuse(place, value, f"must be one of {', '.join(STATES)}, healthy, unhealthy")
        found[place] = str(state)
    return tuple(reading.refusals) or found
