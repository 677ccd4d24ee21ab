"""The log over an etcd of three members: leader and follower killed, quorum lost and back, several endpoints."""

import asyncio
import contextlib
import os
import signal
import subprocess
import tempfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from kvstore import rpc_pb2 as rpc
from kvstore.errors import LogError, LogUnavailable
from kvstore.etcd import EtcdLog
from kvstore.etcd_client import PUT, STATUS, Client, Limits
from kvstore.types import Position, Record

DEADLINE_S = 60.0
FAST = Limits(transaction_s=1.0, call_s=8.0, quiet_s=0.05, keepalive_s=0.3, audit_s=0.2)
NUMBERS = (0, 1, 2)


class Members:
    """Three etcds in one directory, on unix sockets: no port of the machine is taken."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.running: dict[int, subprocess.Popen[bytes]] = {}

    @property
    def endpoints(self) -> list[str]:
        """Of all three, whether they run or not."""
        return [f"unix:{self.folder}/127.0.0.1:4110{n}" for n in NUMBERS]

    def start(self, number: int) -> None:
        """One member, on the data that it has."""
        for kind in (0, 1):
            with contextlib.suppress(FileNotFoundError):
                (self.folder / f"127.0.0.1:411{kind}{number}").unlink()
        client, peer = (f"unix://127.0.0.1:411{kind}{number}" for kind in (0, 1))
        cluster = ",".join(f"m{n}=unix://127.0.0.1:4111{n}" for n in NUMBERS)
        with (self.folder / f"log{number}").open("ab") as log:
            self.running[number] = subprocess.Popen(
                [
                    "etcd", "--name", f"m{number}", "--data-dir", f"data{number}", "--initial-cluster", cluster,
                    "--listen-client-urls", client, "--advertise-client-urls", client,
                    "--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer,
                    "--heartbeat-interval", "50", "--election-timeout", "500", "--log-outputs", "stderr",
                ],
                cwd=self.folder, stdout=log, stderr=log,
            )  # fmt: skip

    def kill(self, number: int) -> None:
        """kill -9."""
        process = self.running.pop(number)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()

    async def wait_writable(self) -> None:
        """Until a put goes through at one of those that run."""
        client = Client([self.endpoints[number] for number in sorted(self.running)], None, FAST)
        await client.call(PUT, rpc.PutRequest(key=b"/meshlog/embedded/health"), DEADLINE_S)
        await client.close()

    async def leader(self) -> int:
        """The number of the member that leads."""
        async with asyncio.timeout(DEADLINE_S):
            while True:
                for number in self.running:
                    client = Client([self.endpoints[number]], None, FAST)
                    with contextlib.suppress(LogError):
                        status = await client.send(STATUS, rpc.StatusRequest(), 1.0)
                        if status.leader and status.leader == status.header.member_id:
                            await client.close()
                            return number
                    await client.close()

    def close(self) -> None:
        """End them all."""
        for number in tuple(self.running):
            self.kill(number)


@pytest.fixture
async def members() -> AsyncIterator[Members]:
    """Three that run."""
    with tempfile.TemporaryDirectory(prefix="mlm-") as path:
        made = Members(Path(path))
        try:
            for number in NUMBERS:
                made.start(number)
            await made.wait_writable()
            yield made
        finally:
            made.close()


class Traffic:
    """Two writers and a follower that go on whatever happens; each payload is appended until it is acknowledged."""

    def __init__(self, endpoints: list[str]) -> None:
        self._endpoints = endpoints
        self.acknowledged: list[tuple[int, bytes]] = []
        self.seen: list[tuple[int, bytes]] = []
        self.unavailable = 0
        self.stopping = False
        self._tasks = [asyncio.create_task(part) for part in (self._write("n0"), self._write("n1"), self._follow())]

    async def _write(self, name: str) -> None:
        log = await EtcdLog.connect(self._endpoints, limits=FAST)
        session = await log.open_session("east", name)
        number = 0
        while not self.stopping:
            payload = b"%b %d" % (name.encode(), number)
            try:
                self.acknowledged.append((await log.append(session, payload), payload))
                number += 1
            except LogUnavailable:
                self.unavailable += 1
        await log.close()

    async def _follow(self) -> None:
        log = await EtcdLog.connect(self._endpoints[::-1], limits=FAST)
        async for delivery in log.follow(Position()):
            if isinstance(delivery, Record):
                self.seen.append((delivery.revision, delivery.payload))

    async def wait(self, condition: Callable[[], bool]) -> None:
        """Until it holds, with a bound, while nothing has failed."""
        async with asyncio.timeout(DEADLINE_S):
            while not condition():
                for task in self._tasks:
                    assert not task.done() or self.stopping, task.exception()
                await asyncio.sleep(0.01)

    async def wait_progress(self, count: int = 100) -> None:
        """So many more acknowledgements."""
        before = len(self.acknowledged)
        await self.wait(lambda: len(self.acknowledged) >= before + count)

    async def end(self) -> None:
        """No acknowledged record is lost, none is there twice, and the follower saw them all, in order."""
        self.stopping = True
        try:
            async with asyncio.timeout(DEADLINE_S):
                await asyncio.gather(*self._tasks[:2])
            await self.wait(lambda: len(self.seen) >= len(self.acknowledged))
            assert self.seen == sorted(self.acknowledged)
        finally:
            await self.cancel()

    async def cancel(self) -> None:
        """End its tasks."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


