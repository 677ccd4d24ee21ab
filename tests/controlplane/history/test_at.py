"""The mesh at a revision, at a time, and without the log."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controlplane.history.at import BeforeHistory, BeyondHead, Past
from controlplane.history.points import Point, PointError, parse_point
from controlplane.history.recent import Recent
from controlplane.projections.state import State
from kvstore.errors import HistoryTruncated, LogUnavailable
from tests.controlplane.history.past import past_of, shop, stored
from tests.controlplane.random_mesh import history, steps

MINUTE_NS = 60_000_000_000


def folded(records: list[Any], revision: int) -> State:
    """The plain fold of everything up to a revision."""
    state = State()
    for record in records:
        if record.revision <= revision:
            state.apply(record)
    return state


@pytest.mark.parametrize(
    ("text", "point"),
    [
        ("42", Point(revision=42)),
        ("-10m", Point(ago_ns=10 * MINUTE_NS)),
        ("-1h30m", Point(ago_ns=90 * MINUTE_NS)),
        ("1970-01-01T00:01:00Z", Point(time_ns=MINUTE_NS)),
        ("1970-01-01 00:01:00.5", Point(time_ns=MINUTE_NS + 500_000_000)),
        ("1970-01-01T01:01:00+01:00", Point(time_ns=MINUTE_NS)),
    ],
)
def test_points_are_read(text: str, point: Point) -> None:
    """A revision, so long ago, and times with and without a zone."""
    assert parse_point(text) == point


@pytest.mark.parametrize("text", ["", "yesterday", "-10", "-m", "10m", "4 2", "2026-13-01", "-10mm", "٤٢"])
def test_what_is_no_point_is_refused(text: str) -> None:
    """Anything else says what would be right."""
    with pytest.raises(PointError, match="right is a revision"):
        parse_point(text)


@given(steps(30), st.lists(st.integers(0, 40), min_size=1, max_size=5))
@settings(max_examples=40, deadline=None)
async def test_any_order_of_questions_gives_the_folded_state(script: Any, places: list[int]) -> None:
    """Whatever was asked before, the state is the plain fold up to the revision, and later questions change none."""
    log = history(script)
    past = past_of(log)
    seen = []
    for place in places:
        revision = int(log.records[min(place, len(log.records) - 1)].revision)
        seen.append((await past.moment(revision), folded(log.records, revision)))
    assert all(moment.state.save() == state.save() for moment, state in seen)


async def test_a_revision_between_records_is_the_state_before_it() -> None:
    """Other keys of the store move its revision too: such a revision is answered from the last record."""
    log = shop()
    revision = int(log.records[3].revision) + 1
    assert (await past_of(log).moment(revision)).state.save() == folded(log.records, revision).save()


async def test_a_revision_to_come_is_refused() -> None:
    """What is not applied yet has no state."""
    log = shop()
    with pytest.raises(BeyondHead, match="newest"):
        await past_of(log).moment(int(log.records[-1].revision) + 1)


async def test_a_time_is_the_last_record_at_or_before_it() -> None:
    """In the log's order, whatever the writers' clocks did; before the first there is nothing."""
    log = shop()
    past = past_of(log)
    assert await past.resolve(Point(time_ns=4)) == log.records[4].revision
    assert await past.resolve(Point(time_ns=10**18)) == log.records[-1].revision
    with pytest.raises(BeforeHistory):
        await past.resolve(Point(time_ns=-1))


async def test_ago_is_counted_from_now() -> None:
    """`-10m` is now less ten minutes, by this process's clock."""
    log = shop()
    past = Past(stored(log), lambda: int(log.records[-1].revision), now_ns=lambda: 10 * MINUTE_NS + 5)
    assert await past.resolve(Point(ago_ns=10 * MINUTE_NS)) == log.records[5].revision


