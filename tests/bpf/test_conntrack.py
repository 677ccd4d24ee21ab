"""Flows: what an entry says, what it spares, when it ends, and what a moved policy epoch does to it."""

import time
from pathlib import Path

import pytest

from datapath.abi import types as abi
from tests.bpf import packets
from tests.bpf.node import CLIENT, L3_SHAPE, NS_PER_S, OK, REDIRECT, SERVER, SHOT, WORLD, Endpoint, Node, load

pytestmark = pytest.mark.kernel("bpf_redirect_peer")

SYN, ACK, FIN, RST = packets.SYN, packets.ACK, packets.FIN, packets.RST
SLACK_NS = 20 * NS_PER_S


def forward(node: Node, flags: int = ACK, port: int = 1000) -> int:
    """CLIENT:port -> SERVER:80; the verdict."""
    return node.send(CLIENT, node.frame(CLIENT, SERVER, packets.tcp(port, 80, flags))).retval


def reply(node: Node, flags: int = ACK, port: int = 1000) -> int:
    """SERVER:80 -> CLIENT:port; the verdict."""
    return node.send(SERVER, node.frame(SERVER, CLIENT, packets.tcp(80, port, flags))).retval


def deny_all(node: Node, *, epoch: int) -> None:
    """Nobody may send any more."""
    for each in (CLIENT, SERVER):
        node.subject(each, egress=True, ingress=True)
    node.epoch(epoch)


def echo(node: Node, source: Endpoint, dest: Endpoint, is_reply: bool) -> int:
    """An ICMP echo with id 7; the verdict."""
    protocol = packets.ICMP if node.family == 4 else packets.ICMPV6
    kinds = (packets.ECHO_REQUEST, packets.ECHO_REPLY) if node.family == 4 else (128, 129)
    return node.send(source, node.frame(source, dest, packets.icmp(kinds[is_reply]), protocol)).retval


def test_new_flow_leaves_one_entry(node: Node) -> None:
    """Both ends in order, who began it, under which epoch, and the first packet counted."""
    raw = node.frame(CLIENT, SERVER, packets.tcp(1000, 80))
    node.send(CLIENT, raw)
    [(key, row)] = node.entries()
    assert (key.low, key.high) == tuple(sorted((key.low, key.high)))
    assert (key.low_port, key.high_port, key.protocol) == (1000, 80, packets.TCP)
    assert (row.flags, row.policy_epoch, row.source_identity) == (0, 1, CLIENT.identity)
    assert (row.forward_packets, row.forward_bytes, row.forward_tcp_flags) == (1, len(raw), SYN)


def test_initiator_may_be_the_high_end(node: Node) -> None:
    """SERVER has the higher address."""
    node.send(SERVER, node.frame(SERVER, CLIENT, packets.tcp(1000, 80)))
    [(key, row)] = node.entries()
    assert (key.low_port, key.high_port, row.flags) == (80, 1000, abi.CONNTRACK_INITIATOR_HIGH)


def test_packets_are_counted_by_direction(node: Node) -> None:
    """Two there, one back."""
    forward(node, SYN)
    reply(node, SYN | ACK)
    forward(node, ACK)
    [(_, row)] = node.entries()
    assert (row.forward_packets, row.reply_packets) == (2, 1)
    assert row.forward_bytes == 2 * row.reply_bytes
    assert (row.forward_tcp_flags, row.reply_tcp_flags) == (SYN | ACK, SYN | ACK)
    assert row.flags & abi.CONNTRACK_SEEN_REPLY


def test_established_flow_skips_policy(node: Node) -> None:
    """While the epoch stands, a row that changes is not looked at."""
    forward(node, SYN)
    deny_all(node, epoch=1)
    assert (forward(node), reply(node)) == (REDIRECT, REDIRECT)


def test_moved_epoch_cuts_a_flow_that_is_denied_now(node: Node) -> None:
    """The next forward packet is judged again: it is dropped, and the entry goes."""
    forward(node, SYN)
    deny_all(node, epoch=2)
    node.notifications()
    assert forward(node) == SHOT
    assert node.drops() == [abi.POLICY_DENIED]
    assert node.entries() == []


