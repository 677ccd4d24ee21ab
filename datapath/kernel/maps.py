"""One BPF map: rows in and out, many per system call, with the failures named row by row.

Belongs here: what batches, arrays and per-CPU maps need on top of bpf(2). Does not belong here: what the
bytes mean (datapath/codec.py), and which maps there are (programs.py).
"""

import errno
import functools
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from datapath.errors import KernelError
from datapath.kernel import libbpf, uapi
from datapath.kernel.api import RowFailure

CHUNK_ROWS_MAX = 8192
"""Rows per lookup; more than any hash bucket holds, which is the least that the kernel takes."""

NUMPY_ROWS_MIN = 4096

SINGLE_ROUNDS_MAX = 2
"""How often a map may be walked through, key by key, before what was found must do."""

PER_CPU = (uapi.MAP_TYPE_PERCPU_HASH, uapi.MAP_TYPE_PERCPU_ARRAY, uapi.MAP_TYPE_LRU_PERCPU_HASH)
ARRAYS = (uapi.MAP_TYPE_ARRAY, uapi.MAP_TYPE_PERCPU_ARRAY)


@functools.cache
def possible_cpus() -> int:
    """How many values a per-CPU row has: those of CPUs that might be plugged in count too."""
    last = Path("/sys/devices/system/cpu/possible").read_text().strip().split(",")[-1]
    return int(last.split("-")[-1]) + 1


