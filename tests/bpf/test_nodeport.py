"""Frontends that the network asks for: to a backend here or elsewhere, and back; addresses, ports, every checksum."""

from typing import NamedTuple

import pytest

from datapath.abi import types as abi
from datapath.kernel.programs import PacketRun
from datapath.tables import IpcacheRow, ServiceRow
from tests.bpf import packets
from tests.bpf.gate import NODE, PORTS, ROUTER, Gate, MakeGate
from tests.bpf.node import (
    CLIENT,
    FRONTEND,
    GATEWAY_MAC,
    HOST,
    L3_SHAPE,
    LOOPBACK_MAC,
    OK,
    REDIRECT,
    REMOTE,
    REMOTE_NODE,
    SERVER,
    WORLD,
    Endpoint,
)

pytestmark = pytest.mark.kernel("bpf_redirect_peer")

NODE_PORT, BACKEND_PORT, CLIENT_PORT = 30080, 8080, 1000
PROTOCOLS = {"tcp": packets.TCP, "udp": packets.UDP}
ROW = ServiceRow(99, 0, abi.SERVICE_NODE_PORT)


class Place(NamedTuple):
    """A node's programs, and the frontend that the network asks for."""

    wall: Gate
    make: MakeGate
    made: list[Gate]
    frontend: Endpoint
    protocol: int

    @property
    def gate(self) -> Gate:
        """endpoint.bpf.o, loaded when it is first needed."""
        if not self.made:
            self.made.append(self.make())
        return self.made[0]

    def serve(self, *backends: Endpoint, row: ServiceRow = ROW) -> None:
        """The frontend has these backends, for the network."""
        self.wall.service(
            [(each, BACKEND_PORT) for each in backends],
            self.protocol,
            NODE_PORT,
            frontend=self.frontend,
            row=row,
            scope=abi.SERVICE_SCOPE_EXTERNAL,
        )

    def segment(self, source_port: int, dest_port: int, flags: int = packets.ACK) -> bytes:
        if self.protocol == packets.TCP:
            return packets.tcp(source_port, dest_port, flags, b"odd")
        return packets.udp(source_port, dest_port, b"odd")

    def arriving(self, source: Endpoint, dest: Endpoint, segment: bytes, protocol: int = 0) -> bytes:
        """A frame from the network."""
        macs = {"source_mac": GATEWAY_MAC, "dest_mac": LOOPBACK_MAC}
        return self.wall.frame(source, dest, segment, protocol or self.protocol, **macs)

    def ask(self, flags: int = packets.SYN, client: Endpoint = WORLD, port: int = NODE_PORT) -> PacketRun:
        """client:1000 -> frontend:30080, from the network."""
        return self.wall.receive(self.arriving(client, self.frontend, self.segment(CLIENT_PORT, port, flags)))

    def answer(self, node_port: int) -> PacketRun:
        """REMOTE:8080 -> NODE:node_port, from the network."""
        return self.wall.receive(self.arriving(REMOTE, NODE, self.segment(BACKEND_PORT, node_port)))

    def answer_of_endpoint(self, client: Endpoint = WORLD) -> PacketRun:
        """SERVER:8080 -> client:1000, from the endpoint itself."""
        self.gate.take_over(self.wall)
        return self.gate.send(
            SERVER, self.gate.frame(SERVER, client, self.segment(BACKEND_PORT, CLIENT_PORT), self.protocol)
        )


@pytest.fixture(params=[*PROTOCOLS])
def place(request: pytest.FixtureRequest, wall: Gate, make_gate: MakeGate) -> Place:
    """The node's own address as the frontend, by TCP or UDP."""
    return Place(wall, make_gate, [], NODE, PROTOCOLS[request.param])


@pytest.fixture
def datagrams(wall: Gate, make_gate: MakeGate) -> Place:
    """The same by UDP, where the protocol makes no difference."""
    return Place(wall, make_gate, [], NODE, packets.UDP)


def ends(family: int, source: Endpoint, source_port: int, dest: Endpoint, dest_port: int) -> tuple[str, int, str, int]:
    """As `seen_ends` of a packet."""
    return source.address(family), source_port, dest.address(family), dest_port


