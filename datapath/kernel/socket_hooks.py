"""Programs at the hooks of sockets' calls: a link per hook to the node's cgroup, pinned at `<pin root>/sockets/<hook>`.

Belongs here: making, replacing, finding and ending these links, and whether the kernel has such hooks. Does not belong
here: which hook gets which program.

A socket belongs to the cgroup in which it was made, also when its process moves on; cgroups below are included. A link
is replaced in place, so that no call meets a hook without a program, and it lives by its pin.
"""

import errno
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from datapath.errors import KernelError, NotRoot
from datapath.kernel import libbpf, uapi
from datapath.kernel.joined_sockets import JoinedSockets
from datapath.kernel.programs import Program
from datapath.tables import SocketHookKey, SocketHookRow

ATTACH_TYPES = {
    "connect4": uapi.CGROUP_INET4_CONNECT, "connect6": uapi.CGROUP_INET6_CONNECT,
    "sendmsg4": uapi.CGROUP_UDP4_SENDMSG, "sendmsg6": uapi.CGROUP_UDP6_SENDMSG,
    "recvmsg4": uapi.CGROUP_UDP4_RECVMSG, "recvmsg6": uapi.CGROUP_UDP6_RECVMSG,
    "getpeername4": uapi.CGROUP_INET4_GETPEERNAME, "getpeername6": uapi.CGROUP_INET6_GETPEERNAME,
    "sockops": uapi.CGROUP_SOCK_OPS,
}  # fmt: skip
JOINING_HOOK = "sockops"
"""Where sockets come by that are joined; it is on and off together with what joins them."""
OTHER_VERSION = "other version of "
OTHER_CGROUP = "other cgroup of number "
RETURN_ONE = libbpf.instruction(libbpf.MOVE_IMMEDIATE, 0, 1) + libbpf.instruction(libbpf.EXIT)
FUNCTION_SET_RETVAL = 187


class SocketHooks:
    """The links of one node to its cgroups. `cgroups`: paths of those; `programs` are those that are wanted now, by
    name."""

    def __init__(
        self, links_dir: Path, cgroups: Iterable[str], programs: Mapping[str, Program], joined: JoinedSockets
    ) -> None:
        self._dir = links_dir
        self._dir.mkdir(parents=True, exist_ok=True)
        self._programs = programs
        self._joined = joined
        self._cgroups = {cgroup for cgroup in cgroups if cgroup}
        """Paths that a row has named: the kernel tells a link's cgroup by its number only."""

    def dump(self) -> dict[SocketHookKey, SocketHookRow]:
        """Every link of ours. What is to be replaced is shown under a name that no program or no cgroup has."""
        names = {program.id: name for name, program in self._programs.items()}
        paths = {cgroup_id(path): path for path in self._cgroups if Path(path).exists()}
        rows = {}
        for key, link in self._walk():
            program = names.get(link.program_id, f"{OTHER_VERSION}{link.program_id}")
            if key.hook == JOINING_HOOK and not self._joined.is_on:
                program = f"{OTHER_VERSION}{link.program_id}"
            cgroup = paths.get(link.cgroup_id, f"{OTHER_CGROUP}{link.cgroup_id}")
            rows[key] = SocketHookRow(program, cgroup)
        return rows

    def program_ids(self) -> set[int]:
        """The programs that some link of ours uses."""
        return {link.program_id for _, link in self._walk()}

    def put(self, key: SocketHookKey, row: SocketHookRow) -> None:
        """Makes the link or puts the program behind the one that is there. Raises KernelError."""
        if key.hook not in ATTACH_TYPES or row.program not in self._programs:
            known = f"hooks are {', '.join(ATTACH_TYPES)}; programs are {', '.join(self._programs)}"
            raise KernelError(f"no hook {key.hook!r} or no program {row.program!r}; {known}", errno.EINVAL)
        wanted = cgroup_id(row.cgroup)
        path = self._dir / key.hook
        link = self._info(path)
        if link is not None and link.cgroup_id != wanted:
            self.delete(key)
            link = None
        program = self._programs[row.program]
        if key.hook == JOINING_HOOK:
            self._joined.turn_on()
        if link is None:
            _make(path, program, row.cgroup, ATTACH_TYPES[key.hook])
        elif link.program_id != program.id:
            _replace(path, program)
        self._cgroups.add(row.cgroup)

    def delete(self, key: SocketHookKey) -> None:
        """Ends a link; at return the hook is free. What is absent is no failure."""
        if key.hook == JOINING_HOOK:
            self._joined.turn_off()
        path = self._dir / key.hook
        if self._info(path) is None:
            return
        fd = libbpf.open_pin(path)
        try:
            libbpf.link_detach(fd)
            path.unlink()
        finally:
            os.close(fd)

    def _walk(self) -> Iterator[tuple[SocketHookKey, uapi.LinkInfo]]:
        for path in sorted(self._dir.iterdir()):
            link = self._info(path)
            if link is not None:
                yield SocketHookKey(path.name), link

    def _info(self, path: Path) -> uapi.LinkInfo | None:
        """What the kernel says of the pinned link, or None; the pin of a link without a cgroup is removed."""
        try:
            fd = libbpf.open_pin(path)
        except KernelError as error:
            if error.errno == errno.ENOENT:
                return None
            raise
        try:
            link = libbpf.link_info(fd)
        finally:
            os.close(fd)
        if link.cgroup_id:
            return link
        path.unlink()
        return None


def cgroup_id(path: str) -> int:
    """The kernel's number of a cgroup. Raises KernelError where there is none at the path."""
    # Other hierarchies than that of version 2 have no such file.
    if not (Path(path) / "cgroup.controllers").exists():
        raise KernelError(
            f"{path!r} is no cgroup v2 directory; right is one below the mount of type cgroup2", errno.ENOENT
        )
    return os.stat(path).st_ino


def has_socket_hooks() -> bool:
    """Whether this kernel has all of ATTACH_TYPES; getpeername came last. Raises NotRoot."""
    return _loads(RETURN_ONE, uapi.CGROUP_INET6_GETPEERNAME)


def has_socket_errors() -> bool:
    """Whether a program may say with which error a call fails; else it is EPERM. Raises NotRoot."""
    call = libbpf.instruction(libbpf.MOVE_IMMEDIATE, 1, -errno.ECONNREFUSED)
    call += libbpf.instruction(libbpf.CALL, 0, FUNCTION_SET_RETVAL)
    return _loads(call + RETURN_ONE, uapi.CGROUP_INET4_CONNECT)


def _loads(instructions: bytes, attach_type: int) -> bool:
    fd, code = libbpf.program_load(uapi.PROG_TYPE_CGROUP_SOCK_ADDR, instructions, attach_type)
    if code == errno.EPERM:
        raise NotRoot("loading a program needs root (CAP_BPF and CAP_NET_ADMIN)")
    if fd >= 0:
        os.close(fd)
    return fd >= 0


def _make(path: Path, program: Program, cgroup: str, attach_type: int) -> None:
    directory = os.open(cgroup, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fd = libbpf.link_create(program.fd, directory, attach_type)
    finally:
        os.close(directory)
    try:
        libbpf.pin(fd, path)
    finally:
        os.close(fd)


def _replace(path: Path, program: Program) -> None:
    fd = libbpf.open_pin(path)
    try:
        libbpf.link_update(fd, program.fd)
    finally:
        os.close(fd)
