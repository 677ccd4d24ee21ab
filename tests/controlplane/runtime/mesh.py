"""A follower and a writer over a memory log, for tests of the runtime."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from controlplane.commands.cluster import JoinCluster
from controlplane.commands.node import AssignAddressBlock, JoinNode
from controlplane.commands.types import Author
from controlplane.model import Device
from controlplane.projections.state import State
from controlplane.runtime.checkpoints import fold
from controlplane.runtime.clock import SystemClock
from controlplane.runtime.follower import Follower
from controlplane.runtime.telemetry import Counters
from controlplane.runtime.writer import Writer
from controlplane.settings import AgentSettings
from kvstore.memory import MemoryLog, MemoryStore

WAIT_S = 5.0
JOIN_EAST = JoinCluster(1, ("10.1.0.0/16", "fd00:1::/48"), (24, 64), ("10.96.0.0/20", "fd00:96::/112"))
UPLINK = Device("eth0", 2, "02:00:00:00:00:01", "02:00:00:00:00:01")
JOIN_N1 = JoinNode("n1", ("192.168.0.1",), UPLINK)


class Part:
    """One process: its own handle on the store."""

    def __init__(self, store: MemoryStore, writer: str, cluster: str = "east") -> None:
        settings = AgentSettings(
            cluster=cluster,
            node="n1",
            retry_s=0.01,
            retry_s_max=0.02,
            wait_applied_s=WAIT_S,
            decide_again_max=4,
        )
        self.log = MemoryLog(store)
        self.counters = Counters()
        clock = SystemClock()

        async def refold(error: Exception) -> State:
            return await fold(self.log, State())

        self.follower = Follower(self.log, State(), clock, settings, self.counters, refold)
        self.writer = Writer(self.log, self.follower, Author(cluster, writer), clock, settings, self.counters)


@asynccontextmanager
async def running(*parts: Part) -> AsyncIterator[None]:
    """Their loops, until the block ends."""
    tasks = [asyncio.create_task(loop) for part in parts for loop in (part.follower.run(), part.writer.run())]
    try:
        for part in parts:
            await part.follower.wait_in_sync(WAIT_S)
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def joined(operator: Part, agent: Part) -> None:
    """A cluster with one node that has an address block."""
    await operator.writer.submit(JOIN_EAST)
    await agent.follower.wait_applied(operator.follower.state.revision, WAIT_S)
    await agent.writer.submit(JOIN_N1)
    await operator.follower.wait_applied(agent.follower.state.revision, WAIT_S)
    written = await operator.writer.submit(AssignAddressBlock("n1"))
    await agent.follower.wait_applied(written.revision, WAIT_S)