def seen_ends(raw: bytes) -> tuple[str, int, str, int]:
    """Source and destination of a frame, whose checksums must be right."""
    seen = packets.read(raw)
    assert (seen.l3_sum, seen.l4_sum, seen.ttl) == (0, 0, 63)
    return seen.source, seen.source_port, seen.dest, seen.dest_port


@pytest.mark.parametrize("frontend", [NODE, FRONTEND], ids=["node", "load balancer"])
@pytest.mark.parametrize("packet_number", [1, 2])
def test_backend_elsewhere_is_asked_by_the_node(place: Place, frontend: Endpoint, packet_number: int) -> None:
    """Of the first packet and of an established one: the node's address and a port of its own, the backend's both."""
    there = place._replace(frontend=frontend)
    there.serve(REMOTE)
    for _ in range(packet_number):
        run = there.ask(packets.ACK)
    assert (run.retval, there.wall.drops()) == (REDIRECT, [])
    node_port = packets.read(run.packet).source_port
    assert node_port in PORTS
    assert seen_ends(run.packet) == ends(there.wall.family, NODE, node_port, REMOTE, BACKEND_PORT)


@pytest.mark.parametrize("frontend", [NODE, FRONTEND], ids=["node", "load balancer"])
def test_answer_from_elsewhere_goes_on_to_the_client(place: Place, frontend: Endpoint) -> None:
    """With the frontend's address and port."""
    there = place._replace(frontend=frontend)
    there.serve(REMOTE)
    node_port = packets.read(there.ask().packet).source_port
    run = there.answer(node_port)
    assert (run.retval, there.wall.drops()) == (REDIRECT, [])
    assert seen_ends(run.packet) == ends(there.wall.family, frontend, NODE_PORT, WORLD, CLIENT_PORT)


def test_flow_to_elsewhere_has_two_entries_and_two_ports(datagrams: Place) -> None:
    """So that the collector finds which ports are idle, and which flows lost their backend."""
    datagrams.serve(REMOTE)
    datagrams.ask()
    flags = sorted(row.flags & ~abi.CONNTRACK_INITIATOR_HIGH for _, row in datagrams.wall.entries())
    assert flags == sorted(
        abi.CONNTRACK_MASQUERADED | each for each in (abi.CONNTRACK_DNAT, abi.CONNTRACK_REVERSE_DNAT)
    )
    assert datagrams.wall.ports() == 2


def test_answer_without_a_flow_is_the_hosts(datagrams: Place) -> None:
    """The flow was removed with its backend, its port not yet."""
    datagrams.serve(REMOTE)
    node_port = packets.read(datagrams.ask().packet).source_port
    datagrams.wall.maps["conntrack"].delete(list(datagrams.wall.maps["conntrack"].dump()))
    assert datagrams.answer(node_port).retval == OK


@pytest.mark.parametrize("frontend", [NODE, FRONTEND], ids=["node", "load balancer"])
@pytest.mark.parametrize("packet_number", [1, 2])
def test_backend_here_sees_the_client(place: Place, frontend: Endpoint, packet_number: int) -> None:
    """The client keeps its address; the packet goes into the endpoint's namespace."""
    there = place._replace(frontend=frontend)
    there.serve(SERVER)
    for _ in range(packet_number):
        run = there.ask(packets.ACK)
    assert (run.retval, there.wall.drops(), packets.read(run.packet).dest_mac) == (REDIRECT, [], SERVER.mac)
    assert seen_ends(run.packet) == ends(there.wall.family, WORLD, CLIENT_PORT, SERVER, BACKEND_PORT)


@pytest.mark.parametrize("frontend", [NODE, FRONTEND], ids=["node", "load balancer"])
def test_answer_from_here_leaves_by_the_routes(place: Place, frontend: Endpoint) -> None:
    """Not through the host's stack, which refuses its own address as a source."""
    there = place._replace(frontend=frontend)
    there.serve(SERVER)
    there.ask()
    run = there.answer_of_endpoint()
    assert (run.retval, there.gate.drops()) == (REDIRECT, [])
    assert seen_ends(run.packet) == ends(there.gate.family, frontend, NODE_PORT, WORLD, CLIENT_PORT)


