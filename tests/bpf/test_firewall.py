"""Host policies: what the node itself may send and be sent, at the underlay device and at its endpoints' devices."""

import socket
import struct

import pytest

from datapath.abi import types as abi
from datapath.codec import address_bytes
from datapath.tables import NO_ADDRESS, IpcacheRow
from tests.bpf import packets
from tests.bpf.gate import NODE, ROUTER, Gate
from tests.bpf.node import (
    CLIENT,
    GATEWAY_MAC,
    HOST,
    L3_SHAPE,
    LOOPBACK_MAC,
    OK,
    PORT_SHAPE,
    REDIRECT,
    REMOTE,
    SERVER,
    SHOT,
    WORLD,
    Endpoint,
    Node,
)

pytestmark = pytest.mark.kernel("bpf_redirect_peer")

SYN, ACK = packets.SYN, packets.ACK
INGRESS, EGRESS = abi.POLICY_INGRESS, abi.POLICY_EGRESS


def come(node: Node, segment: bytes, source: Endpoint = REMOTE, protocol: int = 0, own: Endpoint = HOST) -> int:
    """source -> this node over the network; the verdict."""
    raw = node.frame(source, own, segment, protocol or node.protocol, source_mac=GATEWAY_MAC, dest_mac=LOOPBACK_MAC)
    return node.run("from_network_guarded", raw).retval


def leave(node: Node, segment: bytes, dest: Endpoint = REMOTE, protocol: int = 0, own: Endpoint = HOST) -> int:
    """This node -> dest over the network; the verdict."""
    raw = node.frame(own, dest, segment, protocol or node.protocol, source_mac=LOOPBACK_MAC, dest_mac=GATEWAY_MAC)
    return node.run("to_network", raw).retval


def close(node: Node, *, ingress: bool = True, egress: bool = False, shapes: int = 0, flags: int = 0) -> None:
    """Host policies that allow nothing in the directions named."""
    node.subject(HOST, ingress=ingress, egress=egress, shapes=shapes, flags=flags)


def allow_port(node: Node, direction: int, port: int, remote: int = 0) -> None:
    """One row of the host's."""
    node.policy(HOST, direction, remote, protocol=packets.TCP, port=port, prefix=16)


def test_without_a_row_all_passes_and_is_tracked(network: Node) -> None:
    """The programs stand before the policy does: what goes through them then is known when it comes."""
    assert (come(network, packets.tcp(1000, 22)), leave(network, packets.tcp(1000, 2379))) == (OK, OK)
    assert len(network.entries()) == 2


def test_default_deny_of_what_comes_in(network: Node) -> None:
    """Only what a row allows, by identity and port; the verdict names no endpoint."""
    close(network, shapes=PORT_SHAPE)
    allow_port(network, INGRESS, 22, REMOTE.identity)
    assert come(network, packets.tcp(1000, 22)) == OK
    assert [(each.endpoint_id, each.dest_identity) for each in network.notifications()] == [(0, HOST.identity)]
    assert (come(network, packets.tcp(1000, 23)), come(network, packets.tcp(1000, 22), WORLD)) == (SHOT, SHOT)
    assert network.drops() == [abi.POLICY_DENIED] * 2


def test_default_deny_of_what_goes_out(network: Node) -> None:
    """The other direction, likewise."""
    close(network, ingress=False, egress=True, shapes=PORT_SHAPE)
    allow_port(network, EGRESS, 443, WORLD.identity)
    assert leave(network, packets.tcp(1000, 443), WORLD) == OK
    assert (leave(network, packets.tcp(1000, 443)), leave(network, packets.tcp(1000, 80), WORLD)) == (SHOT, SHOT)


def test_deny_row_wins(network: Node) -> None:
    """Where nothing is enforced too."""
    close(network, ingress=False, shapes=PORT_SHAPE)
    network.policy(
        HOST, INGRESS, 0, protocol=packets.TCP, port=22, prefix=16, verdict=abi.POLICY_VERDICT_DENY
    )
    assert (come(network, packets.tcp(1000, 22)), come(network, packets.tcp(1000, 23))) == (SHOT, OK)


def test_replies_pass_both_ways(network: Node) -> None:
    """Nothing may begin but one way, and answers come back."""
    close(network, ingress=True, egress=False)
    assert (leave(network, packets.tcp(1000, 80)), come(network, packets.tcp(80, 1000, SYN | ACK))) == (OK, OK)
    close(network, ingress=False, egress=True)
    assert (come(network, packets.tcp(2000, 22)), leave(network, packets.tcp(22, 2000, SYN | ACK))) == (OK, OK)


def test_moved_epoch_cuts_with_the_next_packet(network: Node) -> None:
    """Of either direction."""
    for first in (leave, come):
        leave(network, packets.tcp(1000, 80))
        close(network, egress=True)
        network.epoch(network.entries()[0].row.policy_epoch + 1)
        segment = packets.tcp(80, 1000, ACK) if first is come else packets.tcp(1000, 80, ACK)
        assert first(network, segment) == SHOT
        assert network.entries() == []
        close(network, ingress=False)


