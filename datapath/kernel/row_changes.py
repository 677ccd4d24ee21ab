"""Tells the programs when rows change that they keep copies of (bpf/lib/recent.h).

Belongs here: which tables those are, and how a write is announced. Does not belong here: the writing.
"""

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from datapath.abi.types import STRUCTS
from datapath.errors import KernelError
from datapath.kernel.maps import Map

REMEMBERED = frozenset({"endpoints", "devices", "ipcache", "policy_subjects"})
MAP = "row_changes"
_FIRST = bytes(STRUCTS["row_changes_key"].size)
_BYTES = STRUCTS["row_changes_row"].size


@contextmanager
def announced(maps: Mapping[str, Map], table: str) -> Iterator[None]:
    """While a table's rows are written, no copy of a row counts, and afterwards none that was made before. Where this
    process dies in between, copies count again after the next write. Raises KernelError."""
    if table not in REMEMBERED or MAP not in maps:
        yield
        return
    before = _count(maps[MAP])
    _write(maps[MAP], before | 1)
    try:
        yield
    finally:
        _write(maps[MAP], (before | 1) + 1)


def settle(maps: Mapping[str, Map]) -> None:
    """Lets copies count again where a process died while it wrote. Writes nothing otherwise. Raises KernelError."""
    count = _count(maps[MAP])
    if count & 1:
        _write(maps[MAP], count + 1)


def _count(held: Map) -> int:
    return int.from_bytes(held.lookup(_FIRST) or b"", sys.byteorder)


def _write(held: Map, count: int) -> None:
    failures = held.put([(_FIRST, count.to_bytes(_BYTES, sys.byteorder))])
    if failures:
        raise KernelError(f"{MAP}: {failures[0].reason}", failures[0].errno)
