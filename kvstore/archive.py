"""The archive: a directory of sealed segments that have left etcd, or will.

Belongs here: a file's form and place, writing it whole and once, and naming one that is damaged. Does not belong here:
when a segment leaves etcd (packed.py says what is due), reading across archive and etcd (etcd_reader.py).

    <directory>/<store id>/<cluster>/<segment>.segment

A file is never changed. It begins with a line of text, then the length of its header in four bytes, a msgpack header
that says all about it (a manifest of packed.py), the header's digest, and the packed records. One that is damaged
loses its own segment and no other.
"""

import hashlib
import os
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import msgspec

from kvstore.errors import ArchiveDamaged
from kvstore.packed import Manifest, PackDamaged, decode_manifest, encode_manifest, unpack
from kvstore.types import Record

MAGIC = b"meshlog archive segment 1\n"
SUFFIX = ".segment"
DAMAGED_SUFFIX = ".damaged"
LOST_SUFFIX = ".lost"
"""Of a file whose segment was sealed in a log that was put back to a backup, and is another one now."""
_LENGTH = 4
_DIGEST = 32
HEADER_BYTES_MAX = 16 * 1024 * 1024


SCRUB_S = 86_400.0
"""Each file is read whole this often."""


class Held(msgspec.Struct, frozen=True):
    """One file of the archive. `reason`: why it cannot be used, ""; a damaged one has no manifest."""

    path: str
    size: int
    cluster: str
    segment: int
    manifest: Manifest | None
    reason: str = ""


class _Seen(msgspec.Struct):
    """What is known of one file while it stays as it is: its header, when it was read whole, what was wrong then."""

    modified_ns: int
    size: int
    manifest: Manifest
    scrubbed_s: float | None = None
    reason: str = ""


