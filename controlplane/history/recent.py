"""The records that a process has applied since it started, so that the near past can be asked for without the log.

Belongs here: a bounded run of records. Does not belong here: the state they begin behind, folding (at.py).
"""

from bisect import bisect_right
from collections.abc import Iterator

from kvstore.types import Record

BYTES_MAX = 16 * 1024 * 1024
"""Payloads kept: about 50,000 records of ordinary size."""


class Recent:
    """Records behind `start_revision`, without a gap."""

    def __init__(self, start_revision: int) -> None:
        self.start_revision = start_revision
        self._records: list[Record] = []
        self._bytes = 0

    def add(self, record: Record) -> None:
        """The next one applied. Beyond the bound nothing more is kept: the log has it."""
        through = self._records[-1].revision if self._records else self.start_revision
        if record.revision <= through or self._bytes > BYTES_MAX:
            return
        self._records.append(record)
        self._bytes += len(record.payload)

    def forget(self) -> None:
        """The log contradicted itself: nothing kept here counts any more."""
        self._records.clear()
        self._bytes = BYTES_MAX + 1

    def covers(self, after: int, through: int) -> bool:
        """Whether every record with `after` < revision <= `through` is kept here."""
        if self._bytes > BYTES_MAX:
            return self.start_revision <= after and bool(self._records) and through <= self._records[-1].revision
        return self.start_revision <= after

    def between(self, after: int, through: int) -> Iterator[Record]:
        """In order."""
        place = bisect_right(self._records, after, key=lambda record: record.revision)
        for record in self._records[place:]:
            if record.revision > through:
                return
            yield record
