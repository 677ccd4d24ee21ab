"""A cluster's history, kept in bounds by the holder of its duty: packed, archived, checkpointed, taken out of etcd.

Belongs here: the order of these steps, and making room in a full etcd. Does not belong here: which segments are due
(kvstore/packed.py), how each step is done (kvstore/etcd_retention.py, kvstore/archive.py).
"""

import asyncio
import contextlib
import os
from collections.abc import Sequence

import msgspec
import structlog

from controlplane.history.at import ReadableLog
from controlplane.runtime.archivist import ArchiveReport, Archivist, behind
from controlplane.runtime.clock import Clock
from controlplane.runtime.duties import Duties
from controlplane.runtime.follower import Follower
from controlplane.runtime.reports import read_all_reports
from controlplane.runtime.shared_checkpoint import share_state
from controlplane.runtime.telemetry import Counters
from controlplane.runtime.writer import Writer
from controlplane.settings import OperatorSettings
from kvstore import checkpoint_parts
from kvstore.archive import Archive, Held
from kvstore.checkpoint_parts import CheckpointManifest
from kvstore.errors import CheckpointDamaged, Fenced, LogError, LogFull
from kvstore.etcd import EtcdLog
from kvstore.etcd_retention import Segments, Space
from kvstore.packed import Manifest, due, is_full

SEGMENTS_MAX = 16
"""Segments sealed in one round: about 100 ms of work each, and others want etcd too."""
COPY_BYTES_SHARE_MAX = 2
"""Packed history that waits for copies may take so many times the bound of what stays in etcd."""
PUBLISH_NS = 60 * 10**9
"""How old what is published may be while nothing changes but etcd's size."""


class Kept(msgspec.Struct, frozen=True):
    """What is kept where, as the duty holder found it last: published for `meshlog log retention`."""

    cluster: str
    time_ns: int
    revision: int
    low: int
    segments: int
    packed_segments: int
    packed_records: int
    packed_bytes: int
    packed_since_ns: int
    archive: str
    archived_segments: int
    archived_records: int
    archived_bytes: int
    archived_since_ns: int
    damaged: list[str]
    checkpoint_revision: int
    checkpoint_bytes: int
    checkpoint_ns: int
    etcd_file_bytes: int
    etcd_used_bytes: int
    retention_s: float
    retention_bytes_max: int
    host: str = ""
    """The machine that `archive` is a directory of."""
    open_segment: int = 0
    open_since_ns: int = 0
    segment_age_s: float = 0.0
    archived_from: int = 0
    loose_records: int = 0
    loose_bytes: int = 0
    """Of the open segment: what is not sealed yet."""
    copy: ArchiveReport | None = None
    """What the same operator keeps of all clusters; None: of its own only."""
    waits: list[str] = []
    """Copies of others for which what is due stays in etcd."""


def _faults(own: Sequence[Held], found: Segments) -> list[str]:
    """What is wrong with the archive of a cluster, in words."""
    faults = [f"{each.path}: {each.reason}" for each in own if each.reason]
    last = max((each.segment for each in own), default=0)
    if last < found.low_segment:
        faults.append(f"segments {last + 1} to {found.low_segment} have left etcd, and are not in the archive")
    return faults


def _is_of(found: Segments, archived: Manifest) -> bool:
    """Whether the archive has what etcd has, or what had to leave it in haste: a log that was put back to a backup has
    other segments under the numbers that were sealed since."""
    packed = found.packed.get(archived.segment)
    return packed.digest == archived.digest if packed else archived.segment < found.oldest


async def kept_of(log: ReadableLog) -> Sequence[Kept]:
    """What each cluster's operator published last. Raises LogError."""
    found = []
    for stored in await log.list("retention/"):
        try:
            found.append(msgspec.json.decode(stored.value, type=Kept))
        except msgspec.MsgspecError:
            continue  # of another version
    return found


def retention_key(cluster: str) -> str:
    """Where it is published."""
    return f"retention/{cluster}"


