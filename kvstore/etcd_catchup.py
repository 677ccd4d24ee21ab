"""Reading records from etcd by range: what there is, page by page, and from the archive what etcd has no more.

Belongs here: what is sent and awaited. Does not belong here: which page comes next and how pages merge (lanes.py), what
a record means for the reader's place (watch.py).
"""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import aclosing, suppress
from typing import Any

import msgspec

from kvstore import keys
from kvstore import rpc_pb2 as rpc
from kvstore.append import Cursor, decode_cursor, decode_record
from kvstore.archives import Archives
from kvstore.errors import ArchiveDamaged, HistoryTruncated, SequenceGap
from kvstore.etcd_client import RANGE, TXN, Client
from kvstore.etcd_writer import first, get
from kvstore.lanes import RANGES_MAX, Lane, Lanes, Loose, Page, Segment, Tail, needed
from kvstore.packed import Manifest, PackDamaged, Sealed, covers, decode_manifest, decode_sealed, unpack
from kvstore.types import Position, Record, Revision
from kvstore.watch import Reader, Tally, Verdict, beginnings, not_there, require_history


class Survey(msgspec.Struct, frozen=True):
    """What there is to read, at one revision. `sealed` and `sealed_touched` (the revision of its key) are by cluster,
    `cursors` by "cluster/writer"."""

    revision: int
    store_id: int
    segments: Sequence[Segment]
    sealed: Mapping[str, Sealed]
    sealed_touched: Mapping[str, int]
    cursors: Mapping[str, Cursor]
    lows: Mapping[str, tuple[int, int]]
    low_touched: int
    """The latest change of any of these."""

    @property
    def sequences(self) -> dict[str, int]:
        """Of the cursors."""
        return {name: cursor.sequence for name, cursor in self.cursors.items()}

    def begins(self) -> Mapping[str, int]:
        """By cluster, the revision behind which its history in etcd begins."""
        markers = [(each.cluster, each.number, each.opened) for each in self.segments]
        markers += [(cluster, each.segment + 1, each.through + 1) for cluster, each in self.sealed.items()]
        return beginnings(self.lows, markers)


class Resealed(Exception):
    """Loose records went into a segment meanwhile: survey again."""


async def survey(client: Client, cluster: str | None = None) -> Survey:
    """Of all clusters, or one. Raises LogError."""
    below = b"" if cluster is None else cluster.encode() + b"/"
    exact = b"" if cluster is None else cluster.encode()
    ranges = [
        _range_of(keys.SEGMENT + below, keys_only=True),
        _range_of(keys.CURSOR + below),
        _range_of(keys.SEALED) if cluster is None else rpc.RangeRequest(key=keys.SEALED + exact),
        _range_of(keys.LOW) if cluster is None else rpc.RangeRequest(key=keys.LOW + exact),
    ]
    answer = await client.call(TXN, rpc.TxnRequest(success=[rpc.RequestOp(request_range=each) for each in ranges]))
    segments, cursors, sealed, lows = (each.response_range.kvs for each in answer.responses)
    return Survey(
        answer.header.revision,
        answer.header.cluster_id,
        [Segment(each.cluster, each.number, each.opened, each.through) for each in _segment_keys(segments)],
        {keys.sealed_cluster(kv.key): _sealed(kv) for kv in sealed},
        {keys.sealed_cluster(kv.key): kv.mod_revision for kv in sealed},
        cursors_of(cursors),
        {keys.low_cluster(kv.key): keys.parse_low_value(kv.value) for kv in lows},
        max((kv.mod_revision for kv in lows), default=0),
    )


async def head_position(client: Client) -> Position:
    """The position of a reader that holds everything up to now."""
    answer = await client.call(RANGE, _range_of(keys.CURSOR))
    sequences = {name: cursor.sequence for name, cursor in cursors_of(answer.kvs).items()}
    return Position(Revision(answer.header.revision), sequences, answer.header.cluster_id)


def cursors_of(kvs: Iterable[rpc.KeyValue]) -> Mapping[str, Cursor]:
    """By "cluster/writer". One that cannot be read counts nothing: a writer can spoil its own, and must not stop those
    who read the others."""
    found = {}
    for kv in kvs:
        with suppress(ValueError):
            found[keys.parse_cursor_key(kv.key)] = decode_cursor(kv.value)
    return found


def tails(found: Survey, cluster: str, reader: Reader) -> Iterator[Tail]:
    """What a cluster's writers have loose and the reader does not hold."""
    sealed = found.sealed.get(cluster, Sealed())
    for name, cursor in found.cursors.items():
        where, _, writer = name.partition("/")
        if where == cluster:
            ended = sealed.ended(writer)
            mean = (cursor.size - ended.size) / max(1, cursor.sequence - ended.sequence)
            first_sequence = max(ended.sequence, reader.held(name)) + 1
            yield Tail(writer, first_sequence, cursor.sequence, mean, max(sealed.through, reader.revision) + 1)


