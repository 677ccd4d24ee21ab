"""A row of one version of a struct as a row of another: fields find each other by name. Pure.

Belongs here: the conversion of bytes. Does not belong here: where old rows come from (kernel/layouts.py). A field that
only the new struct has is zero, and one that only the old has is dropped; hence the rule of bpf/abi.h that zero means
"as before" in a new field, and that no number changes its meaning.
"""

from collections.abc import Callable, Sequence

from datapath.abi.layout import Field, Struct

Convert = Callable[[bytes], bytes | None]
RESERVED = "reserved"
BIG_ENDIAN = "be"
PER_CPU_ALIGNMENT = 8
"""The kernel rounds each CPU's value up to it."""


def same(row: bytes) -> bytes:
    """Of a layout that has not changed."""
    return row


def converter(old: Struct, new: Struct) -> Convert:
    """None for a row that holds a number too large for its new field."""
    if (old.size, old.fields) == (new.size, new.fields):
        return same
    known = {field.name: field for field in old.fields}
    pairs = [(known[field.name], field) for field in new.fields if _is_kept(field, known.get(field.name))]

    def convert(row: bytes) -> bytes | None:
        found = bytearray(new.size)
        for source, target in pairs:
            moved = _moved(row[source.offset : source.offset + source.size], source, target)
            if moved is None:
                return None
            found[target.offset : target.offset + target.size] = moved
        return bytes(found)

    return convert


def _is_kept(field: Field, before: Field | None) -> bool:
    """Numbers keep their value in any width; bytes mean what they meant only if there are as many."""
    if before is None or field.name.startswith(RESERVED):
        return False
    if "bytes" in (field.kind, before.kind):
        return (field.kind, field.size) == (before.kind, before.size)
    return True


def _moved(raw: bytes, source: Field, target: Field) -> bytes | None:
    if target.kind == source.kind:
        return raw
    value = int.from_bytes(raw, "big" if source.kind.startswith(BIG_ENDIAN) else "little")
    if value >> (8 * target.size):
        return None
    return value.to_bytes(target.size, "big" if target.kind.startswith(BIG_ENDIAN) else "little")


def per_cpu(convert: Convert, old_size: int, new_size: int) -> Convert:
    """The same for a value that holds every CPU's row, one after the other."""
    stride = _aligned(old_size)

    def convert_each(value: bytes) -> bytes | None:
        rows = [convert(value[at : at + old_size]) for at in range(0, len(value), stride)]
        return None if None in rows else _joined([row for row in rows if row is not None], new_size)

    return convert_each


def _joined(rows: Sequence[bytes], size: int) -> bytes:
    return b"".join(row.ljust(_aligned(size), b"\0") for row in rows)


def _aligned(size: int) -> int:
    return -(-size // PER_CPU_ALIGNMENT) * PER_CPU_ALIGNMENT
