"""The log in memory, for tests and simulations: the same promises, and faults on request.

Belongs here: a deterministic EventLog without clock, chance or I/O. Does not belong here: anything that the
product runs on. Every record passes the same reader as in etcd (watch.py), so that gaps, duplicates and
rewinding show alike.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import TypeVar

import msgspec

from kvstore import keys
from kvstore.append import check_claims
from kvstore.errors import ClaimConflict, Fenced, LogError, LogUnavailable, PayloadTooLarge
from kvstore.types import BATCH_BYTES_MAX, Bookmark, Claim, Position, Record, Revision, Session, Stored, Want
from kvstore.watch import Reader, Tally, Turn, Verdict, put_back

Answer = TypeVar("Answer")


class _Kept(msgspec.Struct, frozen=True):
    value: bytes
    revision: int
    lease: int = 0


class MemoryStore:
    """What etcd holds, shared by the handles of a simulated mesh. All its methods are immediate."""

    def __init__(self, cluster_id: int = 1) -> None:
        """An empty store at revision 1, as etcd's."""
        self.cluster_id = cluster_id
        self.revision = 1
        self.low = 0
        self.records: list[Record] = []
        self.kept: dict[bytes, _Kept] = {}
        self.sequences: dict[str, int] = {}
        self._undo: list[tuple[int, bytes, _Kept | None]] = []
        """Of every change of a key: the revision, and what the key held before."""
        self._truncated: dict[str, int] = {}
        """By writer, the sequence of its last record that left."""
        self._leases = 0
        self._watchers: dict[asyncio.Event, None] = {}
        """In order, so that whoever watches is woken in the same order each time."""

    def open(self, cluster: str, writer: str) -> Session:
        """A new session; the earlier one's lease, and all that is bound to it, goes."""
        self.expire_session(cluster, writer)
        self._leases += 1
        key = keys.session_key(keys.checked_name("cluster", cluster), keys.checked_name("writer", writer))
        token = self.put(key, b"", self._leases)
        return Session(cluster, writer, token, self._leases)

    def expire_session(self, cluster: str, writer: str) -> None:
        """What a lease's end does: the session and everything bound to its lease are gone."""
        session = self.kept.get(keys.session_key(cluster, writer))
        if session is not None:
            self.revoke(session.lease)

    def revoke(self, lease: int) -> None:
        """Delete every key bound to the lease."""
        bound = [key for key, kept in self.kept.items() if kept.lease == lease]
        self.revision += bool(bound)
        for key in bound:
            self._set(key, None)

    def require(self, session: Session) -> None:
        """Raises Fenced unless the session holds its place."""
        held = self.kept.get(keys.session_key(session.cluster, session.writer))
        if held is None or held.revision != session.token:
            raise Fenced(f"session of {session.cluster}/{session.writer} with token {session.token} is gone")

    def put(self, key: bytes, value: bytes, lease: int = 0) -> Revision:
        """Overwrite one key."""
        self.revision += 1
        self._set(key, _Kept(value, self.revision, lease))
        return Revision(self.revision)

    def _set(self, key: bytes, kept: _Kept | None) -> None:
        """At the revision of now; None deletes."""
        self._undo.append((self.revision, key, self.kept.get(key)))
        if kept is None:
            del self.kept[key]
        else:
            self.kept[key] = kept

    def append(self, session: Session, payload: bytes, claims: Sequence[Claim], known: int = 0) -> Revision:
        """One step: fence, claims, record."""
        name = f"{session.cluster}/{session.writer}"
        if self.sequences.get(name, 0) < known:
            raise put_back(name, self.sequences.get(name, 0), known)
        self.require(session)
        for claim in claims:
            kept = self.kept.get(keys.claim_key(claim.key))
            if not claim.stands(kept.revision if kept else 0):
                raise ClaimConflict(claim.key, self.revision)
        self.revision += 1
        for claim in claims:
            key = keys.claim_key(claim.key)
            if claim.want is Want.FREED:
                self._set(key, None)
            else:
                held = claim.want is Want.HELD
                self._set(key, _Kept(self.kept[key].value if held else claim.value, self.revision))
        self.sequences[name] = self.sequences.get(name, 0) + 1
        self.records.append(
            Record(
                Revision(self.revision),
                session.cluster,
                session.writer,
                self.sequences[name],
                session.token,
                payload,
            )
        )
        self.wake()
        return Revision(self.revision)

    def lose_record(self, revision: int) -> None:
        """Fault: one stored record is gone, as if neither range nor watch had it."""
        self.records = [record for record in self.records if record.revision != revision]

    def put_record(self, record: Record) -> None:
        """Fault: a record that no session appended, at the next revision, under its writer's own cursor."""
        self.revision += 1
        self.sequences[f"{record.cluster}/{record.writer}"] = record.sequence
        self.records.append(msgspec.structs.replace(record, revision=Revision(self.revision)))
        self.wake()

    def truncate(self, low: int) -> None:
        """Retention: history begins after `low`."""
        self.low = low
        gone = [record for record in self.records if record.revision <= low]
        self._truncated.update({f"{record.cluster}/{record.writer}": record.sequence for record in gone})
        self.records = [record for record in self.records if record.revision > low]

    def restore(self, revision: int, *, cluster_id: int | None = None) -> None:
        """Fault: the store is put back to an earlier revision, as from a backup; not to one before `low`."""
        self.revision = revision
        self.cluster_id = self.cluster_id if cluster_id is None else cluster_id
        self.records = [record for record in self.records if record.revision <= revision]
        while self._undo and self._undo[-1][0] > revision:
            _, key, before = self._undo.pop()
            self.kept.pop(key, None)
            if before is not None:
                self.kept[key] = before
        left = {f"{record.cluster}/{record.writer}": record.sequence for record in self.records}
        self.sequences = {**self._truncated, **left}
        self.wake()

    def first_after(self, revision: int) -> int:
        """The place in `records` of the first one above a revision."""
        low, high = 0, len(self.records)
        while low < high:
            middle = (low + high) // 2
            if self.records[middle].revision <= revision:
                low = middle + 1
            else:
                high = middle
        return low

    def watcher(self) -> asyncio.Event:
        """A flag that every change of the log sets, until `unwatch`."""
        flag = asyncio.Event()
        self._watchers[flag] = None
        return flag

    def unwatch(self, flag: asyncio.Event) -> None:
        """Forget a flag."""
        self._watchers.pop(flag, None)

    def wake(self) -> None:
        """Set every watcher's flag."""
        for flag in self._watchers:
            flag.set()


