"""The first packet of a flow as the bytes of a frame, the ends that a frame names, and what became of it. Pure.

Belongs here: headers and checksums of packets that programs are tried with (kernel/rehearsal.py), and the outcome of
a trial. Does not belong here: what it means for a mesh. Addresses are 16 bytes, IPv4 as ::ffff:a.b.c.d, as in rows.
"""

import struct
from typing import NamedTuple

from datapath.abi.types import NOTIFICATION_DROP
from datapath.notifications import Notification
from datapath.tables import IPV4_PREFIX

ICMP, TCP, UDP, ICMPV6, SCTP = 1, 6, 17, 58, 132
DESTINATION_OPTIONS = 60
ETHERNET_IPV4, ETHERNET_IPV6 = 0x0800, 0x86DD
ETHERNET_BYTES = 14
TTL = 64
SYN = 0x02
SOURCE_PORT = 49152
"""First of the ports that IANA leaves to clients (RFC 6335)."""
ICMP_BODY = struct.pack(">HH", 7, 1) + b"meshlog"
PAYLOAD = b"meshlog"


ACTION_OK, ACTION_SHOT, ACTION_REDIRECT = 0, 2, 7
"""TC_ACT_* of linux/pkt_cls.h."""


class FrameFault(ValueError):
    """A packet that cannot be built, or a frame that is none."""


class Ends(NamedTuple):
    """Addresses and ports of a frame; ports are 0 of protocols without."""

    source: bytes
    dest: bytes
    protocol: int
    source_port: int
    dest_port: int


class Outcome(NamedTuple):
    """`action` is a TC_ACT_*; `frame` the packet afterwards; `told` every notification, in order."""

    action: int
    frame: bytes
    told: tuple[Notification, ...]

    @property
    def drop_reason(self) -> int:
        """0: it was not dropped."""
        return next((each.drop_reason for each in self.told if each.type == NOTIFICATION_DROP), 0)


def first_packet(
    source: bytes, dest: bytes, protocol: int, port: int, source_mac: bytes = bytes(6), dest_mac: bytes = bytes(6)
) -> bytes:
    """What opens a flow: a SYN, a datagram, an INIT, or an ICMP message of type `port`. Raises FrameFault."""
    is_ipv4 = source.startswith(IPV4_PREFIX)
    if is_ipv4 != dest.startswith(IPV4_PREFIX):
        raise FrameFault("the ends have addresses of different families")
    if is_ipv4:
        source, dest = source[12:], dest[12:]
    segment = _segment(source, dest, protocol, port)
    kind = ETHERNET_IPV4 if is_ipv4 else ETHERNET_IPV6
    packet = _ipv4(source, dest, protocol, segment) if is_ipv4 else _ipv6(source, dest, protocol, segment)
    return dest_mac + source_mac + struct.pack(">H", kind) + packet


def ends_of(frame: bytes) -> Ends:
    """Raises FrameFault for a frame without an IP packet, or with IPv6 extension headers other than options for the
    destination, which are passed over."""
    try:
        (kind,) = struct.unpack_from(">H", frame, 12)
        packet = frame[ETHERNET_BYTES:]
        if kind == ETHERNET_IPV4:
            source, dest, protocol = IPV4_PREFIX + packet[12:16], IPV4_PREFIX + packet[16:20], packet[9]
            segment = packet[(packet[0] & 15) * 4 :]
        elif kind == ETHERNET_IPV6:
            source, dest, protocol, segment = packet[8:24], packet[24:40], packet[6], packet[40:]
            while protocol == DESTINATION_OPTIONS:
                protocol, segment = segment[0], segment[8 * (segment[1] + 1) :]
        else:
            raise FrameFault(f"a frame of type {kind:#06x} holds no IP packet")
        ports = struct.unpack_from(">HH", segment) if protocol in (TCP, UDP, SCTP) else (0, 0)
    except (struct.error, IndexError) as error:
        raise FrameFault(f"a frame of {len(frame)} bytes is too short") from error
    return Ends(source, dest, protocol, *ports)


def _segment(source: bytes, dest: bytes, protocol: int, port: int) -> bytes:
    if protocol == TCP:
        header = struct.pack(">HHIIBBHHH", SOURCE_PORT, port, 1, 0, 5 << 4, SYN, 65535, 0, 0)
        return _summed(header, 16, source, dest, TCP)
    if protocol == UDP:
        header = struct.pack(">HHHH", SOURCE_PORT, port, 8 + len(PAYLOAD), 0)
        return _summed(header + PAYLOAD, 6, source, dest, UDP)
    if protocol in (ICMP, ICMPV6):
        return _summed(struct.pack(">BBH", port, 0, 0) + ICMP_BODY, 2, source, dest, protocol)
    if protocol == SCTP:
        # Its checksum is a CRC that no program reads.
        return struct.pack(">HHII", SOURCE_PORT, port, 0, 0) + struct.pack(">BBHIIHHI", 1, 0, 20, 1, 65535, 1, 1, 1)
    raise FrameFault(f"protocol {protocol}: right is TCP, UDP, SCTP, ICMP or ICMPv6")


def _summed(segment: bytes, at: int, source: bytes, dest: bytes, protocol: int) -> bytes:
    """With its checksum; UDP's 0 becomes 0xffff (RFC 768)."""
    covered = segment if protocol == ICMP else _pseudo_header(source, dest, protocol, len(segment)) + segment
    checksum = ones_sum(covered)
    if protocol == UDP and checksum == 0:
        checksum = 0xFFFF
    return segment[:at] + struct.pack(">H", checksum) + segment[at + 2 :]


def ones_sum(covered: bytes) -> int:
    """The checksum of RFC 1071: what to write, or 0 over bytes that hold the right one."""
    padded = covered + bytes(len(covered) % 2)
    total: int = sum(struct.unpack(f">{len(padded) // 2}H", padded))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total ^ 0xFFFF


def _pseudo_header(source: bytes, dest: bytes, protocol: int, length: int) -> bytes:
    if len(source) == 4:
        return source + dest + struct.pack(">BBH", 0, protocol, length)
    return source + dest + struct.pack(">IHBB", length, 0, 0, protocol)


def _ipv4(source: bytes, dest: bytes, protocol: int, segment: bytes) -> bytes:
    header = struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(segment), 1, 0, TTL, protocol, 0) + source + dest
    return header[:10] + struct.pack(">H", ones_sum(header)) + header[12:] + segment


def _ipv6(source: bytes, dest: bytes, protocol: int, segment: bytes) -> bytes:
    return struct.pack(">IHBB", 6 << 28, len(segment), protocol, TTL) + source + dest + segment
