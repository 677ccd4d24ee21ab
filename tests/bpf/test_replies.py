"""A reply that meets an old policy epoch: its flow's forward direction is judged again, wherever the reply is seen."""

import pytest

from datapath.abi import types as abi
from tests.bpf import packets
from tests.bpf.gate import Gate
from tests.bpf.node import (
    CLIENT,
    FRONTEND,
    GATEWAY_MAC,
    HOST,
    L3_SHAPE,
    LOOPBACK_MAC,
    OK,
    PORT_SHAPE,
    REDIRECT,
    REMOTE,
    SERVER,
    SHOT,
    WORLD,
    Endpoint,
    Node,
)

pytestmark = pytest.mark.kernel("bpf_redirect_peer")

SYN, ACK = packets.SYN, packets.ACK
INGRESS, EGRESS = abi.POLICY_INGRESS, abi.POLICY_EGRESS


def send(node: Node, source: Endpoint, dest: Endpoint, ports: tuple[int, int], flags: int = ACK) -> int:
    """From an endpoint of this node; the verdict."""
    return node.send(source, node.frame(source, dest, packets.tcp(*ports, flags))).retval


def receive(node: Node, source: Endpoint, dest: Endpoint, ports: tuple[int, int], flags: int = ACK) -> int:
    """Over the network; the verdict."""
    raw = node.frame(source, dest, packets.tcp(*ports, flags), source_mac=GATEWAY_MAC, dest_mac=LOOPBACK_MAC)
    return node.receive(raw).retval


@pytest.mark.parametrize("subject", [CLIENT, SERVER], ids=["sender's egress", "receiver's ingress"])
def test_reply_between_local_endpoints_ends_a_revoked_flow(node: Node, subject: Endpoint) -> None:
    """Both sides are asked, as when the flow began; the drop is told with the flow's ends."""
    send(node, CLIENT, SERVER, (1000, 80), SYN)
    node.subject(subject, egress=subject is CLIENT, ingress=subject is SERVER)
    node.epoch(2)
    node.notifications()
    assert send(node, SERVER, CLIENT, (80, 1000)) == SHOT
    [told] = node.notifications()
    assert (told.drop_reason, told.source_port, told.dest_port) == (abi.POLICY_DENIED, 1000, 80)
    assert (told.endpoint_id, told.source_identity) == (subject.endpoint_id, CLIENT.identity)
    assert node.entries() == []


def test_reply_is_judged_by_the_port_of_its_flow(node: Node) -> None:
    """Port 80 of the server, and not the client's, is what the rows are about; then the epoch is the new one."""
    send(node, CLIENT, SERVER, (1000, 80), SYN)
    node.subject(CLIENT, egress=True, shapes=PORT_SHAPE)
    node.policy(CLIENT, EGRESS, SERVER.identity, protocol=packets.TCP, port=80, prefix=16)
    node.epoch(2)
    assert send(node, SERVER, CLIENT, (80, 1000)) == REDIRECT
    assert node.entries()[0].row.policy_epoch == 2


def test_reply_to_another_node_asks_the_receivers_ingress(node: Node, network: Node) -> None:
    """Of a flow that came over the network only the receiver's side is this node's to judge."""
    receive(network, REMOTE, SERVER, (1000, 80), SYN)
    node.maps["conntrack"].put(list(network.maps["conntrack"].dump().items()))
    node.subject(SERVER, egress=True)
    node.epoch(2)
    assert send(node, SERVER, REMOTE, (80, 1000)) == REDIRECT
    node.subject(SERVER, ingress=True)
    node.epoch(3)
    assert send(node, SERVER, REMOTE, (80, 1000)) == SHOT


def test_reply_from_the_network_asks_the_senders_egress(node: Node, network: Node) -> None:
    """The node that a flow began on."""
    send(node, CLIENT, REMOTE, (1000, 80), SYN)
    network.maps["conntrack"].put(list(node.maps["conntrack"].dump().items()))
    network.subject(CLIENT, ingress=True)
    network.epoch(2)
    assert receive(network, REMOTE, CLIENT, (80, 1000)) == REDIRECT
    network.subject(CLIENT, egress=True)
    network.epoch(3)
    assert receive(network, REMOTE, CLIENT, (80, 1000)) == SHOT
    assert network.entries() == []


def test_reply_of_a_service_flow_ends_both_entries(node: Node) -> None:
    """The backend's answer: judged is the way to the backend, and nothing of the flow is left."""
    node.service([(SERVER, 8080)], packets.TCP)
    send(node, CLIENT, FRONTEND, (1000, 80), SYN)
    assert len(node.entries()) == 2
    node.subject(CLIENT, egress=True, shapes=PORT_SHAPE)
    node.policy(CLIENT, EGRESS, SERVER.identity, protocol=packets.TCP, port=8080, prefix=16)
    node.epoch(2)
    assert send(node, SERVER, CLIENT, (8080, 1000)) == REDIRECT
    node.subject(CLIENT, egress=True)
    node.epoch(3)
    assert send(node, SERVER, CLIENT, (8080, 1000)) == SHOT
    assert node.entries() == []


def test_reply_to_the_host_asks_the_endpoints_ingress(node: Node) -> None:
    """The host needs no row, and a deny row keeps it out."""
    node.deliver(SERVER, node.frame(HOST, SERVER, packets.tcp(1000, 80)))
    node.subject(SERVER, ingress=True, egress=True, shapes=L3_SHAPE)
    node.epoch(2)
    assert send(node, SERVER, HOST, (80, 1000)) == OK
    node.policy(SERVER, INGRESS, HOST.identity, verdict=abi.POLICY_VERDICT_DENY)
    node.epoch(3)
    assert send(node, SERVER, HOST, (80, 1000)) == SHOT


def test_echo_reply_is_judged_as_its_request(node: Node) -> None:
    """A row for the request's type lets the answer pass."""
    protocol, request, answer = (packets.ICMP, 8, 0) if node.family == 4 else (packets.ICMPV6, 128, 129)
    node.send(CLIENT, node.frame(CLIENT, SERVER, packets.icmp(request), protocol))
    node.subject(CLIENT, egress=True, shapes=PORT_SHAPE)
    node.policy(CLIENT, EGRESS, SERVER.identity, protocol=protocol, port=request, prefix=16)
    node.epoch(2)
    assert node.send(SERVER, node.frame(SERVER, CLIENT, packets.icmp(answer), protocol)).retval == REDIRECT
    node.subject(CLIENT, egress=True)
    node.epoch(3)
    assert node.send(SERVER, node.frame(SERVER, CLIENT, packets.icmp(answer), protocol)).retval == SHOT


def test_answer_to_a_masqueraded_flow_is_judged_too(gate: Gate, wall: Gate) -> None:
    """The world answers a download whose permission is gone."""
    seen = packets.read(gate.send(CLIENT, gate.frame(CLIENT, WORLD, packets.tcp(1000, 80))).packet)
    wall.take_over(gate)
    wall.subject(CLIENT, egress=True)
    answer = packets.frame(
        seen.dest, seen.source, packets.TCP, packets.tcp(80, seen.source_port, ACK),
        source_mac=GATEWAY_MAC, dest_mac=LOOPBACK_MAC,
    )  # fmt: skip
    assert wall.receive(answer).retval == REDIRECT
    wall.epoch(2)
    assert wall.receive(answer).retval == SHOT
