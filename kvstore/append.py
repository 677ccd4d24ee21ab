"""What a writer knows, what it sends next, and what a refused append means.

Belongs here: the stored form of a batch and of a cursor, the attempt that follows from a place, and the settlement of
an attempt that was refused. Does not belong here: transactions on the wire, retries, leases.
"""

from collections.abc import Sequence

import msgspec

from kvstore import keys
from kvstore.types import Claim, Record, Revision, Want

BATCH_FORMAT = 1
CLAIM_COMPARES_MAX = 120
"""etcd refuses more than 128 operations or compares in one transaction; the append itself needs a few."""


class Batch(msgspec.Struct, frozen=True, array_like=True):
    """The value of a record's key."""

    format: int
    token: int
    payload: bytes


class Cursor(msgspec.Struct, frozen=True, array_like=True):
    """The value of a cursor key: the writer's last batch. `sequence` 0 means none yet; `size` is the bytes of all its
    payloads so far, by which readers and the sealing know what is coming."""

    sequence: int
    token: int
    size: int


class Place(msgspec.Struct, frozen=True):
    """What a writer knows of the log; the next append is compared with it."""

    token: int
    sequence: int
    cursor_revision: int
    size: int


class Attempt(msgspec.Struct, frozen=True):
    """One append as it goes out; sent again, it is the same."""

    place: Place
    cluster: str
    writer: str
    value: bytes
    cursor: Cursor

    @property
    def sequence(self) -> int:
        """Of the batch."""
        return self.cursor.sequence


class Found(msgspec.Struct, frozen=True):
    """What a refused transaction read instead. A revision of 0 means that the key is absent; `claims_touched` are
    the claims' keys, in their order."""

    session_token: int
    cursor: Cursor
    cursor_revision: int
    stored: bytes
    stored_revision: int
    claims_touched: Sequence[int]


class Landed(msgspec.Struct, frozen=True):
    """An earlier copy of this very attempt is in the log."""

    revision: Revision
    place: Place


class Again(msgspec.Struct, frozen=True):
    """The writer's knowledge was old; try from this place."""

    place: Place


class Lost(msgspec.Struct, frozen=True):
    """Another session took the place, or the lease ran out; this attempt never reaches the log."""


class Conflict(msgspec.Struct, frozen=True):
    """This claim did not hold; nothing was stored."""

    key: str


Outcome = Landed | Again | Lost | Conflict

_decode_batch = msgspec.msgpack.Decoder(Batch).decode
_decode_cursor = msgspec.msgpack.Decoder(Cursor).decode
_encode = msgspec.msgpack.Encoder().encode


def encode_batch(token: int, payload: bytes) -> bytes:
    """The value to store for a payload."""
    return _encode(Batch(BATCH_FORMAT, token, payload))


def decode_record(key: bytes, value: bytes, revision: int) -> Record:
    """The record under a key. Raises ValueError if key or value is not of our making."""
    parts = keys.parse_log_key(key)
    try:
        batch = _decode_batch(value)
    except msgspec.MsgspecError as error:
        raise ValueError(f"value of {key.decode('utf-8', 'replace')} is not a batch: {error}") from None
    if batch.format != BATCH_FORMAT:
        raise ValueError(f"value of {key!r} has format {batch.format}; this version reads {BATCH_FORMAT}")
    return Record(
        Revision(revision),
        parts.cluster,
        parts.writer,
        parts.sequence,
        batch.token,
        batch.payload,
    )


def encode_cursor(cursor: Cursor) -> bytes:
    """The value of a cursor key."""
    return _encode(cursor)


def decode_cursor(value: bytes) -> Cursor:
    """A cursor key's value; of an absent key (empty value) the cursor before the first batch."""
    if not value:
        return Cursor(0, 0, 0)
    try:
        return _decode_cursor(value)
    except msgspec.MsgspecError as error:
        raise ValueError(f"cursor value {value!r} is malformed: {error}") from None


def check_claims(claims: Sequence[Claim]) -> None:
    """Raises ValueError on too many claims, a malformed key, a key claimed twice, or one taken "untouched since"."""
    compares = sum(claim.compares for claim in claims)
    if compares > CLAIM_COMPARES_MAX:
        raise ValueError(f"{len(claims)} claims in one append need {compares} compares: at most {CLAIM_COMPARES_MAX}")
    seen: set[bytes] = set()
    for claim in claims:
        key = keys.claim_key(claim.key)
        if key in seen:
            raise ValueError(f"claim {claim.key!r} stands twice in one append")
        if claim.want is Want.TAKEN and claim.untouched_since is not None:
            raise ValueError(f"claim {claim.key!r} is taken: only what is held or freed can be untouched since")
        seen.add(key)


def attempt(place: Place, cluster: str, writer: str, payload: bytes) -> Attempt:
    """The next append from this place."""
    cursor = Cursor(place.sequence + 1, place.token, place.size + len(payload))
    return Attempt(place, cluster, writer, encode_batch(place.token, payload), cursor)


def stored(sent: Attempt, revision: int) -> Place:
    """The place after `sent` was stored at `revision`."""
    return _place(sent.place.token, sent.cursor, revision)


def settle(sent: Attempt, claims: Sequence[Claim], found: Found) -> Outcome:
    """What a refused attempt means.

    The record's own key decides first: a copy that landed counts, whatever became of the session since. A
    different batch of ours under that key is an earlier append whose outcome was unknown: it landed, so this
    one comes next.
    """
    now = _place(sent.place.token, found.cursor, found.cursor_revision)
    if found.stored_revision and found.stored == sent.value:
        return Landed(Revision(found.stored_revision), msgspec.structs.replace(now, sequence=sent.sequence))
    if found.session_token != sent.place.token:
        return Lost()
    if found.cursor.sequence >= sent.sequence or found.cursor_revision != sent.place.cursor_revision:
        return Again(now)
    for claim, touched in zip(claims, found.claims_touched, strict=True):
        if not claim.stands(touched):
            return Conflict(claim.key)
    return Again(now)


def _place(token: int, cursor: Cursor, cursor_revision: int) -> Place:
    return Place(token, cursor.sequence, cursor_revision, cursor.size)
