"""Balancing at the underlay device: what from_network does with the same packet on the same rows, or nothing at all."""

import socket
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from datapath import codec
from datapath.abi import types as abi
from datapath.kernel.programs import PacketRun
from datapath.tables import (
    AffinityBackendKey,
    AffinityBackendRow,
    IpcacheRow,
    ServiceRow,
    SourceRangeKey,
    SourceRangeRow,
)
from tests.bpf import node as nodes
from tests.bpf import packets
from tests.bpf.gate import CONSTANTS, NODE, OTHER, OWN_MAC, REMOTE_MAC, ROUTER, ROUTER_MAC, Gate, resolve, routed
from tests.bpf.node import FRONTEND, LOOPBACK_MAC, REDIRECT, REMOTE, REMOTE_NODE, SERVER, SHOT, WORLD, Endpoint
from tests.bpf.test_nodeport import ends, seen_ends
from tests.conftest import Namespace

pytestmark = pytest.mark.kernel("bpf_redirect_peer")

PASS, TX = 2, 3
BACKEND_PORT, CLIENT_PORT = 8080, 1000
NODE_PORT, HERE, DIRECT, EMPTY, STICKY, CLOSED, UNKNOWN = 30080, 30081, 30082, 30083, 30084, 30085, 30086
"""By what is behind: a backend elsewhere, here, one that answers by itself, none, one that is kept, a source range
without the client, nothing."""
RANGES = 77
STATE = ("conntrack", "nat", "affinity")
ROW = ServiceRow(0, 0, abi.SERVICE_NODE_PORT)


class Device(Gate):
    """xdp.bpf.o, where a Gate has another object."""

    def run(self, program: str, raw: bytes) -> PacketRun:
        return self.place.call(self._loaded.test_run_at_device, program, raw)


class Both(NamedTuple):
    """The programs behind (`wall`) and at the device, with the same rows and the same flows."""

    wall: Gate
    device: Device

    def arriving(self, source: Endpoint, dest: Endpoint, segment: bytes, protocol: int, **named: object) -> bytes:
        """A frame from the network, for the node's device."""
        named.setdefault("dest_mac", OWN_MAC)
        return self.wall.frame(source, dest, segment, protocol, source_mac=ROUTER_MAC, **named)

    def ask(self, port: int = NODE_PORT, protocol: int = packets.TCP, flags: int = packets.SYN, **named: object) -> bytes:
        """WORLD:1000 -> the node's port."""
        return self.arriving(WORLD, NODE, segment(protocol, CLIENT_PORT, port, flags), protocol, **named)

    def answer(self, node_port: int, protocol: int = packets.TCP, flags: int = packets.ACK) -> bytes:
        """REMOTE:8080 -> the port that the node asked with."""
        return self.arriving(REMOTE, NODE, segment(protocol, BACKEND_PORT, node_port, flags), protocol)

    def at_device(self, raw: bytes) -> PacketRun:
        return self.device.run("xdp_from_network", raw)

    def share(self, source: Gate, target: Gate) -> None:
        """The flows of one, and no others, become those of the other."""
        for name in STATE:
            target.maps[name].delete(list(target.maps[name].dump()))
            failures = target.maps[name].put(list(source.maps[name].dump().items()))
            assert not failures, failures

    def behind(self, raw: bytes) -> PacketRun:
        """As the host stack would see it: a test run's device has no MAC."""
        return self.wall.receive(LOOPBACK_MAC + raw[6:])

    def both(self, raw: bytes) -> tuple[PacketRun, PacketRun]:
        """The packet at the device and, with the same flows, at the programs behind; each keeps what it wrote."""
        self.share(self.wall, self.device)
        return self.at_device(raw), self.behind(raw)

    def state(self, gate: Gate) -> tuple[object, ...]:
        """What a program has written, but for the time."""
        entries = [each._replace(row=each.row._replace(expires_ns=0)) for each in gate.entries()]
        kept = {key: row[8:] for key, row in gate.maps["affinity"].dump().items()}
        return entries, dict(gate.maps["nat"].dump()), kept


def segment(protocol: int, source_port: int, dest_port: int, flags: int) -> bytes:
    if protocol == packets.TCP:
        return packets.tcp(source_port, dest_port, flags, b"odd")
    return packets.udp(source_port, dest_port, b"odd")


