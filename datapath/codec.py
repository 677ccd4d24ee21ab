"""Typed rows to the kernel's bytes and back, and addresses to their 16 bytes and back.

Belongs here: the one encoding of every table. Tables with a map get the layout of bpf/abi.h
(datapath/abi/types.py); attachments, routes and neighbours, which have no C struct, are msgpack arrays. Does
not belong here: which rows there should be.

A row that does not fit its struct is a bug of whoever derived it: ValueError, naming table and field.
"""

import ipaddress
import re
import struct
from collections.abc import Callable, Mapping, Sequence
from itertools import starmap
from operator import itemgetter
from typing import Any, NamedTuple

from msgspec import msgpack

from datapath.abi.layout import Struct
from datapath.abi.types import STRUCTS
from datapath.tables import IPV4_PREFIX, TABLES

FORMATS = {"u8": "B", "u16": "H", "u32": "I", "u64": "Q"}
RESERVED = "reserved"

Encode = Callable[[Any], bytes]
EncodeAll = Callable[[Sequence[Any]], list[bytes]]
Decode = Callable[[bytes], Any]


class StructCodec:
    """One C struct and the NamedTuple with its fields' names, in its order; fields called reserved* are
    zero."""

    def __init__(self, kind: type[Any], layout: Struct) -> None:
        fields = [field for field in layout.fields if not field.name.startswith(RESERVED)]
        names = tuple(field.name for field in fields)
        if names != kind._fields:
            raise ValueError(
                f"{kind.__name__} has the fields {kind._fields}, struct {layout.name} has {names}"
            )
        self._kind = kind
        self._layout = layout
        parts = []
        for field in layout.fields:
            if field.name.startswith(RESERVED):
                parts.append(f"{field.size}x")
            else:
                parts.append(FORMATS.get(field.kind, f"{field.size}s"))
        self._struct = struct.Struct("=" + "".join(parts))
        if self._struct.size != layout.size:
            raise ValueError(
                f"struct {layout.name} is {layout.size} bytes, its fields are {self._struct.size}"
            )
        self._raw = tuple((i, field.size) for i, field in enumerate(fields) if field.kind == "bytes")
        self._swapped = tuple(
            (i, field.size) for i, field in enumerate(fields) if field.kind.startswith("be")
        )

    @property
    def size(self) -> int:
        """Bytes of the struct."""
        return self._layout.size

    def encode(self, row: Any) -> bytes:
        """Raises ValueError for a value that its field cannot hold."""
        for i, size in self._raw:
            if len(row[i]) != size:
                raise ValueError(self._misfit(row))
        try:
            if self._swapped:
                row = list(row)
                for i, size in self._swapped:
                    row[i] = row[i].to_bytes(size, "big")
            return self._struct.pack(*row)
        except (struct.error, OverflowError) as error:
            raise ValueError(self._misfit(row)) from error

    def encode_all(self, rows: Sequence[Any]) -> list[bytes]:
        """As `encode` each, in a third of the time where no field's bytes are turned."""
        if not self._swapped and all(
            set(map(len, map(itemgetter(i), rows))) <= {size} for i, size in self._raw
        ):
            try:
                return list(starmap(self._struct.pack, rows))
            except struct.error:
                # Row by row says which.
                pass
        return [self.encode(row) for row in rows]

    def decode(self, encoded: bytes) -> Any:
        """Raises ValueError for bytes of another length."""
        if len(encoded) != self._layout.size:
            raise ValueError(
                f"{len(encoded)} bytes for struct {self._layout.name}, which has {self._layout.size}"
            )
        values = self._struct.unpack(encoded)
        if self._swapped:
            mutable = list(values)
            for i, _ in self._swapped:
                mutable[i] = int.from_bytes(mutable[i], "big")
            return self._kind(*mutable)
        return self._kind._make(values)

    def _misfit(self, row: Any) -> str:
        kinds = ", ".join(
            f"{field.name}: {field.kind}[{field.size}]"
            for field in self._layout.fields
            if not field.name.startswith(RESERVED)
        )
        return f"{tuple(row)} does not fit struct {self._layout.name} ({kinds})"


class _TableCodec(NamedTuple):
    encode_keys: EncodeAll
    encode_rows: EncodeAll
    encode_key: Encode
    encode_row: Encode
    decode_key: Decode
    decode_row: Decode


def struct_name(kind: type[Any]) -> str:
    """EndpointKey -> endpoint_key: the C struct that a NamedTuple stands for."""
    return re.sub(r"(?<!^)(?=[A-Z])", "_", kind.__name__).lower()