async def catch_up(
    client: Client, reader: Reader, through: Revision | None, archive: Archives
) -> AsyncGenerator[Sequence[Record], None]:
    """What is above the reader's place, up to the head of now or `through`, a page at a time."""
    while True:
        held = await held_revisions(client, reader)
        found = await survey(client)
        confirm(reader, held, found)
        last = found.revision if through is None else min(found.revision, through)
        try:
            doubt = Doubt(reader, held, found.segments)
            async with aclosing(_pass(client, reader, found, last, archive, doubt)) as pieces:
                async for piece in pieces:
                    yield piece
        except Resealed:
            continue
        break
    reader.caught_up(last, found.sequences if last == found.revision else {})


async def held_revisions(client: Client, reader: Reader) -> Collection[int]:
    """Where the store has, loose, what the reader holds as each writer's last. Before a survey: what is sealed in
    between is in a segment of that. Raises LogError."""
    wanted = []
    for name, sequence in sorted(reader.position().sequences.items()) if reader.last else ():
        cluster, _, writer = name.partition("/")
        wanted.append(keys.log_key(cluster, writer, sequence))
    found: set[int] = set()
    for start in range(0, len(wanted), RANGES_MAX):
        reads = [get(key, keys_only=True) for key in wanted[start : start + RANGES_MAX]]
        answer = await client.call(TXN, rpc.TxnRequest(success=reads))
        found.update(first(each).mod_revision for each in answer.responses)
    return found - {0}


def confirm(reader: Reader, held: Collection[int], found: Survey) -> None:
    """Raises LogRewound where the store is another one than the reader has read."""
    spans = ((each.opened, each.through) for each in found.segments)
    reader.confirm(held, spans, list(found.begins().values()))


class Doubt:
    """Whether the record that a reader took last is in one of the segments that may have it and are read."""

    def __init__(self, reader: Reader, held: Collection[int], segments: Iterable[Segment]) -> None:
        """None where it is known to be there, or cannot be known."""
        self._last, self._sequences = reader.last, reader.position().sequences
        spanning = [each for each in segments if each.opened <= self._last <= each.through]
        is_known = not self._last or self._last in held or any(each.through == self._last for each in spanning)
        self._left = set() if is_known else {(each.cluster, each.number) for each in spanning}

    def read(self, segment: Segment, records: Iterable[Record]) -> None:
        """One has come. Raises LogRewound when none has it."""
        place = (segment.cluster, segment.number)
        if place not in self._left:
            return
        self._left.discard(place)
        if any(record.revision == self._last and self._is_held(record) for record in records):
            self._left.clear()
        elif not self._left:
            raise not_there(self._last)

    def _is_held(self, record: Record) -> bool:
        return self._sequences.get(f"{record.cluster}/{record.writer}") == record.sequence


async def _pass(
    client: Client, reader: Reader, found: Survey, last: int, archive: Archives, doubt: Doubt
) -> AsyncGenerator[Sequence[Record], None]:
    start, shelf = reader.revision, Shelf(archive, found.store_id)
    reader.meet(found.revision, found.store_id, await shelf.missing(start, found.begins()), found.sequences)
    segments = [*found.segments, *shelf.others(found)]
    clusters = sorted({name.partition("/")[0] for name in found.cursors} | {each.cluster for each in segments})
    lanes = [
        Lane(
            cluster,
            needed((each for each in segments if each.cluster == cluster), start, last),
            tails(found, cluster, reader),
        )
        for cluster in clusters
    ]
    paging = Paging(client, reader.tally, found, shelf, doubt)
    try:
        async with aclosing(paging.pages(Lanes(lanes, start, last, client.limits.pages_in_flight))) as pages:
            async for records in pages:
                yield [record for record in records if reader.accept(record) is Verdict.DELIVER]
    except SequenceGap:
        # Retention may have taken a segment between the survey and its page; then that is what happened.
        require_history(start, await shelf.missing(start, await _lows(client)))
        raise
    require_history(start, await shelf.missing(start, await _lows(client)))


async def _lows(client: Client) -> Mapping[str, int]:
    """By cluster, the revision behind which its history in etcd begins, as the store says it."""
    answer = await client.call(RANGE, _range_of(keys.LOW))
    return {keys.low_cluster(kv.key): keys.parse_low_value(kv.value)[0] for kv in answer.kvs}


def _range_of(prefix: bytes, *, keys_only: bool = False) -> rpc.RangeRequest:
    start, end = keys.prefix_range(prefix)
    return rpc.RangeRequest(key=start, range_end=end, keys_only=keys_only)


def _segment_keys(kvs: Iterable[rpc.KeyValue]) -> Iterator[keys.SegmentKey]:
    """A key that is no segment's opens none."""
    for kv in kvs:
        with suppress(ValueError):
            yield keys.parse_segment_key(kv.key)


