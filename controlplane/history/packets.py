"""A flow as a packet on its way: at which program of which node it begins, where it goes on, what was said of it. Pure.

Belongs here: from a question about a flow to packets, and from their outcomes to a verdict that can be laid beside the
model's (policy/mesh.py). Does not belong here: running them (runtime/rehearsing.py).
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from controlplane.addresses import router_address
from controlplane.desired.endpoints import device_row
from controlplane.desired.underlay import mac_bytes
from controlplane.model import Endpoint, EndpointKey, NodeKey
from controlplane.policy.mesh import End, Judge, MeshEndpoint, MeshNode, Place, Question
from controlplane.policy.verdict import ALLOW, DENY, DENY_DEFAULT, DENY_EXPLICIT, REDIRECT
from controlplane.projections.state import State
from datapath.abi import types as abi
from datapath.addressing import protocol_name
from datapath.codec import address_bytes, address_text
from datapath.frames import ACTION_SHOT, ICMP, FrameFault, Outcome, ends_of, first_packet
from datapath.notifications import DROP_REASON_TEXTS
from datapath.tables import DeviceRow

OUTSIDE = ("192.0.2.1", "198.51.100.1", "203.0.113.1", "2001:db8::1", "3fff::1")
"""Addresses for documentation (RFC 5737, RFC 3849, RFC 9637), which stand for the world where none is named."""
SIDES = {abi.POLICY_EGRESS: "egress", abi.POLICY_INGRESS: "ingress"}
DENIALS = {abi.POLICY_DENIED: DENY_DEFAULT, abi.POLICY_DENY: DENY_EXPLICIT}


class NoPacket(ValueError):
    """The flow is none that a packet could be sent for; says why."""


class Step(NamedTuple):
    """A program of a node to run, and on what. `device`: whose device the packet is seen on."""

    node: NodeKey
    program: str
    frame: bytes
    device: DeviceRow | None


class PacketWays:
    """The ways of first packets through one state of the mesh."""

    def __init__(self, state: State, judge: Judge) -> None:
        self._state = state
        self._judge = judge

    def first(self, question: Question) -> Step:
        """Raises NoPacket, FlowFault."""
        source, dest, version, protocol, port = self._judge.ends(question)
        if (protocol, version) == (ICMP, 6):
            raise NoPacket("the ends have only IPv6 in common, whose messages are ICMPv6")
        from_address, to_address = self._address(source, dest, version), self._address(dest, source, version)
        sender, receiver = self._endpoint(source), self._endpoint(dest)
        try:
            if sender is not None:
                macs = mac_bytes(sender.device.mac), mac_bytes(sender.device.host_mac)
                frame = first_packet(from_address, to_address, protocol, port, *macs)
                return Step(NodeKey(sender.cluster, sender.node), "from_endpoint", frame, device_row(sender))
            frame = first_packet(from_address, to_address, protocol, port)
        except FrameFault as fault:
            raise NoPacket(str(fault)) from None
        if receiver is None:
            raise NoPacket("neither end is a workload of the mesh, so that no program of an endpoint meets it")
        node = NodeKey(receiver.cluster, receiver.node)
        if self._state.addresses.get(address_text(from_address)) == node:
            return Step(node, "to_endpoint", frame, device_row(receiver))
        return Step(node, "from_network", frame, None)

    def following(self, step: Step, outcome: Outcome) -> Step | None:
        """Where the packet goes on; None where its way ends."""
        if step.program != "from_endpoint" or _is_dropped(outcome):
            return None
        holder = self._state.addresses.get(address_text(ends_of(outcome.frame).dest))
        if not isinstance(holder, EndpointKey) or (holder.cluster, holder.node) == step.node:
            return None
        return Step(NodeKey(holder.cluster, holder.node), "from_network", bytes(6) + outcome.frame[6:], None)

    def _endpoint(self, end: End) -> Endpoint | None:
        if not isinstance(end, MeshEndpoint):
            return None
        keys = self._state.workload_endpoints.get((end.cluster, end.namespace, end.name), ())
        if not keys:
            raise NoPacket(f"{end.cluster}:{end.namespace}/{end.name} has no endpoint")
        return self._state.endpoints[keys[0]]

    def _address(self, end: End, other: End, version: int) -> bytes:
        """Raises NoPacket."""
        if isinstance(end, MeshEndpoint):
            listed: Sequence[str] = end.addresses
        elif isinstance(end, MeshNode):
            listed = self._node_addresses(NodeKey(end.cluster, end.name))
        else:
            listed = self._place_addresses(end, other)
        for address in listed:
            if (":" in address) == (version == 6):
                return address_bytes(address)
        raise NoPacket(f"{_name(end)} has no IPv{version} address")

    def _node_addresses(self, key: NodeKey) -> Sequence[str]:
        node = self._state.nodes[key]
        return (*node.addresses, *map(router_address, node.blocks))

    def _place_addresses(self, place: Place, other: End) -> Sequence[str]:
        if place.address:
            return (place.address,)
        own = NodeKey(other.cluster, other.node) if isinstance(other, MeshEndpoint) else None
        if place.entity == "host" and own in self._state.nodes:
            return self._node_addresses(own)
        if place.entity == "remote-node":
            return [each for key in sorted(self._state.nodes) if key != own for each in self._node_addresses(key)]
        if place.entity in ("world", "world-ipv4", "world-ipv6"):
            return [each for each in OUTSIDE if each not in self._state.addresses]
        raise NoPacket(f"no address of this mesh has the identity of entity {place.entity}")


def _name(end: End) -> str:
    if isinstance(end, MeshEndpoint):
        return f"{end.cluster}:{end.namespace}/{end.name}"
    return f"node {end.cluster}/{end.name}" if isinstance(end, MeshNode) else (end.address or end.entity)


def _is_dropped(outcome: Outcome) -> bool:
    """A copy has no routes, and which way a packet would leave the node is not asked: one that found none goes on."""
    return outcome.action == ACTION_SHOT and outcome.drop_reason != abi.FIB_LOOKUP_FAILED


def verdict_of(steps: Sequence[Step], outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """What the programs said, in the words of the model's answer: verdict, egress, ingress, reason; and the way."""
    found: dict[str, Any] = {"verdict": ALLOW}
    for outcome in outcomes:
        for told in outcome.told:
            if told.type == abi.NOTIFICATION_VERDICT:
                denied = DENIALS.get(told.drop_reason, DENY)
                found[SIDES[told.policy_direction]] = ALLOW if told.verdict == abi.VERDICT_ALLOW else denied
        if _is_dropped(outcome):
            found["verdict"] = DENY
            code = outcome.drop_reason
            found["reason"] = {"code": code, "name": DROP_REASON_TEXTS.get(code, str(code))}
    last = steps[-1]
    if found["verdict"] == ALLOW and last.program != "from_endpoint":
        # The node's host comes in without being asked, and nothing is told of it.
        found.setdefault("ingress", ALLOW)
    found["way"] = [f"{'/'.join(step.node)} {step.program}" for step in steps]
    return found


def backend_question(question: Question, steps: Sequence[Step], outcomes: Sequence[Outcome]) -> Question | None:
    """The question about the backend that the packet was sent to; None where its destination is the one asked about."""
    asked, sent = ends_of(steps[0].frame), ends_of(outcomes[0].frame)
    if _is_dropped(outcomes[0]) or (asked.dest, asked.dest_port) == (sent.dest, sent.dest_port):
        return None
    to = f"ip:{address_text(sent.dest)}"
    return Question(question.source, to, f"{protocol_name(sent.protocol)}/{sent.dest_port}", question.request)


def agrees(model: Mapping[str, Any], packet: Mapping[str, Any]) -> bool:
    """Whether the programs did what the model says. What only a proxy could allow, they drop as long as there is none.

    A packet that was dropped at one end never met the other end's policy; that side is not compared.
    """
    for side in SIDES.values():
        said, done = model.get(side), packet.get(side)
        if said is None or done is None:
            continue
        if done != (DENY_DEFAULT if said == REDIRECT else said):
            return False
    return bool((model.get("verdict") == ALLOW) == (packet["verdict"] == ALLOW))


