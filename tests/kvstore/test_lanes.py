"""What a catch-up reads, and that its pages become the one order of the log."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvstore import lanes as lanes_module
from kvstore.lanes import Lane, Lanes, Loose, Page, Segment, Tail, needed
from kvstore.types import Record, Revision

DEPTH = 3


def written(steps: list[tuple[str, str]]) -> list[Record]:
    """One record a step, of a cluster's writer."""
    sequences: dict[tuple[str, str], int] = {}
    made = []
    for revision, (cluster, writer) in enumerate(steps, start=1):
        sequences[cluster, writer] = sequences.get((cluster, writer), 0) + 1
        made.append(Record(Revision(revision), cluster, writer, sequences[cluster, writer], 1, b"x"))
    return made


class Store:
    """Records of one cluster, the oldest of them in segments of the sizes given."""

    def __init__(self, cluster: str, records: list[Record], cuts: list[int]) -> None:
        self.cluster = cluster
        self.segments: dict[int, list[Record]] = {}
        self.listed: list[Segment] = []
        self.loose = [record for record in records if record.cluster == cluster]
        through = 0
        for number, cut in enumerate(cuts, start=1):
            own, self.loose = self.loose[:cut], self.loose[cut:]
            if own:
                self.segments[number] = own
                self.listed.append(Segment(cluster, number, through + 1, own[-1].revision))
                through = own[-1].revision
        self.through = through

    def lane(self, after: int, through: int) -> Lane:
        """As a reader behind `after` begins, that knows no sequences."""
        last: dict[str, int] = {}
        begins: dict[str, int] = {}
        for record in self.loose:
            begins.setdefault(record.writer, record.sequence)
            last[record.writer] = record.sequence
        tails = [Tail(name, begins[name], last[name], 1.0, max(after, self.through) + 1) for name in last]
        return Lane(self.cluster, needed(self.listed, after, through), tails)

    def read(self, page: Page) -> list[Record]:
        """What etcd gives."""
        if isinstance(page, Segment):
            return self.segments[page.number]
        return [
            record
            for each in page.ranges
            for record in self.loose
            if record.writer == each.writer and each.first <= record.sequence <= each.last
        ]


def merged(lanes: Lanes, stores: dict[str, Store]) -> tuple[list[Record], list[Page]]:
    """All pages that are asked for, read in that order with some under way; the records that come of it."""
    records: list[Record] = []
    asked: list[Page] = []
    under_way: list[Page] = []
    while True:
        while (page := lanes.ask()) is not None:
            under_way.append(page)
            asked.append(page)
        if not under_way:
            return records, asked
        page = under_way.pop(0)
        records += lanes.take(page, stores[page.cluster].read(page))


steps = st.lists(st.tuples(st.sampled_from(["a", "b"]), st.sampled_from(["n1", "n2", "n3"])), max_size=60)
cuts = st.lists(st.integers(1, 9), max_size=5)


@pytest.fixture(autouse=True)
def small_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a short history has many."""
    monkeypatch.setattr(lanes_module, "PAGE_RECORDS", 6)
    monkeypatch.setattr(lanes_module, "SHARE_MIN", 2)


@given(steps, cuts, cuts, st.integers(0, 70), st.integers(0, 70))
def test_pages_become_the_one_order(steps, cuts_a, cuts_b, after, through):
    """Whatever clusters, writers, segments and bounds: the pages, merged, are the records in bounds, in order, once."""
    log = written(steps)
    stores = {name: Store(name, log, cut) for name, cut in (("a", cuts_a), ("b", cuts_b))}
    lanes = Lanes([store.lane(after, through) for store in stores.values()], after, through, DEPTH)
    assert merged(lanes, stores)[0] == [record for record in log if after < record.revision <= through]


@given(st.lists(st.sampled_from(["n1", "n2"]), min_size=1, max_size=200), st.integers(0, 200))
def test_what_waits_is_bounded(writers, first_alone):
    """However unevenly writers take turns, no more waits in memory than some pages hold."""
    log = written([("a", "n1")] * first_alone + [("a", writer) for writer in writers])
    store = Store("a", log, [])
    lanes = Lanes([store.lane(0, len(log))], 0, len(log), DEPTH)
    under_way: list[Page] = []
    came: list[Record] = []
    while True:
        while (page := lanes.ask()) is not None:
            under_way.append(page)
        if not under_way:
            break
        came += lanes.take(under_way[0], store.read(under_way.pop(0)))
        assert len(lanes._waiting) <= (DEPTH + 1) * (lanes_module.PAGE_RECORDS + 4 * lanes_module.SHARE_MIN)
    assert came == log


def test_many_writers_share_a_page():
    """A hundred writers of one record each are read in as many pages as etcd's bound on operations asks for."""
    log = written([("a", f"n{n:03}") for n in range(150)])
    store = Store("a", log, [])
    records, asked = merged(Lanes([store.lane(0, 150)], 0, 150, DEPTH), {"a": store})
    assert records == log and len(asked) == 2


def test_large_records_make_small_ranges():
    """Of payloads as large as a page, one a range."""
    tail = Tail("n1", 1, 10, lanes_module.PAGE_BYTES, 1)
    page = Lane("a", (), [tail]).ask(100, DEPTH)
    assert isinstance(page, Loose) and [(each.first, each.last) for each in page.ranges] == [(1, 1)]


def test_a_writer_who_says_too_much_is_asked_no_further():
    """Its cursor counts a million records that are not there: one empty range ends it, and holds up nobody."""
    log = written([("a", "n1"), ("a", "n1")])
    lane = Lane("a", (), [Tail("n1", 1, 2, 1.0, 1), Tail("n2", 1, 10**6, 1.0, 1)])
    records, asked = merged(Lanes([lane], 0, 10, DEPTH), {"a": Store("a", log, [])})
    assert records == log and len(asked) <= DEPTH + 1


def test_segments_that_cannot_matter_are_not_read():
    """Those that end at or before the position, and those that open behind the bound."""
    segments = [Segment("a", n, n * 10 + 1, n * 10 + 10) for n in range(5)]
    assert [each.number for each in needed(segments[::-1], 10, 30)] == [1, 2]
