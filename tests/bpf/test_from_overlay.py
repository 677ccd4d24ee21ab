"""Out of the tunnel: who is believed to have sent a packet, by the sending node's address and the VNI."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from datapath import codec
from datapath.abi import types as abi
from datapath.kernel.programs import Loaded, PacketRun
from datapath.tables import NO_ADDRESS, IpcacheRow
from tests.bpf import node as nodes
from tests.bpf import packets
from tests.bpf.node import CLIENT, HOST, REDIRECT, REMOTE, REMOTE_NODE, SERVER, WORLD, Endpoint, Node

pytestmark = pytest.mark.kernel("bpf_redirect_peer")

OTHER_NODE = {4: "192.168.9.3", 6: "fd00:9::3"}
TUNNELLED = abi.IPCACHE_REMOTE_ENDPOINT | abi.IPCACHE_TUNNEL
NOBODY = Endpoint("10.2.0.99", "fd00:2::99", 0, 0, 0, bytes(6), bytes(6))
"""An address of a remote block that no row has yet."""


class Overlay(NamedTuple):
    """overlay.bpf.c behind the program that sets a key first (rehearsal.bpf.c)."""

    node: Node
    loaded: Loaded

    def receive(self, sender: str, vni: int, source: Endpoint = REMOTE, dest: Endpoint = CLIENT) -> PacketRun:
        """source -> dest, from the node at `sender`."""
        raw = self.node.frame(source, dest, packets.tcp(1000, 80), packets.TCP)
        packed = codec.address_bytes(sender)
        words = [int.from_bytes(packed[at : at + 4], sys.byteorder) for at in range(0, 16, 4)]
        return self.loaded.test_run("from_overlay_rehearsed", raw, cb=(*words, vni))

    def told_source(self) -> list[int]:
        """Identities of the senders of new flows."""
        return [told.source_identity for told in self.node.notifications() if told.type == abi.NOTIFICATION_VERDICT]


@pytest.fixture
def overlay(objects_dir: Path, family: int) -> Iterator[Overlay]:
    """REMOTE is behind the tunnel, at REMOTE_NODE."""
    loaded = nodes.loaded(objects_dir / "rehearsal.bpf.o")
    with Node(loaded) as node:
        node.family = family
        node.settle()
        for of in (4, 6):
            packed = codec.address_bytes(REMOTE_NODE[of])
            node.ipcache(REMOTE.address(of), IpcacheRow(packed, REMOTE.identity, TUNNELLED))
            for address in (REMOTE_NODE[of], OTHER_NODE[of]):
                known = IpcacheRow(codec.address_bytes(address), abi.IDENTITY_REMOTE_NODE, abi.IPCACHE_TUNNEL)
                node.ipcache(address, known)
            node.ipcache(HOST.address(of), IpcacheRow(NO_ADDRESS, abi.IDENTITY_HOST, 0))
            node.ipcache("0.0.0.0/0" if of == 4 else "::/0", IpcacheRow(NO_ADDRESS, abi.IDENTITY_WORLD, 0))
        yield Overlay(node, loaded)


@pytest.mark.parametrize("underlay", [4, 6])
def test_sender_is_whom_the_vni_names(overlay: Overlay, underlay: int) -> None:
    """Whatever family the nodes have between them; the packet goes straight to the endpoint."""
    packed = codec.address_bytes(REMOTE_NODE[underlay])
    overlay.node.ipcache(REMOTE.address(overlay.node.family), IpcacheRow(packed, REMOTE.identity, TUNNELLED))
    run = overlay.receive(REMOTE_NODE[underlay], 4711)
    assert (run.retval, overlay.told_source()) == (REDIRECT, [4711])
    assert (run.packet[:6], run.packet[6:12]) == (CLIENT.mac, CLIENT.host_mac)


def test_sender_that_nobody_knows_is_refused(overlay: Overlay) -> None:
    """Only nodes of the mesh are believed."""
    for stranger in (WORLD, REMOTE):
        run = overlay.receive(stranger.address(overlay.node.family), REMOTE.identity)
        assert overlay.node.is_dropped(run, abi.UNKNOWN_SENDER)


@pytest.mark.parametrize("vni", [abi.IDENTITY_UNKNOWN, abi.IDENTITY_HOST])
def test_nobody_outside_is_this_node_or_unknown(overlay: Overlay, vni: int) -> None:
    """Not even another node."""
    assert overlay.node.is_dropped(overlay.receive(REMOTE_NODE[overlay.node.family], vni), abi.INVALID_IDENTITY)


def test_node_speaks_for_its_own_addresses_only(overlay: Overlay) -> None:
    """Neither for another node's endpoint nor for this node's."""
    run = overlay.receive(OTHER_NODE[overlay.node.family], REMOTE.identity)
    assert overlay.node.is_dropped(run, abi.INVALID_SOURCE_IP)
    run = overlay.receive(OTHER_NODE[overlay.node.family], REMOTE.identity, HOST)
    assert overlay.node.is_dropped(run, abi.INVALID_SOURCE_IP)


def test_prefixes_are_found_by_the_address(overlay: Overlay) -> None:
    """Their numbers do not fit a VNI, so it says "world" and this node's own rows say the rest."""
    family = overlay.node.family
    overlay.node.ipcache(WORLD.address(family), IpcacheRow(NO_ADDRESS, 0x1000001, 0))
    run = overlay.receive(REMOTE_NODE[family], abi.IDENTITY_WORLD, WORLD)
    assert (run.retval, overlay.told_source()) == (REDIRECT, [0x1000001])


def test_policy_judges_by_that_identity(overlay: Overlay) -> None:
    """A row for the VNI lets in, and without one a closed endpoint stays closed."""
    node, sender = overlay.node, REMOTE_NODE[overlay.node.family]
    node.subject(SERVER, ingress=True, shapes=abi.POLICY_SHAPE_L3)
    assert node.is_dropped(overlay.receive(sender, REMOTE.identity, dest=SERVER), abi.POLICY_DENIED)
    node.policy(SERVER, abi.POLICY_INGRESS, REMOTE.identity)
    assert overlay.receive(sender, REMOTE.identity, dest=SERVER).retval == REDIRECT


def test_what_is_for_nobody_here_is_dropped(overlay: Overlay) -> None:
    """It would go round between nodes that take each other for its owner."""
    run = overlay.receive(REMOTE_NODE[overlay.node.family], REMOTE.identity, dest=NOBODY)
    assert overlay.node.is_dropped(run, abi.UNKNOWN_L3_TARGET_ADDRESS)


def test_packet_without_a_key_is_dropped(overlay: Overlay) -> None:
    """Nothing says whose it is."""
    raw = overlay.node.frame(REMOTE, CLIENT, packets.tcp(1000, 80), packets.TCP)
    assert overlay.node.is_dropped(overlay.node.run("from_overlay", raw), abi.INVALID_VNI)
