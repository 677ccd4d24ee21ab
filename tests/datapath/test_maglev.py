"""Lookup tables: the published algorithm, its promises, and weights."""

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datapath.maglev import lookup_table

SEED = b"twelve bytes"
SIZE = 2039


def names(count: int) -> list[bytes]:
    return [b"backend %d" % number for number in range(count)]


def owners(table: bytes) -> list[int]:
    return list(memoryview(table).cast("H"))


def table_of(found: Sequence[bytes], weights: Sequence[int] | None = None, size: int = SIZE) -> list[int]:
    return owners(lookup_table(found, weights or [1] * len(found), size, SEED))


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 40))
def test_everyone_has_an_equal_share(count: int) -> None:
    """Shares differ by one slot at most, and every slot is somebody's."""
    table = table_of(names(count))
    shares = [table.count(index) for index in range(count)]
    assert sum(shares) == SIZE
    assert max(shares) - min(shares) <= 1


@settings(max_examples=10, deadline=None)
@given(st.integers(2, 40), st.data())
def test_few_slots_change_their_owner_when_a_backend_goes(count: int, data: st.DataObject) -> None:
    """Beside the slots of the one that goes, at most a few in a hundred, whatever the number of backends."""
    found = names(count)
    gone = data.draw(st.integers(0, count - 1))
    left = found[:gone] + found[gone + 1 :]
    before, after = table_of(found, size=16381), table_of(left, size=16381)
    moved = sum(
        index != gone and found[index] != left[other] for index, other in zip(before, after, strict=True)
    )
    assert moved <= 16381 * 0.03


def test_about_one_in_a_hundred_slots_moves_at_a_hundred_backends() -> None:
    """The figure that the paper's section 5.3 gives for tables a hundred times as large as the set."""
    found = names(100)
    before, after = table_of(found, size=16381), table_of(found[:-1], size=16381)
    moved = sum(index != 99 and index != other for index, other in zip(before, after, strict=True))
    assert moved <= 16381 * 0.015


def test_weights_are_shares_of_turns() -> None:
    """A backend of three times the weight has three times the slots."""
    table = table_of(names(2), [1, 3])
    assert table.count(1) == pytest.approx(3 * table.count(0), abs=4)


def test_the_seed_decides() -> None:
    """The same set and seed give the same table, another seed another one."""
    found, weights = names(5), [1] * 5
    assert lookup_table(found, weights, SIZE, SEED) == lookup_table(found, weights, SIZE, SEED)
    assert lookup_table(found, weights, SIZE, SEED) != lookup_table(found, weights, SIZE, b"other 12 bts")


def test_more_backends_than_slots_are_refused() -> None:
    """Some would have none."""
    with pytest.raises(ValueError, match="do not fit"):
        lookup_table(names(252), [1] * 252, 251, SEED)


def test_a_set_without_backends_has_a_table_of_zeros() -> None:
    """Nobody reads it."""
    assert lookup_table([], [], 251, SEED) == bytes(502)
