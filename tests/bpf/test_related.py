"""ICMP errors pass where the flow passes whose packet they quote."""

import pytest

from datapath.abi import types as abi
from tests.bpf import packets
from tests.bpf.node import (
    CLIENT,
    FRONTEND,
    GATEWAY_MAC,
    HOST,
    LOOPBACK_MAC,
    OK,
    REDIRECT,
    REMOTE,
    SERVER,
    SHOT,
    WORLD,
    Endpoint,
    Node,
)

pytestmark = pytest.mark.kernel("bpf_redirect_peer")


def error(node: Node, source: Endpoint, dest: Endpoint, quoted: bytes, **named: bytes) -> bytes:
    """A frame: source tells dest that this frame did not arrive."""
    protocol, segment = packets.icmp_error(node.family, quoted)
    return node.frame(source, dest, segment, protocol, **named)


def lock(node: Node) -> None:
    """From now on nobody may begin anything."""
    for each in (CLIENT, SERVER):
        node.subject(each, ingress=True, egress=True)


def test_error_about_a_flow_passes(node: Node) -> None:
    """The server's stack refuses a datagram, and may say so."""
    question = node.frame(CLIENT, SERVER, packets.udp(1000, 53), packets.UDP)
    node.send(CLIENT, question)
    lock(node)
    assert node.send(SERVER, error(node, SERVER, CLIENT, question)).retval == REDIRECT
    assert len(node.entries()) == 1


def test_error_about_an_echo_passes(node: Node) -> None:
    """A quoted request is found by its id."""
    protocol, kind = (packets.ICMP, 8) if node.family == 4 else (packets.ICMPV6, 128)
    question = node.frame(CLIENT, SERVER, packets.icmp(kind), protocol)
    node.send(CLIENT, question)
    lock(node)
    assert node.send(SERVER, error(node, SERVER, CLIENT, question)).retval == REDIRECT


def test_error_about_a_service_flow_passes(node: Node) -> None:
    """What the backend quotes is the flow between client and backend."""
    node.service([(SERVER, 53)], packets.UDP)
    seen = node.send(CLIENT, node.frame(CLIENT, FRONTEND, packets.udp(1000, 80), packets.UDP)).packet
    lock(node)
    assert node.send(SERVER, error(node, SERVER, CLIENT, seen)).retval == REDIRECT


def test_error_about_no_flow_is_judged(node: Node) -> None:
    """Nobody asked, or the entry has expired: policy decides."""
    question = node.frame(CLIENT, SERVER, packets.udp(1000, 53), packets.UDP)
    lock(node)
    assert node.send(SERVER, error(node, SERVER, CLIENT, question)).retval == SHOT
    node.notifications()
    for each in (CLIENT, SERVER):
        node.subject(each)
    node.send(CLIENT, question)
    node.expire()
    lock(node)
    assert node.is_dropped(node.send(SERVER, error(node, SERVER, CLIENT, question)), abi.POLICY_DENIED)


def test_endpoint_has_no_say_in_the_flows_of_others(node: Node) -> None:
    """SERVER quotes what CLIENT sent to the world."""
    question = node.frame(CLIENT, WORLD, packets.udp(1000, 53), packets.UDP)
    node.send(CLIENT, question)
    lock(node)
    assert node.send(SERVER, error(node, SERVER, CLIENT, question)).retval == SHOT


def test_error_goes_only_to_who_sent_what_it_quotes(node: Node) -> None:
    """A flow between CLIENT and SERVER opens no way to the host."""
    question = node.frame(CLIENT, SERVER, packets.udp(1000, 53), packets.UDP)
    node.send(CLIENT, question)
    lock(node)
    assert node.send(SERVER, error(node, SERVER, HOST, question)).retval == SHOT


def test_quote_that_ends_early_is_judged(node: Node) -> None:
    """Half a quoted header names no flow."""
    question = node.frame(CLIENT, SERVER, packets.udp(1000, 53), packets.UDP)
    node.send(CLIENT, question)
    lock(node)
    assert node.send(SERVER, error(node, SERVER, CLIENT, question[:40])).retval == SHOT


def test_other_icmp_that_quotes_is_judged(node: Node) -> None:
    """Only errors are errors: an echo request with the same bytes is none."""
    question = node.frame(CLIENT, SERVER, packets.udp(1000, 53), packets.UDP)
    node.send(CLIENT, question)
    lock(node)
    protocol, segment = packets.icmp_error(node.family, question)
    echo = bytes([8 if node.family == 4 else 128]) + segment[1:]
    assert node.send(SERVER, node.frame(SERVER, CLIENT, echo, protocol)).retval == SHOT


def test_router_may_report_about_a_flow(node: Node) -> None:
    """Through the host stack: neither end of the flow sent it."""
    question = node.frame(CLIENT, REMOTE, packets.udp(1000, 53), packets.UDP)
    node.send(CLIENT, question)
    lock(node)
    assert node.deliver(CLIENT, error(node, WORLD, CLIENT, question)).retval == OK


def test_router_on_the_network_may_report_about_a_flow(network: Node) -> None:
    """The same at the underlay: SERVER answered REMOTE, and a router in between reports."""
    macs = {"source_mac": GATEWAY_MAC, "dest_mac": LOOPBACK_MAC}
    question = network.frame(REMOTE, SERVER, packets.udp(1000, 53), packets.UDP, **macs)
    network.receive(question)
    lock(network)
    answer = network.frame(SERVER, REMOTE, packets.udp(53, 1000), packets.UDP)
    assert network.receive(error(network, WORLD, SERVER, answer, **macs)).retval == REDIRECT
    assert network.receive(error(network, WORLD, CLIENT, answer, **macs)).retval == SHOT
