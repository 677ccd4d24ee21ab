"""The two ways into the kernel's BPF: libbpf.so.1 to open, relocate and load objects, and the raw bpf(2)
for the rest.

Belongs here: every use of ctypes, the numbers and layouts of linux/bpf.h, and the text of what went wrong.
Does not belong here: which maps, programs or links there are (maps.py, programs.py, links.py). Nothing here
keeps a state but an open Object; descriptors are plain integers that the caller closes.
"""

import ctypes
import errno
import functools
import os
import platform
import struct
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from datapath.errors import KernelError, NotRoot
from datapath.kernel import uapi

SYSCALL_NUMBERS = {"x86_64": 321, "aarch64": 280}
LIBBPF = "libbpf.so.1"

CAP_NET_ADMIN, CAP_SYS_ADMIN, CAP_BPF = 12, 21, 39

LOG_CHARACTERS_MAX = 16384
LOG_BUFFER_BYTES = 1 << 20
ATTR_BYTES = 144
LEVEL_INFO = 1
CLONE_NEWNET = 0x40000000

MOVE_IMMEDIATE, CALL, EXIT = 0xB7, 0x85, 0x95


def instruction(code: int, registers: int = 0, immediate: int = 0) -> bytes:
    """One of a raw program, for probes."""
    return struct.pack("<BBhi", code, registers, 0, immediate)


RETURN_ZERO = instruction(MOVE_IMMEDIATE) + instruction(EXIT)
"""The shortest program."""


@functools.cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


@functools.cache
def _syscall_number() -> int:
    machine = platform.machine()
    if machine not in SYSCALL_NUMBERS:
        raise KernelError(f"the number of bpf(2) on {machine} is not known; known: {', '.join(SYSCALL_NUMBERS)}")
    return SYSCALL_NUMBERS[machine]


def _bpf_or_errno(command: int, attr: bytearray) -> tuple[int, int]:
    """The result and the errno (0: none); the kernel writes its answers into `attr`, which is padded with zeros."""
    attr.extend(bytes(max(0, ATTR_BYTES - len(attr))))
    raw = (ctypes.c_char * len(attr)).from_buffer(attr)
    result = _libc().syscall(_syscall_number(), command, raw, len(attr))
    return result, ctypes.get_errno() if result < 0 else 0


def _bpf(command: int, attr: bytearray, subject: str) -> int:
    result, code = _bpf_or_errno(command, attr)
    if code:
        raise kernel_error(uapi.COMMAND_NAMES[command], subject, code)
    return result


def kernel_error(call: str, subject: str, code: int) -> KernelError | NotRoot:
    """The error to raise for an errno: what was called, on what, and why it failed."""
    if code == errno.EPERM and lacks_privilege():
        return NotRoot(f"{call} {subject}: needs root (CAP_BPF and CAP_NET_ADMIN)")
    return KernelError(f"{call} {subject}: {uapi.describe(code)}", code)


def lacks_privilege() -> bool:
    """Whether the calling thread has not the capabilities for programs and devices; being user 0 is not enough."""
    status = Path("/proc/thread-self/status").read_text()
    effective = int(status.partition("CapEff:")[2].split()[0], 16)
    has_bpf = effective & (1 << CAP_BPF | 1 << CAP_SYS_ADMIN)
    return not (has_bpf and effective & 1 << CAP_NET_ADMIN)


def enter_netns(fd: int | None = None) -> None:
    """Moves the calling thread to a network namespace; None: a new one, which goes with the thread. Raises
    KernelError, NotRoot."""
    if _libc().unshare(CLONE_NEWNET) if fd is None else _libc().setns(fd, CLONE_NEWNET):
        code = ctypes.get_errno()
        if code == errno.EPERM:
            raise NotRoot("another network namespace needs root (CAP_SYS_ADMIN)")
        raise kernel_error("enter", "a network namespace", code)


