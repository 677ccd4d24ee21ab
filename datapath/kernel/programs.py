"""The compiled objects in the kernel: loaded once per content, shared by all who attach, found again after
a restart.

    <pin root>/maps/<map>                           every map that maps.h pins by name
    <pin root>/programs/<content id>/<program>      the programs; the content id is a hash of the object
    files and of
                                                    the load-time configuration

Belongs here: loading, pinning, taking up again, and private copies for test runs. Does not belong here:
where the programs are attached (links.py), and what is in the maps (maps.py).
"""

import hashlib
import os
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple, Self

from datapath.abi import btf, types
from datapath.codec import struct_name
from datapath.errors import KernelError, LayoutMismatch
from datapath.kernel import libbpf, uapi
from datapath.kernel.maps import Map, close_all
from datapath.tables import TABLES

OBJECTS = ("endpoint.bpf.o", "host.bpf.o", "overlay.bpf.o")
SOCKET_OBJECT = "sock.bpf.o"
"""Only where sockets are to be translated."""
CONSTANTS_SECTION = ".rodata"
CONTENT_ID_CHARACTERS = 16
PARTIAL_SUFFIX = "-partial"
"""bpffs takes no dots. Of a directory of program pins that is not complete yet; a crash leaves it behind,
the next start removes it."""


Constant = int | bytes
"""A value of load-time configuration: a number, or the bytes of a struct or an array, which may be its beginning."""


class Program(NamedTuple):
    """A program in the kernel by its descriptor and its number there."""

    name: str
    fd: int
    id: int


class PacketRun(NamedTuple):
    """What a program did with a packet."""

    retval: int
    packet: bytes
    duration_ns: int


class Loaded:
    """A private copy of one object: its own maps, nothing pinned, gone with close. A context manager."""

    def __init__(self, programs: Mapping[str, Program], maps: Mapping[str, Map]) -> None:
        self.programs = programs
        self.maps = maps

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def test_run(
        self,
        program: str,
        packet: bytes,
        ifindex: int = 0,
        mark: int = 0,
        cb: tuple[int, ...] = (),
        repeat: int = 1,
    ) -> PacketRun:
        """Runs a program on a packet that begins with its Ethernet header, as if seen on device `ifindex`.

        `ifindex` must be a device in the caller's network namespace; 0: the loopback device. Raises
        KernelError.
        """
        return PacketRun(*self.test_run_with_context(program, packet, ifindex, mark, cb, repeat)[:3])

    def test_run_with_context(
        self,
        program: str,
        packet: bytes,
        ifindex: int = 0,
        mark: int = 0,
        cb: tuple[int, ...] = (),
        repeat: int = 1,
    ) -> uapi.TestRun:
        """As test_run, and gives back struct __sk_buff too: mark, priority, cb."""
        context = uapi.sk_buff(ifindex=ifindex, mark=mark, cb=cb)
        return libbpf.program_test_run(self.programs[program].fd, packet, context, repeat)

    def close(self) -> None:
        """Unloads it."""
        close_all(self.maps)
        for program in self.programs.values():
            os.close(program.fd)


def load_private(
    object_path: Path, rodata: Mapping[str, Constant] | None = None, max_entries: Mapping[str, int] | None = None
) -> Loaded:
    """Loads an object with maps of its own. `rodata`: values of constants by name, such as
    config_underlay_ifindex.

    `max_entries` makes maps smaller than the object declares them: a large preallocated one costs most of
    the load. Raises KernelError with the verifier's log, LayoutMismatch for a constant that the object has
    not.
    """
    elf = object_path.read_bytes()
    wanted = dict(rodata or {})
    opened = libbpf.Object(elf, object_path.name.split(".")[0], None)
    try:
        unknown = wanted.keys() - _write_constants(opened, elf, wanted)
        if unknown:
            raise LayoutMismatch(f"{object_path} has no constant {', '.join(sorted(unknown))}")
        for name, count in (max_entries or {}).items():
            opened.resize(name, count)
        opened.load()
        maps = {each.name: Map(opened.map_fd(each.name)) for each in opened.maps}
        return Loaded({name: _program(name, opened.program_fd(name)) for name in opened.programs}, maps)
    finally:
        opened.close()


