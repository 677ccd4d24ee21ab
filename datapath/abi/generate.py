"""Writes datapath/abi/types.py from the BTF of bpf/abi_types.bpf.c.

    python -m datapath.abi.generate bpf/abi_types.bpf.o > datapath/abi/types.py
    python -m datapath.abi.generate --check bpf/abi_types.bpf.o     (exit 1 and a diff if it is stale)

Belongs here: which C types may stand in the ABI, and how they are written down in Python. The same object
file gives the same text.
"""

import argparse
import difflib
import sys
from collections.abc import Iterator
from pathlib import Path

from datapath.abi import btf
from datapath.abi.layout import Field, Struct

TYPES_FILE = Path(__file__).with_name("types.py")

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

HEADER = '''"""Generated from bpf/abi.h, do not edit. Written anew by

    make -C bpf && python -m datapath.abi.generate bpf/abi_types.bpf.o > datapath/abi/types.py

ENUMS maps the name of each C enum to its constants, STRUCTS the name of each struct to its layout; each
constant also stands here under its own name.
"""

from collections.abc import Mapping

from datapath.abi.layout import Field, Struct

'''


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
        yield _read_struct(types, found)


def _read_struct(types: btf.Btf, found: btf.Type) -> Struct:
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


def render(elf: bytes) -> str:
    """The text of types.py for an object file. Raises AbiError, btf.BtfError."""
    return render_types(btf.parse(elf))


def render_types(types: btf.Btf) -> str:
    """The text of types.py. Raises AbiError."""
    enums = list(read_enums(types))
    structs = list(read_structs(types))
    lines = [HEADER]
    seen: dict[str, str] = {}
    for enum, values in enums:
        lines.append(f"# enum {enum}\n")
        for name, value in values:
            if seen.setdefault(name, enum) != enum:
                raise AbiError(f"{name} stands in enum {seen[name]} and in enum {enum}")
            lines.append(f"{name} = {value}\n")
        lines.append("\n")
    lines.append("ENUMS: Mapping[str, Mapping[str, int]] = {\n")
    for enum, values in enums:
        lines.append(f'    "{enum}": {{\n')
        lines.extend(f'        "{name}": {name},\n' for name, _ in values)
        lines.append("    },\n")
    lines.append("}\n\nSTRUCTS: Mapping[str, Struct] = {\n")
    for struct in structs:
        lines.append(
            f'    "{struct.name}": Struct(\n        "{struct.name}",\n        {struct.size},\n        (\n'
        )
        lines.extend(
            f'            Field("{field.name}", {field.offset}, {field.size}, "{field.kind}"),\n'
            for field in struct.fields
        )
        lines.append("        ),\n    ),\n")
    lines.append("}\n")
    return "".join(lines)


def difference(elf: bytes, written: str) -> str:
    """What would change in types.py, as a unified diff; empty where it is up to date."""
    return "".join(
        difflib.unified_diff(
            written.splitlines(keepends=True), render(elf).splitlines(keepends=True), "types.py", "bpf/abi.h"
        )
    )


def main() -> int:
    """Prints types.py, or compares it with --check."""
    parser = argparse.ArgumentParser(
        prog="python -m datapath.abi.generate", description=__doc__.splitlines()[0]
    )
    parser.add_argument("object", type=Path, help="compiled bpf/abi_types.bpf.c")
    parser.add_argument(
        "--check", action="store_true", help="compare with the committed file instead of printing"
    )
    arguments = parser.parse_args()
    try:
        elf = arguments.object.read_bytes()
        if not arguments.check:
            sys.stdout.write(render(elf))
            return 0
        stale = difference(elf, TYPES_FILE.read_text())
    except (AbiError, btf.BtfError, OSError) as error:
        print(f"{arguments.object}: {error}", file=sys.stderr)
        return 2
    sys.stdout.write(stale)
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