def _sealed(kv: rpc.KeyValue) -> Sealed:
    try:
        return decode_sealed(kv.value)
    except PackDamaged as damage:
        raise ArchiveDamaged(keys.relative(kv.key) + " in etcd", str(damage)) from None


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
        self._manifests = await asyncio.to_thread(self._archive.manifests, self._store_id, wanted)
        return {
            cluster: low
            for cluster, low in wanted.items()
            if not covers([each for each in self._manifests if each.cluster == cluster], after, low)
        }

    def others(self, found: Survey) -> Sequence[Segment]:
        """The segments that the archive alone has, as far as its cluster's are sealed."""
        known = {(each.cluster, each.number) for each in found.segments}
        return [
            Segment(each.cluster, each.segment, each.opened, each.last_revision)
            for each in self._manifests
            if (each.cluster, each.segment) not in known
            and each.segment <= found.sealed.get(each.cluster, Sealed()).segment
        ]

    async def records(self, segment: Segment) -> Sequence[Record] | None:
        """From the archive; None if it has none. Raises ArchiveDamaged."""
        return await asyncio.to_thread(self._archive.records, self._store_id, segment.cluster, segment.number)


class Paging:
    """The pages of one pass over what a survey has found. Without a shelf, a segment that is gone is truncated."""

    def __init__(
        self, client: Client, tally: Tally, found: Survey, shelf: Shelf | None = None, doubt: Doubt | None = None
    ) -> None:
        """Nothing is read yet."""
        self._client = client
        self._tally = tally
        self._found = found
        self._shelf = shelf
        self._doubt = doubt

    async def pages(self, lanes: Lanes) -> AsyncGenerator[Sequence[Record], None]:
        """Records in the one order, a few requests under way. Not pinned to a revision: records are immutable. Raises
        Resealed, HistoryTruncated, ArchiveDamaged, LogError."""
        under_way: deque[tuple[Page, asyncio.Task[Any]]] = deque()
        try:
            while True:
                while (page := lanes.ask()) is not None:
                    under_way.append((page, asyncio.create_task(self._client.call(TXN, _request(page)))))
                if not under_way:
                    return
                page, task = under_way[0]
                answer = await task
                under_way.popleft()
                if isinstance(page, Loose):
                    yield lanes.take(page, self._loose(page, answer))
                else:
                    yield lanes.take(page, await self._segment(page, answer))
        finally:
            for _, task in under_way:
                task.cancel()
            await asyncio.gather(*(task for _, task in under_way), return_exceptions=True)

    async def _segment(self, segment: Segment, answer: rpc.TxnResponse) -> Sequence[Record]:
        manifests, pieces = (each.response_range.kvs for each in answer.responses)
        if manifests:
            records = _unpacked(segment, manifests[0], pieces)
            if self._doubt is not None:
                self._doubt.read(segment, records)
            return records
        kept = await self._shelf.records(segment) if self._shelf is not None else None
        if kept is None:
            raise HistoryTruncated(segment.through)
        return kept

    def _loose(self, page: Loose, answer: rpc.TxnResponse) -> Sequence[Record]:
        """What can be read of it. Sequences are dense: if one is not there, it has been sealed meanwhile or is lost."""
        records = []
        for wanted, found in zip(page.ranges, answer.responses[1:], strict=True):
            kvs = found.response_range.kvs
            touched = first(answer.responses[0]).mod_revision
            if len(kvs) <= wanted.last - wanted.first and touched != self._found.sealed_touched.get(page.cluster, 0):
                raise Resealed
            for kv in kvs:
                try:
                    records.append(decode_record(kv.key, kv.value, kv.mod_revision))
                except ValueError as error:
                    self._tally.refuse(f"record at revision {kv.mod_revision}", str(error))
        return records


def _unpacked(segment: Segment, kv: rpc.KeyValue, pieces: Sequence[rpc.KeyValue]) -> Sequence[Record]:
    try:
        manifest = decode_manifest(kv.value)
        return unpack(manifest, whole(manifest, pieces))
    except PackDamaged as damage:
        raise ArchiveDamaged(f"segment {segment.number} of {segment.cluster} in etcd", str(damage)) from None


def whole(manifest: Manifest, pieces: Iterable[rpc.KeyValue]) -> bytes:
    """A segment's bytes from its pieces, between which another packer's may stand."""
    own = keys.pack_pieces(manifest.cluster, manifest.segment, manifest.digest)
    return b"".join(kv.value for kv in pieces if kv.key.startswith(own))[: manifest.size]


def _request(page: Page) -> rpc.TxnRequest:
    """A segment's manifest and pieces; loose records, and whether they were sealed meanwhile: each at one revision."""
    if isinstance(page, Segment):
        ranges = [keys.segment_number(page.cluster, page.number), keys.pack_segment(page.cluster, page.number)]
        opening = []
    else:
        ranges = [keys.log_sequences(page.cluster, each.writer, each.first, each.last) for each in page.ranges]
        opening = [get(keys.sealed_key(page.cluster), keys_only=True)]
    return rpc.TxnRequest(
        success=[
            *opening,
            *(rpc.RequestOp(request_range=rpc.RangeRequest(key=start, range_end=end)) for start, end in ranges),
        ]
    )