def test_after_the_cut_replies_are_denied_too(node: Node) -> None:
    """Without its entry a reply is a new flow."""
    forward(node, SYN)
    deny_all(node, epoch=2)
    forward(node)
    assert reply(node) == SHOT


def test_moved_epoch_refreshes_a_flow_that_is_still_allowed(node: Node) -> None:
    """The entry takes the new epoch, and keeps its counters."""
    forward(node, SYN)
    node.epoch(2)
    assert forward(node) == REDIRECT
    [(_, row)] = node.entries()
    assert (row.policy_epoch, row.forward_packets) == (2, 2)


def test_ingress_policy_of_the_receiver_is_judged_again_too(node: Node) -> None:
    """Both directions, as when the flow began."""
    forward(node, SYN)
    node.subject(SERVER, ingress=True)
    node.epoch(2)
    assert forward(node) == SHOT


def test_reply_follows_its_flow(node: Node) -> None:
    """SERVER may begin nothing, CLIENT may receive nothing, yet the answer passes, under a new epoch too."""
    node.subject(SERVER, egress=True)
    node.subject(CLIENT, ingress=True)
    forward(node, SYN)
    assert reply(node, SYN | ACK) == REDIRECT
    node.epoch(2)
    assert reply(node) == REDIRECT


def test_connection_of_the_other_end_is_a_new_flow(node: Node) -> None:
    """A SYN from where only replies may come is judged on its own."""
    node.subject(SERVER, egress=True)
    forward(node, SYN)
    assert reply(node, SYN) == SHOT


def test_expired_entry_is_none(node: Node) -> None:
    """Policy is asked again, and the entry begins anew."""
    forward(node, SYN)
    node.expire()
    assert forward(node, ACK) == REDIRECT
    [(_, row)] = node.entries()
    assert row.forward_packets == 1
    node.expire()
    deny_all(node, epoch=1)
    assert forward(node, ACK) == SHOT


@pytest.mark.parametrize(
    ("sent", "lifetime_s"),
    [
        ([(0, SYN)], abi.CONNTRACK_LIFETIME_SYN),
        ([(0, SYN), (1, SYN | ACK)], abi.CONNTRACK_LIFETIME_SYN),
        ([(0, SYN), (1, SYN | ACK), (0, ACK)], abi.CONNTRACK_LIFETIME_TCP),
        ([(0, ACK)], abi.CONNTRACK_LIFETIME_TCP),
        ([(0, SYN), (0, ACK), (0, FIN | ACK)], abi.CONNTRACK_LIFETIME_TCP),
        ([(0, SYN), (0, ACK), (0, FIN | ACK), (1, FIN | ACK)], abi.CONNTRACK_LIFETIME_CLOSING),
        ([(0, SYN), (1, RST | ACK)], abi.CONNTRACK_LIFETIME_CLOSING),
    ],
    ids=["SYN", "SYN-ACK", "established", "middle", "half closed", "closed", "reset"],
)
def test_lifetime_follows_the_connection(node: Node, sent: list[tuple[int, int]], lifetime_s: int) -> None:
    """What the flags seen so far make of the entry's expiry."""
    for is_reply, flags in sent:
        assert (reply if is_reply else forward)(node, flags) == REDIRECT
    [(_, row)] = node.entries()
    left_ns = row.expires_ns - time.monotonic_ns()
    assert lifetime_s * NS_PER_S - SLACK_NS < left_ns <= lifetime_s * NS_PER_S


def test_lifetimes_are_configured(objects_dir: Path) -> None:
    """Each stage of a connection, and other protocols, as the node was told."""
    names = ("syn", "tcp", "closing", "other")
    constants = {f"config_conntrack_{name}_s": 1000 + place * 1000 for place, name in enumerate(names)}
    stages = ([(0, SYN)], [(0, ACK)], [(0, RST | ACK)], [])
    for lifetime_s, sent in zip(constants.values(), stages, strict=True):
        with load(objects_dir / "endpoint.bpf.o", **constants) as node:
            node.settle()
            for _, flags in sent:
                forward(node, flags)
            if not sent:
                node.send(CLIENT, node.frame(CLIENT, SERVER, packets.udp(1000, 53), packets.UDP))
            left_ns = node.entries()[0].row.expires_ns - time.monotonic_ns()
            assert lifetime_s * NS_PER_S - SLACK_NS < left_ns <= lifetime_s * NS_PER_S


