"""The difference between what the kernel should hold and what it holds, per table, in a fixed order.

Belongs here: comparing, and merging what was offered before it is compared. Does not belong here: in which
order tables are written (plan.py).
"""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from datapath.tables import Desired

Rows = Mapping[bytes, bytes]


class TableDelta(NamedTuple):
    """`puts` and `deletes` sorted by key; `previous` holds what is realized now under those keys, where
    anything is."""

    puts: Mapping[bytes, bytes]
    deletes: tuple[bytes, ...]
    previous: Rows

    def __bool__(self) -> bool:
        return bool(self.puts or self.deletes)


Delta = Mapping[str, TableDelta]


def difference(desired: Rows, realized: Rows) -> TableDelta:
    """All of a table; rows that are not desired go. Only for a `desired` that is known to be whole."""
    if not realized:
        return TableDelta(dict(sorted(desired.items())), (), {})
    puts = sorted([item for item in desired.items() if realized.get(item[0]) != item[1]])
    return _delta(puts, sorted(realized.keys() - desired.keys()), realized)


def difference_at(keys: Iterable[bytes], desired: Rows, realized: Rows) -> TableDelta:
    """Only these keys; those that are not desired go. The cost follows the number of keys."""
    puts: list[tuple[bytes, bytes]] = []
    deletes: list[bytes] = []
    for key in sorted(keys):
        wanted, found = desired.get(key), realized.get(key)
        if wanted is None and found is not None:
            deletes.append(key)
        elif wanted is not None and wanted != found:
            puts.append((key, wanted))
    return _delta(puts, deletes, realized)


def _delta(puts: list[tuple[bytes, bytes]], deletes: list[bytes], realized: Rows) -> TableDelta:
    previous = {key: realized[key] for key, _ in puts if key in realized} if realized else {}
    previous.update((key, realized[key]) for key in deletes)
    return TableDelta(dict(puts), tuple(deletes), previous)


class Pending:
    """What was offered and not yet taken. The latest value of a row wins, so its size is bounded by the
    number of distinct keys, however much is offered."""

    def __init__(self) -> None:
        self.complete: Desired | None = None
        self.changes: dict[str, dict[Any, Any]] = {}
        self.generation = -1
        self.is_whole = True
        """False: what follows belongs to it."""

    def __bool__(self) -> bool:
        return self.generation >= 0

    def merge(self, offered: Desired) -> None:
        """A complete offer replaces everything before it."""
        self.generation = offered.generation
        if offered.complete:
            self.complete, self.changes = offered, {}
            return
        for table, rows in offered.tables.items():
            self.changes.setdefault(table, {}).update(rows)
