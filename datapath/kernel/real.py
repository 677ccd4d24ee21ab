"""The running kernel behind the Protocol of api.py: which table is reached by which of the modules beside
this one.

Belongs here: that choice, and the bytes of keys and rows that have no C struct (msgpack arrays of the
NamedTuples in datapath/tables.py). Does not belong here: any system call.
"""

import errno
import functools
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msgspec import msgpack

from datapath.abi.types import STRUCTS
from datapath.errors import KernelError
from datapath.kernel import features, row_changes, uapi
from datapath.kernel.api import RowFailure
from datapath.kernel.attachments import Attachments
from datapath.kernel.clsact import Filters
from datapath.kernel.joined_sockets import JoinedSockets
from datapath.kernel.links import Links
from datapath.kernel.maps import Map
from datapath.kernel.netlink import Netlink
from datapath.kernel.programs import JOINING_OBJECT, OBJECTS, SOCKET_OBJECT, XDP_OBJECT, Constant, ObjectSet
from datapath.kernel.shapers import Shapers
from datapath.kernel.sock_diag import end_sockets
from datapath.kernel.socket_hooks import SocketHooks
from datapath.kernel.stand_ins import NoForm, StandIns
from datapath.kernel.xdp_links import XdpLinks
from datapath.tables import TABLES, AttachmentKey, SocketHookKey, SocketHookRow, Table

if TYPE_CHECKING:
    from datapath.kernel.ringbuf import RingReader

BPFFS = "bpf"
MOUNTS = Path("/proc/self/mountinfo")
NOTIFICATIONS = "notifications"
PROGRAM_TABLES = ("attachments", "socket_hooks")
"""Whose rows keep programs in use."""