def serve(gate: Gate) -> None:
    """Every kind of frontend, by TCP and UDP."""
    scope = abi.SERVICE_SCOPE_EXTERNAL
    for protocol in (packets.TCP, packets.UDP):
        for number, (port, backend, changes) in enumerate(
            (
                (NODE_PORT, REMOTE, {}),
                (HERE, SERVER, {}),
                (DIRECT, REMOTE, {"flags": abi.SERVICE_NODE_PORT | abi.SERVICE_DSR}),
                (EMPTY, None, {}),
                (STICKY, REMOTE, {"affinity_s": 100}),
                (CLOSED, REMOTE, {"source_range_set": RANGES}),
            )
        ):
            backends = [(backend, BACKEND_PORT)] if backend else []
            for frontend in (NODE, FRONTEND):
                row = ROW._replace(backend_set=number + 1, **changes)
                gate.service(backends, protocol, port, frontend=frontend, row=row, scope=scope)
    sticky = AffinityBackendKey(5, codec.address_bytes(REMOTE.address(gate.family)), BACKEND_PORT)
    gate.put("affinity_backends", {sticky: AffinityBackendRow(0)})
    inside = codec.prefix_bytes("203.0.113.0/24" if gate.family == 4 else "2001:db8:1::/48")
    gate.put("source_ranges", {SourceRangeKey(64 + inside[0], RANGES, inside[1]): SourceRangeRow(1)})


@pytest.fixture(scope="module", params=[4, 6], ids=["ipv4", "ipv6"])
def settled(request: pytest.FixtureRequest, objects_dir: Path) -> Iterator[Both]:
    """Of each family in turn; whose next hops are known."""
    made: list[Namespace] = []
    family = request.param

    def make() -> Namespace:
        made.append(Namespace())
        return made[0]

    try:
        place = routed(make)
        resolve(place, family)
        constants = {**CONSTANTS, "config_underlay_ifindex": place.call(socket.if_nametoindex, "und")}
        with (
            Gate(nodes.loaded(objects_dir / "host.bpf.o", **constants), place, family) as wall,
            Device(nodes.loaded(objects_dir / "xdp.bpf.o", **constants), place, family) as device,
        ):
            yield Both(wall, device)
    finally:
        for each in made:
            each.close()


@pytest.fixture
def both(settled: Both) -> Both:
    """Without any flow."""
    for gate in (settled.wall, settled.device):
        for name in STATE:
            gate.maps[name].delete(list(gate.maps[name].dump()))
        gate.settle()
        serve(gate)
    return settled


def assert_alike(both: Both, raw: bytes) -> bytes:
    """The packet leaves the device as it leaves the programs behind, which write the same; the frame."""
    at_device, behind = both.both(raw)
    assert (at_device.retval, behind.retval) == (TX, REDIRECT)
    assert at_device.packet[packets.ETHERNET_BYTES :] == behind.packet[packets.ETHERNET_BYTES :]
    assert both.state(both.device) == both.state(both.wall)
    return at_device.packet


PROTOCOLS = pytest.mark.parametrize("protocol", [packets.TCP, packets.UDP], ids=["tcp", "udp"])


@PROTOCOLS
def test_request_leaves_for_the_backend(both: Both, protocol: int) -> None:
    """New and established: in this node's name, to the backend's node, as the programs behind would send it."""
    for flags in (packets.SYN, packets.ACK, packets.FIN | packets.ACK):
        raw = assert_alike(both, both.ask(protocol=protocol, flags=flags))
        seen, family = packets.read(raw), both.wall.family
        assert (seen.source_mac, seen.dest_mac) == (OWN_MAC, REMOTE_MAC)
        assert seen_ends(raw) == ends(family, NODE, seen.source_port, REMOTE, BACKEND_PORT)


@PROTOCOLS
def test_answer_leaves_for_the_client(both: Both, protocol: int) -> None:
    """With the frontend's address and port, to the router."""
    node_port = packets.read(both.behind(both.ask(protocol=protocol)).packet).source_port
    for flags in (packets.SYN | packets.ACK, packets.ACK, packets.RST):
        raw = assert_alike(both, both.answer(node_port, protocol, flags))
        seen, family = packets.read(raw), both.wall.family
        assert (seen.source_mac, seen.dest_mac) == (OWN_MAC, ROUTER_MAC)
        assert seen_ends(raw) == ends(family, NODE, NODE_PORT, WORLD, CLIENT_PORT)


def test_client_keeps_its_backend(both: Both) -> None:
    """What the programs behind remember of affinity is heard at the device, and the other way round."""
    assert_alike(both, both.ask(STICKY))
    assert len(both.device.maps["affinity"].dump()) == 1
    both.wall.maps["conntrack"].delete(list(both.wall.maps["conntrack"].dump()))
    assert_alike(both, both.ask(STICKY))


def test_backend_on_another_node_itself_is_reached_by_the_routes(both: Both) -> None:
    """An endpoint of the host network of another node."""
    other = REMOTE._replace(ipv4=REMOTE_NODE[4], ipv6=REMOTE_NODE[6])
    for gate in (both.wall, both.device):
        row = ROW._replace(backend_set=9)
        gate.service(
            [(other, BACKEND_PORT)], packets.TCP, NODE_PORT, frontend=NODE, row=row, scope=abi.SERVICE_SCOPE_EXTERNAL
        )
    assert packets.read(assert_alike(both, both.ask())).dest_mac == REMOTE_MAC


