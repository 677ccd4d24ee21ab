"""The mesh as it was at a revision: folded again from the nearest point that is known.

Belongs here: which point to start from, a small cache of what was asked for, and which revision a time is. Does not
belong here: how the answer reads (api/), the meaning of a record (projections/).
"""

import asyncio
import time
from array import array
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Protocol

import msgspec

from controlplane.history.points import Point
from controlplane.history.provenance import Origins
from controlplane.history.recent import Recent
from controlplane.projections.state import State
from kvstore.errors import HistoryTruncated, LogUnavailable
from kvstore.types import Bookmark, Position, Record, Revision, Stored

MOMENTS_MAX = 6
"""States kept of those asked for: a comparison needs two, a search by halves goes on from a near one."""
MOMENTS_MIN = 2
THINGS_MAX = 50_000
"""Beyond so many things in all states kept, a few tens of MB, only MOMENTS_MIN are."""
CHUNK_RECORDS = 256
"""Records folded before others get a turn: about 5 ms."""


class Moment(msgspec.Struct, frozen=True):
    """The mesh after everything up to `revision`. Read only: it is shared. `time_ns`: of the last record's writer."""

    revision: int
    time_ns: int
    state: State
    origins: Origins


class BeyondHead(Exception):
    """The revision is not applied yet, or does not exist."""


class BeforeHistory(Exception):
    """The time lies before the first record that there is."""


class ReadableLog(Protocol):
    """What the history needs of kvstore.api.EventLog; a capsule's log has no more."""

    def read(self, after: Position, through: Revision | None = None) -> AsyncIterator[Record]: ...

    def follow(self, after: Position) -> AsyncIterator[Record | Bookmark]: ...

    async def list(self, prefix: str) -> Sequence[Stored]: ...


SharedState = Callable[[int], Awaitable[State | None]]
"""A state that is kept beside the log, at or before a revision."""


class _Envelope(msgspec.Struct, frozen=True, array_like=True):
    schema_version: int
    time_ns: int
    cause: int


_envelope = msgspec.msgpack.Decoder(_Envelope).decode


def time_of(record: Record) -> int:
    """The writer's clock in the record's envelope; 0 where it cannot be read."""
    try:
        return _envelope(record.payload).time_ns
    except (msgspec.MsgspecError, OverflowError):
        return 0