class RealKernel:
    """One node's kernel: the network namespace that the calling threads are in, and the pins under
    `pin_root`.

    `underlay_ifindex`: the device that leads to the other nodes; 0: none. `notify_verdicts`: a notification
    for every new flow, not only for drops. `attach`: the form of attachments, "tcx" or "clsact"; "auto" takes
    the better one that this kernel has. `stand_ins`: a new hook need not wait for its link (stand_ins.py).
    `constants`: more of load-time configuration (bpf/config.h). `cgroup`: whose sockets are translated, a path; "" for
    none, and then nothing is asked of the kernel for it. `xdp`: whether there is a program for XDP_HOOKS; without it
    what is there can only be removed. `joining_cgroup`: whose sockets are joined, as `cgroup`. Links are made in the
    calling thread's namespace, so open and put must be called there.
    """

    def __init__(
        self,
        pin_root: Path,
        objects_dir: Path,
        underlay_ifindex: int,
        notify_verdicts: bool = True,
        attach: str = features.AUTO,
        stand_ins: bool = False,
        constants: Mapping[str, Constant] | None = None,
        cgroup: str = "",
        xdp: bool = False,
        joining_cgroup: str = "",
    ) -> None:
        self._pin_root = pin_root
        self._underlay_ifindex = underlay_ifindex
        self._cgroup = cgroup
        self._joining_cgroup = joining_cgroup
        self._attach = attach
        self.attach_mode = ""
        configured = {
            "config_underlay_ifindex": underlay_ifindex,
            "config_notify_verdicts": int(notify_verdicts),
            **(constants or {}),
        }
        if cgroup:
            features.require_feature(features.SOCKET_HOOKS)
            says_why = features.probe()[features.SOCKET_ERRORS].is_supported
            configured.setdefault("config_socket_errno", int(says_why))
        if xdp:
            features.require_feature(features.XDP_LINKS)
        if joining_cgroup:
            features.require_feature(features.JOINED_SOCKETS)
        optional = {SOCKET_OBJECT: cgroup, XDP_OBJECT: xdp, JOINING_OBJECT: joining_cgroup}
        objects = (*OBJECTS, *(name for name, wanted in optional.items() if wanted))
        self.objects = ObjectSet(pin_root, objects_dir, configured, objects)
        self._stand_ins_wanted = stand_ins
        self._stand_ins: StandIns | None = None
        self._open_attachments: Attachments | None = None
        self._open_netlink: Netlink | None = None
        self._open_socket_hooks: SocketHooks | None = None
        self._open_shapers: Shapers | None = None

    def open(self) -> None:
        """As the Protocol says; may be called again. Raises KernelError where `pin_root` is not in a bpffs,
        LayoutMismatch, NotRoot, FeatureUnsupported."""
        self.close()
        features.require()
        self.attach_mode = features.attach_mode(self._attach)
        refuse_other_filesystem(self._pin_root)
        self._open_netlink = Netlink()
        self.objects.open(self._attached_ids(self._open_netlink))
        row_changes.settle(self.objects.maps)
        self._open_attachments = self._make_attachments(self._open_netlink)
        self._open_shapers = Shapers()
        self._open_socket_hooks = self._make_socket_hooks()
        self._remove_unused_programs()

    def _attached_ids(self, netlink: Netlink) -> set[int]:
        """The programs of ours that run, whatever their version and the form of their attachment."""
        walked = (*Links(self._pin_root / "links").walk(), *Filters(netlink).walk(), *self._xdp_links().walk())
        return {program_id for _, program_id in walked} | self._make_socket_hooks().program_ids()

    def _make_socket_hooks(self) -> SocketHooks:
        cgroups = self._cgroup, self._joining_cgroup
        return SocketHooks(self._pin_root / "sockets", cgroups, self.objects.programs, JoinedSockets(self.objects))

    def _make_attachments(self, netlink: Netlink) -> Attachments:
        links, filters = Links(self._pin_root / "links"), Filters(netlink)
        if self.attach_mode == "clsact":
            return Attachments(filters, links, self._xdp_links(), self.objects.programs)
        if not self._stand_ins_wanted:
            return Attachments(links, filters, self._xdp_links(), self.objects.programs)
        self._stand_ins = StandIns(links, netlink, self.objects.programs, self._underlay_ifindex)
        return Attachments(self._stand_ins, NoForm(), self._xdp_links(), self.objects.programs)

    def _xdp_links(self) -> XdpLinks:
        return XdpLinks(self._pin_root / "xdp")

    def dump(self, table: str) -> Mapping[bytes, bytes]:
        """As the Protocol says."""
        found = TABLES[table]
        if found.map:
            return self._map(found.map).dump()
        read: Mapping[str, Callable[[], Mapping[Any, Any]]] = {
            "attachments": self._attachments.dump,
            "socket_hooks": self._socket_hooks.dump,
            "shapers": self._shapers.dump,
            "routes": self._netlink.dump_routes,
            "neighbours": self._netlink.dump_neighbours,
        }
        rows = read[table]()
        return {msgpack.encode(key): msgpack.encode(row) for key, row in rows.items()}

    def put(self, table: str, rows: Sequence[tuple[bytes, bytes]]) -> Sequence[RowFailure]:
        """As the Protocol says."""
        found = TABLES[table]
        if found.map:
            with row_changes.announced(self.objects.maps, table):
                return self._map(found.map).put(rows)
        if table in PROGRAM_TABLES and self.objects.has_unused:
            self.objects.catch_up()
        writers: Mapping[str, Callable[[Any, Any], int]] = {
            "attachments": self._put_attachment,
            "socket_hooks": self._put_socket_hook,
            "shapers": self._shapers.put,
            "routes": self._netlink.put_route,
            "neighbours": self._netlink.put_neighbour,
        }
        write = writers[table]
        failures = []
        for key, row in rows:
            failures += _attempt(
                key, functools.partial(write, _decode_key(found, key), _decode_row(found, row))
            )
        if table in PROGRAM_TABLES:
            self._remove_unused_programs()
        return failures

    def delete(self, table: str, keys: Sequence[bytes]) -> Sequence[RowFailure]:
        """As the Protocol says."""
        found = TABLES[table]
        if found.map:
            with row_changes.announced(self.objects.maps, table):
                return self._map(found.map).delete(keys)[1]
        decoded = {_decode_key(found, key): key for key in keys}
        if table == "neighbours":
            failed = self._netlink.delete_neighbours(list(decoded))
            return [RowFailure(decoded[key], uapi.describe(code), code) for key, code in failed]
        removers: Mapping[str, Callable[[Any], int]] = {
            "attachments": self._delete_attachment,
            "socket_hooks": self._delete_socket_hook,
            "shapers": self._shapers.delete,
            "routes": self._netlink.delete_route,
        }
        failures = []
        for key, raw in decoded.items():
            failures += _attempt(raw, functools.partial(removers[table], key))
        if table in PROGRAM_TABLES:
            self._remove_unused_programs()
        return failures

    def stray_pins(self, restore: bool = False) -> Mapping[str, str]:
        """As the Protocol says."""
        return self.objects.stray_pins(restore)

    def dump_runtime(self, map_name: str) -> Iterable[tuple[bytes, bytes]]:
        """As the Protocol says. Raises KernelError for the ring buffer."""
        return self._map(map_name).dump().items()

    def put_runtime(self, map_name: str, rows: Sequence[tuple[bytes, bytes]]) -> None:
        """As the Protocol says. Raises KernelError for the first entry that cannot be written."""
        failures = self._map(map_name).put(rows)
        if failures:
            raise KernelError(f"{map_name}: {failures[0].reason}", failures[0].errno)

    def delete_runtime(self, map_name: str, keys: Sequence[bytes]) -> int:
        """As the Protocol says. Raises KernelError for the first entry that cannot be removed."""
        removed, failures = self._map(map_name).delete(keys)
        if failures:
            raise KernelError(f"{map_name}: {failures[0].reason}", failures[0].errno)
        return removed

    def settle(self) -> bool:
        """As the Protocol says."""
        return self._stand_ins is not None and self._stand_ins.settle()

    def end_sockets(self, cookies: frozenset[int]) -> int:
        """As the Protocol says."""
        return end_sockets(self._cgroup, cookies) if self._cgroup else 0

    def read_notifications(self) -> "RingReader":
        """The consumer of this node's notifications; there must be one only. The caller closes it."""
        from datapath.kernel.ringbuf import RingReader  # brings numpy, which an agent's start does not wait for

        return RingReader(os.dup(self._map(NOTIFICATIONS).fd), STRUCTS["notification"])

    def close(self) -> None:
        """As the Protocol says. Closing twice is no failure."""
        if self._open_netlink is not None:
            self._open_netlink.close()
        if self._open_shapers is not None:
            self._open_shapers.close()
        self._open_attachments = self._open_netlink = self._stand_ins = None
        self._open_socket_hooks = self._open_shapers = None
        self.objects.close()

    @property
    def _attachments(self) -> Attachments:
        assert self._open_attachments is not None, "open() comes first"
        return self._open_attachments

    @property
    def _socket_hooks(self) -> SocketHooks:
        assert self._open_socket_hooks is not None, "open() comes first"
        return self._open_socket_hooks

    @property
    def _shapers(self) -> Shapers:
        assert self._open_shapers is not None, "open() comes first"
        return self._open_shapers

    @property
    def _netlink(self) -> Netlink:
        assert self._open_netlink is not None, "open() comes first"
        return self._open_netlink

    def _map(self, name: str) -> Map:
        assert self.objects.maps, "open() comes first"
        return self.objects.maps[name]

    def _put_attachment(self, key: AttachmentKey, row: Any) -> int:
        self._attachments.put(key, row)
        return 0

    def _delete_attachment(self, key: AttachmentKey) -> int:
        self._attachments.delete(key)
        return 0

    def _put_socket_hook(self, key: SocketHookKey, row: SocketHookRow) -> int:
        self._socket_hooks.put(key, row)
        return 0

    def _delete_socket_hook(self, key: SocketHookKey) -> int:
        self._socket_hooks.delete(key)
        return 0

    def _remove_unused_programs(self) -> None:
        if self.objects.has_unused:
            self.objects.remove_unused(self._attachments.program_ids() | self._socket_hooks.program_ids())


