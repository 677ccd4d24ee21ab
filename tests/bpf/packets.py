"""Builds and takes apart packets, byte by byte.

Belongs here: headers, checksums, and their reading. Does not belong here: what a program should do with them.
Addresses and MACs are bytes: 4 or 16 of an address, 6 of a MAC.
"""

import ipaddress
import struct
from collections.abc import Sequence
from typing import NamedTuple

ICMP, TCP, UDP, ICMPV6, SCTP = 1, 6, 17, 58, 132
IPV4, IPV6, ARP = 0x0800, 0x86DD, 0x0806
FIN, SYN, RST, PSH, ACK = 0x01, 0x02, 0x04, 0x08, 0x10
ECHO_REQUEST, ECHO_REPLY, ECHO_REQUEST_V6, ECHO_REPLY_V6 = 8, 0, 128, 129
HOP_BY_HOP, ROUTING, FRAGMENT, AUTHENTICATION, DEST_OPTIONS = 0, 43, 44, 51, 60
ETHERNET_BYTES = 14
CHECKSUM_AT = {TCP: 16, UDP: 6, ICMP: 2, ICMPV6: 2}


class Packet(NamedTuple):
    """What is in a frame; `l3_sum` and `l4_sum` are 0 where the checksum is right."""

    dest_mac: bytes
    source_mac: bytes
    source: str
    dest: str
    ttl: int
    protocol: int
    source_port: int
    dest_port: int
    l3_sum: int
    l4_sum: int
    l4_checksum: int
    payload: bytes


def packed(address: str) -> bytes:
    """4 or 16 bytes."""
    return ipaddress.ip_address(address).packed


def ones_sum(raw: bytes) -> int:
    """RFC 1071: the checksum to write, or 0 over bytes that hold the right one."""
    padded = raw + bytes(len(raw) % 2)
    total: int = sum(struct.unpack(f">{len(padded) // 2}H", padded))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total ^ 0xFFFF


def pseudo_header(source: bytes, dest: bytes, protocol: int, length: int) -> bytes:
    """What a transport checksum covers before the segment."""
    if len(source) == 4:
        return source + dest + struct.pack(">BBH", 0, protocol, length)
    return source + dest + struct.pack(">IHBB", length, 0, 0, protocol)


def with_checksum(segment: bytes, protocol: int, source: bytes, dest: bytes) -> bytes:
    """The segment with its checksum; UDP's 0 becomes 0xffff."""
    at = CHECKSUM_AT[protocol]
    covered = segment if protocol == ICMP else pseudo_header(source, dest, protocol, len(segment)) + segment
    checksum = ones_sum(covered)
    if protocol == UDP and checksum == 0:
        checksum = 0xFFFF
    return segment[:at] + struct.pack(">H", checksum) + segment[at + 2 :]


def tcp(source_port: int, dest_port: int, flags: int = SYN, payload: bytes = b"", header_words: int = 5) -> bytes:
    """A segment without its checksum."""
    words = header_words << 4
    return struct.pack(">HHIIBBHHH", source_port, dest_port, 1000, 2000, words, flags, 65535, 0, 0) + payload


def udp(source_port: int, dest_port: int, payload: bytes = b"question") -> bytes:
    """A datagram without its checksum."""
    return struct.pack(">HHHH", source_port, dest_port, 8 + len(payload), 0) + payload


def sctp(source_port: int, dest_port: int, payload: bytes = b"") -> bytes:
    """A common header and no chunk, or what is given for chunks; with its checksum."""
    raw = struct.pack(">HHII", source_port, dest_port, 1, 0) + payload
    return raw[:8] + struct.pack("<I", crc32c(raw)) + raw[12:]


def crc32c(covered: bytes) -> int:
    """RFC 9260, appendix A, bit by bit."""
    register = 0xFFFFFFFF
    for octet in covered:
        register ^= octet
        for _ in range(8):
            register = register >> 1 ^ (0x82F63B78 if register & 1 else 0)
    return register ^ 0xFFFFFFFF


def sctp_is_whole(segment: bytes) -> bool:
    """Whether the checksum of an SCTP packet is right."""
    return segment[8:12] == struct.pack("<I", crc32c(segment[:8] + bytes(4) + segment[12:]))


def icmp(kind: int, code: int = 0, echo_id: int = 7, payload: bytes = b"ping") -> bytes:
    """ICMP or ICMPv6, without its checksum."""
    return struct.pack(">BBHHH", kind, code, 0, echo_id, 1) + payload


def icmp_error(family: int, quoted: bytes) -> tuple[int, bytes]:
    """The protocol, and a port unreachable that quotes a frame's IP header and 8 bytes; no checksum yet."""
    protocol, kind, code, header_bytes = (ICMP, 3, 3, 20) if family == 4 else (ICMPV6, 1, 4, 40)
    return protocol, icmp(kind, code, 0, quoted[ETHERNET_BYTES : ETHERNET_BYTES + header_bytes + 8])


def ipv4(
    source: bytes,
    dest: bytes,
    protocol: int,
    segment: bytes,
    ttl: int = 64,
    options: bytes = b"",
    fragment: int = 0,
) -> bytes:
    """`options` in multiples of 4 bytes; `fragment` is the flags and offset field."""
    words = 5 + len(options) // 4
    length = words * 4 + len(segment)
    header = struct.pack(">BBHHHBBH", 0x40 | words, 0, length, 1, fragment, ttl, protocol, 0) + source + dest + options
    return header[:10] + struct.pack(">H", ones_sum(header)) + header[12:] + segment


