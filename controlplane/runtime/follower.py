"""Keeps a State as far as the log is, for as long as the process lives.

Belongs here: following, waiting for a revision, being in sync, and starting again from a trusted point after the log
said something impossible. Does not belong here: what a record means (projections/), what the kernel makes of it (feed).
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence

import structlog

from controlplane.codec import MalformedBatch, decode
from controlplane.desired.turns import MOVED, changes_ports, gives_meaning, turn_of
from controlplane.events import Event, Unknown
from controlplane.history.recent import Recent
from controlplane.projections.change import Change
from controlplane.projections.state import State
from controlplane.runtime.clock import Clock
from controlplane.runtime.shared_checkpoint import shared_state
from controlplane.runtime.telemetry import Counters
from controlplane.settings import CommonSettings
from kvstore.api import EventLog
from kvstore.errors import ArchiveDamaged, HistoryTruncated, LogError, LogRewound, LogUnavailable, SequenceGap
from kvstore.types import Bookmark, Record

Refold = Callable[[LogError], Awaitable[State]]
"""Folds a state that is right up to some revision, from a trusted point, without the reader that failed."""
Rewound = Callable[[State, State], None]
"""Called with what was held and what a store that was put back to a backup holds instead, before this is shown."""


class Follower:
    """One state and how far it is. `state` is replaced by another object after a repair: never keep it."""

    def __init__(
        self,
        log: EventLog,
        state: State,
        clock: Clock,
        settings: CommonSettings,
        counters: Counters,
        refold: Refold,
    ) -> None:
        self.state = state
        self.applied_revision = state.revision
        self.head_revision = state.revision
        self.in_sync = False
        self.has_been_in_sync = False
        """Since the start: what is held is then what the log held, and no older checkpoint's."""
        self.repairing = ""
        self.held = ""
        """Why nothing is decided upon or derived from the state yet; "" while it may be. A node compares first what it
        has written with what the log holds."""
        self.on_rewind: list[Rewound] = []
        self.gaps = 0
        self.rewinds = 0
        self.recent = Recent(state.revision)
        """What was applied since the start, for questions about the near past."""
        self._log = log
        self._clock = clock
        self._settings = settings
        self._counters = counters
        self._refold = refold
        self.on_turn: Callable[[], None] | None = None
        """Called before a record is applied that must not be realized together with what is to be taken."""
        self._changes: list[tuple[Change, ...]] = []
        self._has_moved = self._has_meant = False
        self._replaced = False
        self._work = asyncio.Event()
        self._moved = asyncio.Event()
        self._logger = structlog.get_logger()

    async def run(self) -> None:
        """Follow for ever. Whatever the log does, the last good state stays served."""
        delay_s = self._settings.retry_s
        is_begun = self.state.revision > 0
        while True:
            before = self.applied_revision
            try:
                if not is_begun:
                    await self._begin()
                    is_begun = True
                await self._follow()
            except LogUnavailable:
                pass
            except (SequenceGap, HistoryTruncated, LogRewound, ArchiveDamaged) as error:
                await self._repair(error)
            moved = self.applied_revision > before
            delay_s = self._settings.retry_s if moved else min(delay_s * 2, self._settings.retry_s_max)
            await self._clock.sleep_s(self._clock.jitter(delay_s))

    async def wait_applied(self, revision: int, timeout_s: float) -> None:
        """Until everything up to `revision` is in `state`. Raises TimeoutError."""
        async with asyncio.timeout(timeout_s):
            while self.applied_revision < revision:
                await self._moved.wait()

    async def wait_in_sync(self, timeout_s: float) -> None:
        """Until everything up to the head seen first is in `state`. Raises TimeoutError."""
        async with asyncio.timeout(timeout_s):
            while not self.in_sync:
                await self._moved.wait()

    async def wait_released(self, timeout_s: float) -> None:
        """Until nothing holds the state back. Raises TimeoutError."""
        async with asyncio.timeout(timeout_s):
            while self.held:
                await self._moved.wait()

    def hold(self, reason: str) -> None:
        """Hold the state back until `release`."""
        self.held = reason

    def release(self) -> None:
        """What waits for the state may have it."""
        self.held = ""
        self._wake()

    async def wait_moved(self) -> None:
        """Until anything is applied, or a bookmark came."""
        await self._moved.wait()

    async def wait_changes(self) -> None:
        """Until there is something for `take_changes`."""
        await self._work.wait()

    def take_changes(self) -> tuple[bool, Sequence[tuple[Change, ...]]]:
        """What `State.apply` returned since the last call. True in front: the state is another one, derive in full."""
        replaced, changes = self._replaced, self._changes
        self._replaced, self._changes = False, []
        self._has_moved = self._has_meant = False
        self._work.clear()
        return replaced, changes

    def learn_head(self, revision: int) -> None:
        """A record is known to exist at `revision`."""
        self.head_revision = max(self.head_revision, revision)

    async def _begin(self) -> None:
        """Without a state of its own a process takes the one that an operator keeps in etcd: folding the whole history
        takes longer, and part of it may have left etcd."""
        state = await shared_state(self._log, 0)
        if state is not None:
            self._replace(state)

    async def _follow(self) -> None:
        applied = 0
        async for item in self._log.follow(self.state.position):
            if isinstance(item, Bookmark):
                self._bookmark(item)
                continue
            self._apply(item)
            applied += 1
            if applied % self._settings.follow_records_max == 0:
                await asyncio.sleep(0)

    def _apply(self, record: Record) -> None:
        if self.on_turn is not None and self._begins_turn(record):
            self.on_turn()
        changes = self.state.apply(record)
        self._changes.append(changes)
        self._has_moved = self._has_moved or turn_of(changes) == MOVED
        self._has_meant = self._has_meant or any(change.kind in ("policy", "settings") for change in changes)
        self.recent.add(record)
        self.applied_revision = max(self.applied_revision, record.revision)
        self.learn_head(record.revision)
        self._counters.add("log_records_total", cluster=record.cluster)
        self._work.set()
        self._wake()

    def _begins_turn(self, record: Record) -> bool:
        """Records are decoded for it only where something waits that another could have to wait for."""
        if self._has_moved and gives_meaning(_events_of(record)):
            return True
        return self._has_meant and changes_ports(_events_of(record), self.state, record.cluster)

    def _bookmark(self, bookmark: Bookmark) -> None:
        self.applied_revision = max(self.applied_revision, bookmark.revision)
        self.state.store_id = bookmark.store_id
        self.in_sync = self.has_been_in_sync = True
        self.repairing = ""
        self._wake()

    def _wake(self) -> None:
        moved, self._moved = self._moved, asyncio.Event()
        moved.set()

    async def _repair(self, error: LogError) -> None:
        """Nothing is merged: the state is folded anew, and replaces this one only when it is whole."""
        self.gaps += isinstance(error, SequenceGap)
        self.rewinds += isinstance(error, LogRewound)
        self._counters.add("log_gap_total", kind=type(error).__name__)
        self.in_sync = False
        self.repairing = str(error)
        self._logger.error("the log contradicts what was read; folding again", reason=str(error))
        try:
            state = await self._refold(error)
        except LogError as again:
            self._logger.error("folding again failed; serving the state held", reason=str(again))
            return
        if isinstance(error, LogRewound):
            for tell in self.on_rewind:
                tell(self.state, state)
        self._replace(state)

    def _replace(self, state: State) -> None:
        self.state = state
        self.recent.forget()
        self.applied_revision = state.revision
        self.head_revision = state.revision
        self._changes.clear()
        self._replaced = True
        self._work.set()
        self._wake()


def _events_of(record: Record) -> Sequence[Event | Unknown]:
    try:
        return decode(record.payload).events
    except MalformedBatch:
        return ()
