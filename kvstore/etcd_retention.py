"""What the holder of a cluster's duty does with its history in etcd: seal, take out, and make room.

Belongs here: the transactions and the maintenance calls. Does not belong here: what is due (packed.py), files
(archive.py), when to look.
"""

from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing, suppress

import msgspec

from kvstore import keys, packed
from kvstore import rpc_pb2 as rpc
from kvstore.append import Cursor
from kvstore.errors import ArchiveDamaged, LogError, LogUnavailable
from kvstore.etcd_catchup import Paging, Resealed, survey, tails, whole
from kvstore.etcd_client import ALARM, COMPACT, DEFRAGMENT, DELETE_RANGE, PUT, RANGE, STATUS, TXN, Client
from kvstore.etcd_writer import created, first, get, modified, put
from kvstore.lanes import Lane, Lanes, Segment
from kvstore.packed import Manifest, PackDamaged, Sealed, decode_manifest, encode_manifest, parts, unpack
from kvstore.types import Position, Record
from kvstore.watch import Reader, Tally

DELETES_MAX = 100
"""Ranges deleted in one transaction; etcd takes 128 operations."""
MAINTENANCE_S = 60.0
"""Defragmenting 500 MB takes over a second, and stops all writes meanwhile; a slow disk takes longer."""


class Segments(msgspec.Struct, frozen=True):
    """One cluster's history as etcd has it. `low` and `low_segment`: behind which revision and segment it begins, as
    was put at revision `low_touched`. `packed`: the segments, by number; `sealed`: how far they go, all ever made;
    `loose_records` and `loose_bytes`: what has come since."""

    store_id: int
    revision: int
    low: int
    low_segment: int
    low_touched: int
    sealed: Sealed
    packed: Mapping[int, Manifest]
    loose_records: int
    loose_bytes: int

    @property
    def open_segment(self) -> int:
        """The number that the next segment will have."""
        return self.sealed.segment + 1

    @property
    def oldest(self) -> int:
        """The number of the first segment that etcd has, or will have."""
        return min(self.packed, default=self.open_segment)

    @property
    def is_full(self) -> bool:
        """Whether what is loose is enough for a segment."""
        return packed.is_full(self.loose_records, self.loose_bytes)


class Space(msgspec.Struct, frozen=True):
    """What etcd's file takes, how much of it is in use, in bytes of the largest member, and whether it is full."""

    file_bytes: int
    used_bytes: int
    is_full: bool


