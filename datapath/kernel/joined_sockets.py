"""Sockets that are joined: the program on the map `sockets`, and the switch by which it may.

Belongs here: turning it on and off, and whether the kernel can. Does not belong here: which sockets come into the map
(bpf/lib/joined.h), and the hook of the cgroup by which they come (socket_hooks.py).

A socket keeps the program that was on the map when it came, so that putting another there does not reach it. The switch
does: it names the one version of the programs that may join sockets, and any other leaves it to packets.
"""

import errno
import fcntl
import os
import socket
import struct
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from datapath.abi.types import STRUCTS
from datapath.errors import KernelError, NotRoot
from datapath.kernel import libbpf, uapi
from datapath.kernel.programs import ObjectSet

PROGRAM = "socket_message"
MAP, ENDS_MAP, SWITCH_MAP = "sockets", "socket_ends", "socket_switch"
SWITCH_KEY = bytes(STRUCTS["socket_switch_key"].size)
SWITCH_ROW = struct.Struct("=Q")
OFF = SWITCH_ROW.pack(0)

FUNCTION_MSG_REDIRECT_MAP, REDIRECT_INGRESS = 60, 1
LOAD_MAP, SECOND_REGISTER_FROM_MAP = 0x18, 0x12
SO_MEMINFO, MEMINFO_BYTES = 55, 36
SIOCGIFFLAGS, SIOCSIFFLAGS, IFF_UP = 0x8913, 0x8914, 1
PROBE_S = 2.0


class JoinedSockets:
    """Those of one node. What its objects have not got is off."""

    def __init__(self, objects: ObjectSet) -> None:
        self._objects = objects

    @property
    def is_on(self) -> bool:
        """Whether our program is on the map, and may join sockets. Raises KernelError."""
        program, sockets = self._objects.programs.get(PROGRAM), self._objects.maps.get(MAP)
        if program is None or sockets is None or not self._is_ours():
            return False
        return program.id in libbpf.program_query(sockets.fd, uapi.SK_MSG_VERDICT)

    def turn_on(self) -> None:
        """Sockets that come into the map from now on may be joined, and those that came under this version. Raises
        KernelError."""
        maps, programs = self._objects.maps, self._objects.programs
        if PROGRAM not in programs:
            raise KernelError(f"no program {PROGRAM!r} is loaded: the agent was started without it", errno.EINVAL)
        libbpf.program_attach(maps[MAP].fd, programs[PROGRAM].fd, uapi.SK_MSG_VERDICT)
        if self._is_ours():
            return
        # While nobody may join sockets nobody tells of their ends, and a tuple that is taken is not given again.
        maps[ENDS_MAP].delete(list(maps[ENDS_MAP].dump()))
        self._switch(SWITCH_ROW.pack(int(self._objects.content_id, 16)))

    def turn_off(self) -> None:
        """From the next message on all use packets; what is in their queues is read as ever. Raises KernelError."""
        self._switch(OFF)

    def _is_ours(self) -> bool:
        held = self._objects.maps[SWITCH_MAP].lookup(SWITCH_KEY)
        return held == SWITCH_ROW.pack(int(self._objects.content_id, 16))

    def _switch(self, row: bytes) -> None:
        failures = self._objects.maps[SWITCH_MAP].put([(SWITCH_KEY, row)])
        if failures:
            raise KernelError(f"{SWITCH_MAP}: {failures[0].reason}", failures[0].errno)


def has_joined_sockets() -> bool:
    """Whether this kernel joins sockets, and counts what waits in a reader's queue: without the count, a reader that
    lags could not be told, and its queue would grow without bound. Tried on two sockets in a namespace of their own.
    Raises NotRoot."""
    with ThreadPoolExecutor(1) as thread:
        try:
            return thread.submit(_in_new_namespace, _charges_reader).result()
        except OSError:
            return False


def _in_new_namespace(call: Callable[[], bool]) -> bool:
    libbpf.enter_netns()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        request = bytearray(struct.pack("16sH22x", b"lo", 0))
        fcntl.ioctl(asking, SIOCGIFFLAGS, request)
        struct.pack_into("H", request, 16, struct.unpack_from("H", request, 16)[0] | IFF_UP)
        fcntl.ioctl(asking, SIOCSIFFLAGS, request)
    return call()


def _charges_reader() -> bool:
    try:
        sockets = libbpf.map_create(uapi.MAP_TYPE_SOCKMAP, 4, 4, 2)
    except KernelError:
        return False
    program, code = libbpf.program_load(uapi.PROG_TYPE_SK_MSG, _joining(sockets), uapi.SK_MSG_VERDICT)
    try:
        if code == errno.EPERM:
            raise NotRoot("loading a program needs root (CAP_BPF and CAP_NET_ADMIN)")
        return not code and _is_charged(sockets, program)
    except KernelError:
        return False
    finally:
        os.close(sockets)
        if program >= 0:
            os.close(program)


def _joining(sockets: int) -> bytes:
    """A program that gives every message to the first socket of a map."""
    load_map = libbpf.instruction(LOAD_MAP, SECOND_REGISTER_FROM_MAP, sockets) + libbpf.instruction(0)
    key = libbpf.instruction(libbpf.MOVE_IMMEDIATE, 3)
    flags = libbpf.instruction(libbpf.MOVE_IMMEDIATE, 4, REDIRECT_INGRESS)
    call = libbpf.instruction(libbpf.CALL, 0, FUNCTION_MSG_REDIRECT_MAP)
    return load_map + key + flags + call + libbpf.instruction(libbpf.EXIT)


def _is_charged(sockets: int, program: int) -> bool:
    libbpf.program_attach(sockets, program, uapi.SK_MSG_VERDICT)
    with (
        socket.create_server(("127.0.0.1", 0)) as listening,
        socket.create_connection(listening.getsockname(), PROBE_S) as writing,
    ):
        listening.settimeout(PROBE_S)
        reading, _ = listening.accept()
        with reading:
            reading.settimeout(PROBE_S)
            for index, each in enumerate((reading, writing)):
                if libbpf.map_update(sockets, struct.pack("=I", index), struct.pack("=I", each.fileno())):
                    return False
            writing.send(b".")
            (waiting,) = struct.unpack_from("=I", reading.getsockopt(socket.SOL_SOCKET, SO_MEMINFO, MEMINFO_BYTES))
            return bool(waiting) and reading.recv(1) == b"."
