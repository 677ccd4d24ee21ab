"""A stretch of the history in one file: the state it begins behind, the records, what nodes reported and which flows
they saw, and who made it.

Belongs here: the file's form, checking it part by part, and what is in each part. Does not belong here: answering
from it (api/capsule_view.py), taking names out of it (redaction.py). Pure.

The file: a line of magic, the length of the header in four bytes, the header in msgpack, its BLAKE2b-256 digest, then
the parts, each compressed with zlib and with its own digest in the header. Damage is found and named by its part.
"""

import zlib
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from typing import Any

import msgspec

from controlplane.history.flows import FlowSummary
from controlplane.history.provenance import Origin, Origins
from controlplane.model import EndpointKey, NodeKey, ObjectKey
from controlplane.projections.state import State
from kvstore.types import Record, Revision

MAGIC = b"meshlog capsule\n"
FORMAT = 1
LENGTH_BYTES = 4
DIGEST_BYTES = 32
HEADER_BYTES_MAX = 1024 * 1024
PART_BYTES_MAX = 4 * 1024 * 1024 * 1024
COMPRESSION = 6
MANIFEST, STATE, ORIGINS, RECORDS, REPORTS = "manifest", "state", "origins", "records", "reports"
PARTS = (MANIFEST, STATE, ORIGINS, RECORDS, REPORTS)
FLOWS = "flows"
"""A part that files of the first versions do not have."""


class CapsuleDamaged(ValueError):
    """The file is no capsule, or not what was written: names the part and what is wrong with it."""


class Report(msgspec.Struct, frozen=True):
    """What a node last said: its kernel holds everything through `realized`, with these digests."""

    cluster: str
    node: str
    realized: int
    in_sync: bool
    failed_rows: int
    time_ns: int
    digests: dict[str, str]


class Manifest(msgspec.Struct, frozen=True):
    """`since`: the revision of the state; records follow it through `until`. `node` "": an operator exported it."""

    version: str
    schema_version: int
    cluster: str
    node: str
    made_ns: int
    since: int
    since_ns: int
    until: int
    until_ns: int
    records: int
    redacted: bool = False


class Capsule(msgspec.Struct, frozen=True):
    """What a file holds. `saved` is State.save() at `since`."""

    manifest: Manifest
    saved: bytes
    origins: Origins
    records: Sequence[Record]
    reports: Sequence[Report]
    flows: Sequence[FlowSummary] = ()

    def state(self) -> State:
        """The state at `since`, to be changed. Raises CapsuleDamaged."""
        try:
            return State.load(self.saved)
        except ValueError as error:
            raise CapsuleDamaged(f"part {STATE}: {error}") from None


class _Part(msgspec.Struct, frozen=True):
    name: str
    stored_bytes: int
    whole_bytes: int
    digest: bytes
    stored_digest: bytes = b""
    """Of the compressed bytes, some bits of which say nothing about the content. Absent from the first files."""


class _Header(msgspec.Struct, frozen=True):
    format: int
    parts: list[_Part]


class _RecordRow(msgspec.Struct, frozen=True, array_like=True):
    """`unread` is what the first files say of a record's place in etcd."""

    revision: int
    cluster: str
    writer: str
    sequence: int
    token: int
    unread: int
    payload: bytes


def pack(capsule: Capsule) -> bytes:
    """The file. Equal capsules give equal bytes."""
    encode = msgspec.msgpack.Encoder(order="deterministic").encode
    contents = {
        MANIFEST: msgspec.json.encode(capsule.manifest),
        STATE: capsule.saved,
        ORIGINS: encode(_origin_rows(capsule.origins)),
        RECORDS: encode([_record_row(record) for record in capsule.records]),
        REPORTS: msgspec.json.encode(capsule.reports),
        FLOWS: msgspec.msgpack.encode(capsule.flows),
    }
    stored = {name: zlib.compress(content, COMPRESSION) for name, content in contents.items()}
    parts = [
        _Part(name, len(stored[name]), len(contents[name]), _digest(contents[name]), _digest(stored[name]))
        for name in contents
    ]
    header = encode(_Header(FORMAT, parts))
    return b"".join(
        [MAGIC, len(header).to_bytes(LENGTH_BYTES, "big"), header, _digest(header), *stored.values()]
    )


