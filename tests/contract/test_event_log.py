"""What every EventLog promises, run against memory and against a real etcd."""

import asyncio
import itertools
from collections.abc import AsyncIterator

import pytest

from kvstore import append as append_module
from kvstore import lanes as lanes_module
from kvstore.errors import (
    ClaimConflict,
    Fenced,
    HistoryTruncated,
    LogRewound,
    LogUnavailable,
    PayloadTooLarge,
    SequenceGap,
)
from kvstore.types import BATCH_BYTES_MAX, Bookmark, Claim, Position, Record, Revision, Want

DEADLINE_S = 20.0
_numbers = itertools.count()


@pytest.fixture
def cluster() -> str:
    """A name that no other test of this module uses, since all share one etcd."""
    return f"c{next(_numbers)}"


async def append_surely(log, session, payload, claims=()):
    """Append, and append the same again while the answer stays unknown."""
    while True:
        try:
            return await log.append(session, payload, claims)
        except LogUnavailable:
            continue


async def read_all(log, after, through=None):
    """Everything that `read` gives."""
    return [record async for record in log.read(after, through)]


async def take(deliveries: AsyncIterator[Record | Bookmark], count: int) -> list[Record]:
    """The next `count` records, Bookmarks left out."""
    records: list[Record] = []
    async with asyncio.timeout(DEADLINE_S):
        while len(records) < count:
            delivery = await anext(deliveries)
            if isinstance(delivery, Record):
                records.append(delivery)
    return records


async def take_bookmark(deliveries: AsyncIterator[Record | Bookmark]) -> Bookmark:
    """The next Bookmark."""
    async with asyncio.timeout(DEADLINE_S):
        while True:
            delivery = await anext(deliveries)
            if isinstance(delivery, Bookmark):
                return delivery


async def test_records_of_all_clusters_come_in_one_order(bed, cluster):
    """Two clusters with two writers each: read gives what was appended, in the order of the revisions."""
    log = await bed.log()
    start = await log.position()
    sessions = [
        await log.open_session(f"{cluster}{side}", writer) for side in ("a", "b") for writer in ("n1", "n2")
    ]
    appended = [
        (await log.append(session, b"%d" % turn), session.cluster, session.writer)
        for turn in range(10)
        for session in sessions
    ]
    records = await read_all(log, start)
    assert [(record.revision, record.cluster, record.writer) for record in records] == sorted(appended)


async def test_sequences_are_dense_from_one(bed, cluster):
    """A writer's records are numbered 1, 2, 3, and carry the token of its session."""
    log = await bed.log()
    start = await log.position()
    session = await log.open_session(cluster, "n1")
    for _ in range(3):
        await log.append(session, b"x")
    records = await read_all(log, start)
    assert [(record.sequence, record.token) for record in records] == [(n, session.token) for n in (1, 2, 3)]


async def test_a_new_session_continues_the_sequence(bed, cluster):
    """A writer that comes back goes on where it was, under a higher token."""
    log = await bed.log()
    start = await log.position()
    earlier = await log.open_session(cluster, "n1")
    await log.append(earlier, b"1")
    later = await log.open_session(cluster, "n1")
    await log.append(later, b"2")
    records = await read_all(log, start)
    assert [record.sequence for record in records] == [1, 2]
    assert records[0].token < records[1].token == later.token


async def test_read_stops_at_through(bed, cluster):
    """Nothing above `through` is given."""
    log = await bed.log()
    start = await log.position()
    session = await log.open_session(cluster, "n1")
    revisions = [await log.append(session, b"%d" % n) for n in range(5)]
    records = await read_all(log, start, revisions[2])
    assert [record.revision for record in records] == revisions[:3]


async def test_read_goes_on_from_a_position(bed, cluster):
    """A reader that stopped in the middle is given exactly the rest."""
    log = await bed.log()
    start = await log.position()
    session = await log.open_session(cluster, "n1")
    revisions = [await log.append(session, b"%d" % n) for n in range(5)]
    middle = Position(revisions[1], start.sequences | {f"{cluster}/n1": 2}, log.cluster_id)
    assert [record.revision for record in await read_all(log, middle)] == revisions[2:]


