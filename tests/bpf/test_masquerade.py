"""Endpoints leave the mesh with their node's address, and answers find them: addresses, ports, checksums, errors."""

import ipaddress
import struct
from typing import NamedTuple

import pytest

from datapath import codec
from datapath.abi import types as abi
from datapath.tables import NO_ADDRESS, IpcacheRow
from tests.bpf import node as nodes
from tests.bpf import packets
from tests.bpf.gate import NODE, OTHER, PORTS, ROUTER, Gate, MakeGate
from tests.bpf.node import (
    CLIENT,
    FRONTEND,
    GATEWAY_MAC,
    LOOPBACK_MAC,
    OK,
    REDIRECT,
    SERVER,
    SHOT,
    WORLD,
    Endpoint,
    Node,
)

pytestmark = pytest.mark.kernel("bpf_redirect_peer")

KINDS = ("tcp", "udp", "echo")


def question(
    gate: Node, kind: str, port: int, dest: Endpoint = WORLD, source: Endpoint = CLIENT, **named: int
) -> bytes:
    """An endpoint asks the world; `port` is the id of an echo."""
    if kind == "echo":
        protocol, request = (packets.ICMP, 8) if gate.family == 4 else (packets.ICMPV6, 128)
        return gate.frame(source, dest, packets.icmp(request, echo_id=port), protocol, **named)
    if kind == "tcp":
        return gate.frame(source, dest, packets.tcp(port, 443, payload=b"odd"), packets.TCP, **named)
    return gate.frame(source, dest, packets.udp(port, 443, b"odd"), packets.UDP, **named)


def answer(gate: Node, kind: str, port: int, source: Endpoint = WORLD, flags: int = packets.ACK) -> bytes:
    """The world answers the node."""
    macs = {"source_mac": GATEWAY_MAC, "dest_mac": LOOPBACK_MAC}
    if kind == "echo":
        protocol, reply = (packets.ICMP, 0) if gate.family == 4 else (packets.ICMPV6, 129)
        return gate.frame(source, NODE, packets.icmp(reply, echo_id=port), protocol, **macs)
    if kind == "tcp":
        return gate.frame(source, NODE, packets.tcp(443, port, flags, b"odd"), packets.TCP, **macs)
    return gate.frame(source, NODE, packets.udp(443, port, b"odd"), packets.UDP, **macs)


def ports_of(kind: str, raw: bytes) -> tuple[int, int]:
    """Source and destination port of a frame; of an echo its id, twice."""
    if kind != "echo":
        seen = packets.read(raw)
        return seen.source_port, seen.dest_port
    at = packets.ETHERNET_BYTES + (20 if raw[12:14] == b"\x08\x00" else 40) + 4
    return (int.from_bytes(raw[at : at + 2], "big"),) * 2


def out(gate: Gate, kind: str, port: int, **named: Endpoint) -> tuple[packets.Packet, int]:
    """Asks, and is masqueraded; the packet and the node's port."""
    run = gate.send(named.get("source", CLIENT), question(gate, kind, port, **named))
    assert (run.retval, gate.drops()) == (REDIRECT, [])
    seen = packets.read(run.packet)
    assert seen.source == NODE.address(gate.family)
    return seen, ports_of(kind, run.packet)[0]


@pytest.mark.parametrize("kind", KINDS)
def test_source_becomes_the_node(gate: Gate, kind: str) -> None:
    """Address, port and TTL, of the first packet and of the second, with all checksums."""
    first, chosen = out(gate, kind, 1000)
    again, same = out(gate, kind, 1000)
    assert chosen in PORTS
    assert same == chosen
    for seen in (first, again):
        assert (seen.dest, seen.ttl, seen.l3_sum, seen.l4_sum) == (WORLD.address(gate.family), 63, 0, 0)


@pytest.mark.parametrize("kind", KINDS)
def test_answer_finds_the_endpoint(gate: Gate, wall: Gate, kind: str) -> None:
    """Its address and port are put back, with all checksums, into its own namespace."""
    _, chosen = out(gate, kind, 1000)
    wall.take_over(gate)
    run = wall.receive(answer(wall, kind, chosen))
    seen = packets.read(run.packet)
    assert (run.retval, wall.drops()) == (REDIRECT, [])
    assert (seen.source, seen.dest) == (WORLD.address(wall.family), CLIENT.address(wall.family))
    assert ports_of(kind, run.packet)[1] == 1000
    assert (seen.dest_mac, seen.ttl, seen.l3_sum, seen.l4_sum) == (CLIENT.mac, 63, 0, 0)


