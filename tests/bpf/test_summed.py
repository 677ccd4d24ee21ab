"""Packets that a device has summed up: the programs keep skb->csum right, or the receiver's kernel complains."""

import errno

import pytest

from tests.bpf import packets
from tests.bpf.node import CLIENT, FRONTEND, GATEWAY_MAC, LOOPBACK_MAC, REMOTE, SERVER, Endpoint, Node

pytestmark = pytest.mark.kernel("bpf_redirect_peer")

SEGMENTS = {packets.TCP: packets.tcp(1000, 80, packets.ACK), packets.UDP: packets.udp(1000, 80)}


def check(node: Node, program: str, raw: bytes) -> None:
    """The sum fits afterwards, and the packet was not dropped on the way."""
    outcome = node.run_summed(program, raw)
    if outcome == errno.EINVAL:
        pytest.skip("needs BPF_F_TEST_SKB_CHECKSUM_COMPLETE in the kernel")
    assert (outcome, node.drops()) == (0, [])


@pytest.mark.parametrize("protocol", SEGMENTS, ids=["tcp", "udp"])
@pytest.mark.parametrize("dest", [SERVER, REMOTE, FRONTEND], ids=["local", "remote", "service"])
def test_sum_fits_after_sending(node: Node, dest: Endpoint, protocol: int) -> None:
    """Another TTL, and another destination."""
    node.service([(SERVER, 8080)], protocol)
    node.device(CLIENT)
    check(node, "from_endpoint", node.frame(CLIENT, dest, SEGMENTS[protocol], protocol))


@pytest.mark.parametrize("protocol", SEGMENTS, ids=["tcp", "udp"])
def test_sum_fits_after_the_answer_of_a_backend(node: Node, protocol: int) -> None:
    """Another source."""
    node.service([(SERVER, 8080)], protocol)
    node.send(CLIENT, node.frame(CLIENT, FRONTEND, SEGMENTS[protocol], protocol))
    node.device(SERVER)
    segment = packets.udp(8080, 1000) if protocol == packets.UDP else packets.tcp(8080, 1000, packets.ACK)
    check(node, "from_endpoint", node.frame(SERVER, CLIENT, segment, protocol))


def test_sum_fits_after_the_network(network: Node) -> None:
    """Delivered from another node."""
    raw = network.frame(REMOTE, SERVER, packets.tcp(1000, 80), source_mac=GATEWAY_MAC, dest_mac=LOOPBACK_MAC)
    check(network, "from_network", raw)
