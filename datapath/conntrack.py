"""Conntrack entries as values: which have expired.

Belongs here: decoding and judging what the programs wrote. Does not belong here: reading or removing it
(conntrack_gc.py).
"""

import struct
from collections.abc import Iterable
from typing import NamedTuple

from datapath import codec
from datapath.abi import types as abi
from datapath.plan import UNSETTLED_EPOCH

_EXPIRES = struct.Struct("=Q")
_EXPIRES_AT = next(
    field.offset for field in abi.STRUCTS["conntrack_row"].fields if field.name == "expires_ns"
)


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
