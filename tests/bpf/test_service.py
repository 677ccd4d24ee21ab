"""A frontend there, a backend behind it, and back: addresses, ports, every checksum, both entries."""

import time

import pytest

from datapath.abi import types as abi
from tests.bpf import packets
from tests.bpf.node import (
    CLIENT,
    FRONTEND,
    HOST,
    NS_PER_S,
    OK,
    REDIRECT,
    REMOTE,
    SERVER,
    SHOT,
    WORLD,
    Endpoint,
    Node,
)

pytestmark = pytest.mark.kernel("bpf_redirect_peer")

DNAT, REVERSE_DNAT = abi.CONNTRACK_DNAT, abi.CONNTRACK_REVERSE_DNAT
PROTOCOLS = {"tcp": packets.TCP, "udp": packets.UDP}
BACKEND_PORT = 8080


def segment(protocol: int, source_port: int, dest_port: int, flags: int = packets.SYN) -> bytes:
    """A TCP segment or a UDP datagram with an odd payload."""
    if protocol == packets.TCP:
        return packets.tcp(source_port, dest_port, flags, b"odd")
    return packets.udp(source_port, dest_port, b"odd")


def ask(node: Node, port: int = 1000, flags: int = packets.SYN, **named: bool) -> tuple[int, packets.Packet]:
    """CLIENT:port -> FRONTEND:80; the verdict and the packet."""
    raw = node.frame(CLIENT, FRONTEND, segment(node.protocol, port, 80, flags), **named)
    run = node.send(CLIENT, raw)
    return run.retval, packets.read(run.packet)


def answer(node: Node, port: int = 1000, flags: int = packets.ACK, **named: bool) -> tuple[int, packets.Packet]:
    """SERVER:8080 -> CLIENT:port; the verdict and the packet."""
    raw = node.frame(SERVER, CLIENT, segment(node.protocol, BACKEND_PORT, port, flags), **named)
    run = node.send(SERVER, raw)
    return run.retval, packets.read(run.packet)


@pytest.fixture(params=PROTOCOLS)
def served(request: pytest.FixtureRequest, node: Node) -> Node:
    """A node where FRONTEND:80 is served by SERVER:8080, by TCP or UDP."""
    node.protocol = PROTOCOLS[request.param]
    node.service([(SERVER, BACKEND_PORT)], node.protocol)
    return node


@pytest.mark.parametrize("packet_number", [1, 2])
def test_dest_becomes_the_backend(served: Node, packet_number: int) -> None:
    """Of the first packet and of an established one: address, port, TTL, MACs, and all checksums."""
    for _ in range(packet_number):
        verdict, seen = ask(served, flags=packets.ACK)
    assert verdict == REDIRECT
    assert (seen.dest, seen.dest_port) == (SERVER.address(served.family), BACKEND_PORT)
    assert (seen.source, seen.source_port) == (CLIENT.address(served.family), 1000)
    assert (seen.dest_mac, seen.source_mac, seen.ttl) == (SERVER.mac, SERVER.host_mac, 63)
    assert (seen.l3_sum, seen.l4_sum) == (0, 0)


def test_reply_comes_from_the_frontend(served: Node) -> None:
    """Source address and port are put back, with all checksums."""
    ask(served)
    verdict, seen = answer(served)
    assert verdict == REDIRECT
    assert (seen.source, seen.source_port) == (FRONTEND.address(served.family), 80)
    assert (seen.dest, seen.dest_port) == (CLIENT.address(served.family), 1000)
    assert (seen.dest_mac, seen.ttl, seen.l3_sum, seen.l4_sum) == (CLIENT.mac, 63, 0, 0)


def test_service_flow_has_two_entries(served: Node) -> None:
    """Client and frontend, client and backend; each says what the other end is really."""
    ask(served)
    rows = {row.flags & (DNAT | REVERSE_DNAT): (key, row) for key, row in served.entries()}
    (_, there), (_, back) = rows[DNAT], rows[REVERSE_DNAT]
    assert (there.translated_port, back.translated_port) == (BACKEND_PORT, 80)
    assert {there.translated, back.translated} <= {end for key, _ in rows.values() for end in (key.low, key.high)}
    assert (there.forward_packets, back.forward_packets) == (1, 0)


def test_established_flow_keeps_its_backend(served: Node) -> None:
    """The service may change or go; a flow that has begun goes on."""
    ask(served)
    served.service([], served.protocol)
    verdict, seen = ask(served, flags=packets.ACK)
    assert (verdict, seen.dest) == (REDIRECT, SERVER.address(served.family))


def test_other_port_is_no_frontend(served: Node) -> None:
    """Only the port and protocol of the row are translated."""
    raw = served.frame(CLIENT, FRONTEND, segment(served.protocol, 1000, 81))
    run = served.send(CLIENT, raw)
    assert (run.retval, run.packet) == (OK, raw)


def test_backend_is_judged_not_the_frontend(served: Node) -> None:
    """Egress policy sees the backend's identity and port."""
    shape = abi.POLICY_SHAPE_PORT_0 << 16
    served.subject(CLIENT, egress=True, shapes=shape)
    assert ask(served)[0] == SHOT
    served.policy(CLIENT, abi.POLICY_EGRESS, SERVER.identity, port=BACKEND_PORT, prefix=16, protocol=served.protocol)
    assert ask(served)[0] == REDIRECT


def test_moved_epoch_cuts_both_entries(served: Node) -> None:
    """A service flow that is denied now leaves nothing."""
    ask(served)
    served.subject(SERVER, ingress=True)
    served.epoch(2)
    assert ask(served, flags=packets.ACK)[0] == SHOT
    assert served.entries() == []


