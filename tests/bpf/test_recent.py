"""Copies of rows that a CPU keeps (bpf/lib/recent.h): none is ever taken for a row that has changed."""

import random
import time

import pytest

from datapath import codec
from datapath.kernel import row_changes
from datapath.tables import EndpointKey, EndpointRow
from tests.bpf import packets
from tests.bpf.node import CLIENT, REDIRECT, SERVER, Node

pytestmark = pytest.mark.kernel("bpf_redirect_peer")

MOVED = bytes.fromhex("0a00000000ff")
TICKS_S = 0.1
"""Longer than a tick of any kernel."""
ADDRESSES = 700
"""More than there are places for copies, so that some share one."""


def row_of(mac: bytes) -> EndpointRow:
    """SERVER's, moved behind another device."""
    return EndpointRow(SERVER.ifindex, SERVER.identity, SERVER.endpoint_id, 0, mac, SERVER.host_mac)


def encoded(node: Node, mac: bytes) -> tuple[bytes, bytes]:
    """The same as bytes."""
    key = EndpointKey(codec.address_bytes(SERVER.address(node.family)))
    return codec.encode_key("endpoints", key), codec.encode_row("endpoints", row_of(mac))


def delivered_to(node: Node) -> bytes:
    """Where a packet of an established flow to SERVER goes."""
    run = node.send(CLIENT, node.frame(CLIENT, SERVER, packets.tcp(1000, 80)))
    assert run.retval == REDIRECT
    return packets.read(run.packet).dest_mac


def changes(node: Node) -> int:
    """How often rows have been written, twice over."""
    return int.from_bytes(node.maps[row_changes.MAP].lookup(bytes(4)) or b"", "little")


def test_a_written_row_counts_with_the_next_packet(node: Node) -> None:
    """However soon that comes."""
    for mac in (MOVED, SERVER.mac) * 20:
        node.put("endpoints", {EndpointKey(codec.address_bytes(SERVER.address(node.family))): row_of(mac)})
        assert delivered_to(node) == mac


def test_no_copy_counts_while_rows_are_written(node: Node) -> None:
    """A packet between two rows of one write sees the rows as they are."""
    assert delivered_to(node) == SERVER.mac
    with row_changes.announced(node.maps, "endpoints"):
        for mac in (MOVED, SERVER.mac, MOVED):
            assert not node.maps["endpoints"].put([encoded(node, mac)])
            assert delivered_to(node) == mac
    assert delivered_to(node) == MOVED


def test_a_row_written_by_someone_else_counts_after_a_tick(node: Node) -> None:
    """An agent of another version, a hand, or one that died before it could announce the end."""
    assert delivered_to(node) == SERVER.mac
    assert not node.maps["endpoints"].put([encoded(node, MOVED)])
    time.sleep(TICKS_S)
    assert delivered_to(node) == MOVED


def test_writes_of_other_tables_leave_the_copies(node: Node) -> None:
    """Services change often, and nothing of them is copied."""
    before = changes(node)
    node.service([(SERVER, 80)], packets.TCP)
    assert changes(node) == before
    node.epoch(7)
    assert changes(node) == before


def test_settling_ends_a_write_whose_writer_died(node: Node) -> None:
    """And writes nothing where there is none."""
    before = changes(node)
    with pytest.raises(KeyboardInterrupt), row_changes.announced(node.maps, "devices"):
        raise KeyboardInterrupt
    assert changes(node) == before + 2
    assert not node.maps[row_changes.MAP].put([(bytes(4), (before + 3).to_bytes(8, "little"))])
    row_changes.settle(node.maps)
    assert changes(node) == before + 4
    row_changes.settle(node.maps)
    assert changes(node) == before + 4


def test_addresses_that_share_a_place_are_told_apart(node: Node) -> None:
    """Packets to many endpoints in any order: each goes to its own device and nobody else's."""
    chance = random.Random(11)
    prefix = "10.1." if node.family == 4 else "fd00:1::"
    join = "." if node.family == 4 else ":"
    macs = {f"{prefix}{n >> 8}{join}{n & 255}": n.to_bytes(6, "big") for n in range(300, 300 + ADDRESSES)}
    rows = {EndpointKey(codec.address_bytes(address)): row_of(mac) for address, mac in macs.items()}
    node.put("endpoints", rows)
    for address in chance.choices(list(macs), k=3 * ADDRESSES):
        other = SERVER._replace(ipv4=address, ipv6=address)
        run = node.send(CLIENT, node.frame(CLIENT, other, packets.udp(1000, 80), packets.UDP))
        assert packets.read(run.packet).dest_mac == macs[address]
