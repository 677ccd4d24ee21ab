"""Reads the .BTF section of an object file, and where its variables lie: which structs and enums the
compiler saw.

Belongs here: the two file formats (ELF64 section table, BTF), pure: bytes in, values out. Does not belong
here: which of the types are our ABI (generate.py).
"""

import struct
from collections.abc import Iterator, Sequence
from typing import NamedTuple

BTF_MAGIC = 0xEB9F
HEADER = struct.Struct("<HBBIIIII")
TYPE = struct.Struct("<III")

KIND_INT, KIND_PTR, KIND_ARRAY, KIND_STRUCT, KIND_UNION, KIND_ENUM = 1, 2, 3, 4, 5, 6
KIND_FORWARD, KIND_TYPEDEF, KIND_VOLATILE, KIND_CONST, KIND_RESTRICT, KIND_FUNC = 7, 8, 9, 10, 11, 12
KIND_FUNC_PROTO, KIND_VAR, KIND_DATASEC, KIND_FLOAT, KIND_DECL_TAG, KIND_TYPE_TAG, KIND_ENUM64 = (
    13,
    14,
    15,
    16,
    17,
    18,
    19,
)

FIXED_EXTRA = {KIND_INT: 4, KIND_ARRAY: 12, KIND_VAR: 4, KIND_DECL_TAG: 4}
EXTRA_PER_MEMBER = {
    KIND_STRUCT: 12,
    KIND_UNION: 12,
    KIND_ENUM: 8,
    KIND_FUNC_PROTO: 8,
    KIND_DATASEC: 12,
    KIND_ENUM64: 12,
}
SYMBOL_IS_VARIABLE = 1
QUALIFIERS = (KIND_VOLATILE, KIND_CONST, KIND_RESTRICT, KIND_TYPE_TAG)


class BtfError(ValueError):
    """The bytes are not an object file with BTF as a BPF compiler writes it."""


class Member(NamedTuple):
    """A struct's field: `offset_bits` from the start, `bits` of a bit field or 0."""

    name: str
    type_id: int
    offset_bits: int
    bits: int


class Type(NamedTuple):
    """One BTF type. `size` in bytes where the kind has one, `target` where it refers to another type."""

    kind: int
    name: str
    size: int
    target: int
    length: int
    members: tuple[Member, ...]
    values: tuple[tuple[str, int], ...]


class Section(NamedTuple):
    """A section of an ELF file."""

    name: str
    contents: bytes


def sections(elf: bytes) -> list[Section]:
    """The sections of a little-endian ELF64 file, in the order of their numbers. Raises BtfError."""
    if elf[:6] != b"\x7fELF\x02\x01":
        raise BtfError("not a little-endian ELF64 file")
    (table,) = struct.unpack_from("<Q", elf, 40)
    entry_size, count, names_at = struct.unpack_from("<HHH", elf, 58)
    headers = [struct.unpack_from("<IIQQQQ", elf, table + i * entry_size) for i in range(count)]
    names = elf[headers[names_at][4] :]
    return [Section(_string(names, header[0]), elf[header[4] : header[4] + header[5]]) for header in headers]


def section(elf: bytes, name: str) -> bytes:
    """The contents of a section. Raises BtfError."""
    for found in sections(elf):
        if found.name == name:
            return found.contents
    raise BtfError(f"no section {name}; compile with -g")


def variables(elf: bytes, section_name: str) -> dict[str, tuple[int, int]]:
    """Offset and size in bytes of the variables in a section such as .rodata, by name. Raises BtfError.

    They are read from the symbols: in an object file that is not linked, BTF has zeros for the offsets.
    """
    found = sections(elf)
    strings = section(elf, ".strtab")
    symbols = struct.iter_unpack("<IBBHQQ", section(elf, ".symtab"))
    return {
        _string(strings, name_at): (offset, size)
        for name_at, kind, _, number, offset, size in symbols
        if kind & 0xF == SYMBOL_IS_VARIABLE and number < len(found) and found[number].name == section_name
    }