def test_forwarded_packet_is_counted(both: Both) -> None:
    """As the programs behind count it; one that is passed on is theirs to count."""
    before = both.device.packets_counted(abi.FORWARDED, abi.TRAFFIC_INGRESS)
    raw = both.ask()
    both.at_device(raw)
    both.at_device(both.ask(HERE))
    after = both.device.packets_counted(abi.FORWARDED, abi.TRAFFIC_INGRESS)
    assert (after[0] - before[0], after[1] - before[1]) == (1, len(raw))


def test_datagram_without_a_checksum_stays_without(both: Both) -> None:
    """0 says so, and no sum may be made of it."""
    raw = both.ask(protocol=packets.UDP, checksum=False)
    assert packets.read(assert_alike(both, raw)).l4_checksum == 0


def passed_on(both: Both) -> dict[str, bytes]:
    """What is not the device's to send, by why."""
    protocol, error = packets.icmp_error(both.wall.family, both.ask())
    frames = {
        "a backend here": both.ask(HERE),
        "direct return": both.ask(DIRECT),
        "no backend": both.ask(EMPTY),
        "a client that is refused": both.ask(CLOSED),
        "no frontend": both.ask(UNKNOWN),
        "the last hop": both.ask(ttl=1),
        "another machine's": both.ask(dest_mac=REMOTE_MAC),
        "an error": both.arriving(ROUTER, NODE, error, protocol),
        "SCTP": both.arriving(WORLD, NODE, packets.sctp(CLIENT_PORT, NODE_PORT), packets.SCTP),
        "no flow": both.answer(10001),
        "an endpoint's": both.arriving(WORLD, SERVER, segment(packets.TCP, CLIENT_PORT, NODE_PORT, packets.SYN), 6),
        "no packet": both.ask()[:20],
        "cut off": both.ask()[:-5],
        "not of IP": both.ask()[:12] + b"\x08\x06" + both.ask()[14:],
    }
    first, *_, later = packets.cut(both.ask(), 16)
    return frames | {"a first fragment": first, "a later fragment": later, "a header between": with_header(both)}


def with_header(both: Both) -> bytes:
    """A request with an option in IPv4, an extension header in IPv6."""
    ends_of = [packets.packed(each.address(both.wall.family)) for each in (WORLD, NODE)]
    asking = packets.with_checksum(packets.tcp(CLIENT_PORT, NODE_PORT), packets.TCP, *ends_of)
    macs = OWN_MAC, ROUTER_MAC
    if both.wall.family == 4:
        l3 = packets.ipv4(*ends_of, packets.TCP, asking, options=bytes.fromhex("01010100"))
        return packets.ethernet(*macs, packets.IPV4, l3)
    l3 = packets.ipv6(*ends_of, packets.TCP, asking, extensions=(packets.DEST_OPTIONS,))
    return packets.ethernet(*macs, packets.IPV6, l3)


def test_everything_else_is_passed_on(both: Both) -> None:
    """As it came, and with nothing written: the programs behind see it as if there were nothing before them."""
    for why, raw in passed_on(both).items():
        run = both.at_device(raw)
        assert (run.retval, run.packet, both.device.entries(), both.device.ports()) == (PASS, raw, [], 0), why


def test_tunnel_is_not_the_devices(both: Both) -> None:
    """A backend that is reached inside a packet."""
    tunnelled = IpcacheRow(
        codec.address_bytes(REMOTE_NODE[both.wall.family]),
        REMOTE.identity,
        abi.IPCACHE_REMOTE_ENDPOINT | abi.IPCACHE_TUNNEL,
    )
    both.device.ipcache(REMOTE.address(both.wall.family), tunnelled)
    assert (both.at_device(both.ask()).retval, both.device.entries()) == (PASS, [])


@pytest.mark.parametrize("node", ["192.168.9.77", "fd00:9::77"])
def test_next_hop_that_is_not_resolved_is_asked_for_by_the_stack(both: Both, node: str) -> None:
    """Which waits for the answer; nothing is written before."""
    unknown = IpcacheRow(codec.address_bytes(node), REMOTE.identity, abi.IPCACHE_REMOTE_ENDPOINT)
    both.device.ipcache(REMOTE.address(both.wall.family), unknown)
    assert (both.at_device(both.ask()).retval, both.device.entries()) == (PASS, [])


def test_client_behind_another_device_is_answered_by_the_stack(both: Both) -> None:
    """What came in by one device goes out by it, or not here."""
    raw = both.arriving(OTHER, NODE, segment(packets.TCP, CLIENT_PORT, NODE_PORT, packets.SYN), packets.TCP)
    node_port = packets.read(both.at_device(raw).packet).source_port
    before = both.device.entries()
    assert (both.at_device(both.answer(node_port)).retval, both.device.entries()) == (PASS, before)


