"""Reading the log from etcd: catch-up by range, hand-over to the watch, and back whenever it must.

Belongs here: what is sent and awaited. Does not belong here: what an answer means for the reader's place
(watch.py).
"""

import asyncio
import random
from collections import deque
from collections.abc import AsyncGenerator, Iterable, Iterator, Mapping, Sequence
from contextlib import aclosing
from typing import Any

import grpc
import grpc.aio

from kvstore import keys
from kvstore import rpc_pb2 as rpc
from kvstore.append import decode_record
from kvstore.archives import Archives
from kvstore.backoff import delay_s
from kvstore.errors import ArchiveDamaged, HistoryTruncated, LogUnavailable, SequenceGap
from kvstore.etcd_client import RANGE, TXN, Client
from kvstore.etcd_writer import get
from kvstore.packed import Manifest, PackDamaged, covers, decode_manifest, unpack
from kvstore.types import Bookmark, Position, Record, Revision
from kvstore.vouching import UNVOUCHED, Hearing, Voucher, stands, vouchers
from kvstore.watch import (
    Merge,
    Phase,
    Reader,
    Segment,
    Tally,
    Turn,
    Verdict,
    beginnings,
    plan_segments,
    record_text,
    require_history,
)

_WATCH_FIRST, _WATCH_END = keys.watch_range()


async def read(
    client: Client, tally: Tally, after: Position, through: Revision | None, archive: Archives
) -> AsyncGenerator[Record, None]:
    """See EventLog.read."""
    async with aclosing(_catch_up(client, Reader(after, tally), through, archive)) as pieces:
        async for piece in pieces:
            for record in piece:
                yield record


async def follow(
    client: Client, tally: Tally, after: Position, archive: Archives
) -> AsyncGenerator[Record | Bookmark, None]:
    """See EventLog.follow."""
    reader = Reader(after, tally)
    tries, got_through = 0, False
    while True:
        try:
            if reader.phase is Phase.CATCH_UP:
                async with aclosing(_catch_up(client, reader, None, archive)) as pieces:
                    async for piece in pieces:
                        for record in piece:
                            yield record
                yield Bookmark(Revision(reader.revision))
            elif reader.phase is Phase.RESUME:
                await _resume(client, reader)
            else:
                async with aclosing(_watch(client, reader)) as deliveries:
                    async for delivery in deliveries:
                        yield delivery
                # A watch that etcd cancels each time must not become a busy loop.
                await asyncio.sleep(delay_s(0, random.random()))
            tries, got_through = 0, True
        except LogUnavailable:
            if not got_through or client.closed:
                raise
            reader.turn(Turn.DISCONNECTED)
            await asyncio.sleep(delay_s(tries, random.random()))
            tries += 1


async def head_position(client: Client) -> Position:
    """The position of a reader that holds everything up to now."""
    answer = await client.call(RANGE, _range_of(keys.CURSOR))
    return Position(Revision(answer.header.revision), _last(_vouchers(answer.kvs)), answer.header.cluster_id)


def _range_of(prefix: bytes, *, keys_only: bool = False) -> rpc.RangeRequest:
    first, end = keys.prefix_range(prefix)
    return rpc.RangeRequest(key=first, range_end=end, keys_only=keys_only)


def _vouchers(cursors: Iterable[rpc.KeyValue]) -> Mapping[str, Voucher]:
    return vouchers({kv.key: (kv.value, kv.mod_revision) for kv in cursors})


def _last(known: Mapping[str, Voucher]) -> dict[str, int]:
    return {name: voucher.sequence for name, voucher in known.items()}


async def _catch_up(
    client: Client, reader: Reader, through: Revision | None, archive: Archives
) -> AsyncGenerator[Sequence[Record], None]:
    """What is above the reader's place, up to the head of now or `through`, a segment at a time."""
    requests = (_range_of(keys.SEGMENT, keys_only=True), _range_of(keys.CURSOR))
    survey = await client.call(TXN, rpc.TxnRequest(success=[rpc.RequestOp(request_range=each) for each in requests]))
    segments, cursors = (each.response_range.kvs for each in survey.responses)
    start, head = reader.revision, survey.header.revision
    shelf = Shelf(archive, survey.header.cluster_id)
    markers = list(_markers(segments))
    lows = beginnings(await _lows(client), markers)
    known = _vouchers(cursors)
    reader.meet(head, survey.header.cluster_id, await shelf.missing(start, lows), _last(known))
    last = head if through is None else min(head, through)
    merge = Merge(start, last)
    try:
        plan = plan_segments(shelf.added(markers, start), start, last)
        paging = _Paging(client, reader.tally, shelf, known, head)
        async with aclosing(paging.pages(plan)) as pages:
            async for segment, records in pages:
                ready = merge.add(records, segment.settled_below)
                yield [record for record in ready if reader.accept(record) is Verdict.DELIVER]
    except SequenceGap:
        # Retention may have taken a segment between the survey and its page; then that is what happened.
        require_history(start, await shelf.missing(start, beginnings(await _lows(client), ())))
        raise
    require_history(start, await shelf.missing(start, beginnings(await _lows(client), ())))
    reader.caught_up(last, _last(known) if last == head else {})


