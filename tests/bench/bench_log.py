"""The log against bare etcd: appends against puts, publish-to-observe against put and watch, replay against range."""

import asyncio
import os
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

from controlplane.codec import decode, encode
from controlplane.events import Batch, EndpointCreated
from controlplane.model import Device
from controlplane.projections.folding import Folding
from controlplane.projections.state import State
from kvstore import keys
from kvstore import rpc_pb2 as rpc
from kvstore.append import decode_record
from kvstore.embedded import EmbeddedEtcd
from kvstore.etcd import EtcdLog
from kvstore.etcd_catchup import head_position
from kvstore.etcd_client import PUT, RANGE, Client, Limits
from kvstore.etcd_retention import Retention
from kvstore.lanes import PAGE_RECORDS
from kvstore.packed import Manifest
from kvstore.types import Position, Record, Session
from tests.bench.report import Row
from tests.bench.world import CLUSTER, rollouts, world

SIZES = (100_000, 1_000_000)
ROUNDS = 3
APPENDS_IN_TURN = 50
OBSERVATIONS = 400
ENDPOINTS = 20_000


def measure() -> list[Row]:
    """All rows of this file."""
    return asyncio.run(_measure())


async def _measure() -> list[Row]:
    return [row for events in SIZES for row in (*await _with_etcd(_appends, events), *await _with_etcd(_reads, events))]


async def _with_etcd(rows: Callable[[EmbeddedEtcd, int], Awaitable[list[Row]]], events: int) -> list[Row]:
    with tempfile.TemporaryDirectory(prefix="meshlog-bench-") as folder:
        etcd = await EmbeddedEtcd.start(Path(folder) / "etcd")
        try:
            return await rows(etcd, events)
        finally:
            await etcd.stop()


async def _appends(etcd: EmbeddedEtcd, events: int) -> list[Row]:
    return [await _append(etcd.endpoint, events)]


async def _reads(etcd: EmbeddedEtcd, events: int) -> list[Row]:
    """One history, and everything that is asked of it."""
    history, size = await _load(etcd.endpoint, events)
    return [
        await _catch_up(etcd.endpoint, history),
        await _replay(etcd.endpoint, history),
        await _observe(etcd.endpoint, history),
        *await _room(etcd, history, size),
    ]


async def _load(endpoint: str, events: int) -> tuple[int, int]:
    """A mesh comes up, and its workloads come and go: the events appended, and the bytes of their batches."""
    log = await EtcdLog.connect([endpoint])
    sessions: dict[str, Session] = {}
    count = size = 0
    start = list(world(ENDPOINTS))
    left = events - sum(len(written.events) for written in start)
    for written in (*start, *rollouts(ENDPOINTS, left)):
        if written.writer not in sessions:
            sessions[written.writer] = await log.open_session(CLUSTER, written.writer)
        payload = encode(Batch(1, 1, 0, written.events))
        await log.append(sessions[written.writer], payload)
        count, size = count + len(written.events), size + len(payload)
    await log.close()
    return count, size


def _batch_of_100() -> bytes:
    event = EndpointCreated(
        "n1",
        7,
        "shop",
        "frontend",
        ("k8s:app=frontend",),
        65792,
        "10.1.0.5",
        "fd00:1::5",
        Device("mlaabbccdd", 12, "02:00:00:00:00:01", "02:00:00:00:00:02"),
        "c0ffee",
        "eth0",
    )
    return encode(Batch(1, 1, 0, (event,) * 100))


async def _append(endpoint: str, events: int) -> Row:
    payload = _batch_of_100()
    log = await EtcdLog.connect([endpoint])
    client = Client([endpoint], None, Limits())
    session = await log.open_session("bench", "writer")
    appends = events // 100
    ours = plain = 0.0
    # In turns, since a neighbour's load comes and goes within seconds.
    for first in range(0, appends, APPENDS_IN_TURN):
        start = time.perf_counter()
        for _ in range(APPENDS_IN_TURN):
            await log.append(session, payload)
        ours += time.perf_counter() - start
        start = time.perf_counter()
        for n in range(first, first + APPENDS_IN_TURN):
            await client.call(PUT, rpc.PutRequest(key=b"/bench/%d" % n, value=payload))
        plain += time.perf_counter() - start
    await log.close()
    await client.close()
    ratio = plain / ours
    return Row(
        f"append {events:,} events, batches of 100, all guarantees on",
        f"{events / ours:,.0f} events/s",
        f"the same puts without guarantees: {events / plain:,.0f} events/s",
        f"{ratio:.2f}",
        ">= 0.85",
        ratio >= 0.85,
    )


async def _catch_up(endpoint: str, events: int) -> Row:
    """Every record in order, checked and merged, by a reader that has nothing; against the same keys, looked at by
    nobody."""
    log = await EtcdLog.connect([endpoint])
    ours, bare = [], []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        async for _ in log.read(Position()):
            pass
        ours.append(events / (time.perf_counter() - start))
        bare.append(events / await _bare_ranges(endpoint))
    await log.close()
    ratio = statistics.median(ours) / statistics.median(bare)
    return Row(
        f"catch up with {events:,} events",
        f"{statistics.median(ours):,.0f} events/s",
        f"etcd range of the same keys, undecoded: {statistics.median(bare):,.0f}",
        f"{ratio:.2f}",
        "",
        None,
    )


