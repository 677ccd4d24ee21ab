"""The log under processes that die, stop and come back at any moment: writers, readers, and etcd itself."""

import asyncio
import os
import random
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest

from controlplane.codec import decode
from controlplane.commands.workload import ApplyWorkload
from controlplane.events import WorkloadApplied
from controlplane.projections.state import State
from controlplane.runtime.checkpoints import fold
from kvstore.embedded import EmbeddedEtcd
from kvstore.etcd import EtcdLog
from kvstore.types import Position, Record
from tests.integration.log_part import LIMITS, Part

DEADLINE_S = 60.0
KILLS = 6
SEED = int(os.environ.get("MESHLOG_KILL_SEED", "7"))


@pytest.fixture
def folder() -> Iterator[Path]:
    """A short path, since a socket's path must fit into 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="mlp-") as path:
        yield Path(path)


async def wait_until(condition: Callable[[], bool]) -> None:
    """Wait for a condition, with a bound."""
    async with asyncio.timeout(DEADLINE_S):
        while not condition():
            await asyncio.sleep(0.01)


class Other:
    """Another process, and what it has said so far; what came before its deaths is kept."""

    def __init__(self, folder: Path, role: str, endpoint: str, name: str) -> None:
        self._said = folder / f"{role}-{name}.said"
        self._command = [
            sys.executable, "-m", "tests.integration.log_part", role, endpoint, str(folder / f"{role}-{name}"), name,
        ]  # fmt: skip
        self.start()

    def start(self) -> None:
        """Begin, or begin again."""
        with self._said.open("ab") as said:
            self._process = subprocess.Popen(self._command, stdout=said, cwd=Path(__file__).parents[2])
        self.pid = self._process.pid

    def kill(self) -> None:
        """kill -9."""
        self._process.kill()
        self._process.wait()

    def lines(self) -> list[list[str]]:
        """The words of each whole line."""
        return [line.split() for line in self._said.read_text().splitlines(keepends=True) if line.endswith("\n")]

    async def wait_says(self, count: int = 1) -> None:
        """Until it has said so many lines more."""
        before = len(self.lines())
        await wait_until(lambda: len(self.lines()) >= before + count or self._process.poll() is not None)
        assert self._process.poll() is None, "it has ended by itself"

    def acknowledged(self) -> dict[str, int]:
        """By name of the workload, the revision that a writer was told."""
        return {words[2]: int(words[1]) for words in self.lines() if words[0] == "ACKNOWLEDGED"}


@asynccontextmanager
async def kept(*others: Other) -> AsyncIterator[None]:
    """Nothing outlives the block."""
    try:
        yield
    finally:
        for other in others:
            other.kill()


async def records(endpoint: str) -> list[Record]:
    """The whole log; reading it proves that no writer's sequence has a hole."""
    log = await EtcdLog.connect([endpoint], limits=LIMITS)
    found = [record async for record in log.read(Position())]
    await log.close()
    return found


async def folded(endpoint: str) -> State:
    """The state that the whole log gives."""
    log = await EtcdLog.connect([endpoint], limits=LIMITS)
    state = await fold(log, State())
    await log.close()
    return state


def stored_at(found: list[Record]) -> dict[str, list[int]]:
    """By name of the workload, the revisions of the records that carry it."""
    where: dict[str, list[int]] = {}
    for record in found:
        for event in decode(record.payload).events:
            if isinstance(event, WorkloadApplied):
                where.setdefault(event.name, []).append(record.revision)
    return where


async def test_kills_of_anyone_at_any_moment(folder):
    """Two writers, a reader and etcd die six times, in any order: what was acknowledged is in the log once, where the
    writer was told, and the reader, from its checkpoint, ends with the state that the whole log gives."""
    chance = random.Random(SEED)
    etcd = await EmbeddedEtcd.start(folder / "etcd")
    writers = [Other(folder, "writer", etcd.endpoint, name) for name in ("node.n1", "node.n2")]
    reader = Other(folder, "reader", etcd.endpoint, "node.n3")
    try:
        async with kept(*writers, reader):
            await asyncio.gather(*(other.wait_says(5) for other in (*writers, reader)))
            for _ in range(KILLS):
                victim = chance.choice([*writers, reader, None])
                await asyncio.sleep(chance.random() * 0.2)
                if victim is None:
                    os.kill(etcd.pid, signal.SIGKILL)
                    await etcd.stop()
                    etcd = await EmbeddedEtcd.start(folder / "etcd")
                else:
                    victim.kill()
                    victim.start()
                await (victim or writers[0]).wait_says(2)
            for writer in writers:
                writer.kill()
            state = await folded(etcd.endpoint)
            await wait_until(lambda: reader.lines()[-1][1] == str(state.revision))
            _, _, began_at, digest = reader.lines()[-1]
            assert digest == state.digest() and state.refused_count == 0
            reader.kill()
            reader.start()
            await reader.wait_says()
            assert int(reader.lines()[-1][2]) > int(began_at) >= 0
        where = stored_at(await records(etcd.endpoint))
        for writer in writers:
            told = writer.acknowledged()
            assert len(told) > KILLS
            assert {name: where[name] for name in told} == {name: [revision] for name, revision in told.items()}
    finally:
        await etcd.stop()


async def test_a_stopped_writer_comes_back_beyond_its_lease(folder):
    """Meanwhile another has its place. The one that wakes up stores nothing under its old session, opens another by
    itself and goes on; so does the other; and each record is there once, in one dense sequence."""
    etcd = await EmbeddedEtcd.start(folder / "etcd")
    stopped = Other(folder, "writer", etcd.endpoint, "node.n1")
    part = await Part.connect(etcd.endpoint, folder / "second", "node.n1")
    try:
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(kept(stopped))
            await stopped.wait_says(5)
            os.kill(stopped.pid, signal.SIGSTOP)
            async with asyncio.timeout(DEADLINE_S):
                while await part.log.list("session/east/"):
                    await asyncio.sleep(0.05)
            await stack.enter_async_context(part.running())
            tokens = {record.token for record in await records(etcd.endpoint)}
            taken = await part.submit(ApplyWorkload("shop", "second-0", {}))
            os.kill(stopped.pid, signal.SIGCONT)
            await stopped.wait_says(5)
            again = await part.submit(ApplyWorkload("shop", "second-1", {}))
            await stopped.wait_says(5)
            stopped.kill()
        found = await records(etcd.endpoint)
        assert not [each for each in found if each.revision > taken and each.token in tokens]
        assert [each.sequence for each in found] == list(range(1, len(found) + 1))
        where = stored_at(found)
        told = {**stopped.acknowledged(), "second-0": taken, "second-1": again}
        assert {name: where[name] for name in told} == {name: [revision] for name, revision in told.items()}
        assert part.counters.value("log_session_lost_total") > 0
    finally:
        await etcd.stop()
