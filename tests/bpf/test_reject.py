"""Nobody serves a frontend: whoever asks is told at once, by a reset or an ICMP error, with all checksums."""

import struct

import pytest

from datapath.abi import types as abi
from datapath.tables import ServiceRow
from tests.bpf import packets
from tests.bpf.gate import NODE, Gate
from tests.bpf.node import (
    CLIENT,
    CLUSTER_IP,
    FRONTEND,
    GATEWAY_MAC,
    LOOPBACK_MAC,
    REDIRECT,
    SHOT,
    WORLD,
    Endpoint,
    Node,
)

pytestmark = pytest.mark.kernel("bpf_redirect_peer")

SEQUENCE, ACKNOWLEDGED = 1000, 2000
"""Of packets.tcp."""


def segment_of(raw: bytes) -> bytes:
    """The transport segment of a frame without options."""
    return raw[packets.ETHERNET_BYTES + (20 if raw[12:14] == b"\x08\x00" else 40) :]


def refused(node: Node, segment: bytes, protocol: int = packets.TCP, row: ServiceRow = CLUSTER_IP) -> bytes:
    """CLIENT asks FRONTEND; what it gets back."""
    node.service([], protocol, row=row)
    run = node.send(CLIENT, node.frame(CLIENT, FRONTEND, segment, protocol))
    assert (run.retval, node.drops()) == (REDIRECT, [abi.SERVICE_BACKEND_NOT_FOUND])
    return run.packet


def from_frontend(family: int, raw: bytes, source: Endpoint, dest: Endpoint) -> packets.Packet:
    """The frame, read; it must come from the frontend and be right."""
    seen = packets.read(raw)
    assert (seen.source, seen.dest) == (source.address(family), dest.address(family))
    assert (seen.l3_sum, seen.l4_sum) == (0, 0)
    return seen


@pytest.mark.parametrize("payload", [b"", b"odd"])
def test_syn_is_reset(node: Node, payload: bytes) -> None:
    """Acknowledged with all that it held; nothing is tracked."""
    raw = refused(node, packets.tcp(1000, 80, packets.SYN, payload))
    seen = from_frontend(node.family, raw, FRONTEND, CLIENT)
    assert (seen.source_port, seen.dest_port, seen.dest_mac) == (80, 1000, CLIENT.mac)
    sequence, acknowledged, _, flags = struct.unpack_from(">IIBB", segment_of(raw), 4)
    assert (sequence, acknowledged) == (0, SEQUENCE + 1 + len(payload))
    assert flags == packets.RST | packets.ACK
    assert node.entries() == []


def test_segment_of_a_connection_is_reset(node: Node) -> None:
    """With the number that its sender expects next."""
    raw = refused(node, packets.tcp(1000, 80, packets.ACK | packets.PSH, bytes(1000)))
    from_frontend(node.family, raw, FRONTEND, CLIENT)
    assert struct.unpack_from(">I", segment_of(raw), 4)[0] == ACKNOWLEDGED
    assert segment_of(raw)[13] == packets.RST


def test_endpoint_is_told_where_only_backends_of_its_node_count(node: Node) -> None:
    """As its sockets are: no balancer asks from here."""
    row = CLUSTER_IP._replace(flags=CLUSTER_IP.flags | abi.SERVICE_LOCAL_BACKENDS)
    from_frontend(node.family, refused(node, packets.tcp(1000, 80), row=row), FRONTEND, CLIENT)


def test_reset_is_not_answered(node: Node) -> None:
    """Or two ends would go on for ever."""
    node.service([], packets.TCP)
    raw = node.frame(CLIENT, FRONTEND, packets.tcp(1000, 80, packets.RST), packets.TCP)
    assert node.is_dropped(node.send(CLIENT, raw), abi.SERVICE_BACKEND_NOT_FOUND)


@pytest.mark.parametrize("size", [0, 8, 1000])
def test_datagram_finds_its_port_unreachable(node: Node, size: int) -> None:
    """With its headers quoted, however long it was."""
    asked = packets.udp(1000, 80, bytes(size))
    raw = refused(node, asked, packets.UDP)
    from_frontend(node.family, raw, FRONTEND, CLIENT)
    assert tuple(segment_of(raw)[:2]) == ((3, 3) if node.family == 4 else (1, 4))
    headers = 28 if node.family == 4 else 48
    sent = node.frame(CLIENT, FRONTEND, asked, packets.UDP)
    assert segment_of(raw)[8:] == sent[packets.ETHERNET_BYTES : packets.ETHERNET_BYTES + headers]


def test_sctp_is_dropped(node: Node) -> None:
    """In silence."""
    node.service([], packets.SCTP)
    raw = node.frame(CLIENT, FRONTEND, packets.sctp(1000, 80), packets.SCTP)
    assert node.is_dropped(node.send(CLIENT, raw), abi.SERVICE_BACKEND_NOT_FOUND)


def arriving(wall: Gate, flags: int) -> tuple[int, bytes]:
    """WORLD asks NODE:30080, that has no backend; the verdict and the frame."""
    row = CLUSTER_IP._replace(flags=abi.SERVICE_NODE_PORT | flags)
    wall.service([], packets.TCP, 30080, frontend=NODE, row=row, scope=abi.SERVICE_SCOPE_EXTERNAL)
    macs = {"source_mac": GATEWAY_MAC, "dest_mac": LOOPBACK_MAC}
    run = wall.receive(wall.frame(WORLD, NODE, packets.tcp(1000, 30080), packets.TCP, **macs))
    assert wall.drops() == [abi.SERVICE_BACKEND_NOT_FOUND]
    return run.retval, run.packet


def test_client_outside_is_told(wall: Gate) -> None:
    """Back to where it came from."""
    verdict, raw = arriving(wall, 0)
    seen = from_frontend(wall.family, raw, NODE, WORLD)
    assert (verdict, seen.dest_mac) == (REDIRECT, GATEWAY_MAC)


def test_node_without_local_backends_is_silent(wall: Gate) -> None:
    """Where only those count, another node may have some: a balancer is to notice by itself."""
    assert arriving(wall, abi.SERVICE_LOCAL_BACKENDS)[0] == SHOT