class Step(NamedTuple):
    """A packet of a client to a port, or of the backend to the node's port that the client's flow has."""

    is_answer: bool
    at_device: bool
    port: int
    protocol: int
    client: int
    flags: int


STEPS = st.builds(
    Step,
    st.booleans(),
    st.booleans(),
    st.sampled_from([NODE_PORT, NODE_PORT, HERE, DIRECT, EMPTY, STICKY, CLOSED, UNKNOWN]),
    st.sampled_from([packets.TCP, packets.UDP]),
    st.integers(1000, 1001),
    st.sampled_from([packets.SYN, packets.ACK, packets.SYN | packets.ACK, packets.FIN | packets.ACK, packets.RST]),
)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(STEPS, min_size=4, max_size=12))
def test_flow_may_change_between_the_two(both: Both, steps: list[Step]) -> None:
    """With any packet: what leaves and what is written is the same, whichever of the two saw the packets before."""
    for name in STATE:
        both.wall.maps[name].delete(list(both.wall.maps[name].dump()))
    node_ports = {}
    for step in steps:
        flow = step.port, step.protocol, step.client
        raw = both.arriving(WORLD, NODE, segment(step.protocol, step.client, step.port, step.flags), step.protocol)
        if step.is_answer:
            raw = both.answer(node_ports.get(flow, 10001), step.protocol, step.flags)
        before = both.state(both.wall)
        at_device, behind = both.both(raw)
        if at_device.retval == TX:
            assert behind.retval == REDIRECT
            assert at_device.packet[packets.ETHERNET_BYTES :] == behind.packet[packets.ETHERNET_BYTES :]
            assert both.state(both.device) == both.state(both.wall)
            if not step.is_answer:
                node_ports[flow] = packets.read(at_device.packet).source_port
            if step.at_device:
                both.share(both.device, both.wall)
        else:
            assert (at_device.retval, at_device.packet) == (PASS, raw)
            assert both.state(both.device)[:2] == before[:2]
            assert step.port not in (NODE_PORT, STICKY) or step.is_answer or behind.retval == SHOT


MUTATED, AT_MOST = 700, 3
SHARED_BYTES = 74
"""Beyond Ethernet, IPv6 and TCP headers nothing is read."""


def mutants(both: Both, chance: Random) -> Iterator[bytes]:
    """Packets of every kind with some bytes changed, cut off or added; half of them behind the addresses only, so that
    they are still for a frontend."""
    kinds = list(passed_on(both).values())
    asked = [both.ask(port, protocol) for port in (NODE_PORT, STICKY) for protocol in (packets.TCP, packets.UDP)]
    ports = [packets.read(both.behind(raw).packet).source_port for raw in asked[:2]]
    kinds += 4 * [*asked, *(both.answer(port, number) for port, number in zip(ports, (packets.TCP, packets.UDP), strict=True))]
    l4 = 34 if both.wall.family == 4 else 54
    for _ in range(MUTATED):
        raw = bytearray(chance.choice(kinds))
        begin = l4 if chance.random() < 0.5 else 0
        for _ in range(chance.randrange(AT_MOST + 1)):
            at = chance.randrange(min(begin, len(raw) - 1), min(SHARED_BYTES, len(raw)))
            raw[at] = chance.choice((0, 1, 0x45, 0xFF, raw[at] ^ 1 << chance.randrange(8), chance.randrange(256)))
        if chance.random() < 0.1:
            raw = raw[: chance.randrange(packets.ETHERNET_BYTES + 1, len(raw) + 1)]
        yield bytes(raw) + bytes(chance.choice((0, 0, 0, 6)))


def test_packets_of_any_form_fare_as_without_the_device(both: Both) -> None:
    """Broken ones, too: the device sends and writes what the programs behind would, or passes on what came and writes
    no more than which backend the client is kept at, so that they do it themselves."""
    chance, fared = Random(both.wall.family), Counter[str]()
    for raw in mutants(both, chance):
        before = both.state(both.wall)
        both.share(both.wall, both.device)
        at_device = both.at_device(raw)
        if at_device.retval == PASS:
            assert (at_device.packet, both.state(both.device)[:2]) == (raw, before[:2])
            fared["passed on"] += 1
            continue
        behind = both.behind(raw)
        assert (at_device.retval, behind.retval) == (TX, REDIRECT), raw.hex()
        assert at_device.packet[packets.ETHERNET_BYTES :] == behind.packet[packets.ETHERNET_BYTES :], raw.hex()
        assert both.state(both.device) == both.state(both.wall), raw.hex()
        fared["sent"] += 1
    assert fared["sent"] > MUTATED / 10 and fared["passed on"] > MUTATED / 10, fared
