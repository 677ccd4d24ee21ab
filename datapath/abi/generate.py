"""Writes datapath/abi/types.py from the BTF of bpf/abi_types.bpf.c.

    python -m datapath.abi.generate bpf/abi_types.bpf.o > datapath/abi/types.py
    python -m datapath.abi.generate --check bpf/abi_types.bpf.o     (exit 1 and a diff if it is stale)

Belongs here: how the C types of the ABI are written down in Python. Does not belong here: which may stand in it
(structs.py). The same object file gives the same text.
"""

import argparse
import difflib
import sys
from pathlib import Path

from datapath.abi import btf
from datapath.abi.structs import AbiError, read_enums, read_structs

TYPES_FILE = Path(__file__).with_name("types.py")

HEADER = '''"""Generated from bpf/abi.h, do not edit. Written anew by

    make -C bpf && python -m datapath.abi.generate bpf/abi_types.bpf.o > datapath/abi/types.py

ENUMS maps the name of each C enum to its constants, STRUCTS the name of each struct to its layout; each
constant also stands here under its own name.
"""

from collections.abc import Mapping

from datapath.abi.layout import Field, Struct

'''


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
