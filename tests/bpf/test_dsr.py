"""The backend's node answers the client: how it learns of the frontend, and what leaves."""

import socket
import struct

import pytest

from datapath import orphans
from datapath.abi import types as abi
from tests.bpf import packets
from tests.bpf.gate import NODE, Gate, MakeGate
from tests.bpf.node import (
    CLIENT,
    FRONTEND,
    GATEWAY_MAC,
    LOOPBACK_MAC,
    REDIRECT,
    REMOTE,
    REMOTE_NODE,
    SERVER,
    WORLD,
)
from tests.bpf.test_nodeport import CLIENT_PORT, NODE_PORT, PROTOCOLS, ROW, Place, ends, seen_ends

pytestmark = pytest.mark.kernel("bpf_redirect_peer")

DSR = ROW._replace(flags=ROW.flags | abi.SERVICE_DSR)
ADDED = {4: 8, 6: 24}
"""Bytes of the option."""


@pytest.fixture(params=[*PROTOCOLS])
def place(request: pytest.FixtureRequest, wall: Gate, make_gate: MakeGate) -> Place:
    """The node's own address as the frontend, by TCP or UDP."""
    return Place(wall, make_gate, [], NODE, PROTOCOLS[request.param])


def without_option(raw: bytes) -> tuple[bytes, str, int]:
    """A frame as it was before, and the frontend that the option names; the frame's lengths must be right."""
    family = 4 if raw[12:14] == b"\x08\x00" else 6
    if family == 4:
        header, option = raw[14:34], raw[34:42]
        assert packets.ones_sum(header + option) == 0
        assert (header[0] & 15, struct.unpack_from(">H", header, 2)[0]) == (7, len(raw) - 14)
        kind, length, port, address = struct.unpack(">BBH4s", option)
        assert (kind, length) == (0x9A, 8)
        bare = b"\x45" + header[1:2] + struct.pack(">H", len(raw) - 22) + header[4:10] + bytes(2) + header[12:]
        bare = bare[:10] + struct.pack(">H", packets.ones_sum(bare)) + bare[12:]
        return raw[:14] + bare + raw[42:], socket.inet_ntop(socket.AF_INET, address), port
    assert (raw[20], struct.unpack_from(">H", raw, 18)[0]) == (packets.DEST_OPTIONS, len(raw) - 54)
    following, words, kind, length, address, port = struct.unpack_from(">BBBB16sH", raw, 54)
    assert (words, kind, length) == (2, 0x1B, 20)
    bare = raw[14:18] + struct.pack(">HB", len(raw) - 54 - 24, following) + raw[21:54]
    return raw[:14] + bare + raw[78:], socket.inet_ntop(socket.AF_INET6, address), port


@pytest.mark.parametrize("packet_number", [1, 2])
def test_packet_tells_the_frontend(place: Place, packet_number: int) -> None:
    """The client keeps its address; also when the first packet is sent again."""
    place.serve(REMOTE, row=DSR)
    for _ in range(packet_number):
        run = place.ask(packets.SYN)
    assert (run.retval, place.wall.drops()) == (REDIRECT, [])
    bare, address, port = without_option(run.packet)
    assert seen_ends(bare) == ends(place.wall.family, WORLD, CLIENT_PORT, REMOTE, 8080)
    assert (address, port) == (NODE.address(place.wall.family), NODE_PORT)


def test_established_connection_needs_no_option(wall: Gate, make_gate: MakeGate) -> None:
    """Of TCP only what opens one has it; no port of the node is used, and one entry."""
    place = Place(wall, make_gate, [], NODE, packets.TCP)
    place.serve(REMOTE, row=DSR)
    place.ask(packets.SYN)
    run = place.ask(packets.ACK)
    assert seen_ends(run.packet) == ends(wall.family, WORLD, CLIENT_PORT, REMOTE, 8080)
    assert (wall.ports(), len(wall.entries())) == (0, 1)


def test_end_of_one_side_ends_the_entry(wall: Gate, make_gate: MakeGate) -> None:
    """The other side's is never seen here."""
    place = Place(wall, make_gate, [], NODE, packets.TCP)
    place.serve(REMOTE, row=DSR)
    for flags in (packets.SYN, packets.ACK, packets.FIN | packets.ACK):
        place.ask(flags)
    (entry,) = wall.entries()
    both = abi.CONNTRACK_CLOSING_FORWARD | abi.CONNTRACK_CLOSING_REPLY
    assert entry.row.flags & both == both


def test_node_of_the_backend_answers_with_the_frontend(place: Place) -> None:
    """What one node sends, another takes: its endpoint's answer goes to the client by the routes."""
    place.serve(SERVER, row=DSR)
    asked = place.arriving(WORLD, SERVER, place.segment(CLIENT_PORT, 8080, packets.SYN))
    run = place.wall.receive(with_option(asked, NODE.address(place.wall.family), NODE_PORT))
    assert (run.retval, place.wall.drops()) == (REDIRECT, [])
    answered = place.answer_of_endpoint()
    assert (answered.retval, place.gate.drops()) == (REDIRECT, [])
    assert seen_ends(answered.packet) == ends(place.gate.family, NODE, NODE_PORT, WORLD, CLIENT_PORT)


