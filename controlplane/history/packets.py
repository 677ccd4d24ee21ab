"""A flow as a packet on its way: at which program of which node it begins, where it goes on, what was said of it. Pure.

Belongs here: from a question about a flow to packets, and from their outcomes to a verdict that can be laid beside the
model's (policy/mesh.py). Does not belong here: running them (runtime/rehearsing.py).
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from controlplane.desired.endpoints import device_row
from controlplane.desired.policy_inputs import policy_settings
from controlplane.desired.services import ServiceCompiler
from controlplane.desired.underlay import mac_bytes, node_addresses, tunnel_address
from controlplane.model import Endpoint, NodeKey
from controlplane.policy.mesh import End, Judge, MeshEndpoint, MeshNode, Place, Question
from controlplane.projections.state import State
from datapath.abi import types as abi
from datapath.codec import address_bytes, address_text
from datapath.frames import ACTION_SHOT, ICMP, FrameFault, Outcome, ends_of, first_packet
from datapath.tables import NO_ADDRESS, DeviceRow, ServiceKey

OUTSIDE = ("192.0.2.1", "198.51.100.1", "203.0.113.1", "2001:db8::1", "3fff::1")
"""Addresses for documentation (RFC 5737, RFC 3849, RFC 9637), which stand for the world where none is named."""
FROM_ENDPOINT, TO_ENDPOINT, FROM_OVERLAY, TO_NETWORK = "from_endpoint", "to_endpoint", "from_overlay", "to_network"
VNI_MAX = 0xFFFFFF


class NoPacket(ValueError):
    """The flow is none that a packet could be sent for; says why."""


class Sender(NamedTuple):
    """Who a packet out of the tunnel came from: the address of the node, and the identity in the VNI."""

    address: bytes
    vni: int


class Step(NamedTuple):
    """A program of a node to run, and on what. `device`: whose device the packet is seen on."""

    node: NodeKey
    program: str
    frame: bytes
    device: DeviceRow | None
    sender: Sender | None = None


class PacketWays:
    """The ways of first packets through one state of the mesh. `cluster`: whose nodes answer for a frontend first;
    `services_at`: a node's frontends."""

    def __init__(
        self, state: State, cluster: str, judge: Judge, services_at: Callable[[NodeKey], ServiceCompiler]
    ) -> None:
        self._state = state
        self._cluster = cluster
        self._judge = judge
        self._services_at = services_at

    def first(self, question: Question) -> Step:
        """Raises NoPacket, FlowFault."""
        source, dest, version, protocol, port = self._judge.ends(question)
        if (protocol, version) == (ICMP, 6):
            raise NoPacket("the ends have only IPv6 in common, whose messages are ICMPv6")
        from_address = self._address(question.source, source, dest, version)
        to_address = self._address(question.dest, dest, source, version)
        sender = self._endpoint(source)
        macs = (mac_bytes(sender.device.mac), mac_bytes(sender.device.host_mac)) if sender is not None else ()
        try:
            frame = first_packet(from_address, to_address, protocol, port, *macs)
        except FrameFault as fault:
            raise NoPacket(str(fault)) from None
        if sender is not None:
            return Step(NodeKey(sender.cluster, sender.node), FROM_ENDPOINT, frame, device_row(sender))
        receiver = self._endpoint(dest)
        there = self._node_of(to_address) or self._asked_node(to_address, protocol, port)
        origin = self._state.addresses.get(address_text(from_address))
        if isinstance(origin, NodeKey):
            asked = ServiceKey(to_address, port, protocol, abi.SERVICE_SCOPE_INTERNAL)
            if origin != there and self._services_at(origin).unit_of(asked) is not None:
                raise NoPacket("a node's own processes ask for frontends at their sockets, before there is a packet")
            return self._from_node(origin, there, receiver, frame)
        if there is None:
            raise NoPacket("neither end is a workload, a node or a frontend of the mesh, so that no program meets it")
        return self._arriving(there, frame)

    def following(self, step: Step, outcome: Outcome) -> Step | None:
        """Where the packet goes on; None where its way ends."""
        if step.program == TO_ENDPOINT or is_dropped(outcome):
            return None
        sent = ends_of(outcome.frame)
        there = self._node_of(sent.dest)
        if there is None and step.program == TO_NETWORK:
            there = self._asked_node(sent.dest, sent.protocol, sent.dest_port)
        if there is None or there == step.node:
            return None
        frame = bytes(6) + outcome.frame[6:]
        if step.program == TO_NETWORK:
            return self._arriving(there, frame)
        identity = step.device.identity if step.device is not None else abi.IDENTITY_REMOTE_NODE
        return self._arriving(there, frame, step.node, identity)

    def _from_node(self, origin: NodeKey, there: NodeKey | None, receiver: Endpoint | None, frame: bytes) -> Step:
        """What a node itself sends. Raises NoPacket."""
        if origin == there:
            if receiver is None:
                raise NoPacket("what a node sends to itself passes no program")
            return Step(there, TO_ENDPOINT, frame, device_row(receiver))
        # Only endpoints are behind the tunnel; nodes talk to nodes on the link.
        if there is not None and receiver is not None and self._tunnel_address(origin, there) != NO_ADDRESS:
            return Step(origin, "to_overlay", frame, None)
        if self._is_guarded(origin):
            return Step(origin, TO_NETWORK, frame, None)
        if there is None:
            raise NoPacket("a node sends it to nobody in the mesh, and without host policies no program asks")
        return self._arriving(there, frame)

    def _arriving(
        self, there: NodeKey, frame: bytes, origin: NodeKey | None = None, identity: int = abi.IDENTITY_REMOTE_NODE
    ) -> Step:
        """At the node for which it is. `origin`: the node that sent it there, through the tunnel where they have one;
        `identity`: on whose behalf."""
        address = self._tunnel_address(there, origin) if origin is not None else NO_ADDRESS
        if address != NO_ADDRESS:
            vni = identity if identity <= VNI_MAX else abi.IDENTITY_WORLD
            return Step(there, FROM_OVERLAY, frame, None, Sender(address, vni))
        return Step(there, "from_network_guarded" if self._is_guarded(there) else "from_network", frame, None)

    def _is_guarded(self, node: NodeKey) -> bool:
        return policy_settings(self._state, node.cluster).host_firewall

    def _tunnel_address(self, node: NodeKey, other: NodeKey) -> bytes:
        nodes = self._state.nodes
        return tunnel_address(nodes[node], nodes[other])

    def _node_of(self, address: bytes) -> NodeKey | None:
        """Whose address it is, or whose endpoint's."""
        holder = self._state.addresses.get(address_text(address))
        return holder if holder is None or isinstance(holder, NodeKey) else NodeKey(holder.cluster, holder.node)

    def _asked_node(self, address: bytes, protocol: int, port: int) -> NodeKey | None:
        """A node of the own cluster, or else of another, that answers for a frontend: any may be asked. One that has
        backends for those who come from the network goes before one without."""
        key = ServiceKey(address, port, protocol, abi.SERVICE_SCOPE_EXTERNAL)
        nodes = sorted(self._state.nodes, key=lambda node: (node.cluster != self._cluster, node))
        answering = [node for node in nodes if self._services_at(node).unit_of(key) is not None]
        able = (node for node in answering if self._services_at(node).has_backends(key))
        return next(able, next(iter(answering), None))

    def _endpoint(self, end: End) -> Endpoint | None:
        if not isinstance(end, MeshEndpoint):
            return None
        keys = self._state.workload_endpoints.get((end.cluster, end.namespace, end.name), ())
        if not keys:
            raise NoPacket(f"{end.cluster}:{end.namespace}/{end.name} has no endpoint")
        return self._state.endpoints[keys[0]]

    def _address(self, text: str, end: End, other: End, version: int) -> bytes:
        """`text`: as the question has the end. Raises NoPacket."""
        if text.startswith("ip:"):
            listed: Sequence[str] = (text.removeprefix("ip:"),)
        elif isinstance(end, MeshEndpoint):
            listed = end.addresses
        elif isinstance(end, MeshNode):
            listed = (*end.addresses, *self._node_addresses(NodeKey(end.cluster, end.name)))
        else:
            listed = self._place_addresses(end, other)
        for address in listed:
            if (":" in address) == (version == 6):
                return address_bytes(address)
        raise NoPacket(f"{_name(end)} has no IPv{version} address")

    def _node_addresses(self, key: NodeKey) -> Sequence[str]:
        return node_addresses(self._state.nodes[key])

    def _place_addresses(self, place: Place, other: End) -> Sequence[str]:
        own = NodeKey(other.cluster, other.node) if isinstance(other, MeshEndpoint) else None
        if place.entity == "host" and own in self._state.nodes:
            return self._node_addresses(own)
        if place.entity == "remote-node":
            return [each for key in sorted(self._state.nodes) if key != own for each in self._node_addresses(key)]
        if place.entity in ("world", "world-ipv4", "world-ipv6"):
            free = [each for each in OUTSIDE if each not in self._state.addresses]
            return sorted(free, key=lambda each: self._judge.is_named(other, each))
        raise NoPacket(f"no address of this mesh has the identity of entity {place.entity}")


def _name(end: End) -> str:
    if isinstance(end, MeshEndpoint):
        return f"{end.cluster}:{end.namespace}/{end.name}"
    return f"node {end.cluster}/{end.name}" if isinstance(end, MeshNode) else (end.address or end.entity)


def is_dropped(outcome: Outcome) -> bool:
    """Also one that was answered with a refusal.

    A copy has no routes, and which way a packet would leave the node is not asked: one that found none goes on.
    """
    is_lost = outcome.action == ACTION_SHOT or outcome.drop_reason != 0
    return is_lost and outcome.drop_reason != abi.FIB_LOOKUP_FAILED
