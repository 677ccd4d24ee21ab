"""A node's programs on a private copy of its rows: what would become of this packet, without touching the node.

Belongs here: the copies, and one run with all that the programs told of it. Does not belong here: which packets to run,
and what the outcome means for a mesh. A copy has no devices: every packet is seen on the loopback device of the
caller's network namespace, and whose device that is stands in the copy's own row. A packet that is redirected goes
nowhere. The kernel's routes are those of now, and only masquerading asks them; of endpoints a copy masquerades nothing.

A trial carries no key of a tunnel, so what from_overlay is to see is told it by a program before it (rehearsal.bpf.c).
"""

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple, Self

from datapath import codec
from datapath.abi import types as abi
from datapath.frames import Outcome
from datapath.kernel import row_changes
from datapath.kernel.programs import Constant, Loaded, load_private
from datapath.masquerade import spare_ports
from datapath.notifications import decode_records
from datapath.tables import DeviceKey, DeviceRow, TunnelKey, TunnelRow

LOOPBACK = 1
ENDPOINT_OBJECT = "endpoint.bpf.o"
PROGRAM_OBJECTS = {
    "from_endpoint": ENDPOINT_OBJECT,
    "to_endpoint": ENDPOINT_OBJECT,
    "from_network": "host.bpf.o",
    "from_network_guarded": "host.bpf.o",
    "to_network": "host.bpf.o",
    "from_overlay": "rehearsal.bpf.o",
    "to_overlay": "overlay.bpf.o",
}
ENTRIES = {"from_overlay": "from_overlay_rehearsed"}
"""Where another program stands before the one that is tried."""
RUNTIME_ROWS = 1024
"""Of a copy's runtime maps: a run leaves one or two entries, and they are taken away before the next."""
RUNTIME_MAPS = ("conntrack", "nat", "affinity")
CLIENT_PORTS = spare_ports((32768, 60999))
"""First and last of the ports that a node gives to clients in its name, where its stack hands out the usual ones."""
COPIES_MAX = 16
"""Of nodes with other addresses; the one made first goes for the next."""
CONSTANTS: Mapping[str, Constant] = {"config_underlay_ifindex": LOOPBACK, "config_notify_denials": 1}
EncodedTables = Mapping[str, Mapping[bytes, bytes]]


class NodeRows(NamedTuple):
    """What a node's kernel should hold, and the node's own addresses; datapath.tables.NO_ADDRESS where it has none."""

    tables: EncodedTables
    ipv4: bytes
    ipv6: bytes


class _Copy:
    """One object with maps of its own."""

    def __init__(self, path: Path, constants: Mapping[str, Constant]) -> None:
        from datapath.kernel.ringbuf import RingReader  # brings numpy, which an agent's start does not wait for

        elf = path.read_bytes()
        smaller = {name: RUNTIME_ROWS for name in RUNTIME_MAPS if b"\0" + name.encode() + b"\0" in elf}
        self._loaded: Loaded = load_private(path, constants, smaller)
        self._rows: dict[str, Mapping[bytes, bytes]] = {}
        self._filled: EncodedTables | None = None
        self._ring = RingReader(os.dup(self._loaded.maps["notifications"].fd), abi.STRUCTS["notification"])

    def fill(self, tables: EncodedTables) -> None:
        """Makes the maps hold exactly these rows. Raises ValueError for rows that do not fit."""
        if tables is self._filled:
            return
        self._filled = None
        for name, rows in tables.items():
            held = self._loaded.maps.get(name)
            if held is None:
                continue
            if name == "tunnel" and rows:
                rows = TUNNEL_ROWS
            before = self._rows.get(name, {})
            with row_changes.announced(self._loaded.maps, name):
                held.delete([key for key in before if key not in rows])
                failures = held.put([(key, row) for key, row in rows.items() if before.get(key) != row])
            if failures:
                raise ValueError(f"{name}: {failures[0].reason}")
            self._rows[name] = dict(rows)
        self._filled = tables

    def run(
        self, program: str, frame: bytes, device: tuple[bytes, bytes] | None, words: tuple[int, ...] = ()
    ) -> Outcome:
        maps = self._loaded.maps
        if device is not None:
            with row_changes.announced(maps, "devices"):
                maps["devices"].put([device])
        try:
            run = self._loaded.test_run(program, frame, cb=words)
            return Outcome(run.retval, run.packet, tuple(decode_records(self._ring.read().tobytes())))
        finally:
            for name in RUNTIME_MAPS:
                if name in maps:
                    maps[name].delete(list(maps[name].dump()))
            if device is not None and device[0] not in self._rows.get("devices", {}):
                with row_changes.announced(maps, "devices"):
                    maps["devices"].delete([device[0]])

    def close(self) -> None:
        self._ring.close()
        self._loaded.close()


class Rehearsal:
    """Blocks; belongs to one thread. A context manager. Raises KernelError where the kernel does not let it."""

    def __init__(self, objects_dir: Path) -> None:
        self._objects_dir = objects_dir
        self._copies: dict[tuple[str, bytes, bytes], _Copy] = {}

    def run(
        self,
        node: NodeRows,
        program: str,
        frame: bytes,
        device: DeviceRow | None = None,
        sender: tuple[bytes, int] | None = None,
    ) -> Outcome:
        """One of PROGRAM_OBJECTS, on a frame as the first of its flow. Raises ValueError for rows that do not fit.

        `device`: whose device it is seen on; `sender`: of a packet out of the tunnel, the node's address and the VNI.
        """
        copy = self._copy(PROGRAM_OBJECTS[program], node)
        copy.fill(node.tables)
        row = None
        if device is not None:
            row = codec.encode_key("devices", DeviceKey(LOOPBACK)), codec.encode_row("devices", device)
        words = () if sender is None else _words(*sender)
        return copy.run(ENTRIES.get(program, program), frame, row, words)

    def _copy(self, name: str, node: NodeRows) -> _Copy:
        """The node's addresses are constants of its programs, but endpoints' programs read none."""
        key = (name, b"", b"") if name == ENDPOINT_OBJECT else (name, node.ipv4, node.ipv6)
        if key not in self._copies:
            if len(self._copies) >= COPIES_MAX:
                self._copies.pop(next(iter(self._copies))).close()
            self._copies[key] = _Copy(self._objects_dir / name, _constants(*key[1:]))
        return self._copies[key]

    def close(self) -> None:
        """Nothing stays in the kernel."""
        for copy in self._copies.values():
            copy.close()
        self._copies = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


TUNNEL_ROWS = {codec.encode_key("tunnel", TunnelKey(0)): codec.encode_row("tunnel", TunnelRow(LOOPBACK))}


def _constants(ipv4: bytes, ipv6: bytes) -> Mapping[str, Constant]:
    if not ipv4 and not ipv6:
        return CONSTANTS
    first, last = CLIENT_PORTS
    ports = {"config_masquerade_port_first": first, "config_masquerade_port_count": last - first + 1}
    return {**CONSTANTS, "config_node_ipv4": ipv4, "config_node_ipv6": ipv6, **ports}


def _words(address: bytes, vni: int) -> tuple[int, ...]:
    """As from_overlay_rehearsed reads them."""
    return (*(int.from_bytes(address[at : at + 4], sys.byteorder) for at in range(0, 16, 4)), vni)
