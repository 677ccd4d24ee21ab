"""A segment: the oldest records of a cluster, of all its writers, sealed in order into one compressed piece.

Belongs here: the form that a segment has in etcd and in the archive, refusing one that is damaged, and when records are
enough for one. Does not belong here: where the pieces are kept. Pure.
"""

import hashlib
import zlib
from collections.abc import Sequence

import msgspec

from kvstore.types import Record, Revision

PACK_FORMAT = 1
PART_BYTES = 512 * 1024
"""Large enough for few keys, small enough that an etcd request is far from its bound."""
COMPRESSION = 6

SEGMENT_RECORDS_MAX = 1000
SEGMENT_BYTES_MAX = 8 * 1024 * 1024
"""So many records, or so many bytes of payload, are sealed: a reader takes a segment in one piece."""


class Manifest(msgspec.Struct, frozen=True):
    """What a segment holds: all its cluster's records from revision `opened` to `last_revision`. `packed_ns` is the
    wall clock of the packer; `digest` is BLAKE2b-256 of the packed bytes. The last sequences of its writers say where
    each of them stood at the segment's end."""

    format: int
    cluster: str
    segment: int
    opened: int
    first_revision: int
    last_revision: int
    records: int
    payload_bytes: int
    size: int
    packed_ns: int
    digest: bytes
    sequences: dict[str, int]


class Ended(msgspec.Struct, frozen=True, array_like=True):
    """What of one writer is in segments: its sequences up to this one, and the bytes of their payloads."""

    sequence: int
    size: int


class Sealed(msgspec.Struct, frozen=True, array_like=True):
    """How far a cluster's records are in segments: the last segment's number, the revision that it ends with, and by
    writer what has gone into this one and those before. All else is loose: kept by writer, one record a key."""

    segment: int = 0
    through: int = 0
    writers: dict[str, Ended] = {}

    def ended(self, writer: str) -> Ended:
        """Of one writer."""
        return self.writers.get(writer, _NOTHING)


_NOTHING = Ended(0, 0)


class _Row(msgspec.Struct, frozen=True, array_like=True):
    revision: int
    writer: str
    sequence: int
    token: int
    payload: bytes


class PackDamaged(ValueError):
    """The bytes are not those of the manifest."""


_encode = msgspec.msgpack.Encoder(order="deterministic").encode
_decode_rows = msgspec.msgpack.Decoder(list[_Row]).decode
_decode_manifest = msgspec.msgpack.Decoder(Manifest).decode
_decode_sealed = msgspec.msgpack.Decoder(Sealed).decode


def is_full(records: int, size: int) -> bool:
    """Whether loose records, and the bytes of their payloads, are enough for a segment."""
    return records >= SEGMENT_RECORDS_MAX or size >= SEGMENT_BYTES_MAX


def pack(records: Sequence[Record], number: int, opened: int, now_ns: int) -> tuple[Manifest, bytes]:
    """Manifest and bytes of one segment. Raises ValueError if there are no records, or of several clusters."""
    if len({record.cluster for record in records}) != 1:
        raise ValueError(f"{len(records)} records: give at least one, all of one cluster")
    rows = sorted(records, key=lambda record: record.revision)
    packed = zlib.compress(
        _encode([_Row(row.revision, row.writer, row.sequence, row.token, row.payload) for row in rows]), COMPRESSION
    )
    manifest = Manifest(
        format=PACK_FORMAT,
        cluster=rows[0].cluster,
        segment=number,
        opened=opened,
        first_revision=rows[0].revision,
        last_revision=rows[-1].revision,
        records=len(rows),
        payload_bytes=sum(len(row.payload) for row in rows),
        size=len(packed),
        packed_ns=now_ns,
        digest=_digest(packed),
        sequences={row.writer: row.sequence for row in rows},
    )
    return manifest, packed


def unpack(manifest: Manifest, packed: bytes) -> Sequence[Record]:
    """The records, in order. Raises PackDamaged."""
    if len(packed) != manifest.size or _digest(packed) != manifest.digest:
        raise PackDamaged(f"{len(packed)} bytes whose digest is not the manifest's; {manifest.size} were packed")
    try:
        rows = _decode_rows(zlib.decompress(packed))
    except (zlib.error, msgspec.MsgspecError) as error:
        raise PackDamaged(f"the packed bytes cannot be read: {error}") from None
    where = manifest.cluster
    return [Record(Revision(row.revision), where, row.writer, row.sequence, row.token, row.payload) for row in rows]


def encode_manifest(manifest: Manifest) -> bytes:
    """The stored form."""
    return _encode(manifest)


def decode_manifest(value: bytes) -> Manifest:
    """Raises PackDamaged for what is no manifest, or of another format."""
    try:
        manifest = _decode_manifest(value)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise PackDamaged(f"the manifest cannot be read: {error}") from None
    if manifest.format != PACK_FORMAT:
        raise PackDamaged(f"its format is {manifest.format}; this version reads {PACK_FORMAT}")
    return manifest


def sealed_after(sealed: Sealed, manifest: Manifest, records: Sequence[Record]) -> Sealed:
    """With the segment of these records as the last one."""
    writers = dict(sealed.writers)
    for record in records:
        size = writers.get(record.writer, _NOTHING).size
        writers[record.writer] = Ended(record.sequence, size + len(record.payload))
    return Sealed(manifest.segment, manifest.last_revision, writers)


def encode_sealed(sealed: Sealed) -> bytes:
    """The stored form."""
    return _encode(sealed)


def decode_sealed(value: bytes) -> Sealed:
    """Of an absent key (empty value) that nothing is sealed. Raises PackDamaged."""
    if not value:
        return Sealed()
    try:
        return _decode_sealed(value)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise PackDamaged(f"how far records are sealed cannot be read: {error}") from None


def parts(packed: bytes) -> Sequence[bytes]:
    """The bytes cut into pieces that fit a key."""
    return [packed[start : start + PART_BYTES] for start in range(0, len(packed), PART_BYTES)]


def covers(archived: Sequence[Manifest], after: int, low: int) -> bool:
    """Whether the packed segments of one cluster hold all its records in (after, low], without a hole."""
    needed = sorted((each for each in archived if each.last_revision > after), key=lambda each: each.segment)
    if not needed or needed[-1].last_revision < low:
        return low <= after
    numbers = [each.segment for each in needed]
    if numbers != list(range(numbers[0], numbers[0] + len(numbers))):
        return False
    first = needed[0]
    before = (each for each in archived if each.segment == first.segment - 1)
    return first.segment == 1 or first.opened <= after + 1 or any(each.last_revision <= after for each in before)


def due(
    kept: Sequence[Manifest], *, through: int, now_ns: int, age_s: float, bytes_max: int
) -> Sequence[Manifest]:
    """The packed segments to take out of etcd now, oldest first: those that are older than `age_s`, and more while all
    together exceed `bytes_max`; never one that ends above `through`, where the newest checkpoint stands."""
    held = sum(each.size for each in kept)
    chosen = []
    for each in sorted(kept, key=lambda each: each.segment):
        is_old = now_ns - each.packed_ns > age_s * 1e9
        if each.last_revision > through or not (is_old or held > bytes_max):
            break
        chosen.append(each)
        held -= each.size
    return chosen


def _digest(packed: bytes) -> bytes:
    return hashlib.blake2b(packed, digest_size=32).digest()