def _address(value: bytes | bytearray) -> int:
    """The address of a bytes or bytearray that the caller keeps alive."""
    if isinstance(value, bytearray):
        return ctypes.addressof((ctypes.c_char * len(value)).from_buffer(value)) if value else 0
    return ctypes.cast(ctypes.c_char_p(value), ctypes.c_void_p).value or 0


# Maps


def map_create(map_type: int, key_size: int, value_size: int, max_entries: int, flags: int = 0, name: str = "") -> int:
    """A new map's descriptor."""
    attr = struct.pack("<IIIIIII16s", map_type, key_size, value_size, max_entries, flags, 0, 0, name.encode()[:15])
    return _bpf(uapi.MAP_CREATE, bytearray(attr), f"{name or 'map'} of type {map_type}")


def map_lookup(fd: int, key: bytes, value_bytes: int) -> bytes | None:
    """One value (`value_bytes` long: of a per-CPU map, of all CPUs), or None."""
    value = bytearray(value_bytes)
    attr = bytearray(struct.pack("<IIQQQ", fd, 0, _address(key), _address(value), 0))
    _, code = _bpf_or_errno(uapi.MAP_LOOKUP_ELEM, attr)
    if code == errno.ENOENT:
        return None
    if code:
        raise kernel_error("BPF_MAP_LOOKUP_ELEM", f"key {key.hex()}", code)
    return bytes(value)


def map_update(fd: int, key: bytes, value: bytes) -> int:
    """Writes one row; the errno, or 0."""
    attr = bytearray(struct.pack("<IIQQQ", fd, 0, _address(key), _address(value), 0))
    return _bpf_or_errno(uapi.MAP_UPDATE_ELEM, attr)[1]


def map_delete(fd: int, key: bytes) -> int:
    """Removes one row; the errno, or 0."""
    attr = bytearray(struct.pack("<IIQQQ", fd, 0, _address(key), 0, 0))
    return _bpf_or_errno(uapi.MAP_DELETE_ELEM, attr)[1]


def map_next_key(fd: int, key: bytes | None, key_size: int) -> bytes | None:
    """The key after `key`, or the first for None; None after the last."""
    following = bytearray(key_size)
    attr = bytearray(struct.pack("<IIQQQ", fd, 0, 0 if key is None else _address(key), _address(following), 0))
    _, code = _bpf_or_errno(uapi.MAP_GET_NEXT_KEY, attr)
    if code == errno.ENOENT:
        return None
    if code:
        raise kernel_error("BPF_MAP_GET_NEXT_KEY", "", code)
    return bytes(following)


def map_update_batch(fd: int, keys: bytes, values: bytes, count: int, done: int = 0) -> tuple[int, int]:
    """Writes rows one after the other, from row `done` of `count` on: how many of them are now in the map, and the
    errno that stopped at the next one, or 0."""
    key_size, value_bytes = len(keys) // count, len(values) // count
    starts = _address(keys) + done * key_size, _address(values) + done * value_bytes
    return _batch(uapi.MAP_UPDATE_BATCH, fd, *starts, count - done)


