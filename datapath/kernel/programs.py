"""The compiled objects in the kernel: loaded once per content, shared by all who attach, found again after
a restart.

    <pin root>/maps/<layout id>/<map>                           every map that maps.h pins by name (layouts.py)
    <pin root>/programs/<content id>-<layout id>/<program>      the programs; the content id is a hash of the object
                                                                files and of the load-time configuration

Belongs here: loading, pinning, taking up again, and private copies for test runs. Does not belong here:
where the programs are attached (links.py), and what is in the maps (maps.py).
"""

import hashlib
import os
import sys
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import NamedTuple, Self

from datapath.abi import btf, types
from datapath.codec import struct_name
from datapath.errors import KernelError, LayoutMismatch
from datapath.kernel import layouts, libbpf, uapi
from datapath.kernel.maps import Map, close_all
from datapath.tables import TABLES

OBJECTS = ("endpoint.bpf.o", "host.bpf.o", "overlay.bpf.o")
SOCKET_OBJECT = "sock.bpf.o"
"""Only where sockets are to be translated."""
JOINING_OBJECT = "sockmap.bpf.o"
"""Only where sockets are to be joined."""
XDP_OBJECT = "xdp.bpf.o"
"""Only where the underlay device is to balance."""
CONSTANTS_SECTION = ".rodata"
CONTENT_ID_CHARACTERS = 16
CONTENT_ID_CONSTANT = "config_content_id"
"""By which a program knows what version it is of; no part of that."""
PLACEHOLDER = "/nowhere"
"""A pin root for objects that are only looked at: which maps they would pin shows only with one."""
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

    def test_run_at_device(self, program: str, packet: bytes) -> PacketRun:
        """Runs an XDP program on a packet that begins with its Ethernet header, as if seen on the loopback device of
        the caller's network namespace. Raises KernelError."""
        return PacketRun(*libbpf.program_test_run(self.programs[program].fd, packet)[:3])

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
        self._maps_root = pin_root / "maps"
        self._programs_dir = pin_root / "programs"
        self._objects_dir = objects_dir
        self._objects = objects
        self._constants = constants
        self.programs: dict[str, Program] = {}
        self.maps: dict[str, Map] = {}
        self.content_id = ""
        self.pins = self._programs_dir
        """The directory of the programs; its name begins with the content id."""
        self.loaded = False
        """Whether the last open loaded the programs; False: it took up the pinned ones."""

    def open(self, attached_ids: Collection[int] = ()) -> None:
        """Takes up what is pinned if it has the same content, else loads it with the pinned maps, or with new ones that
        get the rows of those pinned. `attached_ids`: the programs that run, by their numbers.

        Raises KernelError, LayoutMismatch.
        """
        elves = {name: self._read(name) for name in self._objects}
        self.content_id = _content_id(elves, self._constants)
        self.pins = self._find_pins()
        self._maps_root.mkdir(parents=True, exist_ok=True)
        self._programs_dir.mkdir(parents=True, exist_ok=True)
        for left_over in self._programs_dir.glob(f"*{PARTIAL_SUFFIX}"):
            layouts.remove(left_over)
        self.loaded = not self._take_up()
        if self.loaded:
            self._load(elves, attached_ids)
            if not self._take_up():
                raise KernelError(f"the programs just pinned at {self.pins} do not use the maps of their layout")

    def remove_unused(self, used_ids: Iterable[int]) -> int:
        """Removes the pins of other contents none of whose programs is in `used_ids`, and maps that then have no
        program; how many contents went."""
        used = set(used_ids)
        removed = 0
        for directory in self._programs_dir.iterdir():
            if directory != self.pins and not used & _pinned_program_ids(directory):
                layouts.remove(directory)
                removed += 1
        left = {_layout_of(directory) for directory in self._programs_dir.iterdir()}
        for directory in self._maps_root.iterdir():
            if directory.name not in left:
                layouts.carry_over(directory, self.maps, runtime_only=True)
                layouts.remove(directory)
        return removed

    @property
    def has_unused(self) -> bool:
        """Whether pins of another content or of another layout are left."""
        return len(os.listdir(self._programs_dir)) > 1 or len(os.listdir(self._maps_root)) > 1

    def catch_up(self) -> None:
        """Carries over what programs of other layouts have written since; before programs move to this one."""
        own = _layout_of(self.pins)
        for directory in self._maps_root.iterdir():
            if directory.name != own:
                layouts.carry_over(directory, self.maps, runtime_only=True)

    def stray_pins(self, restore: bool) -> dict[str, str]:
        """The maps in use whose pins are gone or name another map, and what is the matter with each; with `restore`
        they are pinned again. Raises KernelError."""
        maps_dir = self._maps_root / _layout_of(self.pins)
        found = {}
        for name, held in self.maps.items():
            path = maps_dir / name
            pinned = _pinned_map_id(path)
            if pinned == held.info.id:
                continue
            instead = "no map is pinned" if pinned is None else f"map {pinned} is pinned"
            found[name] = f"{instead} at {path} and the programs use map {held.info.id}"
            if restore:
                path.unlink(missing_ok=True)
                libbpf.pin(held.fd, path)
        return found

    def close(self) -> None:
        """Lets go of all descriptors; pins stay."""
        close_all(self.maps)
        for program in self.programs.values():
            os.close(program.fd)
        self.maps, self.programs = {}, {}

    def _find_pins(self) -> Path:
        """Where the programs of this content are, or are to be once their layout is known."""
        found = self._programs_dir.glob(f"{self.content_id}-{'[0-9a-f]' * layouts.ID_CHARACTERS}")
        return next(found, self._programs_dir / self.content_id)

    def _read(self, name: str) -> bytes:
        try:
            return (self._objects_dir / name).read_bytes()
        except OSError as error:
            raise KernelError(
                f"the compiled program {self._objects_dir / name} is missing: {error.strerror}"
            ) from error

    def _take_up(self) -> bool:
        maps_dir = self._maps_root / _layout_of(self.pins)
        if not self.pins.is_dir() or not maps_dir.is_dir():
            return False
        try:
            self.maps = {path.name: Map(libbpf.open_pin(path)) for path in sorted(maps_dir.iterdir())}
            pinned = sorted(self.pins.iterdir())
            self.programs = {path.name: _program(path.name, libbpf.open_pin(path)) for path in pinned}
            _refuse_layouts(self.maps, maps_dir)
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

    def _load(self, elves: Mapping[str, bytes], attached_ids: Collection[int]) -> None:
        declared = [each for name, elf in elves.items() for each in _declared(name, elf)]
        layout = layouts.layout_id(declared)
        maps_dir = self._maps_root / layout
        maps_dir.mkdir(exist_ok=True)
        old_dir = layouts.predecessor(maps_dir, self._layouts_in_use(attached_ids))
        if old_dir is not None:
            layouts.share(old_dir, maps_dir, declared)
        partial = self._programs_dir / f"{self.content_id}-{layout}{PARTIAL_SUFFIX}"
        partial.mkdir()
        missing = set(self._constants)
        for name, elf in elves.items():
            missing -= self._load_object(name, elf, maps_dir, partial)
        if missing:
            raise LayoutMismatch(
                f"no object in {self._objects_dir} has the constant {', '.join(sorted(missing))}"
            )
        if old_dir is not None:
            _fill(old_dir, maps_dir)
        if self.pins.exists():
            layouts.remove(self.pins)
        self.pins = self._programs_dir / f"{self.content_id}-{layout}"
        partial.rename(self.pins)

    def _load_object(self, name: str, elf: bytes, maps_dir: Path, pins: Path) -> set[str]:
        """Which constants it has."""
        opened = libbpf.Object(elf, name.split(".")[0], maps_dir)
        try:
            told = {**self._constants, CONTENT_ID_CONSTANT: int(self.content_id, 16)}
            written = _write_constants(opened, elf, told)
            opened.load()
            for program in opened.programs:
                fd = opened.program_fd(program)
                libbpf.pin(fd, pins / program)
                os.close(fd)
            return written
        finally:
            opened.close()

    def _layouts_in_use(self, attached_ids: Collection[int]) -> set[str]:
        return {
            _layout_of(directory)
            for directory in self._programs_dir.iterdir()
            if _pinned_program_ids(directory) & set(attached_ids)
        }


