"""The status of rows: pending, done or error, and when a failed row is tried again.

Belongs here: the record of what failed and the schedule of retries; time is an argument (monotonic seconds).
Does not belong here: writing (realization.py). A row without a record is done.
"""

import enum
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import msgspec

RETRY_DELAY_S_MIN = 0.1
RETRY_DELAY_S_MAX = 30.0


class RowState(enum.StrEnum):
    PENDING = "pending"
    DONE = "done"
    ERROR = "error"


class RowStatus(msgspec.Struct, frozen=True):
    """A row that is not done. `value` is what it should hold, None if it should go; `errno` is 0 where there
    is none. `generation` is the first that it has been failing, or waiting, since; `retry_at_s` is
    monotonic."""

    table: str
    key: bytes
    value: bytes | None
    state: RowState
    reason: str
    errno: int
    attempts: int
    generation: int
    retry_at_s: float


class Summary(msgspec.Struct, frozen=True):
    """Rows by status; `lowest_failing_generation` is None when nothing fails."""

    done: int
    pending: int
    error: int
    lowest_failing_generation: int | None


class WriteCount(NamedTuple):
    """Rows that were really written and really removed."""

    puts: int
    deletes: int


def retry_delay_s(attempts: int) -> float:
    """Seconds to wait after so many failed attempts: doubled each time, from 0.1 to 30."""
    return min(RETRY_DELAY_S_MIN * 2.0 ** min(attempts - 1, 16), RETRY_DELAY_S_MAX)


class Statuses:
    """All rows that are not done."""

    def __init__(self) -> None:
        self._rows: dict[tuple[str, bytes], RowStatus] = {}

    def __bool__(self) -> bool:
        return bool(self._rows)

    def fail(
        self,
        table: str,
        key: bytes,
        value: bytes | None,
        reason: str,
        errno: int,
        generation: int,
        now_s: float,
    ) -> None:
        """An attempt failed. A row that now wants another value starts again with the shortest delay."""
        known = self._rows.get((table, key))
        same = known is not None and known.value == value
        attempts = known.attempts + 1 if known is not None and same else 1
        since = known.generation if known is not None and same else generation
        self._rows[table, key] = RowStatus(
            table, key, value, RowState.ERROR, reason, errno, attempts, since, now_s + retry_delay_s(attempts)
        )

    def hold(self, table: str, key: bytes, value: bytes | None, reason: str, generation: int) -> None:
        """The row waits for another one; `reason` says for which. It is tried again when that one is, so it
        has no time of its own; failures of before still count."""
        known = self._rows.get((table, key))
        same = known is not None and known.value == value
        attempts = known.attempts if known is not None and same else 0
        since = known.generation if known is not None and same else generation
        self._rows[table, key] = RowStatus(
            table, key, value, RowState.PENDING, reason, 0, attempts, since, 0.0
        )

    def settle(self, table: str, key: bytes) -> None:
        """The row is done."""
        if self._rows:
            self._rows.pop((table, key), None)

    def of(self, table: str, key: bytes) -> RowStatus | None:
        """None: the row is done."""
        return self._rows.get((table, key))

    def is_waiting(self, table: str, key: bytes, value: bytes | None, now_s: float) -> bool:
        """Whether the row failed with this value and its time has not come."""
        known = self._rows.get((table, key))
        return (
            known is not None
            and known.state is RowState.ERROR
            and known.value == value
            and known.retry_at_s > now_s
        )

    def unsettled(self) -> Mapping[str, Sequence[bytes]]:
        """Keys of rows that are not done, by table."""
        keys: dict[str, list[bytes]] = {}
        for table, key in self._rows:
            keys.setdefault(table, []).append(key)
        return keys

    def not_done(self) -> tuple[RowStatus, ...]:
        """Failing and held rows, ordered by table and key."""
        return tuple(self._rows[at] for at in sorted(self._rows))

    def next_retry_s(self) -> float | None:
        """When the next failed row is due, monotonic; None if none is failing."""
        return min(
            (row.retry_at_s for row in self._rows.values() if row.state is RowState.ERROR), default=None
        )

    def summary(self, rows: int) -> Summary:
        """`rows`: how many there should be in all tables, plus those that should have gone and have not."""
        failing = [row for row in self._rows.values() if row.state is RowState.ERROR]
        error, pending = len(failing), len(self._rows) - len(failing)
        return Summary(
            done=rows - error - pending,
            pending=pending,
            error=error,
            lowest_failing_generation=min((row.generation for row in failing), default=None),
        )