async def test_a_lost_answer_stores_once(bed, cluster):
    """An append whose answer is lost, sent again, is in the log exactly once, with its first revision."""
    log = await bed.log()
    start = await log.position()
    session = await log.open_session(cluster, "n1")
    revisions = []
    for n in range(6):
        bed.lose_answers(log, n % 3)
        revisions.append(await append_surely(log, session, b"%d" % n))
    records = await read_all(log, start)
    assert [(record.revision, record.payload) for record in records] == [
        (revision, b"%d" % n) for n, revision in enumerate(revisions)
    ]


async def test_a_lost_answer_keeps_its_claim(bed, cluster):
    """Sent again after a lost answer, an append does not conflict with its own claim."""
    log = await bed.log()
    session = await log.open_session(cluster, "n1")
    bed.lose_answers(log, 1)
    assert await append_surely(log, session, b"x", [Claim(f"number/{cluster}/7")])


async def test_appends_of_one_session_keep_their_call_order(bed, cluster):
    """Appends that were started together are stored one at a time, first come first."""
    log = await bed.log()
    start = await log.position()
    session = await log.open_session(cluster, "n1")
    revisions = await asyncio.gather(*(log.append(session, b"%d" % n) for n in range(20)))
    assert revisions == sorted(revisions)
    assert [record.payload for record in await read_all(log, start)] == [b"%d" % n for n in range(20)]


async def test_a_zombie_is_fenced(bed, cluster):
    """After a takeover the earlier session stores nothing, whatever it tries."""
    old_log, new_log = await bed.log(), await bed.log()
    start = await old_log.position()
    zombie = await old_log.open_session(cluster, "n1")
    await old_log.append(zombie, b"1")
    successor = await new_log.open_session(cluster, "n1")
    await new_log.append(successor, b"2")
    for _ in range(2):
        with pytest.raises(Fenced):
            await old_log.append(zombie, b"2")
    records = await read_all(new_log, start)
    assert [(record.payload, record.token) for record in records] == [
        (b"1", zombie.token),
        (b"2", successor.token),
    ]


async def test_an_expired_session_is_fenced(bed, cluster):
    """A session whose lease ran out cannot append, even though nobody took its place."""
    log = await bed.log()
    session = await log.open_session(cluster, "n1")
    await bed.expire(session)
    with pytest.raises(Fenced):
        await log.append(session, b"x")


async def test_a_closed_session_is_fenced(bed, cluster):
    """A session that was given back cannot append."""
    log = await bed.log()
    session = await log.open_session(cluster, "n1")
    await log.close_session(session)
    with pytest.raises(Fenced):
        await log.append(session, b"x")


async def test_an_expired_writer_opens_a_new_session(bed, cluster):
    """Losing the lease is no end: a new session of the same writer appends, without a hole."""
    log = await bed.log()
    start = await log.position()
    session = await log.open_session(cluster, "n1")
    await log.append(session, b"1")
    await bed.expire(session)
    await log.append(await log.open_session(cluster, "n1"), b"2")
    assert [record.sequence for record in await read_all(log, start)] == [1, 2]


async def test_a_claim_is_taken_once(bed, cluster):
    """Two writers claim one key: one has it, the other is told which key it was, and stores nothing."""
    log = await bed.log()
    start = await log.position()
    winner, loser = await log.open_session(cluster, "n1"), await log.open_session(cluster, "n2")
    free, contested = Claim(f"number/{cluster}/1"), Claim(f"number/{cluster}/2")
    await log.append(winner, b"won", [contested])
    with pytest.raises(ClaimConflict) as conflict:
        await log.append(loser, b"lost", [free, contested])
    assert conflict.value.key == contested.key
    assert [record.payload for record in await read_all(log, start)] == [b"won"]


async def test_a_refused_claim_leaves_the_others_free(bed, cluster):
    """What stood beside a claim that failed was not taken."""
    log = await bed.log()
    session = await log.open_session(cluster, "n1")
    free, contested = Claim(f"number/{cluster}/1"), Claim(f"number/{cluster}/2")
    await log.append(session, b"1", [contested])
    with pytest.raises(ClaimConflict):
        await log.append(session, b"2", [free, contested])
    assert await log.append(session, b"3", [free])


async def test_a_released_claim_can_be_taken_again(bed, cluster):
    """Releasing deletes the key; releasing what nobody holds conflicts."""
    log = await bed.log()
    session = await log.open_session(cluster, "n1")
    key = f"number/{cluster}/1"
    await log.append(session, b"1", [Claim(key)])
    await log.append(session, b"2", [Claim(key, Want.FREED)])
    with pytest.raises(ClaimConflict):
        await log.append(session, b"3", [Claim(key, Want.FREED)])
    assert await log.append(session, b"4", [Claim(key)])


