"""Rows of another version of a struct: fields find each other by name."""

from hypothesis import given
from hypothesis import strategies as st

from datapath.abi.convert import converter, per_cpu, same
from datapath.abi.layout import Field, Struct

SIZES = {"u8": 1, "u16": 2, "u32": 4, "u64": 8, "be16": 2, "be32": 4, "be64": 8}


def struct_of(*fields: tuple[str, str]) -> Struct:
    """Without holes."""
    found, at = [], 0
    for name, kind in fields:
        size = SIZES.get(kind, 16)
        found.append(Field(name, at, size, kind))
        at += size
    return Struct("row", at, tuple(found))


def test_a_layout_that_stands_is_copied() -> None:
    """Byte for byte, and it can be told that nothing changes."""
    layout = struct_of(("a", "u32"), ("b", "be16"))
    assert converter(layout, layout) is same


def test_fields_are_found_by_name() -> None:
    """In any order; what is new is zero, what is gone is dropped."""
    old = struct_of(("a", "u16"), ("gone", "u64"), ("b", "be16"))
    new = struct_of(("b", "be16"), ("fresh", "u32"), ("a", "u16"))
    row = (7).to_bytes(2, "little") + b"\xff" * 8 + (9).to_bytes(2, "big")
    assert converter(old, new)(row) == (9).to_bytes(2, "big") + bytes(4) + (7).to_bytes(2, "little")


@given(st.sampled_from(sorted(SIZES)), st.sampled_from(sorted(SIZES)), st.data())
def test_a_number_keeps_its_value_or_the_row_stays_behind(old_kind: str, new_kind: str, data: st.DataObject) -> None:
    """Whatever its width and byte order become."""
    value = data.draw(st.integers(0, (1 << 8 * SIZES[old_kind]) - 1))
    order = {True: "big", False: "little"}
    raw = value.to_bytes(SIZES[old_kind], order[old_kind.startswith("be")])  # type: ignore[arg-type]
    found = converter(struct_of(("a", old_kind), ("x", "u8")), struct_of(("a", new_kind)))(raw + b"\0")
    if value >> 8 * SIZES[new_kind]:
        assert found is None
    else:
        assert found is not None
        assert int.from_bytes(found, order[new_kind.startswith("be")]) == value  # type: ignore[arg-type]


def test_bytes_are_kept_only_in_their_number() -> None:
    """An address does not become a number, nor the other way round; what is reserved stays zero."""
    old = struct_of(("a", "bytes"), ("b", "u32"), ("reserved", "u16"))
    new = struct_of(("a", "bytes"), ("b", "bytes"), ("reserved", "u32"))
    assert converter(old, new)(b"\1" * 22) == b"\1" * 16 + bytes(20)


def test_every_cpu_has_its_own_row() -> None:
    """Each in a multiple of eight bytes, before and after."""
    old, new = struct_of(("a", "u32"), ("b", "u64")), struct_of(("b", "u64"), ("a", "u32"), ("c", "u64"))
    value = b"".join(
        cpu.to_bytes(4, "little") + (cpu * 10).to_bytes(8, "little") + bytes(4) for cpu in (1, 2)
    )
    found = per_cpu(converter(old, new), old.size, new.size)(value)
    assert found == b"".join(
        (cpu * 10).to_bytes(8, "little") + cpu.to_bytes(4, "little") + bytes(12) for cpu in (1, 2)
    )