def test_endpoint_of_another_node_is_answered_there(datagrams: Place) -> None:
    """A client inside the mesh: the answer goes to its node."""
    datagrams.serve(SERVER)
    datagrams.ask(client=REMOTE)
    run = datagrams.answer_of_endpoint(REMOTE)
    assert run.retval == REDIRECT
    assert seen_ends(run.packet) == ends(datagrams.gate.family, NODE, NODE_PORT, REMOTE, CLIENT_PORT)


@pytest.mark.parametrize("client", [WORLD, REMOTE], ids=["world", "remote"])
def test_backend_here_judges_the_client(place: Place, client: Endpoint) -> None:
    """Ingress policy by the client's own identity, and the backend's port."""
    place.serve(SERVER)
    place.wall.subject(SERVER, ingress=True, shapes=abi.POLICY_SHAPE_PORT_0 << 16)
    assert place.wall.is_dropped(place.ask(client=client), abi.POLICY_DENIED)
    assert place.wall.entries() == []
    place.wall.policy(
        SERVER, abi.POLICY_INGRESS, client.identity, port=BACKEND_PORT, prefix=16, protocol=place.protocol
    )
    assert place.ask(client=client).retval == REDIRECT


def test_moved_epoch_cuts_a_flow_that_is_denied_now(datagrams: Place) -> None:
    """And leaves nothing of it."""
    datagrams.serve(SERVER)
    datagrams.ask()
    datagrams.wall.subject(SERVER, ingress=True)
    datagrams.wall.epoch(2)
    assert datagrams.wall.is_dropped(datagrams.ask(), abi.POLICY_DENIED)
    assert datagrams.wall.entries() == []


def test_moved_epoch_refreshes_a_flow(datagrams: Place) -> None:
    """Still allowed: it goes on under the new epoch."""
    datagrams.serve(SERVER)
    datagrams.ask()
    datagrams.wall.epoch(2)
    assert datagrams.ask().retval == REDIRECT
    assert 2 in {row.policy_epoch for _, row in datagrams.wall.entries()}


@pytest.mark.parametrize("backend", [SERVER, REMOTE], ids=["here", "elsewhere"])
def test_flow_keeps_its_backend(place: Place, backend: Endpoint) -> None:
    """The service may change or go."""
    place.serve(backend)
    place.ask()
    place.serve(CLIENT)
    assert packets.read(place.ask(packets.ACK).packet).dest == backend.address(place.wall.family)


def test_only_service_ports_are_taken(place: Place) -> None:
    """Everything else to the node's address is the host's, untouched and untracked."""
    place.serve(REMOTE)
    raw = place.arriving(WORLD, NODE, place.segment(CLIENT_PORT, NODE_PORT + 1, packets.SYN))
    run = place.wall.receive(raw)
    assert (run.retval, run.packet, place.wall.entries()) == (OK, raw, [])


def test_frontend_of_the_nodes_own_side_is_not_the_networks(place: Place) -> None:
    """A row of the internal scope, such as that of a ClusterIP, is none from outside."""
    place.wall.service([(REMOTE, BACKEND_PORT)], place.protocol, NODE_PORT, frontend=NODE)
    assert (place.ask().retval, place.wall.entries()) == (OK, [])


def test_nobody_passes_for_the_host(datagrams: Place) -> None:
    """The node's identity is refused as a client from outside."""
    datagrams.wall.ipcache(HOST.address(datagrams.wall.family), IpcacheRow(bytes(16), abi.IDENTITY_HOST, 0))
    datagrams.serve(SERVER)
    assert datagrams.wall.is_dropped(datagrams.ask(client=HOST), abi.INVALID_SOURCE_IP)


def test_nobody_passes_for_the_backend(datagrams: Place) -> None:
    """A client with the address of the endpoint that it would reach."""
    datagrams.serve(SERVER)
    assert datagrams.wall.is_dropped(datagrams.ask(client=SERVER), abi.INVALID_SOURCE_IP)


def test_own_endpoint_may_ask_for_the_nodes_address(place: Place) -> None:
    """The node's port from inside: translated at once, without the node's address as a source."""
    place.gate.service([(REMOTE, BACKEND_PORT)], place.protocol, NODE_PORT, frontend=NODE, row=ROW)
    raw = place.gate.frame(CLIENT, NODE, place.segment(CLIENT_PORT, NODE_PORT, packets.SYN), place.protocol)
    run = place.gate.send(CLIENT, raw)
    assert run.retval == REDIRECT
    assert seen_ends(run.packet) == ends(place.gate.family, CLIENT, CLIENT_PORT, REMOTE, BACKEND_PORT)


