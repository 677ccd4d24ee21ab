"""Bytes and back, for every table; addresses and prefixes as text."""

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datapath import codec
from datapath.abi.types import STRUCTS
from datapath.tables import TABLES, BackendKey, BackendRow, EndpointKey, IpcacheKey, IpcacheRow, PolicyKey
from tests.datapath.rows import ADDRESSES, table_rows


@given(table_rows())
def test_round_trip(row: tuple) -> None:
    """Any key and row of any table come back as they went in."""
    table, key, value = row
    assert codec.decode_key(table, codec.encode_key(table, key)) == key
    assert codec.decode_row(table, codec.encode_row(table, value)) == value


@given(table_rows())
def test_bulk_is_the_same_as_single(row: tuple) -> None:
    """encode_rows gives the bytes of encode_key and encode_row."""
    table, key, value = row
    assert codec.encode_rows(table, {key: value}) == {
        codec.encode_key(table, key): codec.encode_row(table, value)
    }


@given(st.lists(table_rows(), max_size=12))
def test_many_rows_are_the_same_as_each(found: list[tuple]) -> None:
    """Of every table: in the order of the rows."""
    for table in TABLES:
        rows = {key: value for name, key, value in found if name == table}
        encoded = [(codec.encode_key(table, key), codec.encode_row(table, value)) for key, value in rows.items()]
        assert list(codec.encode_rows(table, rows).items()) == encoded


@pytest.mark.parametrize(
    ("key", "row"),
    [
        (IpcacheKey(128, bytes(15)), IpcacheRow(bytes(16), 1, 0)),
        (IpcacheKey(128, bytes(16)), IpcacheRow(bytes(16), 2**32, 0)),
    ],
    ids=["too few bytes", "a number too large"],
)
def test_a_row_among_many_that_does_not_fit_is_named(key: IpcacheKey, row: IpcacheRow) -> None:
    """As alone: with its struct and fields."""
    right = {IpcacheKey(128, bytes(15) + bytes([n])): IpcacheRow(bytes(16), n, 0) for n in range(3)}
    with pytest.raises(ValueError, match="does not fit struct ipcache"):
        codec.encode_rows("ipcache", {**right, key: row})


@given(table_rows())
def test_size_is_that_of_the_struct(row: tuple) -> None:
    """Tables with a map give exactly the bytes that the map's key and value have."""
    table, key, value = row
    if TABLES[table].map:
        assert len(codec.encode_key(table, key)) == STRUCTS[codec.struct_name(TABLES[table].key)].size
        assert len(codec.encode_row(table, value)) == STRUCTS[codec.struct_name(TABLES[table].row)].size


def test_ports_are_in_network_order() -> None:
    """A be16 field stands high byte first, and reserved bytes are zero."""
    row = BackendRow(codec.address_bytes("10.0.0.1"), 0x1234, 0)
    assert codec.encode_row("backends", row)[16:] == b"\x12\x34\x00\x00\x00\x00\x00\x00"


def test_policy_key_layout() -> None:
    """The policy key matches the C struct byte by byte."""
    key = PolicyKey(1, 2, 80, 16, 6, 1)
    assert codec.encode_key("policy", key) == b"\1\0\0\0\2\0\0\0\x00\x50\x10\x06\x01\0\0\0"


@pytest.mark.parametrize(
    ("table", "key"),
    [
        ("endpoints", EndpointKey(b"\1\2\3\4")),
        ("endpoints", EndpointKey(bytes(17))),
        ("policy", PolicyKey(1, 2, 65536, 16, 6, 1)),
        ("policy", PolicyKey(1, 2, -1, 16, 6, 1)),
        ("backends", BackendKey(2**64, 0)),
    ],
)
def test_misfit_is_refused(table: str, key: tuple) -> None:
    """A value that its field cannot hold is refused, with the struct named, and never cut to size."""
    with pytest.raises(ValueError, match="does not fit struct"):
        codec.encode_key(table, key)


def test_decoding_other_lengths_is_refused() -> None:
    """Bytes of another layout are no row."""
    with pytest.raises(ValueError, match="struct endpoint_row"):
        codec.decode_row("endpoints", bytes(27))


@given(st.ip_addresses())
def test_address_round_trip(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> None:
    """The usual text of an address comes back from its 16 bytes."""
    mapped = getattr(address, "ipv4_mapped", None)
    assert codec.address_text(codec.address_bytes(str(address))) == str(mapped or address)


@pytest.mark.parametrize(
    "text", ["", "10.0.0", "10.0.0.256", "01.2.3.4", " 1.2.3.4", "1_0.2.3.4", "+1.2.3.4", "x", "fd00::g"]
)
def test_bad_address_is_refused(text: str) -> None:
    """What is no address is refused, also where int() would take its parts."""
    with pytest.raises(ValueError):
        codec.address_bytes(text)


def test_prefix_of_ipv4_counts_in_128_bits() -> None:
    """An IPv4 /24 is a /120 of the 128-bit form."""
    assert codec.prefix_bytes("10.1.0.0/24") == (120, codec.address_bytes("10.1.0.0"))


@given(ADDRESSES, st.integers(0, 128))
def test_prefix_round_trip(address: bytes, length: int) -> None:
    """A prefix comes back from its text, whatever the family."""
    masked = int.from_bytes(address, "big") >> (128 - length) << (128 - length)
    prefix = length, masked.to_bytes(16, "big")
    assert codec.prefix_bytes(codec.prefix_text(*prefix)) == prefix


@given(st.integers(0, 32), st.integers(0, 2**32 - 1))
def test_ipv4_prefix_text(length: int, number: int) -> None:
    """IPv4 prefixes are written as people write them."""
    network = ipaddress.ip_network((number >> (32 - length) << (32 - length), length))
    assert codec.prefix_text(*codec.prefix_bytes(str(network))) == str(network)


@pytest.mark.parametrize(
    "text", ["10.0.0.0/33", "fd00::/129", "10.0.0.0/", "10.0.0.0/-1", "10.0.0.1/24", "10.0.0.0/2_4"]
)
def test_bad_prefix_is_refused(text: str) -> None:
    """A wrong length, or bits beyond it, are refused."""
    with pytest.raises(ValueError):
        codec.prefix_bytes(text)
