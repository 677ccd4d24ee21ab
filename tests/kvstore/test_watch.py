"""The reader's place: phases, verdicts, gaps, resumption, where history begins."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvstore.errors import HistoryTruncated, LogRewound, SequenceGap
from kvstore.types import Position, Record, Revision
from kvstore.watch import (
    RESUME_BY_WATCH_MAX,
    TRANSITIONS,
    Phase,
    Reader,
    Tally,
    Turn,
    Verdict,
    beginnings,
)

START = Position()


def record(
    revision: int, sequence: int, *, writer: str = "n1", token: int = 5, cluster: str = "east"
) -> Record:
    """A record with these marks."""
    return Record(Revision(revision), cluster, writer, sequence, token, b"")


def watching(after: Position = START) -> Reader:
    """A reader that has caught up and watches."""
    reader = Reader(after, Tally())
    reader.caught_up(after.revision, {})
    return reader


def test_records_in_order_are_delivered():
    """Each next sequence is delivered and moves the position."""
    reader = Reader(Position(), Tally())
    assert [reader.accept(record(10 + n, n)) for n in (1, 2, 3)] == [Verdict.DELIVER] * 3
    assert reader.position() == Position(Revision(13), {"east/n1": 3}, 0)


def test_the_position_given_is_not_changed():
    """A Position is a value: reading on leaves the caller's own as it was."""
    after = Position(Revision(10), {"east/n1": 1})
    Reader(after, Tally()).accept(record(11, 2))
    assert after.sequences == {"east/n1": 1}


def test_what_is_held_is_dropped():
    """A record at or below the position is a duplicate, whoever delivers it."""
    reader = watching(Position(Revision(10), {"east/n1": 1}))
    assert reader.accept(record(10, 1)) is Verdict.HELD


@pytest.mark.parametrize("sequence", [1, 2, 4, 9])
def test_a_sequence_out_of_place_sends_a_watcher_to_the_range(sequence):
    """A hole, a repeat or a step back while watching is no delivery; it is counted."""
    reader = watching(Position(Revision(10), {"east/n1": 2}))
    assert reader.accept(record(11, sequence)) is Verdict.HOLE
    assert (reader.revision, reader.tally.holes) == (10, 1)


@pytest.mark.parametrize("sequence", [1, 2, 4, 9])
def test_a_sequence_out_of_place_in_the_range_is_real(sequence):
    """The same in a range raises SequenceGap with what was due and what came."""
    reader = Reader(Position(Revision(10), {"east/n1": 2}), Tally())
    with pytest.raises(SequenceGap) as gap:
        reader.accept(record(11, sequence))
    assert (gap.value.writer, gap.value.expected, gap.value.got, gap.value.revision) == (
        "east/n1",
        3,
        sequence,
        11,
    )


def test_writers_of_one_name_in_two_clusters_are_two():
    """Sequences are per cluster and writer."""
    reader = Reader(Position(), Tally())
    assert reader.accept(record(1, 1)) is Verdict.DELIVER
    assert reader.accept(record(2, 1, cluster="west")) is Verdict.DELIVER


def test_a_token_that_steps_back_is_refused_and_counted():
    """A record under an older token is dropped without taking a sequence: the writer's own follows."""
    reader = Reader(Position(), Tally())
    reader.accept(record(1, 1, token=5))
    assert reader.accept(record(2, 2, token=4)) is Verdict.REFUSED
    assert reader.accept(record(3, 2, token=5)) is Verdict.DELIVER
    assert reader.tally.refused == 1


def test_a_new_session_continues_the_sequence():
    """A higher token goes on where the one before ended."""
    reader = Reader(Position(), Tally())
    reader.accept(record(1, 1, token=5))
    assert reader.accept(record(2, 2, token=9)) is Verdict.DELIVER


def test_a_store_behind_the_position_is_rewound():
    """A head below what is held is another history."""
    with pytest.raises(LogRewound, match=r"revision 9; .* 10"):
        Reader(Position(Revision(10)), Tally()).meet(9, 1, (), {})


def test_a_store_with_another_id_is_rewound():
    """Another cluster id is another database, whatever its revision."""
    with pytest.raises(LogRewound, match="cluster id"):
        Reader(Position(Revision(10), {}, 1), Tally()).meet(20, 2, (), {})


def test_a_store_that_grew_again_after_it_was_put_back_is_rewound():
    """Its revision is not behind, its id is the same; a writer of it has written less than was seen."""
    reader = Reader(Position(Revision(10), {"east/n1": 4, "east/n2": 1}), Tally())
    reader.meet(20, 1, (), {"east/n1": 4, "east/n2": 1, "east/n3": 1})
    with pytest.raises(LogRewound, match="holds 3 records of east/n1; this reader has already seen 4"):
        reader.meet(20, 1, (), {"east/n1": 3, "east/n2": 9})


def test_the_store_met_first_is_remembered():
    """A position without a cluster id takes the one it meets, and keeps to it."""
    reader = Reader(Position(), Tally())
    reader.meet(5, 7, (), {})
    with pytest.raises(LogRewound):
        reader.meet(6, 8, (), {})
    assert reader.position().cluster_id == 7


