"""What a C struct looks like in memory, as the generated types.py describes it.

Belongs here: the two descriptions. Does not belong here: how they are read from an object file (btf.py),
and how rows become bytes (datapath/codec.py).
"""

from typing import NamedTuple


class Field(NamedTuple):
    """`offset` and `size` in bytes; `kind` is one of u8 u16 u32 u64 be16 be32 be64 bytes."""

    name: str
    offset: int
    size: int
    kind: str


class Struct(NamedTuple):
    """A struct without holes: the fields follow one another and fill `size` bytes."""

    name: str
    size: int
    fields: tuple[Field, ...]
