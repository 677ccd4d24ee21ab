"""The mesh as policies see it, and the answer to any flow in it. Pure.

Belongs here: the ends of a flow (endpoints, nodes, addresses, entities), the labels by which the other end sees them,
and putting both sides together. Does not belong here: what a rule decides (verdict.py), where the mesh comes from
(manifests or the state).
"""

from collections.abc import Mapping, Sequence
from ipaddress import ip_address
from typing import NamedTuple

import msgspec

from controlplane.labels import CLUSTER_KEY, SOURCE_KUBERNETES, SOURCE_RESERVED, label
from controlplane.model import CidrGroup, Labels
from controlplane.policy.cilium_peers import ENTITIES, WORLD_PREFIXES
from controlplane.policy.nodes import HOST, REMOTE_NODE, cidr_labels, own_labels
from controlplane.policy.prefixes import EVERY_PREFIX, AddressLabels, Names, address_keys
from controlplane.policy.requests import NO_REQUEST, Request
from controlplane.policy.rules import ICMP, ICMPV6, PORT_MAX, PROTOCOLS, NamedPorts, ParsedPolicy
from controlplane.policy.services import ServiceView, with_services
from controlplane.policy.settings import DEFAULTS, PolicySettings
from controlplane.policy.verdict import NO_PORTS, Side, Verdict, joined, judge_side, policies_of
from datapath.abi.types import POLICY_EGRESS, POLICY_INGRESS

NOT_ENDS = ("all", "none", "cluster")
"""Entities that are many ends, or none."""
ICMP_NAMES = {"ICMP": ICMP, "ICMPV6": ICMPV6}


class FlowFault(ValueError):
    """A flow that names no such end or port: says which, and what would be right."""


class MeshEndpoint(msgspec.Struct, frozen=True):
    """`labels`: of its identity. `is_audited`: what its policies would deny passes."""

    cluster: str
    namespace: str
    name: str
    labels: Labels
    addresses: tuple[str, ...] = ()
    ports: NamedPorts = {}
    node: str = ""
    is_audited: bool = False


class MeshNode(msgspec.Struct, frozen=True):
    """`labels`: as the platform writes them. `routers`: its addresses in its pods' ranges, where they are known."""

    cluster: str
    name: str
    addresses: tuple[str, ...] = ()
    labels: dict[str, str] = {}
    routers: tuple[str, ...] = ()


class MeshCluster(msgspec.Struct, frozen=True):
    """What one cluster's policies are and look at. `services` and `api_servers` (addresses) are its own."""

    policies: tuple[ParsedPolicy, ...] = ()
    services: tuple[ServiceView, ...] = ()
    groups: tuple[CidrGroup, ...] = ()
    settings: PolicySettings = DEFAULTS
    api_servers: tuple[str, ...] = ()


class Mesh(msgspec.Struct, frozen=True):
    """`cluster`: the one that is meant where none is named. `address_labels`: of addresses outside the mesh."""

    cluster: str
    clusters: Mapping[str, MeshCluster]
    endpoints: Sequence[MeshEndpoint] = ()
    nodes: Sequence[MeshNode] = ()
    hosted: Mapping[tuple[str, str, str], str] = {}
    """By cluster, namespace and name of workloads in a host's network, their node; "" where it is not known."""
    names: Names = {}
    address_labels: Mapping[str, Labels] = {}


class Question(msgspec.Struct, frozen=True):
    """A flow by the names of its ends: `ns/pod`, `cluster:ns/pod`, `ip:ADDR`, `entity:NAME`, `node:NAME`."""

    source: str
    dest: str
    l4: str
    request: Request = NO_REQUEST


class Place(NamedTuple):
    """A bare address, or an entity."""

    address: str
    entity: str = ""


End = MeshEndpoint | MeshNode | Place


class Ends(NamedTuple):
    """What a question is about; `version` 4 or 6."""

    source: End
    dest: End
    version: int
    protocol: int
    port: int


