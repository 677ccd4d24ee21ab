"""An endpoint sends only as itself, and only once the node knows it."""

import pytest

from datapath import codec
from datapath.abi import types as abi
from datapath.tables import NO_ADDRESS, DeviceKey, DeviceRow
from tests.bpf import packets
from tests.bpf.node import CLIENT, LOOPBACK, OK, REDIRECT, SERVER, WORLD, Endpoint, Node

pytestmark = pytest.mark.kernel("bpf_redirect_peer")

SYN = packets.tcp(1000, 80)


def test_own_address_passes(node: Node) -> None:
    """The address and MAC of the device row."""
    assert node.send(CLIENT, node.frame(CLIENT, SERVER, SYN)).retval == REDIRECT


@pytest.mark.parametrize("pretended", [SERVER, WORLD], ids=["another endpoint", "world"])
def test_other_source_address_is_dropped(node: Node, pretended: Endpoint) -> None:
    """Spoofed source address."""
    raw = node.frame(pretended, SERVER, SYN, source_mac=CLIENT.mac)
    assert node.is_dropped(node.send(CLIENT, raw), abi.INVALID_SOURCE_IP)


def test_other_source_mac_is_dropped(node: Node) -> None:
    """Spoofed MAC with the right address."""
    raw = node.frame(CLIENT, SERVER, SYN, source_mac=SERVER.mac)
    assert node.is_dropped(node.send(CLIENT, raw), abi.INVALID_SOURCE_MAC)


def test_arp_with_another_mac_is_dropped(node: Node) -> None:
    """The MAC is checked before anything is passed to the host stack."""
    raw = packets.ethernet(CLIENT.host_mac, SERVER.mac, packets.ARP, bytes(28))
    assert node.is_dropped(node.send(CLIENT, raw), abi.INVALID_SOURCE_MAC)


def test_family_that_the_endpoint_lacks_is_dropped(node: Node) -> None:
    """A device row without an address of the packet's family, also for the all-zero source."""
    other = codec.address_bytes(CLIENT.address(10 - node.family))
    addresses = (other, NO_ADDRESS) if node.family == 6 else (NO_ADDRESS, other)
    row = DeviceRow(*addresses, CLIENT.identity, CLIENT.endpoint_id, CLIENT.mac)
    for source in (CLIENT.address(node.family), "0.0.0.0" if node.family == 4 else "::"):
        dest = SERVER.address(node.family)
        raw = packets.frame(source, dest, packets.TCP, SYN, source_mac=CLIENT.mac, dest_mac=CLIENT.host_mac)
        node.put("devices", {DeviceKey(LOOPBACK): row})
        assert node.is_dropped(node.run("from_endpoint", raw), abi.INVALID_SOURCE_IP)


@pytest.mark.parametrize("program", ["from_endpoint", "to_endpoint"])
def test_device_without_a_row_drops_everything(node: Node, program: str) -> None:
    """Fail closed until the agent has written the row."""
    raw = node.frame(CLIENT, SERVER, SYN)
    assert node.is_dropped(node.run(program, raw), abi.DROP_EP_NOT_READY)


def test_dropped_packets_leave_no_entry(node: Node) -> None:
    """A spoofed packet does not open a flow."""
    node.send(CLIENT, node.frame(SERVER, CLIENT, SYN, source_mac=CLIENT.mac))
    assert node.entries() == []


def test_host_stack_gets_what_is_for_nobody_we_know(node: Node) -> None:
    """To the world: the host routes."""
    assert node.send(CLIENT, node.frame(CLIENT, WORLD, SYN)).retval == OK
