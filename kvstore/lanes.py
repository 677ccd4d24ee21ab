"""What a catch-up reads, in which order, and how it becomes the one order of the log.

Belongs here: the pages to ask for, how many records may wait in memory, the merge by revision. Does not belong here:
ranges on the wire, what becomes of a record in its place (watch.py). Pure.

A cluster's records are in segments, which follow each other, and behind the last segment they are loose: kept by
writer, each writer's in its own order. So a cluster is a lane: segments first, then as many tails as it has writers. A
lane is settled below a revision if all that it has below is read. What lies below the least of the lanes' settled
revisions is ready, in order.
"""

import math
from bisect import bisect_left
from collections import deque
from collections.abc import Iterable, Mapping, Sequence

import msgspec

from kvstore.types import Record

PAGE_RECORDS = 1000
PAGE_BYTES = 4 * 1024 * 1024
"""What one page of loose records is to hold, of all its writers together."""
SHARE_MIN = 8
"""A writer's least share of it: many small ranges cost more than a few records too many."""
RANGES_MAX = 100
"""Ranges of one page; etcd takes 128 operations in a transaction."""

SETTLED = math.inf


class Segment(msgspec.Struct, frozen=True):
    """One segment to read: the cluster's records from `opened` to `through`."""

    cluster: str
    number: int
    opened: int
    through: int


class Range(msgspec.Struct, frozen=True):
    """One writer's loose records from sequence `first` to `last`."""

    writer: str
    first: int
    last: int


class Loose(msgspec.Struct, frozen=True):
    """Ranges of several writers of one cluster, read at once."""

    cluster: str
    ranges: Sequence[Range]


Page = Segment | Loose


class Tail:
    """One writer's loose records. `last` is the newest that is known of, `mean_bytes` what a payload of it takes."""

    def __init__(self, writer: str, first: int, last: int, mean_bytes: float, settled: float) -> None:
        """All of it is still to be asked for."""
        self.writer = writer
        self.first = first
        self.next = first
        self.last = last
        self.mean_bytes = max(mean_bytes, 1.0)
        self.settled = settled
        self.ahead = 0
        """Records asked for that are not ready yet."""

    @property
    def left(self) -> int:
        """Records not asked for yet."""
        return self.last - self.next + 1


class Lane:
    """One cluster's records. `segments` in order; `tails` follow them."""

    def __init__(self, cluster: str, segments: Iterable[Segment], tails: Iterable[Tail]) -> None:
        """Nothing is asked for yet."""
        self.cluster = cluster
        self.tails: Mapping[str, Tail] = {tail.writer: tail for tail in tails if tail.left > 0}
        self.waiting = 0
        """Records that have come and are not ready yet."""
        self._unasked = deque(segments)
        self._under_way: deque[Segment] = deque()

    @property
    def settled(self) -> float:
        """All records below this revision have come."""
        coming = self._under_way or self._unasked
        return coming[0].opened if coming else min((tail.settled for tail in self.tails.values()), default=SETTLED)

    def ask(self, through: int, depth: int) -> Page | None:
        """The next page, if one may hold records up to revision `through` and fewer than `depth` are ahead."""
        if not self._unasked:
            return self._round(through, depth)
        if len(self._under_way) + self.waiting // PAGE_RECORDS >= depth:
            return None
        self._under_way.append(self._unasked.popleft())
        return self._under_way[-1]

    def arrived(self, page: Page, records: Sequence[Record]) -> None:
        """The oldest page under way has come, with these records."""
        if isinstance(page, Segment):
            self._under_way.popleft()
            return
        newest: dict[str, int] = {}
        for record in records:
            newest[record.writer] = max(record.revision, newest.get(record.writer, 0))
            self.tails[record.writer].ahead += 1
        for each in page.ranges:
            tail = self.tails[each.writer]
            tail.ahead -= each.last - each.first + 1
            if each.writer not in newest:
                # Sequences are dense, so a range without any record has no more behind it, whatever was said.
                tail.next = tail.last + 1
            is_over = each.last == tail.last or each.writer not in newest
            tail.settled = SETTLED if is_over else newest[each.writer] + 1

    def passed(self, record: Record) -> None:
        """A record that has come is ready, or is not wanted."""
        tail = self.tails.get(record.writer)
        if tail is not None and record.sequence >= tail.first:
            tail.ahead -= 1

    def _round(self, through: int, depth: int) -> Loose | None:
        """A page's worth, shared among the writers by what each has left. None while what is under way of the hindmost
        is enough to wait until more can be asked for at once."""
        behind = sorted((tail for tail in self.tails.values() if tail.left > 0), key=lambda tail: tail.settled)
        left = sum(tail.left for tail in behind)
        chosen: list[tuple[Tail, int]] = []
        for tail in behind:
            part = tail.left / left
            share = min(max(SHARE_MIN, PAGE_RECORDS * part), max(1.0, PAGE_BYTES * part / tail.mean_bytes))
            if tail.settled <= through and tail.ahead <= (depth - 1) * share and len(chosen) < RANGES_MAX:
                chosen.append((tail, min(math.ceil(share), tail.left)))
        if not chosen or (behind[0].ahead and sum(share for _, share in chosen) < min(left, PAGE_RECORDS) / 2):
            return None
        ranges = []
        for tail, share in chosen:
            ranges.append(Range(tail.writer, tail.next, tail.next + share - 1))
            tail.next += share
            tail.ahead += share
        return Loose(self.cluster, ranges)


class Lanes:
    """All clusters' records in (after, through], from pages into one order. At most `depth` pages of each lane are
    under way or wait for others."""

    def __init__(self, lanes: Iterable[Lane], after: int, through: int, depth: int) -> None:
        """Nothing is asked for yet."""
        self._lanes = {lane.cluster: lane for lane in lanes}
        self._after = after
        self._through = through
        self._depth = depth
        self._waiting: list[Record] = []

    def ask(self) -> Page | None:
        """The next page to read, of the lane that holds up the others most; None: none now."""
        for lane in sorted(self._lanes.values(), key=lambda lane: lane.settled):
            page = lane.ask(self._through, self._depth)
            if page is not None:
                return page
        return None

    def take(self, page: Page, records: Sequence[Record]) -> Sequence[Record]:
        """A page has come, in the order asked for; gives back, in order, what nothing can precede any more."""
        lane = self._lanes[page.cluster]
        lane.arrived(page, records)
        for record in records:
            if self._after < record.revision <= self._through:
                self._waiting.append(record)
                lane.waiting += 1
            else:
                lane.passed(record)
        self._waiting.sort(key=_revision)
        settled = min(each.settled for each in self._lanes.values())
        cut = bisect_left(self._waiting, settled, key=_revision)
        ready, self._waiting = self._waiting[:cut], self._waiting[cut:]
        for record in ready:
            own = self._lanes[record.cluster]
            own.waiting -= 1
            own.passed(record)
        return ready


def needed(segments: Iterable[Segment], after: int, through: int) -> Sequence[Segment]:
    """Those that may hold records in (after, through], in order."""
    chosen = (each for each in segments if each.through > after and each.opened <= through)
    return sorted(chosen, key=lambda each: each.number)


def _revision(record: Record) -> int:
    return record.revision
