"""Entries of the `affinity` map as values: which backend a client was sent to last.

Belongs here: decoding what the programs wrote. Does not belong here: reading it, judging it (bpf/lib/service.h). Pure.
"""

import sys
from typing import NamedTuple

from datapath import codec

COOKIE_BYTES = 8


class AffinityKey(NamedTuple):
    """`client_kind`: an affinity_client of the ABI, which says what `client` holds."""

    client: bytes
    frontend: bytes
    port: int
    protocol: int
    client_kind: int


class AffinityRow(NamedTuple):
    last_used_ns: int
    address: bytes
    port: int


_KEY = codec.struct_codec(AffinityKey)
_ROW = codec.struct_codec(AffinityRow)


def decode_affinity(key: bytes, value: bytes) -> tuple[AffinityKey, AffinityRow]:
    """Raises ValueError for bytes of another length."""
    return _KEY.decode(key), _ROW.decode(value)


def netns_cookie(client: bytes) -> int:
    """Of a client that is a socket."""
    return int.from_bytes(client[:COOKIE_BYTES], sys.byteorder)