class Judge:
    """Answers flows of one mesh; remembers what it has worked out."""

    def __init__(self, mesh: Mesh) -> None:
        self._mesh = mesh
        self._endpoints = {(each.cluster, each.namespace, each.name): each for each in mesh.endpoints}
        self._nodes = {(each.cluster, each.name): each for each in mesh.nodes}
        self._holders: dict[str, MeshEndpoint | MeshNode] = {}
        for node in mesh.nodes:
            self._holders.update(dict.fromkeys((*node.addresses, *node.routers), node))
        for endpoint in mesh.endpoints:
            self._holders.update(dict.fromkeys(endpoint.addresses, endpoint))
        self._policies: dict[str, list[ParsedPolicy]] = {}
        self._addresses: dict[str, AddressLabels] = {}
        for name, cluster in mesh.clusters.items():
            self._policies[name] = [with_services(policy, cluster.services) for policy in cluster.policies]
            keys = address_keys(self._policies[name])
            self._addresses[name] = AddressLabels(keys, cluster.groups, mesh.names, cluster.api_servers)
        self._about: dict[tuple[str, Labels, bool], list[ParsedPolicy]] = {}
        self._ends: dict[str, End] = {}

    def answer(self, question: Question) -> Verdict:
        """Raises FlowFault."""
        source, dest, version, protocol, port = self.ends(question)
        named = dest.ports if isinstance(dest, MeshEndpoint) else NO_PORTS
        flow = (protocol, port, named, question.request)
        return joined(
            self._side(POLICY_EGRESS, source, dest, version, *flow),
            self._side(POLICY_INGRESS, dest, source, version, *flow),
        )

    def end(self, text: str) -> End:
        """As a question names it. Raises FlowFault."""
        return self._end(text)

    def place(self, address: str) -> End:
        """An address that nobody in the mesh has, or had at the time that is asked about."""
        return Place(address)

    def is_named(self, own: End, address: str) -> bool:
        """Whether the policies of an end tell an address of the world from the world at large."""
        if isinstance(own, Place) or own.cluster not in self._addresses:
            return False
        addresses, version = self._addresses[own.cluster], 6 if ":" in address else 4
        return addresses.of_world(address) != addresses.of_prefix(EVERY_PREFIX[version])

    def side(self, direction: int, source: End, dest: End, protocol: int, port: int) -> Side | None:
        """What the policies of one end say; None where it has none."""
        version = _version(protocol, source, dest)
        named = dest.ports if isinstance(dest, MeshEndpoint) else NO_PORTS
        own, remote = (source, dest) if direction == POLICY_EGRESS else (dest, source)
        return self._side(direction, own, remote, version, protocol, port, named, NO_REQUEST)

    def between(self, source: End, dest: End, protocol: int, port: int) -> Verdict:
        """The verdict between two ends, which need not be in the mesh any more."""
        egress = self.side(POLICY_EGRESS, source, dest, protocol, port)
        return joined(egress, self.side(POLICY_INGRESS, source, dest, protocol, port))

    def about(self, end: MeshEndpoint) -> list[ParsedPolicy]:
        """The policies that are about an endpoint, one for each spec."""
        return policies_of(end.labels, self._policies.get(end.cluster, []))

    def ends(self, question: Question) -> Ends:
        """Raises FlowFault."""
        protocol, port = read_l4(question.l4)
        source, dest = self._end(question.source), self._end(question.dest)
        return Ends(source, dest, _version(protocol, source, dest), protocol, port)

    def _side(
        self,
        direction: int,
        own: End,
        remote: End,
        version: int,
        protocol: int,
        port: int,
        named: NamedPorts,
        request: Request,
    ) -> Side | None:
        if isinstance(own, Place) or own.cluster not in self._mesh.clusters:
            return None
        settings = self._mesh.clusters[own.cluster].settings
        of_nodes = isinstance(own, MeshNode)
        if of_nodes and not settings.host_firewall:
            return None
        labels = host_labels(own) if isinstance(own, MeshNode) else own.labels
        if isinstance(own, MeshEndpoint) and own.is_audited:
            settings = msgspec.structs.replace(settings, audit=True)
        key = (own.cluster, labels, of_nodes)
        if key not in self._about:
            self._about[key] = policies_of(labels, self._policies[own.cluster], of_nodes)
        seen = self._seen(own, remote, version)
        return judge_side(direction, self._about[key], seen, protocol, port, named, request, settings)

    def _seen(self, own: MeshEndpoint | MeshNode, remote: End, version: int) -> Labels:
        """The labels by which the policies of `own` see the other end."""
        addresses = self._addresses[own.cluster]
        if isinstance(remote, MeshEndpoint):
            return (*remote.labels, *addresses.of_mesh(_of_version(remote.addresses, version)))
        if isinstance(remote, MeshNode):
            return self._node_seen(own, remote, version)
        if remote.entity in ("", *WORLD_PREFIXES, "world"):
            return self._place_seen(addresses, remote, version)
        settings = self._mesh.clusters[own.cluster].settings
        if remote.entity == "host" and (settings.node_labels or settings.cidr_match_nodes):
            host = self._nodes.get((own.cluster, own.name if isinstance(own, MeshNode) else own.node))
            if host is not None:
                return self._node_seen(own, host, version)
        return (f"{SOURCE_RESERVED}:{remote.entity}",)

    def _node_seen(self, own: MeshEndpoint | MeshNode, remote: MeshNode, version: int) -> Labels:
        """The own node is its host, whose addresses share one identity: a prefix that has one of them is about it."""
        settings, addresses = self._mesh.clusters[own.cluster].settings, self._addresses[own.cluster]
        own_node = own.name if isinstance(own, MeshNode) else own.node
        place = (remote.cluster, remote.name)
        is_host = (own.cluster, own_node) == place
        known = _of_version(remote.addresses, version)
        found = [HOST if is_host else REMOTE_NODE, *addresses.of_node(known)]
        found += [each for address in remote.addresses for each in self._mesh.address_labels.get(address, ())]
        if settings.node_labels:
            found += own_labels(remote.cluster, remote.labels)
        found += cidr_labels(settings, addresses, self._nodes.get(place, remote).addresses if is_host else known)
        return tuple(sorted(set(found)))

    def _place_seen(self, addresses: AddressLabels, place: Place, version: int) -> Labels:
        if not place.address:
            return addresses.of_prefix(WORLD_PREFIXES.get(place.entity, EVERY_PREFIX[version]))
        given = self._mesh.address_labels.get(place.address, ())
        if HOST in given or REMOTE_NODE in given:
            return tuple(sorted({*given, *addresses.of_node((place.address,))}))
        return tuple(sorted({*given, *addresses.of_world(place.address)}))

    def _end(self, text: str) -> End:
        if text not in self._ends:
            self._ends[text] = self._read_end(text)
        return self._ends[text]

    def _read_end(self, text: str) -> End:
        kind, colon, rest = text.partition(":")
        if colon and kind == "ip":
            address = _canonical_address(text, rest)
            holder = self._holders.get(address)
            return msgspec.structs.replace(holder, addresses=(address,)) if holder else Place(address)
        if colon and kind == "entity":
            if rest not in ENTITIES or rest in NOT_ENDS:
                right = ", ".join(entity for entity in ENTITIES if entity not in NOT_ENDS)
                raise FlowFault(f"{text}: no end of a flow; right is one of {right}")
            return Place("", rest)
        if colon and kind == "node":
            cluster, _, name = rest.rpartition(":")
            found = self._nodes.get((cluster or self._mesh.cluster, name))
            if found is None:
                raise FlowFault(f"{text}: no such node")
            return found
        cluster, name = (kind, rest) if colon else (self._mesh.cluster, text)
        namespace, slash, workload = name.partition("/")
        endpoint = self._endpoints.get((cluster, namespace, workload))
        if endpoint is None:
            if (cluster, namespace, workload) in self._mesh.hosted:
                node = self._mesh.hosted[cluster, namespace, workload]
                return self._read_end(f"node:{cluster}:{node}" if node else "entity:remote-node")
            right = "right is NS/NAME, CLUSTER:NS/NAME, ip:ADDR, entity:NAME or node:NAME"
            raise FlowFault(f"{text}: {'no such endpoint' if slash else right}")
        return endpoint