def test_own_endpoint_may_reach_itself(place: Place) -> None:
    """Through the node's port, with the hairpin address as the client's."""
    place.gate.service([(CLIENT, BACKEND_PORT)], place.protocol, NODE_PORT, frontend=NODE, row=ROW)
    raw = place.gate.frame(CLIENT, NODE, place.segment(CLIENT_PORT, NODE_PORT, packets.SYN), place.protocol)
    run = place.gate.send(CLIENT, raw)
    seen = packets.read(run.packet)
    assert (run.retval, seen.dest, seen.dest_port) == (REDIRECT, CLIENT.address(place.gate.family), BACKEND_PORT)
    assert seen.source not in {CLIENT.address(place.gate.family), NODE.address(place.gate.family)}


@pytest.mark.parametrize("chunks", [0, 1, 5, 64, 1003])
@pytest.mark.parametrize("backend", [REMOTE, SERVER], ids=["elsewhere", "here"])
def test_sctp_is_translated_with_its_checksum(wall: Gate, make_gate: MakeGate, backend: Endpoint, chunks: int) -> None:
    """Which covers the whole packet: on the way there, and on the way back of an answer from elsewhere."""
    place, family, l4 = Place(wall, make_gate, [], NODE, packets.SCTP), wall.family, 34 if wall.family == 4 else 54
    place.serve(backend)
    payload = bytes(range(256)) * 4
    run = wall.receive(place.arriving(WORLD, NODE, packets.sctp(CLIENT_PORT, NODE_PORT, payload[:chunks])))
    seen = packets.read(run.packet)
    assert (run.retval, seen.dest, seen.dest_port) == (REDIRECT, backend.address(family), BACKEND_PORT)
    assert packets.sctp_is_whole(run.packet[l4:]) and seen.l3_sum == 0
    if backend is REMOTE:
        assert seen.source == NODE.address(family)
        answer = packets.sctp(BACKEND_PORT, seen.source_port, payload[chunks:])
        back = wall.receive(place.arriving(REMOTE, NODE, answer)).packet
        assert seen_ends(back) == ends(family, NODE, NODE_PORT, WORLD, CLIENT_PORT)
        assert packets.sctp_is_whole(back[l4:])


@pytest.mark.parametrize("backend", [REMOTE, SERVER], ids=["elsewhere", "here"])
def test_sums_fit_on_the_way_in(place: Place, backend: Endpoint) -> None:
    """When a device has summed the packet up."""
    place.serve(backend)
    raw = place.arriving(WORLD, NODE, place.segment(CLIENT_PORT, NODE_PORT, packets.SYN))
    assert (place.wall.place.call(place.wall.run_summed, "from_network", raw), place.wall.drops()) == (0, [])


def test_sums_fit_on_the_way_back(place: Place) -> None:
    """Of an answer from elsewhere."""
    place.serve(REMOTE)
    node_port = packets.read(place.ask().packet).source_port
    raw = place.arriving(REMOTE, NODE, place.segment(BACKEND_PORT, node_port))
    assert (place.wall.place.call(place.wall.run_summed, "from_network", raw), place.wall.drops()) == (0, [])


class Quote(NamedTuple):
    """What an ICMP error quotes."""

    source: str
    source_port: int
    dest: str
    dest_port: int


def quoted(raw: bytes) -> Quote:
    """The quoted ends; the checksum of a quoted IPv4 header must be right."""
    is_ipv4 = raw[12:14] == b"\x08\x00"
    at = packets.ETHERNET_BYTES + (20 if is_ipv4 else 40) + 8
    inner = raw[:12] + (b"\x08\x00" if is_ipv4 else b"\x86\xdd") + raw[at:] + bytes(64)
    seen = packets.read(inner)
    assert seen.l3_sum == 0
    return Quote(seen.source, seen.source_port, seen.dest, seen.dest_port)


def error_ends(raw: bytes) -> tuple[str, str]:
    """Who sends an error to whom; its checksums must be right."""
    seen = packets.read(raw)
    assert (seen.l3_sum, seen.l4_sum) == (0, 0)
    return seen.source, seen.dest


