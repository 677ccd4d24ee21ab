"""An operator's retention over a real etcd: history packed, archived, taken out; agents start from the checkpoint."""

import asyncio
import contextlib
import os
import random
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest

from controlplane.commands.cluster import JoinCluster
from controlplane.commands.types import Author
from controlplane.commands.workload import ApplyWorkload
from controlplane.operator import build_log, build_operator
from controlplane.projections.state import State
from controlplane.runtime.checkpoints import Checkpoints, fold
from controlplane.runtime.clock import SystemClock
from controlplane.runtime.follower import Follower
from controlplane.runtime.retention import Kept, Retention, retention_key
from controlplane.runtime.shared_checkpoint import shared_state
from controlplane.runtime.telemetry import Counters
from controlplane.runtime.warden import Warden
from controlplane.runtime.writer import Writer
from controlplane.settings import AgentSettings, OperatorSettings
from kvstore import packed
from kvstore.archive import Archive
from kvstore.embedded import EmbeddedEtcd
from kvstore.errors import HistoryTruncated, LogFull
from kvstore.etcd import EtcdLog
from kvstore.types import Position

WAIT_S = 30.0
SEED = int(os.environ.get("MESHLOG_RETENTION_SEED", "7"))


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A short path, and segments that are full after ten records."""
    monkeypatch.setattr(packed, "SEGMENT_RECORDS_MAX", 10)
    with tempfile.TemporaryDirectory(prefix="mlo-") as path:
        yield Path(path)


@asynccontextmanager
async def operating(folder: Path, endpoint: str, **changes: object) -> AsyncIterator[Warden]:
    """An operator at work, with rounds as fast as they come."""
    settings = OperatorSettings(
        cluster="east", cluster_id=1, pod_cidr=("10.1.0.0/16",), service_cidr=("10.96.0.0/20",), etcd=(endpoint,),
        state_dir=str(folder), duty_s=0.1, retry_s=0.05, **{"retention_round_s": 0.05, **changes},
    )  # fmt: skip
    warden = build_operator(settings, await build_log(settings, (endpoint,)))
    tasks = [asyncio.create_task(task) for task in warden.tasks()]
    try:
        yield warden
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await warden.close()


async def wait_until(condition) -> None:
    """Wait for a condition, which may have to ask, with a bound."""
    async with asyncio.timeout(WAIT_S):
        while not await condition():
            await asyncio.sleep(0.02)


async def write(warden: Warden, count: int) -> None:
    """So many records."""
    await warden.follower.wait_in_sync(WAIT_S)
    for n in range(count):
        await warden.writer.submit(ApplyWorkload("shop", f"web-{n}", {"app": f"a{n}"}))


async def test_history_leaves_etcd_behind_a_checkpoint_and_an_archive(folder):
    """All of it may go at once: what is sealed goes; a reader without the archive is told, one with it folds the same
    state; a starting agent takes the checkpoint and ends equal."""
    etcd = await EmbeddedEtcd.start(folder / "etcd")
    try:
        async with operating(folder, etcd.endpoint, retention_s=0.001) as warden:
            await write(warden, 60)
            plain = await EtcdLog.connect([etcd.endpoint])

            async def has_left() -> bool:
                found = await plain.retention("east").segments()
                return found.low > 0 and not found.is_full and not found.packed

            await wait_until(has_left)
            with pytest.raises(HistoryTruncated):
                await fold(plain, State())
            digest = warden.follower.state.digest()
            assert (await fold(warden.log, State())).digest() == digest
            start = await shared_state(plain, 0)
            assert start is not None and start.revision > 0
            assert (await fold(plain, start)).digest() == digest
            await plain.close()
    finally:
        await etcd.stop()


async def test_an_agent_without_a_checkpoint_begins_with_the_shared_one(folder):
    """Its follower is in sync although the history's beginning is gone, and it has read no record twice."""
    etcd = await EmbeddedEtcd.start(folder / "etcd")
    try:
        async with operating(folder, etcd.endpoint, retention_s=0.001) as warden:
            await write(warden, 40)
            log = await EtcdLog.connect([etcd.endpoint])

            async def is_truncated() -> bool:
                return (await log.retention("east").segments()).low > 0

            await wait_until(is_truncated)
            settings = AgentSettings(cluster="east", node="n1", retry_s=0.05)
            checkpoints = Checkpoints(folder)
            follower = Follower(
                log, State(), SystemClock(), settings, Counters(), lambda error: checkpoints.refold(log, error)
            )
            running = asyncio.create_task(follower.run())
            await follower.wait_in_sync(WAIT_S)
            await follower.wait_applied(warden.follower.state.revision, WAIT_S)
            assert follower.state.digest() == warden.follower.state.digest()
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
            await log.close()
    finally:
        await etcd.stop()