class ObjectSet:
    """The node's programs and maps. `open` before all else; `programs` and `maps` are by name.

    `constants` are the values of load-time configuration; each must be in at least one of `objects`.
    """

    def __init__(
        self,
        pin_root: Path,
        objects_dir: Path,
        constants: Mapping[str, Constant],
        objects: tuple[str, ...] = OBJECTS,
    ) -> None:
        self.maps_dir = pin_root / "maps"
        self._programs_dir = pin_root / "programs"
        self._objects_dir = objects_dir
        self._objects = objects
        self._constants = constants
        self.programs: dict[str, Program] = {}
        self.maps: dict[str, Map] = {}
        self.content_id = ""
        self.loaded = False
        """Whether the last open loaded the programs; False: it took up the pinned ones."""

    def open(self) -> None:
        """Takes up what is pinned if it has the same content, else loads it with the pinned maps.

        Raises KernelError, LayoutMismatch.
        """
        elves = {name: self._read(name) for name in self._objects}
        self.content_id = _content_id(elves, self._constants)
        self.maps_dir.mkdir(parents=True, exist_ok=True)
        self._programs_dir.mkdir(parents=True, exist_ok=True)
        for left_over in self._programs_dir.glob(f"*{PARTIAL_SUFFIX}"):
            _remove_pins(left_over)
        self.loaded = not self._take_up()
        if self.loaded:
            self._load(elves)
            if not self._take_up():
                raise KernelError(
                    f"the programs just pinned at {self._pins} do not use the maps at {self.maps_dir}"
                )

    def remove_unused(self, used_ids: Iterable[int]) -> int:
        """Removes the pins of other contents none of whose programs is in `used_ids`; how many contents
        went."""
        used = set(used_ids)
        removed = 0
        for directory in self._programs_dir.iterdir():
            if directory != self._pins and not used & {
                _pinned_program_id(path) for path in directory.iterdir()
            }:
                _remove_pins(directory)
                removed += 1
        return removed

    @property
    def has_unused(self) -> bool:
        """Whether pins of another content are left."""
        return len(os.listdir(self._programs_dir)) > 1

    def close(self) -> None:
        """Lets go of all descriptors; pins stay."""
        close_all(self.maps)
        for program in self.programs.values():
            os.close(program.fd)
        self.maps, self.programs = {}, {}

    @property
    def _pins(self) -> Path:
        return self._programs_dir / self.content_id

    def _read(self, name: str) -> bytes:
        try:
            return (self._objects_dir / name).read_bytes()
        except OSError as error:
            raise KernelError(
                f"the compiled program {self._objects_dir / name} is missing: {error.strerror}"
            ) from error

    def _take_up(self) -> bool:
        if not self._pins.is_dir():
            return False
        try:
            self.maps = {path.name: Map(libbpf.open_pin(path)) for path in sorted(self.maps_dir.iterdir())}
            self.programs = {
                path.name: _program(path.name, libbpf.open_pin(path)) for path in sorted(self._pins.iterdir())
            }
            _refuse_layouts(self.maps, self.maps_dir)
            if self._is_whole():
                return True
        except BaseException:
            self.close()
            raise
        self.close()
        return False

    def _is_whole(self) -> bool:
        """Whether the programs run on the very maps that are pinned, and none is missing."""
        if not self.programs or not {table.map for table in TABLES.values() if table.map} <= self.maps.keys():
            return False
        pinned = {each.info.id for each in self.maps.values()}
        used = {
            map_id for program in self.programs.values() for map_id in libbpf.program_info(program.fd).map_ids
        }
        return all(_is_section(map_id) for map_id in used - pinned)

    def _load(self, elves: Mapping[str, bytes]) -> None:
        missing = set(self._constants)
        partial = self._pins.with_name(self.content_id + PARTIAL_SUFFIX)
        partial.mkdir()
        for name, elf in elves.items():
            opened = libbpf.Object(elf, name.split(".")[0], self.maps_dir)
            try:
                missing -= _write_constants(opened, elf, self._constants)
                _refuse_changes(opened, self.maps_dir)
                opened.load()
                for program in opened.programs:
                    fd = opened.program_fd(program)
                    libbpf.pin(fd, partial / program)
                    os.close(fd)
            finally:
                opened.close()
        if missing:
            raise LayoutMismatch(
                f"no object in {self._objects_dir} has the constant {', '.join(sorted(missing))}"
            )
        if self._pins.exists():
            _remove_pins(self._pins)
        partial.rename(self._pins)