def test_other_protocols_live_a_fixed_time(node: Node) -> None:
    """UDP has no end that could be seen."""
    node.send(CLIENT, node.frame(CLIENT, SERVER, packets.udp(1000, 53), packets.UDP))
    left_ns = node.entries()[0].row.expires_ns - time.monotonic_ns()
    assert left_ns > abi.CONNTRACK_LIFETIME_OTHER * NS_PER_S - SLACK_NS


@pytest.mark.parametrize("ending", [FIN | ACK, RST], ids=["FIN", "RST"])
def test_same_ports_again_are_a_new_flow(node: Node, ending: int) -> None:
    """A SYN on an entry that is closing replaces it."""
    forward(node, SYN)
    forward(node, ending)
    forward(node, SYN)
    [(_, row)] = node.entries()
    assert (row.forward_packets, row.flags, row.forward_tcp_flags) == (1, 0, SYN)


def test_same_ports_again_are_judged(node: Node) -> None:
    """The new flow has no share in the old verdict."""
    forward(node, SYN)
    forward(node, RST)
    deny_all(node, epoch=1)
    assert forward(node, SYN) == SHOT


def test_repeated_syn_is_the_same_flow(node: Node) -> None:
    """A retransmission does not begin anew."""
    forward(node, SYN)
    forward(node, SYN)
    assert node.entries()[0].row.forward_packets == 2


def test_middle_of_a_connection_is_judged_as_new(node: Node) -> None:
    """A flow whose entry was lost goes on, if policy lets it."""
    assert forward(node, ACK) == REDIRECT
    deny_all(node, epoch=1)
    assert forward(node, ACK, port=1001) == SHOT


def test_echo_reply_follows_its_request(node: Node) -> None:
    """The answer passes where the answering end may send nothing."""
    node.subject(SERVER, egress=True)
    assert (echo(node, CLIENT, SERVER, False), echo(node, SERVER, CLIENT, True)) == (REDIRECT, REDIRECT)
    assert len(node.entries()) == 1


def test_echo_request_of_the_other_end_is_no_reply(node: Node) -> None:
    """An equal id does not make a request an answer."""
    node.subject(SERVER, egress=True)
    echo(node, CLIENT, SERVER, False)
    assert echo(node, SERVER, CLIENT, False) == SHOT


def test_icmp_of_another_type_is_of_no_flow(node: Node) -> None:
    """A message without an id does not pass as the echo whose id is 0, in either direction."""
    protocol, request = (packets.ICMP, 8) if node.family == 4 else (packets.ICMPV6, 128)
    node.send(CLIENT, node.frame(CLIENT, SERVER, packets.icmp(request, echo_id=0), protocol))
    node.subject(CLIENT, egress=True)
    node.subject(SERVER, egress=True)
    for source, dest in ((CLIENT, SERVER), (SERVER, CLIENT)):
        raw = node.frame(source, dest, packets.icmp(request + 20, echo_id=0), protocol)
        assert node.send(source, raw).retval == SHOT
    raw = node.frame(SERVER, CLIENT, packets.icmp(request, echo_id=0), protocol)
    assert node.send(SERVER, raw).retval == SHOT


def test_echo_reply_without_request_leaves_no_entry(node: Node) -> None:
    """It may pass by policy, but opens no way for requests."""
    assert echo(node, SERVER, CLIENT, True) == REDIRECT
    assert node.entries() == []


def test_flows_to_the_world_are_tracked(node: Node) -> None:
    """What the host stack routes has an entry, so that its replies find it."""
    assert node.send(CLIENT, node.frame(CLIENT, WORLD, packets.tcp(1000, 443))).retval == OK
    assert len(node.entries()) == 1


def test_denied_flow_leaves_no_entry(node: Node) -> None:
    """Nothing to follow for its replies."""
    node.subject(SERVER, ingress=True, shapes=L3_SHAPE)
    assert forward(node, SYN) == SHOT
    assert node.entries() == []
