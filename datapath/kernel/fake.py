"""A kernel in memory, for tests: the promises of api.py without root, with faults on demand.

Belongs here: KernelMemory, which outlives a FakeKernel as the real kernel outlives an agent, and the faults.
Does not belong here: anything the product runs.
"""

import errno
from collections.abc import Callable, Iterable, Mapping, Sequence

from datapath import codec
from datapath.abi.types import ENUMS
from datapath.errors import KernelError
from datapath.kernel.api import RowFailure
from datapath.tables import RUNTIME_MAPS, TABLES, XDP_HOOKS, AttachmentKey

Observer = Callable[[str, str, bytes], None]

ARRAYS = ("node_state", "tunnel")
"""Tables that the kernel holds in an array, in which a row of zeros is no row."""


class Crash(Exception):
    """Stands for kill -9 of the agent, in the middle of its writes."""


class KernelMemory:
    """What stays when an agent dies. `devices`: the ifindexes that exist; None: every one does."""

    def __init__(self, devices: set[int] | None = None) -> None:
        self.tables: dict[str, dict[bytes, bytes]] = {name: {} for name in TABLES}
        self.runtime: dict[str, dict[bytes, bytes]] = {name: {} for name in RUNTIME_MAPS}
        self.devices = devices
        self.sockets: set[int] = set()
        """Cookies of connected UDP sockets."""
        self.writes = 0
        self.limits = {
            name: ENUMS["limit"][f"{name.upper()}_MAX"]
            for name in TABLES
            if f"{name.upper()}_MAX" in ENUMS["limit"]
        }


class FakeKernel:
    """One agent's door to a KernelMemory. `observer` is called after each row written: ("put"/"delete",
    table, key)."""

    def __init__(self, memory: KernelMemory | None = None, observer: Observer | None = None) -> None:
        self.memory = memory if memory is not None else KernelMemory()
        self._observer = observer
        self.attach_mode = ""
        self._is_open = False
        self._row_faults: dict[tuple[str, bytes], tuple[int, int]] = {}
        self._call_faults: dict[tuple[str, str], int] = {}
        self._writes_until_crash: int | None = None

    def fail(self, table: str, key: bytes, times: int, error: int = errno.EIO) -> None:
        """The next `times` writes or removals of this key fail."""
        self._row_faults[table, key] = (times, error)

    def fail_call(self, call: str, table: str, times: int) -> None:
        """The next `times` calls of "dump", "put" or "delete" on this table raise KernelError. A put or
        delete that raises has written the first half of its rows."""
        self._call_faults[call, table] = times

    def crash_after(self, writes: int) -> None:
        """Raise Crash instead of the write after so many more rows."""
        self._writes_until_crash = writes

    def open(self) -> None:
        self._is_open = True
        self.attach_mode = "tcx"

    def close(self) -> None:
        self._is_open = False

    def settle(self) -> bool:
        return False

    def end_sockets(self, cookies: frozenset[int]) -> int:
        ended = self.memory.sockets & cookies
        self.memory.sockets -= ended
        return len(ended)

    def dump(self, table: str) -> Mapping[bytes, bytes]:
        rows = self._rows(table)
        if self._takes_fault("dump", table):
            raise KernelError(f"dump of {table}: injected", errno.EIO)
        return dict(rows)

    def stray_pins(self, restore: bool = False) -> Mapping[str, str]:
        return {}

    def put(self, table: str, rows: Sequence[tuple[bytes, bytes]]) -> Sequence[RowFailure]:
        held = self._rows(table)
        interrupted = self._takes_fault("put", table)
        failures = []
        for key, value in rows[: len(rows) // 2] if interrupted else rows:
            refused = self._refusal(table, key, value)
            if refused:
                failures.append(RowFailure(key, f"put: {errno.errorcode[refused]}", refused))
                continue
            self._count()
            if table == "attachments":
                self._end_other_xdp_hooks(key)
            held[key] = value
            if table in ARRAYS and not any(value):
                del held[key]
            self._observe("put", table, key)
        if interrupted:
            raise KernelError(f"put into {table}: injected", errno.EIO)
        return failures

    def delete(self, table: str, keys: Sequence[bytes]) -> Sequence[RowFailure]:
        held = self._rows(table)
        interrupted = self._takes_fault("delete", table)
        failures = []
        for key in keys[: len(keys) // 2] if interrupted else keys:
            injected = self._takes_row_fault(table, key)
            if injected:
                failures.append(RowFailure(key, f"delete: {errno.errorcode[injected]}", injected))
            elif key in held:
                self._count()
                del held[key]
                self._observe("delete", table, key)
        if interrupted:
            raise KernelError(f"delete from {table}: injected", errno.EIO)
        return failures

    def dump_runtime(self, map_name: str) -> Iterable[tuple[bytes, bytes]]:
        assert self._is_open, "open() comes first"
        return list(self.memory.runtime[map_name].items())

    def put_runtime(self, map_name: str, rows: Sequence[tuple[bytes, bytes]]) -> None:
        assert self._is_open, "open() comes first"
        self.memory.runtime[map_name].update(rows)

    def delete_runtime(self, map_name: str, keys: Sequence[bytes]) -> int:
        assert self._is_open, "open() comes first"
        held = self.memory.runtime[map_name]
        return sum(held.pop(key, None) is not None for key in keys)

    def _rows(self, table: str) -> dict[bytes, bytes]:
        assert self._is_open, "open() comes first"
        return self.memory.tables[table]

    def _end_other_xdp_hooks(self, key: bytes) -> None:
        put: AttachmentKey = codec.decode_key("attachments", key)
        for hook in XDP_HOOKS if put.hook in XDP_HOOKS else ():
            if hook != put.hook:
                self._rows("attachments").pop(codec.encode_key("attachments", put._replace(hook=hook)), None)

    def _refusal(self, table: str, key: bytes, value: bytes) -> int:
        """The errno that a put of this row gets, or 0."""
        injected = self._takes_row_fault(table, key)
        if injected:
            return injected
        held = self.memory.tables[table]
        if key not in held and len(held) >= self.memory.limits.get(table, len(held) + 1):
            return errno.E2BIG
        ifindex = self._device_needed(table, key, value)
        return 0 if ifindex is None or self._has_device(ifindex) else errno.ENODEV

    def _has_device(self, ifindex: int) -> bool:
        return self.memory.devices is None or ifindex in self.memory.devices

    @staticmethod
    def _device_needed(table: str, key: bytes, value: bytes) -> int | None:
        if table in ("attachments", "neighbours", "shapers"):
            return int(codec.decode_key(table, key).ifindex)
        if table == "routes":
            return int(codec.decode_row(table, value).ifindex)
        return None

    def _takes_row_fault(self, table: str, key: bytes) -> int:
        times, error = self._row_faults.get((table, key), (0, 0))
        if not times:
            return 0
        self._row_faults[table, key] = (times - 1, error)
        return error

    def _takes_fault(self, call: str, table: str) -> bool:
        times = self._call_faults.get((call, table), 0)
        if times:
            self._call_faults[call, table] = times - 1
        return bool(times)

    def _count(self) -> None:
        if self._writes_until_crash is not None:
            if not self._writes_until_crash:
                raise Crash("injected")
            self._writes_until_crash -= 1
        self.memory.writes += 1

    def _observe(self, operation: str, table: str, key: bytes) -> None:
        if self._observer:
            self._observer(operation, table, key)
