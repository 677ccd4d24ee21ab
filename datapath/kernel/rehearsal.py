"""A node's programs on a private copy of its rows: what would become of this packet, without touching the node.

Belongs here: the copy, and one run with all that the programs told of it. Does not belong here: which packets to run,
and what the outcome means for a mesh. The copy has no devices: every packet is seen on the loopback device of the
caller's network namespace, and whose device that is stands in the copy's own row. A packet that is redirected goes
nowhere. The kernel's routes are those of now, and only masquerading asks them; a copy masquerades nothing.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Self

from datapath import codec
from datapath.abi import types as abi
from datapath.frames import Outcome
from datapath.kernel.programs import Constant, Loaded, load_private
from datapath.kernel.ringbuf import RingReader
from datapath.notifications import decode_records
from datapath.tables import DeviceKey, DeviceRow

LOOPBACK = 1
PROGRAM_OBJECTS = {
    "from_endpoint": "endpoint.bpf.o",
    "to_endpoint": "endpoint.bpf.o",
    "from_network": "host.bpf.o",
}
RUNTIME_ROWS = 1024
"""Of a copy's runtime maps: a run leaves one or two entries, and they are taken away before the next."""
RUNTIME_MAPS = ("conntrack", "nat")
CONSTANTS: Mapping[str, Constant] = {"config_underlay_ifindex": LOOPBACK, "config_notify_denials": 1}
EncodedTables = Mapping[str, Mapping[bytes, bytes]]


class _Copy:
    """One object with maps of its own."""

    def __init__(self, path: Path) -> None:
        elf = path.read_bytes()
        smaller = {name: RUNTIME_ROWS for name in RUNTIME_MAPS if b"\0" + name.encode() + b"\0" in elf}
        self._loaded: Loaded = load_private(path, CONSTANTS, smaller)
        self._rows: dict[str, Mapping[bytes, bytes]] = {}
        self._ring = RingReader(os.dup(self._loaded.maps["notifications"].fd), abi.STRUCTS["notification"])

    def fill(self, tables: EncodedTables) -> None:
        """Makes the maps hold exactly these rows. Raises ValueError for rows that do not fit."""
        for name, rows in tables.items():
            held = self._loaded.maps.get(name)
            if held is None:
                continue
            before = self._rows.get(name, {})
            held.delete([key for key in before if key not in rows])
            failures = held.put([(key, row) for key, row in rows.items() if before.get(key) != row])
            if failures:
                raise ValueError(f"{name}: {failures[0].reason}")
            self._rows[name] = dict(rows)

    def run(self, program: str, frame: bytes, device: tuple[bytes, bytes] | None) -> Outcome:
        maps = self._loaded.maps
        if device is not None:
            maps["devices"].put([device])
        try:
            run = self._loaded.test_run(program, frame)
            return Outcome(run.retval, run.packet, tuple(decode_records(self._ring.read().tobytes())))
        finally:
            for name in RUNTIME_MAPS:
                if name in maps:
                    maps[name].delete(list(maps[name].dump()))
            if device is not None and device[0] not in self._rows.get("devices", {}):
                maps["devices"].delete([device[0]])

    def close(self) -> None:
        self._ring.close()
        self._loaded.close()


class Rehearsal:
    """Blocks; belongs to one thread. A context manager. Raises KernelError where the kernel does not let it."""

    def __init__(self, objects_dir: Path) -> None:
        self._copies: dict[str, _Copy] = {}
        self._tables: EncodedTables | None = None
        try:
            for name in dict.fromkeys(PROGRAM_OBJECTS.values()):
                self._copies[name] = _Copy(objects_dir / name)
        except BaseException:
            self.close()
            raise

    def fill(self, tables: EncodedTables) -> None:
        """The rows of a node, all of them; what was there before is gone. Raises ValueError."""
        if tables is self._tables:
            return
        for copy in self._copies.values():
            copy.fill(tables)
        self._tables = tables

    def run(self, program: str, frame: bytes, device: DeviceRow | None = None) -> Outcome:
        """One of PROGRAM_OBJECTS, on a frame as the first of its flow; `device`: whose device it is seen on."""
        row = None
        if device is not None:
            row = codec.encode_key("devices", DeviceKey(LOOPBACK)), codec.encode_row("devices", device)
        return self._copies[PROGRAM_OBJECTS[program]].run(program, frame, row)

    def close(self) -> None:
        """Nothing stays in the kernel."""
        for copy in self._copies.values():
            copy.close()
        self._copies = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
