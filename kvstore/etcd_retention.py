"""What the holder of a cluster's duty does with its history in etcd: repack, take out, and make room.

Belongs here: the transactions and the maintenance calls. Does not belong here: what is due (packed.py), files
(archive.py), when to look.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence

import msgspec

from kvstore import keys
from kvstore import rpc_pb2 as rpc
from kvstore.append import decode_record
from kvstore.errors import ArchiveDamaged, LogError, LogUnavailable
from kvstore.etcd_client import ALARM, COMPACT, DEFRAGMENT, DELETE_RANGE, PUT, RANGE, STATUS, TXN, Client
from kvstore.etcd_writer import created, delete, first, get, modified, put
from kvstore.packed import Manifest, PackDamaged, decode_manifest, encode_manifest, pack, parts, unpack
from kvstore.types import Record
from kvstore.vouching import Voucher, stands, vouchers

DELETES_MAX = 100
"""Ranges deleted in one transaction; etcd takes 128 operations."""
MAINTENANCE_S = 60.0
"""Defragmenting 500 MB takes over a second, and stops all writes meanwhile; a slow disk takes longer."""


class Segments(msgspec.Struct, frozen=True):
    """One cluster's history as etcd has it. `low` and `low_segment`: behind which revision and segment it begins, as
    was put at revision `low_touched`. `opened`: by number, the revision that opened each segment, the last of
    which is open; `packed`: by number, those that are repacked."""

    store_id: int
    revision: int
    low: int
    low_segment: int
    low_touched: int
    opened: Mapping[int, int]
    packed: Mapping[int, Manifest]

    @property
    def unpacked(self) -> Sequence[int]:
        """Sealed and not repacked, oldest first."""
        return [number for number in sorted(self.opened)[:-1] if number not in self.packed]


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
        self._packed: dict[int, Manifest] = {}
        """Manifests that were read: they never change while they are there."""

    async def segments(self) -> Segments:
        """What there is now."""
        first_key, end = keys.prefix_range(b"%b%b/" % (keys.SEGMENT, self.cluster.encode()))
        answer = await self._client.call(RANGE, rpc.RangeRequest(key=first_key, range_end=end, keys_only=True))
        opened = {keys.parse_segment_key(kv.key)[1]: kv.create_revision for kv in answer.kvs}
        unknown = [number for number in opened if number not in self._packed]
        reads = [get(keys.low_key(self.cluster)), *(get(keys.pack_manifest_key(self.cluster, n)) for n in unknown)]
        found: list[rpc.KeyValue] = []
        for start in range(0, len(reads), DELETES_MAX):
            page = await self._client.call(TXN, rpc.TxnRequest(success=reads[start : start + DELETES_MAX]))
            found += [first(each) for each in page.responses]
        low, *manifests = found
        self._packed |= {n: self._manifest(kv) for n, kv in zip(unknown, manifests, strict=True) if kv.value}
        self._packed = {number: each for number, each in self._packed.items() if number in opened}
        return Segments(
            answer.header.cluster_id,
            answer.header.revision,
            *keys.parse_low_value(low.value),
            low.mod_revision,
            opened,
            dict(self._packed),
        )

    async def seal(self, segment: int) -> bool:
        """Open the next segment if this one is open and has records; True if so. A writer meets it at its next append,
        as when another writer found the segment full."""
        head_key = keys.head_key(self.cluster)
        start, end = keys.log_segment(self.cluster, segment)
        reads = [get(head_key), rpc.RequestOp(request_range=rpc.RangeRequest(key=start, range_end=end))]
        answer = await self._client.call(TXN, rpc.TxnRequest(success=reads))
        head, known = first(answer.responses[0]), await self._vouchers()
        written = _records(answer.responses[1].response_range.kvs)
        revision = answer.header.revision
        if int(head.value or b"0") != segment or not any(stands(each, known, revision) for each in written):
            return False
        opening = [put(head_key, b"%d" % (segment + 1)), put(keys.segment_key(self.cluster, segment + 1), b"")]
        done = await self._client.call(
            TXN, rpc.TxnRequest(compare=[modified(head_key, head.mod_revision)], success=opening)
        )
        return bool(done.succeeded)

    async def pack(self, segment: int, opened: int, now_ns: int) -> tuple[Manifest, bytes] | None:
        """Repack a sealed segment; None if another did, or it has nothing. The transaction that shows the packed form
        takes the records away, but for each writer's last batch, by which it may still settle an append in doubt."""
        start, end = keys.log_segment(self.cluster, segment)
        answer = await self._client.call(RANGE, rpc.RangeRequest(key=start, range_end=end))
        known, head = await self._vouchers(), answer.header.revision
        records = [each for each in _records(answer.kvs) if stands(each, known, head)]
        if not records:
            return None
        manifest, packed = pack(records, opened, now_ns)
        for number, part in enumerate(parts(packed)):
            key = keys.pack_part_key(self.cluster, segment, number)
            await self._client.call(PUT, rpc.PutRequest(key=key, value=part))
        shown = keys.pack_manifest_key(self.cluster, segment)
        drops = self._drops(segment, manifest.sequences, known)
        done = await self._client.call(
            TXN,
            rpc.TxnRequest(
                compare=[created(shown, 0)],
                success=[put(shown, encode_manifest(manifest)), *drops[:DELETES_MAX]],
            ),
        )
        if not done.succeeded:
            return None
        await self._delete(drops[DELETES_MAX:])
        return manifest, packed

    async def fetch(self, segment: int) -> tuple[Manifest, bytes]:
        """A repacked segment, whole. Raises ArchiveDamaged, LogError if it is not there."""
        start, end = keys.pack_segment(self.cluster, segment)
        answer = await self._client.call(RANGE, rpc.RangeRequest(key=start, range_end=end))
        if not answer.kvs or not answer.kvs[-1].key.endswith(b"/" + keys.MANIFEST):
            raise LogError(f"segment {segment} of {self.cluster} is not packed in etcd")
        manifest = self._manifest(answer.kvs[-1])
        packed = b"".join(kv.value for kv in answer.kvs[:-1])[: manifest.size]
        try:
            unpack(manifest, packed)
        except PackDamaged as damage:
            raise ArchiveDamaged(f"pack of segment {segment} of {self.cluster} in etcd", str(damage)) from None
        return manifest, packed

    async def truncate(self, manifest: Manifest, low_touched: int) -> int:
        """Take a segment out of etcd and move the beginning of history behind it, in one step, unless another moved it
        since `low_touched`; gives back that of the next. The segment must be the oldest there, in the archive, and
        behind a checkpoint: the caller sees to it."""
        start, end = keys.pack_segment(self.cluster, manifest.segment)
        low = keys.low_key(self.cluster)
        answer = await self._client.call(
            TXN,
            rpc.TxnRequest(
                compare=[modified(low, low_touched)],
                success=[
                    put(low, keys.low_value(manifest.last_revision, manifest.segment)),
                    delete(keys.segment_key(self.cluster, manifest.segment)),
                    _delete_range(start, end),
                ],
            ),
        )
        if not answer.succeeded:
            raise LogUnavailable(f"another process moved the beginning of {self.cluster}'s history")
        return int(answer.header.revision)

    async def sweep(self, before: int) -> int:
        """Delete what stayed loose below segment `before`, but for last batches of writers that have not gone on."""
        start, end = keys.prefix_range(b"%b%b/" % (keys.LOG, self.cluster.encode()))
        end = min(end, keys.log_segment(self.cluster, before)[0])
        answer = await self._client.call(RANGE, rpc.RangeRequest(key=start, range_end=end, keys_only=True))
        known = await self._vouchers()
        drops = []
        for kv in answer.kvs:
            at = keys.parse_log_key(kv.key)
            voucher = known.get(f"{self.cluster}/{at.writer}")
            if voucher is None or voucher.sequence != at.sequence:
                drops.append(delete(kv.key))
        await self._delete(drops)
        return len(drops)

    async def space(self) -> Space:
        """How full etcd is."""
        status = await self._client.send_each(STATUS, rpc.StatusRequest(), self._client.limits.call_s)
        alarms = await self._client.call(ALARM, rpc.AlarmRequest(action=rpc.AlarmRequest.GET))
        is_full = any(each.alarm == rpc.NOSPACE for each in alarms.alarms)
        return Space(max(each.dbSize for each in status), max(each.dbSizeInUse for each in status), is_full)

    async def drop_packed(self, segment: int) -> None:
        """Delete the oldest segment, which is packed, without moving `low`: a full etcd refuses puts, and takes a plain
        delete. Readers see which segment is the oldest. `truncate` follows when there is room."""
        start, end = keys.pack_segment(self.cluster, segment)
        marker = keys.segment_key(self.cluster, segment)
        await self._client.call(DELETE_RANGE, rpc.DeleteRangeRequest(key=marker))
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

    async def _vouchers(self) -> Mapping[str, Voucher]:
        start, end = keys.prefix_range(b"%b%b/" % (keys.CURSOR, self.cluster.encode()))
        answer = await self._client.call(RANGE, rpc.RangeRequest(key=start, range_end=end))
        return vouchers({kv.key: (kv.value, kv.mod_revision) for kv in answer.kvs})

    def _drops(
        self, segment: int, sequences: Mapping[str, int], known: Mapping[str, Voucher]
    ) -> Sequence[rpc.RequestOp]:
        """Deletes of a segment's records by writer, but for the one that its cursor names."""
        drops = []
        for writer, sequence in sorted(sequences.items()):
            before = sequence if known[f"{self.cluster}/{writer}"].sequence <= sequence else None
            drops.append(_delete_range(*keys.log_writer(self.cluster, segment, writer, before)))
        return drops

    async def _delete(self, drops: Sequence[rpc.RequestOp]) -> None:
        for start in range(0, len(drops), DELETES_MAX):
            await self._client.call(TXN, rpc.TxnRequest(success=drops[start : start + DELETES_MAX]))


def _records(kvs: Iterable[rpc.KeyValue]) -> Iterator[Record]:
    """Those that can be read: readers refuse the others, packed or not."""
    for kv in kvs:
        try:
            yield decode_record(kv.key, kv.value, kv.mod_revision)
        except ValueError:
            continue


def _delete_range(start: bytes, end: bytes) -> rpc.RequestOp:
    return rpc.RequestOp(request_delete_range=rpc.DeleteRangeRequest(key=start, range_end=end))