def test_port_of_another_node_is_known_by_the_own(place: Place) -> None:
    """Its address has no row here; the collector knows the flow's backend all the same."""
    place.serve(SERVER, row=DSR)
    other = REMOTE_NODE[place.wall.family]
    asked = place.arriving(WORLD, SERVER, place.segment(CLIENT_PORT, 8080, packets.SYN))
    place.wall.receive(with_option(asked, other, NODE_PORT))
    assert packets.read(place.answer_of_endpoint().packet).source == other
    dumps = {name: each.dump() for name, each in place.wall.maps.items() if name != "notifications"}
    serving = orphans.backends_of(lambda table: dumps[table])
    assert orphans.departed_flows(dumps["conntrack"].items(), serving) == []


def test_process_of_another_node_is_not_answered_directly(place: Place) -> None:
    """Its node may be the backend's, which takes nothing from the network that comes from itself."""
    place.serve(REMOTE, row=DSR)
    run = place.ask(packets.SYN, WORLD._replace(ipv4=REMOTE_NODE[4], ipv6=REMOTE_NODE[6]))
    assert packets.read(run.packet).source == NODE.address(place.wall.family)


def with_option(raw: bytes, address: str, port: int) -> bytes:
    """The frame as a node would send it on."""
    packed = packets.packed(address)
    if len(packed) == 4:
        option = struct.pack(">BBH", 0x9A, 8, port) + packed
        inner = packets.ipv4(raw[26:30], raw[30:34], raw[23], raw[34:], raw[22], option)
        return raw[:14] + inner
    option = struct.pack(">BBBB", raw[20], 2, 0x1B, 20) + packed + struct.pack(">HH", port, 0)
    length = struct.pack(">HB", len(raw) - 54 + 24, packets.DEST_OPTIONS)
    return raw[:18] + length + raw[21:54] + option + raw[54:]


def test_option_for_no_frontend_is_not_believed(place: Place) -> None:
    """Anyone on the network may write one: it would choose the source of the answers."""
    asked = place.arriving(WORLD, SERVER, place.segment(CLIENT_PORT, 8080, packets.SYN))
    place.wall.receive(with_option(asked, FRONTEND.address(place.wall.family), NODE_PORT))
    assert packets.read(place.answer_of_endpoint().packet).source == SERVER.address(place.gate.family)


@pytest.mark.parametrize("client", [REMOTE, WORLD], ids=["the backend itself", "outside"])
def test_backend_that_asks_for_itself_is_not_sent_its_own_address(wall: Gate, make_gate: MakeGate, client: object) -> None:
    """It gets the node's, since its stack refuses its own."""
    place = Place(wall, make_gate, [], NODE, packets.TCP)
    place.serve(REMOTE, row=DSR)
    source = packets.read(place.ask(client=client).packet).source  # type: ignore[arg-type]
    assert source == (NODE if client is REMOTE else WORLD).address(wall.family)


def test_here_the_option_is_not_needed(place: Place) -> None:
    """A backend of this node is reached as without DSR."""
    place.serve(SERVER, row=DSR)
    assert seen_ends(place.ask().packet) == ends(place.wall.family, WORLD, CLIENT_PORT, SERVER, 8080)


def test_datagram_that_is_too_big_is_refused(wall: Gate, make_gate: MakeGate) -> None:
    """The client is told how much fits beside the option."""
    place = Place(wall, make_gate, [], NODE, packets.UDP)
    place.serve(REMOTE, row=DSR)
    headers = 28 if wall.family == 4 else 48
    biggest = 1500 - headers - ADDED[wall.family]
    for size, is_sent in ((biggest, True), (biggest + 1, False)):
        run = wall.receive(place.arriving(WORLD, NODE, packets.udp(CLIENT_PORT, NODE_PORT, bytes(size))))
        assert (run.retval, wall.drops()) == (REDIRECT, [] if is_sent else [abi.FRAGMENTATION_NEEDED])
    seen = packets.read(run.packet)
    assert (seen.source, seen.dest) == (NODE.address(wall.family), WORLD.address(wall.family))
    assert (seen.l3_sum, seen.l4_sum, seen.dest_mac) == (0, 0, GATEWAY_MAC)
    at = packets.ETHERNET_BYTES + headers - 8
    mtu = 1500 - ADDED[wall.family]
    assert run.packet[at : at + 2] == (bytes((3, 4)) if wall.family == 4 else bytes((2, 0)))
    assert struct.unpack_from(">H", run.packet, at + 6)[0] == mtu


@pytest.mark.parametrize("way", ["out", "in"])
def test_sums_fit(place: Place, way: str) -> None:
    """When a device has summed the packet up, on both nodes."""
    place.serve(REMOTE if way == "out" else SERVER, row=DSR)
    raw = place.arriving(WORLD, NODE, place.segment(CLIENT_PORT, NODE_PORT, packets.SYN))
    if way == "in":
        asked = place.arriving(WORLD, SERVER, place.segment(CLIENT_PORT, 8080, packets.SYN))
        raw = with_option(asked, NODE.address(place.wall.family), NODE_PORT)
    assert (place.wall.place.call(place.wall.run_summed, "from_network", raw), place.wall.drops()) == (0, [])


def test_frame_comes_from_the_gateway() -> None:
    """The helpers of this file undo each other."""
    macs = {"source_mac": GATEWAY_MAC, "dest_mac": LOOPBACK_MAC}
    for source, dest in ((WORLD.ipv4, CLIENT.ipv4), (WORLD.ipv6, CLIENT.ipv6)):
        raw = packets.frame(source, dest, packets.UDP, packets.udp(1, 2), **macs)
        assert without_option(with_option(raw, dest, 7)) == (raw, dest, 7)