def map_delete_batch(fd: int, keys: bytes, count: int, done: int = 0) -> tuple[int, int]:
    """Removes rows one after the other, from row `done` of `count` on: how many of them are now gone, and the errno
    that stopped at the next one, or 0."""
    start = _address(keys) + done * (len(keys) // count)
    return _batch(uapi.MAP_DELETE_BATCH, fd, start, 0, count - done)


def _batch(command: int, fd: int, keys: int, values: int, count: int) -> tuple[int, int]:
    attr = bytearray(struct.pack("<QQQQIIQQ", 0, 0, keys, values, count, fd, 0, 0))
    _, code = _bpf_or_errno(command, attr)
    done: int = struct.unpack_from("<I", attr, 32)[0]
    # Where the call is refused before the first row, older kernels leave the count as it was given.
    return (0 if code and done >= count else done), code


def map_lookup_batches(
    fd: int, key_size: int, value_bytes: int, chunk: int
) -> Iterator[tuple[bytearray, bytearray, int]]:
    """All rows in chunks of at most `chunk`: keys, values and how many of each. The buffers are used again."""
    keys, values = bytearray(chunk * key_size), bytearray(chunk * value_bytes)
    # The kernel's token is a bucket number of 4 bytes or a key.
    token = bytearray(max(key_size, 4))
    resumed = 0
    while True:
        places = resumed, _address(token), _address(keys), _address(values)
        attr = bytearray(struct.pack("<QQQQIIQQ", *places, chunk, fd, 0, 0))
        _, code = _bpf_or_errno(uapi.MAP_LOOKUP_BATCH, attr)
        if code not in (0, errno.ENOENT):
            raise kernel_error("BPF_MAP_LOOKUP_BATCH", f"of {chunk} rows", code)
        yield keys, values, struct.unpack_from("<I", attr, 32)[0]
        if code == errno.ENOENT:
            return
        resumed = _address(token)


def map_info(fd: int) -> uapi.MapInfo:
    """What the kernel says of a map."""
    raw = _info(fd, 88, "map")
    map_type, map_id, key_size, value_size, max_entries, flags = struct.unpack_from("<6I", raw)
    types = struct.unpack_from("<3I", raw, 64)
    return uapi.MapInfo(map_type, map_id, key_size, value_size, max_entries, flags, _text(raw[24:40]), *types)


def btf_section(btf_id: int) -> bytes:
    """The types that the kernel was given with an object, as in its .BTF section."""
    fd = _bpf(uapi.BTF_GET_FD_BY_ID, bytearray(struct.pack("<I", btf_id)), f"types {btf_id}")
    try:
        (size,) = struct.unpack_from("<I", _info(fd, 32, "types"), 8)
        raw = bytearray(size)
        _info(fd, 32, "types", struct.pack("<QI", _address(raw), size))
        return bytes(raw)
    finally:
        os.close(fd)


def map_fd_by_id(map_id: int) -> int:
    """A descriptor of a map by its number in this kernel."""
    return _bpf(uapi.MAP_GET_FD_BY_ID, bytearray(struct.pack("<III", map_id, 0, 0)), f"map {map_id}")


# Programs and links


def program_info(fd: int) -> uapi.ProgramInfo:
    """What the kernel says of a program."""
    ids = bytearray(4 * 64)
    raw = _info(fd, 224, "program", struct.pack("<52xIQ", 64, _address(ids)))
    program_type, program_id = struct.unpack_from("<II", raw)
    count = min(struct.unpack_from("<I", raw, 52)[0], 64)
    map_ids = struct.unpack_from(f"<{count}I", ids)
    return uapi.ProgramInfo(program_type, program_id, raw[8:16].hex(), _text(raw[64:80]), map_ids)


def program_load(program_type: int, instructions: bytes, attach_type: int = 0) -> tuple[int, int]:
    """Loads raw instructions, for a feature probe: the descriptor or -1, and the errno or 0. `attach_type`: of a kind
    of program that is loaded for one hook."""
    license_text = b"GPL\0"
    count, places = len(instructions) // 8, (_address(instructions), _address(license_text))
    attr = struct.pack("<IIQQ44xI", program_type, count, *places, attach_type)
    return _bpf_or_errno(uapi.PROG_LOAD, bytearray(attr))


def program_query(target: int, attach_type: int) -> tuple[int, ...]:
    """The numbers of the programs at a device's hook, in the order they run; or on a map of sockets, by descriptor."""
    ids = bytearray(4 * 64)
    attr = bytearray(struct.pack("<IIIIQI", target, attach_type, 0, 0, _address(ids), 64))
    _bpf(uapi.PROG_QUERY, attr, f"ifindex or map {target}")
    return struct.unpack_from(f"<{struct.unpack_from('<I', attr, 24)[0]}I", ids)


def program_attach(target: int, program_fd: int, attach_type: int) -> None:
    """Puts a program on a map of sockets, in place of the one that is there; it stays for as long as the map."""
    attr = bytearray(struct.pack("<IIII", target, program_fd, attach_type, 0))
    _bpf(uapi.PROG_ATTACH, attr, f"map {target}, attach type {attach_type}")


def program_test_run(fd: int, packet: bytes, context: bytes = b"", repeat: int = 1) -> uapi.TestRun:
    """Runs a program once or more on a packet from its Ethernet header on; `context`: a struct __sk_buff."""
    room = bytearray(len(packet) + 512)
    context_out = bytearray(len(context))
    attr = bytearray(
        struct.pack(
            "<IIIIQQIIIIQQIIII", fd, 0, len(packet), len(room), _address(packet), _address(room), repeat, 0,
            len(context), len(context), _address(context) if context else 0, _address(context_out),
            0, 0, 0, 0,
        )
    )  # fmt: skip
    _bpf(uapi.PROG_TEST_RUN, attr, f"packet of {len(packet)} bytes")
    retval, _, size = struct.unpack_from("<III", attr, 4)
    duration_ns: int = struct.unpack_from("<I", attr, 36)[0]
    return uapi.TestRun(retval, bytes(room[:size]), duration_ns, bytes(context_out))


def link_create(program_fd: int, target: int, attach_type: int, flags: int = 0) -> int:
    """A link's descriptor; `target`: an ifindex, or a cgroup's descriptor. It ends with its last descriptor or pin."""
    attr = bytearray(struct.pack("<IIII", program_fd, target, attach_type, flags))
    return _bpf(uapi.LINK_CREATE, attr, f"ifindex or cgroup {target}, attach type {attach_type}")


def link_update(fd: int, program_fd: int) -> None:
    """Puts another program behind a link, with no moment without one."""
    _bpf(uapi.LINK_UPDATE, bytearray(struct.pack("<IIII", fd, program_fd, 0, 0)), "link")


def link_detach(fd: int) -> None:
    """Takes a link from its hook, at once."""
    _bpf(uapi.LINK_DETACH, bytearray(struct.pack("<I", fd)), "link")


def link_info(fd: int) -> uapi.LinkInfo:
    """What the kernel says of a link to a device or to a cgroup."""
    raw = _info(fd, 64, "link")
    link_type, link_id, program_id, _, ifindex, attach_type = struct.unpack_from("<6I", raw)
    (cgroup_id,) = struct.unpack_from("<Q", raw, 16)
    return uapi.LinkInfo(link_type, link_id, program_id, ifindex, attach_type, cgroup_id)


# Pins


def pin(fd: int, path: Path) -> None:
    """Names a map, program or link in a mounted bpffs."""
    raw = os.fsencode(path) + b"\0"
    _bpf(uapi.OBJ_PIN, bytearray(struct.pack("<QII", _address(raw), fd, 0)), str(path))


def open_pin(path: Path) -> int:
    """A descriptor of what is pinned at a path. Raises KernelError with errno ENOENT where nothing is."""
    raw = os.fsencode(path) + b"\0"
    return _bpf(uapi.OBJ_GET, bytearray(struct.pack("<QII", _address(raw), 0, 0)), str(path))


def _info(fd: int, size: int, what: str, given: bytes = b"") -> bytearray:
    raw = bytearray(size)
    raw[: len(given)] = given
    _bpf(uapi.OBJ_GET_INFO_BY_FD, bytearray(struct.pack("<IIQ", fd, size, _address(raw))), what)
    return raw


def _text(raw: bytes | bytearray) -> str:
    return bytes(raw).split(b"\0", 1)[0].decode(errors="replace")


# libbpf

_PRINT = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)