async def test_killed_leaders_lose_nothing_and_double_nothing(members):
    """Twice the leader dies and comes back: writers and follower go on at the other endpoints."""
    traffic = Traffic(members.endpoints)
    try:
        await traffic.wait_progress()
        for _ in range(2):
            leader = await members.leader()
            members.kill(leader)
            await traffic.wait_progress()
            members.start(leader)
            await traffic.wait_progress()
        await traffic.end()
    finally:
        await traffic.cancel()


async def test_killed_followers_are_not_missed(members):
    """Each member that does not lead dies in turn, those that somebody is connected to among them."""
    traffic = Traffic(members.endpoints)
    try:
        await traffic.wait_progress()
        leader = await members.leader()
        for number in set(NUMBERS) - {leader}:
            members.kill(number)
            await traffic.wait_progress()
            members.start(number)
            await traffic.wait_progress()
        await traffic.end()
    finally:
        await traffic.cancel()


async def test_a_stopped_leader_is_left(members):
    """It still takes connections and answers nobody: our own deadline finds the next endpoint."""
    traffic = Traffic(members.endpoints)
    try:
        await traffic.wait_progress()
        leader = await members.leader()
        os.kill(members.running[leader].pid, signal.SIGSTOP)
        try:
            await traffic.wait_progress()
        finally:
            os.kill(members.running[leader].pid, signal.SIGCONT)
        await traffic.end()
    finally:
        await traffic.cancel()


async def test_without_a_quorum_nothing_is_acknowledged_until_it_is_back(members):
    """Two of three die: writers are told that the log is away. When one is back they go on, and nothing is doubled."""
    traffic = Traffic(members.endpoints)
    try:
        await traffic.wait_progress()
        members.kill(0)
        members.kill(1)
        stuck = traffic.unavailable
        await traffic.wait(lambda: traffic.unavailable >= stuck + 2)
        acknowledged = len(traffic.acknowledged)
        await traffic.wait(lambda: traffic.unavailable >= stuck + 3)
        assert len(traffic.acknowledged) == acknowledged
        members.start(0)
        await traffic.wait_progress()
        await traffic.end()
    finally:
        await traffic.cancel()


async def test_a_store_whose_members_are_partly_away_tells_its_size(members):
    """Maintenance goes to those that answer."""
    log = await EtcdLog.connect(members.endpoints, limits=FAST)
    members.kill(1)
    await members.wait_writable()
    space = await log.retention("east").space()
    assert space.file_bytes >= space.used_bytes > 0
    await log.retention("east").make_room()
    await log.close()
