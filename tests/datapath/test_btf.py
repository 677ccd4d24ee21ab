"""The reader of .BTF, and the rules of the ABI file that the generator enforces."""

import subprocess
import sysconfig
from pathlib import Path

import pytest

from datapath.abi import btf, generate, structs
from datapath.abi.layout import Field, Struct

PREAMBLE = "#include <linux/types.h>\nstruct address { __be32 words[4]; };\n"


def compile_c(directory: Path, text: str) -> bytes:
    """An object file of a C text that uses uapi types."""
    source = directory / "probe.c"
    source.write_text(PREAMBLE + text)
    headers = f"/usr/include/{sysconfig.get_config_var('MULTIARCH')}"
    command = ["clang", "-O2", "-g", "-target", "bpf", "-idirafter", headers, "-c", str(source)]
    subprocess.run([*command, "-o", str(directory / "probe.o")], check=True)
    return (directory / "probe.o").read_bytes()


def btf_section(records: bytes, strings: bytes) -> bytes:
    """A .BTF section of type records and strings."""
    sizes = (0, len(records), len(records), len(strings))
    return btf.HEADER.pack(btf.BTF_MAGIC, 1, 0, btf.HEADER.size, *sizes) + records + strings


def test_fields_have_the_compilers_offsets(tmp_path: Path) -> None:
    """Scalars, network order, byte arrays and addresses come out with offset, size and kind."""
    elf = compile_c(
        tmp_path,
        """struct row { struct address at; __u64 big; __be16 port; __u8 mac[6]; __be32 word; __u32 plain;
                        __u16 reserved[2]; __u8 tail[4]; };
           struct row *use;""",
    )
    assert list(structs.read_structs(btf.parse(elf))) == [
        Struct(
            "row",
            48,
            (
                Field("at", 0, 16, "bytes"),
                Field("big", 16, 8, "u64"),
                Field("port", 24, 2, "be16"),
                Field("mac", 26, 6, "bytes"),
                Field("word", 32, 4, "be32"),
                Field("plain", 36, 4, "u32"),
                Field("reserved", 40, 4, "bytes"),
                Field("tail", 44, 4, "bytes"),
            ),
        )
    ]


def test_enums_are_read(tmp_path: Path) -> None:
    """Every constant with its number, in the order of the header."""
    elf = compile_c(
        tmp_path, "enum small { A = 1, B = 7 }; enum other { C = 2147483647 }; enum small u; enum other v;"
    )
    assert dict(structs.read_enums(btf.parse(elf))) == {
        "small": (("A", 1), ("B", 7)),
        "other": (("C", 2147483647),),
    }


def test_an_enum_value_with_two_readings_is_refused(tmp_path: Path) -> None:
    """Older compilers write -1 and 4294967295 the same way."""
    types = btf.parse(compile_c(tmp_path, "enum odd { MINUS = -1 }; enum odd use;"))
    with pytest.raises(structs.AbiError, match="MINUS in enum odd is not between 0 and 2147483647"):
        list(structs.read_enums(types))


def test_an_enum64_is_read() -> None:
    """The two halves make one number; signed where the kind flag is set."""
    strings = b"\0wide\0BIG\0"
    record = (1).to_bytes(4, "little") + (btf.KIND_ENUM64 << 24 | 1 << 31 | 1).to_bytes(4, "little")
    record += (8).to_bytes(4, "little")
    record += (
        (6).to_bytes(4, "little") + (0xFFFFFFFE).to_bytes(4, "little") + (0xFFFFFFFF).to_bytes(4, "little")
    )
    types = btf.parse_section(
        btf.HEADER.pack(btf.BTF_MAGIC, 1, 0, 24, 0, len(record), len(record), len(strings)) + record + strings
    )
    assert dict(structs.read_enums(types)) == {"wide": (("BIG", -2),)}


@pytest.mark.parametrize(
    ("declaration", "complaint"),
    [
        ("struct row { __u8 a; __u32 b; }; struct row *use;", "3 bytes of padding before row.b"),
        ("struct row { __u32 a; __u8 b; }; struct row *use;", "3 bytes of padding at the end of row"),
        ("struct row { __u32 a : 3; __u32 b : 29; }; struct row *use;", "row.a is a bit field"),
        ("struct row { int a; }; struct row *use;", "row.a has a type without a fixed size"),
        ("struct row { __u32 many[2]; }; struct row *use;", "row.many has a type without a fixed size"),
    ],
)
def test_what_the_abi_forbids_is_refused(tmp_path: Path, declaration: str, complaint: str) -> None:
    """Padding, bit fields and types without a fixed layout are named by struct and field."""
    types = btf.parse(compile_c(tmp_path, declaration))
    with pytest.raises(structs.AbiError, match=complaint):
        list(structs.read_structs(types))


def test_one_name_in_two_enums_is_refused(tmp_path: Path) -> None:
    """C would refuse it within one file; two objects' enums must not shadow each other in Python either."""
    strings = b"\0one\0two\0SAME\0"
    records = b""
    for name_at in (1, 5):
        records += name_at.to_bytes(4, "little") + (btf.KIND_ENUM << 24 | 1).to_bytes(4, "little")
        records += (4).to_bytes(4, "little") + (9).to_bytes(4, "little") + (1).to_bytes(4, "little")
    raw = (
        btf.HEADER.pack(btf.BTF_MAGIC, 1, 0, 24, 0, len(records), len(records), len(strings))
        + records
        + strings
    )
    with pytest.raises(structs.AbiError, match="SAME stands in enum one and in enum two"):
        generate.render_types(btf.parse_section(raw))


@pytest.mark.parametrize(
    ("elf", "complaint"),
    [(b"", "not a little-endian ELF64"), (b"\x7fELF\x02\x02" + bytes(64), "not a little-endian ELF64")],
)
def test_other_files_are_refused(elf: bytes, complaint: str) -> None:
    """A file that is no object says so, instead of failing at some offset."""
    with pytest.raises(btf.BtfError, match=complaint):
        btf.parse(elf)


def test_an_object_without_debug_information_is_refused(tmp_path: Path) -> None:
    """The error says which compiler flag is missing."""
    (tmp_path / "bare.c").write_text("int x;\n")
    command = ["clang", "-target", "bpf", "-c", str(tmp_path / "bare.c"), "-o", str(tmp_path / "bare.o")]
    subprocess.run(command, check=True)
    with pytest.raises(btf.BtfError, match=r"no section \.BTF; compile with -g"):
        btf.parse((tmp_path / "bare.o").read_bytes())


def test_constants_of_an_object_are_found(objects_dir: Path) -> None:
    """Load-time configuration is found by name, with its offset in .rodata."""
    found = btf.variables((objects_dir / "endpoint.bpf.o").read_bytes(), ".rodata")
    names = ("config_underlay_ifindex", "config_notify_verdicts")
    assert [found[name][1] for name in names] == [4, 4]
    assert found[names[0]][0] != found[names[1]][0]
