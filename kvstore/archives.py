"""Several archives as one: the directory that a reader was given, and those that are found when history is missing.

Belongs here: which directory has a segment. Does not belong here: a directory's files (archive.py), where directories
are recorded (the caller's finder).

A found directory counts for the cluster only whose operator recorded it: nobody's archive tells another's history.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path

from kvstore.archive import Archive
from kvstore.errors import ArchiveDamaged
from kvstore.packed import Manifest
from kvstore.types import Record

Finder = Callable[[], Awaitable[Sequence[tuple[str, Path]]]]
"""Clusters, and a directory each that may hold their history."""


class Archives:
    """`directory`: of every cluster. `find` is asked when none known has what is wanted."""

    def __init__(self, directory: Path | None = None, find: Finder | None = None) -> None:
        self._any = [] if directory is None else [Archive(directory)]
        self._found: dict[tuple[str, Path], Archive] = {}
        self._find = find

    async def widened(self) -> bool:
        """Ask for more directories; whether there is one that was not known. Raises LogError."""
        before = len(self._found)
        for cluster, directory in await self._find() if self._find else ():
            if (cluster, directory) not in self._found and await asyncio.to_thread(directory.is_dir):
                self._found[cluster, directory] = Archive(directory)
        return len(self._found) > before

    def manifests(self, store_id: int, lows: Mapping[str, int]) -> Sequence[Manifest]:
        """Each segment of the clusters in `lows` once, if it ends at or below the revision there, behind which the
        store's own history begins: what ends above it was sealed in a log that was put back to a backup since. Raises
        OSError."""
        kept: dict[tuple[str, int], Manifest] = {}
        given = [(None, archive) for archive in self._any]
        for named, archive in [*given, *((name, archive) for (name, _), archive in self._found.items())]:
            for each in archive.manifests(store_id):
                if named in (None, each.cluster) and each.last_revision <= lows.get(each.cluster, 0):
                    kept.setdefault((each.cluster, each.segment), each)
        return list(kept.values())

    def records(self, store_id: int, cluster: str, segment: int) -> Sequence[Record] | None:
        """From the first directory that has the segment whole; None if none has it. Raises ArchiveDamaged, OSError."""
        damage: ArchiveDamaged | None = None
        for archive in self._of(cluster):
            try:
                records = archive.records(store_id, cluster, segment)
            except ArchiveDamaged as error:
                damage = damage or error
                continue
            if records is not None:
                return records
        if damage is not None:
            raise damage
        return None

    def fault(self, store_id: int, cluster: str, after: int) -> ArchiveDamaged | None:
        """The first damaged or missing file that a reader from revision `after` needs. Raises OSError."""
        faults = (archive.fault(store_id, cluster, after) for archive in self._of(cluster))
        return next((fault for fault in faults if fault is not None), None)

    def _of(self, cluster: str) -> Sequence[Archive]:
        return [*self._any, *(archive for (named, _), archive in self._found.items() if named == cluster)]