class Map:
    """A map by its descriptor, which it owns. Every operation raises KernelError where the map as a whole
    refuses.

    An array has no absent rows. Here a row of zeros counts as absent: it is not dumped, and delete writes it.

    Batches came to hashes and arrays with Linux 5.6, to tries and per-CPU arrays with 5.13. Where they are
    missing (ENOTSUPP for the kind of map, EINVAL for the call as such), rows go one by one.
    """

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.info = libbpf.map_info(fd)
        per_cpu = self.info.type in PER_CPU
        self.value_bytes = (
            (self.info.value_size + 7) // 8 * 8 * possible_cpus() if per_cpu else self.info.value_size
        )
        """Of one row; in a per-CPU map every CPU's value, each in a multiple of 8 bytes."""
        self._has_batches = True

    def dump(self) -> dict[bytes, bytes]:
        """All rows, of a map that may change meanwhile."""
        key_size = self.info.key_size
        if not key_size:
            raise KernelError(f"map {self.info.name} is a ring buffer: it has no rows to dump")
        rows = self._dump_batches() if self._has_batches else None
        if rows is None:
            self._has_batches = False
            rows = self._dump_singly()
        if self.info.type in ARRAYS:
            absent = bytes(self.value_bytes)
            return {key: value for key, value in rows.items() if value != absent}
        return rows

    def lookup(self, key: bytes) -> bytes | None:
        """One row's value, or None. An array's row of zeros is returned as it is."""
        return libbpf.map_lookup(self.fd, key, self.value_bytes)

    def put(self, rows: Sequence[tuple[bytes, bytes]]) -> list[RowFailure]:
        """Writes rows in the order given. One that fails does not stop those after it."""
        failures = self._refuse_sizes(rows)
        if failures:
            rows = [row for row in rows if self._fits(row)]
        keys = b"".join([key for key, _ in rows])
        values = b"".join([value for _, value in rows])
        done = 0
        while done < len(rows) and self._has_batches:
            written, code = libbpf.map_update_batch(self.fd, keys, values, len(rows), done)
            done += written
            if code == uapi.ENOTSUPP:
                self._has_batches = False
            elif code:
                # The row that stopped the batch is tried alone. If the map is full, so are those after it
                # likely.
                refused = self._put_singly(rows[done : done + 1])
                failures += refused
                done += 1
                if code == errno.EINVAL and not refused:
                    self._has_batches = False
                elif code == errno.E2BIG:
                    break
        return failures + self._put_singly(rows[done:])

    def delete(self, keys: Sequence[bytes]) -> tuple[int, list[RowFailure]]:
        """Removes rows: how many were there, and what failed. What is absent is no failure."""
        if self.info.type in ARRAYS:
            return self._clear(keys)
        size = self.info.key_size
        failures = [
            RowFailure(key, f"{len(key)} bytes; keys of map {self.info.name} have {size}", errno.EINVAL)
            for key in keys
            if len(key) != size
        ]
        fitting = [key for key in keys if len(key) == size]
        joined = b"".join(fitting)
        done = removed = 0
        while done < len(fitting) and self._has_batches:
            gone, code = libbpf.map_delete_batch(self.fd, joined, len(fitting), done)
            removed += gone
            done += gone
            if code == uapi.ENOTSUPP:
                self._has_batches = False
            elif code:
                # The batch stopped at a key that is absent, or that fails for a reason of its own.
                alone, refused = (0, []) if code == errno.ENOENT else self._delete_singly(fitting[done : done + 1])
                if code == errno.EINVAL and not refused:
                    self._has_batches = False
                removed += alone
                failures += refused
                done += 1
        alone, refused = self._delete_singly(fitting[done:])
        return removed + alone, failures + refused

    def close(self) -> None:
        """Lets go of the descriptor."""
        os.close(self.fd)

    def _refuse_sizes(self, rows: Sequence[tuple[bytes, bytes]]) -> list[RowFailure]:
        # A wrong size would shift every row behind it in the batch.
        want = self.info.key_size, self.value_bytes
        if {len(key) for key, _ in rows} <= {want[0]} and {len(value) for _, value in rows} <= {want[1]}:
            return []
        return [
            RowFailure(
                key,
                f"{len(key)} + {len(value)} bytes; map {self.info.name} has {want[0]} + {want[1]}",
                errno.EINVAL,
            )
            for key, value in rows
            if not self._fits((key, value))
        ]

    def _fits(self, row: tuple[bytes, bytes]) -> bool:
        return len(row[0]) == self.info.key_size and len(row[1]) == self.value_bytes

    def _put_singly(self, rows: Sequence[tuple[bytes, bytes]]) -> list[RowFailure]:
        failures = []
        for key, value in rows:
            code = libbpf.map_update(self.fd, key, value)
            if code:
                reason = (
                    f"map {self.info.name} with {self.info.max_entries} rows is full"
                    if code == errno.E2BIG
                    else ""
                )
                failures.append(RowFailure(key, reason or uapi.describe(code), code))
        return failures

    def _delete_singly(self, keys: Sequence[bytes]) -> tuple[int, list[RowFailure]]:
        codes = [libbpf.map_delete(self.fd, key) for key in keys]
        failures = [
            RowFailure(key, uapi.describe(code), code)
            for key, code in zip(keys, codes, strict=True)
            if code not in (0, errno.ENOENT)
        ]
        return codes.count(0), failures

    def _dump_batches(self) -> dict[bytes, bytes] | None:
        """All rows, or None where this map cannot be read so."""
        key_size = self.info.key_size
        chunk = min(self.info.max_entries, CHUNK_ROWS_MAX)
        rows: dict[bytes, bytes] = {}
        try:
            for keys, values, count in libbpf.map_lookup_batches(self.fd, key_size, self.value_bytes, chunk):
                found = _pieces(keys, key_size, count)
                rows.update(zip(found, _pieces(values, self.value_bytes, count), strict=True))
        except KernelError as error:
            if error.errno in (uapi.ENOTSUPP, errno.EINVAL):
                return None
            raise
        return rows

    def _dump_singly(self) -> dict[bytes, bytes]:
        """Key after key. Where one is removed meanwhile the kernel begins again, hence the bound."""
        rows: dict[bytes, bytes] = {}
        key = None
        for _ in range(SINGLE_ROUNDS_MAX * self.info.max_entries):
            key = libbpf.map_next_key(self.fd, key, self.info.key_size)
            if key is None:
                break
            value = self.lookup(key)
            if value is not None:
                rows[key] = value
        return rows

    def _clear(self, keys: Sequence[bytes]) -> tuple[int, list[RowFailure]]:
        absent = bytes(self.value_bytes)
        present = [key for key in keys if self.lookup(key) not in (None, absent)]
        failures = self._put_singly([(key, absent) for key in present])
        return len(present) - len(failures), failures


def _pieces(joined: bytes | bytearray, size: int, count: int) -> list[bytes]:
    """Numpy cuts a million in 40 ms, Python in 100; but importing it takes 50, and a small node's start is short."""
    if count < NUMPY_ROWS_MIN:
        whole = bytes(memoryview(joined)[: size * count])
        return [whole[start : start + size] for start in range(0, size * count, size)]
    import numpy as np

    found: list[bytes] = np.frombuffer(joined, dtype=f"V{size}", count=count).tolist()
    return found


def close_all(maps: Mapping[str, Map]) -> None:
    """Lets go of the descriptors of several maps."""
    for each in maps.values():
        each.close()