def struct_codec(kind: type[Any]) -> StructCodec:
    """The codec of a NamedTuple named after its C struct. Raises ValueError when their fields differ."""
    return StructCodec(kind, STRUCTS[struct_name(kind)])


def _table_codec(key: type[Any], row: type[Any], is_map: bool) -> _TableCodec:
    if is_map:
        keys, rows = struct_codec(key), struct_codec(row)
        return _TableCodec(
            keys.encode_all, rows.encode_all, keys.encode, rows.encode, keys.decode, rows.decode
        )
    encode = msgpack.Encoder().encode

    def encode_all(rows: Sequence[Any]) -> list[bytes]:
        return list(map(encode, rows))

    return _TableCodec(
        encode_all, encode_all, encode, encode, msgpack.Decoder(key).decode, msgpack.Decoder(row).decode
    )


_CODECS = {table.name: _table_codec(table.key, table.row, bool(table.map)) for table in TABLES.values()}


_OCTETS = {str(number): number for number in range(256)}
"""Only the canonical texts: "01" is none of them."""


def encode_key(table: str, key: Any) -> bytes:
    """The bytes of a key. Raises ValueError for a value that its field cannot hold."""
    return _CODECS[table].encode_key(key)


def encode_row(table: str, row: Any) -> bytes:
    """The bytes of a row. Raises ValueError for a value that its field cannot hold."""
    return _CODECS[table].encode_row(row)


def decode_key(table: str, encoded: bytes) -> Any:
    """The typed key. Raises ValueError for bytes that are none."""
    return _CODECS[table].decode_key(encoded)


def decode_row(table: str, encoded: bytes) -> Any:
    """The typed row. Raises ValueError for bytes that are none."""
    return _CODECS[table].decode_row(encoded)


def encode_rows(table: str, rows: Mapping[Any, Any]) -> dict[bytes, bytes]:
    """Many rows at once. Raises ValueError for the first that does not fit."""
    codec = _CODECS[table]
    return dict(zip(codec.encode_keys(tuple(rows)), codec.encode_rows(tuple(rows.values())), strict=True))


def address_bytes(text: str) -> bytes:
    """16 bytes of an address; IPv4 as ::ffff:a.b.c.d. Raises ValueError."""
    try:
        a, b, c, d = text.split(".")
        return IPV4_PREFIX + bytes((_OCTETS[a], _OCTETS[b], _OCTETS[c], _OCTETS[d]))
    except (ValueError, KeyError):
        if ":" in text:
            return ipaddress.IPv6Address(text).packed
        raise ValueError(f"{text!r} is no address; right would be 10.0.0.1 or fd00::1") from None


def _ipv4_text(packed: bytes) -> str:
    a, b, c, d = packed
    return f"{a}.{b}.{c}.{d}"


def address_text(address: bytes) -> str:
    """The usual text of 16 bytes: 10.0.0.1 or fd00::1. Raises ValueError for another length."""
    if len(address) != 16:
        raise ValueError(f"an address has 16 bytes, not {len(address)}")
    if address.startswith(IPV4_PREFIX):
        return _ipv4_text(address[12:])
    return str(ipaddress.IPv6Address(address))


def prefix_bytes(text: str) -> tuple[int, bytes]:
    """Prefix length in the 128-bit form, and the 16 bytes: "10.1.0.0/24" -> (120, ...). An address alone is
    its own prefix. Raises ValueError, also for bits set beyond the prefix."""
    address, slash, length = text.partition("/")
    packed = address_bytes(address)
    skipped = 0 if ":" in address else 96
    if not slash:
        return 128, packed
    if not (length.isascii() and length.isdigit() and int(length) <= 128 - skipped):
        raise ValueError(f"prefix length {length!r} of {text!r} is not between 0 and {128 - skipped}")
    bits = skipped + int(length)
    if int.from_bytes(packed, "big") & ((1 << (128 - bits)) - 1):
        raise ValueError(f"{text!r} has bits set beyond its prefix length")
    return bits, packed


def prefix_text(prefix_length: int, address: bytes) -> str:
    """(120, ...) -> "10.1.0.0/24"; the length of the 128-bit form. Raises ValueError."""
    if not 0 <= prefix_length <= 128:
        raise ValueError(f"prefix length {prefix_length} is not between 0 and 128")
    text = address_text(address)
    if ":" not in text and prefix_length >= 96:
        return f"{text}/{prefix_length - 96}"
    return f"{ipaddress.IPv6Address(address).compressed}/{prefix_length}"
