"""A cluster's history in the store of a simulated mesh: sealed, archived, taken out, and read again from the archive.

Belongs here: what kvstore/etcd_retention.py and etcd_catchup.py do in etcd, over a store in memory, and reading with
archives. Does not belong here: when history leaves (controlplane/runtime/retention.py runs in the simulated operators).
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from kvstore import keys, packed
from kvstore.archive import Archive
from kvstore.errors import LogError, LogUnavailable
from kvstore.etcd_retention import Segments, Space
from kvstore.memory import MemoryLog, MemoryStore, _Kept
from kvstore.packed import Manifest, Sealed
from kvstore.types import Record
from kvstore.watch import Reader, Verdict

if TYPE_CHECKING:
    from tests.simulation.process import Process

Archives = Sequence[tuple[str, Path]]
"""Clusters, and a directory each that may have their history."""


class HistoryStore(MemoryStore):
    """A store whose clusters' histories begin each for itself. What stands in etcd under keys does here, so that a restored
    store has what it had."""

    def __init__(self) -> None:
        super().__init__()
        self.gone: list[tuple[int, Sequence[Record]]] = []
        """What left, and at which revision: a backup from before has it still."""

    def table(self, prefix: bytes) -> Mapping[bytes, _Kept]:
        """By key, what is kept below a prefix."""
        return {key: kept for key, kept in sorted(self.kept.items()) if key.startswith(prefix)}

    def lows(self) -> Mapping[str, tuple[int, int]]:
        """By cluster, the revision and segment behind which its history begins."""
        found = self.table(keys.LOW)
        return {keys.low_cluster(key): keys.parse_low_value(kept.value) for key, kept in found.items()}

    def sealed(self, cluster: str) -> Sealed:
        """How far its records are in segments."""
        kept = self.kept.get(keys.sealed_key(cluster))
        return packed.decode_sealed(kept.value if kept else b"")

    def take_out(self, cluster: str, manifest: Manifest) -> int:
        """The revision at which a segment leaves."""
        low = keys.low_value(manifest.last_revision, manifest.segment)
        revision = self.put(keys.low_key(cluster), low)
        for start, end in (keys.segment_number(cluster, manifest.segment), keys.pack_segment(cluster, manifest.segment)):
            for key in [each for each in self.kept if start <= each < end]:
                self._set(key, None)
        gone = [each for each in self.records if each.cluster == cluster and each.revision <= manifest.last_revision]
        self.gone.append((revision, gone))
        self._forget()
        self.records = [each for each in self.records if each not in gone]
        return int(revision)

    def restore(self, revision: int, *, cluster_id: int | None = None) -> None:
        """See MemoryStore; what left later is there again."""
        back = [record for at, records in self.gone if at > revision for record in records]
        self.gone = [(at, records) for at, records in self.gone if at <= revision]
        self.records = sorted([*self.records, *back], key=lambda record: record.revision)
        self._forget()
        super().restore(revision, cluster_id=cluster_id)

    def _forget(self) -> None:
        self._truncated = {
            f"{record.cluster}/{record.writer}": record.sequence for _, records in self.gone for record in records
        }


class ArchivedLog(MemoryLog):
    """A log that finds in archives what its store has no more; of clusters without one, history begins where it does."""

    def __init__(self, store: HistoryStore, archives: Archives = ()) -> None:
        super().__init__(store)
        self.store: HistoryStore = store
        self._archives = [(cluster, Archive(directory)) for cluster, directory in archives]

    def _manifests(self, cluster: str) -> Mapping[int, tuple[Archive, Manifest]]:
        found: dict[int, tuple[Archive, Manifest]] = {}
        for named, archive in self._archives:
            for each in archive.manifests(self.store.cluster_id) if named == cluster else ():
                if each.cluster == cluster and each.segment <= self.store.sealed(cluster).segment:
                    found.setdefault(each.segment, (archive, each))
        return found

    def _begin(self, reader: Reader) -> tuple[int, dict[str, int]]:
        missing = [
            low
            for cluster, (low, _) in self.store.lows().items()
            if low > reader.revision
            and not packed.covers([each for _, each in self._manifests(cluster).values()], reader.revision, low)
        ]
        reader.meet(self.store.revision, self.store.cluster_id, missing, self.store.sequences)
        self._confirm(reader, [low for low, _ in self.store.lows().values()])
        return self.store.revision, dict(self.store.sequences)

    def _range(self, reader: Reader, through: int) -> Iterator[Record]:
        after = reader.revision
        records = self.store.records[self.store.first_after(after) :]
        for cluster, (low, _) in self.store.lows().items():
            for number, (archive, each) in self._manifests(cluster).items() if low > after else ():
                if each.opened <= low and each.last_revision > after:
                    records += archive.records(self.store.cluster_id, cluster, number) or ()
        for record in sorted(records, key=lambda record: record.revision):
            if after < record.revision <= through and reader.accept(record) is Verdict.DELIVER:
                yield record


class SimulatedRetention:
    """One process's way to its cluster's history: slow, cut off at times; between any two steps the process may die."""

    def __init__(self, process: "Process", cluster: str) -> None:
        self.cluster = cluster
        self._process = process
        self._store = process.mesh.store

    async def segments(self) -> Segments:
        """See kvstore.etcd_retention.Retention, here and below."""
        await self._reach("before history")
        store, sealed = self._store, self._store.sealed(self.cluster)
        low, number = store.lows().get(self.cluster, (0, 0))
        touched = store.kept.get(keys.low_key(self.cluster))
        loose = self._loose(sealed)
        return Segments(
            store_id=store.cluster_id,
            revision=store.revision,
            low=low,
            low_segment=number,
            low_touched=touched.revision if touched else 0,
            sealed=sealed,
            packed={each.segment: each for each in map(self._manifest, store.table(keys.segments_cluster(self.cluster)[0]).values())},
            loose_records=len(loose),
            loose_bytes=sum(len(each.payload) for each in loose),
        )

    async def seal(self, now_ns: int, segments_max: int = 1, *, rest: bool = True) -> Sequence[tuple[Manifest, bytes]]:
        await self._reach("before history")
        made: list[tuple[Manifest, bytes]] = []
        while len(made) < segments_max:
            sealed, touched = self._store.sealed(self.cluster), self._touched()
            records = self._loose(sealed)[: packed.SEGMENT_RECORDS_MAX]
            if not records or not (rest or packed.is_full(len(records), 0)):
                break
            manifest, content = packed.pack(records, sealed.segment + 1, sealed.through + 1, now_ns)
            await self._reach("before seal")
            if self._touched() != touched:
                break
            shown = keys.segment_key(self.cluster, manifest.segment, manifest.opened, manifest.last_revision)
            self._store.put(keys.sealed_key(self.cluster), packed.encode_sealed(packed.sealed_after(sealed, manifest, records)))
            self._store._set(shown, _Kept(packed.encode_manifest(manifest), self._store.revision))
            self._store._set(self._piece(manifest), _Kept(content, self._store.revision))
            self._process.mesh.seen["segment sealed"] += 1
            self._process.mesh.note(f"{self._process.name} seals segment {manifest.segment} of {self.cluster}")
            made.append((manifest, content))
            await self._reach("after seal")
        return made

    async def fetch(self, segment: int) -> tuple[Manifest, bytes]:
        await self._reach("before history")
        start, end = keys.segment_number(self.cluster, segment)
        found = [kept for key, kept in self._store.kept.items() if start <= key < end]
        if not found:
            raise LogError(f"segment {segment} of {self.cluster} is not in etcd")
        manifest = self._manifest(found[0])
        return manifest, self._store.kept[self._piece(manifest)].value

    async def truncate(self, manifest: Manifest, low_touched: int) -> int:
        store_id = self._store.cluster_id
        await self._reach("before truncate")
        if self._store.cluster_id != store_id:
            raise LogUnavailable("what was under way is lost when a store is put back")
        touched = self._store.kept.get(keys.low_key(self.cluster))
        if (touched.revision if touched else 0) != low_touched:
            raise LogUnavailable(f"another process moved the beginning of {self.cluster}'s history")
        self._process.mesh.witness.leaves(self.cluster, manifest)
        revision = self._store.take_out(self.cluster, manifest)
        self._process.mesh.seen["segment left"] += 1
        self._process.mesh.note(f"{self._process.name}: history of {self.cluster} begins after {manifest.last_revision}")
        await self._reach("after truncate")
        return revision

    async def space(self) -> Space:
        await self._reach("before history")
        return Space(0, 0, False)

    async def drop_checkpoint(self, revision: int) -> None:
        await self._reach("before put")
        first, end = keys.list_range(f"checkpoint/{self.cluster}/")
        end = min(end, keys.PREFIX + b"checkpoint/%b/%016x/" % (self.cluster.encode(), revision))
        for key in [each for each in self._store.kept if first <= each < end]:
            self._store._set(key, None)

    async def _reach(self, point: str) -> None:
        await self._process.at(point)
        await self._process.latency()
        if self._process.is_dead or not self._process.log.connected:
            raise LogUnavailable(f"{point}: the log is away")

    def _piece(self, manifest: Manifest) -> bytes:
        return keys.pack_part_key(self.cluster, manifest.segment, manifest.digest, 0)

    def _touched(self) -> int:
        kept = self._store.kept.get(keys.sealed_key(self.cluster))
        return kept.revision if kept else 0

    def _loose(self, sealed: Sealed) -> Sequence[Record]:
        return [each for each in self._store.records if each.cluster == self.cluster and each.revision > sealed.through]

    def _manifest(self, kept: _Kept) -> Manifest:
        return packed.decode_manifest(kept.value)
