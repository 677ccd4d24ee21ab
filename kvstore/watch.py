"""How a reader keeps its place: catch-up, hand-over to the watch, duplicates, holes, a rewound store.

Belongs here: the phases and their transitions, what happens to each record that arrives, and where history begins. Does
not belong here: what a catch-up reads in which order (lanes.py), ranges and watches on the wire, waiting, retries.

No record is trusted because the watch delivered it: sequences are dense per writer, so a hole, a repeat or a
step back shows, whatever the watch did. A hole while watching sends the reader back to the range once; a hole
in the range is real.
"""

import enum
from collections.abc import Collection, Iterable, Mapping, Sequence

from kvstore.errors import HistoryTruncated, LogRewound, SequenceGap
from kvstore.types import Position, Record, Revision

RESUME_BY_WATCH_MAX = 1000
"""etcd sends an old watcher 1000 revisions each 100 ms, and reads all that is behind them under its lock each
time: further back than this a reader ranges."""


class Phase(enum.Enum):
    """What a reader does now."""

    CATCH_UP = "range from the position"
    WATCH = "watch from the position"
    RESUME = "ask for the head, then choose between range and watch"


class Turn(enum.Enum):
    """What can happen to a reader between records."""

    CAUGHT_UP = "everything up to the head seen at the start is held"
    DISCONNECTED = "the stream ended, or the store is away"
    CANCELLED = "etcd cancelled the watch, for compaction or another reason"
    HOLE = "a record is missing or out of place"
    NEAR = "the head is close to the position"
    FAR = "the head is far from the position"


TRANSITIONS: Mapping[tuple[Phase, Turn], Phase] = {
    (Phase.CATCH_UP, Turn.CAUGHT_UP): Phase.WATCH,
    (Phase.CATCH_UP, Turn.DISCONNECTED): Phase.CATCH_UP,
    (Phase.WATCH, Turn.DISCONNECTED): Phase.RESUME,
    (Phase.WATCH, Turn.CANCELLED): Phase.CATCH_UP,
    (Phase.WATCH, Turn.HOLE): Phase.CATCH_UP,
    (Phase.RESUME, Turn.DISCONNECTED): Phase.RESUME,
    (Phase.RESUME, Turn.NEAR): Phase.WATCH,
    (Phase.RESUME, Turn.FAR): Phase.CATCH_UP,
}


class Verdict(enum.Enum):
    """What becomes of one record."""

    DELIVER = "next in order"
    HELD = "at or below the position: drop it"
    REFUSED = "its fencing token is older than one seen before from its writer: drop and count it"
    HOLE = "a record before it is missing: leave the watch and range from the position"


class Tally:
    """What readers of one log have met, for `status`: counts since the log was opened."""

    def __init__(self) -> None:
        self.refused = 0
        self.last_refused = ""
        self.holes = 0

    def refuse(self, record: str, reason: str) -> None:
        """Count a record that is not given; `record` says which."""
        self.refused += 1
        self.last_refused = f"{record}: {reason}"


