"""The messages of linux/rtnetlink.h that are sent for every endpoint and at every start, as bytes.

Belongs here: putting these few together, and taking their answers apart. Does not belong here: which object gets what,
and everything rarer (netlink.py, by pyroute2). Addresses here are 4 or 16 bytes as the kernel wants them.

An endpoint takes some 18 of these. By struct each costs 0.05 ms, by pyroute2 0.5, and importing that 80.
"""

import errno
import itertools
import socket
import struct
import sys
import threading
from typing import Any, NamedTuple

from datapath.errors import KernelError
from datapath.kernel import uapi

CREATE, EXCLUSIVE, REPLACE = 0x400, 0x200, 0x100
"""NLM_F_*: what a request does where there is none, or one already."""

REQUEST_ACK, REQUEST_DUMP = 0x1 | 0x4, 0x1 | 0x300
INTERRUPTED = 0x10
"""NLM_F_DUMP_INTR: something changed meanwhile, so that the answer may lack a part."""

ERROR, DONE = 2, 3
GET_LINK, GET_ROUTE, GET_NEIGHBOUR, GET_QDISC, GET_FILTER = 18, 26, 30, 38, 46
STRICT = 270, 12
"""SOL_NETLINK and NETLINK_GET_STRICT_CHK: the kernel looks at what a dump asks for, such as one table of routes."""

NEW_LINK, DELETE_LINK, NEW_ADDRESS, NEW_ROUTE, NEW_NEIGHBOUR, NEW_QDISC, NEW_FILTER = 16, 17, 20, 24, 28, 36, 44
UP, NOARP = 0x1, 0x80
NODAD = 0x02
"""IFA_F_NODAD: usable at once. With duplicate detection an address waits 2 s."""

PERMANENT = 0x80
ONLINK = 4
UNICAST, LOCAL = 1, 2
MAIN_TABLE, LOCAL_TABLE = 254, 255
DIRECT_ACTION = 1
PROTOCOL_ALL = 3
CLSACT_HANDLE, CLSACT_PARENT = 0xFFFF0000, 0xFFFFFFF1
ANSWER_BYTES = 65536

MAC, NAME, MTU, LINK_INFO, ALIAS, NETNS_FD = 1, 3, 4, 18, 20, 28
PREFIX, DEVICE, GATEWAY = 1, 4, 5
NEXT, NEXT_MAC, OWNER = 1, 2, 12
"""Attributes of devices (IFLA_*), of routes (RTA_*) and of neighbours (NDA_*)."""

PROGRAM_NAME, PROGRAM_FLAGS, PROGRAM_ID = 7, 8, 11
"""Options of a filter (TCA_BPF_*)."""

DELETE_QDISC, NEW_CLASS, DELETE_CLASS, GET_CLASS = 37, 40, 41, 42
ROOT = 0xFFFFFFFF
HTB_PARAMETERS, HTB_INIT, HTB_RATE64, HTB_CEIL64 = 1, 2, 6, 7
"""Options of an HTB queue and of its classes (TCA_HTB_*)."""
HTB_VERSION, HTB_RATE_TO_QUANTUM = 3, 10
ETHERNET = 1
"""TC_LINKLAYER_ETHERNET: the kernel needs no table of rates."""
HTB_GLOBAL = struct.Struct("=5I")
HTB_RATE = struct.Struct("=BBHhHI")

HEADER = struct.Struct("=IHHII")
LINK = struct.Struct("=BxHiII")
ADDRESS = struct.Struct("=BBBBI")
ROUTE = struct.Struct("=BBBBBBBBI")
NEIGHBOUR = struct.Struct("=BxxxiHBB")
TRAFFIC = struct.Struct("=BxxxiIII")
ATTRIBUTE = struct.Struct("=HH")
DUMP_ROUNDS_MAX = 16

Attributes = dict[int, bytes]
"""An object's attributes by kind, as the kernel gave them."""


class TunnelForm(NamedTuple):
    """A kind of device that wraps packets, and the numbers of its options (IFLA_VXLAN_*, IFLA_GENEVE_*). `external`:
    programs set its keys; of Geneve that option has no value. `learning`: 0 where there is none."""

    kind: str
    port: int
    external: int
    external_value: bytes
    learning: int


TUNNEL_FORMS = {form.kind: form for form in (TunnelForm("vxlan", 15, 25, b"\1", 7), TunnelForm("geneve", 5, 6, b"", 0))}


def tunnel_options(info: bytes) -> tuple[str, int, bool]:
    """Of a device's LINK_INFO: its kind, and of a tunnel its port and whether programs set its keys."""
    held = _attributes(info, 0, len(info))
    kind = held[1].rstrip(b"\0").decode()
    form = TUNNEL_FORMS.get(kind)
    if form is None:
        return kind, 0, False
    options = _attributes(held.get(2, b""), 0, len(held.get(2, b"")))
    port = int.from_bytes(options.get(form.port, b""), "big")
    return kind, port, options.get(form.external) == form.external_value


