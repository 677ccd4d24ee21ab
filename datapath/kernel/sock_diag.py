"""Ends sockets of a node by their cookies, through the kernel's socket diagnosis (CONFIG_INET_DIAG_DESTROY, Linux 4.5;
for UDP 4.9).

Belongs here: finding the network namespaces in which a cgroup's processes are, and the netlink messages. Does not
belong here: which sockets have to go.
"""

import errno
import os
import socket
import struct
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from datapath.errors import KernelError
from datapath.kernel import libbpf

SOCK_DIAG = 4
SOCK_DIAG_BY_FAMILY, SOCK_DESTROY = 20, 21
REQUEST, ACKNOWLEDGE, DUMP = 1, 4, 0x300
ERROR, DONE = 2, 3
CONNECTED = 1 << 1
"""Of the states that may be asked for, TCP_ESTABLISHED, which UDP shares."""
ANSWER_BYTES = 1 << 16

HEADER = struct.Struct("=IHHII")
SOCKET_ID_BYTES = 48
ASKED = struct.Struct(f"=BBBxI{SOCKET_ID_BYTES}s")
FOUND = struct.Struct(f"=BBxx{SOCKET_ID_BYTES}s")
COOKIE = struct.Struct("=II")
COOKIE_AT = SOCKET_ID_BYTES - COOKIE.size


class Found(NamedTuple):
    """A socket: its family and the kernel's id of it (struct inet_diag_sockid), in which the cookie comes last."""

    family: int
    socket_id: bytes

    @property
    def cookie(self) -> int:
        """SO_COOKIE of the socket."""
        low, high = COOKIE.unpack_from(self.socket_id, COOKIE_AT)
        return int(high << 32 | low)


def end_sockets(cgroup: str, cookies: frozenset[int]) -> int:
    """Ends the connected UDP sockets of these cookies in every network namespace of the cgroup's processes; how many
    there were. Costs a look at each process. Raises KernelError, also where the kernel cannot end sockets."""
    ended = 0
    # A thread, since a namespace is a thread's: it goes with it.
    with ThreadPoolExecutor(1, thread_name_prefix="sock_diag") as threads:
        for path in namespaces(cgroup):
            ended += threads.submit(_end_in, path, cookies).result()
    return ended


def namespaces(cgroup: str) -> list[str]:
    """A path to each network namespace that a process of the cgroup, or of one below it, is in."""
    found: dict[str, str] = {}
    for procs in sorted(Path(cgroup).rglob("cgroup.procs")):
        try:
            pids = procs.read_text().split()
        except OSError:
            continue
        for pid in pids:
            path = f"/proc/{pid}/ns/net"
            try:
                found.setdefault(os.readlink(path), path)
            except OSError:
                continue
    return list(found.values())


def _end_in(path: str, cookies: frozenset[int]) -> int:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        # The process has ended, and took its sockets along unless another is in the same namespace.
        if error.errno in (errno.ENOENT, errno.ESRCH):
            return 0
        raise KernelError(f"{path}: {error.strerror}", error.errno or 0) from error
    try:
        libbpf.enter_netns(fd)
    finally:
        os.close(fd)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, SOCK_DIAG) as asking:
        asking.bind((0, 0))
        wanted = [
            found
            for family in (socket.AF_INET, socket.AF_INET6)
            for found in _connected(asking, family)
            if found.cookie in cookies
        ]
        return sum(_end(asking, found) for found in wanted)


def _connected(asking: socket.socket, family: int) -> list[Found]:
    body = ASKED.pack(family, socket.IPPROTO_UDP, 0, CONNECTED, bytes(SOCKET_ID_BYTES))
    _send(asking, SOCK_DIAG_BY_FAMILY, DUMP, body)
    found: list[Found] = []
    while True:
        for kind, answer in _messages(asking.recv(ANSWER_BYTES)):
            if kind == DONE:
                return found
            if kind == ERROR:
                raise _refused(f"list sockets of family {family}", answer)
            place, _, socket_id = FOUND.unpack_from(answer)
            found.append(Found(place, socket_id))


def _end(asking: socket.socket, found: Found) -> bool:
    """False: it ended by itself meanwhile."""
    body = ASKED.pack(found.family, socket.IPPROTO_UDP, 0, CONNECTED, found.socket_id)
    _send(asking, SOCK_DESTROY, ACKNOWLEDGE, body)
    ((_, answer),) = _messages(asking.recv(ANSWER_BYTES))
    code = _code(answer)
    if code not in (0, errno.ENOENT):
        raise _refused("end a socket", answer)
    return code == 0


def _send(asking: socket.socket, kind: int, how: int, body: bytes) -> None:
    asking.send(HEADER.pack(HEADER.size + len(body), kind, REQUEST | how, 1, 0) + body)


def _messages(answer: bytes) -> Iterator[tuple[int, bytes]]:
    start = 0
    while start < len(answer):
        length, kind, _, _, _ = HEADER.unpack_from(answer, start)
        yield kind, answer[start + HEADER.size : start + length]
        start += length + 3 & ~3


def _code(answer: bytes) -> int:
    return -int(struct.unpack_from("=i", answer)[0])


def _refused(call: str, answer: bytes) -> Exception:
    return libbpf.kernel_error("sock_diag:", call, _code(answer))