@pytest.mark.parametrize("kind", ["tcp", "udp"])
def test_summed_packets_keep_a_right_sum(gate: Gate, wall: Gate, kind: str) -> None:
    """Both ways, when a device has summed the packet up."""
    _, chosen = out(gate, kind, 1000)
    raw = question(gate, kind, 1000)
    assert (gate.place.call(gate.run_summed, "from_endpoint", raw), gate.drops()) == (0, [])
    wall.take_over(gate)
    back = answer(wall, kind, chosen)
    assert (wall.place.call(wall.run_summed, "from_network", back), wall.drops()) == (0, [])


@pytest.mark.parametrize("kind", KINDS)
def test_every_flow_has_a_port_of_its_own(gate: Gate, kind: str) -> None:
    """Equal ports of two endpoints and many ports of one, to one destination."""
    flows = [(source, port) for source in (CLIENT, SERVER) for port in range(2000, 2100)]
    chosen = {out(gate, kind, port, source=source)[1] for source, port in flows}
    assert len(chosen) == len(flows)


def test_flow_without_a_free_port_is_dropped(make_gate: MakeGate) -> None:
    """One port, one destination, two flows; to another destination the port serves again."""
    gate = make_gate(config_masquerade_port_count=1)
    out(gate, "udp", 1000)
    assert gate.is_dropped(gate.send(CLIENT, question(gate, "udp", 1001)), abi.NO_MAPPING_FOR_NAT_MASQUERADE)
    elsewhere = Endpoint("198.51.100.10", "2001:db8::10", abi.IDENTITY_WORLD, 0, 0, GATEWAY_MAC, GATEWAY_MAC)
    assert out(gate, "udp", 1001, dest=elsewhere)[1] == PORTS.start


def test_port_of_a_flow_that_ended_is_taken(make_gate: MakeGate) -> None:
    """Though its entries are still there; and if it comes back it does not share the port."""
    gate = make_gate(config_masquerade_port_count=1)
    out(gate, "udp", 1000)
    gate.expire()
    assert out(gate, "udp", 1001)[1] == PORTS.start
    assert gate.is_dropped(gate.send(CLIENT, question(gate, "udp", 1000)), abi.NO_MAPPING_FOR_NAT_MASQUERADE)


def test_evicted_flow_finds_its_port_again(gate: Gate) -> None:
    """The map is a cache; what it forgets is found from the packet."""
    _, chosen = out(gate, "tcp", 1000)
    held = gate.maps["nat"].dump()
    for key in held:
        gate.maps["nat"].delete([key])
        assert out(gate, "tcp", 1000)[1] == chosen
        assert gate.maps["nat"].dump() == held


def test_sctp_gets_a_port_and_its_checksum(gate: Gate) -> None:
    """Two endpoints that use the same port outside are told apart by it."""
    ports, l4 = [], 34 if gate.family == 4 else 54
    for sender in (CLIENT, SERVER):
        run = gate.send(sender, gate.frame(sender, WORLD, packets.sctp(1000, 443, b"chunk"), packets.SCTP))
        seen = packets.read(run.packet)
        assert (run.retval, seen.source) == (REDIRECT, NODE.address(gate.family))
        assert packets.sctp_is_whole(run.packet[l4:])
        ports.append(seen.source_port)
    assert len({*ports, 1000}) == 3


def test_service_outside_the_mesh_is_masqueraded(gate: Gate, wall: Gate) -> None:
    """Both translations on the way there, and both on the way back."""
    gate.service([(WORLD, 443)], packets.TCP)
    run = gate.send(CLIENT, gate.frame(CLIENT, FRONTEND, packets.tcp(1000, 80)))
    seen = packets.read(run.packet)
    assert (seen.source, seen.dest, seen.dest_port) == (NODE.address(gate.family), WORLD.address(gate.family), 443)
    assert (seen.l3_sum, seen.l4_sum) == (0, 0)
    wall.take_over(gate)
    back = packets.read(wall.receive(answer(wall, "tcp", seen.source_port)).packet)
    assert (back.source, back.source_port) == (FRONTEND.address(wall.family), 80)
    assert (back.dest, back.dest_port) == (CLIENT.address(wall.family), 1000)
    assert (back.l3_sum, back.l4_sum) == (0, 0)


def is_untouched(gate: Gate, dest: Endpoint) -> bool:
    """Left to the host stack with its own address."""
    raw = question(gate, "udp", 1000, dest)
    run = gate.send(CLIENT, raw)
    return (run.retval, run.packet, gate.ports()) == (OK, raw, 0)


def test_without_the_address_nothing_is_masqueraded(make_gate: MakeGate) -> None:
    """As configured: the host stack forwards what it likes."""
    assert is_untouched(make_gate(config_masquerade_ipv4=0, config_masquerade_ipv6=0), WORLD)


def test_groups_are_the_stacks(gate: Gate) -> None:
    """A route for everything is no route for a group."""
    group = Endpoint("239.1.1.1", "ff0e::1", abi.IDENTITY_WORLD, 0, 0, GATEWAY_MAC, GATEWAY_MAC)
    assert is_untouched(gate, group)