class Requests:
    """A socket to the network namespace of the thread that makes it; any thread may use it. Every request gives the
    errno, or 0."""

    def __init__(self) -> None:
        self._socket = socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE
        )
        self._socket.bind((0, 0))
        self._socket.setsockopt(*STRICT, 1)
        self._numbers = itertools.count(1)
        self._lock = threading.Lock()

    def close(self) -> None:
        """Lets go of the socket."""
        self._socket.close()

    def create_pair(
        self, name: str, mac: bytes, mtu: int, other_netns_fd: int, other_name: str, other_mac: bytes
    ) -> int:
        """A veth pair, both sides down, the other one in another namespace."""
        sized = _attribute(MTU, mtu)
        other = _attribute(NAME, other_name) + _attribute(MAC, other_mac) + sized + _attribute(NETNS_FD, other_netns_fd)
        peer = _attribute(1, LINK.pack(0, 0, 0, 0, 0) + other)
        info = _attribute(1, "veth") + _attribute(2, peer)
        wanted = _attribute(NAME, name) + _attribute(MAC, mac) + sized + _attribute(LINK_INFO, info)
        return self._send(NEW_LINK, CREATE | EXCLUSIVE, LINK.pack(0, 0, 0, 0, 0) + wanted)

    def create_tunnel(self, name: str, form: TunnelForm, port: int, mtu: int) -> int:
        """A device, down, whose packets say themselves where they go. It asks nobody for MACs: its neighbours have its
        own."""
        options = _attribute(form.port, struct.pack(">H", port)) + _attribute(form.external, form.external_value)
        if form.learning:
            options += _attribute(form.learning, b"\0")
        info = _attribute(1, form.kind) + _attribute(2, options)
        wanted = _attribute(NAME, name) + _attribute(MTU, mtu) + _attribute(LINK_INFO, info)
        return self._send(NEW_LINK, CREATE | EXCLUSIVE, LINK.pack(0, 0, 0, NOARP, NOARP) + wanted)

    def delete_link(self, ifindex: int) -> int:
        """Any device."""
        return self._send(DELETE_LINK, 0, LINK.pack(0, 0, ifindex, 0, 0))

    def set_mtu(self, ifindex: int, mtu: int) -> int:
        """Of any device."""
        return self._send(NEW_LINK, 0, LINK.pack(0, 0, ifindex, 0, 0) + _attribute(MTU, mtu))

    def set_up(self, ifindex: int, alias: str = "") -> int:
        """A device, with an alias if one is given."""
        named = _attribute(ALIAS, alias) if alias else b""
        return self._send(NEW_LINK, 0, LINK.pack(0, 0, ifindex, UP, UP) + named)

    def put_address(self, ifindex: int, address: bytes) -> int:
        """An address that is a prefix of its own."""
        flags = _attribute(8, NODAD) if len(address) == 16 else b""
        held = _attribute(2, address) + _attribute(1, address) + flags
        head = ADDRESS.pack(_family(address), 8 * len(address), 0, 0, ifindex)
        return self._send(NEW_ADDRESS, CREATE | REPLACE, head + held)

    def put_neighbour(self, ifindex: int, address: bytes, mac: bytes, owner: int) -> int:
        """A permanent one. `owner`: its protocol number."""
        wanted = _attribute(NEXT, address) + _attribute(NEXT_MAC, mac) + _attribute(OWNER, bytes((owner,)))
        head = NEIGHBOUR.pack(_family(address), ifindex, PERMANENT, 0, 0)
        return self._send(NEW_NEIGHBOUR, CREATE | REPLACE, head + wanted)

    def put_route(
        self, how: int, prefix: bytes, length: int, ifindex: int, gateway: bytes, scope: int, owner: int, flags: int = 0
    ) -> int:
        """Into the main table. `how`: CREATE with EXCLUSIVE or REPLACE; `gateway`: b"" for none."""
        wanted = _attribute(PREFIX, prefix) if length else b""
        wanted += _attribute(DEVICE, ifindex) + (_attribute(GATEWAY, gateway) if gateway else b"")
        head = ROUTE.pack(_family(prefix), length, 0, 0, MAIN_TABLE, owner, scope, UNICAST, flags)
        return self._send(NEW_ROUTE, how, head + wanted)

    def add_clsact(self, ifindex: int) -> int:
        """The qdisc that filters hang on; EEXIST where there is one, or an ingress qdisc."""
        head = TRAFFIC.pack(0, ifindex, CLSACT_HANDLE, CLSACT_PARENT, 0)
        return self._send(NEW_QDISC, CREATE | EXCLUSIVE, head + _attribute(1, "clsact"))

    def put_filter(
        self, how: int, ifindex: int, parent: int, priority: int, handle: int, name: str, program_fd: int
    ) -> int:
        """A program as a direct-action filter. `how`: CREATE with EXCLUSIVE or REPLACE."""
        program = _attribute(6, program_fd) + _attribute(7, name) + _attribute(8, DIRECT_ACTION)
        info = priority << 16 | socket.htons(PROTOCOL_ALL)
        head = TRAFFIC.pack(0, ifindex, handle, parent, info)
        return self._send(NEW_FILTER, how, head + _attribute(1, "bpf") + _attribute(2, program))

    def add_htb(self, ifindex: int, handle: int) -> int:
        """An HTB queue at the root, whose packets of no class have no limit; EEXIST where an owner has put one."""
        head = TRAFFIC.pack(0, ifindex, handle, ROOT, 0)
        options = _attribute(HTB_INIT, HTB_GLOBAL.pack(HTB_VERSION, HTB_RATE_TO_QUANTUM, 0, 0, 0))
        return self._send(NEW_QDISC, CREATE | EXCLUSIVE, head + _attribute(1, "htb") + _attribute(2, options))

    def put_htb_class(
        self, ifindex: int, handle: int, parent: int, rate_bytes_s: int, burst_ticks: int, quantum: int
    ) -> int:
        """A class that passes so much and borrows nothing; one that is there changes."""
        rate = HTB_RATE.pack(0, ETHERNET, 0, 0, 0, min(rate_bytes_s, (1 << 32) - 1))
        numbers = struct.pack("=5I", burst_ticks, burst_ticks, quantum, 0, 0)
        options = _attribute(HTB_PARAMETERS, rate + rate + numbers)
        if rate_bytes_s >= 1 << 32:
            wide = struct.pack("=Q", rate_bytes_s)
            options += _attribute(HTB_RATE64, wide) + _attribute(HTB_CEIL64, wide)
        head = TRAFFIC.pack(0, ifindex, handle, parent, 0)
        return self._send(NEW_CLASS, CREATE | REPLACE, head + _attribute(1, "htb") + _attribute(2, options))

    def delete_htb_class(self, ifindex: int, handle: int, parent: int) -> int:
        """ENOENT where there is none."""
        return self._send(DELETE_CLASS, 0, TRAFFIC.pack(0, ifindex, handle, parent, 0))

    def delete_queue(self, ifindex: int, handle: int) -> int:
        """The one at the root, of this handle."""
        return self._send(DELETE_QDISC, 0, TRAFFIC.pack(0, ifindex, handle, ROOT, 0))

    def htb_queues(self, handle: int) -> list[int]:
        """Ifindexes of the devices that have an HTB queue of this handle at the root."""
        found = self._dump(GET_QDISC, TRAFFIC.pack(0, 0, 0, 0, 0), TRAFFIC)
        return [head[1] for head, each in found if head[2:4] == (handle, ROOT) and each[1] == b"htb\0"]

    def htb_classes(self, ifindex: int) -> list[tuple[int, int]]:
        """The classes of a device's HTB queue: handle, and bytes per second."""
        classes = []
        for head, each in self._dump(GET_CLASS, TRAFFIC.pack(0, ifindex, 0, 0, 0), TRAFFIC):
            options = _attributes(each.get(2, b""), 0, len(each.get(2, b"")))
            if HTB_PARAMETERS in options:
                rate = HTB_RATE.unpack_from(options[HTB_PARAMETERS])[-1]
                wide = options.get(HTB_RATE64)
                classes.append((head[2], int.from_bytes(wide, sys.byteorder) if wide else rate))
        return classes

    def links(self) -> list[tuple[int, Attributes]]:
        """Every device: its ifindex and attributes (IFLA_*)."""
        found = self._dump(GET_LINK, LINK.pack(0, 0, 0, 0, 0), LINK)
        return [(head[2], attributes) for head, attributes in found]

    def routes(self, family: int, owner: int) -> list[tuple[int, Attributes]]:
        """An owner's routes of the main table: the prefix length and attributes (RTA_*)."""
        asked = ROUTE.pack(family, 0, 0, 0, MAIN_TABLE, owner, 0, 0, 0)
        found = self._dump(GET_ROUTE, asked, ROUTE)
        return [(head[1], each) for head, each in found if (head[4], head[5]) == (MAIN_TABLE, owner)]

    def local_addresses(self, family: int) -> set[bytes]:
        """Those to which the namespace takes packets."""
        found = self._dump(GET_ROUTE, ROUTE.pack(family, 0, 0, 0, LOCAL_TABLE, 0, 0, LOCAL, 0), ROUTE)
        return {each[PREFIX] for head, each in found if (head[4], head[7]) == (LOCAL_TABLE, LOCAL)}

    def neighbours(self, family: int, owner: int) -> list[tuple[int, Attributes]]:
        """An owner's permanent neighbours: the ifindex and attributes (NDA_*)."""
        found = self._dump(GET_NEIGHBOUR, NEIGHBOUR.pack(family, 0, 0, 0, 0), NEIGHBOUR)
        return [
            (head[1], each)
            for head, each in found
            if head[0] == family and head[2] & PERMANENT and each.get(OWNER) == bytes((owner,))
        ]

    def qdiscs(self) -> list[tuple[int, str]]:
        """Every qdisc: the ifindex and its kind."""
        found = self._dump(GET_QDISC, TRAFFIC.pack(0, 0, 0, 0, 0), TRAFFIC)
        return [(head[1], each[1].rstrip(b"\0").decode()) for head, each in found]

    def filters(self, ifindex: int, parent: int) -> list[tuple[int, int, Attributes]]:
        """The filters of a hook, whoever's: priority, handle, and a program's options (TCA_BPF_*)."""
        found = self._dump(GET_FILTER, TRAFFIC.pack(0, ifindex, 0, parent, 0), TRAFFIC)
        places = [(head[4] >> 16, head[2], each) for head, each in found]
        return [
            (priority, handle, _attributes(each[2], 0, len(each[2])) if each[1] == b"bpf\0" and 2 in each else {})
            for priority, handle, each in places
        ]

    def _dump(self, kind: int, asked: bytes, head: struct.Struct) -> list[tuple[Any, Attributes]]:
        for _ in range(DUMP_ROUNDS_MAX):
            found = self._dump_once(kind, asked, head)
            if found is not None:
                return found
        raise KernelError(f"netlink: dump {kind}: changed during each of {DUMP_ROUNDS_MAX} readings", errno.EINTR)

    def _dump_once(self, kind: int, asked: bytes, head: struct.Struct) -> list[tuple[Any, Attributes]] | None:
        found: list[tuple[Any, Attributes]] = []
        is_whole = True
        with self._lock:
            number = next(self._numbers)
            self._socket.send(HEADER.pack(HEADER.size + len(asked), kind, REQUEST_DUMP, number, 0) + asked)
            while True:
                answer = self._socket.recv(ANSWER_BYTES)
                start = 0
                while start < len(answer):
                    length, message, flags, answered, _ = HEADER.unpack_from(answer, start)
                    body, start = start + HEADER.size, start + (length + 3 & ~3)
                    if answered != number:
                        continue
                    is_whole = is_whole and not flags & INTERRUPTED
                    if message == DONE:
                        return found if is_whole else None
                    if message == ERROR:
                        code = -int.from_bytes(answer[body : body + 4], sys.byteorder, signed=True)
                        # A table of routes that has never had one does not exist.
                        if code == errno.ENOENT:
                            return []
                        raise KernelError(f"netlink: dump {kind}: {uapi.describe(code)}", code)
                    attributes = _attributes(answer, body + head.size, body - HEADER.size + length)
                    found.append((head.unpack_from(answer, body), attributes))

    def _send(self, kind: int, how: int, body: bytes) -> int:
        with self._lock:
            number = next(self._numbers)
            self._socket.send(HEADER.pack(HEADER.size + len(body), kind, REQUEST_ACK | how, number, 0) + body)
            while True:
                answer = self._socket.recv(ANSWER_BYTES)
                _, found, _, answered, _ = HEADER.unpack_from(answer)
                if found == ERROR and answered == number:
                    return -int.from_bytes(answer[HEADER.size : HEADER.size + 4], sys.byteorder, signed=True)


def _attributes(answer: bytes, start: int, end: int) -> Attributes:
    """By kind, without the bits that say how a value is to be read."""
    found = {}
    while start + 4 <= end:
        length, kind = ATTRIBUTE.unpack_from(answer, start)
        found[kind & 0x3FFF] = answer[start + 4 : start + length]
        start += length + 3 & ~3
    return found


def _attribute(kind: int, value: bytes | str | int) -> bytes:
    """One attribute; a number has 32 bits, a text ends with a zero."""
    if isinstance(value, int):
        value = struct.pack("=I", value)
    elif isinstance(value, str):
        value = value.encode() + b"\0"
    return ATTRIBUTE.pack(4 + len(value), kind) + value + bytes(-len(value) % 4)


def _family(address: bytes) -> int:
    return socket.AF_INET if len(address) == 4 else socket.AF_INET6