async def test_a_held_claim_must_exist(bed, cluster):
    """Holding what nobody has taken conflicts, and stores nothing."""
    log = await bed.log()
    start = await log.position()
    session = await log.open_session(cluster, "n1")
    key = f"number/{cluster}/1"
    with pytest.raises(ClaimConflict):
        await log.append(session, b"1", [Claim(key, Want.HELD)])
    assert await read_all(log, start) == []


async def test_a_held_claim_keeps_its_value(bed, cluster):
    """Only its revision moves, to that of the record that holds it."""
    log = await bed.log()
    session = await log.open_session(cluster, "n1")
    key = f"number/{cluster}/1"
    await log.append(session, b"1", [Claim(key, value=b"kept")])
    revision = await log.append(session, b"2", [Claim(key, Want.HELD)])
    (stored,) = await log.list(f"claim/{key}")
    assert (stored.value, stored.revision) == (b"kept", revision)


@pytest.mark.parametrize("want", [Want.FREED, Want.HELD])
async def test_a_claim_touched_meanwhile_conflicts(bed, cluster, want):
    """What another writer holds after the revision that a decision stood at is not given up, nor held, by it."""
    log = await bed.log()
    session, other = await log.open_session(cluster, "n1"), await log.open_session(cluster, "n2")
    key = f"number/{cluster}/1"
    stood_at = await log.append(session, b"1", [Claim(key)])
    touched = await log.append(other, b"2", [Claim(key, Want.HELD)])
    with pytest.raises(ClaimConflict):
        await log.append(session, b"3", [Claim(key, want, untouched_since=stood_at)])
    assert await log.append(session, b"4", [Claim(key, want, untouched_since=touched)])


async def test_two_writers_hold_one_claim(bed, cluster):
    """Holding excludes nobody but who would free it."""
    log = await bed.log()
    session, other = await log.open_session(cluster, "n1"), await log.open_session(cluster, "n2")
    key = f"number/{cluster}/1"
    await log.append(session, b"1", [Claim(key)])
    assert await log.append(session, b"2", [Claim(key, Want.HELD)])
    assert await log.append(other, b"3", [Claim(key, Want.HELD)])


