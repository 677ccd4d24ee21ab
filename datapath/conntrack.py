"""Conntrack entries as values: which have expired, and their lines for people.

Belongs here: decoding and judging what the programs wrote. Does not belong here: reading or removing it
(conntrack_gc.py).
"""

import struct
from collections.abc import Iterable
from typing import NamedTuple

from datapath import codec
from datapath.abi import types as abi
from datapath.addressing import endpoint_text, protocol_name
from datapath.plan import UNSETTLED_EPOCH

_EXPIRES = struct.Struct("=Q")
_EXPIRES_AT = next(
    field.offset for field in abi.STRUCTS["conntrack_row"].fields if field.name == "expires_ns"
)
FLAG_NAMES = {value: name.removeprefix("CONNTRACK_") for name, value in abi.ENUMS["conntrack_flag"].items()}


class ConntrackKey(NamedTuple):
    """The two ends of a flow, in the order of their bytes."""

    low: bytes
    high: bytes
    low_port: int
    high_port: int
    protocol: int


class ConntrackRow(NamedTuple):
    expires_ns: int
    policy_epoch: int
    forward_packets: int
    forward_bytes: int
    reply_packets: int
    reply_bytes: int
    translated: bytes
    translated_port: int
    flags: int
    source_identity: int
    forward_tcp_flags: int
    reply_tcp_flags: int
    masquerade_port: int = 0


class ConntrackEntry(NamedTuple):
    key: ConntrackKey
    row: ConntrackRow


_KEY = codec.struct_codec(ConntrackKey)
_ROW = codec.struct_codec(ConntrackRow)


def decode_entry(key: bytes, value: bytes) -> ConntrackEntry:
    """Raises ValueError for bytes of another length."""
    return ConntrackEntry(_KEY.decode(key), _ROW.decode(value))


def encode_entry(entry: ConntrackEntry) -> tuple[bytes, bytes]:
    """Raises ValueError for a value that its field cannot hold."""
    return _KEY.encode(entry.key), _ROW.encode(entry.row)


def encode_key(key: ConntrackKey) -> bytes:
    """Raises ValueError for a value that its field cannot hold."""
    return _KEY.encode(key)


def is_expired(value: bytes, now_ns: int) -> bool:
    """Whether an entry's time has passed."""
    return bool(_EXPIRES.unpack_from(value, _EXPIRES_AT)[0] <= now_ns)


def expired_keys(entries: Iterable[tuple[bytes, bytes]], now_ns: int) -> list[bytes]:
    """Keys of entries whose time has passed at `now_ns` (CLOCK_MONOTONIC)."""
    expires = _EXPIRES.unpack_from
    return [key for key, value in entries if expires(value, _EXPIRES_AT)[0] <= now_ns]


def undone_entries(entries: Iterable[tuple[bytes, bytes]], epoch: int) -> list[tuple[bytes, bytes]]:
    """Entries that were judged under an epoch above this one, the newest that there is, as they are to be written:
    under no epoch, so that their flows are judged again. Such epochs belong to a history that was undone, and the one
    that goes on may reach the same numbers with other policies."""
    found = []
    for key, value in entries:
        entry = decode_entry(key, value)
        if entry.row.policy_epoch & ~UNSETTLED_EPOCH > epoch:
            found.append(encode_entry(entry._replace(row=entry.row._replace(policy_epoch=0))))
    return found


def entry_line(entry: ConntrackEntry, now_ns: int) -> str:
    """One line of `bpf ct list`: the flow as its initiator sent it, expiry in seconds from now."""
    key, row = entry
    ends = endpoint_text(key.low, key.low_port), endpoint_text(key.high, key.high_port)
    source, dest = ends[::-1] if row.flags & abi.CONNTRACK_INITIATOR_HIGH else ends
    names = [name for value, name in FLAG_NAMES.items() if row.flags & value]
    packets, size = row.forward_packets + row.reply_packets, row.forward_bytes + row.reply_bytes
    expires_s = max(0, row.expires_ns - now_ns) // 10**9
    line = (
        f"{protocol_name(key.protocol)} {source} -> {dest} expires={expires_s} "
        f"Packets={packets} Bytes={size} RxFlagsSeen=0x{row.reply_tcp_flags:02x} "
        f"TxFlagsSeen=0x{row.forward_tcp_flags:02x} Flags=0x{row.flags:04x} [ {' '.join(names)} ] "
        f"SourceSecurityID={row.source_identity} PolicyEpoch={row.policy_epoch}"
    )
    if row.flags & (abi.CONNTRACK_DNAT | abi.CONNTRACK_REVERSE_DNAT):
        line += f" Translated={endpoint_text(row.translated, row.translated_port)}"
    return line