def test_flow_from_before_it_was_turned_off_never_leaves_without_an_address(gate: Gate, make_gate: MakeGate) -> None:
    """Its conntrack entry says that it is masqueraded, and there is no address to give."""
    out(gate, "udp", 1000)
    off = make_gate(config_masquerade_ipv4=0, config_masquerade_ipv6=0)
    off.take_over(gate)
    off.maps["nat"].delete(list(off.maps["nat"].dump()))
    assert off.is_dropped(off.send(CLIENT, question(off, "udp", 1000)), abi.NO_MAPPING_FOR_NAT_MASQUERADE)


def test_other_nodes_see_the_endpoint(gate: Gate) -> None:
    """A node of the mesh knows whose address it is, one with an API server too."""
    remote = Endpoint(*nodes.REMOTE_NODE.values(), abi.IDENTITY_REMOTE_NODE, 0, 0, GATEWAY_MAC, GATEWAY_MAC)
    assert is_untouched(gate, remote)
    for address in nodes.REMOTE_NODE.values():
        gate.ipcache(address, IpcacheRow(NO_ADDRESS, abi.IDENTITY_KUBE_APISERVER, 0))
    assert is_untouched(gate, remote)


def test_blocks_of_the_mesh_see_the_endpoint(gate: Gate) -> None:
    """An address that nobody has yet, and whose route leads to a node of the mesh."""
    newcomer = Endpoint("10.2.0.99", "fd00:2::99", abi.IDENTITY_WORLD, 0, 0, GATEWAY_MAC, GATEWAY_MAC)
    for flag, block in (("-4", "10.2.0.0/24"), ("-6", "fd00:2::/64")):
        via = nodes.REMOTE_NODE[4 if flag == "-4" else 6]
        gate.place.run("ip", flag, "route", "add", block, "via", via, "dev", "und")
    assert is_untouched(gate, newcomer)


def test_excluded_prefixes_see_the_endpoint(make_gate: MakeGate) -> None:
    """By configuration; not what lies just beside the prefix."""
    prefixes = [codec.prefix_bytes(text) for text in ("192.0.2.0/24", "198.51.100.8/31", "2001:db8::8/127")]
    keys = b"".join(length.to_bytes(4, "little") + address for length, address in prefixes)
    constants = {"config_unmasqueraded": keys, "config_unmasqueraded_count": len(prefixes)}
    assert is_untouched(make_gate(**constants), WORLD)
    beside = Endpoint("198.51.100.10", "2001:db8::a", abi.IDENTITY_WORLD, 0, 0, GATEWAY_MAC, GATEWAY_MAC)
    out(make_gate(**constants), "udp", 1000, dest=beside)


def test_what_leaves_by_another_device_is_the_stacks(gate: Gate) -> None:
    """The node's underlay address would be wrong there."""
    assert is_untouched(gate, OTHER)


def test_last_hop_is_the_stacks(gate: Gate) -> None:
    """It tells the endpoint that its packet came to an end: traceroute sees the node."""
    raw = question(gate, "udp", 1000, ttl=1)
    run = gate.send(CLIENT, raw)
    assert (run.retval, run.packet) == (OK, raw)


def test_denied_flow_takes_no_port(gate: Gate) -> None:
    """Policy comes first."""
    gate.subject(CLIENT, egress=True)
    assert (gate.send(CLIENT, question(gate, "tcp", 1000)).retval, gate.ports()) == (SHOT, 0)


def test_answers_of_an_endpoint_keep_its_address(gate: Gate) -> None:
    """A flow that the world began, by route, is answered by the end that it knows."""
    opening = gate.frame(WORLD, CLIENT, packets.tcp(443, 1000), source_mac=GATEWAY_MAC)
    assert gate.deliver(CLIENT, opening).retval == OK
    raw = gate.frame(CLIENT, WORLD, packets.tcp(1000, 443, packets.SYN | packets.ACK))
    run = gate.send(CLIENT, raw)
    assert (run.retval, run.packet, gate.ports()) == (OK, raw, 0)


@pytest.mark.parametrize("kind", KINDS)
def test_packets_of_the_node_are_its_own(gate: Gate, wall: Gate, kind: str) -> None:
    """Another port, and another far end."""
    _, chosen = out(gate, kind, 1000)
    wall.take_over(gate)
    for raw in (answer(wall, kind, chosen + 1), answer(wall, kind, chosen, source=OTHER)):
        run = wall.receive(raw)
        assert (run.retval, run.packet) == (OK, raw)


def test_connection_to_the_node_is_its_own(gate: Gate, wall: Gate) -> None:
    """Whatever its ports: a first segment answers nothing."""
    _, chosen = out(gate, "tcp", 1000)
    wall.take_over(gate)
    raw = answer(wall, "tcp", chosen, flags=packets.SYN)
    run = wall.receive(raw)
    assert (run.retval, run.packet) == (OK, raw)


