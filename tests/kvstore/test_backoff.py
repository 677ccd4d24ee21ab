"""Backoff: grows, is bounded, and follows the jitter."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvstore.backoff import delay_s

jitters = st.floats(0, 1, exclude_max=True)


@given(st.integers(0, 10**6), jitters)
def test_the_delay_is_bounded(attempt, jitter):
    """Never longer than the longest, never shorter than half of the first."""
    assert 0.025 <= delay_s(attempt, jitter) <= 1.0


@given(st.integers(0, 100), jitters)
def test_the_delay_does_not_shrink(attempt, jitter):
    """With the same jitter a later try waits at least as long."""
    assert delay_s(attempt, jitter) <= delay_s(attempt + 1, jitter)


def test_the_delay_doubles_until_the_longest():
    """Without jitter it is half of first, doubled each time, cut at the longest."""
    assert [delay_s(n, 0.0, first_s=0.1, longest_s=0.5) for n in range(4)] == [0.05, 0.1, 0.2, 0.25]


@pytest.mark.parametrize(("attempt", "jitter"), [(-1, 0.0), (0, 1.0), (0, -0.1)])
def test_wrong_arguments_are_refused(attempt, jitter):
    """A negative try and a jitter outside [0, 1) are mistakes of the caller."""
    with pytest.raises(ValueError, match="must be"):
        delay_s(attempt, jitter)
