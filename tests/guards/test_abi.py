"""Drift between bpf/abi.h, datapath/abi/types.py and datapath/tables.py stops the build here."""

from pathlib import Path

import pytest

from datapath import codec, tables
from datapath.abi import generate, types

WITH_MAP = [table for table in tables.TABLES.values() if table.map]


def test_generated_types_are_those_of_the_header(objects_dir: Path) -> None:
    """types.py is what a fresh compile of bpf/abi.h gives, byte for byte."""
    elf = (objects_dir / "abi_types.bpf.o").read_bytes()
    assert generate.difference(elf, generate.TYPES_FILE.read_text()) == ""


def test_a_stale_file_is_noticed(objects_dir: Path) -> None:
    """The comparison fails for one changed number, so that the test above can fail."""
    elf = (objects_dir / "abi_types.bpf.o").read_bytes()
    stale = generate.TYPES_FILE.read_text().replace("POLICY_DENIED = 133", "POLICY_DENIED = 134")
    assert "-POLICY_DENIED = 134" in generate.difference(elf, stale)


def test_generation_is_deterministic(objects_dir: Path) -> None:
    """The same object gives the same text."""
    elf = (objects_dir / "abi_types.bpf.o").read_bytes()
    assert generate.render(elf) == generate.render(elf)


@pytest.mark.parametrize("table", WITH_MAP, ids=lambda table: table.name)
@pytest.mark.parametrize("part", ["key", "row"])
def test_row_types_have_the_fields_of_their_structs(table: tables.Table, part: str) -> None:
    """Each NamedTuple has the struct's fields without the reserved ones, by the same names in the same
    order."""
    kind = getattr(table, part)
    struct = types.STRUCTS[codec.struct_name(kind)]
    names = tuple(field.name for field in struct.fields if not field.name.startswith("reserved"))
    assert kind._fields == names


@pytest.mark.parametrize("table", WITH_MAP, ids=lambda table: table.name)
def test_every_map_is_declared_with_its_structs(table: tables.Table) -> None:
    """maps.h declares the map with the key and row types that the Python side encodes."""
    text = (Path(generate.__file__).parents[2] / "bpf" / "maps.h").read_text()
    declaration = text.partition(f"}} {table.map} SEC")[0].rpartition("struct {")[2]
    # BTF wants an integer key for an array: there the struct stands in a comment.
    assert f"struct {codec.struct_name(table.key)}" in declaration
    assert f"__type(value, struct {codec.struct_name(table.row)});" in declaration


def test_no_drop_reason_has_two_names() -> None:
    """A number means one thing."""
    reasons = types.ENUMS["drop_reason"]
    assert len(set(reasons.values())) == len(reasons)