def test_error_from_elsewhere_reaches_the_client(datagrams: Place) -> None:
    """A router on the way to the backend: the quote reads as the client sent it."""
    datagrams.serve(REMOTE)
    sent = datagrams.ask().packet
    protocol, segment = packets.icmp_error(datagrams.wall.family, sent)
    run = datagrams.wall.receive(datagrams.arriving(ROUTER, NODE, segment, protocol))
    family = datagrams.wall.family
    assert (run.retval, datagrams.wall.drops()) == (REDIRECT, [])
    assert error_ends(run.packet) == (ROUTER.address(family), WORLD.address(family))
    assert quoted(run.packet) == ends(family, WORLD, CLIENT_PORT, NODE, NODE_PORT)


def test_error_of_the_client_reaches_the_backend_elsewhere(datagrams: Place) -> None:
    """The client refuses an answer: the quote reads as the backend sent it, to the node."""
    datagrams.serve(REMOTE)
    node_port = packets.read(datagrams.ask().packet).source_port
    answered = datagrams.answer(node_port).packet
    protocol, segment = packets.icmp_error(datagrams.wall.family, answered)
    run = datagrams.wall.receive(datagrams.arriving(WORLD, NODE, segment, protocol))
    family = datagrams.wall.family
    assert (run.retval, datagrams.wall.drops()) == (REDIRECT, [])
    assert error_ends(run.packet) == (NODE.address(family), REMOTE.address(family))
    assert quoted(run.packet) == ends(family, REMOTE, BACKEND_PORT, NODE, node_port)


def test_error_of_a_backend_here_reaches_the_client(datagrams: Place) -> None:
    """Its port is closed: the client hears it from the frontend."""
    datagrams.serve(SERVER)
    sent = datagrams.ask().packet
    datagrams.gate.take_over(datagrams.wall)
    protocol, segment = packets.icmp_error(datagrams.gate.family, sent)
    run = datagrams.gate.send(SERVER, datagrams.gate.frame(SERVER, WORLD, segment, protocol))
    family = datagrams.gate.family
    assert (run.retval, datagrams.gate.drops()) == (REDIRECT, [])
    assert error_ends(run.packet) == (NODE.address(family), WORLD.address(family))
    assert quoted(run.packet) == ends(family, WORLD, CLIENT_PORT, NODE, NODE_PORT)


def test_error_of_the_client_reaches_a_backend_here(datagrams: Place) -> None:
    """With no ingress row for it: it belongs to the flow."""
    datagrams.serve(SERVER)
    datagrams.ask()
    answered = datagrams.answer_of_endpoint().packet
    datagrams.wall.subject(SERVER, ingress=True, shapes=L3_SHAPE)
    protocol, segment = packets.icmp_error(datagrams.wall.family, answered)
    run = datagrams.wall.receive(datagrams.arriving(WORLD, NODE, segment, protocol))
    family = datagrams.wall.family
    assert (run.retval, datagrams.wall.drops()) == (REDIRECT, [])
    assert error_ends(run.packet) == (WORLD.address(family), SERVER.address(family))
    assert quoted(run.packet) == ends(family, SERVER, BACKEND_PORT, WORLD, CLIENT_PORT)


def test_error_about_a_flow_to_a_cluster_address_reaches_its_client(datagrams: Place) -> None:
    """The backend's node cannot deliver: an endpoint that asked a frontend is told of the frontend."""
    datagrams.gate.service([(REMOTE, BACKEND_PORT)], packets.UDP)
    family = datagrams.gate.family
    raw = datagrams.gate.frame(CLIENT, FRONTEND, packets.udp(CLIENT_PORT, 80), packets.UDP)
    sent = datagrams.gate.send(CLIENT, raw).packet
    datagrams.wall.take_over(datagrams.gate)
    protocol, segment = packets.icmp_error(family, sent)
    run = datagrams.wall.receive(datagrams.arriving(REMOTE, CLIENT, segment, protocol))
    assert (run.retval, datagrams.wall.drops()) == (REDIRECT, [])
    assert error_ends(run.packet) == (FRONTEND.address(family), CLIENT.address(family))
    assert quoted(run.packet) == ends(family, CLIENT, CLIENT_PORT, FRONTEND, 80)


