"""What the programs make of bytes: which packets are no packets, and which the host stack gets unseen."""

from typing import Any

import pytest

from datapath.abi import types as abi
from tests.bpf import packets
from tests.bpf.node import CLIENT, HOST, L3_SHAPE, OK, REDIRECT, SERVER, Node

pytestmark = pytest.mark.kernel("bpf_redirect_peer")

GRE = 47


def ethernet(kind: int, payload: bytes) -> bytes:
    """A frame of CLIENT to its gateway."""
    return packets.ethernet(CLIENT.host_mac, CLIENT.mac, kind, payload)


def l3(node: Node, protocol: int, segment: bytes, **named: Any) -> bytes:
    """A frame CLIENT -> SERVER whose IP header is made with `named`."""
    source, dest = (packets.packed(each.address(node.family)) for each in (CLIENT, SERVER))
    if protocol in packets.CHECKSUM_AT and len(segment) > packets.CHECKSUM_AT[protocol] + 1:
        segment = packets.with_checksum(segment, protocol, source, dest)
    if node.family == 4:
        return ethernet(packets.IPV4, packets.ipv4(source, dest, protocol, segment, **named))
    return ethernet(packets.IPV6, packets.ipv6(source, dest, protocol, segment, **named))


def changed(raw: bytes, at: int, value: bytes) -> bytes:
    """A frame with some bytes of its IP header replaced."""
    at += packets.ETHERNET_BYTES
    return raw[:at] + value + raw[at + len(value) :]


def test_arp_goes_to_the_host_stack(node: Node) -> None:
    """ARP is passed as it is."""
    assert node.send(CLIENT, ethernet(packets.ARP, bytes(28))).retval == OK


@pytest.mark.parametrize("kind", [130, 131, 132, 133, 135, 136, 143])
def test_link_control_goes_to_the_host_stack(node: Node, kind: int) -> None:
    """Neighbour discovery and multicast listening pass, also from the unspecified address."""
    for source, dest in (("::", "ff02::1:ff00:1"), ("fe80::5", "fe80::1")):
        raw = packets.frame(source, dest, packets.ICMPV6, packets.icmp(kind), source_mac=CLIENT.mac, dest_mac=HOST.mac)
        assert node.send(CLIENT, raw).retval == OK


def test_router_advertisement_is_no_endpoints_business(node: Node) -> None:
    """An endpoint does not pass for a router."""
    raw = packets.frame(
        "fe80::5", "ff02::1", packets.ICMPV6, packets.icmp(134), source_mac=CLIENT.mac, dest_mac=HOST.mac
    )
    assert node.is_dropped(node.send(CLIENT, raw), abi.INVALID_SOURCE_IP)


def test_unknown_ethertype_is_dropped(node: Node) -> None:
    """Neither IPv4, IPv6 nor ARP."""
    assert node.is_dropped(node.send(CLIENT, ethernet(0x88CC, bytes(46))), abi.UNSUPPORTED_L3_PROTOCOL)


def test_frame_with_a_length_for_a_type_is_dropped(node: Node) -> None:
    """802.3, such as spanning tree, is no Ethernet II."""
    assert node.is_dropped(node.send(CLIENT, ethernet(46, bytes(46))), abi.UNSUPPORTED_L2_PROTOCOL)


def test_length_beyond_the_frame_is_dropped(node: Node) -> None:
    """The IP header promises more bytes than there are."""
    raw = l3(node, packets.TCP, packets.tcp(1000, 80))
    raw = changed(raw, 2 if node.family == 4 else 4, (2000).to_bytes(2, "big"))
    assert node.is_dropped(node.send(CLIENT, raw), abi.INVALID_PACKET_DROPPED)


def test_other_ip_version_is_dropped(node: Node) -> None:
    """The version in the header is not that of the frame's type."""
    raw = changed(l3(node, packets.TCP, packets.tcp(1000, 80)), 0, b"\x55")
    assert node.is_dropped(node.send(CLIENT, raw), abi.INVALID_PACKET_DROPPED)


def test_ethernet_padding_is_no_part_of_the_packet(node: Node) -> None:
    """Bytes after the IP packet's end do no harm."""
    assert node.send(CLIENT, l3(node, packets.UDP, packets.udp(1000, 53, b"")) + bytes(18)).retval == REDIRECT


@pytest.mark.parametrize("family", [4], indirect=True)
def test_ipv4_header_length_too_small_is_dropped(node: Node) -> None:
    """A header of 16 bytes."""
    raw = changed(l3(node, packets.TCP, packets.tcp(1000, 80)), 0, b"\x44")
    assert node.is_dropped(node.send(CLIENT, raw), abi.INVALID_PACKET_DROPPED)


@pytest.mark.parametrize("family", [4], indirect=True)
@pytest.mark.parametrize("options", [4, 40])
def test_ipv4_options_are_skipped(node: Node, options: int) -> None:
    """The ports are found behind the options."""
    raw = l3(node, packets.TCP, packets.tcp(1000, 80), options=b"\x01" * options)
    assert node.send(CLIENT, raw).retval == REDIRECT
    assert (node.entries()[0].key.low_port, node.entries()[0].key.high_port) == (1000, 80)


@pytest.mark.parametrize("family", [4], indirect=True)
def test_ipv4_do_not_fragment_is_no_fragment(node: Node) -> None:
    """The flag that every TCP segment has."""
    assert node.send(CLIENT, l3(node, packets.TCP, packets.tcp(1000, 80), fragment=0x4000)).retval == REDIRECT