class _OpenOptions(ctypes.Structure):
    """struct bpf_object_open_opts up to its first field that we do not need; `sz` tells libbpf its end."""

    _fields_ = (
        ("sz", ctypes.c_size_t),
        ("object_name", ctypes.c_char_p),
        ("relaxed_maps", ctypes.c_bool),
        ("pin_root_path", ctypes.c_char_p),
    )


class _Log(threading.local):
    """What libbpf said in this thread since the last call of take."""

    def __init__(self) -> None:
        self.parts: list[str] = []

    def take(self) -> str:
        text = "".join(self.parts).strip()
        self.parts = []
        return text[-LOG_CHARACTERS_MAX:]


_log = _Log()


def _print(level: int, form: bytes, arguments: int) -> int:
    if level > LEVEL_INFO:
        return 0
    text = ctypes.create_string_buffer(LOG_BUFFER_BYTES)
    _libc().vsnprintf(text, ctypes.c_size_t(LOG_BUFFER_BYTES), form, ctypes.c_void_p(arguments))
    _log.parts.append(text.value.decode(errors="replace"))
    return 0


_print_callback = _PRINT(_print)
"""Kept for the life of the process: libbpf holds its address."""

_SIGNATURES: Mapping[str, tuple[Any, tuple[Any, ...]]] = {
    "bpf_object__open_mem": (ctypes.c_void_p, (ctypes.c_char_p, ctypes.c_size_t, ctypes.c_void_p)),
    "bpf_object__load": (ctypes.c_int, (ctypes.c_void_p,)),
    "bpf_object__close": (None, (ctypes.c_void_p,)),
    "bpf_object__next_map": (ctypes.c_void_p, (ctypes.c_void_p, ctypes.c_void_p)),
    "bpf_object__next_program": (ctypes.c_void_p, (ctypes.c_void_p, ctypes.c_void_p)),
    "bpf_map__fd": (ctypes.c_int, (ctypes.c_void_p,)),
    "bpf_map__name": (ctypes.c_char_p, (ctypes.c_void_p,)),
    "bpf_map__type": (ctypes.c_int, (ctypes.c_void_p,)),
    "bpf_map__key_size": (ctypes.c_uint32, (ctypes.c_void_p,)),
    "bpf_map__value_size": (ctypes.c_uint32, (ctypes.c_void_p,)),
    "bpf_map__max_entries": (ctypes.c_uint32, (ctypes.c_void_p,)),
    "bpf_map__set_max_entries": (ctypes.c_int, (ctypes.c_void_p, ctypes.c_uint32)),
    "bpf_map__map_flags": (ctypes.c_uint32, (ctypes.c_void_p,)),
    "bpf_map__is_internal": (ctypes.c_bool, (ctypes.c_void_p,)),
    "bpf_map__pin_path": (ctypes.c_char_p, (ctypes.c_void_p,)),
    "bpf_map__set_pin_path": (ctypes.c_int, (ctypes.c_void_p, ctypes.c_char_p)),
    "bpf_map__initial_value": (ctypes.c_void_p, (ctypes.c_void_p, ctypes.POINTER(ctypes.c_size_t))),
    "bpf_program__fd": (ctypes.c_int, (ctypes.c_void_p,)),
    "bpf_program__name": (ctypes.c_char_p, (ctypes.c_void_p,)),
}


