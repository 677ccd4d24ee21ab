"""Which records are believed to be of the writer that they name."""

import pytest

from kvstore import keys
from kvstore.append import Cursor, encode_batch, encode_cursor
from kvstore.types import Record, Revision
from kvstore.vouching import Hearing, Voucher, stands, vouchers
from kvstore.watch import Tally

KNOWN = {"east/n1": Voucher(5, 50)}


def record(sequence: int, revision: int, writer: str = "n1") -> Record:
    """One of the cluster's."""
    return Record(Revision(revision), "east", writer, sequence, 3, 1, b"x")


def log_change(sequence: int, revision: int, writer: str = "n1") -> tuple[bytes, bytes, int]:
    """As the watch tells a record."""
    return keys.log_key("east", 1, writer, sequence), encode_batch(3, b"x"), revision


def cursor_change(sequence: int, revision: int, writer: str = "n1", token: int = 3) -> tuple[bytes, bytes, int]:
    """As the watch tells a cursor."""
    return keys.cursor_key("east", writer), encode_cursor(Cursor(sequence, 1, token)), revision


@pytest.mark.parametrize(
    ("found", "believed"),
    [
        (record(4, 40), True),
        (record(5, 50), True),
        (record(5, 51), False),
        (record(6, 52), False),
        (record(1, 52, "ghost"), False),
        (record(6, 101), True),
    ],
    ids=["before the cursor", "the cursor's", "in its place", "beyond it", "of nobody", "after the cursors were read"],
)
def test_a_range_believes_what_the_cursor_covers(found, believed):
    """Up to the cursor; at it, only the record that moved it; above the head it is not for this reading to say."""
    assert stands(found, KNOWN, 100) == believed


def test_a_spoilt_cursor_vouches_for_nothing():
    """The others are read as ever."""
    good, bad = cursor_change(5, 50), (keys.cursor_key("east", "n2"), b"\xc1")
    assert vouchers({good[0]: (good[1], good[2]), bad[0]: (bad[1], 60)}) == KNOWN


def test_a_watch_believes_a_record_with_its_cursor():
    """In the order of an append's own transaction, between other keys."""
    hearing = Hearing(Tally())
    assert hearing.hear(*log_change(1, 10)) is None
    assert hearing.hear(*cursor_change(1, 10)) == record(1, 10)
    assert hearing.hear(keys.head_key("east"), b"2", 10) is None


@pytest.mark.parametrize(
    "cursor",
    [
        cursor_change(1, 11),
        cursor_change(2, 10),
        cursor_change(1, 10, "n2"),
        cursor_change(1, 10, token=4),
        log_change(2, 11),
    ],
    ids=["another revision", "another sequence", "another writer's", "another session's", "none"],
)
def test_a_watch_refuses_a_record_without_its_cursor(cursor):
    """What a writer did not vouch for is not delivered, and is counted once; what it vouches for later is."""
    tally = Tally()
    hearing = Hearing(tally)
    assert hearing.hear(*log_change(1, 10)) is None
    assert hearing.hear(*cursor) is None
    hearing.settle()
    assert tally.refused >= 1
    assert hearing.hear(*log_change(1, 12)) is None
    assert hearing.hear(*cursor_change(1, 12)) == record(1, 12)


def test_a_malformed_record_is_refused():
    """A value that is no batch does not wait for its cursor."""
    tally = Tally()
    hearing = Hearing(tally)
    assert hearing.hear(keys.log_key("east", 1, "n1", 1), b"\xc1", 10) is None
    assert hearing.hear(*cursor_change(1, 10)) is None
    assert tally.refused == 1
