"""A store that is put back from a backup: noticed, said, and folded again; nothing is merged."""

import asyncio
import os
import shutil
import signal
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from controlplane.commands.workload import ApplyWorkload
from controlplane.projections.state import State
from controlplane.runtime.checkpoints import fold
from controlplane.runtime.shared_checkpoint import share_state
from controlplane.runtime.status import log_connection, log_problems
from kvstore.embedded import EmbeddedEtcd
from kvstore.errors import LogError
from tests.integration.log_part import Part

WAIT_S = 30.0


class Store:
    """An etcd whose data can be kept and put back."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._data, self._kept = folder / "etcd" / "data", folder / "kept"

    async def start(self) -> None:
        """On the data that there is."""
        self.etcd = await EmbeddedEtcd.start(self.folder / "etcd")

    async def keep(self) -> None:
        """A backup, of an etcd that is at rest meanwhile."""
        await self.etcd.stop()
        shutil.copytree(self._data, self._kept)
        await self.start()

    async def put_back(self) -> None:
        """Killed, and started on the backup."""
        os.kill(self.etcd.pid, signal.SIGKILL)
        await self.etcd.stop()
        shutil.rmtree(self._data)
        shutil.copytree(self._kept, self._data)
        await self.start()

    async def part(self, name: str) -> Part:
        """A process of ours."""
        return await Part.connect(self.etcd.endpoint, self.folder / name, name)


@pytest.fixture
async def store() -> AsyncIterator[Store]:
    """One that runs."""
    with tempfile.TemporaryDirectory(prefix="mlb-") as path:
        made = Store(Path(path))
        await made.start()
        yield made
        await made.etcd.stop()


async def wait_until(condition: Callable[[], bool]) -> None:
    """Wait for a condition, with a bound."""
    async with asyncio.timeout(WAIT_S):
        while not condition():
            await asyncio.sleep(0.01)


async def write(part: Part, name: str, count: int) -> int:
    """So many records; the revision of the last."""
    return [await part.submit(ApplyWorkload("shop", f"{name}-{n}", {})) for n in range(count)][-1]


async def test_a_restored_store_is_said_and_folded_again(store):
    """The follower stops, `status` says why, what is held is served; then it has what the backup has, and goes on."""
    part = await store.part("node.n1")
    is_allowed = asyncio.Event()

    async def refold(error: LogError) -> State:
        await is_allowed.wait()
        return await part.checkpoints.refold(part.log, error)

    part.follower._refold = refold
    async with part.running():
        await write(part, "kept", 5)
        await store.keep()
        await write(part, "lost", 5)
        await part.checkpoints.save_if_trusted(part.follower)
        await store.put_back()
        await wait_until(lambda: bool(part.follower.repairing))
        problems = log_problems(log_connection(part.log, part.follower), part.follower.in_sync)
        assert any("this reader has already seen" in problem for problem in problems), problems
        assert len(part.follower.state.workloads) == 10 and not part.follower.in_sync
        is_allowed.set()
        await part.follower.wait_in_sync(WAIT_S)
        assert [key.name for key in sorted(part.follower.state.workloads)] == [f"kept-{n}" for n in range(5)]
        assert part.follower.rewinds == 1
        await write(part, "after", 5)
        assert part.follower.state.digest() == (await fold(part.log, State())).digest()


async def test_a_restored_store_that_has_grown_again_is_noticed(store):
    """A process that was away meanwhile has seen less than the store's revision, and other records."""
    away, other = await store.part("node.n1"), await store.part("node.n2")
    async with other.running():
        await write(other, "kept", 3)
        await store.keep()
        async with away.running():
            await write(away, "lost", 5)
            await away.follower.wait_applied(away.follower.head_revision, WAIT_S)
            await away.checkpoints.save_if_trusted(away.follower)
        await store.put_back()
        await other.follower.wait_in_sync(WAIT_S)
        head = await write(other, "grown", 30)
        again = await store.part("node.n1")
        assert 0 < again.began_at < head
        async with again.running():
            await wait_until(lambda: again.follower.rewinds == 1)
            await again.follower.wait_applied(head, WAIT_S)
            assert again.follower.state.digest() == (await fold(again.log, State())).digest()


@pytest.mark.parametrize("is_sealed", [False, True])
async def test_a_store_whose_lost_writer_has_written_as_much_again_is_noticed(store, is_sealed):
    """A reader that was away meanwhile, and wrote nothing itself: neither the revision nor a writer's count says
    anything, but where it took its last record there is none."""
    other = await store.part("node.n2")
    async with other.running():
        await write(other, "kept", 3)
        await store.keep()
        away = await store.part("node.n1")
        async with away.running():
            head = await write(other, "lost", 5)
            await away.follower.wait_applied(head, WAIT_S)
            await away.checkpoints.save_if_trusted(away.follower)
        await store.put_back()
        await wait_until(lambda: other.follower.rewinds == 1 and other.follower.in_sync)
        await other.log.put("report/east/n2", b"")
        head = await write(other, "grown", 30)
        if is_sealed:
            await other.log.retention("east").seal(time.time_ns(), 16, rest=True)
        again = await store.part("node.n1")
        assert 0 < again.began_at < head
        async with again.running():
            await wait_until(lambda: again.follower.rewinds == 1)
            await again.follower.wait_applied(head, WAIT_S)
            assert again.follower.state.digest() == (await fold(again.log, State())).digest()


async def test_a_restored_store_without_its_beginning_is_folded_from_its_checkpoint(store, monkeypatch):
    """The history in it does not begin at the first record: the checkpoint in the store is what there is."""
    monkeypatch.setattr("kvstore.packed.SEGMENT_RECORDS_MAX", 5)
    part = await store.part("operator")
    async with part.running():
        await write(part, "kept", 20)
        await share_state(part.log, await part.writer.session(), part.follower.state, time.time_ns())
        keep = part.log.retention("east")
        sealed = await keep.seal(1)
        await keep.truncate(sealed[0][0], (await keep.segments()).low_touched)
        await store.keep()
        await write(part, "lost", 5)
        await store.put_back()
        await wait_until(lambda: part.follower.rewinds == 1 and part.follower.in_sync)
        assert len(part.follower.state.workloads) == 20