async def test_history_does_not_leave_behind_a_damaged_checkpoint(folder):
    """A part of the checkpoint in etcd is not what was put: it is put again before the history that it stands for goes."""
    etcd = await EmbeddedEtcd.start(folder / "etcd")
    try:
        log = await EtcdLog.connect([etcd.endpoint])
        async with operating(folder, etcd.endpoint, shared_checkpoint_s=0.05) as warden:
            await write(warden, 40)

            async def is_shared() -> bool:
                shared = await shared_state(log, 0)
                return shared is not None and shared.revision == warden.follower.state.revision

            await wait_until(is_shared)
        part = (await log.list("checkpoint/east/"))[-1]
        await log.put(part.key, part.value[:-1] + bytes([part.value[-1] ^ 1]))
        assert await shared_state(log, 0) is None
        async with operating(folder, etcd.endpoint, retention_s=0.001):

            async def has_left() -> bool:
                return (await log.retention("east").segments()).low > 0

            await wait_until(has_left)
        low = (await log.retention("east").segments()).low
        shared = await shared_state(log, 0)
        assert shared is not None and shared.revision >= low
        await log.close()
    finally:
        await etcd.stop()


async def test_an_agent_that_meets_a_damaged_archive_begins_with_the_shared_checkpoint(folder):
    """Its own state ends before the damage: it cannot fold on, and takes the state that stands behind it."""
    etcd = await EmbeddedEtcd.start(folder / "etcd")
    try:
        async with operating(folder, etcd.endpoint, retention_s=0.001) as warden:
            await write(warden, 60)
            keep = warden.log.retention("east")

            async def has_left() -> bool:
                return (await keep.segments()).low_segment >= 4

            await wait_until(has_left)
            archive = Archive(folder / "archive")
            first, *_ = archive.manifests(warden.log.cluster_id)
            state = await fold(warden.log, State(), first.last_revision)
            archive.path(warden.log.cluster_id, "east", 3).write_bytes(b"nonsense")
            log = await EtcdLog.connect([etcd.endpoint], archive=folder / "archive")
            settings = AgentSettings(cluster="east", node="n1", retry_s=0.05)
            checkpoints = Checkpoints(folder / "agent")
            follower = Follower(
                log, state, SystemClock(), settings, Counters(), lambda error: checkpoints.refold(log, error)
            )
            running = asyncio.create_task(follower.run())
            await follower.wait_in_sync(WAIT_S)
            await follower.wait_applied(warden.follower.state.revision, WAIT_S)
            assert follower.state.digest() == warden.follower.state.digest()
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
            await log.close()
    finally:
        await etcd.stop()


async def test_nothing_leaves_while_it_is_young_and_small(folder):
    """It is packed and archived at once, and etcd keeps it; what is kept is published for people."""
    etcd = await EmbeddedEtcd.start(folder / "etcd")
    try:
        async with operating(folder, etcd.endpoint) as warden:
            await write(warden, 40)
            log = await EtcdLog.connect([etcd.endpoint])
            last: list[Kept] = []

            async def is_all_archived() -> bool:
                """Of the forty records and those of duties: a fifth segment is open, and stays so."""
                for stored in await log.list(retention_key("east")):
                    last.append(msgspec.json.decode(stored.value, type=Kept))
                return bool(last) and (last[-1].archived_segments, last[-1].open_segment) == (4, 5)

            await wait_until(is_all_archived)
            kept = last[-1]
            assert (kept.low, kept.packed_segments, kept.damaged) == (0, 4, [])
            assert kept.etcd_file_bytes >= kept.etcd_used_bytes > 0
            assert kept.open_since_ns > 0
        async with operating(folder, etcd.endpoint) as warden:

            async def has_seen() -> bool:
                return bool(warden._retention._open[0])

            await wait_until(has_seen)
            assert warden._retention._open == (kept.open_segment, kept.open_since_ns)
            await log.close()
    finally:
        await etcd.stop()


async def test_a_resting_cluster_ages_too(folder):
    """Three records, and then none: the open segment is sealed by age, packed, archived and taken out; an empty one is
    not. The next record goes on."""
    etcd = await EmbeddedEtcd.start(folder / "etcd")
    try:
        ages = {"segment_age_s": 0.3, "retention_s": 0.4}
        async with operating(folder, etcd.endpoint, **ages) as warden:
            await write(warden, 3)
            before = [record async for record in warden.log.read(Position())]
        async with operating(folder, etcd.endpoint, **ages) as warden:
            keep = warden.log.retention("east")

            async def has_left() -> bool:
                found = await keep.segments()
                return found.low >= before[-1].revision and not found.packed

            await wait_until(has_left)
            opened = (await keep.segments()).open_segment
            await asyncio.sleep(0.5)
            assert (await keep.segments()).open_segment == opened
            written = await warden.writer.submit(ApplyWorkload("shop", "late", {}))
            records = [record async for record in warden.log.read(Position())]
            assert records[: len(before)] == before and records[-1].revision == written.revision
    finally:
        await etcd.stop()


