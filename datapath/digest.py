"""The digest of a table: one number for all its rows, whatever their order, kept up with each row added or
removed.

It is the sum, modulo 2**128, of a 128-bit hash of each row. Belongs here: hashing and summing. Does not
belong here: what to compare with what (realization.py).
"""

from collections.abc import Iterable, Mapping
from hashlib import blake2b

MODULUS = 1 << 128


def row_hash(key: bytes, value: bytes) -> int:
    """The key's length stands in front, so that no other split into key and value gives the same bytes."""
    framed = len(key).to_bytes(4, "little") + key + value
    return int.from_bytes(blake2b(framed, digest_size=16).digest(), "little")


class TableDigest:
    """The digest of a table that changes row by row."""

    __slots__ = ("_sum",)

    def __init__(self, rows: Mapping[bytes, bytes] | None = None) -> None:
        self._sum = 0
        if rows:
            self.add_all(rows.items())

    def add_all(self, rows: Iterable[tuple[bytes, bytes]]) -> None:
        """Rows that are not yet in the table; as add, in two thirds of the time."""
        number, total = int.from_bytes, self._sum
        for key, value in rows:
            framed = len(key).to_bytes(4, "little") + key + value
            total += number(blake2b(framed, digest_size=16).digest(), "little")
        self._sum = total % MODULUS

    def add(self, key: bytes, value: bytes) -> None:
        """A row that is not yet in the table."""
        self._sum = (self._sum + row_hash(key, value)) % MODULUS

    def remove(self, key: bytes, value: bytes) -> None:
        """A row that is in the table, with the value it has there."""
        self._sum = (self._sum - row_hash(key, value)) % MODULUS

    def text(self) -> str:
        """32 hexadecimal digits."""
        return f"{self._sum:032x}"


def digest_of(rows: Mapping[bytes, bytes]) -> str:
    """The digest of all rows of a table: 32 hexadecimal digits; of none, 32 zeros."""
    return TableDigest(rows).text()