def unpack(content: bytes) -> Capsule:
    """Raises CapsuleDamaged."""
    parts = _parts(content)
    try:
        manifest = msgspec.json.decode(parts[MANIFEST], type=Manifest)
        reports = msgspec.json.decode(parts[REPORTS], type=list[Report])
        rows = msgspec.msgpack.decode(parts[ORIGINS], type=tuple[int, list[tuple[str, Any, Origin]]])
        found = msgspec.msgpack.decode(parts[RECORDS], type=list[_RecordRow])
        records = [_record(row) for row in found]
        origins = _origins(*rows)
        flows = msgspec.msgpack.decode(parts[FLOWS], type=list[FlowSummary]) if FLOWS in parts else []
    except (msgspec.MsgspecError, TypeError) as error:
        raise CapsuleDamaged(f"written by another version: {error}") from None
    if len(records) != manifest.records:
        raise CapsuleDamaged(f"part {RECORDS}: {len(records)} records where the manifest names {manifest.records}")
    return Capsule(manifest, parts[STATE], origins, records, reports, flows)


def _record_row(record: Record) -> _RecordRow:
    return _RecordRow(record.revision, record.cluster, record.writer, record.sequence, record.token, 0, record.payload)


def _record(row: _RecordRow) -> Record:
    return Record(Revision(row.revision), row.cluster, row.writer, row.sequence, row.token, row.payload)


def _parts(content: bytes) -> Mapping[str, bytes]:
    header, start = _header(content)
    found = {}
    for part in header.parts:
        stored = content[start : start + part.stored_bytes]
        start += part.stored_bytes
        if len(stored) < part.stored_bytes:
            raise CapsuleDamaged(f"part {part.name}: cut off, {len(stored)} of {part.stored_bytes} bytes are there")
        found[part.name] = _inflated(part, stored)
    if start != len(content):
        raise CapsuleDamaged(f"{len(content) - start} bytes too many at the end")
    missing = [name for name in PARTS if name not in found]
    if missing:
        raise CapsuleDamaged(f"no part {', '.join(missing)}")
    return found


def _header(content: bytes) -> tuple[_Header, int]:
    if not content.startswith(MAGIC):
        raise CapsuleDamaged("it does not begin as a capsule does")
    start = len(MAGIC) + LENGTH_BYTES
    length = int.from_bytes(content[len(MAGIC) : start], "big")
    encoded, digest = content[start : start + length], content[start + length : start + length + DIGEST_BYTES]
    if length > HEADER_BYTES_MAX or len(digest) < DIGEST_BYTES or _digest(encoded) != digest:
        raise CapsuleDamaged("the header is damaged or cut off")
    try:
        header = msgspec.msgpack.decode(encoded, type=_Header)
    except msgspec.MsgspecError as error:
        raise CapsuleDamaged(f"the header cannot be read: {error}") from None
    if header.format != FORMAT:
        raise CapsuleDamaged(f"its format is {header.format}, this version reads {FORMAT}")
    return header, start + length + DIGEST_BYTES


def _inflated(part: _Part, stored: bytes) -> bytes:
    """No more than was said: a damaged or hostile file must not fill the memory."""
    if part.stored_digest and _digest(stored) != part.stored_digest:
        raise CapsuleDamaged(f"part {part.name}: its digest does not match its compressed bytes")
    inflate = zlib.decompressobj()
    try:
        content = inflate.decompress(stored, min(part.whole_bytes, PART_BYTES_MAX) + 1)
    except zlib.error as error:
        raise CapsuleDamaged(f"part {part.name}: cannot be decompressed: {error}") from None
    if len(content) != part.whole_bytes or _digest(content) != part.digest:
        raise CapsuleDamaged(f"part {part.name}: its digest does not match its content")
    return content


def _digest(content: bytes) -> bytes:
    return blake2b(content, digest_size=DIGEST_BYTES).digest()


def _origin_rows(origins: Origins) -> tuple[int, list[tuple[str, Any, Origin]]]:
    return origins.since, [(kind, key, origin) for (kind, key), origin in origins.held.items()]


def _origins(since: int, rows: list[tuple[str, Any, Origin]]) -> Origins:
    origins = Origins(since)
    for kind, key, origin in rows:
        origins.held[kind, _key(kind, key)] = origin
    return origins


def _key(kind: str, key: Any) -> Any:
    if kind in ("cluster", "identity", "settings"):
        return key
    return NodeKey(*key) if kind == "node" else EndpointKey(*key) if kind == "endpoint" else ObjectKey(*key)