def read_l4(text: str) -> tuple[int, int]:
    """Protocol number and port (ICMP: type) of "TCP/80". Raises FlowFault."""
    name, _, number = text.upper().partition("/")
    protocol = {**PROTOCOLS, **ICMP_NAMES}.get(name)
    last = 255 if name in ICMP_NAMES else PORT_MAX
    if protocol is None or not number.isascii() or not number.isdigit() or int(number) > last:
        raise FlowFault(f"l4 {text!r}: right is for example TCP/80, UDP/53, SCTP/7, ICMP/8 or ICMPv6/128")
    return protocol, int(number)


def _canonical_address(text: str, address: str) -> str:
    try:
        return str(ip_address(address))
    except ValueError:
        raise FlowFault(f"{text}: no address; right is for example ip:192.0.2.1") from None


def _addresses(end: End) -> tuple[str, ...]:
    return ((end.address,) if end.address else ()) if isinstance(end, Place) else end.addresses


def _version(protocol: int, source: End, dest: End) -> int:
    """4 or 6: what both ends have, IPv4 before IPv6."""
    if protocol == ICMPV6:
        return 6
    families = [{6 if ":" in address else 4 for address in _addresses(end)} or {4, 6} for end in (source, dest)]
    if any(isinstance(end, Place) and end.entity == "world-ipv6" for end in (source, dest)):
        return 6
    return 4 if all(4 in family for family in families) else 6


def _of_version(addresses: Sequence[str], version: int) -> list[str]:
    return [address for address in addresses if (":" in address) == (version == 6)]


def host_labels(node: MeshNode) -> Labels:
    """Of a node as the subject of host policies."""
    labels = [label(SOURCE_KUBERNETES, key, value) for key, value in node.labels.items()]
    return tuple(sorted([*labels, HOST, label(SOURCE_KUBERNETES, CLUSTER_KEY, node.cluster)]))
