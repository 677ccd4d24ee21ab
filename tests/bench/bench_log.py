"""The log against bare etcd: appends against puts, publish-to-observe against put and watch, replay against range."""

import asyncio
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from controlplane.codec import decode, encode
from controlplane.events import Batch, EndpointCreated
from controlplane.model import Device
from controlplane.projections.state import State
from kvstore import keys
from kvstore import rpc_pb2 as rpc
from kvstore.append import decode_record
from kvstore.embedded import EmbeddedEtcd
from kvstore.etcd import EtcdLog
from kvstore.etcd_client import PUT, RANGE, Client, Limits
from kvstore.types import Position, Record, Session
from tests.bench.report import Row
from tests.bench.world import CLUSTER, world

APPENDS = 1000
ROUNDS = 3
OBSERVATIONS = 400
REPLAY_ENDPOINTS = 20_000


def measure() -> list[Row]:
    """All rows of this file."""
    return asyncio.run(_measure())


async def _measure() -> list[Row]:
    return [await _with_etcd(row) for row in (_append, _observe, _replay)]


async def _with_etcd(row: Callable[[str], Awaitable[Row]]) -> Row:
    with tempfile.TemporaryDirectory(prefix="meshlog-bench-") as folder:
        etcd = await EmbeddedEtcd.start(Path(folder) / "etcd")
        try:
            return await row(etcd.endpoint)
        finally:
            await etcd.stop()


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


async def _append(endpoint: str) -> Row:
    payload = _batch_of_100()
    log = await EtcdLog.connect([endpoint])
    client = Client([endpoint], None, Limits())
    session = await log.open_session("bench", "writer")
    ours, plain = [], []
    for round_number in range(ROUNDS):
        start = time.perf_counter()
        for _ in range(APPENDS):
            await log.append(session, payload)
        ours.append(APPENDS / (time.perf_counter() - start))
        start = time.perf_counter()
        for n in range(APPENDS):
            await client.call(PUT, rpc.PutRequest(key=b"/bench/%d/%d" % (round_number, n), value=payload))
        plain.append(APPENDS / (time.perf_counter() - start))
    await log.close()
    await client.close()
    ratio = statistics.median(ours) / statistics.median(plain)
    return Row(
        "append, batches of 100, all guarantees on",
        f"{statistics.median(ours) * 100:,.0f} events/s",
        f"the same puts without guarantees: {statistics.median(plain) * 100:,.0f} events/s",
        f"{ratio:.2f}",
        ">= 0.85",
        ratio >= 0.85,
    )


async def _observe(endpoint: str) -> Row:
    log = await EtcdLog.connect([endpoint])
    session = await log.open_session("bench", "publisher")
    head = await log.head()
    seen: asyncio.Queue[int] = asyncio.Queue()

    async def follow() -> None:
        async for delivery in log.follow(Position(head)):
            seen.put_nowait(delivery.revision if isinstance(delivery, Record) else -1)

    follower = asyncio.create_task(follow())
    while await seen.get() != -1:
        pass
    ours = []
    for _ in range(OBSERVATIONS):
        start = time.perf_counter()
        revision = await log.append(session, b"x" * 100)
        while await seen.get() != revision:
            pass
        ours.append(time.perf_counter() - start)
    follower.cancel()
    await asyncio.gather(follower, return_exceptions=True)
    await log.close()
    bare = await _bare_observe(endpoint)
    ratio = statistics.median(ours) / statistics.median(bare)
    return Row(
        "publish to observe, p50",
        f"{statistics.median(ours) * 1e3:.2f} ms",
        f"one etcd put + watch delivery: {statistics.median(bare) * 1e3:.2f} ms",
        f"{ratio:.2f}",
        "<= 1.5",
        ratio <= 1.5,
    )


async def _bare_observe(endpoint: str) -> list[float]:
    client = Client([endpoint], None, Limits())
    stream = client.watch()
    await stream.write(rpc.WatchRequest(create_request=rpc.WatchCreateRequest(key=b"/bare/", range_end=b"/bare0")))
    await stream.read()
    bare = []
    for n in range(OBSERVATIONS):
        start = time.perf_counter()
        await client.call(PUT, rpc.PutRequest(key=b"/bare/%d" % n, value=b"x" * 100))
        await stream.read()
        bare.append(time.perf_counter() - start)
    stream.cancel()
    await client.close()
    return bare


async def _replay(endpoint: str) -> Row:
    log = await EtcdLog.connect([endpoint])
    sessions: dict[str, Session] = {}
    events = 0
    for written in world(REPLAY_ENDPOINTS):
        if written.writer not in sessions:
            sessions[written.writer] = await log.open_session(CLUSTER, written.writer)
        await log.append(sessions[written.writer], encode(Batch(1, 1, 0, written.events)))
        events += len(written.events)
    folded, bare = [], []
    for _ in range(ROUNDS):
        state = State()
        start = time.process_time()
        async for record in log.read(Position()):
            state.apply(record)
        folded.append(events / (time.process_time() - start))
        bare.append(events / await _bare_replay(endpoint))
    await log.close()
    assert len(state.endpoints) == REPLAY_ENDPOINTS, "the replay did not reach the whole state"
    ratio = statistics.median(folded) / statistics.median(bare)
    return Row(
        "replay from etcd into state",
        f"{statistics.median(folded):,.0f} events per CPU second",
        f"etcd range + msgspec decode alone: {statistics.median(bare):,.0f}",
        f"{ratio:.2f}",
        ">= 0.5",
        ratio >= 0.5,
    )


async def _bare_replay(endpoint: str) -> float:
    client = Client([endpoint], None, Limits())
    first, end = keys.prefix_range(keys.LOG)
    start = time.process_time()
    answer = await client.call(RANGE, rpc.RangeRequest(key=first, range_end=end))
    for kv in answer.kvs:
        decode(decode_record(kv.key, kv.value, kv.mod_revision).payload)
    spent = time.process_time() - start
    await client.close()
    return spent
