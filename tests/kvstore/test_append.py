"""What a refused append means, and the stored forms."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvstore import append, keys
from kvstore.append import Again, Conflict, Cursor, Found, Landed, Lost, Place, attempt, settle, stored
from kvstore.types import Claim, Revision, Want

PLACE = Place(token=5, sequence=10, cursor_revision=77, size=100)
SENT = attempt(PLACE, "east", "n1", b"payload")
UNCHANGED = Found(
    session_token=5, cursor=Cursor(10, 5, 100), cursor_revision=77, stored=b"", stored_revision=0,
    claims_touched=(),
)  # fmt: skip


def found(**changes) -> Found:
    """What etcd holds, but for these."""
    return msgspec.structs.replace(UNCHANGED, **changes)


def test_a_copy_that_landed_is_known_by_its_bytes():
    """The record's own key holds what was sent: it landed at that revision, and the next sequence follows."""
    outcome = settle(
        SENT, (), found(cursor=Cursor(11, 5, 107), cursor_revision=90, stored=SENT.value, stored_revision=90)
    )
    assert isinstance(outcome, Landed) and (outcome.revision, outcome.place.sequence) == (90, 11)


def test_a_copy_that_landed_before_the_fence_counts():
    """The session is gone, but the record is there: it is acknowledged, not given up."""
    outcome = settle(SENT, (), found(session_token=99, stored=SENT.value, stored_revision=90))
    assert isinstance(outcome, Landed)


def test_a_successors_record_is_not_taken_for_ours():
    """The same sequence with the same payload under another token is the successor's: we are fenced."""
    theirs = append.encode_batch(99, b"payload")
    outcome = settle(
        SENT,
        (),
        found(
            session_token=99, cursor=Cursor(11, 99, 107), cursor_revision=90, stored=theirs, stored_revision=90
        ),
    )
    assert isinstance(outcome, Lost)


def test_a_missing_session_fences():
    """No session key at all: the lease ran out."""
    assert isinstance(settle(SENT, (), found(session_token=0)), Lost)


def test_an_earlier_append_in_doubt_that_landed_is_counted():
    """Another batch of ours has this sequence: one that was given up landed, so this one is next."""
    earlier = append.encode_batch(5, b"earlier")
    outcome = settle(
        SENT, (), found(cursor=Cursor(11, 5, 107), cursor_revision=90, stored=earlier, stored_revision=90)
    )
    assert isinstance(outcome, Again) and outcome.place.sequence == 11


@pytest.mark.parametrize(
    ("claim", "touched"),
    [
        (Claim("contested"), 30),
        (Claim("contested", Want.HELD), 0),
        (Claim("contested", Want.FREED), 0),
        (Claim("contested", Want.FREED, untouched_since=Revision(29)), 30),
        (Claim("contested", Want.HELD, untouched_since=Revision(29)), 30),
        (Claim("contested", Want.FREED, untouched_since=Revision(29)), 0),
    ],
)
def test_a_claim_that_does_not_hold_is_named(claim, touched):
    """Nothing else has changed: the first claim that failed is the reason, not one that stands."""
    standing = Claim("standing", Want.HELD, untouched_since=Revision(30))
    outcome = settle(SENT, [standing, claim], found(claims_touched=[30, touched]))
    assert outcome == Conflict("contested")


def test_what_is_taken_is_never_untouched_since():
    """It did not exist: the caller is told."""
    with pytest.raises(ValueError, match="untouched"):
        append.check_claims([Claim("x", untouched_since=Revision(1))])


def test_claims_are_bounded_by_what_they_compare():
    """A claim that also asks for its revision counts twice."""
    plain = [Claim(f"x/{n}") for n in range(append.CLAIM_COMPARES_MAX)]
    append.check_claims(plain)
    twice = [Claim(claim.key, Want.FREED, untouched_since=Revision(1)) for claim in plain]
    append.check_claims(twice[: append.CLAIM_COMPARES_MAX // 2])
    with pytest.raises(ValueError, match="compares"):
        append.check_claims(twice)


def test_old_knowledge_is_refreshed_before_a_claim_is_judged():
    """If the cursor moved, the claim may be our own from a copy in doubt: look again first."""
    outcome = settle(
        SENT, [Claim("x")], found(cursor=Cursor(11, 5, 107), cursor_revision=90, claims_touched=[9])
    )
    assert isinstance(outcome, Again)


def test_the_next_place_follows_from_what_was_stored():
    """Sequence, revision, and the bytes so far: the cursor that went with the batch."""
    place = stored(SENT, 78)
    assert place == Place(token=5, sequence=11, cursor_revision=78, size=107)
    assert attempt(place, "east", "n1", b"more").cursor == Cursor(12, 5, 111)


@given(st.integers(1, 2**62), st.binary(max_size=300))
def test_a_record_reads_back(token, payload):
    """Key and value give the record that was appended."""
    record = append.decode_record(keys.log_key("east", "n1", 11), append.encode_batch(token, payload), 90)
    assert (record.cluster, record.writer, record.sequence) == ("east", "n1", 11)
    assert (record.token, record.payload, record.revision) == (token, payload, 90)


@given(st.binary(max_size=60))
def test_a_value_of_another_making_is_refused(value):
    """Bytes that are no batch raise ValueError and nothing else."""
    try:
        append.decode_record(keys.log_key("east", "n1", 11), value, 90)
    except ValueError:
        return


def test_a_batch_of_a_newer_format_is_named():
    """The error says which format it is and which one this version reads."""
    value = msgspec.msgpack.encode((2, 5, b""))
    with pytest.raises(ValueError, match="format 2; this version reads 1"):
        append.decode_record(keys.log_key("east", "n1", 11), value, 90)