class Retention:
    """One operator's. `last_error` is "" while all is well."""

    def __init__(
        self,
        log: EtcdLog,
        archive: Archive,
        archivist: Archivist | None,
        follower: Follower,
        writer: Writer,
        duties: Duties,
        clock: Clock,
        settings: OperatorSettings,
        counters: Counters,
    ) -> None:
        self.last_error = ""
        self._log = log
        self._archive = archive
        self._archivist = archivist
        self._waits: Sequence[str] = ()
        self._waits_since_s: float | None = None
        self._follower = follower
        self._writer = writer
        self._duties = duties
        self._clock = clock
        self._settings = settings
        self._counters = counters
        self._keep = log.retention(settings.cluster)
        self._published: Kept | None = None
        self._publish_ns = 0
        self._open = (0, 0)
        """The number of the open segment, and since when it was seen to be."""
        self._logger = structlog.get_logger()

    def problems(self) -> list[str]:
        """What holds history up in etcd, in words."""
        return [f"history stays in etcd for a copy of it: {each}" for each in self._waits]

    async def run(self) -> None:
        """Round after round, for ever."""
        while True:
            await self._clock.sleep_s(self._clock.jitter(self._settings.retention_round_s))
            try:
                if self._duties.held:
                    await self._round()
                elif self._log.full_since is not None:
                    await self._relieve()
                self.last_error = ""
            except (LogError, OSError) as error:
                self.last_error = str(error)
                self._logger.warning("retention rests", reason=self.last_error)

    async def _round(self) -> None:
        try:
            await self.round()
        except LogFull:
            await self._relieve()
        if self._log.full_since is not None:
            await self._relieve()

    async def round(self) -> None:
        """Seal what is full or old, archive what is sealed, and take out what is due. Raises LogError, OSError."""
        space = await self._keep.space()
        if space.is_full:
            space = await self.relieve()
        found = await self._seal(await self._keep.segments())
        archived = await self._archived(found)
        through = await self._checkpoint(found, archived)
        await self._take_out(found, archived, through)
        await self._publish(space)

    async def _seal(self, found: Segments) -> Segments:
        """With what is loose put into segments, as far as it fills them, or is old."""
        if not self._open[0]:
            self._open = await self._known_open()
        is_old = self._is_old(found)
        if not (found.is_full or is_old):
            return found
        made = await self._keep.seal(self._clock.time_ns(), SEGMENTS_MAX, rest=is_old)
        for manifest, _ in made:
            self._counters.add("log_segments_packed_total")
            if not is_full(manifest.records, manifest.payload_bytes):
                self._counters.add("log_segments_sealed_by_age_total")
        found = await self._keep.segments()
        self._is_old(found)
        return found

    def _is_old(self, found: Segments) -> bool:
        """Whether what is loose has waited long enough. Since when survives in what is published: records say only what
        their writers' clocks were."""
        now_ns = self._clock.time_ns()
        if found.open_segment != self._open[0]:
            self._open = (found.open_segment, now_ns)
        age_s = min(self._settings.segment_age_s, self._settings.retention_s)
        return found.loose_records > 0 and now_ns - self._open[1] > age_s * 1e9

    async def _known_open(self) -> tuple[int, int]:
        """As whoever held the duty before has published it."""
        key = retention_key(self._keep.cluster)
        for each in await self._log.list(key):
            if each.key == key:
                with contextlib.suppress(msgspec.MsgspecError):
                    kept = msgspec.json.decode(each.value, type=Kept)
                    return kept.open_segment, kept.open_since_ns
        return 0, 0

    async def _archived(self, found: Segments) -> dict[int, Manifest]:
        """By number, the segments that etcd has and that are durable in the archive; those missing there are written.
        """
        held = await asyncio.to_thread(self._archive.manifests, found.store_id)
        own = (each for each in held if each.cluster == self._keep.cluster)
        archived = {each.segment: each for each in own if each.segment > found.low_segment and _is_of(found, each)}
        for number in sorted(set(found.packed) - set(archived)):
            manifest, packed = await self._keep.fetch(number)
            await asyncio.to_thread(self._archive.keep, found.store_id, manifest, packed)
            archived[number] = manifest
            self._counters.add("log_segments_archived_total")
        return archived

    async def _checkpoint(self, found: Segments, archived: dict[int, Manifest]) -> int:
        """The revision of the cluster's checkpoint in etcd: a fresh one if it is old, or if a segment waits for it."""
        known = await self._sound_checkpoint(archived)
        at = known.position.revision if known else 0
        now_ns, state = self._clock.time_ns(), self._follower.state
        waits = any(
            each.last_revision > at for each in self._due(archived, max(at, state.revision))
        )
        is_old = known is None or now_ns - known.time_ns > self._settings.shared_checkpoint_s * 1e9
        trusted = self._follower.in_sync and not self._follower.repairing and state.revision > at
        if not trusted or not (waits or is_old):
            return at
        session = await self._writer.session()
        try:
            fresh = await share_state(self._log, session, state, now_ns)
        except Fenced:
            self._writer.forget_session(session)
            raise
        # The one before stays: a reader that has just taken its manifest finds its parts.
        await self._keep.drop_checkpoint(at)
        self._counters.add("log_checkpoints_shared_total")
        return fresh.position.revision

    async def _sound_checkpoint(self, archived: dict[int, Manifest]) -> CheckpointManifest | None:
        """The cluster's; read whole where history is to leave behind it, since then it is all that there is."""
        known = (await checkpoint_parts.manifests(self._log)).get(self._keep.cluster)
        if known is not None and self._due(archived, known.position.revision):
            try:
                await checkpoint_parts.load(self._log, self._keep.cluster, known)
            except CheckpointDamaged as damage:
                self._logger.warning("the checkpoint in etcd is put again", reason=str(damage))
                return None
        return known

    def _due(self, archived: dict[int, Manifest], through: int) -> list[Manifest]:
        settings = self._settings
        return list(
            due(
                list(archived.values()), through=through, now_ns=self._clock.time_ns(), age_s=settings.retention_s,
                bytes_max=settings.retention_bytes_max,
            )
        )  # fmt: skip

    async def _take_out(self, found: Segments, archived: dict[int, Manifest], through: int) -> None:
        # A full etcd was relieved of those before its oldest, and could not be told then where history begins.
        gone = {number for number in archived if number < found.oldest}
        leaving = gone.union(await self._copied(found, [each.segment for each in self._due(archived, through)]))
        touched, next_segment = found.low_touched, found.low_segment + 1
        for manifest in (archived[number] for number in sorted(leaving)):
            if manifest.segment != next_segment:
                # An older one is not archived: history leaves from its beginning, or not at all.
                break
            # Read whole, from the disk, before etcd forgets it.
            if not await asyncio.to_thread(
                self._archive.records, found.store_id, manifest.cluster, manifest.segment
            ):
                break
            if self._log.cluster_id != found.store_id:
                # The log was put back meanwhile: the archive has this for the store that was.
                break
            touched = await self._keep.truncate(manifest, touched)
            next_segment += 1
            self._counters.add("log_segments_truncated_total")
            self._logger.info("history left etcd", segment=manifest.segment, through=manifest.last_revision)

    async def _copied(self, found: Segments, due: list[int]) -> list[int]:
        """Those that are due, once the copies of agents and other operators have them, or have had the time."""
        copies = await self._copies() if due else {}
        self._waits = behind(copies, self._keep.cluster, due)
        if not self._waits:
            self._waits_since_s = None
            return due
        now_s = self._clock.monotonic_s()
        if self._waits_since_s is None:
            self._waits_since_s = now_s
            self._logger.warning("history stays in etcd for copies of it", copies=self._waits)
        size = sum(each.size for each in found.packed.values())
        has_room = size <= COPY_BYTES_SHARE_MAX * self._settings.retention_bytes_max
        if now_s - self._waits_since_s < self._settings.archive_wait_s and has_room:
            least = min(each.through(self._keep.cluster) for each in copies.values())
            return [number for number in due if number <= least]
        self._counters.add("log_copies_left_behind_total", len(self._waits))
        return due

    async def _copies(self) -> dict[str, ArchiveReport]:
        """Of nodes and of other clusters' operators whose sessions hold."""
        copies = {
            f"node {each.cluster}/{each.node}": each.archive
            for each in await read_all_reports(self._log)
            if each.archive is not None
        }
        alive = {each.key for each in await self._log.list("session/")}
        for each in await kept_of(self._log):
            if each.copy and each.cluster != self._keep.cluster and f"session/{each.cluster}/operator" in alive:
                copies[f"the operator of {each.cluster}"] = each.copy
        return copies

    async def _relieve(self) -> None:
        space = await self.relieve()
        self._logger.info("made room in etcd", file_bytes=space.file_bytes, used_bytes=space.used_bytes)

    async def relieve(self) -> Space:
        """Make room in a full etcd: first by giving back what is overwritten or deleted already; if that leaves it more
        than half in use, by taking out archived segments behind the checkpoint as well. Raises LogError, OSError."""
        before = await self._keep.space()
        if not before.is_full:
            return before
        self._counters.add("log_full_total")
        if before.used_bytes * 2 > before.file_bytes:
            await self._drop_archived()
        after = await self._keep.make_room()
        self._logger.warning(
            "etcd was out of space", before_bytes=before.file_bytes, after_bytes=after.file_bytes
        )
        return after

    async def _drop_archived(self) -> None:
        """Half of what may go. What is dropped before `low` can say so is told to readers as truncated; the next round
        moves `low`, since the archive has the manifest."""
        found = await self._keep.segments()
        known = (await checkpoint_parts.manifests(self._log)).get(self._keep.cluster)
        through = known.position.revision if known else 0
        held = await asyncio.to_thread(self._archive.manifests, found.store_id)
        archived = {each.segment: each for each in held if each.cluster == self._keep.cluster}
        oldest = sorted(found.packed)
        for number in oldest[: -(-len(oldest) // 2)]:
            manifest = archived.get(number)
            if manifest is None or not _is_of(found, manifest) or manifest.last_revision > through:
                break
            await asyncio.to_thread(self._archive.records, found.store_id, manifest.cluster, number)
            await self._keep.drop_packed(number)

    async def _publish(self, space: Space) -> None:
        """For people; a checkpoint's age and a directory's size interest no machine."""
        found = await self._keep.segments()
        await asyncio.to_thread(self._archive.scrub, found.store_id, self._clock.monotonic_s())
        held = await asyncio.to_thread(self._archive.held, found.store_id)
        own = [each for each in held if each.cluster == self._keep.cluster]
        archived = [each.manifest for each in own if each.manifest is not None]
        known = (await checkpoint_parts.manifests(self._log)).get(self._keep.cluster)
        packed = list(found.packed.values())
        kept = Kept(
            cluster=self._keep.cluster,
            time_ns=self._clock.time_ns(),
            revision=found.revision,
            low=found.low,
            segments=len(packed) + 1,
            packed_segments=len(packed),
            packed_records=sum(each.records for each in packed),
            packed_bytes=sum(each.size for each in packed),
            packed_since_ns=min((each.packed_ns for each in packed), default=0),
            archive=str(self._archive.directory.absolute()),
            archived_segments=len(archived),
            archived_records=sum(each.records for each in archived),
            archived_bytes=sum(each.size for each in own),
            archived_since_ns=min((each.packed_ns for each in archived), default=0),
            damaged=_faults(own, found),
            checkpoint_revision=known.position.revision if known else 0,
            checkpoint_bytes=known.size if known else 0,
            checkpoint_ns=known.time_ns if known else 0,
            etcd_file_bytes=space.file_bytes,
            etcd_used_bytes=space.used_bytes,
            retention_s=self._settings.retention_s,
            retention_bytes_max=self._settings.retention_bytes_max,
            host=os.uname().nodename,
            open_segment=self._open[0],
            open_since_ns=self._open[1],
            segment_age_s=min(self._settings.segment_age_s, self._settings.retention_s),
            archived_from=min((each.first_revision for each in archived), default=0),
            loose_records=found.loose_records,
            loose_bytes=found.loose_bytes,
            copy=self._archivist.report if self._archivist else None,
            waits=list(self._waits),
        )
        steady = msgspec.structs.replace(
            kept, time_ns=0, revision=0, etcd_file_bytes=0, etcd_used_bytes=0, loose_records=0, loose_bytes=0
        )
        if steady != self._published or kept.time_ns > self._publish_ns:
            await self._log.put(retention_key(self._keep.cluster), msgspec.json.encode(kept))
            self._published, self._publish_ns = steady, kept.time_ns + PUBLISH_NS
