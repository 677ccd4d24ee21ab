"""A checkpoint in the log's own store: opaque bytes in parts, and a manifest that says which checkpoint is whole.

Belongs here: the keys, the parts, refusing one that is damaged. Does not belong here: what the bytes mean, files
(checkpoint.py), who writes one and who uses it.

    checkpoint/<cluster>/<revision>/<part>      manifest/<cluster>

A manifest is put when all its parts are there, so a reader sees a whole checkpoint or the one before it. A checkpoint
is of the whole mesh; each cluster's operator keeps one, so that none depends on another.
"""

import hashlib
import zlib
from collections.abc import Sequence

import msgspec

from kvstore.api import EventLog
from kvstore.checkpoint import Checkpoint
from kvstore.errors import CheckpointDamaged
from kvstore.packed import parts
from kvstore.types import Position, Revision, Session

FORMAT = 1
COMPRESSION = 1
"""A state of 50,000 endpoints is some ten megabytes; more effort costs more time than the bytes are worth."""


class CheckpointManifest(msgspec.Struct, frozen=True):
    """Which checkpoint of a cluster is whole. `digest` is BLAKE2b-256 of the other fields and the stored bytes."""

    format: int
    position: Position
    schema_version: int
    parts: int
    size: int
    time_ns: int
    digest: bytes = b""


_encode = msgspec.msgpack.Encoder(order="deterministic").encode
_decode = msgspec.msgpack.Decoder(CheckpointManifest).decode


async def save(
    log: EventLog, session: Session, cluster: str, position: Position, schema_version: int, saved: bytes, now_ns: int
) -> CheckpointManifest:
    """Put the parts, then the manifest, which a fenced session cannot. Raises LogError."""
    stored = zlib.compress(saved, COMPRESSION)
    pieces = parts(stored)
    manifest = CheckpointManifest(FORMAT, position, schema_version, len(pieces), len(stored), now_ns)
    manifest = msgspec.structs.replace(manifest, digest=_digest(manifest, stored))
    for number, piece in enumerate(pieces):
        await log.put(f"{_folder(cluster, position.revision)}{number:04d}", piece)
    await log.put(f"manifest/{cluster}", _encode(manifest), session, lasting=True)
    return manifest


async def manifests(log: EventLog) -> dict[str, CheckpointManifest]:
    """By cluster, those that can be read. Raises LogError."""
    found = {}
    for stored in await log.list("manifest/"):
        try:
            manifest = _decode(stored.value)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            continue
        if manifest.format == FORMAT:
            found[stored.key.rpartition("/")[2]] = manifest
    return found


async def load(log: EventLog, cluster: str, manifest: CheckpointManifest) -> Checkpoint:
    """The checkpoint that the manifest names. Raises CheckpointDamaged where its parts are not those, LogError."""
    listed = await log.list(_folder(cluster, manifest.position.revision))
    stored = b"".join(each.value for each in listed)
    name = f"of {cluster} at revision {manifest.position.revision} in etcd"
    if len(stored) != manifest.size or _digest(manifest, stored) != manifest.digest:
        reason = f"{len(listed)} parts whose digest is not the manifest's; {manifest.parts} were put"
        raise CheckpointDamaged(name, reason)
    try:
        saved = zlib.decompress(stored)
    except zlib.error as error:
        raise CheckpointDamaged(name, f"the bytes cannot be read: {error}") from None
    return Checkpoint(manifest.position, manifest.schema_version, saved)


def newest(found: dict[str, CheckpointManifest], above: int) -> Sequence[tuple[str, CheckpointManifest]]:
    """Those above a revision, the newest first."""
    later = [(cluster, each) for cluster, each in found.items() if each.position.revision > above]
    return sorted(later, key=lambda each: (each[1].position.revision, each[0]), reverse=True)


def _folder(cluster: str, revision: Revision) -> str:
    return f"checkpoint/{cluster}/{revision:016x}/"


def _digest(manifest: CheckpointManifest, stored: bytes) -> bytes:
    digest = hashlib.blake2b(digest_size=32)
    digest.update(_encode(msgspec.structs.replace(manifest, digest=b"")))
    digest.update(stored)
    return digest.digest()
