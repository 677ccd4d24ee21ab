"""The way out: into a local endpoint, to another node, or up the host stack."""

import pytest

from datapath import codec
from datapath.abi import types as abi
from datapath.tables import NO_ADDRESS, IpcacheRow
from tests.bpf import packets
from tests.bpf.node import CLIENT, HOST, OK, REDIRECT, REMOTE, SERVER, SHOT, WORLD, Endpoint, Node

pytestmark = pytest.mark.kernel("bpf_redirect_peer")

SEGMENTS = {
    "tcp": (packets.TCP, packets.tcp(1000, 80, payload=b"odd")),
    "udp": (packets.UDP, packets.udp(1000, 80)),
    "sctp": (packets.SCTP, packets.sctp(1000, 80)),
}


@pytest.mark.parametrize("name", SEGMENTS)
def test_local_delivery(node: Node, name: str) -> None:
    """Redirected; the MACs are those of the receiver's veth, the TTL is one less, the checksums are right."""
    protocol, segment = SEGMENTS[name]
    run = node.send(CLIENT, node.frame(CLIENT, SERVER, segment, protocol))
    seen = packets.read(run.packet)
    assert run.retval == REDIRECT
    assert (seen.dest_mac, seen.source_mac, seen.ttl) == (SERVER.mac, SERVER.host_mac, 63)
    assert (seen.l3_sum, seen.l4_sum) == (0, 0)


def test_local_delivery_changes_nothing_else(node: Node) -> None:
    """Addresses, ports and payload arrive as sent."""
    raw = node.frame(CLIENT, SERVER, packets.tcp(1000, 80, payload=b"hello"))
    sent, seen = packets.read(raw), packets.read(node.send(CLIENT, raw).packet)
    assert seen == sent._replace(dest_mac=seen.dest_mac, source_mac=seen.source_mac, ttl=seen.ttl)


@pytest.mark.parametrize("family", [4], indirect=True)
def test_header_checksum_follows_every_ttl(node: Node) -> None:
    """The carry of the incremental checksum is right. IPv6 has no header checksum."""
    for ttl in range(2, 256):
        seen = packets.read(node.send(CLIENT, node.frame(CLIENT, SERVER, packets.tcp(1000, 80), ttl=ttl)).packet)
        assert (seen.ttl, seen.l3_sum) == (ttl - 1, 0)


@pytest.mark.parametrize("family", [4], indirect=True)
def test_header_checksum_of_all_ones_stays_right(node: Node) -> None:
    """0xffff is as right as 0, and the sum carries."""
    raw = node.frame(CLIENT, SERVER, packets.tcp(1000, 80))
    at = packets.ETHERNET_BYTES
    # What the checksum was is added to the identification, so that 0 becomes right, and with it 0xffff.
    total = int.from_bytes(raw[at + 4 : at + 6]) + int.from_bytes(raw[at + 10 : at + 12])
    identification = (total & 0xFFFF) + (total >> 16)
    raw = raw[: at + 4] + identification.to_bytes(2) + raw[at + 6 : at + 10] + b"\xff\xff" + raw[at + 12 :]
    assert packets.read(raw).l3_sum == 0
    assert packets.read(node.send(CLIENT, raw).packet).l3_sum == 0


@pytest.mark.parametrize("dest", [SERVER, REMOTE], ids=["local", "remote"])
@pytest.mark.parametrize("ttl", [0, 1])
def test_ttl_that_is_used_up_drops(node: Node, dest: Endpoint, ttl: int) -> None:
    """We are a router."""
    raw = node.frame(CLIENT, dest, packets.tcp(1000, 80), ttl=ttl)
    assert node.is_dropped(node.send(CLIENT, raw), abi.TTL_EXCEEDED)


def test_remote_endpoint_is_redirected_to_its_node(node: Node) -> None:
    """The TTL is one less; the kernel writes the MACs."""
    run = node.send(CLIENT, node.frame(CLIENT, REMOTE, packets.tcp(1000, 80)))
    seen = packets.read(run.packet)
    assert (run.retval, seen.ttl, seen.l3_sum, seen.l4_sum) == (REDIRECT, 63, 0, 0)


def test_remote_endpoint_without_a_node_is_dropped(node: Node) -> None:
    """An ipcache row that says where, but not how to get there."""
    row = IpcacheRow(NO_ADDRESS, REMOTE.identity, abi.IPCACHE_REMOTE_ENDPOINT)
    node.ipcache(REMOTE.address(node.family), row)
    raw = node.frame(CLIENT, REMOTE, packets.tcp(1000, 80))
    assert node.is_dropped(node.send(CLIENT, raw), abi.STALE_OR_UNROUTABLE_IP)


@pytest.mark.parametrize("family", [6], indirect=True)
def test_ipv6_over_an_ipv4_underlay_needs_a_known_neighbour(node: Node) -> None:
    """There is no such device in a test run, so the way is not found, and the drop is told."""
    row = IpcacheRow(codec.address_bytes("192.168.9.2"), REMOTE.identity, abi.IPCACHE_REMOTE_ENDPOINT)
    node.ipcache(REMOTE.ipv6, row)
    assert node.is_dropped(node.send(CLIENT, node.frame(CLIENT, REMOTE, packets.tcp(1000, 80))), abi.FIB_LOOKUP_FAILED)


def test_remote_address_without_the_flag_goes_to_the_host_stack(node: Node) -> None:
    """An identity alone is no way to forward."""
    node.ipcache(WORLD.address(node.family), IpcacheRow(codec.address_bytes("192.168.9.2"), 5001, 0))
    assert node.send(CLIENT, node.frame(CLIENT, WORLD, packets.tcp(1000, 80))).retval == OK


@pytest.mark.parametrize("dest", [HOST, WORLD], ids=["host", "world"])
def test_host_stack_gets_the_packet_untouched(node: Node, dest: Endpoint) -> None:
    """The host decrements the TTL itself."""
    raw = node.frame(CLIENT, dest, packets.tcp(1000, 80))
    run = node.send(CLIENT, raw)
    assert (run.retval, run.packet) == (OK, raw)


def test_dropped_packet_is_shot(node: Node) -> None:
    """TC_ACT_SHOT, the packet as it came."""
    node.subject(CLIENT, egress=True)
    raw = node.frame(CLIENT, SERVER, packets.tcp(1000, 80))
    run = node.send(CLIENT, raw)
    assert (run.retval, run.packet) == (SHOT, raw)
