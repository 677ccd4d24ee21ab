"""What the log is made of: positions, records, claims. Values only; no I/O and no meaning of payloads."""

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
    segment: int
    payload: bytes


class Position(msgspec.Struct, frozen=True):
    """How far a reader has come: everything at or below `revision` is held.

    `sequences` maps "cluster/writer" to the last sequence held, so that a hole in a writer's dense
    sequence is seen whatever the watch delivered. `cluster_id` is etcd's own; a change means another database.
    """

    revision: Revision = Revision(0)
    sequences: dict[str, int] = {}
    cluster_id: int = 0


class Claim(msgspec.Struct, frozen=True):
    """A decision that must be unique across writers, made in the same transaction as its record.

    `taken=True` creates the key and conflicts if it exists; `taken=False` deletes it and conflicts if it is absent.
    `key` is relative to the claims prefix, for example "identity/east/number/65537".
    """

    key: str
    taken: bool = True
    value: bytes = b""


class Session(msgspec.Struct, frozen=True):
    """A writer's right to append: `token` is the create_revision of its session key."""

    cluster: str
    writer: str
    token: int
    lease: int


class Bookmark(msgspec.Struct, frozen=True):
    """Nothing new up to `revision`. The first one after `follow` starts says: in sync with the head seen then."""

    revision: Revision


class Stored(msgspec.Struct, frozen=True):
    """One key of the mutable side tables (reports, duties): value, and the revision that wrote it."""

    key: str
    value: bytes
    revision: Revision