class Past:
    """The history of one log. `newest` is the revision up to which all is applied here."""

    def __init__(
        self, log: ReadableLog, newest: Callable[[], int], recent: Recent | None = None,
        recent_start: Callable[[], State | None] | None = None, base: Moment | None = None,
        now_ns: Callable[[], int] = time.time_ns, shared: SharedState | None = None,
        old_log: ReadableLog | None = None, whereabouts: Callable[[], Awaitable[str]] | None = None,
    ) -> None:  # fmt: skip
        """`recent_start` loads the state behind which `recent` begins. `base`: history begins there. `shared` is asked
        where the log has forgotten its beginning; then `old_log`, which may know more. `whereabouts` tells a person
        where the rest is."""
        self._log = log
        self._old_log = old_log or log
        self._newest = newest
        self._recent = recent
        self._recent_start = recent_start
        self._base = base
        self.now_ns = now_ns
        self._shared = shared
        self._whereabouts = whereabouts
        self._shared_revision = 0
        self._moments: dict[int, Moment] = {}
        self._folding = asyncio.Lock()
        self._revisions: array[int] = array("q")
        self._times: array[int] = array("q")
        self._lives = 0
        """How often the log was put back to a backup."""
        self._forget_times()

    async def moment(self, revision: int) -> Moment:
        """Raises BeyondHead, LogError; HistoryTruncated where the history does not reach so far back."""
        newest = self._newest()
        if revision > newest:
            raise BeyondHead(f"revision {revision} is not there yet; the newest here is {newest}")
        async with self._folding:
            lives = self._lives
            known = self._moments.pop(revision, None) or await self._folded(revision)
            if lives != self._lives:
                raise BeyondHead("the log was put back to a backup meanwhile; ask again")
            self._moments[revision] = known
            while self._holds_too_much():
                del self._moments[next(iter(self._moments))]
        return known

    def forget(self) -> None:
        """The log was put back to a backup: nothing that was read of it counts."""
        self._lives += 1
        self._moments.clear()
        self._forget_times()

    def _forget_times(self) -> None:
        del self._revisions[:], self._times[:]
        self._indexed = Position() if self._base is None else self._base.state.position

    def _holds_too_much(self) -> bool:
        things = sum(len(each.origins.held) for each in self._moments.values())
        return len(self._moments) > (MOMENTS_MAX if things <= THINGS_MAX else MOMENTS_MIN)

    async def resolve(self, point: Point) -> int:
        """The revision of a point; of a time, the last record whose writer's clock showed it or less.

        Raises LogError, BeforeHistory.
        """
        if point.revision is not None:
            return point.revision
        time_ns = point.time_at(self.now_ns())
        async with self._folding:
            try:
                await self._index()
            except LogUnavailable:
                return self._recent_at(time_ns)
            except HistoryTruncated:
                await self._index_truncated(time_ns)
        found = self._indexed_at(time_ns)
        if found is not None:
            return found
        if self._base is not None and self._base.time_ns <= time_ns:
            return self._base.revision
        raise BeforeHistory("no record was written at or before that time")

    async def _index_truncated(self, time_ns: int) -> None:
        """From the shared checkpoint; from the first record where that is not old enough, or is none."""
        start = await self._shared_start(self._newest())
        if start is not None:
            self._indexed = start.state.position
            await self._index()
            if self._indexed_at(time_ns) is not None:
                return
        del self._revisions[:], self._times[:]
        self._indexed = Position()
        await self._index(self._old_log)

    def _indexed_at(self, time_ns: int) -> int | None:
        """The last revision of this time or before, of those that are indexed."""
        for place in range(len(self._times) - 1, -1, -1):
            if self._times[place] <= time_ns:
                return self._revisions[place]
        return None

    def _recent_at(self, time_ns: int) -> int:
        """The same, among the records that this process holds itself."""
        recent = self._recent
        kept = [] if recent is None else list(recent.between(recent.start_revision, self._newest()))
        for record in reversed(kept):
            if time_of(record) <= time_ns:
                return record.revision
        raise LogUnavailable("the log is away, and the time lies before what this process has applied since its start")

    async def records(self, after: int, through: int) -> AsyncIterator[Record]:
        """Those with `after` < revision <= `through`, in order. Raises LogError."""
        async for record in self.records_from(self.position_near(after), after, through):
            yield record

    async def records_from(self, start: Position, after: int, through: int | None) -> AsyncIterator[Record]:
        """The same, read from a place that is known, and not behind `after`; `through` None: up to the log's head."""
        told = after
        try:
            async for record in self._read(start, through):
                if record.revision > told:
                    yield record
                    told = record.revision
            return
        except HistoryTruncated:
            if self._old_log is self._log:
                raise
        async for record in self._read(start, through, self._old_log):
            if record.revision > told:
                yield record

    def oldest(self, low: int) -> int:
        """The oldest revision that can be asked for, where history in the log begins after `low`."""
        if self._base is not None:
            return self._base.revision
        known = [self._shared_revision, self._recent.start_revision if self._recent is not None else 0]
        return min((revision for revision in known if revision > 0), default=low + 1)

    async def elsewhere(self) -> str:
        """Where history is that cannot be asked for here, as an end of a sentence; "" if nobody knows."""
        found = await self._whereabouts() if self._whereabouts else ""
        return f"; {found}" if found else ""

    async def _folded(self, revision: int) -> Moment:
        start = self._nearest(revision)
        try:
            return await self._fold(start, revision)
        except (LogUnavailable, HistoryTruncated) as error:
            held = await self._local_start(revision)
            if held is None and isinstance(error, HistoryTruncated):
                held = await self._shared_start(revision)
            if held is not None and (start is None or start.revision < held.revision):
                return await self._fold(held, revision)
            if not isinstance(error, HistoryTruncated):
                raise
        return await self._fold(start, revision, self._old_log)

    async def _fold(self, start: Moment | None, revision: int, log: ReadableLog | None = None) -> Moment:
        state = State() if start is None else start.state.copy()
        origins = Origins() if start is None else start.origins.copy()
        time_ns = 0 if start is None else start.time_ns
        folded = 0
        async for record in self._read(state.position, revision, log):
            origins.put(record, state.apply(record))
            time_ns = time_of(record)
            folded += 1
            if folded % CHUNK_RECORDS == 0:
                await asyncio.sleep(0)
        return Moment(revision, time_ns, state, origins)

    def _nearest(self, revision: int) -> Moment | None:
        known = [each for each in self._moments.values() if each.revision <= revision]
        if self._base is not None:
            if revision < self._base.revision:
                raise HistoryTruncated(self._base.revision)
            known.append(self._base)
        return max(known, key=lambda each: each.revision, default=None)

    async def _local_start(self, revision: int) -> Moment | None:
        """What this process started from, when the log itself does not answer."""
        recent = self._recent
        if recent is None or self._recent_start is None or not recent.covers(recent.start_revision, revision):
            return None
        state = await asyncio.to_thread(self._recent_start)
        if state is None or state.revision != recent.start_revision or state.revision > revision:
            return None
        return Moment(state.revision, 0, state, Origins(state.revision))

    async def _shared_start(self, revision: int) -> Moment | None:
        state = None if self._shared is None else await self._shared(revision)
        if state is None:
            return None
        self._shared_revision = state.revision
        return Moment(state.revision, 0, state, Origins(state.revision))

    async def _read(
        self, after: Position, through: int | None, log: ReadableLog | None = None
    ) -> AsyncIterator[Record]:
        """From the log; from this process's memory where it holds all that is asked for."""
        if self._recent is not None and through is not None and self._recent.covers(after.revision, through):
            for record in self._recent.between(after.revision, through):
                yield record
            return
        async for record in (log or self._log).read(after, None if through is None else Revision(through)):
            yield record

    def position_near(self, after: int) -> Position:
        """A place to read from that is known and not behind `after`."""
        known = [each.state.position for each in self._moments.values() if each.revision <= after]
        if self._base is not None:
            known.append(self._base.state.position)
        return max(known, key=lambda each: each.revision, default=Position())

    async def _index(self, log: ReadableLog | None = None) -> None:
        """Times of the records that came since the last time."""
        newest, seen = self._newest(), 0
        sequences = dict(self._indexed.sequences)
        async for record in self._read(self._indexed, newest, log):
            self._revisions.append(record.revision)
            self._times.append(time_of(record))
            sequences[f"{record.cluster}/{record.writer}"] = record.sequence
            self._indexed = Position(record.revision, sequences, self._indexed.cluster_id)
            seen += 1
            if seen % CHUNK_RECORDS == 0:
                await asyncio.sleep(0)
