"""Digests: of content, not of history."""

from hypothesis import given
from hypothesis import strategies as st

from datapath.digest import TableDigest, digest_of

ROWS = st.dictionaries(st.binary(max_size=4), st.binary(max_size=4), max_size=8)


@given(ROWS, st.randoms(use_true_random=False))
def test_order_does_not_matter(rows: dict, random: object) -> None:
    """The same rows in another order have the same digest."""
    items = list(rows.items())
    random.shuffle(items)  # type: ignore[attr-defined]
    assert digest_of(dict(items)) == digest_of(rows)


@given(ROWS, ROWS)
def test_incremental_is_full(before: dict, after: dict) -> None:
    """Rows removed and added one by one give the digest of the rows that are left."""
    digest = TableDigest(before)
    for key, value in before.items():
        digest.remove(key, value)
    for key, value in after.items():
        digest.add(key, value)
    assert digest.text() == digest_of(after)


@given(ROWS, ROWS)
def test_other_rows_have_another_digest(one: dict, other: dict) -> None:
    """Different tables have different digests."""
    assert (digest_of(one) == digest_of(other)) == (one == other)


def test_key_and_value_are_framed() -> None:
    """Where the key ends matters."""
    assert digest_of({b"a": b"bc"}) != digest_of({b"ab": b"c"})


def test_no_rows() -> None:
    """An empty table has the digest zero."""
    assert digest_of({}) == "0" * 32
