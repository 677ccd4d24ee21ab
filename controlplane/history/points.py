"""A point in the history as a person writes it: a revision, a time, or so long ago. Pure.

Belongs here: reading the text. Does not belong here: which revision a time is (at.py).
"""

import re
from datetime import UTC, datetime

import msgspec

UNIT_S = {"s": 1, "m": 60, "h": 3600, "d": 86400}
RIGHT = "right is a revision (42), a time (2026-05-01T12:00:00Z, UTC if no zone is given) or so long ago (-10m, -1h30m)"


class PointError(ValueError):
    """The text names no point."""


class Point(msgspec.Struct, frozen=True):
    """One of the three: `revision`; `time_ns` since the epoch; `ago_ns` before now. The others are None."""

    revision: int | None = None
    time_ns: int | None = None
    ago_ns: int | None = None

    def time_at(self, now_ns: int) -> int:
        """The time meant, of one that is no revision."""
        return self.time_ns if self.time_ns is not None else now_ns - (self.ago_ns or 0)


def parse_point(text: str) -> Point:
    """Raises PointError."""
    written = text.strip()
    if written.isascii() and written.isdigit():
        return Point(revision=int(written))
    if re.fullmatch(r"-(?:\d+[smhd])+", written):
        pieces = re.findall(r"(\d+)([smhd])", written)
        return Point(ago_ns=sum(int(count) * UNIT_S[unit] for count, unit in pieces) * 1_000_000_000)
    try:
        moment = datetime.fromisoformat(written)
    except ValueError:
        raise PointError(f"{text!r} is no point in the history; {RIGHT}") from None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    whole = moment.replace(microsecond=0)
    return Point(time_ns=int(whole.timestamp()) * 1_000_000_000 + moment.microsecond * 1000)
