"""A copy of the mesh's history that one process keeps for itself: every sealed segment of every cluster, so that it can
answer for any point of the past without asking another machine.

Belongs here: fetching what is sealed, saying how far that is, and who is behind. Does not belong here: sealing, and
taking history out of etcd (retention.py), the files (kvstore/archive.py).
"""

import asyncio
import os
from collections.abc import Iterable, Mapping, Sequence

import msgspec
import structlog

from controlplane.runtime.clock import Clock
from controlplane.runtime.follower import Follower
from controlplane.runtime.telemetry import Counters
from controlplane.settings import CommonSettings
from kvstore.archive import Archive
from kvstore.errors import LogError
from kvstore.etcd import EtcdLog
from kvstore.etcd_retention import Retention, Segments


class Holding(msgspec.Struct, frozen=True):
    """What an archive has of one cluster. `through`: of the segments that etcd has, all up to this one are in it."""

    cluster: str
    through: int
    segments: int
    size: int
    first_revision: int
    last_revision: int


class ArchiveReport(msgspec.Struct, frozen=True):
    """A copy, where it is, and what keeps it from going on, "" for nothing."""

    host: str
    directory: str
    holdings: tuple[Holding, ...] = ()
    error: str = ""

    def through(self, cluster: str) -> int:
        """0 where it has nothing of the cluster yet."""
        return next((each.through for each in self.holdings if each.cluster == cluster), 0)


class Archivist:
    """One process's. `report`: as of the last round."""

    def __init__(
        self,
        log: EtcdLog,
        archive: Archive,
        follower: Follower,
        clock: Clock,
        settings: CommonSettings,
        counters: Counters,
    ) -> None:
        self.report = ArchiveReport(os.uname().nodename, str(archive.directory.absolute()))
        self._log = log
        self._archive = archive
        self._follower = follower
        self._clock = clock
        self._settings = settings
        self._counters = counters
        self._keeps: dict[str, Retention] = {}
        self._logger = structlog.get_logger()

    async def run(self) -> None:
        """Round after round, for ever."""
        while True:
            await self._clock.sleep_s(self._clock.jitter(self._settings.archive_round_s))
            try:
                await self.round()
            except (LogError, OSError) as error:
                if str(error) != self.report.error:
                    self._logger.warning("the copy of the history rests", reason=str(error))
                self.report = msgspec.structs.replace(self.report, error=str(error))

    def problems(self) -> list[str]:
        """In words."""
        return [f"the archive in {self.report.directory} rests: {self.report.error}"] if self.report.error else []

    async def round(self) -> None:
        """Keep what is sealed and not here yet, oldest first. Raises LogError, OSError."""
        holdings = [await self._keep_cluster(name) for name in sorted(self._follower.state.clusters)]
        self.report = msgspec.structs.replace(
            self.report, holdings=tuple(each for each in holdings if each is not None), error=""
        )

    async def _keep_cluster(self, cluster: str) -> Holding | None:
        keep = self._keeps.setdefault(cluster, self._log.retention(cluster))
        found = await keep.segments()
        held = await asyncio.to_thread(self._archive.manifests, found.store_id)
        digests = {each.segment: each.digest for each in held if each.cluster == cluster}
        for number in sorted(found.packed):
            if digests.get(number) != found.packed[number].digest:
                manifest, packed = await keep.fetch(number)
                await asyncio.to_thread(self._archive.keep, found.store_id, manifest, packed)
                self._counters.add("log_segments_archived_total")
        return await asyncio.to_thread(self._holding, cluster, found)

    def _holding(self, cluster: str, found: Segments) -> Holding | None:
        own = [each for each in self._archive.held(found.store_id) if each.cluster == cluster and each.manifest]
        whole = [each.manifest for each in own if each.manifest is not None]
        if not whole:
            return None
        return Holding(
            cluster=cluster,
            through=max(found.packed, default=found.low_segment),
            segments=len(whole),
            size=sum(each.size for each in own),
            first_revision=min(each.first_revision for each in whole),
            last_revision=max(each.last_revision for each in whole),
        )


def behind(copies: Mapping[str, ArchiveReport], cluster: str, segments: Iterable[int]) -> Sequence[str]:
    """Which copies lack one of the cluster's segments, in words."""
    last = max(segments, default=0)
    return [
        f"{name} has the segments of {cluster} up to {copy.through(cluster)} of {last} in {copy.host}:{copy.directory}"
        f"{f' ({copy.error})' if copy.error else ''}"
        for name, copy in sorted(copies.items())
        if copy.through(cluster) < last
    ]
