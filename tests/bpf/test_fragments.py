"""Datagrams in pieces: each later fragment goes the way of the first, through policy, services and masquerading."""

import pytest

from datapath.abi import types as abi
from tests.bpf import packets
from tests.bpf.gate import NODE, Gate
from tests.bpf.node import CLIENT, FRONTEND, GATEWAY_MAC, LOOPBACK_MAC, REDIRECT, REMOTE, SERVER, WORLD, Endpoint, Node

pytestmark = pytest.mark.kernel("bpf_redirect_peer")

PAYLOAD = bytes(range(200))
PIECE_BYTES = 64


def datagram(node: Node, source: Endpoint, dest: Endpoint, *, port: int = 1000, number: int = 77) -> list[bytes]:
    """A UDP datagram to port 80 in four pieces."""
    whole = node.frame(source, dest, packets.udp(port, 80, PAYLOAD), packets.UDP)
    return packets.cut(whole, PIECE_BYTES, number)


def passed(node: Node, source: Endpoint, pieces: list[bytes]) -> packets.Packet:
    """Sends every piece; what they say when joined again."""
    runs = [node.send(source, piece) for piece in pieces]
    assert ([run.retval for run in runs], node.drops()) == ([REDIRECT] * len(pieces), [])
    return packets.read(packets.joined([run.packet for run in runs]))


def test_fragments_reach_another_endpoint(node: Node) -> None:
    """Unchanged but for TTL and MACs, as one flow of as many packets."""
    pieces = datagram(node, CLIENT, SERVER)
    seen = passed(node, CLIENT, pieces)
    assert (seen.dest, seen.payload, seen.l3_sum, seen.l4_sum) == (SERVER.address(node.family), PAYLOAD, 0, 0)
    (entry,) = node.entries()
    assert entry.row.forward_packets == len(pieces)


def test_fragments_of_a_service_flow_go_to_one_backend(node: Node) -> None:
    """The address is changed in every piece, the port in the first, and the checksum holds over all of them."""
    node.service([(REMOTE, 8080), (SERVER, 8080)], packets.UDP)
    seen = passed(node, CLIENT, datagram(node, CLIENT, FRONTEND))
    assert seen.dest in (REMOTE.address(node.family), SERVER.address(node.family))
    assert (seen.dest_port, seen.payload, seen.l3_sum, seen.l4_sum) == (8080, PAYLOAD, 0, 0)


def test_fragments_of_an_echo_follow(node: Node) -> None:
    """ICMP has an id and a type in place of ports."""
    protocol, request = (packets.ICMP, 8) if node.family == 4 else (packets.ICMPV6, 128)
    whole = node.frame(CLIENT, SERVER, packets.icmp(request, payload=PAYLOAD), protocol)
    passed(node, CLIENT, packets.cut(whole, PIECE_BYTES))
    assert len(node.entries()) == 1


def test_later_fragment_without_the_first_is_dropped(node: Node) -> None:
    """Nobody knows whose it is, also when another datagram of the same two ends is known."""
    node.send(CLIENT, datagram(node, CLIENT, SERVER, number=76)[0])
    for piece in datagram(node, CLIENT, SERVER)[1:]:
        assert node.is_dropped(node.send(CLIENT, piece), abi.FIRST_LOGICAL_DATAGRAM_FRAGMENT_NOT_FOUND)


def test_later_fragment_is_judged_like_the_first(node: Node) -> None:
    """A denied datagram stays denied piece by piece: its ports are known."""
    node.subject(CLIENT, egress=True)
    for piece in datagram(node, CLIENT, SERVER):
        assert node.is_dropped(node.send(CLIENT, piece), abi.POLICY_DENIED)


def test_transport_header_must_be_in_the_first_fragment(node: Node) -> None:
    """A first piece too short for TCP's header is no way around policy."""
    whole = node.frame(CLIENT, SERVER, packets.tcp(1000, 80, payload=PAYLOAD), packets.TCP)
    first, second, *_ = packets.cut(whole, 8)
    assert node.is_dropped(node.send(CLIENT, first), abi.CT_TRUNCATED_OR_INVALID_HEADER)
    assert node.is_dropped(node.send(CLIENT, second), abi.FIRST_LOGICAL_DATAGRAM_FRAGMENT_NOT_FOUND)


