"""What a writer knows, what it sends next, and what a refused append means.

Belongs here: the stored form of a batch and of a cursor, the attempt that follows from a place, the
settlement of an attempt that was refused, and when a segment is full. Does not belong here: transactions on
the wire, retries, leases.
"""

import zlib
from collections.abc import Sequence

import msgspec

from kvstore import keys
from kvstore.types import Claim, Record, Revision, Want

BATCH_FORMAT = 1
CLAIM_COMPARES_MAX = 120
"""etcd refuses more than 128 operations or compares in one transaction; the append itself needs a few."""

SEGMENT_RECORDS_MAX = 1000
SEGMENT_BYTES_MAX = 8 * 1024 * 1024
"""A reader fetches a segment in one piece and sorts it in memory, so both bounds are soft: the writers of a
cluster together may overshoot by what they append between two probes."""

PROBE_RECORDS = 32
PROBE_BYTES = 1024 * 1024
"""How often a writer counts the open segment: with every 32nd of its own batches, or after 1 MiB of its own.
The count rides in the append transaction, so it costs no round trip, and no key is contended."""


class Batch(msgspec.Struct, frozen=True, array_like=True):
    """The value of a record's key."""

    format: int
    token: int
    payload: bytes


class Cursor(msgspec.Struct, frozen=True, array_like=True):
    """The value of a cursor key: the writer's last batch. `sequence` 0 means none yet."""

    sequence: int
    segment: int
    token: int


class Place(msgspec.Struct, frozen=True):
    """What a writer knows of the log; the next append is compared with it."""

    token: int
    sequence: int
    cursor_revision: int
    segment: int
    head_revision: int
    segment_full: bool = False
    segment_records: int = 0
    segment_bytes: int = 0


class Attempt(msgspec.Struct, frozen=True):
    """One append as it goes out; sent again, it is the same."""

    place: Place
    cluster: str
    writer: str
    sequence: int
    segment: int
    value: bytes
    probes: bool

    @property
    def opens_segment(self) -> bool:
        """True if this batch is the first of a new segment."""
        return self.segment != self.place.segment


class Found(msgspec.Struct, frozen=True):
    """What a refused transaction read instead. A revision of 0 means that the key is absent; `claims_touched` are
    the claims' keys, in their order."""

    session_token: int
    segment: int
    head_revision: int
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
        parts.segment,
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
    sequence = place.sequence + 1
    # Spread by name, so that writers that started together do not all count at the same batch.
    due = (sequence + zlib.crc32(writer.encode())) % PROBE_RECORDS == 0
    return Attempt(
        place=place,
        cluster=cluster,
        writer=writer,
        sequence=sequence,
        segment=place.segment + 1 if place.segment_full else place.segment,
        value=encode_batch(place.token, payload),
        probes=due
        or place.segment_bytes // PROBE_BYTES != (place.segment_bytes + len(payload)) // PROBE_BYTES,
    )


def stored(sent: Attempt, revision: int, count: int | None) -> Place:
    """The place after `sent` was stored at `revision`; `count` is the probe's answer, if it had one."""
    fresh = sent.opens_segment
    records = 1 if fresh else sent.place.segment_records + 1
    own_bytes = len(sent.value) + (0 if fresh else sent.place.segment_bytes)
    return Place(
        token=sent.place.token,
        sequence=sent.sequence,
        cursor_revision=revision,
        segment=sent.segment,
        head_revision=revision if fresh else sent.place.head_revision,
        segment_full=count is not None and segment_is_full(count, records, own_bytes),
        segment_records=records,
        segment_bytes=own_bytes,
    )


def segment_is_full(count: int, own_records: int, own_bytes: int) -> bool:
    """True if a segment of `count` records, taken to be as large as this writer's own, should be closed."""
    return count >= SEGMENT_RECORDS_MAX or count * own_bytes >= SEGMENT_BYTES_MAX * own_records


def settle(sent: Attempt, claims: Sequence[Claim], found: Found) -> Outcome:
    """What a refused attempt means.

    The record's own key decides first: a copy that landed counts, whatever became of the session since. A
    different batch of ours under that key is an earlier append whose outcome was unknown: it landed, so this
    one comes next.
    """
    if found.stored_revision and found.stored == sent.value:
        return Landed(Revision(found.stored_revision), _moved(sent, found, sent.sequence))
    if found.session_token != sent.place.token:
        return Lost()
    if found.cursor.sequence >= sent.sequence or found.cursor_revision != sent.place.cursor_revision:
        return Again(_moved(sent, found, found.cursor.sequence))
    for claim, touched in zip(claims, found.claims_touched, strict=True):
        if not claim.stands(touched):
            return Conflict(claim.key)
    return Again(_moved(sent, found, found.cursor.sequence))


def _moved(sent: Attempt, found: Found, sequence: int) -> Place:
    same = found.segment == sent.place.segment
    return Place(
        token=sent.place.token,
        sequence=sequence,
        cursor_revision=found.cursor_revision,
        segment=found.segment,
        head_revision=found.head_revision,
        segment_full=same and sent.place.segment_full,
        segment_records=sent.place.segment_records if same else 0,
        segment_bytes=sent.place.segment_bytes if same else 0,
    )