def _attempt(key: bytes, call: Callable[[], int]) -> list[RowFailure]:
    try:
        code = call()
    except KernelError as error:
        return [RowFailure(key, str(error), error.errno or errno.EIO)]
    return [RowFailure(key, uapi.describe(code), code)] if code else []


def _decode_key(table: Table, raw: bytes) -> Any:
    return msgpack.decode(raw, type=table.key)


def _decode_row(table: Table, raw: bytes) -> Any:
    return msgpack.decode(raw, type=table.row)


def refuse_other_filesystem(pin_root: Path) -> None:
    """Raises KernelError where a directory is not, or would not come to be, in a mounted bpffs."""
    path = pin_root.absolute()
    mount_point, kind = Path("/"), ""
    for line in MOUNTS.read_text().splitlines():
        before, _, after = line.partition(" - ")
        # A space in a path is written as \\040.
        mounted_at = Path(before.split()[4].replace("\\040", " "))
        if path.is_relative_to(mounted_at) and len(mounted_at.parts) >= len(mount_point.parts):
            mount_point, kind = mounted_at, after.split()[0]
    if kind != BPFFS:
        raise KernelError(
            f"pin root {path} is in {mount_point}, which is {kind or 'unknown'} and not a BPF filesystem; "
            f"mount one above it, such as `mount -t bpf bpf /sys/fs/bpf`"
        )
