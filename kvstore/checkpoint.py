"""A local checkpoint file: opaque bytes and the position in the log that they stand for.

Belongs here: the file's form, writing it whole or not at all, and refusing one that is damaged. Does not
belong here: what the bytes mean, checkpoints in etcd.

The file is a msgpack header, its length before it in four bytes, then the bytes as they are: a large state is
neither copied into a message nor decoded to be checked.
"""

import hashlib
import os
from contextlib import suppress
from pathlib import Path

import msgspec

from kvstore.errors import CheckpointDamaged
from kvstore.types import Position

FORMAT = 1
MAGIC = b"meshlog checkpoint\n"
HEADER_BYTES_MAX = 64 * 1024 * 1024
_LENGTH = 4


class Header(msgspec.Struct, frozen=True):
    """What stands before the bytes. `digest` is BLAKE2b-256 of the header's other fields and the bytes."""

    format: int
    position: Position
    schema_version: int
    size: int
    digest: bytes


class Checkpoint(msgspec.Struct, frozen=True):
    """What a file holds. `schema_version` is the caller's own, for its bytes."""

    position: Position
    schema_version: int
    saved: bytes


def save(path: Path, position: Position, schema_version: int, saved: bytes, *, durable: bool = True) -> None:
    """Replace the file at once: after a crash it is the old one or the new one; also after one of the machine, if it is
    to be `durable`. Raises OSError."""
    header = Header(FORMAT, position, schema_version, len(saved), _digest(position, schema_version, saved))
    encoded = msgspec.msgpack.encode(header)
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(MAGIC + len(encoded).to_bytes(_LENGTH, "big") + encoded)
            file.write(saved)
            file.flush()
            if durable:
                os.fsync(file.fileno())
        os.replace(fresh, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(fresh)
        raise
    if durable:
        _fsync_directory(path.parent)


def load(path: Path) -> Checkpoint:
    """The checkpoint in the file. Raises FileNotFoundError if there is none, CheckpointDamaged, OSError."""
    content = path.read_bytes()
    if not content.startswith(MAGIC):
        raise CheckpointDamaged(str(path), "it does not begin as a checkpoint does")
    start = len(MAGIC) + _LENGTH
    length = int.from_bytes(content[len(MAGIC) : start], "big")
    if not 0 < length <= min(HEADER_BYTES_MAX, len(content) - start):
        raise CheckpointDamaged(
            str(path), f"the header's length is {length}, the file has {len(content)} bytes"
        )
    try:
        header = msgspec.msgpack.decode(content[start : start + length], type=Header)
    except (msgspec.MsgspecError, ValueError) as error:
        raise CheckpointDamaged(str(path), f"the header cannot be read: {error}") from None
    if header.format != FORMAT:
        raise CheckpointDamaged(str(path), f"its format is {header.format}, this version reads {FORMAT}")
    saved = content[start + length :]
    if len(saved) != header.size:
        raise CheckpointDamaged(str(path), f"it holds {len(saved)} bytes where {header.size} were saved")
    if _digest(header.position, header.schema_version, saved) != header.digest:
        raise CheckpointDamaged(str(path), "its digest does not match its content")
    return Checkpoint(header.position, header.schema_version, saved)


def _digest(position: Position, schema_version: int, saved: bytes) -> bytes:
    digest = hashlib.blake2b(digest_size=32)
    digest.update(msgspec.msgpack.encode((FORMAT, position, schema_version), order="deterministic"))
    digest.update(saved)
    return digest.digest()


def _fsync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
