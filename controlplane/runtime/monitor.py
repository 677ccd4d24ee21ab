"""The one consumer of the node's notification ring, and those who listen to it.

Belongs here: reading the ring when it has something, and handing each listener its share. Does not belong here: what a
notification means (datapath/notifications.py).
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

from controlplane.runtime.telemetry import Counters
from datapath.notifications import RECORD_BYTES, Notification, decode_records


class Ring(Protocol):
    """What datapath/kernel/ringbuf.py gives."""

    def fileno(self) -> int: ...

    def read(self) -> Any: ...

    def close(self) -> None: ...


class Listener:
    """A bounded queue of one monitor; `lost` counts what did not fit since it was last taken."""

    def __init__(self, records_max: int) -> None:
        self._records: deque[Notification] = deque()
        self._records_max = records_max
        self._lost = 0
        self._filled = asyncio.Event()

    def offer(self, records: Sequence[Notification]) -> int:
        """Take what fits; the number lost."""
        room = max(0, self._records_max - len(self._records))
        self._records.extend(records[:room])
        lost = max(0, len(records) - room)
        self._lost += lost
        self._filled.set()
        return lost

    async def chunks(self) -> AsyncIterator[tuple[list[Notification], int]]:
        """What has come, and how many were lost before it, for ever."""
        while True:
            await self._filled.wait()
            records, lost = list(self._records), self._lost
            self._records.clear()
            self._lost = 0
            self._filled.clear()
            yield records, lost


class Monitor:
    """Drains the ring for as long as it is started, so that the kernel never finds it full; decodes while somebody
    listens. `take` is given everything, as it is. The newest `recent_max` are kept for those who come later."""

    def __init__(
        self, records_max: int, recent_max: int, counters: Counters, take: Callable[[bytes], None]
    ) -> None:
        self._records_max = records_max
        self._recent_max = recent_max
        self._recent: deque[bytes] = deque()
        self._recent_bytes = 0
        self._counters = counters
        self._take = take
        self._listeners: set[Listener] = set()
        self._ring: Ring | None = None

    def start(self, ring: Ring) -> None:
        """Take over the node's one reader."""
        self._ring = ring
        asyncio.get_running_loop().add_reader(ring.fileno(), self._drain)

    def stop(self) -> None:
        """Let go of it."""
        ring, self._ring = self._ring, None
        if ring is not None:
            asyncio.get_running_loop().remove_reader(ring.fileno())
            ring.close()

    @contextmanager
    def listening(self) -> Iterator[Listener]:
        """A listener for as long as the block lasts."""
        listener = Listener(self._records_max)
        self._listeners.add(listener)
        try:
            yield listener
        finally:
            self._listeners.discard(listener)

    def recent(self, count: int) -> list[Notification]:
        """The last so many that were told, oldest first, or as many as are kept."""
        kept = b"".join(self._recent)
        return decode_records(kept[max(0, len(kept) - min(count, self._recent_max) * RECORD_BYTES) :])

    def _keep(self, raw: bytes) -> None:
        """Whole readings of the ring: those go that are not needed for the number kept."""
        self._recent.append(raw[-self._recent_max * RECORD_BYTES :])
        self._recent_bytes += len(self._recent[-1])
        while self._recent_bytes - len(self._recent[0]) >= self._recent_max * RECORD_BYTES:
            self._recent_bytes -= len(self._recent.popleft())

    def _drain(self) -> None:
        ring = self._ring
        if ring is None:
            return
        found = ring.read()
        self._counters.add("notifications_total", len(found))
        if not len(found):
            return
        raw = found.tobytes()
        self._take(raw)
        self._keep(raw)
        if not self._listeners:
            return
        records = decode_records(raw)
        for listener in self._listeners:
            self._counters.add("notifications_lost_total", listener.offer(records))