@pytest.mark.parametrize("family", [6], indirect=True)
@pytest.mark.parametrize(
    "extensions",
    [
        [packets.HOP_BY_HOP],
        [packets.DEST_OPTIONS],
        [packets.AUTHENTICATION],
        [packets.ROUTING],
        [
            packets.HOP_BY_HOP,
            packets.ROUTING,
            packets.DEST_OPTIONS,
            packets.AUTHENTICATION,
            *[packets.DEST_OPTIONS] * 2,
        ],
    ],
)
def test_ipv6_extension_headers_are_skipped(node: Node, extensions: list[int]) -> None:
    """The ports are found behind up to six headers."""
    assert node.send(CLIENT, l3(node, packets.TCP, packets.tcp(1000, 80), extensions=extensions)).retval == REDIRECT
    assert (node.entries()[0].key.low_port, node.entries()[0].key.high_port) == (1000, 80)


@pytest.mark.parametrize("family", [6], indirect=True)
def test_ipv6_too_many_extension_headers_are_dropped(node: Node) -> None:
    """A chain of seven has no end for us."""
    raw = l3(node, packets.TCP, packets.tcp(1000, 80), extensions=[packets.DEST_OPTIONS] * 7)
    assert node.is_dropped(node.send(CLIENT, raw), abi.INVALID_IPV6_EXTENSION_HEADER)


@pytest.mark.parametrize("family", [6], indirect=True)
def test_ipv6_extension_header_beyond_the_packet_is_dropped(node: Node) -> None:
    """A header whose length leads out of the packet."""
    raw = l3(node, packets.TCP, packets.tcp(1000, 80), extensions=[packets.DEST_OPTIONS])
    assert node.is_dropped(node.send(CLIENT, changed(raw, 41, b"\xff")), abi.INVALID_IPV6_EXTENSION_HEADER)


@pytest.mark.parametrize("family", [6], indirect=True)
def test_ipv6_routing_header_with_segments_left_is_dropped(node: Node) -> None:
    """Policy would judge an address where the packet does not end."""
    raw = l3(node, packets.TCP, packets.tcp(1000, 80), extensions=[packets.ROUTING])
    assert node.is_dropped(node.send(CLIENT, changed(raw, 43, b"\x01")), abi.INVALID_IPV6_EXTENSION_HEADER)


@pytest.mark.parametrize("family", [6], indirect=True)
def test_ipv4_address_inside_ipv6_is_dropped(node: Node) -> None:
    """::ffff:a.b.c.d on the wire must not pass for the IPv4 address."""
    raw = packets.frame(
        CLIENT.ipv6, SERVER.ipv6, packets.TCP, packets.tcp(1000, 80), source_mac=CLIENT.mac, dest_mac=HOST.mac
    )
    mapped = bytes(10) + b"\xff\xff" + packets.packed(SERVER.ipv4)
    assert node.is_dropped(node.send(CLIENT, changed(raw, 24, mapped)), abi.INVALID_PACKET_DROPPED)


@pytest.mark.parametrize(
    ("protocol", "segment"),
    [
        (packets.TCP, packets.tcp(1000, 80)[:19]),
        (packets.TCP, packets.tcp(1000, 80, header_words=4)),
        (packets.UDP, packets.udp(1000, 53)[:7]),
        (packets.SCTP, packets.sctp(1000, 53)[:11]),
    ],
    ids=["tcp short", "tcp offset", "udp short", "sctp short"],
)
def test_transport_header_that_ends_early_is_dropped(node: Node, protocol: int, segment: bytes) -> None:
    """The packet ends inside the transport header."""
    assert node.is_dropped(node.send(CLIENT, l3(node, protocol, segment)), abi.CT_TRUNCATED_OR_INVALID_HEADER)


def test_icmp_that_ends_early_is_dropped(node: Node) -> None:
    """Fewer than 8 bytes of ICMP."""
    protocol = packets.ICMP if node.family == 4 else packets.ICMPV6
    raw = l3(node, protocol, packets.icmp(packets.ECHO_REQUEST)[:7])
    assert node.is_dropped(node.send(CLIENT, raw), abi.CT_TRUNCATED_OR_INVALID_HEADER)


def test_icmp_of_the_other_family_is_dropped(node: Node) -> None:
    """It means nothing there."""
    raw = l3(node, packets.ICMPV6 if node.family == 4 else packets.ICMP, bytes(20))
    assert node.is_dropped(node.send(CLIENT, raw), abi.CT_UNKNOWN_L4_PROTOCOL)


def test_unknown_transport_protocol_is_policys(node: Node) -> None:
    """GRE passes where nothing is enforced, and where a row allows any protocol; otherwise it is denied."""
    raw = l3(node, GRE, bytes(20))
    assert node.send(CLIENT, raw).retval == REDIRECT
    (entry,) = node.entries()
    assert (entry.key.protocol, entry.key.low_port, entry.key.high_port) == (GRE, 0, 0)
    node.subject(CLIENT, egress=True, shapes=L3_SHAPE)
    node.epoch(2)
    assert node.is_dropped(node.send(CLIENT, raw), abi.POLICY_DENIED)
    node.policy(CLIENT, abi.POLICY_EGRESS, SERVER.identity)
    assert node.send(CLIENT, raw).retval == REDIRECT


@pytest.mark.parametrize(
    ("protocol", "segment"),
    [
        (packets.TCP, packets.tcp(1000, 80)),
        (packets.UDP, packets.udp(1000, 80)),
        (packets.SCTP, packets.sctp(1000, 80)),
    ],
    ids=["tcp", "udp", "sctp"],
)
def test_known_transport_protocols_pass(node: Node, protocol: int, segment: bytes) -> None:
    """The ports become those of the conntrack entry."""
    assert node.send(CLIENT, l3(node, protocol, segment)).retval == REDIRECT
    key = node.entries()[0].key
    assert (key.protocol, key.low_port, key.high_port) == (protocol, 1000, 80)
