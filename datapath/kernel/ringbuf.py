"""Reads a BPF ring buffer of records of one size, through the pages that it shares with the kernel.

Belongs here: the ring's protocol and its memory. Does not belong here: what a record means
(datapath/notifications.py). A ring has one consumer: two readers would each see a part.
"""

import mmap
import os

import numpy as np
import numpy.typing as npt

from datapath.abi.layout import Struct
from datapath.errors import LayoutMismatch
from datapath.kernel import libbpf, uapi

HEADER_BYTES = 8
BUSY, DISCARDED = np.uint32(1 << 31), np.uint32(1 << 30)
LENGTH_MASK = np.uint32((1 << 30) - 1)
RECORDS_MAX = 65536
"""Per read, so that one read has a bound."""

KINDS = {"u8": "u1", "u16": "<u2", "u32": "<u4", "u64": "<u8", "be16": ">u2", "be32": ">u4", "be64": ">u8"}


def record_dtype(layout: Struct) -> np.dtype[np.void]:
    """The numpy type of a C struct, with its field names. `bytes` fields are void, since strings lose
    trailing zeros."""
    return np.dtype(
        {
            "names": [field.name for field in layout.fields],
            "formats": [KINDS.get(field.kind, f"V{field.size}") for field in layout.fields],
            "offsets": [field.offset for field in layout.fields],
            "itemsize": layout.size,
        }
    )


class RingReader:
    """The consumer of a ring buffer map. Takes over the descriptor; readable (poll, asyncio) while records
    wait."""

    def __init__(self, fd: int, layout: Struct) -> None:
        info = libbpf.map_info(fd)
        if info.type != uapi.MAP_TYPE_RINGBUF:
            raise LayoutMismatch(
                f"map {info.name} has type {info.type}; a ring buffer has {uapi.MAP_TYPE_RINGBUF}"
            )
        self._fd = fd
        self._dtype = record_dtype(layout)
        self._stride = (HEADER_BYTES + layout.size + 7) // 8 * 8
        self._mask = info.max_entries - 1
        page = mmap.PAGESIZE
        self._consumer_page = mmap.mmap(fd, page)
        # The records are mapped twice in a row: one that wraps around is contiguous.
        self._pages = mmap.mmap(fd, page + 2 * info.max_entries, prot=mmap.PROT_READ, offset=page)
        self._consumer = np.frombuffer(self._consumer_page, dtype=np.uint64, count=1)
        self._producer = np.frombuffer(self._pages, dtype=np.uint64, count=1)
        self._records = np.frombuffer(self._pages, dtype=np.uint8, offset=page)

    def fileno(self) -> int:
        """For poll and add_reader."""
        return self._fd

    def read(self) -> npt.NDArray[np.void]:
        """The records that are complete, at most RECORDS_MAX, as a structured array of one's own; never
        blocks.

        Raises LayoutMismatch for a record of another size.
        """
        consumed = int(self._consumer[0])
        count = min((int(self._producer[0]) - consumed) // self._stride, RECORDS_MAX)
        start = consumed & self._mask
        raw = self._records[start : start + count * self._stride].reshape(count, self._stride)
        headers = raw[:, :4].copy().view(np.uint32).ravel()
        busy = np.flatnonzero(headers & BUSY)
        if busy.size:
            # The kernel writes it just now; those behind it wait for the next read.
            raw, headers = raw[: busy[0]], headers[: busy[0]]
        lengths = headers & LENGTH_MASK
        if (lengths != self._dtype.itemsize).any():
            other = int(lengths[lengths != self._dtype.itemsize][0])
            raise LayoutMismatch(
                f"a record of {other} bytes in the ring buffer; they have {self._dtype.itemsize}"
            )
        kept = raw[(headers & DISCARDED) == 0, HEADER_BYTES : HEADER_BYTES + self._dtype.itemsize]
        records = np.ascontiguousarray(kept).view(self._dtype).reshape(-1)
        # Only now may the kernel write over them.
        self._consumer[0] = consumed + len(raw) * self._stride
        return records

    def close(self) -> None:
        """Lets go of the memory and the descriptor."""
        del self._consumer, self._producer, self._records
        self._consumer_page.close()
        self._pages.close()
        os.close(self._fd)