def _markers(segments: Iterable[rpc.KeyValue]) -> Iterator[tuple[str, int, int]]:
    """Cluster, number and opening revision; a key that is no marker opens no segment."""
    for kv in segments:
        try:
            cluster, number = keys.parse_segment_key(kv.key)
        except ValueError:
            continue
        yield cluster, number, kv.create_revision


async def _lows(client: Client) -> Mapping[str, tuple[int, int]]:
    """By cluster, where its history in etcd begins: revision and segment."""
    first, end = keys.prefix_range(keys.LOW)
    answer = await client.call(RANGE, rpc.RangeRequest(key=first, range_end=end))
    return {keys.low_cluster(kv.key): keys.parse_low_value(kv.value) for kv in answer.kvs}


class Shelf:
    """What one catch-up takes from the archive: the segments that etcd has no more."""

    def __init__(self, archive: Archives, store_id: int) -> None:
        """Nothing is read yet."""
        self._archive = archive
        self._store_id = store_id
        self._manifests: Sequence[Manifest] = ()

    async def missing(self, after: int, lows: Mapping[str, int]) -> Sequence[int]:
        """The lows above `after` of clusters whose records before them are not in the archive either. Raises
        ArchiveDamaged where they would be, but for a file that is damaged or gone."""
        wanted = {cluster: low for cluster, low in lows.items() if low > after}
        if not wanted:
            return []
        missing = await self._missing(after, wanted)
        if missing and await self._archive.widened():
            missing = await self._missing(after, wanted)
        for cluster in missing:
            fault = await asyncio.to_thread(self._archive.fault, self._store_id, cluster, after)
            if fault is not None:
                raise fault
        return list(missing.values())

    async def _missing(self, after: int, wanted: Mapping[str, int]) -> Mapping[str, int]:
        self._manifests = await asyncio.to_thread(self._archive.manifests, self._store_id)
        return {
            cluster: low
            for cluster, low in wanted.items()
            if not covers([each for each in self._manifests if each.cluster == cluster], after, low)
        }

    def added(self, markers: Sequence[tuple[str, int, int]], after: int) -> Sequence[tuple[str, int, int]]:
        """The segments of etcd, and those of the archive alone that end above `after`."""
        known = {(cluster, number) for cluster, number, _ in markers}
        archived = [(each.cluster, each.segment, each.opened) for each in self._manifests if each.last_revision > after]
        return [*markers, *(each for each in archived if each[:2] not in known)]

    async def records(self, segment: Segment) -> Sequence[Record] | None:
        """From the archive; None if it has none. Raises ArchiveDamaged."""
        return await asyncio.to_thread(self._archive.records, self._store_id, segment.cluster, segment.number)


class _Paging:
    """The pages of one catch-up. `known`: the writers' cursors at revision `head`."""

    def __init__(
        self, client: Client, tally: Tally, shelf: Shelf, known: Mapping[str, Voucher], head: int
    ) -> None:
        """Nothing is read yet."""
        self._client = client
        self._tally = tally
        self._shelf = shelf
        self._known = known
        self._head = head

    async def pages(self, plan: Sequence[Segment]) -> AsyncGenerator[tuple[Segment, Sequence[Record]], None]:
        """The segments in the plan's order, a few requests under way. Not pinned: records are immutable."""
        waiting = deque(plan)
        under_way: deque[tuple[Segment, asyncio.Task[Any]]] = deque()
        call = self._client.call
        try:
            while waiting or under_way:
                while waiting and len(under_way) < self._client.limits.pages_in_flight:
                    segment = waiting.popleft()
                    under_way.append((segment, asyncio.create_task(call(TXN, _page_request(segment)))))
                segment, page = under_way[0]
                answer = await page
                under_way.popleft()
                marker, loose, packed = (each.response_range.kvs for each in answer.responses)
                if marker:
                    yield segment, self._page(segment, loose, packed)
                    continue
                # Retention has taken it; a last batch that stayed loose is not the segment.
                kept = await self._shelf.records(segment)
                if kept is None:
                    raise HistoryTruncated(segment.settled_below - 1)
                yield segment, kept
        finally:
            for _, page in under_way:
                page.cancel()
            await asyncio.gather(*(page for _, page in under_way), return_exceptions=True)

    def _page(
        self, segment: Segment, loose: Sequence[rpc.KeyValue], packed: Sequence[rpc.KeyValue]
    ) -> Sequence[Record]:
        """The segment's records, packed or not. The last batches of writers stay loose after the packing."""
        records = list(self._own(loose))
        if not packed or not packed[-1].key.endswith(b"/" + keys.MANIFEST):
            return records
        try:
            manifest = decode_manifest(packed[-1].value)
            pieces = b"".join(kv.value for kv in packed[:-1])
            whole = unpack(manifest, pieces[: manifest.size])
        except PackDamaged as damage:
            where = f"pack of segment {segment.number} of {segment.cluster} in etcd"
            raise ArchiveDamaged(where, str(damage)) from None
        known = {record.revision for record in whole}
        return [*whole, *(record for record in records if record.revision not in known)]

    def _own(self, kvs: Sequence[rpc.KeyValue]) -> Iterator[Record]:
        """Those that are records, and may be of the writer that they name."""
        for kv in kvs:
            try:
                record = decode_record(kv.key, kv.value, kv.mod_revision)
            except ValueError as error:
                self._tally.refuse(f"record at revision {kv.mod_revision}", str(error))
                continue
            if stands(record, self._known, self._head):
                yield record
            else:
                self._tally.refuse(record_text(record), UNVOUCHED)


