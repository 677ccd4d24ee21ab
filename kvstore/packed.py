"""A sealed segment in one piece: its records in order, compressed, with a manifest that says what it holds.

Belongs here: the form that a repacked segment has in etcd and in the archive, and refusing one that is damaged. Does
not belong here: where the pieces are kept. Pure.
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


class Manifest(msgspec.Struct, frozen=True):
    """What a packed segment holds. `opened` is the revision that opened it; `packed_ns` the wall clock of the packer, a
    little after the segment was sealed; `digest` is BLAKE2b-256 of the packed bytes. The writers' last sequences say
    where each of them stood at the segment's end."""

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


def pack(records: Sequence[Record], opened: int, now_ns: int) -> tuple[Manifest, bytes]:
    """Manifest and bytes of one segment's records. Raises ValueError if there are none, or of several segments."""
    if not records or len({(record.cluster, record.segment) for record in records}) != 1:
        raise ValueError(f"{len(records)} records of one segment: give all records of one, at least one")
    rows = sorted(records, key=lambda record: record.revision)
    packed = zlib.compress(
        _encode([_Row(row.revision, row.writer, row.sequence, row.token, row.payload) for row in rows]), COMPRESSION
    )
    manifest = Manifest(
        format=PACK_FORMAT,
        cluster=rows[0].cluster,
        segment=rows[0].segment,
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
    where, number = manifest.cluster, manifest.segment
    return [
        Record(Revision(row.revision), where, row.writer, row.sequence, row.token, number, row.payload) for row in rows
    ]


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