async def test_a_full_etcd_is_relieved_while_a_command_waits(folder):
    """The quota is exhausted for real: status names it, a command waits, the duty holder makes room, the command goes
    through, and every acknowledged record is there."""
    etcd = await EmbeddedEtcd.start(folder / "etcd", quota_bytes=24 * 1024 * 1024)
    try:
        async with operating(folder, etcd.endpoint, retention_round_s=3.0) as warden:
            await write(warden, 5)
            before = [record.revision async for record in warden.log.read(Position())]
            with pytest.raises(LogFull):
                for n in range(1000):
                    await warden.log.put("report/east/ballast", bytes([n % 256]) * 1_000_000)
            assert any("NOSPACE" in problem for problem in warden.status().problems)
            written = await warden.writer.submit(ApplyWorkload("shop", "late", {"app": "late"}))
            assert written.events
            after = [record.revision async for record in warden.log.read(Position())]
            assert after[: len(before)] == before and written.revision in after
            assert not any("NOSPACE" in problem for problem in warden.status().problems)
    finally:
        await etcd.stop()


async def test_a_writer_tells_the_caller_when_no_room_comes(folder):
    """Without a duty holder nobody makes room: after the bound the command fails with the reason."""
    etcd = await EmbeddedEtcd.start(folder / "etcd", quota_bytes=24 * 1024 * 1024)
    log = await EtcdLog.connect([etcd.endpoint])
    settings = AgentSettings(cluster="east", node="n1", retry_s=0.05, full_wait_s=0.3)
    clock, counters = SystemClock(), Counters()

    async def refold(error: Exception) -> State:
        return await fold(log, State())

    follower = Follower(log, State(), clock, settings, counters, refold)
    writer = Writer(log, follower, Author("east", "operator"), clock, settings, counters)
    tasks = [asyncio.create_task(each) for each in (follower.run(), writer.run())]
    try:
        await writer.submit(JoinCluster(1, ("10.1.0.0/16",), (24,), ()))
        with pytest.raises(LogFull):
            for n in range(1000):
                await log.put("report/east/ballast", bytes([n % 256]) * 1_000_000)
        with pytest.raises(Exception, match="space exceeded"):
            await writer.submit(ApplyWorkload("shop", "late", {"app": "late"}))
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await log.close()
        await etcd.stop()


async def test_archived_segments_give_way_when_overwritten_keys_are_not_enough(folder):
    """A full etcd whose space is in use: the oldest archived segments behind the checkpoint go, history begins later,
    and nothing is lost to who has the archive."""
    etcd = await EmbeddedEtcd.start(folder / "etcd")
    try:
        async with operating(folder, etcd.endpoint, shared_checkpoint_s=0.05) as warden:
            await write(warden, 60)
            log = await EtcdLog.connect([etcd.endpoint])
            archive = Archive(folder / "archive")
            before = [record async for record in log.read(Position())]

            async def is_archived() -> bool:
                keep = await log.retention("east").segments()
                held = await asyncio.to_thread(archive.manifests, keep.store_id)
                shared = await shared_state(log, 0)
                return shared is not None and len(held) >= 3 and shared.revision >= max(e.last_revision for e in held)

            await wait_until(is_archived)
            retention: Retention = warden._retention
            await retention._drop_archived()

            async def has_moved() -> bool:
                return (await log.retention("east").segments()).low > 0

            await wait_until(has_moved)
            assert [record async for record in warden.log.read(Position())] == before
            await log.close()
    finally:
        await etcd.stop()


async def test_an_operator_killed_at_any_point_loses_no_history(folder, monkeypatch):
    """Again and again it is cut off in the middle of packing, archiving and truncating, while a writer goes on: who has
    the archive reads every acknowledged record, once, in order, at every time; who has not is told that the beginning
    is gone, and never of a hole."""
    etcd = await EmbeddedEtcd.start(folder / "etcd")
    chance = random.Random(SEED)
    # Short rounds, so that many are cut off in each of their steps.
    monkeypatch.setattr("controlplane.runtime.retention.SEGMENTS_MAX", 2)
    log = await EtcdLog.connect([etcd.endpoint], archive=folder / "archive")
    plain = await EtcdLog.connect([etcd.endpoint])
    session = await log.open_session("east", "n1")
    acknowledged: list[int] = []
    stop = asyncio.Event()

    async def append() -> None:
        while not stop.is_set():
            acknowledged.append(await log.append(session, b"\x00"))
            await asyncio.sleep(0)

    writing = asyncio.create_task(append())
    lows: list[int] = []
    try:
        while len(lows) < 12 or lows[-1] == lows[0]:
            assert len(lows) < 200, "no operator lives long enough to take a segment out"
            async with operating(
                folder, etcd.endpoint, retention_s=0.001, retention_round_s=0.01, shared_checkpoint_s=0.01
            ) as warden:
                await warden.follower.wait_in_sync(WAIT_S)
                await asyncio.sleep(chance.random() * 0.5)
            before = len(acknowledged)
            own = [record.revision async for record in log.read(Position()) if record.writer == "n1"]
            assert own[:before] == acknowledged[:before]
            with contextlib.suppress(HistoryTruncated):
                whole = [record.revision async for record in plain.read(Position()) if record.writer == "n1"]
                assert whole[:before] == acknowledged[:before]
            lows.append((await log.retention("east").segments()).low)
        assert not writing.done(), writing.exception()
    finally:
        stop.set()
        await asyncio.gather(writing, return_exceptions=True)
        await log.close()
        await plain.close()
        await etcd.stop()