async def test_as_many_claims_as_allowed_fit_one_append(bed, cluster):
    """The bound that callers are told is one that the store takes."""
    log = await bed.log()
    session = await log.open_session(cluster, "n1")
    claims = [Claim(f"number/{cluster}/{n}") for n in range(append_module.CLAIM_COMPARES_MAX)]
    revision = await log.append(session, b"1", claims)
    half = claims[: append_module.CLAIM_COMPARES_MAX // 2]
    freed = [Claim(claim.key, Want.FREED, untouched_since=revision) for claim in half]
    assert await log.append(session, b"2", freed)


async def test_appending_goes_on_after_a_conflict(bed, cluster):
    """A conflict takes no sequence: the next record follows without a hole."""
    log = await bed.log()
    start = await log.position()
    session = await log.open_session(cluster, "n1")
    claim = Claim(f"number/{cluster}/1")
    await log.append(session, b"1", [claim])
    with pytest.raises(ClaimConflict):
        await log.append(session, b"2", [claim])
    await log.append(session, b"3")
    assert [record.sequence for record in await read_all(log, start)] == [1, 2]


async def test_a_key_claimed_twice_is_refused(bed, cluster):
    """One append cannot claim a key twice: the caller is told, nothing is sent."""
    log = await bed.log()
    session = await log.open_session(cluster, "n1")
    with pytest.raises(ValueError, match="twice"):
        await log.append(session, b"x", [Claim("number/1"), Claim("number/1")])


async def test_a_payload_over_the_limit_is_refused(bed, cluster):
    """One byte too many raises PayloadTooLarge; the limit itself is stored."""
    log = await bed.log()
    session = await log.open_session(cluster, "n1")
    with pytest.raises(PayloadTooLarge):
        await log.append(session, b"x" * (BATCH_BYTES_MAX + 1))
    assert await log.append(session, b"x" * BATCH_BYTES_MAX)


async def test_follow_gives_the_past_a_bookmark_and_the_future(bed, cluster):
    """The first Bookmark stands at or above the head seen at the start; later records follow it."""
    log = await bed.log()
    start = await log.position()
    session = await log.open_session(cluster, "n1")
    await log.append(session, b"past")
    head = await log.head()
    deliveries = log.follow(start)
    assert (await take(deliveries, 1))[0].payload == b"past"
    assert (await take_bookmark(deliveries)).revision >= head
    await log.append(session, b"future")
    assert (await take(deliveries, 1))[0].payload == b"future"
    await deliveries.aclose()


async def test_a_bookmark_comes_when_it_is_quiet(bed, cluster):
    """After the last record a Bookmark says so, at its revision, and which store was read."""
    log = await bed.log()
    session = await log.open_session(cluster, "n1")
    deliveries = log.follow(await log.position())
    await take_bookmark(deliveries)
    revision = await log.append(session, b"x")
    await take(deliveries, 1)
    assert await take_bookmark(deliveries) == Bookmark(revision, log.cluster_id)
    await deliveries.aclose()


async def test_follow_equals_read_while_writers_write(bed, cluster, monkeypatch):
    """Six followers that start at any time, in many small pages: each sees what a read gives afterwards."""
    monkeypatch.setattr(lanes_module, "PAGE_RECORDS", 20)
    log = await bed.log()
    start = await log.position()
    writers, each, followers = 4, 60, 6

    async def write(name: str) -> None:
        own = await bed.log()
        session = await own.open_session(f"{cluster}{'a' if name in ('n0', 'n1') else 'b'}", name)
        for n in range(each):
            await own.append(session, b"%d" % n)

    async def see(wait_for: int) -> list[Revision]:
        own = await bed.log()
        while await own.head() < start.revision + wait_for:
            await asyncio.sleep(0)
        deliveries = own.follow(start)
        revisions = [record.revision for record in await take(deliveries, writers * each)]
        await deliveries.aclose()
        return revisions

    seen, _ = await asyncio.gather(
        asyncio.gather(*(see(40 * n) for n in range(followers))),
        asyncio.gather(*(write(f"n{n}") for n in range(writers))),
    )
    expected = [record.revision for record in await read_all(log, start)]
    assert len(expected) == writers * each
    assert seen == [expected] * followers


async def test_a_hole_in_a_sequence_is_seen_by_read(bed, cluster):
    """A record whose sequence skips one raises SequenceGap, which names writer, due and found sequence."""
    log = await bed.log()
    start = await log.position()
    session = await log.open_session(cluster, "n1")
    await log.append(session, b"1")
    await bed.forge(Record(Revision(0), cluster, "n1", 3, session.token, b"3"))
    with pytest.raises(SequenceGap) as gap:
        await read_all(log, start)
    assert (gap.value.writer, gap.value.expected, gap.value.got) == (f"{cluster}/n1", 2, 3)


async def test_a_hole_in_a_sequence_is_seen_by_follow(bed, cluster):
    """A hole that the range confirms ends a follower that was watching."""
    log = await bed.log()
    session = await log.open_session(cluster, "n1")
    deliveries = log.follow(await log.position())
    await log.append(session, b"1")
    await take(deliveries, 1)
    await bed.forge(Record(Revision(0), cluster, "n1", 3, session.token, b"3"))
    with pytest.raises(SequenceGap):
        await take(deliveries, 1)


async def test_a_position_without_a_writers_records_shows_the_hole(bed, cluster):
    """A position that claims a revision but not the writer's records before it is not believed."""
    log = await bed.log()
    session = await log.open_session(cluster, "n1")
    revision = await log.append(session, b"1")
    await log.append(session, b"2")
    with pytest.raises(SequenceGap):
        await read_all(log, Position(revision))


async def test_a_position_that_learns_reads_from_any_revision(bed, cluster):
    """Without the sequences there, each writer's first record is believed, and what follows it is given."""
    log = await bed.log()
    session, other = await log.open_session(cluster, "n1"), await log.open_session(cluster, "n2")
    revisions = [await log.append(each, b"x") for _ in range(3) for each in (session, other)]
    records = await read_all(log, Position(revisions[2], learns=True))
    assert [record.revision for record in records if record.cluster == cluster] == revisions[3:]


async def test_a_position_that_learns_shows_later_holes(bed, cluster):
    """What is believed once is compared from then on."""
    log = await bed.log()
    session = await log.open_session(cluster, "n1")
    before = await log.append(session, b"1")
    await log.append(session, b"2")
    await bed.forge(Record(Revision(0), cluster, "n1", 4, session.token, b"4"))
    with pytest.raises(SequenceGap) as gap:
        await read_all(log, Position(before, learns=True))
    assert (gap.value.expected, gap.value.got) == (3, 4)


async def test_a_follower_that_learns_sees_what_comes(bed, cluster):
    """It catches up from any revision and watches on, new writers included."""
    log = await bed.log()
    session = await log.open_session(cluster, "n1")
    before = await log.append(session, b"1")
    revisions = [await log.append(session, b"2")]
    deliveries = log.follow(Position(before, learns=True))
    await take_bookmark(deliveries)
    revisions.append(await log.append(session, b"3"))
    revisions.append(await log.append(await log.open_session(cluster, "n2"), b"1"))
    await deliveries.aclose()
    deliveries = log.follow(Position(before, learns=True))
    assert [record.revision for record in await take(deliveries, 3)] == revisions
    await deliveries.aclose()


async def test_a_record_with_an_older_token_is_refused(bed, cluster):
    """A record under a token older than one seen from its writer is not given."""
    log = await bed.log()
    start = await log.position()
    session = await log.open_session(cluster, "n1")
    await log.append(session, b"1")
    await bed.forge(Record(Revision(0), cluster, "n1", 2, session.token - 1, b"forged"))
    assert [record.payload for record in await read_all(log, start)] == [b"1"]


async def test_truncated_history_is_named(bed, cluster):
    """A reader before the beginning of history is told where it begins."""
    log = await bed.log()
    start = await log.position()
    session = await log.open_session(cluster, "n1")
    low = await log.append(session, b"1")
    await bed.truncate(cluster, low)
    with pytest.raises(HistoryTruncated) as truncated:
        await read_all(log, start)
    assert truncated.value.low == low


@pytest.mark.parametrize("change", [{"revision": 10**9}, {"cluster_id": 1234}])
async def test_a_rewound_store_is_refused(bed, change):
    """A position from the future, or from another database, raises LogRewound in read and in follow."""
    log = await bed.log()
    position = await log.position()
    wrong = Position(**{"revision": position.revision, "cluster_id": position.cluster_id} | change)
    with pytest.raises(LogRewound):
        await read_all(log, wrong)
    with pytest.raises(LogRewound):
        await anext(log.follow(wrong))


async def test_what_was_decided_on_a_lost_log_is_not_appended(bed, cluster):
    """A writer that has seen more records of its own than the store holds is told, and nothing is stored."""
    log = await bed.log()
    session = await log.open_session(cluster, "n1")
    await log.append(session, b"1", known=0)
    with pytest.raises(LogRewound):
        await log.append(session, b"3", known=2)
    assert await log.append(session, b"2", known=1)
    assert (await log.position()).sequences[f"{cluster}/n1"] == 2


async def test_a_store_that_has_another_record_in_the_place_is_refused(bed, cluster):
    """Put back and grown beyond everything that a reader compares, it has none where the reader took its last record."""
    log = await bed.log()
    session = await log.open_session(cluster, "n1")
    position = await log.position()
    first = await log.append(session, b"1")
    await log.put(f"report/{cluster}/n1", b"")
    await log.append(session, b"2")
    held = {**position.sequences, f"{cluster}/n1": 1}
    right = Position(first, held, position.cluster_id, is_record=True)
    assert [record.payload for record in await read_all(log, right)] == [b"2"]
    wrong = Position(Revision(first + 1), right.sequences, position.cluster_id, is_record=True)
    with pytest.raises(LogRewound, match="no record at revision"):
        await read_all(log, wrong)
    with pytest.raises(LogRewound):
        await anext(log.follow(wrong))


async def test_side_tables_keep_the_last_value(bed, cluster):
    """A put overwrites; list gives the keys below a prefix in order, with the revision that wrote each."""
    log = await bed.log()
    await log.put(f"report/{cluster}/n2", b"2")
    await log.put(f"report/{cluster}/n1", b"old")
    revision = await log.put(f"report/{cluster}/n1", b"1")
    listed = await log.list(f"report/{cluster}/")
    assert [(stored.key, stored.value) for stored in listed] == [
        (f"report/{cluster}/n1", b"1"),
        (f"report/{cluster}/n2", b"2"),
    ]
    assert listed[0].revision == revision


async def test_a_bound_side_key_goes_with_its_session(bed, cluster):
    """A put under a session is gone when the session is; a fenced session cannot put."""
    log = await bed.log()
    session = await log.open_session(cluster, "n1")
    await log.put(f"report/{cluster}/n1", b"x", session)
    await log.close_session(session)
    assert not await log.list(f"report/{cluster}/")
    with pytest.raises(Fenced):
        await log.put(f"report/{cluster}/n1", b"y", session)


async def test_a_lasting_side_key_stays_when_its_session_goes(bed, cluster):
    """The session only proves the right to put it."""
    log = await bed.log()
    session = await log.open_session(cluster, "n1")
    await log.put(f"manifest/{cluster}", b"x", session, lasting=True)
    await log.close_session(session)
    assert [stored.value for stored in await log.list(f"manifest/{cluster}")] == [b"x"]
    with pytest.raises(Fenced):
        await log.put(f"manifest/{cluster}", b"y", session, lasting=True)


async def test_side_tables_are_not_delivered(bed, cluster):
    """What is put beside the log is no record of it."""
    log = await bed.log()
    start = await log.position()
    await log.put(f"report/{cluster}/n1", b"x")
    assert await read_all(log, start) == []


@pytest.mark.parametrize("key", ["log/east/x", "claim/x", "report", "report//x", "", "/report/x"])
async def test_only_side_tables_can_be_put(bed, key):
    """The log's own keys cannot be overwritten through `put`."""
    log = await bed.log()
    with pytest.raises(ValueError, match="key"):
        await log.put(key, b"x")


async def test_a_duty_has_one_holder(bed, cluster):
    """The first takes it and keeps it; the other gets it when the first is gone."""
    log = await bed.log()
    one, other = await log.open_session(cluster, "n1"), await log.open_session(cluster, "n2")
    duty = f"check-{cluster}"
    assert [await log.acquire(one, duty), await log.acquire(one, duty)] == [True, True]
    assert not await log.acquire(other, duty)
    await log.close_session(one)
    assert await log.acquire(other, duty)


async def test_a_fenced_session_takes_no_duty(bed, cluster):
    """A session that lost its place cannot hold a duty."""
    log = await bed.log()
    session = await log.open_session(cluster, "n1")
    await log.open_session(cluster, "n1")
    with pytest.raises(Fenced):
        await log.acquire(session, f"check-{cluster}")


async def test_a_takeover_frees_the_duties_of_the_one_before(bed, cluster):
    """What an evicted session held does not have to wait for its lease."""
    log = await bed.log()
    evicted = await log.open_session(cluster, "n1")
    await log.acquire(evicted, f"check-{cluster}")
    successor = await log.open_session(cluster, "n1")
    assert await log.acquire(successor, f"check-{cluster}")


@pytest.mark.parametrize("name", ["", "East", "a/b", "-a", "a_b", "x" * 200])
async def test_malformed_names_are_refused(bed, name):
    """A session needs a cluster and a writer whose names fit into a key."""
    log = await bed.log()
    with pytest.raises(ValueError, match="writer name"):
        await log.open_session("east", name)
    with pytest.raises(ValueError, match="cluster name"):
        await log.open_session(name, "n1")


async def test_a_closed_log_says_so(bed, cluster):
    """After close every call raises LogUnavailable, and a second close is harmless."""
    log = await bed.log()
    await log.open_session(cluster, "n1")
    await log.close()
    await log.close()
    with pytest.raises(LogUnavailable):
        await log.head()
    assert not log.connected


@pytest.mark.parametrize("turns", [0, 1, 5, 100])
async def test_closing_ends_followers(bed, turns):
    """A follower, however far it has come, ends with LogUnavailable when its log is closed."""
    log = await bed.log()
    deliveries = log.follow(await log.position())
    await take_bookmark(deliveries)
    waiting = asyncio.create_task(take(deliveries, 1))
    for _ in range(turns):
        await asyncio.sleep(0)
    await log.close()
    with pytest.raises(LogUnavailable):
        await waiting


async def test_refusals_and_holes_are_counted(bed, cluster):
    """What readers dropped or found out of place shows on the log."""
    log = await bed.log()
    start = await log.position()
    session = await log.open_session(cluster, "n1")
    await log.append(session, b"1")
    await bed.forge(Record(Revision(0), cluster, "n1", 2, session.token - 1, b"forged"))
    await bed.forge(Record(Revision(0), cluster, "n1", 4, session.token, b"4"))
    with pytest.raises(SequenceGap):
        await read_all(log, start)
    assert (log.refused, log.holes) == (1, 1)
    assert f"record 2 of {cluster}/n1 at revision" in log.last_refused
