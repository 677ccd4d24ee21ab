"""Whether a record is its named writer's own: its cursor says so.

Belongs here: what a reader believes of a record's key, by watch and by range. Does not belong here: sequences, tokens
and holes (watch.py), which a record meets after this. Pure.

An append writes the record and its writer's cursor in one transaction, and etcd's roles let nobody else write that
cursor (roles.py). The records' keys share a prefix, which every agent of a cluster may write: so a record alone proves
nothing. By watch, the cursor must come in the same revision; by range, where only a writer's last cursor is known, none
of its records may lie beyond it, and the one that it names must have its revision.
"""

from collections.abc import Mapping

import msgspec

from kvstore import keys
from kvstore.append import Cursor, decode_cursor, decode_record, encode_cursor
from kvstore.types import Record
from kvstore.watch import Tally, record_text

UNVOUCHED = "its writer's cursor does not vouch for it"


class Voucher(msgspec.Struct, frozen=True):
    """A writer's cursor, and the revision at which it moved."""

    sequence: int
    revision: int


def vouchers(cursors: Mapping[bytes, tuple[bytes, int]]) -> Mapping[str, Voucher]:
    """By "cluster/writer", of cursor keys with their values and revisions. One that cannot be read vouches for nothing:
    a writer can spoil its own, and must not stop those who read the others."""
    found = {}
    for key, (value, revision) in cursors.items():
        try:
            name, sequence = keys.parse_cursor_key(key), decode_cursor(value).sequence
        except ValueError:
            continue
        found[name] = Voucher(sequence, revision)
    return found


def stands(record: Record, known: Mapping[str, Voucher], head: int) -> bool:
    """Whether a record read by range may be its writer's, as the cursors were at revision `head`; of one above that
    nothing is known."""
    if record.revision > head:
        return True
    voucher = known.get(f"{record.cluster}/{record.writer}")
    if voucher is None:
        return False
    return record.sequence < voucher.sequence or (
        record.sequence == voucher.sequence and record.revision == voucher.revision
    )


class Hearing:
    """What a watch of records and cursors tells, change by change: an append's record comes just before its cursor."""

    def __init__(self, tally: Tally) -> None:
        """Nothing is heard yet."""
        self._tally = tally
        self._waiting: Record | None = None
        self._expected: tuple[bytes, bytes] = (b"", b"")

    def hear(self, key: bytes, value: bytes, revision: int) -> Record | None:
        """The record that this change proves to be its writer's."""
        if key.startswith(keys.LOG):
            self.settle()
            try:
                record = decode_record(key, value, revision)
            except ValueError as error:
                self._tally.refuse(f"record at revision {revision}", str(error))
                return None
            self._waiting = record
            cursor = Cursor(record.sequence, record.segment, record.token)
            self._expected = (keys.cursor_key(record.cluster, record.writer), encode_cursor(cursor))
        elif self._waiting is not None and self._waiting.revision == revision and self._expected == (key, value):
            record, self._waiting = self._waiting, None
            return record
        return None

    def settle(self) -> None:
        """No more changes of the last revision will come: what has not been vouched for by now is refused."""
        if self._waiting is not None:
            self._tally.refuse(record_text(self._waiting), UNVOUCHED)
            self._waiting = None