def test_moved_epoch_refreshes_the_flow(served: Node) -> None:
    """Still allowed: translated as before."""
    ask(served)
    served.epoch(2)
    verdict, seen = ask(served, flags=packets.ACK)
    assert (verdict, seen.dest) == (REDIRECT, SERVER.address(served.family))


def test_same_client_port_gets_the_same_backend(served: Node) -> None:
    """The choice is a function of the packet."""
    served.service([(SERVER, BACKEND_PORT), (REMOTE, BACKEND_PORT), (HOST, BACKEND_PORT)], served.protocol)
    first = [ask(served, port)[1].dest for port in range(2000, 2032)]
    served.maps["conntrack"].delete(list(served.maps["conntrack"].dump()))
    assert [ask(served, port)[1].dest for port in range(2000, 2032)] == first


def test_client_ports_spread_over_the_backends(served: Node) -> None:
    """Every backend gets a share that is not far from a third."""
    served.service([(SERVER, BACKEND_PORT), (REMOTE, BACKEND_PORT), (HOST, BACKEND_PORT)], served.protocol)
    chosen = [ask(served, port)[1].dest for port in range(2000, 2300)]
    shares = {dest: chosen.count(dest) for dest in set(chosen)}
    assert len(shares) == 3
    assert all(60 < share < 140 for share in shares.values()), shares


@pytest.mark.parametrize(("backend", "verdict"), [(REMOTE, REDIRECT), (HOST, OK), (WORLD, OK)])
def test_backend_may_be_anywhere(served: Node, backend: Endpoint, verdict: int) -> None:
    """On another node, on the host, outside: translated and sent on its way."""
    served.service([(backend, BACKEND_PORT)], served.protocol)
    found, seen = ask(served)
    assert (found, seen.dest, seen.dest_port) == (verdict, backend.address(served.family), BACKEND_PORT)
    assert (seen.l3_sum, seen.l4_sum) == (0, 0)


@pytest.mark.parametrize("family", [4], indirect=True)
def test_udp_without_checksum_stays_without(node: Node) -> None:
    """IPv4 UDP may leave the checksum 0; translation there and back keeps it."""
    node.protocol = packets.UDP
    node.service([(SERVER, BACKEND_PORT)], packets.UDP)
    assert ask(node, checksum=False)[1].l4_checksum == 0
    assert answer(node, checksum=False)[1].l4_checksum == 0


def test_udp_checksum_never_becomes_none(node: Node) -> None:
    """A checksum that comes out as 0 is written as 0xffff: 0 would say that there is none."""
    node.protocol = packets.UDP
    node.service([(SERVER, BACKEND_PORT)], packets.UDP)
    ends = packets.packed(CLIENT.address(node.family)), packets.packed(SERVER.address(node.family))
    probe = packets.udp(1000, BACKEND_PORT, bytes(2))
    wanted = packets.ones_sum(packets.pseudo_header(*ends, packets.UDP, len(probe)) + probe)
    raw = node.frame(CLIENT, FRONTEND, packets.udp(1000, 80, wanted.to_bytes(2, "big")))
    seen = packets.read(node.send(CLIENT, raw).packet)
    assert (seen.dest_port, seen.l4_checksum) == (BACKEND_PORT, 0xFFFF)


def test_sctp_port_is_translated_with_its_checksum(node: Node) -> None:
    """The checksum covers the ports: it is right again behind a backend on another port."""
    node.protocol = packets.SCTP
    node.service([(SERVER, BACKEND_PORT)], packets.SCTP)
    run = node.send(CLIENT, node.frame(CLIENT, FRONTEND, packets.sctp(1000, 80, b"chunk")))
    seen = packets.read(run.packet)
    assert (run.retval, seen.dest, seen.dest_port) == (REDIRECT, SERVER.address(node.family), BACKEND_PORT)
    assert packets.sctp_is_whole(run.packet[34 if node.family == 4 else 54 :])


def test_close_reaches_both_entries(node: Node) -> None:
    """Each entry sees one direction's FIN, and both know that the connection is over."""
    node.service([(SERVER, BACKEND_PORT)], packets.TCP)
    ask(node)
    ask(node, flags=packets.ACK)
    ask(node, flags=packets.FIN | packets.ACK)
    answer(node, flags=packets.FIN | packets.ACK)
    closed = abi.CONNTRACK_CLOSING_FORWARD | abi.CONNTRACK_CLOSING_REPLY
    limit = time.monotonic_ns() + abi.CONNTRACK_LIFETIME_CLOSING * NS_PER_S
    assert all(row.flags & closed == closed and row.expires_ns <= limit for _, row in node.entries())


def test_handshake_prolongs_both_entries(node: Node) -> None:
    """An idle connection keeps its way back as long as its way there."""
    node.service([(SERVER, BACKEND_PORT)], packets.TCP)
    ask(node)
    answer(node, flags=packets.SYN | packets.ACK)
    ask(node, flags=packets.ACK)
    least = time.monotonic_ns() + abi.CONNTRACK_LIFETIME_TCP * NS_PER_S // 2
    assert [row.expires_ns > least for _, row in node.entries()] == [True, True]


def test_one_way_stream_keeps_the_way_back(node: Node) -> None:
    """UDP that is only sent: the entry for replies lives on with it."""
    node.protocol = packets.UDP
    node.service([(SERVER, BACKEND_PORT)], packets.UDP)
    ask(node)
    soon = time.monotonic_ns() + NS_PER_S * 20
    for entry in node.entries():
        node.put_entry(entry._replace(row=entry.row._replace(expires_ns=soon)))
    ask(node)
    assert all(row.expires_ns > soon + NS_PER_S for _, row in node.entries())