class Retention:
    """One cluster's. Made by EtcdLog.retention. Every call raises LogError."""

    def __init__(self, client: Client, cluster: str) -> None:
        """Nothing is sent."""
        self._client = client
        self.cluster = cluster
        self._packed: dict[Segment, Manifest] = {}
        """Manifests that were read: they never change while they are there."""

    async def segments(self) -> Segments:
        """What there is now."""
        found = await survey(self._client, self.cluster)
        unknown = [each for each in found.segments if each not in self._packed]
        reads = [get(keys.segment_key(self.cluster, each.number, each.opened, each.through)) for each in unknown]
        for start in range(0, len(reads), DELETES_MAX):
            page = await self._client.call(TXN, rpc.TxnRequest(success=reads[start : start + DELETES_MAX]))
            for each, answer in zip(unknown[start:], page.responses, strict=False):
                kv = first(answer)
                if kv.value:
                    self._packed[each] = self._manifest(kv)
        self._packed = {each: self._packed[each] for each in found.segments if each in self._packed}
        sealed, low = found.sealed.get(self.cluster, Sealed()), found.lows.get(self.cluster, (0, 0))
        ends = [(cursor, sealed.ended(name.partition("/")[2])) for name, cursor in found.cursors.items()]
        return Segments(
            store_id=found.store_id,
            revision=found.revision,
            low=low[0],
            low_segment=low[1],
            low_touched=found.low_touched,
            sealed=sealed,
            packed={each.number: manifest for each, manifest in self._packed.items()},
            loose_records=sum(max(0, cursor.sequence - end.sequence) for cursor, end in ends),
            loose_bytes=sum(max(0, cursor.size - end.size) for cursor, end in ends),
        )

    async def seal(
        self, now_ns: int, segments_max: int = 1, *, rest: bool = True
    ) -> Sequence[tuple[Manifest, bytes]]:
        """Put the oldest loose records into segments, as many as they fill, and with `rest` what is left over into one
        more; gives those that were made, which are fewer if another seals too."""
        found = await survey(self._client, self.cluster)
        sealed, touched = found.sealed.get(self.cluster, Sealed()), found.sealed_touched.get(self.cluster, 0)
        lane = Lane(self.cluster, (), tails(found, self.cluster, Reader(Position(), Tally())))
        lanes = Lanes([lane], sealed.through, found.revision, self._client.limits.pages_in_flight)
        made: list[tuple[Manifest, bytes]] = []
        async with aclosing(self._cut(Paging(self._client, Tally(), found).pages(lanes), rest)) as pieces:
            async for records in pieces:
                manifest, content = packed.pack(records, sealed.segment + 1, sealed.through + 1, now_ns)
                sealed = packed.sealed_after(sealed, manifest, records)
                touched = await self._show(manifest, content, sealed, touched, found.cursors)
                if not touched:
                    break
                made.append((manifest, content))
                if len(made) == segments_max:
                    break
        return made

    async def _cut(
        self, pages: AsyncGenerator[Sequence[Record], None], rest: bool
    ) -> AsyncGenerator[Sequence[Record], None]:
        """A segment's worth at a time; no more once another has sealed what was to come."""
        records: list[Record] = []
        size = 0
        async with aclosing(pages):
            with suppress(Resealed):
                async for ready in pages:
                    for record in ready:
                        records.append(record)
                        size += len(record.payload)
                        if packed.is_full(len(records), size):
                            yield records
                            records, size = [], 0
                if rest and records:
                    yield records

    async def _show(
        self, manifest: Manifest, content: bytes, sealed: Sealed, touched: int, cursors: Mapping[str, Cursor]
    ) -> int:
        """Store a segment, and take its records away, but for each writer's last batch, by which it may still settle an
        append in doubt; the revision, 0 if another sealed since `touched`."""
        for number, part in enumerate(parts(content)):
            key = keys.pack_part_key(self.cluster, manifest.segment, manifest.digest, number)
            await self._client.call(PUT, rpc.PutRequest(key=key, value=part))
        sealed_key = keys.sealed_key(self.cluster)
        shown = keys.segment_key(self.cluster, manifest.segment, manifest.opened, manifest.last_revision)
        puts = [put(shown, encode_manifest(manifest)), put(sealed_key, packed.encode_sealed(sealed))]
        drops = self._drops(manifest, cursors)
        done = await self._client.call(
            TXN,
            rpc.TxnRequest(compare=[modified(sealed_key, touched)], success=[*puts, *drops[:DELETES_MAX]]),
        )
        if not done.succeeded:
            # The same pieces may be in use, if the other saw the same records.
            own = keys.pack_pieces(self.cluster, manifest.segment, manifest.digest)
            drop = [_delete_range(*keys.prefix_range(own))]
            await self._client.call(TXN, rpc.TxnRequest(compare=[created(shown, 0)], success=drop))
            return 0
        await self._delete(drops[DELETES_MAX:])
        return int(done.header.revision)

    async def fetch(self, segment: int) -> tuple[Manifest, bytes]:
        """A repacked segment, whole. Raises ArchiveDamaged, LogError if it is not there."""
        ranges = [keys.segment_number(self.cluster, segment), keys.pack_segment(self.cluster, segment)]
        reads = [rpc.RequestOp(request_range=rpc.RangeRequest(key=start, range_end=end)) for start, end in ranges]
        answer = await self._client.call(TXN, rpc.TxnRequest(success=reads))
        manifests, pieces = (each.response_range.kvs for each in answer.responses)
        if not manifests:
            raise LogError(f"segment {segment} of {self.cluster} is not in etcd")
        manifest = self._manifest(manifests[0])
        content = whole(manifest, pieces)
        try:
            unpack(manifest, content)
        except PackDamaged as damage:
            raise ArchiveDamaged(f"segment {segment} of {self.cluster} in etcd", str(damage)) from None
        return manifest, content

    async def truncate(self, manifest: Manifest, low_touched: int) -> int:
        """Take a segment out of etcd and move the beginning of history behind it, in one step, unless another moved it
        since `low_touched`; gives back that of the next. The segment must be the oldest there, in the archive, and
        behind a checkpoint: the caller sees to it."""
        low = keys.low_key(self.cluster)
        answer = await self._client.call(
            TXN,
            rpc.TxnRequest(
                compare=[modified(low, low_touched)],
                success=[
                    put(low, keys.low_value(manifest.last_revision, manifest.segment)),
                    _delete_range(*keys.segment_number(self.cluster, manifest.segment)),
                    _delete_range(*keys.pack_segment(self.cluster, manifest.segment)),
                ],
            ),
        )
        if not answer.succeeded:
            raise LogUnavailable(f"another process moved the beginning of {self.cluster}'s history")
        return int(answer.header.revision)

    async def space(self) -> Space:
        """How full etcd is."""
        status = await self._client.send_each(STATUS, rpc.StatusRequest(), self._client.limits.call_s)
        alarms = await self._client.call(ALARM, rpc.AlarmRequest(action=rpc.AlarmRequest.GET))
        is_full = any(each.alarm == rpc.NOSPACE for each in alarms.alarms)
        return Space(max(each.dbSize for each in status), max(each.dbSizeInUse for each in status), is_full)

    async def drop_packed(self, segment: int) -> None:
        """Delete the oldest segment without moving `low`: a full etcd refuses puts, and takes a plain delete. Readers
        see which segment is the oldest. `truncate` follows when there is room."""
        for start, end in (keys.segment_number(self.cluster, segment), keys.pack_segment(self.cluster, segment)):
            await self._client.call(DELETE_RANGE, rpc.DeleteRangeRequest(key=start, range_end=end))

    async def make_room(self) -> Space:
        """Give back what was deleted and overwritten: compact, defragment one member after the other, disarm. In this
        order: an alarm that is disarmed before the file has shrunk comes back at once."""
        head = await self._client.call(RANGE, rpc.RangeRequest(key=keys.LOG, count_only=True))
        try:
            await self._client.call(
                COMPACT, rpc.CompactionRequest(revision=head.header.revision, physical=True), MAINTENANCE_S
            )
        except LogError as error:
            if "compacted" not in str(error):
                raise
        await self._client.send_each(DEFRAGMENT, rpc.DefragmentRequest(), MAINTENANCE_S)
        alarms = await self._client.call(ALARM, rpc.AlarmRequest(action=rpc.AlarmRequest.GET))
        for each in alarms.alarms:
            if each.alarm == rpc.NOSPACE:
                disarm = rpc.AlarmRequest(
                    action=rpc.AlarmRequest.DEACTIVATE, memberID=each.memberID, alarm=rpc.NOSPACE
                )
                await self._client.call(ALARM, disarm)
        return await self.space()

    async def drop_checkpoint(self, revision: int) -> None:
        """Delete the parts of the cluster's checkpoints below a revision."""
        start, end = keys.prefix_range(keys.PREFIX + b"checkpoint/%b/" % self.cluster.encode())
        end = min(end, keys.PREFIX + b"checkpoint/%b/%016x/" % (self.cluster.encode(), revision))
        await self._delete([_delete_range(start, end)])

    def _manifest(self, kv: rpc.KeyValue) -> Manifest:
        try:
            return decode_manifest(kv.value)
        except PackDamaged as damage:
            raise ArchiveDamaged(keys.relative(kv.key) + " in etcd", str(damage)) from None

    def _drops(self, manifest: Manifest, cursors: Mapping[str, Cursor]) -> Sequence[rpc.RequestOp]:
        """Deletes of what a segment holds, with last batches that stayed loose before, by writer; but for the record
        that a writer's cursor names."""
        drops = []
        for writer, sequence in sorted(manifest.sequences.items()):
            is_last = cursors[f"{self.cluster}/{writer}"].sequence <= sequence
            drops.append(_delete_range(*keys.log_sequences(self.cluster, writer, 0, sequence - is_last)))
        return drops

    async def _delete(self, drops: Sequence[rpc.RequestOp]) -> None:
        for start in range(0, len(drops), DELETES_MAX):
            await self._client.call(TXN, rpc.TxnRequest(success=drops[start : start + DELETES_MAX]))


def _delete_range(start: bytes, end: bytes) -> rpc.RequestOp:
    return rpc.RequestOp(request_delete_range=rpc.DeleteRangeRequest(key=start, range_end=end))
