"""Sockets that are made in a cgroup, and a node whose programs see their calls.

Belongs here: making them, and the rows of services. Does not belong here: what should come of a call.
A socket belongs to the cgroup and the namespace of whoever makes it, so a process of its own makes each and passes it on.
"""

import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Self

from datapath import codec
from datapath.abi import types as abi
from datapath.kernel.real import RealKernel
from datapath.tables import (
    BackendKey,
    BackendRow,
    EndpointKey,
    EndpointRow,
    ServiceKey,
    ServiceRow,
    SocketHookKey,
    SocketHookRow,
)
from tests.conftest import Namespace

FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}
PROTOCOLS = {socket.SOCK_STREAM: socket.IPPROTO_TCP, socket.SOCK_DGRAM: socket.IPPROTO_UDP}
FRONTEND = {4: "10.96.0.10", 6: "fd00:96::10"}
BACKENDS = {4: ("10.1.0.6", "10.1.0.7"), 6: ("fd00:1::6", "fd00:1::7")}
NODE = {4: "192.168.9.1", 6: "fd00:9::1"}
ROUTER = {4: "10.1.0.1", 6: "fd00:1::1"}
PORT, BACKEND_PORT = 80, 8080
TIMEOUT_S = 5
SO_NETNS_COOKIE = 71
HOOKS = {
    f"{hook}{family}": f"socket_{program}{family}"
    for hook, program in (
        ("connect", "connect"), ("sendmsg", "sendmsg"), ("recvmsg", "recvmsg"), ("getpeername", "peername"),
    )
    for family in (4, 6)
}  # fmt: skip

MAKER = """
import os, socket, sys
channel = socket.socket(fileno=int(sys.argv[1]))
with open(sys.argv[2] + "/cgroup.procs", "w") as procs:
    procs.write("0")
while wanted := channel.recv(100):
    made = socket.socket(*map(int, wanted.split()))
    socket.send_fds(channel, [b"."], [made.fileno()])
    made.close()
"""


class Maker:
    """A process in a cgroup and a namespace that makes sockets. A context manager."""

    def __init__(self, namespace: Namespace, cgroup: Path) -> None:
        self._channel, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        command = ["nsenter", f"--net={namespace.path}", sys.executable, "-I", "-S", "-c", MAKER]
        self._child = subprocess.Popen([*command, str(other.fileno()), str(cgroup)], pass_fds=(other.fileno(),))
        other.close()
        self._channel.settimeout(TIMEOUT_S)

    def socket(self, family: int, kind: int) -> socket.socket:
        """A new one of this cgroup and namespace, not connected."""
        self._channel.send(b"%d %d" % (FAMILIES[family], kind))
        _, (fd,), _, _ = socket.recv_fds(self._channel, 1, 1)
        made = socket.socket(fileno=fd)
        made.settimeout(TIMEOUT_S)
        return made

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._channel.close()
        self._child.wait(TIMEOUT_S)


class SocketNode:
    """A namespace in which all addresses are at hand, and a kernel with the hooks of one cgroup."""

    def __init__(self, namespace: Namespace, bpffs: Path, objects_dir: Path, cgroup: Path) -> None:
        self.namespace, self.cgroup = namespace, cgroup
        self._pin_root, self._objects_dir = bpffs / "meshlog" / "n1", objects_dir
        namespace.run("ip", "link", "set", "lo", "up")
        for family in FAMILIES:
            for address in (*BACKENDS[family], NODE[family], ROUTER[family]):
                namespace.add_address(address, "lo")
        self.kernel = self.open()

    def open(self, **constants: int | bytes) -> RealKernel:
        """As a new agent does; the caller closes the one before."""
        told = {
            "config_node_netns_cookie": self.namespace.call(netns_cookie),
            "config_node_ipv4": codec.address_bytes(NODE[4]),
            "config_node_ipv6": codec.address_bytes(NODE[6]),
            **constants,
        }
        self.kernel = RealKernel(self._pin_root, self._objects_dir, 0, constants=told, cgroup=str(self.cgroup))
        self.namespace.call(self.kernel.open)
        return self.kernel

    def reopen(self, **constants: int | bytes) -> None:
        """A restart, perhaps with other constants."""
        self.kernel.close()
        self.open(**constants)

    def put(self, table: str, rows: Mapping[Any, Any]) -> None:
        failures = self.kernel.put(table, list(codec.encode_rows(table, rows).items()))
        assert not failures, failures

    def hook(self) -> None:
        """Every hook gets its program."""
        rows = {SocketHookKey(hook): SocketHookRow(program, str(self.cgroup)) for hook, program in HOOKS.items()}
        self.put("socket_hooks", rows)

    def service(
        self, family: int, kind: int, backends: Iterable[str], *, address: str = "", name: int = 99,
        flags: int = abi.SERVICE_CLUSTER_IP, affinity_s: int = 0,
    ) -> None:  # fmt: skip
        """A frontend, PORT of FRONTEND unless another address is given, and its backends."""
        found = [codec.address_bytes(each) for each in backends]
        self.put("backends", {
            BackendKey(name, slot): BackendRow(each, BACKEND_PORT, 0) for slot, each in enumerate(found)
        })  # fmt: skip
        key = ServiceKey(codec.address_bytes(address or FRONTEND[family]), PORT, PROTOCOLS[kind])
        self.put("services", {key: ServiceRow(name if found else 0, len(found), flags, affinity_s)})

    def own_address(self, address: str) -> None:
        """One of the node's own."""
        row = EndpointRow(0, abi.IDENTITY_HOST, 0, abi.ENDPOINT_HOST, bytes(6), bytes(6))
        self.put("endpoints", {EndpointKey(codec.address_bytes(address)): row})

    def serve(self, family: int, kind: int, address: str) -> socket.socket:
        """A backend, in no cgroup of ours."""
        return self.namespace.call(listening, family, kind, (address, BACKEND_PORT))

    def close(self) -> None:
        """Its hooks go with the pins, some time later; hence now."""
        self.namespace.call(self.kernel.delete, "socket_hooks", list(self.kernel.dump("socket_hooks")))
        self.kernel.close()


def listening(family: int, kind: int, bound: tuple[str, int]) -> socket.socket:
    """A socket of the calling thread's namespace."""
    opened = socket.socket(FAMILIES[family], kind)
    opened.settimeout(TIMEOUT_S)
    opened.bind(bound)
    if kind == socket.SOCK_STREAM:
        opened.listen()
    return opened


def netns_cookie() -> int:
    """Of the calling thread's namespace."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        return int.from_bytes(asking.getsockopt(socket.SOL_SOCKET, SO_NETNS_COOKIE, 8), sys.byteorder)


def wait_for(holds: Callable[[], bool]) -> bool:
    """Until it holds, or for as long as a socket would wait: the kernel may take a packet a while after it was sent."""
    end = time.monotonic() + TIMEOUT_S
    while not holds() and time.monotonic() < end:
        time.sleep(0.01)
    return holds()