def test_audit_lets_pass_and_says_what_it_would_deny(network: Node) -> None:
    """How to turn the firewall on without being locked out."""
    close(network, flags=abi.POLICY_SUBJECT_AUDIT)
    assert come(network, packets.tcp(1000, 22)) == OK
    [told] = network.notifications()
    assert (told.type, told.verdict, told.drop_reason) == (
        abi.NOTIFICATION_VERDICT, abi.VERDICT_AUDIT, abi.POLICY_DENIED,
    )  # fmt: skip


def test_link_is_never_cut(network: Node) -> None:
    """ARP, and neighbour discovery to and from any address."""
    close(network, egress=True)
    arp = packets.ethernet(LOOPBACK_MAC, GATEWAY_MAC, packets.ARP, bytes(46))
    assert [network.run(each, arp).retval for each in ("from_network_guarded", "to_network")] == [OK, OK]
    if network.family == 6:
        for kind in (133, 134, 135, 136, 137):
            segment = packets.icmp(kind, echo_id=0)
            assert come(network, segment, protocol=packets.ICMPV6) == OK
            assert leave(network, segment, protocol=packets.ICMPV6) == OK


def test_what_passes_through_is_not_the_nodes(network: Node) -> None:
    """Neither end is this node's: no row of its own is asked."""
    close(network, egress=True)
    for source, dest in ((REMOTE, WORLD), (CLIENT, WORLD)):
        raw = network.frame(source, dest, packets.tcp(1000, 80), source_mac=GATEWAY_MAC, dest_mac=LOOPBACK_MAC)
        assert [network.run(each, raw).retval for each in ("from_network_guarded", "to_network")] == [OK, OK]


def test_endpoints_are_served_as_ever(network: Node) -> None:
    """The guarded program does for endpoints what the other one does."""
    close(network)
    raw = network.frame(REMOTE, SERVER, packets.tcp(1000, 80), source_mac=GATEWAY_MAC, dest_mac=LOOPBACK_MAC)
    assert network.run("from_network_guarded", raw).retval == REDIRECT


def test_nobody_on_the_network_is_this_node(network: Node) -> None:
    """A forged source."""
    network.ipcache(HOST.address(network.family), IpcacheRow(NO_ADDRESS, HOST.identity, 0))
    assert come(network, packets.tcp(1000, 22), HOST) == SHOT


def test_protocols_without_ports_are_judged_by_their_number(network: Node) -> None:
    """GRE is dropped where it is denied, and no sooner."""
    gre = 47
    assert come(network, bytes(8), protocol=gre) == OK
    network.epoch(2)
    close(network, shapes=abi.POLICY_SHAPE_PORT_0)
    assert come(network, bytes(8), protocol=gre) == SHOT
    network.policy(HOST, INGRESS, REMOTE.identity, protocol=gre)
    assert come(network, bytes(8), protocol=gre) == OK


def fragments(node: Node, segment: bytes) -> tuple[bytes, bytes]:
    """The first fragment of a packet to this node, with the segment, and a later one."""
    ends = packets.packed(REMOTE.address(node.family)), packets.packed(HOST.address(node.family))
    made = []
    for offset, payload in ((0, segment), (64, bytes(8))):
        if node.family == 4:
            field = 0x2000 if not offset else offset // 8
            l3 = packets.ipv4(*ends, packets.UDP, payload, fragment=field)
        else:
            header = struct.pack(">BBHI", packets.UDP, 0, offset | (not offset), 7)
            l3 = packets.ipv6(*ends, packets.FRAGMENT, header + payload)
        kind = packets.IPV4 if node.family == 4 else packets.IPV6
        made.append(packets.ethernet(LOOPBACK_MAC, GATEWAY_MAC, kind, l3))
    return made[0], made[1]


def test_first_fragment_is_judged(network: Node) -> None:
    """By its ports; the others have none and pass: without the first they come to nothing."""
    first, later = fragments(network, packets.udp(1000, 53))
    assert network.run("from_network_guarded", first).retval == OK
    assert [each.key.high_port + each.key.low_port for each in network.entries()] == [1053]
    network.epoch(2)
    close(network)
    assert [network.run("from_network_guarded", each).retval for each in (first, later)] == [SHOT, OK]


def test_masqueraded_flows_are_not_the_nodes(gate: Gate, wall: Gate) -> None:
    """An endpoint's packet under the node's address has been judged by the endpoint's policy."""
    run = gate.send(CLIENT, gate.frame(CLIENT, WORLD, packets.tcp(1000, 80)))
    wall.take_over(gate)
    close(wall, egress=True)
    seen = packets.read(run.packet)
    assert seen.source == NODE.address(wall.family)
    assert wall.run("to_network", run.packet).retval == OK
    assert leave(wall, packets.tcp(seen.source_port ^ 1, 80), WORLD, own=NODE) == SHOT