class Reader:
    """One reader's place in the log. Not shared; every call is immediate."""

    def __init__(self, after: Position, tally: Tally) -> None:
        """Start behind `after`; its sequences are copied."""
        self.phase = Phase.CATCH_UP
        self.revision: int = after.revision
        self.cluster_id = after.cluster_id
        self.tally = tally
        self.learns = after.learns
        self.last: int = after.revision if after.is_record else 0
        """Revision of the record taken last; 0: not known."""
        self._sequences = dict(after.sequences)
        self._tokens: dict[str, int] = {}
        self._refused: dict[str, int] = {}
        self._behind: dict[str, int] = {}

    def position(self) -> Position:
        """Everything held so far, as a value."""
        return Position(Revision(self.revision), dict(self._sequences), self.cluster_id, self.learns)

    def held(self, name: str) -> int:
        """The last sequence held of "cluster/writer"; 0: none, or not known."""
        return self._sequences.get(name, 0)

    def turn(self, turn: Turn) -> None:
        """Move to the next phase. KeyError if the turn cannot happen in this phase."""
        self.phase = TRANSITIONS[self.phase, turn]
        self._behind = {}

    def meet(self, head: int, cluster_id: int, lows: Sequence[int], cursors: Mapping[str, int]) -> None:
        """Compare with what the store says of itself; `cursors` maps "cluster/writer" to the last sequence it holds.

        A store that was put back and has grown beyond this reader's revision since is known by a writer that has not
        written as much again. Raises LogRewound and HistoryTruncated.
        """
        if self.cluster_id and cluster_id != self.cluster_id:
            raise LogRewound(
                f"the store has cluster id {cluster_id:x}; the records held came from {self.cluster_id:x}"
            )
        if head < self.revision:
            raise LogRewound(f"the store is at revision {head}; this reader has already seen {self.revision}")
        for name, held in self._sequences.items():
            if cursors.get(name, 0) < held:
                raise put_back(name, cursors.get(name, 0), held)
        self.cluster_id = cluster_id
        require_history(self.revision, lows)

    def confirm(self, held: Collection[int], spans: Iterable[tuple[int, int]], lows: Sequence[int]) -> None:
        """A store that was put back may have grown beyond all that `meet` compares: then it has another record, or
        none, where this reader took its last one. `held` are the revisions of the records that the store has loose
        under the sequences held, `spans` the first and last revisions of its segments. Raises LogRewound."""
        if not self.last or max(lows, default=0) >= self.last:
            return
        later = max(held, default=0)
        if later > self.last:
            raise LogRewound(f"the store has at revision {later} what this reader took at or before {self.last}")
        if self.last not in held and not any(opened <= self.last <= through for opened, through in spans):
            raise not_there(self.last)

    def resume(self, head: int) -> None:
        """After a disconnect, with the store at `head`: watch on if the position is near it, else range."""
        self.turn(Turn.NEAR if head - self.revision <= RESUME_BY_WATCH_MAX else Turn.FAR)

    def caught_up(self, head: int, cursors: Mapping[str, int]) -> None:
        """Everything at or below `head` has been offered; `cursors` are the writers' at that revision.

        What a cursor counts and no record brought is missing: another writer's record overtook it on a watch, and the
        range begins behind that. Raises SequenceGap.
        """
        for name, last in cursors.items():
            held = self._sequences.get(name, last if self.learns else 0)
            if max(held, self._refused.get(name, 0)) < last:
                self.tally.holes += 1
                raise SequenceGap(name, held + 1, last, head)
        self.revision = max(self.revision, head)
        self.turn(Turn.CAUGHT_UP)

    def accept(self, record: Record) -> Verdict:
        """Judge the next record, in revision order. Raises SequenceGap for a hole that a range has shown, or that no
        range can fill because it is behind the position."""
        name = f"{record.cluster}/{record.writer}"
        is_old = record.token < self._tokens.get(name, 0)
        if record.revision <= self.revision:
            held = self._sequences.get(name, record.sequence if self.learns else 0)
            if held < record.sequence and not is_old:
                self.tally.holes += 1
                raise SequenceGap(name, held + 1, record.sequence, record.revision)
            return Verdict.HELD
        if is_old:
            self._refused[name] = record.sequence
            self.tally.refuse(record_text(record), f"its session {record.token} had ended before")
            return Verdict.REFUSED
        unknown = record.sequence - 1 if self.learns else 0
        expected = self._sequences.get(name, unknown) + 1
        if record.sequence != expected:
            self.tally.holes += 1
            if self.phase is Phase.WATCH:
                return Verdict.HOLE
            raise SequenceGap(name, expected, record.sequence, record.revision)
        self._sequences[name] = expected
        self._tokens[name] = record.token
        self.revision = self.last = record.revision
        return Verdict.DELIVER

    def overdue(self, cursors: Mapping[str, int]) -> bool:
        """Whether the watch owes records that it had since the audit before this one.

        `cursors` maps "cluster/writer" to the last sequence that the store says it holds. A writer that was
        behind at the previous audit and still has not moved is overdue: its record was lost on the way, not
        late.
        """
        behind = {
            name: self._sequences.get(name, 0)
            for name, last in cursors.items()
            if last > self._sequences.get(name, last if self.learns else 0)
        }
        late = any(self._behind.get(name) == held for name, held in behind.items())
        self._behind = behind
        return late

    @property
    def waiting(self) -> bool:
        """True if the last audit found a writer ahead of what was delivered."""
        return bool(self._behind)


def put_back(name: str, held: int, seen: int) -> LogRewound:
    """What a store is that has fewer records of a writer than were seen in it."""
    return LogRewound(f"the store holds {held} records of {name}; this reader has already seen {seen}")


def not_there(revision: int) -> LogRewound:
    """What a store is that lacks the record that a reader took last."""
    return LogRewound(f"the store has no record at revision {revision}, where this reader took one")


def record_text(record: Record) -> str:
    """For messages."""
    return f"record {record.sequence} of {record.cluster}/{record.writer} at revision {record.revision}"


def require_history(after: int, lows: Sequence[int]) -> None:
    """Raises HistoryTruncated if any cluster's history begins above `after`."""
    low = max(lows, default=0)
    if low > after:
        raise HistoryTruncated(low)


def beginnings(
    lows: Mapping[str, tuple[int, int]], markers: Sequence[tuple[str, int, int]]
) -> Mapping[str, int]:
    """By cluster, the revision behind which its history in the store begins: `lows` are (revision, segment) as the
    store says it, `markers` (cluster, number, opened) of the segments that it has. A full store loses segments before
    it can say so: then the oldest that is left tells."""
    found = {cluster: revision for cluster, (revision, _) in lows.items()}
    for cluster, number, opened in sorted(markers, reverse=True):
        revision, segment = lows.get(cluster, (0, 0))
        says_so = number <= segment + 1 or (revision and not segment)
        found[cluster] = revision if says_so else max(revision, opened - 1)
    return found
