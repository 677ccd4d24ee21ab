"""One node's rows, desired and realized, and the pass that makes the second equal the first.

Belongs here: the bookkeeping around Kernel calls, synchronous, in whatever thread the caller has (one at a
time); time is an argument. Does not belong here: threads and waiting (reconciler.py), the order of writing
(plan.py).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from datapath import codec
from datapath.delta import Delta, Pending, TableDelta, difference, difference_at
from datapath.digest import TableDigest, digest_of
from datapath.errors import KernelError
from datapath.kernel.api import Kernel, RowFailure
from datapath.plan import POLICY_TABLES, PUT, Holds, Step, plan, unsettled_epoch
from datapath.status import RowStatus, Statuses, Summary, WriteCount
from datapath.tables import TABLES

DIFFERENCES_MAX = 1000


class Report(msgspec.Struct, frozen=True):
    """How far the kernel is, after a pass. `realized_generation` is -1 before the first; every row up to it
    is done, or stands in `not_done`. `retry_at_s` is monotonic. `digests`, `writes` (since start) and
    `rows` (that the kernel holds) are by table."""

    realized_generation: int
    in_sync: bool
    summary: Summary
    not_done: tuple[RowStatus, ...]
    retry_at_s: float | None
    digests: Mapping[str, str]
    writes: Mapping[str, WriteCount]
    stale_tables: tuple[str, ...]
    rows: Mapping[str, int]


class Difference(msgspec.Struct, frozen=True):
    """A row that the kernel does not hold as desired. `kind`: missing, alien or corrupted. Key and rows are
    typed, or the bytes where they cannot be decoded."""

    kind: str
    key: Any
    desired: Any
    found: Any


class TableVerification(msgspec.Struct, frozen=True):
    """Three digests of one table, and what differs between the first and the last. `differences` holds the
    first 1000 of `missing` + `alien` + `corrupted`. `error`: why the kernel could not be read, or that its map is
    not the pinned one; its digest is then ""."""

    table: str
    desired: str
    realized: str
    kernel: str
    missing: int
    alien: int
    corrupted: int
    differences: tuple[Difference, ...]
    error: str


class Realization:
    """Owned by one thread at a time."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self._desired: dict[str, dict[bytes, bytes]] = {table: {} for table in TABLES}
        self._realized: dict[str, dict[bytes, bytes]] = {table: {} for table in TABLES}
        self._digests = {table: TableDigest() for table in TABLES}
        self._writes = dict.fromkeys(TABLES, WriteCount(0, 0))
        self._statuses = Statuses()
        self._stale: set[str] = set()
        self._in_sync = False
        self._generation = -1

    def open(self) -> Report:
        """Open the kernel and read what it holds. Raises KernelError."""
        self._kernel.open()
        for table in TABLES:
            self._refresh(table)
        return self.report()

    @property
    def is_empty(self) -> bool:
        """Whether the kernel is known to hold no row at all."""
        return not any(self._realized.values())

    def close(self) -> None:
        """Let go of the kernel; what is in it stays."""
        self._kernel.close()

    def realized_rows(self, table: str) -> Mapping[bytes, bytes]:
        """What the kernel holds of a table, as read and written."""
        return self._realized[table]

    def converge(self, pending: Pending, now_s: float) -> Report:
        """One pass: take what is pending, write what differs, try again what failed and is due."""
        refreshed = self._refresh_stale()
        changed = self._take(pending)
        self._write(self._delta(changed, refreshed), now_s)
        return self.report()

    def repair(self, now_s: float) -> Report:
        """Read every table again and write what differs, also what failed and is not due; pin again what the programs
        use. Raises KernelError."""
        self._kernel.stray_pins(True)
        for table in TABLES:
            self._refresh(table)
        unsettled = {table: set(keys) for table, keys in self._statuses.unsettled().items()}
        self._statuses = Statuses()
        self._write(self._delta(unsettled, TABLES), now_s)
        return self.report()

    def report(self) -> Report:
        """How far the kernel is."""
        # Rows that should have gone and have not are not among the desired: they count as rows too.
        lingering = sum(row.value is None for row in self._statuses.not_done())
        rows = sum(len(rows) for rows in self._desired.values()) + lingering
        return Report(
            realized_generation=self._generation,
            in_sync=self._in_sync,
            summary=self._statuses.summary(rows),
            not_done=self._statuses.not_done(),
            retry_at_s=self._statuses.next_retry_s(),
            digests={table: digest.text() for table, digest in self._digests.items()},
            writes=dict(self._writes),
            stale_tables=tuple(sorted(self._stale)),
            rows={table: len(held) for table, held in self._realized.items()},
        )

    def verify(self) -> tuple[TableVerification, ...]:
        """Compare with a fresh dump, table by table. Changes nothing."""
        return tuple(self.verify_table(table) for table in TABLES)

    def _take(self, pending: Pending) -> Mapping[str, set[bytes]] | None:
        """The keys whose desired value may have changed; None: any."""
        if not pending:
            return {}
        complete = pending.complete
        if complete is not None:
            self._desired = {
                table: codec.encode_rows(table, complete.tables.get(table, {})) for table in TABLES
            }
            self._in_sync = True
        changed: dict[str, set[bytes]] = {}
        for table, rows in pending.changes.items():
            desired, keys = self._desired[table], changed.setdefault(table, set())
            for typed_key, row in rows.items():
                key = codec.encode_key(table, typed_key)
                keys.add(key)
                if row is None:
                    desired.pop(key, None)
                else:
                    desired[key] = codec.encode_row(table, row)
        self._generation = pending.generation
        return changed if complete is None else None

    def _delta(
        self, changed: Mapping[str, set[bytes]] | None, refreshed: Sequence[str] | Mapping[str, Any]
    ) -> Delta:
        unsettled = self._statuses.unsettled()
        delta: dict[str, TableDelta] = {}
        for table in TABLES:
            desired, realized = self._desired[table], self._realized[table]
            if self._in_sync and (changed is None or table in refreshed):
                delta[table] = difference(desired, realized)
                continue
            keys = {*(changed or {}).get(table, ()), *unsettled.get(table, ())}
            if table in refreshed:
                keys.update(desired)
            if keys:
                delta[table] = difference_at(keys, desired, realized)
        return delta

    def _write(self, delta: Delta, now_s: float) -> None:
        current = _Pass(delta, now_s)
        for step in plan(delta):
            if current.holds or self._statuses:
                step = self._admitted(step, current)
            if step.table == "node_state" and current.is_policy_unsettled:
                self._write_unsettled_epoch(step, current)
            elif step.rows or step.keys:
                self._write_step(step, current)
        for table, keys in self._statuses.unsettled().items():
            for key in keys:
                if self._desired[table].get(key) == self._realized[table].get(key):
                    self._statuses.settle(table, key)

    def _write_unsettled_epoch(self, step: Step, current: "_Pass") -> None:
        marked = step._replace(rows=tuple((key, unsettled_epoch(value)) for key, value in step.rows))
        self._write_step(marked, current)
        for key, value in step.rows:
            if (step.table, key) not in current.failed:
                self._statuses.hold(
                    step.table, key, value, "waits for policy and ipcache rows", self._generation
                )

    def _admitted(self, step: Step, current: "_Pass") -> Step:
        """The step without the rows that failed and are not due, and those that wait for them."""
        admitted = set()
        for key in step.keys or [key for key, _ in step.rows]:
            final = self._desired[step.table].get(key)
            if (step.table, key) in current.failed:
                continue
            if self._statuses.is_waiting(step.table, key, final, current.now_s):
                current.fail(step, key, final)
                continue
            reason = current.holds.reason(step.phase, step.table, key, current.values(step.table, key, final))
            if reason:
                self._statuses.hold(step.table, key, final, reason, self._generation)
                current.fail(step, key, final)
                continue
            admitted.add(key)
        return step._replace(
            rows=tuple(row for row in step.rows if row[0] in admitted),
            keys=tuple(key for key in step.keys if key in admitted),
        )

    def _write_step(self, step: Step, current: "_Pass") -> None:
        failures = self._call_kernel(step)
        failed = set()
        for failure in failures:
            failed.add(failure.key)
            final = self._desired[step.table].get(failure.key)
            self._statuses.fail(
                step.table, failure.key, final, failure.reason, failure.errno, self._generation, current.now_s
            )
            current.fail(step, failure.key, final)
        count = self._writes[step.table]
        if step.operation == PUT:
            rows = step.rows if not failed else [row for row in step.rows if row[0] not in failed]
            self._record_puts(step.table, rows)
            self._writes[step.table] = WriteCount(count.puts + len(rows), count.deletes)
        else:
            keys = step.keys if not failed else [key for key in step.keys if key not in failed]
            self._record_deletes(step.table, keys)
            self._writes[step.table] = WriteCount(count.puts, count.deletes + len(keys))

    def _call_kernel(self, step: Step) -> Sequence[RowFailure]:
        try:
            if step.operation == PUT:
                return self._kernel.put(step.table, step.rows)
            return self._kernel.delete(step.table, step.keys)
        except KernelError as error:
            # Some of the rows may have been written: what the table holds is read again before the next pass.
            self._stale.add(step.table)
            keys = [key for key, _ in step.rows] or step.keys
            return [RowFailure(key, str(error), error.errno) for key in keys]

    def _record_puts(self, table: str, rows: Sequence[tuple[bytes, bytes]]) -> None:
        realized, digest = self._realized[table], self._digests[table]
        for key, _ in rows if realized else ():
            previous = realized.get(key)
            if previous is not None:
                digest.remove(key, previous)
        digest.add_all(rows)
        realized.update(rows)

    def _record_deletes(self, table: str, keys: Sequence[bytes]) -> None:
        realized, digest = self._realized[table], self._digests[table]
        for key in keys:
            digest.remove(key, realized.pop(key))

    def _refresh(self, table: str) -> None:
        self._realized[table] = dict(self._kernel.dump(table))
        self._digests[table] = TableDigest(self._realized[table])
        self._stale.discard(table)

    def _refresh_stale(self) -> tuple[str, ...]:
        """The tables that could be read again; the others stay stale, and their rows are written all the
        same."""
        refreshed = []
        for table in sorted(self._stale):
            try:
                self._refresh(table)
            except KernelError:
                continue
            refreshed.append(table)
        return tuple(refreshed)

    def verify_table(self, table: str) -> TableVerification:
        """Compare one table with a fresh dump. Changes nothing."""
        desired = self._desired[table]
        digests = digest_of(desired), self._digests[table].text()
        try:
            found = dict(self._kernel.dump(table))
        except KernelError as error:
            return TableVerification(table, *digests, "", 0, 0, 0, (), f"unreadable: {error}")
        stray = self._stray(table)
        if found == desired:
            return TableVerification(table, *digests, "" if stray else digests[0], 0, 0, 0, (), stray)
        missing = sorted(desired.keys() - found.keys())
        alien = sorted(found.keys() - desired.keys())
        corrupted = sorted(key for key, value in found.items() if desired.get(key, value) != value)
        kinds = [("missing", key) for key in missing] + [("alien", key) for key in alien]
        kinds += [("corrupted", key) for key in corrupted]
        differences = tuple(
            Difference(
                kind, _typed_key(table, key), _typed(table, desired.get(key)), _typed(table, found.get(key))
            )
            for kind, key in kinds[:DIFFERENCES_MAX]
        )
        counts = len(missing), len(alien), len(corrupted)
        kernel = "" if stray else digest_of(found)
        return TableVerification(table, *digests, kernel, *counts, differences, stray)

    def _stray(self, table: str) -> str:
        """What is the matter with the pins of a table's map. The programs' own maps have no table: what is lost with
        them shows when other programs are attached."""
        strays = self._kernel.stray_pins()
        derived = {each.map for each in TABLES.values()}
        own = [
            reason for name, reason in strays.items()
            if name == TABLES[table].map or (table == "attachments" and name not in derived)
        ]  # fmt: skip
        return f"stray: {'; '.join(own)}" if own else ""


class _Pass:
    """What one pass has to remember: which rows it could not write."""

    def __init__(self, delta: Delta, now_s: float) -> None:
        self.delta = delta
        self.now_s = now_s
        self.holds = Holds()
        self.failed: set[tuple[str, bytes]] = set()
        self.is_policy_unsettled = False

    def values(self, table: str, key: bytes, final: bytes | None) -> tuple[bytes | None, bytes | None]:
        return final, self.delta[table].previous.get(key)

    def fail(self, step: Step, key: bytes, final: bytes | None) -> None:
        self.failed.add((step.table, key))
        self.holds.fail(step.phase, step.table, key, self.values(step.table, key, final))
        self.is_policy_unsettled = self.is_policy_unsettled or step.table in POLICY_TABLES


def _typed_key(table: str, key: bytes) -> Any:
    try:
        return codec.decode_key(table, key)
    except ValueError:
        return key


def _typed(table: str, value: bytes | None) -> Any:
    try:
        return None if value is None else codec.decode_row(table, value)
    except ValueError:
        return value
