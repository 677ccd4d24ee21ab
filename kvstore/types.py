"""What the log is made of: positions, records, claims. Values only; no I/O and no meaning of payloads."""

import enum
from typing import NewType

import msgspec

Revision = NewType("Revision", int)
"""A place in the one order of the log: etcd's mod_revision. 0 is before the first record."""

BATCH_BYTES_MAX = 1_000_000
"""Largest payload of one append; etcd refuses requests above 1.5 MiB (facts: request of 1,572,864 B fails)."""


class Record(msgspec.Struct, frozen=True):
    """One stored batch. `payload` is opaque here; `sequence` is dense per (cluster, writer), from 1."""

    revision: Revision
    cluster: str
    writer: str
    sequence: int
    token: int
    payload: bytes


class Position(msgspec.Struct, frozen=True, omit_defaults=True):
    """How far a reader has come: everything at or below `revision` is held.

    `sequences` maps "cluster/writer" to the last sequence held, so that a hole in a writer's dense
    sequence is seen whatever the watch delivered. `cluster_id` is etcd's own; a change means another database.
    `learns`: the sequences at `revision` are not known. The first record of a writer that is not in `sequences` is
    then believed whatever its sequence is, and what that writer sent between `revision` and it cannot be missed
    noticeably; from there on the writer's sequence is dense as ever. `is_record`: the last record held is at `revision`
    itself, so a store that has none there is another one.
    """

    revision: Revision = Revision(0)
    sequences: dict[str, int] = {}
    cluster_id: int = 0
    learns: bool = False
    is_record: bool = False


class Want(enum.Enum):
    """What a claim does with its key, and what must be so before."""

    TAKEN = "create it; it must be absent"
    HELD = "touch it, so that its revision moves; it must exist"
    FREED = "delete it; it must exist"


class Claim(msgspec.Struct, frozen=True):
    """A decision that must be unique across writers, made in the same transaction as its record.

    `key` is relative to the claims prefix, for example "identity/east/number/65537". `untouched_since`, of a key that
    is held or freed: it must not have been taken or held above this revision, the one that the decision stood at. A
    decision that rests on what another may give up holds the key; one that gives it up frees it if it is untouched.
    """

    key: str
    want: Want = Want.TAKEN
    value: bytes = b""
    untouched_since: int | None = None

    @property
    def compares(self) -> int:
        """What it costs a transaction, which has room for a limited number."""
        return 1 if self.untouched_since is None else 2

    def stands(self, touched: int) -> bool:
        """Whether it holds for a key whose last touch was at this revision; 0: the key is absent."""
        if self.want is Want.TAKEN:
            return not touched
        return bool(touched) and (self.untouched_since is None or touched <= self.untouched_since)


class Session(msgspec.Struct, frozen=True):
    """A writer's right to append: `token` is the create_revision of its session key."""

    cluster: str
    writer: str
    token: int
    lease: int


class Bookmark(msgspec.Struct, frozen=True):
    """Nothing new up to `revision`. The first one after `follow` starts says: in sync with the head seen then.
    `store_id`: of the store that was read; by now there may be another in its place. 0: not known."""

    revision: Revision
    store_id: int = 0


class Stored(msgspec.Struct, frozen=True):
    """One key of the mutable side tables (reports, duties): value, and the revision that wrote it."""

    key: str
    value: bytes
    revision: Revision