class Archive:
    """One directory. Every call is blocking I/O; files are immutable, so headers are read once."""

    def __init__(self, directory: Path) -> None:
        """Made when the first segment is kept."""
        self.directory = directory
        self._seen: dict[Path, _Seen] = {}

    def path(self, store_id: int, cluster: str, segment: int) -> Path:
        """Where a segment's file is."""
        return self.directory / f"{store_id:016x}" / cluster / f"{segment:08x}{SUFFIX}"

    def keep(self, store_id: int, manifest: Manifest, packed: bytes) -> Path:
        """Write a segment's file, durably, and read it back; one that is there and whole stays as it is. One of another
        history, of a log that was put back to a backup since, gives way and stays beside it. Several processes, also of
        several machines, may keep segments in one directory.

        Raises OSError; ArchiveDamaged if what was written does not read back.
        """
        path = self.path(store_id, manifest.cluster, manifest.segment)
        if path.exists():
            try:
                present = self._read(path)[0]
                if present.digest == manifest.digest:
                    return path
                os.replace(path, path.with_suffix(f".{present.digest.hex()[:8]}{LOST_SUFFIX}"))
            except ArchiveDamaged:
                os.replace(path, path.with_suffix(DAMAGED_SUFFIX))
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        header = encode_manifest(manifest)
        fresh = path.with_name(f".{path.name}.{os.uname().nodename}.{os.getpid()}.{threading.get_ident()}")
        try:
            with open(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "wb") as file:
                file.write(MAGIC + len(header).to_bytes(_LENGTH, "big") + header + _digest(header))
                file.write(packed)
                file.flush()
                os.fsync(file.fileno())
            os.replace(fresh, path)
        except BaseException:
            with suppress(OSError):
                os.unlink(fresh)
            raise
        for folder in (path.parent, path.parent.parent, self.directory):
            _fsync_directory(folder)
        self._read(path)
        return path

    def held(self, store_id: int) -> Sequence[Held]:
        """Every file of one store, damaged ones too, and those that are missing between others, by cluster and segment.
        Only headers are read; what `scrub` has found is told. Raises OSError."""
        folder = self.directory / f"{store_id:016x}"
        found: list[Held] = []
        for path in sorted(folder.glob(f"*/{'[0-9a-f]' * 8}{SUFFIX}")):
            cluster, segment = path.parent.name, int(path.stem, 16)
            if found and found[-1].cluster == cluster:
                for gone in range(found[-1].segment + 1, segment):
                    absent = self.path(store_id, cluster, gone)
                    found.append(Held(str(absent), 0, cluster, gone, None, "the file is not there"))
            size = path.stat().st_size
            try:
                seen = self._header(path)
                reason = seen.reason
            except ArchiveDamaged as damage:
                reason = damage.reason
            manifest = None if reason else seen.manifest
            found.append(Held(str(path), size, cluster, segment, manifest, reason))
        return found

    def fault(self, store_id: int, cluster: str, after: int) -> ArchiveDamaged | None:
        """The first damaged or missing file of a cluster that a reader from revision `after` needs. Raises OSError."""
        own = [each for each in self.held(store_id) if each.cluster == cluster]
        behind = [-1]
        for each in own:
            if each.manifest is not None and each.manifest.opened <= after + 1:
                behind.append(each.segment - (each.manifest.last_revision > after))
        last = max(behind)
        faulty = (each for each in own if each.reason and each.segment > last)
        return next((ArchiveDamaged(each.path, each.reason) for each in faulty), None)

    def scrub(self, store_id: int, now_s: float) -> None:
        """Read one file whole, the one that waits longest, if it has not been for a day. Raises OSError."""
        waiting = [
            (seen.scrubbed_s or 0.0, path)
            for path in (Path(each.path) for each in self.held(store_id) if each.manifest is not None)
            if (seen := self._seen[path]).scrubbed_s is None or now_s - seen.scrubbed_s > SCRUB_S
        ]
        if not waiting:
            return
        path = min(waiting)[1]
        try:
            self._read(path)
        except ArchiveDamaged as damage:
            self._seen[path].reason = damage.reason
        self._seen[path].scrubbed_s = now_s

    def manifests(self, store_id: int) -> Sequence[Manifest]:
        """Of the files whose headers are whole. Raises OSError."""
        return [each.manifest for each in self.held(store_id) if each.manifest is not None]

    def records(self, store_id: int, cluster: str, segment: int) -> Sequence[Record] | None:
        """A segment's records, in order; None if it is not here. Raises ArchiveDamaged, OSError."""
        path = self.path(store_id, cluster, segment)
        return self._read(path)[1] if path.exists() else None

    def verify(self, store_id: int) -> Sequence[ArchiveDamaged]:
        """Every file read whole; those that are damaged or missing. Raises OSError."""
        found = []
        for each in self.held(store_id):
            try:
                if each.reason:
                    raise ArchiveDamaged(each.path, each.reason)
                self._read(Path(each.path))
            except ArchiveDamaged as damage:
                found.append(damage)
        return found

    def _header(self, path: Path) -> _Seen:
        about = path.stat()
        known = self._seen.get(path)
        if known is not None and (known.modified_ns, known.size) == (about.st_mtime_ns, about.st_size):
            return known
        with path.open("rb") as file:
            start = file.read(len(MAGIC) + _LENGTH)
            length = int.from_bytes(start[len(MAGIC) :], "big")
            header = file.read(min(length, HEADER_BYTES_MAX) + _DIGEST)
        self._seen[path] = _Seen(about.st_mtime_ns, about.st_size, _manifest(path, start, header))
        return self._seen[path]

    def _read(self, path: Path) -> tuple[Manifest, Sequence[Record]]:
        content = path.read_bytes()
        start = len(MAGIC) + _LENGTH
        length = int.from_bytes(content[len(MAGIC) : start], "big")
        manifest = _manifest(path, content[:start], content[start : start + length + _DIGEST])
        try:
            return manifest, unpack(manifest, content[start + length + _DIGEST :])
        except PackDamaged as damage:
            where = f"{manifest.cluster}, revisions {manifest.first_revision} to {manifest.last_revision}"
            raise ArchiveDamaged(str(path), f"{damage} (segment {manifest.segment} of {where})") from None


def _manifest(path: Path, start: bytes, header: bytes) -> Manifest:
    if not start.startswith(MAGIC):
        raise ArchiveDamaged(str(path), "it does not begin as an archive file does")
    length = int.from_bytes(start[len(MAGIC) :], "big")
    if not 0 < length <= HEADER_BYTES_MAX or len(header) != length + _DIGEST:
        raise ArchiveDamaged(str(path), f"the header's length is {length}, and the file ends before it does")
    if _digest(header[:length]) != header[length:]:
        raise ArchiveDamaged(str(path), "the header's digest does not match it")
    try:
        manifest = decode_manifest(header[:length])
    except PackDamaged as damage:
        raise ArchiveDamaged(str(path), str(damage)) from None
    if path.stem != f"{manifest.segment:08x}" or path.parent.name != manifest.cluster:
        raise ArchiveDamaged(str(path), f"it holds segment {manifest.segment:08x} of {manifest.cluster}")
    return manifest


def _digest(header: bytes) -> bytes:
    return hashlib.blake2b(header, digest_size=_DIGEST).digest()


def _fsync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