@functools.cache
def _libbpf() -> ctypes.CDLL:
    try:
        library = ctypes.CDLL(LIBBPF, use_errno=True)
    except OSError as error:
        raise KernelError(f"{LIBBPF} cannot be loaded ({error}); install libbpf 1.1 or newer") from error
    for name, (result, arguments) in _SIGNATURES.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    library.libbpf_set_print(_print_callback)
    return library


class ObjectMap(NamedTuple):
    """A map as an object file declares it; `pinned` where it is shared by its name."""

    name: str
    type: int
    key_size: int
    value_size: int
    max_entries: int
    flags: int
    pinned: bool


class Object:
    """An object file on its way into the kernel: open, configure, load, take descriptors, close."""

    def __init__(self, elf: bytes, name: str, pin_root: Path | None) -> None:
        """Opens it. Maps that the file pins by name are pinned, or taken up, under `pin_root`; None: all
        are private.

        Raises KernelError with libbpf's words.
        """
        self.name = name
        self._library = _libbpf()
        self._elf = elf
        root = None if pin_root is None else os.fsencode(pin_root)
        options = _OpenOptions(ctypes.sizeof(_OpenOptions), name.encode(), False, root)
        _log.take()
        self._handle = self._library.bpf_object__open_mem(elf, len(elf), ctypes.byref(options))
        if not self._handle:
            raise KernelError(f"{name} cannot be opened: {_log.take()}", ctypes.get_errno())
        self._maps = {self._library.bpf_map__name(each).decode(): each for each in self._walk("map")}
        self._programs = {self._library.bpf_program__name(each).decode(): each for each in self._walk("program")}
        if pin_root is None:
            for each in self._maps.values():
                self._library.bpf_map__set_pin_path(each, None)

    def _walk(self, kind: str) -> Iterator[int]:
        following = getattr(self._library, f"bpf_object__next_{kind}")
        found = following(self._handle, None)
        while found:
            yield found
            found = following(self._handle, found)

    @property
    def maps(self) -> tuple[ObjectMap, ...]:
        """The maps that the file declares, without those that the compiler makes for .rodata and .bss."""
        library = self._library
        return tuple(
            ObjectMap(
                name, library.bpf_map__type(each), library.bpf_map__key_size(each),
                library.bpf_map__value_size(each), library.bpf_map__max_entries(each),
                library.bpf_map__map_flags(each), library.bpf_map__pin_path(each) is not None,
            )
            for name, each in self._maps.items()
            if not library.bpf_map__is_internal(each)
        )  # fmt: skip

    @property
    def programs(self) -> tuple[str, ...]:
        """Names of the programs."""
        return tuple(self._programs)

    def write_constant(self, section: str, offset: int, value: bytes) -> None:
        """Sets load-time configuration: bytes of a section such as .rodata, before load."""
        each = next((each for name, each in self._maps.items() if name.endswith(section)), None)
        size = ctypes.c_size_t()
        start = self._library.bpf_map__initial_value(each, ctypes.byref(size)) if each else None
        if not start or offset + len(value) > size.value:
            raise KernelError(f"{self.name} has no {section} of {offset + len(value)} bytes")
        ctypes.memmove(start + offset, value, len(value))

    def resize(self, map_name: str, max_entries: int) -> None:
        """Gives a map another size than the file declares, before load."""
        if map_name not in self._maps:
            raise KernelError(f"{self.name} has no map {map_name}; it has {', '.join(self._maps)}")
        self._library.bpf_map__set_max_entries(self._maps[map_name], max_entries)

    def load(self) -> None:
        """Creates the maps and loads the programs. Raises KernelError with the verifier's log."""
        _log.take()
        result = self._library.bpf_object__load(self._handle)
        log = _log.take()
        if result:
            if -result == errno.EPERM and lacks_privilege():
                raise NotRoot(f"{self.name}: loading programs needs root (CAP_BPF and CAP_NET_ADMIN)")
            raise KernelError(f"{self.name} cannot be loaded: {uapi.describe(-result)}\n{log}", -result)

    def program_fd(self, name: str) -> int:
        """A descriptor that outlives this object."""
        return os.dup(self._library.bpf_program__fd(self._programs[name]))

    def map_fd(self, name: str) -> int:
        """A descriptor that outlives this object."""
        return os.dup(self._library.bpf_map__fd(self._maps[name]))

    def close(self) -> None:
        """Frees what libbpf holds; pins and taken descriptors stay."""
        if self._handle:
            self._library.bpf_object__close(self._handle)
            self._handle = None
