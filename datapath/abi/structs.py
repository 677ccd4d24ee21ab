"""C types out of BTF, as far as they may stand in the ABI.

Belongs here: which types those are, and the layout of a struct. Does not belong here: BTF itself (btf.py), Python
source made of it (generate.py), rows of another version (convert.py).
"""

from collections.abc import Iterator

from datapath.abi import btf
from datapath.abi.layout import Field, Struct

SCALARS = {
    "__u8": "u8",
    "__u16": "u16",
    "__u32": "u32",
    "__u64": "u64",
    "__be16": "be16",
    "__be32": "be32",
    "__be64": "be64",
}
NATIVE_ELEMENTS = ("__u8", "__u16")
"""Of an array, which in Python is its bytes, in the order of the host."""
ENUM_VALUE_MAX = (1 << 31) - 1
"""Compilers before clang 15 do not record whether an enum is signed, so that what is above has two
readings."""

ADDRESS = "address"
ADDRESS_BYTES = 16


class AbiError(ValueError):
    """A type in the ABI file breaks one of its rules; the text names the field."""


def read_enums(types: btf.Btf) -> Iterator[tuple[str, tuple[tuple[str, int], ...]]]:
    """Every named enum with its constants, by name. Raises AbiError."""
    found = [*types.named(btf.KIND_ENUM), *types.named(btf.KIND_ENUM64)]
    for enum in sorted(found, key=lambda each: each.name):
        for name, value in enum.values:
            if enum.kind == btf.KIND_ENUM and not 0 <= value <= ENUM_VALUE_MAX:
                raise AbiError(f"{name} in enum {enum.name} is not between 0 and {ENUM_VALUE_MAX}")
        yield enum.name, enum.values


def read_structs(types: btf.Btf) -> Iterator[Struct]:
    """Every named struct but `address`, which is 16 bytes wherever it stands. Raises AbiError."""
    for found in sorted(types.named(btf.KIND_STRUCT), key=lambda each: each.name):
        if found.name == ADDRESS:
            if found.size != ADDRESS_BYTES:
                raise AbiError(f"struct {ADDRESS} has {found.size} bytes, not {ADDRESS_BYTES}")
            continue
        yield read_struct(types, found)


def read_struct(types: btf.Btf, found: btf.Type) -> Struct:
    """One struct's layout. Raises AbiError."""
    fields = []
    at = 0
    for member in found.members:
        where = f"{found.name}.{member.name}"
        if member.bits or member.offset_bits % 8:
            raise AbiError(f"{where} is a bit field; use a whole __u8 and an enum of flags")
        if member.offset_bits // 8 != at:
            raise AbiError(
                f"{member.offset_bits // 8 - at} bytes of padding before {where}; name them reserved"
            )
        kind, size = _read_kind(types, member, where)
        fields.append(Field(member.name, at, size, kind))
        at += size
    if at != found.size:
        raise AbiError(f"{found.size - at} bytes of padding at the end of {found.name}; name them reserved")
    return Struct(found.name, found.size, tuple(fields))


def _read_kind(types: btf.Btf, member: btf.Member, where: str) -> tuple[str, int]:
    size = types.size(member.type_id)
    declared = types.resolve(member.type_id)
    if declared.kind == btf.KIND_TYPEDEF and declared.name in SCALARS:
        return SCALARS[declared.name], size
    if declared.kind == btf.KIND_STRUCT and declared.name == ADDRESS:
        return "bytes", size
    if declared.kind == btf.KIND_ARRAY:
        element = types.resolve(declared.target)
        if element.name in NATIVE_ELEMENTS or member.name.startswith("reserved"):
            return "bytes", size
    raise AbiError(f"{where} has a type without a fixed size or byte order; use one of {', '.join(SCALARS)}")