class MemoryLog:
    """One handle on a MemoryStore: an EventLog and a LogStatus."""

    def __init__(self, store: MemoryStore | None = None) -> None:
        """A handle on `store`, or on a new empty one."""
        self.store = MemoryStore() if store is None else store
        self.endpoints: Sequence[str] = ("memory",)
        self.connected = True
        self.unavailable_since: float | None = None
        self.last_error = ""
        self.full_since: float | None = None
        self.reconnects = 0
        self._tally = Tally()
        self._closed = False
        self.disturb: Callable[[Sequence[Record]], Sequence[Record]] | None = None
        """Changes what a watch delivers: records twice, or those of one writer in another order. The range that a
        reader goes back to then sees the log as it is."""
        self._faults: dict[str, list[tuple[LogError, bool]]] = {}
        self._in_doubt: dict[Session, tuple[bytes, Sequence[Claim], Revision]] = {}

    @property
    def refused(self) -> int:
        """Records that carried a fencing token older than one seen before."""
        return self._tally.refused

    @property
    def last_refused(self) -> str:
        """Which was the latest of them, and why."""
        return self._tally.last_refused

    @property
    def holes(self) -> int:
        """Records that came out of sequence."""
        return self._tally.holes

    @property
    def cluster_id(self) -> int:
        """The store's own id, for Position.cluster_id."""
        return self.store.cluster_id

    def fail_next(self, call: str, error: LogError | None = None, *, landed: bool = False) -> None:
        """Fault: the next `call` ("append", "head", ...) of this handle raises `error` (LogUnavailable).

        `landed=True` lets it take effect first, so that only the answer is lost.
        """
        self._faults.setdefault(call, []).append(
            (error or LogUnavailable(f"{call}: the answer was lost"), landed)
        )

    def disconnect(self, now: float = 0.0) -> None:
        """Fault: this handle cannot reach the store until `reconnect`; followers wait."""
        self.connected, self.unavailable_since, self.last_error = False, now, "disconnected"

    def reconnect(self) -> None:
        """End of `disconnect`."""
        self.connected, self.unavailable_since = True, None
        self.reconnects += 1
        self.store.wake()

    async def open_session(self, cluster: str, writer: str) -> Session:
        """See EventLog."""
        return self._call("open_session", lambda: self.store.open(cluster, writer))

    async def close_session(self, session: Session) -> None:
        """See EventLog."""
        if self.connected:
            self.store.revoke(session.lease)

    async def append(
        self, session: Session, payload: bytes, claims: Sequence[Claim] = (), *, known: int = 0
    ) -> Revision:
        """See EventLog."""
        if len(payload) > BATCH_BYTES_MAX:
            raise PayloadTooLarge(f"payload of {len(payload)} bytes: at most {BATCH_BYTES_MAX}")
        check_claims(claims)
        doubt = self._in_doubt.pop(session, None) if self.connected else None
        if doubt is not None and doubt[:2] == (payload, tuple(claims)):
            return doubt[2]
        landed: list[Revision] = []

        def append() -> Revision:
            landed.append(self.store.append(session, payload, claims, known))
            return landed[0]

        try:
            return self._call("append", append)
        except LogError:
            if landed:
                self._in_doubt[session] = (payload, tuple(claims), landed[0])
            raise

    async def head(self) -> Revision:
        """See EventLog."""
        return self._call("head", lambda: Revision(self.store.revision))

    async def position(self) -> Position:
        """The position of a reader that holds everything up to now."""
        return self._call(
            "position",
            lambda: Position(
                Revision(self.store.revision), dict(self.store.sequences), self.store.cluster_id
            ),
        )

    async def read(self, after: Position, through: Revision | None = None) -> AsyncIterator[Record]:
        """See EventLog."""
        reader = Reader(after, self._tally)
        end, cursors = self._call("read", lambda: self._begin(reader))
        last = end if through is None else min(end, through)
        for record in self._range(reader, last):
            yield record
        reader.caught_up(last, cursors if last == end else {})

    async def follow(self, after: Position) -> AsyncIterator[Record | Bookmark]:
        """See EventLog. Quiet means here that nothing is left to deliver; there is no clock."""
        reader = Reader(after, self._tally)
        flag = self.store.watcher()
        got_through = False
        try:
            while True:
                flag.clear()
                if self.connected or self._closed or not got_through:
                    end, cursors = self._call("follow", lambda: self._begin(reader))
                    if got_through:
                        for record in self._watched(reader, end):
                            yield record
                    got_through = True
                    for record in self._range(reader, end):
                        yield record
                    reader.caught_up(end, cursors)
                    yield Bookmark(Revision(reader.revision), reader.cluster_id)
                    reader.turn(Turn.CANCELLED)
                if not flag.is_set():
                    await flag.wait()
        finally:
            self.store.unwatch(flag)

    async def put(
        self, key: str, value: bytes, session: Session | None = None, *, lasting: bool = False
    ) -> Revision:
        """See EventLog."""
        place = keys.side_key(key)

        def put() -> Revision:
            if session is not None:
                self.store.require(session)
            return self.store.put(place, value, 0 if session is None or lasting else session.lease)

        return self._call("put", put)

    async def acquire(self, session: Session, duty: str) -> bool:
        """See EventLog."""
        key = keys.duty_key(duty)

        def acquire() -> bool:
            self.store.require(session)
            if key not in self.store.kept:
                self.store.put(key, f"{session.cluster}/{session.writer}".encode(), session.lease)
            return self.store.kept[key].lease == session.lease

        return self._call("acquire", acquire)

    async def list(self, prefix: str) -> Sequence[Stored]:
        """See EventLog."""
        first, end = keys.list_range(prefix)
        return self._call(
            "list",
            lambda: tuple(
                Stored(keys.relative(key), kept.value, Revision(kept.revision))
                for key, kept in sorted(self.store.kept.items())
                if first <= key < end
            ),
        )

    async def close(self) -> None:
        """See EventLog."""
        self._closed = True
        self.disconnect()
        self.last_error = "this log is closed"
        self.store.wake()

    def _begin(self, reader: Reader) -> tuple[int, dict[str, int]]:
        """The head, and the writers' cursors there."""
        reader.meet(self.store.revision, self.store.cluster_id, (self.store.low,), self.store.sequences)
        self._confirm(reader, (self.store.low,))
        return self.store.revision, dict(self.store.sequences)

    def _confirm(self, reader: Reader, lows: Sequence[int]) -> None:
        """The store is the one that the reader has read."""
        place = self.store.first_after(reader.last - 1)
        there = [each for each in self.store.records[place : place + 1] if each.revision == reader.last]
        held = [each.revision for each in there if each.sequence == reader.held(f"{each.cluster}/{each.writer}")]
        reader.confirm(held, (), lows)

    def _range(self, reader: Reader, through: int) -> Iterator[Record]:
        for record in self.store.records[self.store.first_after(reader.revision) :]:
            if record.revision <= through and reader.accept(record) is Verdict.DELIVER:
                yield record

    def _watched(self, reader: Reader, through: int) -> Iterator[Record]:
        """What comes by a disturbed watch, until the reader sees that something is missing."""
        if self.disturb is None:
            return
        reader.turn(Turn.CAUGHT_UP)
        coming = self.store.records[self.store.first_after(reader.revision) :]
        for record in self.disturb([each for each in coming if each.revision <= through]):
            verdict = reader.accept(record)
            if verdict is Verdict.HOLE:
                break
            if verdict is Verdict.DELIVER:
                yield record
        reader.turn(Turn.CANCELLED)

    def _call(self, name: str, act: Callable[[], Answer]) -> Answer:
        if not self.connected:
            raise LogUnavailable(f"{name}: {self.last_error}")
        faults = self._faults.get(name)
        error, landed = faults.pop(0) if faults else (None, False)
        if error is not None:
            if landed:
                act()
            raise error
        return act()
