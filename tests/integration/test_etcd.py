"""The log over a real etcd that is killed, cut off, compacted, lossy, or cannot start."""

import asyncio
import os
import signal
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Self

import msgspec
import pytest

from kvstore import lanes, packed
from kvstore import rpc_pb2 as rpc
from kvstore.embedded import EmbeddedEtcd
from kvstore.errors import LogFull, LogUnavailable
from kvstore.etcd import EtcdLog
from kvstore.etcd_client import COMPACT, TXN, Client, Limits
from kvstore.types import Bookmark, Claim, Position, Record

DEADLINE_S = 60.0
FAST = Limits(transaction_s=1.0, call_s=5.0, quiet_s=0.05, keepalive_s=0.2, audit_s=0.1)


@pytest.fixture
def folder() -> Iterator[Path]:
    """A short path, since a socket's path must fit into 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="mle-") as path:
        yield Path(path)


@pytest.fixture
async def etcd(folder: Path) -> AsyncIterator[EmbeddedEtcd]:
    """A running etcd, stopped at the end whatever the test did to it."""
    child = await EmbeddedEtcd.start(folder / "etcd")
    yield child
    await child.stop()


async def wait_until(condition: Callable[[], bool]) -> None:
    """Wait for a condition, with a bound."""
    async with asyncio.timeout(DEADLINE_S):
        while not condition():
            await asyncio.sleep(0.01)


async def append_surely(log: EtcdLog, session, payload: bytes) -> int:
    """Append, again while etcd is away."""
    while True:
        try:
            return await log.append(session, payload)
        except LogUnavailable:
            continue


async def test_kills_lose_nothing_and_double_nothing(folder):
    """Six kills under three writers: the log is what was acknowledged, and what a follower saw."""
    child = await EmbeddedEtcd.start(folder / "etcd")
    acknowledged: list[tuple[int, bytes]] = []
    seen: list[Record] = []
    stop = asyncio.Event()

    async def write(name: str) -> None:
        log = await EtcdLog.connect([child.endpoint], limits=FAST)
        session = await log.open_session("east", name)
        number = 0
        while not stop.is_set():
            payload = f"{name}-{number}".encode()
            acknowledged.append((await append_surely(log, session, payload), payload))
            number += 1
        await log.close()

    async def follow() -> None:
        log = await EtcdLog.connect([child.endpoint], limits=FAST)
        async for delivery in log.follow(Position()):
            if isinstance(delivery, Record):
                seen.append(delivery)

    follower = asyncio.create_task(follow())
    writers = [asyncio.create_task(write(f"n{n}")) for n in range(3)]
    try:
        for _ in range(6):
            before = len(acknowledged)
            await wait_until(lambda: len(acknowledged) > before + 150)  # noqa: B023 - awaited in this turn
            os.kill(child.pid, signal.SIGKILL)
            await child.stop()
            child = await EmbeddedEtcd.start(folder / "etcd")
        stop.set()
        async with asyncio.timeout(DEADLINE_S):
            await asyncio.gather(*writers)
        await wait_until(lambda: len(seen) >= len(acknowledged) or follower.done())
        assert not follower.done(), follower.exception()
        log = await EtcdLog.connect([child.endpoint])
        stored = [record async for record in log.read(Position())]
        await log.close()
        assert [(record.revision, record.payload) for record in stored] == sorted(acknowledged)
        assert seen == stored
        for name in ("n0", "n1", "n2"):
            own = [record for record in stored if record.writer == name]
            assert [record.sequence for record in own] == list(range(1, len(own) + 1))
            assert [record.payload for record in own] == [f"{name}-{n}".encode() for n in range(len(own))]
    finally:
        for task in (follower, *writers):
            task.cancel()
        await asyncio.gather(follower, *writers, return_exceptions=True)
        await child.stop()


class Cut:
    """A unix socket before etcd's that the test can cut."""

    def __init__(self, front: Path, back: Path) -> None:
        self.front = front
        self.back = back
        self.open = True
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_unix_server(self._joined, path=self.front)
        return self

    async def __aexit__(self, *_: object) -> None:
        self.cut()
        self._server.close()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def cut(self) -> None:
        """End every connection and take no new one."""
        self.open = False
        for task in self._tasks:
            task.cancel()

    async def _joined(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        self._tasks.add(task)
        try:
            if self.open:
                await self._carry(reader, writer)
        except (OSError, asyncio.CancelledError):
            return
        finally:
            writer.close()
            self._tasks.discard(task)

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        back_reader, back_writer = await asyncio.open_unix_connection(self.back)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._copy(reader, back_writer))
                group.create_task(self._copy(back_reader, writer))
        finally:
            back_writer.close()

    async def _copy(self, source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        while piece := await source.read(65536):
            target.write(piece)
            await target.drain()
        raise ConnectionError("ended")


async def test_a_reader_behind_a_compaction_ranges(etcd, folder):
    """A follower is cut off while records are appended and compacted, and goes on exactly."""
    log = await EtcdLog.connect([etcd.endpoint], limits=FAST)
    session = await log.open_session("east", "n1")
    no_audit = msgspec.structs.replace(FAST, audit_s=3600.0)
    async with Cut(folder / "front", Path(etcd.endpoint.removeprefix("unix:"))) as cut:
        far = await EtcdLog.connect([f"unix:{cut.front}"], limits=no_audit)
        seen: list[Record | Bookmark] = []

        async def follow() -> None:
            async for delivery in far.follow(Position()):
                seen.append(delivery)

        follower = asyncio.create_task(follow())
        await wait_until(lambda: bool(seen))
        cut.cut()
        for number in range(50):
            await log.append(session, b"%d" % number)
        client = Client((etcd.endpoint,), None, FAST)
        await client.call(COMPACT, rpc.CompactionRequest(revision=await log.head(), physical=True))
        await client.close()
        await wait_until(lambda: not far.connected)
        cut.open = True
        await wait_until(lambda: sum(isinstance(delivery, Record) for delivery in seen) >= 50)
        await log.append(session, b"50")
        await wait_until(
            lambda: (isinstance(seen[-1], Record) and seen[-1].payload == b"50") or len(seen) > 10**4
        )
        payloads = [delivery.payload for delivery in seen if isinstance(delivery, Record)]
        assert payloads == [b"%d" % number for number in range(51)]
        follower.cancel()
        await asyncio.gather(follower, return_exceptions=True)
        await far.close()
    await log.close()


class DroppedStream:
    """A watch stream that loses the responses that carry `payload`, as an etcd with a watch bug would."""

    def __init__(self, stream, payload: bytes) -> None:
        self._stream = stream
        self._payload = payload
        self.dropped = 0

    def __getattr__(self, name: str):
        return getattr(self._stream, name)

    async def read(self):
        """The next response that is not lost."""
        while True:
            answer = await self._stream.read()
            if not any(self._payload in change.kv.value for change in getattr(answer, "events", ())):
                return answer
            self.dropped += 1


class DroppingClient(Client):
    """A client whose watch loses one record."""

    stream = None

    def watch(self):
        """As Client.watch, but lossy."""
        self.stream = DroppedStream(super().watch(), b"dropped")
        return self.stream


@pytest.mark.parametrize("followed_by", [b"next", b""])
async def test_a_record_that_the_watch_lost_is_read_by_range(etcd, followed_by):
    """A delivery that never came is found, by the writer's next record or, when it stays quiet, by audit."""
    client = DroppingClient((etcd.endpoint,), None, FAST)
    log = EtcdLog(client)
    session = await log.open_session("east", "n1")
    deliveries = log.follow(await log.position())
    while not isinstance(await anext(deliveries), Bookmark) or client.stream is None:
        pass
    expected = [b"first", b"dropped"] + [followed_by] * bool(followed_by)
    for payload in expected:
        await log.append(session, payload)
    payloads: list[bytes] = []
    async with asyncio.timeout(DEADLINE_S):
        while len(payloads) < len(expected):
            delivery = await anext(deliveries)
            if isinstance(delivery, Record):
                payloads.append(delivery.payload)
    assert payloads == expected
    assert client.stream.dropped == 1
    await deliveries.aclose()
    await log.close()


class SilentClient(Client):
    """A client that loses every answer to a transaction while it is silent."""

    silent = False

    async def send(self, method, request, timeout_s):
        """As Client.send, without the answer."""
        answer = await super().send(method, request, timeout_s)
        if self.silent and method is TXN:
            raise LogUnavailable("the answer was lost by the test")
        return answer


@pytest.mark.parametrize("following", [b"1", b"2"])
async def test_an_append_that_was_given_up_is_settled_by_the_next(etcd, following):
    """An append in doubt landed: the same again is that record, another one comes after it."""
    client = SilentClient((etcd.endpoint,), None, Limits(call_s=0.2))
    log = EtcdLog(client)
    session = await log.open_session("east", "n1")
    client.silent = True
    with pytest.raises(LogUnavailable):
        await log.append(session, b"1", [Claim("number/1")])
    client.silent = False
    await log.append(session, following, [Claim("number/1")] if following == b"1" else ())
    await log.append(session, b"3")
    records = [record async for record in log.read(Position())]
    assert [record.payload for record in records] == sorted({b"1", following, b"3"})
    assert [record.sequence for record in records] == list(range(1, len(records) + 1))
    await log.close()


async def test_records_are_sealed_under_writers_and_readers(etcd, monkeypatch):
    """While writers write, all that is loose is sealed again and again: a read in the middle of it, by pages that find
    records gone, gives them all, once, in order."""
    monkeypatch.setattr(packed, "SEGMENT_RECORDS_MAX", 7)
    monkeypatch.setattr(lanes, "PAGE_RECORDS", 6)
    log = await EtcdLog.connect([etcd.endpoint])
    keep = log.retention("east")
    acknowledged: list[int] = []
    done = asyncio.Event()

    async def write(name: str) -> None:
        session = await log.open_session("east", name)
        for turn in range(60):
            acknowledged.append(await log.append(session, b"%d" % turn))

    async def seal() -> None:
        while not done.is_set():
            await keep.seal(1)

    sealing = asyncio.create_task(seal())
    writing = asyncio.gather(*(write(f"n{n}") for n in range(3)))
    found: list[tuple[int, list[int]]] = []
    while not writing.done():
        # What is in the log already may be acknowledged later than what followed it.
        least = len(acknowledged)
        found.append((least, [record.revision async for record in log.read(Position())]))
    await writing
    done.set()
    await sealing
    whole = [record.revision async for record in log.read(Position())]
    assert whole == sorted(acknowledged)
    for least, read in found:
        assert len(read) >= least and read == whole[: len(read)]
    assert (await keep.segments()).sealed.segment > 10
    await log.close()


async def test_status_says_since_when_etcd_is_away(folder):
    """The attributes tell an outage and its end."""
    child = await EmbeddedEtcd.start(folder / "etcd")
    log = await EtcdLog.connect([child.endpoint], limits=Limits(call_s=0.2))
    try:
        await log.head()
        assert log.connected and log.unavailable_since is None
        await child.stop()
        with pytest.raises(LogUnavailable):
            await log.head()
        assert not log.connected and log.unavailable_since is not None and "etcd at unix:" in log.last_error
        child = await EmbeddedEtcd.start(folder / "etcd")
        async with asyncio.timeout(DEADLINE_S):
            while not log.connected:
                with suppress(LogUnavailable):
                    await log.head()
        assert log.unavailable_since is None and log.reconnects == 1
    finally:
        await log.close()
        await child.stop()


async def test_a_session_outlives_a_restart_of_etcd(folder):
    """After etcd was killed the same session appends on: nobody was fenced by the outage."""
    child = await EmbeddedEtcd.start(folder / "etcd")
    log = await EtcdLog.connect([child.endpoint], limits=FAST)
    try:
        session = await log.open_session("east", "n1")
        await log.append(session, b"1")
        os.kill(child.pid, signal.SIGKILL)
        await child.stop()
        child = await EmbeddedEtcd.start(folder / "etcd")
        await append_surely(log, session, b"2")
        assert [record.payload async for record in log.read(Position())] == [b"1", b"2"]
    finally:
        await log.close()
        await child.stop()


async def test_a_kept_session_outlives_its_lease(etcd):
    """The keepalive holds a session beyond the seconds that its lease was granted for."""
    log = await EtcdLog.connect([etcd.endpoint], limits=Limits(lease_s=1, keepalive_s=0.2))
    session = await log.open_session("east", "n1")
    kept = await log.list("session/east/")
    doomed = await EtcdLog.connect([etcd.endpoint], limits=Limits(lease_s=1))
    await doomed.open_session("east", "n2")
    await doomed.close()
    async with asyncio.timeout(DEADLINE_S):
        while await log.list("session/east/") != kept:
            await asyncio.sleep(0.05)
    assert await log.append(session, b"x")
    await log.close()


async def test_follow_raises_if_etcd_was_never_there(folder):
    """Without any etcd at the start, follow ends instead of waiting for ever."""
    log = await EtcdLog.connect([f"unix:{folder}/none"], limits=Limits(call_s=0.2))
    with pytest.raises(LogUnavailable):
        await anext(log.follow(Position()))
    await log.close()


async def test_a_dead_endpoint_gives_way_to_the_next(etcd, folder):
    """Of two endpoints the one that answers is used."""
    log = await EtcdLog.connect([f"unix:{folder}/none", etcd.endpoint])
    session = await log.open_session("east", "n1")
    assert await log.append(session, b"x")
    assert log.connected
    await log.close()


async def test_a_full_store_is_named(folder):
    """Out of space an append raises LogFull, and reading goes on: all that was acknowledged is there, and of the
    refused one, whose outcome is open, at most that one."""
    child = await EmbeddedEtcd.start(folder / "etcd", quota_bytes=16 * 1024 * 1024)
    log = await EtcdLog.connect([child.endpoint])
    try:
        session = await log.open_session("east", "n1")
        stored = 0
        with pytest.raises(LogFull):
            while True:
                await log.append(session, b"x" * 500_000)
                stored += 1
        assert len([record async for record in log.read(Position())]) in (stored, stored + 1)
    finally:
        await log.close()
        await child.stop()


async def test_a_large_log_is_read_whole_and_sealed_by_size(etcd):
    """Loose and in segments, which are full by what they take: a catch-up gives every record."""
    log = await EtcdLog.connect([etcd.endpoint])
    session = await log.open_session("east", "n1")
    for number in range(60):
        await log.append(session, b"%06d" % number + b"x" * 499_994)
    keep = log.retention("east")
    for sealed in range(3):
        records = [record async for record in log.read(Position())]
        assert [int(record.payload[:6]) for record in records] == list(range(60))
        found = await keep.segments()
        assert (found.open_segment, found.is_full) == (sealed + 1, True)
        assert found.loose_bytes == found.loose_records * 500_000
        assert await keep.seal(1)
    await log.close()


async def test_a_slow_reader_is_cut_off_and_loses_nothing(etcd):
    """It takes one record while ten are written, and history is compacted under it: etcd ends its watch, and it has each
    record once, in order."""
    log = await EtcdLog.connect([etcd.endpoint], limits=FAST)
    client = Client((etcd.endpoint,), None, FAST)
    session = await log.open_session("east", "n1")
    slow = await EtcdLog.connect([etcd.endpoint], limits=FAST)
    deliveries = slow.follow(Position())
    assert isinstance(await anext(deliveries), Bookmark)
    seen: list[bytes] = []
    for number in range(100):
        await log.append(session, b"%03d" % number + b"x" * 200_000)
        if number % 10 == 9:
            await client.call(COMPACT, rpc.CompactionRequest(revision=await log.head(), physical=True))
            delivery = await anext(deliveries)
            seen += [delivery.payload[:3]] if isinstance(delivery, Record) else []
    async with asyncio.timeout(DEADLINE_S):
        while len(seen) < 100:
            delivery = await anext(deliveries)
            seen += [delivery.payload[:3]] if isinstance(delivery, Record) else []
    assert seen == [b"%03d" % number for number in range(100)]
    assert "compacted" in slow.last_error
    await deliveries.aclose()
    for each in (log, client, slow):
        await each.close()