async def test_the_near_past_is_told_without_the_log() -> None:
    """A process that applied every record since the first answers while the log is away, by revision and by time."""
    log = shop()
    handle = stored(log)
    recent = Recent(0)
    for record in log.records:
        recent.add(record)
    past = Past(handle, lambda: int(log.records[-1].revision), recent, lambda: None)
    handle.disconnect()
    revision = int(log.records[5].revision)
    assert (await past.moment(revision)).state.save() == folded(log.records, revision).save()
    assert await past.resolve(Point(time_ns=5)) == revision


async def test_the_past_since_a_checkpoint_is_told_without_the_log() -> None:
    """A process that began with a checkpoint answers back to it, and not further."""
    log = shop()
    handle = stored(log)
    start = int(log.records[5].revision)
    recent = Recent(start)
    for record in log.records[6:]:
        recent.add(record)
    past = Past(handle, lambda: int(log.records[-1].revision), recent, lambda: folded(log.records, start))
    handle.disconnect()
    for record in log.records[5:]:
        found = (await past.moment(record.revision)).state
        assert found.digest() == folded(log.records, record.revision).digest()
    with pytest.raises(LogUnavailable):
        await past.moment(start - 1)


async def test_a_repaired_process_trusts_nothing_it_kept() -> None:
    """After the log contradicted itself the records kept here count no more."""
    log = shop()
    handle = stored(log)
    recent = Recent(0)
    for record in log.records:
        recent.add(record)
    recent.forget()
    handle.disconnect()
    with pytest.raises(LogUnavailable):
        await Past(handle, lambda: int(log.records[-1].revision), recent, State).moment(5)


async def test_truncated_history_is_said() -> None:
    """Where the log has forgotten its beginning and no checkpoint is held, that is an error, not a wrong state."""
    log = shop()
    handle = stored(log)
    handle.store.truncate(int(log.records[4].revision))
    with pytest.raises(HistoryTruncated):
        await Past(handle, lambda: int(log.records[-1].revision)).moment(int(log.records[8].revision))


async def test_each_thing_has_the_record_that_changed_it_last() -> None:
    """The origin of every thing in the state is the last record whose changes name it, and none is missing."""
    log = shop()
    moment = await past_of(log).moment(int(log.records[-1].revision))
    last = {(change.kind, change.key): record.revision for record, changes in zip(log.records, log.changes, strict=True)
            for change in changes}  # fmt: skip
    assert {thing: origin.revision for thing, origin in moment.origins.held.items()} == last


async def test_a_checkpoint_beside_the_log_is_the_start_where_history_is_truncated() -> None:
    """The past behind it is told, what lies before it is refused with the oldest revision that can be asked for."""
    log = shop()
    handle = stored(log)
    kept = folded(log.records, int(log.records[4].revision))
    handle.store.truncate(kept.revision)

    async def shared(revision: int) -> State | None:
        return kept.copy() if kept.revision <= revision else None

    past = Past(handle, lambda: int(log.records[-1].revision), shared=shared)
    for record in log.records[4:]:
        found = (await past.moment(record.revision)).state
        assert found.digest() == folded(log.records, record.revision).digest()
    with pytest.raises(HistoryTruncated):
        await past.moment(kept.revision - 1)
    assert past.oldest(kept.revision) == kept.revision
    assert await past.resolve(Point(time_ns=7)) == log.records[7].revision


async def test_a_log_that_was_put_back_has_one_past() -> None:
    """What was folded and what times were read before say nothing of the log that there is."""
    log = shop()
    held = stored(log)
    past = Past(held, lambda: int(held.store.records[-1].revision))
    end = int(log.records[-1].revision)
    assert (await past.moment(end)).state.digest() == log.state.digest()
    assert await past.resolve(Point(time_ns=10**18)) == end
    held.store.restore(int(log.records[-3].revision), cluster_id=2)
    session = await held.open_session("east", "operator")
    payload = next(each.payload for each in log.records if b"WorkloadApplied" in each.payload)
    while held.store.revision < end + 1:
        await held.append(session, payload)
    past.forget()
    moment = await past.moment(end)
    assert moment.state.digest() == folded(held.store.records, end).digest() != log.state.digest()
    assert await past.resolve(Point(time_ns=10**18)) == held.store.records[-1].revision
