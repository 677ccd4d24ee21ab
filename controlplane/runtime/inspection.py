"""Whether the kernel still holds what was written into it, and the pins are those of the maps that the programs use:
looked at now and then, table by table.

Belongs here: when it is looked at, and since when something is other. Does not belong here: the comparison
(datapath/realization.py), writing it again, which a person decides (`meshlog verify --repair`).
"""

from collections.abc import Sequence
from datetime import UTC, datetime

import structlog

from controlplane.runtime.clock import Clock
from controlplane.settings import AgentSettings
from datapath.realization import TableVerification
from datapath.reconciler import Reconciler
from datapath.tables import TABLES

AGAIN_S = 5.0
"""A difference counts when it is still there after so long: a device that goes takes its rows along before the log
knows, and that is no fault."""


class Inspection:
    """A node's. `since_ns`: per table that differs, the wall clock at the look that saw it first."""

    def __init__(self, reconciler: Reconciler, clock: Clock, settings: AgentSettings) -> None:
        self._reconciler = reconciler
        self._clock = clock
        self._inspect_s = settings.inspect_s
        self._rows: dict[str, int] = {}
        self._faults: dict[str, str] = {}
        self.since_ns: dict[str, int] = {}
        self._logger = structlog.get_logger()

    async def run(self) -> None:
        """For ever. One table at a time, so that nothing that is to be written waits for a look at all of them."""
        while True:
            await self._clock.sleep_s(self._clock.jitter(self._inspect_s))
            suspects = await self._look(tuple(TABLES))
            seen_ns = self._clock.time_ns()
            if suspects:
                await self._clock.sleep_s(AGAIN_S)
                suspects = await self._look([found.table for found in suspects])
            self.note(suspects, seen_ns)

    async def _look(self, tables: Sequence[str]) -> list[TableVerification]:
        """Those that differ. Rows that are known to be missing, as the kernel refused them, are told elsewhere."""
        found = [await self._reconciler.verify_table(table) for table in tables]
        unsettled = {row.table for row in self._reconciler.status().not_done}
        return [each for each in found if each.error or (_rows(each) and each.table not in unsettled)]

    def note(self, differing: Sequence[TableVerification], seen_ns: int) -> None:
        """What a look at all tables found. Also of one that a person asked for."""
        self._rows = {each.table: _rows(each) for each in differing if _rows(each)}
        self._faults = {each.table: each.error for each in differing if each.error}
        wrong = sorted(self._rows.keys() | self._faults.keys())
        new = [table for table in wrong if table not in self.since_ns]
        self.since_ns = {table: self.since_ns.get(table, seen_ns) for table in wrong}
        if new:
            self._logger.warning("the kernel holds other rows or pins than it was given", tables=new)

    def problems(self) -> list[str]:
        """In words: what, since when at the latest, and what to do."""
        found = [
            f"table {table} cannot be relied on, seen since {self._since(table)}: {fault}; "
            "`meshlog verify --repair` pins again what the programs use"
            for table, fault in sorted(self._faults.items())
        ]
        if self._rows:
            tables = ", ".join(f"{table} ({count})" for table, count in sorted(self._rows.items()))
            what = f"the kernel has other rows than the log says, seen since {self._since(*self._rows)}: {tables}"
            found.append(f"{what}; `meshlog verify` names them, with --repair it writes them")
        return found

    def _since(self, *tables: str) -> str:
        oldest_ns = min(self.since_ns[table] for table in tables)
        return datetime.fromtimestamp(oldest_ns / 1e9, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def _rows(found: TableVerification) -> int:
    return found.missing + found.alien + found.corrupted