def _declared(name: str, elf: bytes) -> tuple[libbpf.ObjectMap, ...]:
    opened = libbpf.Object(elf, name.split(".")[0], Path(PLACEHOLDER))
    try:
        return opened.maps
    finally:
        opened.close()


def _layout_of(programs: Path) -> str:
    return programs.name.partition("-")[2]


def _fill(old_dir: Path, maps_dir: Path) -> None:
    """The maps of a layout get the rows that those of another have."""
    maps = {path.name: Map(libbpf.open_pin(path)) for path in maps_dir.iterdir()}
    try:
        layouts.carry_over(old_dir, maps)
    finally:
        close_all(maps)


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


def _pinned_program_ids(directory: Path) -> set[int]:
    found = set()
    for path in directory.iterdir():
        fd = libbpf.open_pin(path)
        try:
            found.add(libbpf.program_info(fd).id)
        finally:
            os.close(fd)
    return found


def _pinned_map_id(path: Path) -> int | None:
    try:
        fd = libbpf.open_pin(path)
    except KernelError:
        return None
    try:
        return libbpf.map_info(fd).id
    except KernelError:
        # A program's pin, or a link's.
        return None
    finally:
        os.close(fd)


def _is_section(map_id: int) -> bool:
    """Whether a map is one that the compiler makes for a section, such as .rodata: private to its program."""
    fd = libbpf.map_fd_by_id(map_id)
    try:
        return "." in libbpf.map_info(fd).name
    finally:
        os.close(fd)


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
        f"the pinned map {path} has {field} {old}, and {wanted}; something else has pinned it there. "
        f"Remove {path.parent} to start with empty maps; nothing is forwarded until they are filled"
    )