def _page_request(segment: Segment) -> rpc.TxnRequest:
    """Whether the segment is there, and both forms that it may have, as they are at one revision."""
    ranges = (keys.log_segment(segment.cluster, segment.number), keys.pack_segment(segment.cluster, segment.number))
    return rpc.TxnRequest(
        success=[
            get(keys.segment_key(segment.cluster, segment.number), keys_only=True),
            *(rpc.RequestOp(request_range=rpc.RangeRequest(key=first, range_end=end)) for first, end in ranges),
        ]
    )


async def _resume(client: Client, reader: Reader) -> None:
    """Ask a majority, not one member, where the store stands: a member that lags is not a rewound store."""
    now = await head_position(client)
    reader.meet(now.revision, now.cluster_id, (), now.sequences)
    reader.resume(now.revision)


async def _watch(client: Client, reader: Reader) -> AsyncGenerator[Record | Bookmark, None]:
    """Records as they are stored, Bookmarks when it is quiet; returns with the reader in its next phase."""
    stream = client.watch()
    audit_at = asyncio.get_running_loop().time() + client.limits.audit_s
    live, wait_s = False, client.limits.transaction_s
    hearing = Hearing(reader.tally)
    pending: asyncio.Task[Any] | None = asyncio.create_task(_open(stream, _watch_request(reader)))
    try:
        while reader.phase is Phase.WATCH:
            pending = pending or asyncio.create_task(stream.read())
            done, _ = await asyncio.wait((pending,), timeout=wait_s)
            if done:
                if pending.cancelled():
                    raise LogUnavailable("the watch was cancelled on our side")
                answer, pending = pending.result(), None
                live, wait_s = True, client.limits.quiet_s
                for record in _heard(reader, hearing, answer):
                    yield record
                if answer.canceled:
                    client.last_error = f"etcd cancelled a watch: {answer.cancel_reason or 'compacted'}"
            elif not live:
                raise LogUnavailable("etcd did not answer the request to watch")
            else:
                yield Bookmark(Revision(reader.revision))
                audit_at = await _audit(client, reader, audit_at)
    except grpc.aio.AioRpcError as error:
        raise client.failed(error) from None
    except asyncio.InvalidStateError as error:
        raise LogUnavailable(f"the watch ended: {error}") from None
    finally:
        stream.cancel()
        if pending is not None:
            pending.cancel()
            await asyncio.gather(pending, return_exceptions=True)


async def _open(stream: Any, request: rpc.WatchRequest) -> Any:
    await stream.write(request)
    return await stream.read()


def _watch_request(reader: Reader) -> rpc.WatchRequest:
    return rpc.WatchRequest(
        create_request=rpc.WatchCreateRequest(
            key=_WATCH_FIRST,
            range_end=_WATCH_END,
            start_revision=reader.revision + 1,
            filters=[rpc.WatchCreateRequest.NODELETE],
            fragment=True,
        )
    )


def _heard(reader: Reader, hearing: Hearing, answer: Any) -> Iterator[Record]:
    """The records of one watch response; a response that ends the watch moves the reader on."""
    if answer is grpc.aio.EOF:
        raise LogUnavailable("etcd ended the watch")
    for event in answer.events:
        record = hearing.hear(event.kv.key, event.kv.value, event.kv.mod_revision)
        if record is None:
            continue
        verdict = reader.accept(record)
        if verdict is Verdict.DELIVER:
            yield record
        elif verdict is Verdict.HOLE:
            reader.turn(Turn.HOLE)
            return
    if not answer.fragment:
        hearing.settle()
    if answer.canceled:
        reader.turn(Turn.CANCELLED)


async def _audit(client: Client, reader: Reader, due: float) -> float:
    """While it is quiet, compare with the writers' cursors: etcd is known to have lost watch deliveries.

    Gives back when the next audit is due: soon, while some writer is ahead of what was delivered.
    """
    now = asyncio.get_running_loop().time()
    if now < due:
        return due
    position = await head_position(client)
    if reader.overdue(position.sequences):
        reader.turn(Turn.HOLE)
    return now + (0.0 if reader.waiting else client.limits.audit_s)