def test_answer_to_a_flow_that_ended_is_dropped(gate: Gate, wall: Gate) -> None:
    """It opens no way to the endpoint."""
    _, chosen = out(gate, "udp", 1000)
    wall.take_over(gate)
    wall.expire()
    assert wall.is_dropped(wall.receive(answer(wall, "udp", chosen)), abi.NO_MAPPING_FOR_NAT_MASQUERADE)


class Quote(NamedTuple):
    """What an ICMP error quotes; `ports` of an echo are its id and its number. `l3_sum` is 0 where it is right."""

    source: str
    dest: str
    ports: tuple[int, int]
    l3_sum: int


def quoted(raw: bytes) -> Quote:
    """The quote in a frame."""
    ipv4 = raw[12:14] == b"\x08\x00"
    header_bytes, ends_at, length = (20, 12, 4) if ipv4 else (40, 8, 16)
    header = raw[packets.ETHERNET_BYTES + header_bytes + 8 :]
    source, dest = (header[at : at + length] for at in (ends_at, ends_at + length))
    is_echo = header[9 if ipv4 else 6] in (packets.ICMP, packets.ICMPV6)
    ports = struct.unpack_from(">HH", header, header_bytes + 4 * is_echo)
    texts = (str(ipaddress.ip_address(each)) for each in (source, dest))
    return Quote(*texts, (ports[0], ports[1]), packets.ones_sum(header[:20]) if ipv4 else 0)


@pytest.mark.parametrize("kind", KINDS)
def test_error_about_a_flow_finds_the_endpoint(gate: Gate, wall: Gate, kind: str) -> None:
    """A router reports to the node; the endpoint reads its own packet in the quote. No policy needed."""
    sent = gate.send(CLIENT, question(gate, kind, 1000)).packet
    wall.take_over(gate)
    wall.subject(CLIENT, ingress=True, egress=True)
    protocol, segment = packets.icmp_error(wall.family, sent)
    raw = wall.frame(ROUTER, NODE, segment, protocol, source_mac=GATEWAY_MAC, dest_mac=LOOPBACK_MAC)
    run = wall.receive(raw)
    seen, quote = packets.read(run.packet), quoted(run.packet)
    assert (run.retval, wall.drops()) == (REDIRECT, [])
    assert (seen.source, seen.dest) == (ROUTER.address(wall.family), CLIENT.address(wall.family))
    assert (seen.l3_sum, seen.l4_sum, quote.l3_sum) == (0, 0, 0)
    assert (quote.source, quote.dest) == (CLIENT.address(wall.family), WORLD.address(wall.family))
    assert quote.ports[0] == 1000


def test_error_of_an_endpoint_goes_out_as_the_nodes(gate: Gate) -> None:
    """The endpoint refuses an answer; the world reads in the quote what it had sent."""
    _, chosen = out(gate, "udp", 1000)
    refused = gate.frame(WORLD, CLIENT, packets.udp(443, 1000), packets.UDP)
    gate.subject(CLIENT, ingress=True, egress=True)
    protocol, segment = packets.icmp_error(gate.family, refused)
    run = gate.send(CLIENT, gate.frame(CLIENT, WORLD, segment, protocol))
    seen, quote = packets.read(run.packet), quoted(run.packet)
    assert (run.retval, gate.drops()) == (REDIRECT, [])
    assert (seen.source, seen.dest) == (NODE.address(gate.family), WORLD.address(gate.family))
    assert (seen.l3_sum, seen.l4_sum, quote.l3_sum) == (0, 0, 0)
    assert (quote.source, quote.dest) == (WORLD.address(gate.family), NODE.address(gate.family))
    assert quote.ports == (443, chosen)


def test_error_about_the_nodes_own_flow_is_its_own(gate: Gate, wall: Gate) -> None:
    """Quoting a port that no endpoint has."""
    sent = gate.send(CLIENT, question(gate, "udp", 1000)).packet
    protocol, segment = packets.icmp_error(wall.family, sent)
    raw = wall.frame(ROUTER, NODE, segment, protocol, source_mac=GATEWAY_MAC, dest_mac=LOOPBACK_MAC)
    run = wall.receive(raw)
    assert (run.retval, run.packet) == (OK, raw)


def test_protocol_without_ports_is_not_masqueraded(gate: Gate) -> None:
    """Two endpoints could not be told apart by its answers: dropped, and said so."""
    raw = gate.frame(CLIENT, WORLD, bytes(20), 47)
    assert gate.is_dropped(gate.send(CLIENT, raw), abi.UNSUPPORTED_PROTOCOL_FOR_NAT_MASQUERADE)