async def _ranges(client: Client) -> list[rpc.RangeRequest]:
    """Writer by writer, as many records at a time as a reader takes."""
    requests = []
    for name, last in (await head_position(client)).sequences.items():
        cluster, writer = name.split("/")
        for sequence in range(1, last + 1, PAGE_RECORDS) if cluster == CLUSTER else ():
            first, end = keys.log_sequences(cluster, writer, sequence, sequence + PAGE_RECORDS - 1)
            requests.append(rpc.RangeRequest(key=first, range_end=end))
    return requests


async def _bare_ranges(endpoint: str) -> float:
    """Seconds for all records, four requests under way as a reader has them."""
    client = Client([endpoint], None, Limits())
    requests = iter(await _ranges(client))

    async def fetch() -> None:
        for request in requests:
            await client.call(RANGE, request)

    start = time.perf_counter()
    await asyncio.gather(*(fetch() for _ in range(client.limits.pages_in_flight)))
    spent = time.perf_counter() - start
    await client.close()
    return spent


async def _observe(endpoint: str, events: int) -> Row:
    log = await EtcdLog.connect([endpoint])
    session = await log.open_session("bench", "publisher")
    seen: asyncio.Queue[int] = asyncio.Queue()
    begin = await log.position()

    async def follow() -> None:
        async for delivery in log.follow(begin):
            seen.put_nowait(delivery.revision if isinstance(delivery, Record) else -1)

    follower = asyncio.create_task(follow())
    while await seen.get() != -1:
        pass
    client, stream = await _bare_watch(endpoint)
    ours, bare = [], []
    for n in range(OBSERVATIONS):
        start = time.perf_counter()
        revision = await log.append(session, b"x" * 100)
        while await seen.get() != revision:
            pass
        ours.append(time.perf_counter() - start)
        start = time.perf_counter()
        await client.call(PUT, rpc.PutRequest(key=b"/bare/%d" % n, value=b"x" * 100))
        await stream.read()
        bare.append(time.perf_counter() - start)
    follower.cancel()
    await asyncio.gather(follower, return_exceptions=True)
    stream.cancel()
    await client.close()
    await log.close()
    ratio = statistics.median(ours) / statistics.median(bare)
    return Row(
        f"publish to observe behind {events:,} events, p50",
        f"{statistics.median(ours) * 1e3:.2f} ms",
        f"one etcd put + watch delivery: {statistics.median(bare) * 1e3:.2f} ms",
        f"{ratio:.2f}",
        "<= 1.5",
        ratio <= 1.5,
    )


async def _bare_watch(endpoint: str) -> tuple[Client, Any]:
    """A watch that is under way, on keys that nobody else writes."""
    client = Client([endpoint], None, Limits())
    stream = client.watch()
    await stream.write(rpc.WatchRequest(create_request=rpc.WatchCreateRequest(key=b"/bare/", range_end=b"/bare0")))
    await stream.read()
    return client, stream


async def _replay(endpoint: str, events: int) -> Row:
    log = await EtcdLog.connect([endpoint])
    folded, bare = [], []
    for _ in range(ROUNDS):
        state = State()
        start = time.process_time()
        with Folding(state) as folding:
            async for record in log.read(Position()):
                folding.apply(record)
        folded.append(events / (time.process_time() - start))
        bare.append(events / await _bare_replay(endpoint))
        assert len(state.endpoints) == ENDPOINTS and not state.refused_count, "the replay did not reach the whole state"
    await log.close()
    ratio = statistics.median(folded) / statistics.median(bare)
    return Row(
        f"replay {events:,} events from etcd into state",
        f"{statistics.median(folded):,.0f} events per CPU second",
        f"etcd range + msgspec decode alone: {statistics.median(bare):,.0f}",
        f"{ratio:.2f}",
        ">= 0.5",
        ratio >= 0.5,
    )


async def _room(etcd: EmbeddedEtcd, events: int, payload_bytes: int) -> list[Row]:
    """As written, then repacked as the duty holder does."""
    log = await EtcdLog.connect([etcd.endpoint])
    keep = log.retention(CLUSTER)
    payload = payload_bytes / events
    space = await keep.space()
    memory = _resident_bytes(etcd.pid) / events
    sealed = [manifest async for manifest in _sealed(keep)]
    size = sum(manifest.size for manifest in sealed)
    records = sum(manifest.payload_bytes for manifest in sealed)
    await log.close()
    rows = [
        (f"etcd's file for {events:,} events", space.file_bytes / events, "their batches", payload),
        (f"etcd's memory for {events:,} events", memory, "their batches", payload),
    ]
    if records:
        rows.append((f"sealed segments of {events:,} events, repacked", payload * size / records, "their batches", payload))
    return [
        Row(what, f"{ours:.0f} bytes per event", f"{other}: {theirs:.0f}", f"{ours / theirs:.2f}", "", None)
        for what, ours, other, theirs in rows
    ]


async def _sealed(keep: Retention) -> AsyncIterator[Manifest]:
    """Full segments, as the duty holder makes them."""
    while made := await keep.seal(1, 16, rest=False):
        for manifest, _ in made:
            yield manifest


def _resident_bytes(pid: int) -> int:
    fields = Path(f"/proc/{pid}/statm").read_text().split()
    return int(fields[1]) * os.sysconf("SC_PAGE_SIZE")


async def _bare_replay(endpoint: str) -> float:
    """CPU seconds for the same keys in pieces of the same size, each decoded and forgotten."""
    client = Client([endpoint], None, Limits())
    requests = await _ranges(client)
    start = time.process_time()
    for request in requests:
        answer = await client.call(RANGE, request)
        for kv in answer.kvs:
            decode(decode_record(kv.key, kv.value, kv.mod_revision).payload)
    spent = time.process_time() - start
    await client.close()
    return spent