def add_router(wall: Gate) -> None:
    """The other end is in the node's own namespace."""
    wall.place.add_address(ROUTER.address(wall.family), "lo")


def connected(family: int, own_listens: bool, kind: socket.SocketKind) -> tuple[list[socket.socket], int, int]:
    """A connection between NODE and ROUTER, both of this namespace: sockets, NODE's port, ROUTER's port."""
    af = socket.AF_INET if family == 4 else socket.AF_INET6
    ends = [ROUTER.address(family), NODE.address(family)]
    server, client = (ends[::-1] if own_listens else ends)
    made = [socket.socket(af, kind), socket.socket(af, kind)]
    made[0].bind((server, 0))
    made[1].bind((client, 0))
    if kind == socket.SOCK_STREAM:
        made[0].listen()
    made[1].connect(made[0].getsockname())
    if kind == socket.SOCK_STREAM:
        made.append(made[0].accept()[0])
        if not own_listens:
            made.pop(0).close()
    ports = {each.getsockname()[0]: each.getsockname()[1] for each in made}
    return made, ports[NODE.address(family)], ports[ROUTER.address(family)]


@pytest.mark.parametrize("own_listens", [False, True], ids=["client", "server"])
def test_connection_from_before_the_firewall_goes_on(wall: Gate, own_listens: bool) -> None:
    """No entry, yet the node's socket tells who began it: judged is that direction, whichever end is heard first."""
    add_router(wall)
    made, own, far = wall.place.call(connected, wall.family, own_listens, socket.SOCK_STREAM)
    try:
        for direction in (come, leave):
            ports = (far, own) if direction is come else (own, far)
            segment = packets.tcp(*ports, ACK)
            close(wall, ingress=not own_listens, egress=own_listens)
            assert direction(wall, segment, ROUTER, own=NODE) == OK
            [(key, row)] = wall.entries()
            initiator = key.high if row.flags & abi.CONNTRACK_INITIATOR_HIGH else key.low
            assert (initiator == address_bytes(NODE.address(wall.family))) is not own_listens
            wall.maps["conntrack"].delete([each for each, _ in wall.maps["conntrack"].dump().items()])
            close(wall, ingress=own_listens, egress=not own_listens)
            assert direction(wall, segment, ROUTER, own=NODE) == SHOT
    finally:
        for each in made:
            each.close()


def test_connected_datagram_socket_tells_too(wall: Gate) -> None:
    """An answer that is under way while the firewall is turned on."""
    add_router(wall)
    made, own, far = wall.place.call(connected, wall.family, False, socket.SOCK_DGRAM)
    try:
        close(wall)
        assert come(wall, packets.udp(far, own), ROUTER, packets.UDP, NODE) == OK
        assert come(wall, packets.udp(far ^ 1, own), ROUTER, packets.UDP, NODE) == SHOT
    finally:
        for each in made:
            each.close()


def test_middle_of_a_connection_without_a_socket_is_judged_as_new(wall: Gate) -> None:
    """A segment that claims to belong to something opens nothing."""
    close(wall)
    assert come(wall, packets.tcp(1000, 22, ACK), ROUTER, own=NODE) == SHOT


def test_endpoint_needs_a_row_to_reach_its_node(node: Node) -> None:
    """Ingress of the host is asked at the endpoint's device; without host policies nobody asks."""
    raw = node.frame(CLIENT, HOST, packets.tcp(1000, 80))
    assert node.send(CLIENT, raw).retval == OK
    node.epoch(2)
    close(node, shapes=L3_SHAPE)
    assert node.is_dropped(node.send(CLIENT, raw), abi.POLICY_DENIED)
    node.policy(HOST, INGRESS, CLIENT.identity)
    assert node.send(CLIENT, raw).retval == OK


def test_node_needs_a_row_to_reach_its_endpoint(node: Node) -> None:
    """Egress of the host; its way into the endpoint is free as ever, and the answer passes."""
    node.subject(SERVER, ingress=True, egress=True)
    close(node, ingress=False, egress=True, shapes=L3_SHAPE)
    raw = node.frame(HOST, SERVER, packets.tcp(1000, 80))
    assert node.is_dropped(node.deliver(SERVER, raw), abi.POLICY_DENIED)
    node.policy(HOST, EGRESS, SERVER.identity)
    assert node.deliver(SERVER, raw).retval == OK
    assert node.send(SERVER, node.frame(SERVER, HOST, packets.tcp(80, 1000, SYN | ACK))).retval == OK


def test_neighbour_discovery_of_an_endpoint_reaches_its_node(node: Node) -> None:
    """To an address that is not of the link, as a probe of a known neighbour is."""
    close(node)
    if node.family == 6:
        raw = node.frame(CLIENT, HOST, packets.icmp(135, echo_id=0), packets.ICMPV6)
        assert node.send(CLIENT, raw).retval == OK
