"""Removes entries of the programs that are of no use any more, a bounded number at a time, and undoes what was judged
under a history that a restored log has undone.

Belongs here: the loops and the calls. Does not belong here: which entries those are (conntrack.py: expired, undone;
orphans.py: outlived).
"""

import asyncio
import struct
from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple

from datapath import codec
from datapath.abi.types import SOCKETS_FULL, TRAFFIC_EGRESS
from datapath.conntrack import expired_keys, undone_entries
from datapath.errors import KernelError
from datapath.kernel.api import Kernel
from datapath.orphans import backends_of, departed_flows, departed_sockets, idle_ports
from datapath.plan import UNSETTLED_EPOCH
from datapath.reconciler import Reconciler
from datapath.status import WriteCount

CONNTRACK = "conntrack"
NAT = "nat"
SOCKET_FLOWS = "socket_flows"
METRICS, METRICS_KEY, METRICS_ROW = "metrics", struct.Struct("=I"), struct.Struct("=QQ")
SERVICE_TABLES = ("services", "backends")
PURGE_PAUSE_S = 0.2
"""Between two purges: a purge reads all of conntrack, and changes of services come in bursts."""


class CollectionCount(NamedTuple):
    """Since start: times the maps were read for what has expired, conntrack entries removed then, conntrack entries
    found at the last such reading, calls that failed; entries removed because their backend left, and ports that
    were free again; entries of nat at the last reading; sockets that were ended because their backend left; sockets
    that could not be joined as their map was full, and how many of them since the reading before."""

    runs: int
    removed: int
    entries: int
    failures: int
    departed: int
    ports: int
    nat_entries: int = 0
    sockets: int = 0
    unjoined: int = 0
    unjoined_anew: int = 0


class ConntrackCollector:
    """`interval_s` between readings, `chunk` keys per kernel call, `now_ns` of CLOCK_MONOTONIC."""

    def __init__(
        self, kernel: Kernel, reconciler: Reconciler, now_ns: Callable[[], int], interval_s: float, chunk: int
    ) -> None:
        self._kernel = kernel
        self._reconciler = reconciler
        self._now_ns = now_ns
        self._interval_s = interval_s
        self._chunk = chunk
        self._count = CollectionCount(0, 0, 0, 0, 0, 0)
        self._purged_at: tuple[WriteCount, ...] = ()
        self._epoch: int | None = None
        """The node's policy epoch when conntrack was last seen to hold none above it; None: not since the start."""

    def count(self) -> CollectionCount:
        """What was removed so far."""
        return self._count

    async def run(self) -> None:
        """Until cancelled. A kernel that refuses is counted and asked again the next time."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._collect_always())
            group.create_task(self._purge_always())

    async def collect(self) -> int:
        """What has expired, once, now; the number of conntrack entries removed. Between two chunks other kernel
        calls get their turn. Raises KernelError."""
        (found, found_nat), expired, idle = await self._reconciler.worker.call(self._read_expired)
        unjoined = await self._reconciler.worker.call(self._read_unjoined)
        removed = await self._remove(CONNTRACK, expired)
        ports = await self._remove(NAT, idle)
        count = self._count
        self._count = count._replace(
            runs=count.runs + 1, removed=count.removed + removed, entries=found, ports=count.ports + ports,
            nat_entries=found_nat, unjoined=unjoined, unjoined_anew=max(0, unjoined - count.unjoined),
        )  # fmt: skip
        return removed

    async def purge(self) -> int:
        """Flows and sockets whose backend left, once, now; the number of flows' entries removed. Raises KernelError."""
        writes = self._service_writes()
        removed = await self._remove(CONNTRACK, await self._reconciler.worker.call(self._read_departed))
        ended = await self._end_sockets()
        self._purged_at = writes
        count = self._count
        self._count = count._replace(departed=count.departed + removed, sockets=count.sockets + ended)
        return removed

    async def rejudge(self) -> int:
        """Where the node's epoch went back, as after a restored log: flows that were judged under a later one are
        judged again with their next packet. The number of their entries. Raises KernelError."""
        epoch = await self._reconciler.worker.call(self._realized_epoch)
        found = 0
        if self._epoch is None or epoch < self._epoch:
            undone = undone_entries(await self._reconciler.worker.call(self._kernel.dump_runtime, CONNTRACK), epoch)
            for start in range(0, len(undone), self._chunk):
                chunk = undone[start : start + self._chunk]
                await self._reconciler.worker.call(self._kernel.put_runtime, CONNTRACK, chunk)
            found = len(undone)
        self._epoch = epoch
        return found

    def _realized_epoch(self) -> int:
        rows = self._reconciler.realized_rows("node_state").values()
        return max((codec.decode_row("node_state", row).policy_epoch & ~UNSETTLED_EPOCH for row in rows), default=0)

    async def _end_sockets(self) -> int:
        """A connected datagram socket would send to the backend that left for as long as it lives. Their flows are
        forgotten after them, so that a purge broken off finds them again."""
        flows = await self._reconciler.worker.call(self._read_sockets)
        if not flows:
            return 0
        # In a thread of its own: looking through all namespaces must not keep rows waiting.
        ended = await asyncio.to_thread(self._kernel.end_sockets, frozenset(flows.values()))
        await self._remove(SOCKET_FLOWS, list(flows))
        return ended

    async def _collect_always(self) -> None:
        while True:
            await asyncio.sleep(self._interval_s)
            await self._attempt(self.collect)

    async def _purge_always(self) -> None:
        """After every pass that wrote rows of services, and after the first: an agent may have died between. Likewise
        where the epoch went back."""
        while True:
            if self._reconciler.realized_generation >= 0:
                await self._attempt(self.rejudge)
            while self._reconciler.realized_generation >= 0 and self._service_writes() != self._purged_at:
                await self._attempt(self.purge)
                await asyncio.sleep(PURGE_PAUSE_S)
            await self._reconciler.wait_pass()

    async def _attempt(self, work: Callable[[], Awaitable[int]]) -> None:
        try:
            await work()
        except KernelError:
            self._count = self._count._replace(failures=self._count.failures + 1)

    def _service_writes(self) -> tuple[WriteCount, ...]:
        writes = self._reconciler.status().writes
        return tuple(writes[table] for table in SERVICE_TABLES)

    async def _remove(self, map_name: str, keys: Sequence[bytes]) -> int:
        removed = 0
        for start in range(0, len(keys), self._chunk):
            chunk = keys[start : start + self._chunk]
            removed += await self._reconciler.worker.call(self._kernel.delete_runtime, map_name, chunk)
        return removed

    def _read_expired(self) -> tuple[tuple[int, int], list[bytes], list[bytes]]:
        ports = list(self._kernel.dump_runtime(NAT))
        entries = dict(self._kernel.dump_runtime(CONNTRACK))
        now_ns = self._now_ns()
        counts = len(entries), len(ports)
        return counts, expired_keys(entries.items(), now_ns), idle_ports(ports, entries, now_ns)

    def _read_unjoined(self) -> int:
        key = METRICS_KEY.pack(SOCKETS_FULL << 2 | TRAFFIC_EGRESS)
        rows = dict(self._kernel.dump_runtime(METRICS)).get(key, b"")
        return sum(count for count, _ in METRICS_ROW.iter_unpack(rows))

    def _read_sockets(self) -> dict[bytes, int]:
        return departed_sockets(self._kernel.dump_runtime(SOCKET_FLOWS), backends_of(self._reconciler.realized_rows))

    def _read_departed(self) -> list[bytes]:
        return departed_flows(self._kernel.dump_runtime(CONNTRACK), backends_of(self._reconciler.realized_rows))
