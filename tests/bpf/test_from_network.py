"""What comes in from the other nodes."""

import pytest

from datapath import codec, conntrack
from datapath.abi import types as abi
from datapath.tables import NO_ADDRESS, IpcacheRow
from tests.bpf import packets
from tests.bpf.node import (
    CLIENT,
    FRONTEND,
    GATEWAY_MAC,
    HOST,
    L3_SHAPE,
    LOOPBACK_MAC,
    NS_PER_S,
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


def arriving(node: Node, source: Endpoint, dest: Endpoint, segment: bytes, **named: int) -> bytes:
    """A frame for this node's own MAC, which in a test run is the loopback device's."""
    return node.frame(source, dest, segment, source_mac=GATEWAY_MAC, dest_mac=LOOPBACK_MAC, **named)


def test_delivered_to_the_endpoint(network: Node) -> None:
    """Redirected; MACs of the endpoint's veth, TTL one less, checksums right."""
    run = network.receive(arriving(network, REMOTE, SERVER, packets.tcp(1000, 80)))
    seen = packets.read(run.packet)
    assert (run.retval, seen.dest_mac, seen.source_mac, seen.ttl) == (
        REDIRECT,
        SERVER.mac,
        SERVER.host_mac,
        63,
    )
    assert (seen.l3_sum, seen.l4_sum) == (0, 0)


@pytest.mark.parametrize("dest", [HOST, REMOTE, WORLD], ids=["host", "other node", "world"])
def test_what_is_for_nobody_here_is_the_stacks(network: Node, dest: Endpoint) -> None:
    """Untouched, untracked."""
    raw = arriving(network, REMOTE, dest, packets.tcp(1000, 80))
    run = network.receive(raw)
    assert (run.retval, run.packet, network.entries()) == (OK, raw, [])


def test_malformed_packets_for_others_are_the_stacks(network: Node) -> None:
    """Only an endpoint's packets are refused here."""
    raw = arriving(network, REMOTE, HOST, packets.tcp(1000, 80)[:10])
    assert network.receive(raw).retval == OK
    assert network.notifications() == []


def test_malformed_packet_for_an_endpoint_is_dropped(network: Node) -> None:
    """The same packet, to an endpoint."""
    raw = arriving(network, REMOTE, SERVER, packets.tcp(1000, 80)[:10])
    assert network.is_dropped(network.receive(raw), abi.CT_TRUNCATED_OR_INVALID_HEADER)


def test_other_ethertypes_are_the_stacks(network: Node) -> None:
    """ARP, and what we do not know."""
    for kind in (packets.ARP, 0x88CC):
        raw = packets.ethernet(LOOPBACK_MAC, GATEWAY_MAC, kind, bytes(46))
        assert network.receive(raw).retval == OK


def test_frame_for_another_mac_is_the_stacks(network: Node) -> None:
    """A switch may flood; the stack drops what is not ours."""
    raw = network.frame(REMOTE, SERVER, packets.tcp(1000, 80), source_mac=GATEWAY_MAC, dest_mac=SERVER.host_mac)
    assert (network.receive(raw).retval, network.entries()) == (OK, [])


@pytest.mark.parametrize("source", [REMOTE, WORLD], ids=["remote", "world"])
def test_ingress_policy_by_the_source(network: Node, source: Endpoint) -> None:
    """The identity comes from the ipcache; without a row it is the world."""
    network.subject(SERVER, ingress=True, shapes=L3_SHAPE)
    raw = arriving(network, source, SERVER, packets.tcp(1000, 80))
    assert network.is_dropped(network.receive(raw), abi.POLICY_DENIED)
    network.policy(SERVER, abi.POLICY_INGRESS, source.identity)
    assert network.receive(raw).retval == REDIRECT


def test_network_does_not_pass_for_the_host(network: Node) -> None:
    """This node's identity is refused as a source from outside."""
    network.ipcache(HOST.address(network.family), IpcacheRow(NO_ADDRESS, abi.IDENTITY_HOST, 0))
    raw = arriving(network, HOST, SERVER, packets.tcp(1000, 80))
    assert network.is_dropped(network.receive(raw), abi.INVALID_SOURCE_IP)


def test_moved_epoch_cuts_what_is_denied_now(network: Node) -> None:
    """The receiver's node judges again too."""
    network.receive(arriving(network, REMOTE, SERVER, packets.tcp(1000, 80)))
    network.subject(SERVER, ingress=True)
    network.epoch(2)
    assert network.receive(arriving(network, REMOTE, SERVER, packets.tcp(1000, 80, packets.ACK))).retval == SHOT
    assert network.entries() == []


def test_moved_epoch_refreshes_what_is_still_allowed(network: Node) -> None:
    """The entry takes the new epoch."""
    network.receive(arriving(network, REMOTE, SERVER, packets.tcp(1000, 80)))
    network.epoch(2)
    network.receive(arriving(network, REMOTE, SERVER, packets.tcp(1000, 80, packets.ACK)))
    assert [(row.policy_epoch, row.forward_packets) for _, row in network.entries()] == [(2, 2)]


def test_established_flow_skips_policy(network: Node) -> None:
    """While the epoch stands."""
    network.receive(arriving(network, REMOTE, SERVER, packets.tcp(1000, 80)))
    network.subject(SERVER, ingress=True)
    assert network.receive(arriving(network, REMOTE, SERVER, packets.tcp(1000, 80, packets.ACK))).retval == REDIRECT


def test_reply_of_a_remote_backend_comes_from_the_frontend(network: Node) -> None:
    """CLIENT asked FRONTEND:80, which is REMOTE:8080: the answer is translated, and needs no ingress row."""
    client, backend, frontend = (
        codec.address_bytes(each.address(network.family)) for each in (CLIENT, REMOTE, FRONTEND)
    )
    assert client < backend
    key = conntrack.ConntrackKey(client, backend, 1000, 8080, packets.TCP)
    row = conntrack.ConntrackRow(
        2**62 // NS_PER_S * NS_PER_S,
        1,
        0,
        0,
        0,
        0,
        frontend,
        80,
        abi.CONNTRACK_REVERSE_DNAT,
        CLIENT.identity,
        0,
        0,
    )
    network.put_entry(conntrack.ConntrackEntry(key, row))
    network.subject(CLIENT, ingress=True)
    run = network.receive(arriving(network, REMOTE, CLIENT, packets.tcp(8080, 1000, packets.SYN | packets.ACK)))
    seen = packets.read(run.packet)
    assert (run.retval, seen.source, seen.source_port) == (REDIRECT, FRONTEND.address(network.family), 80)
    assert (seen.dest_mac, seen.ttl, seen.l3_sum, seen.l4_sum) == (CLIENT.mac, 63, 0, 0)


def test_ttl_that_is_used_up_drops(network: Node) -> None:
    """We are a router."""
    raw = arriving(network, REMOTE, SERVER, packets.tcp(1000, 80), ttl=1)
    assert network.is_dropped(network.receive(raw), abi.TTL_EXCEEDED)