def _content_id(elves: Mapping[str, bytes], constants: Mapping[str, Constant]) -> str:
    digest = hashlib.sha256()
    for name, elf in sorted(elves.items()):
        digest.update(f"{name} {len(elf)}\n".encode())
        digest.update(elf)
    for constant, value in sorted(constants.items()):
        digest.update(f"{constant} {value!r}\n".encode())
    return digest.hexdigest()[:CONTENT_ID_CHARACTERS]


def _write_constants(opened: libbpf.Object, elf: bytes, constants: Mapping[str, Constant]) -> set[str]:
    """Sets those constants that the object has; their names."""
    found = btf.variables(elf, CONSTANTS_SECTION)
    written = constants.keys() & found.keys()
    for name in sorted(written):
        offset, size = found[name]
        opened.write_constant(CONSTANTS_SECTION, offset, _constant_bytes(name, constants[name], size))
    return written


def _constant_bytes(name: str, value: Constant, size: int) -> bytes:
    if isinstance(value, int):
        if not 0 <= value < 1 << 8 * size:
            raise LayoutMismatch(f"{name} is {value}, which does not fit {size} byte(s)")
        return value.to_bytes(size, sys.byteorder)
    if len(value) > size:
        raise LayoutMismatch(f"{name} has {len(value)} bytes, which do not fit {size}")
    return value.ljust(size, b"\0")


def _program(name: str, fd: int) -> Program:
    return Program(name, fd, libbpf.program_info(fd).id)


def _pinned_program_id(path: Path) -> int:
    fd = libbpf.open_pin(path)
    try:
        return libbpf.program_info(fd).id
    finally:
        os.close(fd)


def _is_section(map_id: int) -> bool:
    """Whether a map is one that the compiler makes for a section, such as .rodata: private to its program."""
    fd = libbpf.map_fd_by_id(map_id)
    try:
        return "." in libbpf.map_info(fd).name
    finally:
        os.close(fd)


def _remove_pins(directory: Path) -> None:
    for path in directory.iterdir():
        path.unlink()
    directory.rmdir()


def _refuse_changes(opened: libbpf.Object, maps_dir: Path) -> None:
    """Compares what the object declares with what is pinned, before libbpf refuses it with a bare EINVAL."""
    for declared in opened.maps:
        path = maps_dir / declared.name
        if not declared.pinned or not path.exists():
            continue
        pinned = Map(libbpf.open_pin(path))
        pinned.close()
        for field in ("type", "key_size", "value_size", "max_entries", "flags"):
            old, new = getattr(pinned.info, field), getattr(declared, field)
            if old != new:
                raise _mismatch(path, field, old, f"{opened.name} declares {new}")


def _refuse_layouts(maps: Mapping[str, Map], maps_dir: Path) -> None:
    for table in TABLES.values():
        found = maps.get(table.map)
        if found is None:
            continue
        sizes = {"key_size": struct_name(table.key), "value_size": struct_name(table.row)}
        for field, struct in sizes.items():
            old, new = getattr(found.info, field), types.STRUCTS[struct].size
            if old != new:
                raise _mismatch(maps_dir / table.map, field, old, f"struct {struct} has {new}")


def _mismatch(path: Path, field: str, old: int, wanted: str) -> LayoutMismatch:
    return LayoutMismatch(
        f"the pinned map {path} has {field} {old}, and {wanted}; it is from another version. "
        f"Remove {path.parent.parent} to start with empty maps; nothing is forwarded until they are filled"
    )