class Btf:
    """The types of one object file, numbered from 1 as BTF does; 0 is void."""

    def __init__(self, types: Sequence[Type]) -> None:
        self.types = types

    def resolve(self, type_id: int) -> Type:
        """The type behind const and volatile."""
        found = self.types[type_id]
        while found.kind in QUALIFIERS:
            found = self.types[found.target]
        return found

    def strip(self, type_id: int) -> Type:
        """The type behind qualifiers and typedefs."""
        found = self.resolve(type_id)
        while found.kind == KIND_TYPEDEF:
            found = self.resolve(found.target)
        return found

    def size(self, type_id: int) -> int:
        """Bytes of a type. Raises BtfError for one that has no size."""
        found = self.strip(type_id)
        if found.kind == KIND_ARRAY:
            return found.length * self.size(found.target)
        if found.kind == KIND_PTR:
            return 8
        if found.kind in (KIND_INT, KIND_STRUCT, KIND_UNION, KIND_ENUM, KIND_ENUM64, KIND_FLOAT):
            return found.size
        raise BtfError(f"type {type_id} ({found.name or 'unnamed'}, kind {found.kind}) has no size")

    def named(self, kind: int) -> Iterator[Type]:
        """All types of a kind that have a name, in the order of the file."""
        return (found for found in self.types if found.kind == kind and found.name)


def parse(elf: bytes) -> Btf:
    """The types of an object file. Raises BtfError."""
    return parse_section(section(elf, ".BTF"))


def parse_section(raw: bytes) -> Btf:
    """The types of a .BTF section. Raises BtfError."""
    magic, _, _, header_size, type_at, type_size, string_at, string_size = HEADER.unpack_from(raw)
    if magic != BTF_MAGIC:
        raise BtfError(f"BTF magic is {magic:#x}, not {BTF_MAGIC:#x}")
    strings = raw[header_size + string_at : header_size + string_at + string_size]
    at = header_size + type_at
    end = at + type_size
    types = [Type(0, "void", 0, 0, 0, (), ())]
    while at < end:
        parsed, at = _parse_type(raw, at, strings)
        types.append(parsed)
    return Btf(types)


def _parse_type(raw: bytes, at: int, strings: bytes) -> tuple[Type, int]:
    name_at, info, size_or_type = TYPE.unpack_from(raw, at)
    kind, count, flag = info >> 24 & 0x1F, info & 0xFFFF, bool(info >> 31)
    at += TYPE.size
    size = target = length = 0
    members: tuple[Member, ...] = ()
    values: tuple[tuple[str, int], ...] = ()
    if kind in (KIND_INT, KIND_STRUCT, KIND_UNION, KIND_ENUM, KIND_ENUM64, KIND_DATASEC, KIND_FLOAT):
        size = size_or_type
    else:
        target = size_or_type
    if kind == KIND_ARRAY:
        target, _, length = struct.unpack_from("<III", raw, at)
    elif kind in (KIND_STRUCT, KIND_UNION):
        members = tuple(_parse_members(raw, at, count, flag, strings))
    elif kind in (KIND_ENUM, KIND_ENUM64):
        values = tuple(_parse_values(raw, at, count, kind, flag, strings))
    at += FIXED_EXTRA.get(kind, 0) + EXTRA_PER_MEMBER.get(kind, 0) * count
    return Type(kind, _string(strings, name_at), size, target, length, members, values), at


def _parse_members(raw: bytes, at: int, count: int, bit_fields: bool, strings: bytes) -> Iterator[Member]:
    for name_at, type_id, offset in struct.iter_unpack("<III", raw[at : at + 12 * count]):
        if bit_fields:
            yield Member(_string(strings, name_at), type_id, offset & 0xFFFFFF, offset >> 24)
        else:
            yield Member(_string(strings, name_at), type_id, offset, 0)


def _parse_values(
    raw: bytes, at: int, count: int, kind: int, signed: bool, strings: bytes
) -> Iterator[tuple[str, int]]:
    if kind == KIND_ENUM64:
        for name_at, low, high in struct.iter_unpack("<III", raw[at : at + 12 * count]):
            value = high << 32 | low
            yield _string(strings, name_at), value - (1 << 64) if signed and value >> 63 else value
    else:
        for name_at, value in struct.iter_unpack("<Ii" if signed else "<II", raw[at : at + 8 * count]):
            yield _string(strings, name_at), value


def _string(strings: bytes, at: int) -> str:
    return strings[at : strings.index(b"\0", at)].decode()