def extension(kind: int, next_header: int) -> bytes:
    """An IPv6 extension header of 8 bytes (12 for AUTHENTICATION)."""
    if kind == AUTHENTICATION:
        return struct.pack(">BBHII", next_header, 1, 0, 1, 1)
    return struct.pack(">BB6x", next_header, 0)


def ipv6(
    source: bytes, dest: bytes, protocol: int, segment: bytes, ttl: int = 64, extensions: Sequence[int] = ()
) -> bytes:
    """`extensions`: header types, in the order they stand in the packet."""
    chain = [*extensions, protocol]
    body = b"".join(extension(kind, chain[i + 1]) for i, kind in enumerate(extensions)) + segment
    return struct.pack(">IHBB", 6 << 28, len(body), chain[0], ttl) + source + dest + body


def ethernet(dest_mac: bytes, source_mac: bytes, kind: int, payload: bytes) -> bytes:
    """A frame."""
    return dest_mac + source_mac + struct.pack(">H", kind) + payload


def frame(
    source: str,
    dest: str,
    protocol: int,
    segment: bytes,
    *,
    source_mac: bytes,
    dest_mac: bytes,
    ttl: int = 64,
    checksum: bool = True,
) -> bytes:
    """A whole frame of either family; with `checksum` False the transport checksum stays 0."""
    from_bytes, to_bytes = packed(source), packed(dest)
    if checksum and protocol in CHECKSUM_AT:
        segment = with_checksum(segment, protocol, from_bytes, to_bytes)
    if len(from_bytes) == 4:
        return ethernet(dest_mac, source_mac, IPV4, ipv4(from_bytes, to_bytes, protocol, segment, ttl))
    return ethernet(dest_mac, source_mac, IPV6, ipv6(from_bytes, to_bytes, protocol, segment, ttl))


def cut(raw: bytes, piece_bytes: int, number: int = 77) -> list[bytes]:
    """A frame without options or extension headers as fragments of `piece_bytes`, a multiple of 8, in order."""
    ether, l3 = raw[:ETHERNET_BYTES], raw[ETHERNET_BYTES:]
    header_bytes = 20 if l3[0] >> 4 == 4 else 40
    header, body = l3[:header_bytes], l3[header_bytes:]
    pieces = []
    for at in range(0, len(body), piece_bytes):
        piece, more = body[at : at + piece_bytes], at + piece_bytes < len(body)
        if header_bytes == 20:
            changed = struct.pack(">HHH", 20 + len(piece), number, more << 13 | at // 8)
            unsummed = header[:2] + changed + header[8:10] + bytes(2) + header[12:]
            pieces.append(ether + unsummed[:10] + struct.pack(">H", ones_sum(unsummed)) + unsummed[12:] + piece)
        else:
            fragment = struct.pack(">BBHI", header[6], 0, at | more, number)
            length = struct.pack(">HB", len(fragment) + len(piece), FRAGMENT)
            pieces.append(ether + header[:4] + length + header[7:] + fragment + piece)
    return pieces


def joined(frames: Sequence[bytes]) -> bytes:
    """The frame that `cut` gave, whatever was changed in its pieces: the headers of the first, all bytes in order."""
    ether, l3 = frames[0][:ETHERNET_BYTES], frames[0][ETHERNET_BYTES:]
    if l3[0] >> 4 == 4:
        body = b"".join(each[ETHERNET_BYTES + 20 :] for each in frames)
        unsummed = l3[:2] + struct.pack(">HHH", 20 + len(body), 0, 0) + l3[8:10] + bytes(2) + l3[12:20]
        return ether + unsummed[:10] + struct.pack(">H", ones_sum(unsummed)) + unsummed[12:] + body
    body = b"".join(each[ETHERNET_BYTES + 48 :] for each in frames)
    return ether + l3[:4] + struct.pack(">HB", len(body), l3[40]) + l3[7:40] + body


def read(raw: bytes) -> Packet:
    """Takes a frame with no IPv6 extension headers apart."""
    kind = struct.unpack_from(">H", raw, 12)[0]
    l3 = raw[ETHERNET_BYTES:]
    if kind == IPV4:
        header_bytes = (l3[0] & 15) * 4
        ttl, protocol, source, dest = l3[8], l3[9], l3[12:16], l3[16:20]
        l3_sum = ones_sum(l3[:header_bytes])
        segment = l3[header_bytes : struct.unpack_from(">H", l3, 2)[0]]
    else:
        header_bytes, l3_sum = 40, 0
        ttl, protocol, source, dest = l3[7], l3[6], l3[8:24], l3[24:40]
        segment = l3[40 : 40 + struct.unpack_from(">H", l3, 4)[0]]
    ports = struct.unpack_from(">HH", segment)
    l4_sum = l4_checksum = 0
    if protocol in CHECKSUM_AT:
        l4_checksum = struct.unpack_from(">H", segment, CHECKSUM_AT[protocol])[0]
        l4_sum = ones_sum(
            segment if protocol == ICMP else pseudo_header(source, dest, protocol, len(segment)) + segment
        )
    source_text, dest_text = str(ipaddress.ip_address(source)), str(ipaddress.ip_address(dest))
    macs = raw[:6], raw[6:12]
    return Packet(
        *macs,
        source_text,
        dest_text,
        ttl,
        protocol,
        ports[0],
        ports[1],
        l3_sum,
        l4_sum,
        l4_checksum,
        segment[8:],
    )
