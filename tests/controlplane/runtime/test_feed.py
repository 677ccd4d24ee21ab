"""When a node's rows are offered to its kernel, with and without the log."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from controlplane.commands.namespace import ApplyNamespace
from controlplane.desired.derive import Deriver
from controlplane.projections.state import State
from controlplane.runtime.feed import Feed
from controlplane.runtime.telemetry import Counters
from datapath.kernel.fake import FakeKernel, KernelMemory
from datapath.reconciler import Reconciler
from kvstore.memory import MemoryStore
from tests.controlplane.runtime.mesh import WAIT_S, Part, joined, running


class Unrelabelled:
    """Takes what the feed tells about changed labels; nothing here has any."""

    def offer(self, changes: object) -> None:
        """Nothing is due."""


class Fed:
    """A node's kernel over a memory that outlives it, and the feed into it."""

    def __init__(self, part: Part, memory: KernelMemory) -> None:
        self.reconciler = Reconciler(FakeKernel(memory), asyncio.get_running_loop().time)
        deriver = Deriver("east", "n1")
        self.feed = Feed(part.follower, deriver, self.reconciler, Unrelabelled(), Counters())  # type: ignore[arg-type]

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Opened, started and running until the block ends."""
        await self.reconciler.open()
        self.feed.start()
        tasks = [asyncio.create_task(self.feed.run()), asyncio.create_task(self.reconciler.run())]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self.reconciler.close()

    def writes(self) -> int:
        """Rows put or removed since the kernel was opened."""
        return sum(count.puts + count.deletes for count in self.reconciler.status().writes.values())


async def grown(store: MemoryStore, memory: KernelMemory) -> State:
    """A kernel that holds the mesh as it is; the state as it was before the last change."""
    operator, agent = Part(store, "operator"), Part(store, "node.n1")
    async with running(operator, agent):
        await joined(operator, agent)
        old = agent.follower.state.copy()
        fed = Fed(agent, memory)
        async with fed.running():
            await operator.writer.submit(ApplyNamespace("shop", {"team": "a"}))
            await agent.follower.wait_applied(operator.follower.state.revision, WAIT_S)
            await fed.reconciler.wait_realized(agent.follower.state.revision, WAIT_S)
    return old


async def test_an_old_state_writes_nothing_over_a_kernel_that_holds_rows() -> None:
    """Started from an old checkpoint while the log is away, a node leaves its kernel as it is pinned."""
    store, memory = MemoryStore(), KernelMemory()
    old = await grown(store, memory)
    part = Part(store, "node.n1")
    part.follower.state = old
    fed = Fed(part, memory)
    async with fed.running():
        await asyncio.sleep(0)
        assert (fed.writes(), fed.reconciler.realized_generation) == (0, -1)


async def test_an_old_state_fills_an_empty_kernel() -> None:
    """After a reboot with the log away, the checkpoint's rows are better than none."""
    store = MemoryStore()
    old = await grown(store, KernelMemory())
    part = Part(store, "node.n1")
    part.follower.state = old
    fed = Fed(part, KernelMemory())
    async with fed.running():
        await fed.reconciler.wait_realized(old.revision, WAIT_S)
        assert fed.writes() > 0


async def test_back_in_sync_the_kernel_gets_the_whole_difference_at_once() -> None:
    """Once the log is back, what is offered first is the state in sync, never one on the way to it."""
    store, memory = MemoryStore(), KernelMemory()
    old = await grown(store, memory)
    part = Part(store, "node.n1")
    part.follower.state = old
    fed = Fed(part, memory)
    async with fed.running(), running(part):
        await fed.reconciler.wait_realized(part.follower.state.revision, WAIT_S)
        assert fed.writes() == 0