def test_a_position_before_the_beginning_is_truncated():
    """The highest beginning of history above the position is named; one at the position is no loss."""
    reader = Reader(Position(Revision(10)), Tally())
    reader.meet(20, 1, (10, 3), {})
    with pytest.raises(HistoryTruncated) as truncated:
        reader.meet(20, 1, (11, 15), {})
    assert truncated.value.low == 15


@pytest.mark.parametrize(
    ("behind", "phase"), [(RESUME_BY_WATCH_MAX, Phase.WATCH), (RESUME_BY_WATCH_MAX + 1, Phase.CATCH_UP)]
)
def test_a_disconnected_reader_resumes_by_distance(behind, phase):
    """Near the head it watches on; further away it ranges."""
    reader = watching(Position(Revision(10)))
    reader.turn(Turn.DISCONNECTED)
    reader.resume(10 + behind)
    assert reader.phase is phase


def test_every_phase_survives_a_disconnect():
    """Whatever a reader does, etcd may go away."""
    assert all((phase, Turn.DISCONNECTED) in TRANSITIONS for phase in Phase)


def test_an_impossible_turn_is_refused():
    """A turn that is not in the table is a mistake, not a guess."""
    with pytest.raises(KeyError):
        Reader(Position(), Tally()).turn(Turn.HOLE)


def test_a_late_record_is_not_overdue_at_once():
    """A writer ahead at one audit may only be ahead of the delivery; at the next, unmoved, it is lost."""
    reader = watching(Position(Revision(10), {"east/n1": 2}))
    assert [reader.overdue({"east/n1": 3}), reader.waiting, reader.overdue({"east/n1": 4})] == [
        False,
        True,
        True,
    ]


def test_a_record_that_came_between_audits_is_not_overdue():
    """A writer that is ahead again, after its record came, starts anew."""
    reader = watching(Position(Revision(10), {"east/n1": 2}))
    reader.overdue({"east/n1": 3})
    reader.accept(record(11, 3))
    assert not reader.overdue({"east/n1": 4})


def test_no_writer_ahead_is_quiet():
    """Nothing is overdue, nothing is waited for."""
    reader = watching(Position(Revision(10), {"east/n1": 2}))
    assert not reader.overdue({"east/n1": 2}) and not reader.waiting


@given(st.lists(st.sampled_from(["n1", "n2", "n3"]), max_size=40), st.data())
def test_duplicated_deliveries_change_nothing(writers, data):
    """Any already delivered record may come again at any time: the deliveries are the log, each once."""
    sequences: dict[str, int] = {}
    log: list[Record] = []
    for revision, writer in enumerate(writers, start=1):
        sequences[writer] = sequences.get(writer, 0) + 1
        log.append(record(revision, sequences[writer], writer=writer))
    reader = watching()
    delivered = []
    for at, each in enumerate(log):
        repeats = data.draw(st.lists(st.integers(0, at), max_size=3)) if at else []
        offered = [*(log[index] for index in repeats if index < at), each]
        delivered += [one for one in offered if reader.accept(one) is Verdict.DELIVER]
    assert delivered == log


@pytest.mark.parametrize(
    ("low", "markers", "begins"),
    [
        ((0, 0), [(1, 5), (2, 20)], 0),
        ((18, 1), [(2, 20), (3, 40)], 18),
        ((18, 1), [(3, 40)], 39),
        ((0, 0), [(3, 40)], 39),
        ((18, 0), [(3, 40)], 18),
        ((18, 1), [(1, 5), (2, 20)], 18),
        ((18, 1), [], 18),
    ],
)
def test_history_begins_where_the_store_says_or_where_its_oldest_segment_does(low, markers, begins):
    """What left without a word, since a full store takes none, is seen by the oldest segment that is left."""
    lows = {"east": low} if low != (0, 0) else {}
    assert beginnings(lows, [("east", *each) for each in markers]).get("east", 0) == begins


def test_each_cluster_begins_for_itself():
    """One that has lost segments does not shorten another's history."""
    markers = [("east", 1, 5), ("west", 4, 50)]
    assert beginnings({}, markers) == {"east": 0, "west": 49}


def test_a_record_that_another_overtook_is_a_gap():
    """What comes at or below the position and was never held cannot be read again by range: it is no duplicate."""
    reader = watching(Position(Revision(10), {"east/n1": 1, "east/n2": 1}))
    assert reader.accept(record(12, 2, writer="n2")) is Verdict.DELIVER
    with pytest.raises(SequenceGap):
        reader.accept(record(11, 2))


def test_what_a_cursor_counts_and_no_record_brought_is_a_gap():
    """A record that the watch lost, and that another's has overtaken, shows as soon as the range is through."""
    reader = watching(Position(Revision(10), {"east/n1": 1, "east/n2": 1}))
    reader.accept(record(12, 2, writer="n2"))
    reader.turn(Turn.HOLE)
    with pytest.raises(SequenceGap):
        reader.caught_up(12, {"east/n1": 2, "east/n2": 2})


def test_a_cursor_that_counts_what_was_refused_is_no_gap():
    """A record with an older token has been met."""
    reader = Reader(Position(), Tally())
    reader.accept(record(11, 1, token=7))
    assert reader.accept(record(12, 2, token=6)) is Verdict.REFUSED
    reader.caught_up(12, {"east/n1": 2})
    assert reader.phase is Phase.WATCH
