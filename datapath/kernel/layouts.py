"""Maps of one layout, pinned together, and rows carried over to them from maps of another.

    <pin root>/maps/<layout id>/<map>      the layout id is a hash of what the objects declare and of the ABI

Belongs here: which maps of an earlier version are still right, and what becomes of the rows of those that are not. Does
not belong here: programs (programs.py). A map whose layout stands is pinned in both directories and shared, so that the
programs of both versions see one; any other is made anew, filled, and only then do programs move to it. What the old
programs write meanwhile is carried over again: before the programs move, and when the old pins go.
"""

import hashlib
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from datapath.abi import btf, types
from datapath.abi.convert import Convert, converter, per_cpu, same
from datapath.abi.layout import Struct
from datapath.abi.structs import AbiError, read_struct
from datapath.kernel import libbpf
from datapath.kernel.libbpf import ObjectMap
from datapath.kernel.maps import PER_CPU, Map
from datapath.tables import RUNTIME_MAPS, TABLES

ID_CHARACTERS = 16
HOLDING_ROWS = {table.map for table in TABLES.values() if table.map} | (set(RUNTIME_MAPS) - {"notifications"})
"""A ring's records have no type that the kernel knows, so it is made anew; what stands in the old one is not read."""


class _Conversion(NamedTuple):
    key: Convert
    value: Convert

    @property
    def changes_nothing(self) -> bool:
        return self.key is same and self.value is same


def layout_id(declared: Iterable[ObjectMap]) -> str:
    """Of the maps that objects pin by name."""
    digest = hashlib.sha256()
    for each in sorted({each for each in declared if each.pinned}):
        digest.update(f"{each}\n".encode())
    for name in sorted(types.STRUCTS):
        digest.update(f"{types.STRUCTS[name]}\n".encode())
    return digest.hexdigest()[:ID_CHARACTERS]


def predecessor(maps_dir: Path, in_use: Collection[str]) -> Path | None:
    """Another layout to take rows from: one in use, else the one made last."""
    others = [each for each in maps_dir.parent.iterdir() if each != maps_dir]
    return max(others, key=lambda each: (each.name in in_use, each.stat().st_mtime_ns), default=None)


def share(old_dir: Path, maps_dir: Path, declared: Iterable[ObjectMap]) -> None:
    """Pins in `maps_dir` the maps of the earlier version that are as they are declared now."""
    layouts = _Layouts()
    for each in declared:
        path, target = old_dir / each.name, maps_dir / each.name
        if not each.pinned or target.exists() or not path.exists():
            continue
        held = Map(libbpf.open_pin(path))
        try:
            if _is_as_declared(held, each) and layouts.stands(held):
                libbpf.pin(held.fd, target)
        finally:
            held.close()


def carry_over(old_dir: Path, maps: Mapping[str, Map], runtime_only: bool = False) -> None:
    """Puts the rows of the earlier version that the new maps have not. `maps` are the new ones, by name.

    Rows whose layout the kernel does not know, or that do not fit any more, stay behind: derived ones are derived
    again, and a flow without its entry is judged as a new one.
    """
    layouts = _Layouts()
    for path in sorted(old_dir.iterdir()):
        new = maps.get(path.name)
        if new is None or path.name not in HOLDING_ROWS or (runtime_only and path.name not in RUNTIME_MAPS):
            continue
        old = Map(libbpf.open_pin(path))
        try:
            conversion = layouts.conversion(old) if old.info.id != new.info.id else None
            if conversion is not None:
                _put_missing(old, new, conversion)
        finally:
            old.close()


def remove(directory: Path) -> None:
    """The pins of a layout; a map goes when no program uses it any more."""
    for path in directory.iterdir():
        path.unlink()
    directory.rmdir()


def _put_missing(old: Map, new: Map, conversion: _Conversion) -> None:
    there = new.dump()
    rows = []
    for key, value in old.dump().items():
        moved_key, moved_value = conversion.key(key), conversion.value(value)
        if moved_key is not None and moved_value is not None and moved_key not in there:
            rows.append((moved_key, moved_value))
    new.put(rows)


def _is_as_declared(held: Map, declared: ObjectMap) -> bool:
    fields = ("type", "key_size", "value_size", "max_entries", "flags")
    return all(getattr(held.info, field) == getattr(declared, field) for field in fields)


class _Layouts:
    """What the kernel still knows of the structs of an earlier version."""

    def __init__(self) -> None:
        self._types: dict[int, btf.Btf] = {}

    def stands(self, held: Map) -> bool:
        """Whether a map's rows mean what they mean now."""
        conversion = self.conversion(held)
        return conversion is not None and conversion.changes_nothing

    def conversion(self, held: Map) -> _Conversion | None:
        """From a map's rows to those of now; None where that cannot be known."""
        if not held.info.btf_id:
            return None
        known = self._known(held.info.btf_id)
        key, value = (_convert(known, each) for each in (held.info.key_type, held.info.value_type))
        if key is None or value is None:
            return None
        if held.info.type in PER_CPU and value[0] is not same:
            return _Conversion(key[0], per_cpu(value[0], held.info.value_size, value[1]))
        return _Conversion(key[0], value[0])

    def _known(self, btf_id: int) -> btf.Btf:
        if btf_id not in self._types:
            self._types[btf_id] = btf.parse_section(libbpf.btf_section(btf_id))
        return self._types[btf_id]


def _convert(known: btf.Btf, type_id: int) -> tuple[Convert, int] | None:
    """The conversion of a key or a value, and its new size."""
    found = known.resolve(type_id)
    if found.kind == btf.KIND_TYPEDEF:
        # An array's key: a plain number.
        return same, known.size(type_id)
    old, new = _struct(known, found.name), types.STRUCTS.get(found.name)
    return None if old is None or new is None else (converter(old, new), new.size)


def _struct(known: btf.Btf, name: str) -> Struct | None:
    for found in known.named(btf.KIND_STRUCT):
        if found.name == name:
            try:
                return read_struct(known, found)
            except AbiError:
                return None
    return None

