"""Removes expired conntrack entries, now and then, a bounded number at a time.

Belongs here: the loop and the calls. Does not belong here: which entries have expired (conntrack.py).
"""

import asyncio
from collections.abc import Callable
from typing import NamedTuple

from datapath.conntrack import expired_keys
from datapath.errors import KernelError
from datapath.kernel.api import Kernel
from datapath.reconciler import KernelWorker

CONNTRACK = "conntrack"


class CollectionCount(NamedTuple):
    """Since start: times the map was read, entries removed, entries found at the last reading, calls that
    failed."""

    runs: int
    removed: int
    entries: int
    failures: int


class ConntrackCollector:
    """`interval_s` between readings, `chunk` keys per kernel call, `now_ns` of CLOCK_MONOTONIC."""

    def __init__(
        self, kernel: Kernel, worker: KernelWorker, now_ns: Callable[[], int], interval_s: float, chunk: int
    ) -> None:
        self._kernel = kernel
        self._worker = worker
        self._now_ns = now_ns
        self._interval_s = interval_s
        self._chunk = chunk
        self._count = CollectionCount(0, 0, 0, 0)

    def count(self) -> CollectionCount:
        """What was removed so far."""
        return self._count

    async def run(self) -> None:
        """Until cancelled. A kernel that refuses is counted and asked again the next time."""
        while True:
            await asyncio.sleep(self._interval_s)
            try:
                await self.collect()
            except KernelError:
                self._count = self._count._replace(failures=self._count.failures + 1)

    async def collect(self) -> int:
        """Once, now; the number removed. Between two chunks other kernel calls get their turn. Raises
        KernelError."""
        found, keys = await self._worker.call(self._read)
        removed = 0
        for start in range(0, len(keys), self._chunk):
            chunk = keys[start : start + self._chunk]
            removed += await self._worker.call(self._kernel.delete_runtime, CONNTRACK, chunk)
        count = self._count
        self._count = CollectionCount(count.runs + 1, count.removed + removed, found, count.failures)
        return removed

    def _read(self) -> tuple[int, list[bytes]]:
        entries = list(self._kernel.dump_runtime(CONNTRACK))
        return len(entries), expired_keys(entries, self._now_ns())
