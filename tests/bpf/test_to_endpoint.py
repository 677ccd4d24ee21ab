"""What the node's own stack sends to an endpoint."""

import pytest

from datapath.abi import types as abi
from datapath.tables import PolicySubjectKey
from tests.bpf import packets
from tests.bpf.node import (
    CLIENT,
    FRONTEND,
    HOST,
    L3_SHAPE,
    OK,
    PORT_SHAPE,
    REMOTE,
    SERVER,
    SHOT,
    WORLD,
    Endpoint,
    Node,
)

pytestmark = pytest.mark.kernel("bpf_redirect_peer")


def arrive(node: Node, source: Endpoint, segment: bytes, dest: Endpoint = SERVER) -> int:
    """source -> dest through the host stack; the verdict."""
    return node.deliver(dest, node.frame(source, dest, segment)).retval


def test_host_may_connect_without_a_row(node: Node) -> None:
    """Probes of the node pass whatever is enforced, and where the endpoint's policy is not known yet."""
    node.subject(SERVER, ingress=True)
    assert arrive(node, HOST, packets.tcp(1000, 80)) == OK
    node.remove("policy_subjects", PolicySubjectKey(SERVER.identity))
    assert arrive(node, HOST, packets.tcp(1001, 80)) == OK


@pytest.mark.parametrize("remote", [HOST.identity, 0], ids=["host", "everyone"])
def test_deny_row_keeps_the_host_out(node: Node, remote: int) -> None:
    """An explicit deny wins over the host's own way in, for what the row names only."""
    node.subject(SERVER, shapes=PORT_SHAPE)
    node.policy(SERVER, abi.POLICY_INGRESS, remote, protocol=6, port=80, prefix=16, verdict=abi.POLICY_VERDICT_DENY)
    assert arrive(node, HOST, packets.tcp(1000, 80)) == SHOT
    assert node.drops() == [abi.POLICY_DENY]
    assert arrive(node, HOST, packets.tcp(1000, 81)) == OK


def test_moved_epoch_cuts_a_host_that_is_denied_now(node: Node) -> None:
    """A connection of the host ends with the deny row that comes."""
    arrive(node, HOST, packets.tcp(1000, 80))
    node.subject(SERVER, shapes=L3_SHAPE)
    node.policy(SERVER, abi.POLICY_INGRESS, HOST.identity, verdict=abi.POLICY_VERDICT_DENY)
    node.epoch(2)
    assert arrive(node, HOST, packets.tcp(1000, 80, packets.ACK)) == SHOT
    assert node.entries() == []


def test_answer_to_the_host_follows(node: Node) -> None:
    """The endpoint may send nothing of its own, and answers the host all the same."""
    node.subject(SERVER, ingress=True, egress=True)
    arrive(node, HOST, packets.tcp(1000, 80))
    raw = node.frame(SERVER, HOST, packets.tcp(80, 1000, packets.SYN | packets.ACK))
    assert node.send(SERVER, raw).retval == OK


@pytest.mark.parametrize("family", [6], indirect=True)
def test_link_local_source_is_the_host(node: Node) -> None:
    """The other end of the link is this node."""
    node.subject(SERVER, ingress=True)
    raw = packets.frame(
        "fe80::1", SERVER.ipv6, packets.TCP, packets.tcp(1000, 80), source_mac=HOST.mac, dest_mac=SERVER.mac
    )
    assert node.deliver(SERVER, raw).retval == OK


@pytest.mark.parametrize("source", [CLIENT, REMOTE, WORLD], ids=["local", "remote", "world"])
def test_others_need_a_row(node: Node, source: Endpoint) -> None:
    """Ingress policy by the source's identity."""
    node.subject(SERVER, ingress=True, shapes=L3_SHAPE)
    assert arrive(node, source, packets.tcp(1000, 80)) == SHOT
    assert node.drops() == [abi.POLICY_DENIED]
    node.policy(SERVER, abi.POLICY_INGRESS, source.identity)
    assert arrive(node, source, packets.tcp(1000, 80)) == OK


def test_answer_of_the_host_finds_its_flow(node: Node) -> None:
    """An endpoint that nobody may connect to gets the answers to what it asked the world through the host."""
    node.subject(CLIENT, ingress=True)
    node.send(CLIENT, node.frame(CLIENT, WORLD, packets.tcp(1000, 443)))
    assert arrive(node, WORLD, packets.tcp(443, 1000, packets.SYN | packets.ACK), CLIENT) == OK


def test_answer_of_a_backend_on_the_host_comes_from_the_frontend(node: Node) -> None:
    """The host serves a frontend: its answers are translated on the way to the client."""
    node.service([(HOST, 8080)], packets.TCP)
    node.send(CLIENT, node.frame(CLIENT, FRONTEND, packets.tcp(1000, 80)))
    run = node.deliver(CLIENT, node.frame(HOST, CLIENT, packets.tcp(8080, 1000, packets.SYN | packets.ACK)))
    seen = packets.read(run.packet)
    assert (run.retval, seen.source, seen.source_port) == (OK, FRONTEND.address(node.family), 80)
    assert (seen.l3_sum, seen.l4_sum) == (0, 0)


def test_packet_is_not_changed(node: Node) -> None:
    """The stack has already written MACs and TTL."""
    raw = node.frame(HOST, SERVER, packets.tcp(1000, 80))
    assert node.deliver(SERVER, raw).packet == raw


def test_moved_epoch_cuts_what_is_denied_now(node: Node) -> None:
    """The next packet is judged again, and the entry goes."""
    arrive(node, WORLD, packets.tcp(1000, 80))
    node.subject(SERVER, ingress=True)
    node.epoch(2)
    assert arrive(node, WORLD, packets.tcp(1000, 80, packets.ACK)) == SHOT
    assert node.entries() == []


def test_moved_epoch_refreshes_what_is_still_allowed(node: Node) -> None:
    """The entry takes the new epoch."""
    arrive(node, WORLD, packets.tcp(1000, 80))
    node.epoch(2)
    assert arrive(node, WORLD, packets.tcp(1000, 80, packets.ACK)) == OK
    assert [(row.policy_epoch, row.forward_packets) for _, row in node.entries()] == [(2, 2)]


def test_arp_and_neighbour_discovery_pass(node: Node) -> None:
    """The link's own talk has no policy."""
    node.subject(SERVER, ingress=True)
    arp = packets.ethernet(SERVER.mac, SERVER.host_mac, packets.ARP, bytes(28))
    solicitation = packets.frame(
        "fe80::1",
        "ff02::1:ff00:6",
        packets.ICMPV6,
        packets.icmp(135),
        source_mac=HOST.mac,
        dest_mac=SERVER.mac,
    )
    assert [node.deliver(SERVER, each).retval for each in (arp, solicitation)] == [OK, OK]
