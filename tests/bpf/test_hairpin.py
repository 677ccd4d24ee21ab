"""An endpoint that reaches itself through a frontend: there, back, and who may not pretend to be that."""

import pytest

from datapath.abi import types as abi
from tests.bpf import packets
from tests.bpf.node import CLIENT, FRONTEND, REDIRECT, SERVER, Endpoint, Node

pytestmark = pytest.mark.kernel("bpf_redirect_peer")

HAIRPIN = Endpoint("169.254.42.1", "fd6d:6573:686c::1", 0, 0, 0, CLIENT.mac, CLIENT.host_mac)
PROTOCOLS = {"tcp": packets.TCP, "udp": packets.UDP}
BACKEND_PORT = 8080


@pytest.fixture(params=PROTOCOLS)
def alone(request: pytest.FixtureRequest, node: Node) -> Node:
    """FRONTEND:80 is served by CLIENT:8080 only, and no policy lets CLIENT talk to anybody."""
    node.protocol = PROTOCOLS[request.param]
    node.service([(CLIENT, BACKEND_PORT)], node.protocol)
    node.subject(CLIENT, ingress=True, egress=True)
    return node


def segment(node: Node, source_port: int, dest_port: int, flags: int) -> bytes:
    """A segment or a datagram with an odd payload."""
    if node.protocol == packets.TCP:
        return packets.tcp(source_port, dest_port, flags, b"odd")
    return packets.udp(source_port, dest_port, b"odd")


def ask(node: Node, flags: int = packets.SYN) -> tuple[int, packets.Packet]:
    """CLIENT:1000 -> FRONTEND:80."""
    run = node.send(CLIENT, node.frame(CLIENT, FRONTEND, segment(node, 1000, 80, flags)))
    return run.retval, packets.read(run.packet)


def answer(node: Node, flags: int = packets.SYN | packets.ACK) -> tuple[int, packets.Packet]:
    """CLIENT:8080 -> HAIRPIN:1000."""
    run = node.send(CLIENT, node.frame(CLIENT, HAIRPIN, segment(node, BACKEND_PORT, 1000, flags)))
    return run.retval, packets.read(run.packet)


@pytest.mark.parametrize("packet_number", [1, 2])
def test_question_comes_from_the_hairpin_address(alone: Node, packet_number: int) -> None:
    """The first packet and an established one: both ends, MACs, and all checksums; policy is not asked."""
    for _ in range(packet_number):
        verdict, seen = ask(alone)
    assert verdict == REDIRECT
    assert (seen.source, seen.source_port) == (HAIRPIN.address(alone.family), 1000)
    assert (seen.dest, seen.dest_port) == (CLIENT.address(alone.family), BACKEND_PORT)
    assert (seen.dest_mac, seen.source_mac) == (CLIENT.mac, CLIENT.host_mac)
    assert (seen.l3_sum, seen.l4_sum, alone.drops()) == (0, 0, [])


def test_answer_comes_from_the_frontend(alone: Node) -> None:
    """Back to the endpoint, with both ends as it knows them."""
    ask(alone)
    verdict, seen = answer(alone)
    assert verdict == REDIRECT
    assert (seen.source, seen.source_port) == (FRONTEND.address(alone.family), 80)
    assert (seen.dest, seen.dest_port) == (CLIENT.address(alone.family), 1000)
    assert (seen.dest_mac, seen.source_mac) == (CLIENT.mac, CLIENT.host_mac)
    assert (seen.l3_sum, seen.l4_sum) == (0, 0)


def test_two_entries_know_of_each_other(alone: Node) -> None:
    """One for each way; what one learns of the flow's end the other is told."""
    ask(alone)
    answer(alone, packets.RST)
    ways = {entry.row.flags & (abi.CONNTRACK_DNAT | abi.CONNTRACK_REVERSE_DNAT) for entry in alone.entries()}
    told = {entry.row.flags & (abi.CONNTRACK_HAIRPIN | abi.CONNTRACK_SEEN_REPLY) for entry in alone.entries()}
    assert ways == {abi.CONNTRACK_DNAT, abi.CONNTRACK_REVERSE_DNAT}
    assert told == {abi.CONNTRACK_HAIRPIN | abi.CONNTRACK_SEEN_REPLY}


def test_backend_is_chosen_among_all(alone: Node) -> None:
    """An endpoint is as likely to get itself as another."""
    alone.subject(CLIENT)
    alone.service([(CLIENT, BACKEND_PORT), (SERVER, BACKEND_PORT)], alone.protocol)
    found = set()
    for port in range(2000, 2032):
        raw = alone.frame(CLIENT, FRONTEND, segment(alone, port, 80, packets.SYN))
        found.add(packets.read(alone.send(CLIENT, raw).packet).dest)
    assert found == {CLIENT.address(alone.family), SERVER.address(alone.family)}


def test_nobody_else_has_the_hairpin_address(alone: Node) -> None:
    """A packet from it that comes through the host's stack does not pass as part of a hairpin flow."""
    ask(alone)
    raw = alone.frame(HAIRPIN, CLIENT, segment(alone, 1000, BACKEND_PORT, packets.ACK))
    assert alone.is_dropped(alone.deliver(CLIENT, raw), abi.INVALID_SOURCE_IP)


def test_nobody_else_has_the_hairpin_address_on_the_network(network: Node) -> None:
    """Likewise from the network."""
    raw = network.frame(HAIRPIN, CLIENT, packets.tcp(1000, BACKEND_PORT), packets.TCP, dest_mac=bytes(6))
    assert network.is_dropped(network.receive(raw), abi.INVALID_SOURCE_IP)


def test_sum_fits(alone: Node) -> None:
    """The sum of a packet that a device has summed up stays right through both rewrites."""
    alone.device(CLIENT)
    raw = alone.frame(CLIENT, FRONTEND, segment(alone, 1000, 80, packets.SYN))
    assert (alone.run_summed("from_endpoint", raw), alone.drops()) == (0, [])
    back = alone.frame(CLIENT, HAIRPIN, segment(alone, BACKEND_PORT, 1000, packets.ACK))
    assert (alone.run_summed("from_endpoint", back), alone.drops()) == (0, [])