def test_fragments_leave_the_mesh_and_come_back(gate: Gate, wall: Gate) -> None:
    """Masqueraded there, and the answer's pieces find the endpoint."""
    seen = passed(gate, CLIENT, datagram(gate, CLIENT, WORLD))
    assert (seen.source, seen.payload, seen.l3_sum, seen.l4_sum) == (NODE.address(gate.family), PAYLOAD, 0, 0)
    wall.take_over(gate)
    macs = {"source_mac": GATEWAY_MAC, "dest_mac": LOOPBACK_MAC}
    answer = wall.frame(WORLD, NODE, packets.udp(80, seen.source_port, PAYLOAD), packets.UDP, **macs)
    runs = [wall.receive(piece) for piece in packets.cut(answer, PIECE_BYTES)]
    assert ([run.retval for run in runs], wall.drops()) == ([REDIRECT] * 4, [])
    back = packets.read(packets.joined([run.packet for run in runs]))
    assert (back.dest, back.dest_port, back.l3_sum, back.l4_sum) == (CLIENT.address(wall.family), 1000, 0, 0)


def test_fragments_from_the_network_are_delivered(network: Node) -> None:
    """What another node's endpoint sends in pieces; one whose first piece went elsewhere is dropped."""
    pieces = datagram(network, REMOTE, SERVER)
    pieces = [LOOPBACK_MAC + piece[6:] for piece in pieces]
    assert [network.receive(piece).retval for piece in pieces] == [REDIRECT] * len(pieces)
    lonely = LOOPBACK_MAC + datagram(network, REMOTE, SERVER, number=78)[2][6:]
    assert network.is_dropped(network.receive(lonely), abi.FIRST_LOGICAL_DATAGRAM_FRAGMENT_NOT_FOUND)


@pytest.mark.parametrize("family", [6], indirect=True)
def test_whole_datagram_with_a_fragment_header_is_none_in_pieces(node: Node) -> None:
    """An atomic fragment (RFC 6946), also behind another header; of two such headers one is too many."""
    source, dest = (packets.packed(each.address(6)) for each in (CLIENT, SERVER))
    segment = packets.with_checksum(packets.udp(1000, 80), packets.UDP, source, dest)
    fragment = packets.FRAGMENT
    for extensions in ([fragment], [packets.DEST_OPTIONS, fragment], [fragment, packets.DEST_OPTIONS]):
        raw = packets.ipv6(source, dest, packets.UDP, segment, extensions=extensions)
        raw = packets.ethernet(CLIENT.host_mac, CLIENT.mac, packets.IPV6, raw)
        assert (node.send(CLIENT, raw).retval, node.drops()) == (REDIRECT, [])
    assert len(node.maps["fragments"].dump()) == 0
    raw = packets.ipv6(source, dest, packets.UDP, segment, extensions=[fragment, fragment])
    raw = packets.ethernet(CLIENT.host_mac, CLIENT.mac, packets.IPV6, raw)
    assert node.is_dropped(node.send(CLIENT, raw), abi.INVALID_IPV6_EXTENSION_HEADER)


@pytest.mark.parametrize("family", [6], indirect=True)
def test_discovery_in_pieces_is_not_passed(node: Node) -> None:
    """Neighbour discovery in a fragment is to be ignored (RFC 6980), not to slip past the source check."""
    whole = packets.frame(
        "fe80::5", "fe80::1", packets.ICMPV6, packets.icmp(135, payload=PAYLOAD),
        source_mac=CLIENT.mac, dest_mac=CLIENT.host_mac,
    )  # fmt: skip
    assert node.is_dropped(node.send(CLIENT, packets.cut(whole, PIECE_BYTES)[0]), abi.INVALID_SOURCE_IP)