def test_backend_on_another_node_itself_is_reached_by_the_routes(place: Place) -> None:
    """An endpoint of the host network of another node: no row says where to send it, the routes do."""
    other = REMOTE._replace(ipv4=REMOTE_NODE[4], ipv6=REMOTE_NODE[6])
    place.serve(other)
    run = place.ask()
    assert (run.retval, place.wall.drops()) == (REDIRECT, [])
    assert packets.read(run.packet).dest == other.address(place.wall.family)


@pytest.mark.parametrize("program", ["to_network", "to_network_answering"])
def test_backend_in_the_nodes_own_network_is_the_stacks(place: Place, program: str) -> None:
    """Translated there, and its answers on their way out of the device, with host policies and without."""
    own = NODE
    place = place._replace(frontend=FRONTEND)
    place.serve(own)
    run = place.ask()
    assert run.retval == OK
    seen = packets.read(run.packet)
    assert (seen.dest, seen.dest_port, seen.l3_sum, seen.l4_sum) == (own.address(place.wall.family), BACKEND_PORT, 0, 0)
    raw = place.wall.frame(own, WORLD, place.segment(BACKEND_PORT, CLIENT_PORT), place.protocol)
    back = place.wall.run(program, raw)
    seen = packets.read(back.packet)
    assert (back.retval, seen.source, seen.source_port) == (OK, FRONTEND.address(place.wall.family), NODE_PORT)
    assert (seen.l3_sum, seen.l4_sum) == (0, 0)


def test_error_from_the_nodes_own_network_is_about_the_frontend(datagrams: Place) -> None:
    """Nobody listens: the client hears that of where it sent to."""
    family = datagrams.wall.family
    datagrams = datagrams._replace(frontend=FRONTEND)
    datagrams.serve(NODE)
    asked = datagrams.ask()
    protocol, segment = packets.icmp_error(family, asked.packet)
    run = datagrams.wall.run("to_network_answering", datagrams.wall.frame(NODE, WORLD, segment, protocol))
    assert (run.retval, datagrams.wall.drops()) == (OK, [])
    assert error_ends(run.packet) == (FRONTEND.address(family), WORLD.address(family))
    assert quoted(run.packet) == ends(family, WORLD, CLIENT_PORT, FRONTEND, NODE_PORT)


def test_pieces_of_an_answer_of_the_nodes_own_network_go_together(datagrams: Place) -> None:
    """All of them leave with the frontend's address; a piece whose first is not known passes as it is."""
    wall = datagrams.wall
    datagrams = datagrams._replace(frontend=FRONTEND)
    datagrams.serve(NODE)
    datagrams.ask()
    segment = packets.udp(BACKEND_PORT, CLIENT_PORT, bytes(200))
    pieces = packets.cut(wall.frame(NODE, WORLD, segment, datagrams.protocol), 104)
    alone = wall.run("to_network_answering", pieces[1])
    assert (alone.retval, alone.packet, wall.drops()) == (OK, pieces[1], [])
    sent = [wall.run("to_network_answering", piece).packet for piece in pieces]
    whole = packets.read(packets.joined(sent))
    assert (whole.source, whole.source_port, whole.l4_sum) == (FRONTEND.address(wall.family), NODE_PORT, 0)


def test_what_answers_nobody_passes_unseen(datagrams: Place) -> None:
    """The node's own packets, where no host policies are in force."""
    raw = datagrams.wall.frame(NODE, WORLD, datagrams.segment(BACKEND_PORT, CLIENT_PORT), datagrams.protocol)
    run = datagrams.wall.run("to_network_answering", raw)
    assert (run.retval, run.packet, datagrams.wall.entries()) == (OK, raw, [])


def test_host_policies_do_not_judge_answers_of_frontends(place: Place) -> None:
    """They leave with the node's address, but are its endpoints'."""
    place.serve(SERVER)
    place.ask()
    place.wall.subject(HOST, egress=True, ingress=True)
    raw = place.wall.frame(NODE, WORLD, place.segment(NODE_PORT, CLIENT_PORT), place.protocol)
    run = place.wall.run("to_network", raw)
    assert (run.retval, run.packet, place.wall.drops()) == (OK, raw, [])
