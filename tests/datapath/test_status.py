"""The record of rows that are not done, and the schedule of retries."""

from hypothesis import given
from hypothesis import strategies as st

from datapath.status import RETRY_DELAY_S_MAX, RETRY_DELAY_S_MIN, RowState, Statuses, retry_delay_s


@given(st.integers(1, 10_000))
def test_delay_grows_within_bounds(attempts: int) -> None:
    """Each attempt waits at least as long as the one before, never longer than the bound."""
    assert RETRY_DELAY_S_MIN <= retry_delay_s(attempts) <= retry_delay_s(attempts + 1) <= RETRY_DELAY_S_MAX


def test_delays_double() -> None:
    """The first delays are 0.1, 0.2 and 0.4 seconds."""
    assert [retry_delay_s(attempts) for attempts in (1, 2, 3)] == [0.1, 0.2, 0.4]


def test_attempts_add_up_since_the_first_generation() -> None:
    """A row that fails again keeps the generation of its first failure."""
    statuses = Statuses()
    statuses.fail("devices", b"k", b"v", "no", 5, generation=3, now_s=0.0)
    statuses.fail("devices", b"k", b"v", "no", 5, generation=4, now_s=1.0)
    found = statuses.of("devices", b"k")
    assert found is not None
    assert (found.attempts, found.generation, found.retry_at_s) == (2, 3, 1.2)


def test_another_value_starts_again() -> None:
    """A failed row that now wants another value is due at once, and fails as a new one."""
    statuses = Statuses()
    statuses.fail("devices", b"k", b"v", "no", 5, generation=3, now_s=0.0)
    assert statuses.is_waiting("devices", b"k", b"v", now_s=0.05)
    assert not statuses.is_waiting("devices", b"k", b"w", now_s=0.05)
    statuses.fail("devices", b"k", b"w", "no", 5, generation=4, now_s=1.0)
    assert statuses.of("devices", b"k").attempts == 1  # type: ignore[union-attr]


def test_summary_counts_and_names_the_lowest_generation() -> None:
    """Counts by status; the lowest generation among failing rows, not among waiting ones."""
    statuses = Statuses()
    statuses.hold("routes", b"a", b"v", "waits", generation=1)
    statuses.fail("devices", b"k", b"v", "no", 5, generation=4, now_s=0.0)
    statuses.fail("devices", b"l", None, "no", 5, generation=3, now_s=0.0)
    summary = statuses.summary(10)
    assert (summary.done, summary.pending, summary.error, summary.lowest_failing_generation) == (7, 1, 2, 3)


def test_settled_rows_are_forgotten() -> None:
    """A row without a record is done, and nothing is due."""
    statuses = Statuses()
    statuses.fail("devices", b"k", b"v", "no", 5, generation=1, now_s=0.0)
    statuses.settle("devices", b"k")
    assert (statuses.of("devices", b"k"), statuses.next_retry_s(), statuses.not_done()) == (None, None, ())


def test_a_held_row_has_no_time_of_its_own() -> None:
    """A failed row that now waits for another one is not due by itself, and its attempts still count."""
    statuses = Statuses()
    statuses.fail("routes", b"k", b"v", "no", 5, generation=1, now_s=0.0)
    statuses.hold("routes", b"k", b"v", "waits", generation=2)
    assert statuses.next_retry_s() is None
    statuses.fail("routes", b"k", b"v", "no", 5, generation=3, now_s=0.0)
    found = statuses.of("routes", b"k")
    assert found is not None
    assert (found.state, found.attempts, found.generation) == (RowState.ERROR, 2, 1)
