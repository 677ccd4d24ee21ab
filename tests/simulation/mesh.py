"""A whole mesh in one process: agents and operators over one memory log, fake kernels, a virtual clock.

Belongs here: starting, crashing and settling it. Does not belong here: what happens to it (test_mesh.py).
"""

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from controlplane.agent import build_node
from controlplane.commands.cluster import JoinCluster
from controlplane.commands.types import Author
from controlplane.history.replay import EncodedRows, encoded_rows
from controlplane.model import Device
from controlplane.projections.state import State
from controlplane.runtime.checkpoints import fold
from controlplane.runtime.clock import VirtualClock
from controlplane.runtime.devices import device_name
from controlplane.runtime.duties import Duties
from controlplane.runtime.follower import Follower
from controlplane.runtime.node import Node
from controlplane.runtime.telemetry import Counters
from controlplane.runtime.underlay import Underlay
from controlplane.runtime.writer import Writer
from controlplane.settings import AgentSettings, OperatorSettings
from datapath.kernel.fake import Crash, FakeKernel, KernelMemory
from datapath.reconciler import KernelWorker
from kvstore.memory import MemoryLog, MemoryStore
from kvstore.types import Record

SETTLE_S = 20.0
STEP_S = 0.05
Result = TypeVar("Result")


class InlineWorker(KernelWorker):
    """Calls the kernel at once, in the loop: no thread, so that a seed gives the same order again."""

    def __init__(self) -> None:
        """Without the executor."""

    async def call(self, function: Callable[..., Result], *arguments: Any) -> Result:
        return function(*arguments)

    def close(self) -> None:
        """Nothing to close."""


class FakeDevices:
    """What stays of a node's devices when its agent dies."""

    def __init__(self) -> None:
        self.found: dict[str, int] = {}
        self._next = 100

    async def create(self, key: str, netns: str, interface: str, mtu_bytes: int, owner: str) -> Device:
        self._next += 1
        self.found[device_name(key)] = self._next
        low = f"{self._next >> 8:02x}:{self._next & 255:02x}"
        return Device(device_name(key), self._next, f"02:00:00:01:{low}", f"02:00:00:02:{low}")

    async def configure(
        self, netns: str, interface: str, host_mac: str, addresses: Awaitable[Sequence[str]]
    ) -> None:
        """Nobody looks inside."""
        await addresses

    async def delete(self, name: str) -> bool:
        return self.found.pop(name, None) is not None

    async def list(self) -> dict[str, int]:
        return dict(self.found)

    async def ensure_tunnel(self, protocol: str, port: int, mtu_bytes: int) -> Device:
        return Device(f"mesh_{protocol}", 99, "02:00:00:00:00:99")

    async def remove_tunnels(self, but: str) -> Sequence[str]:
        return ()

    async def close(self) -> None:
        """Devices stay."""


class SimulatedAgent:
    """A node whose agent can die at any point; its kernel, devices and checkpoint stay."""

    def __init__(self, mesh: "SimulatedMesh", cluster: str, node: str, address: str, where: Path) -> None:
        self.mesh = mesh
        self.cluster, self.node = cluster, node
        self.memory = KernelMemory()
        self.devices = FakeDevices()
        self._underlay = Underlay(Device("eth0", 2, "02:00:00:00:00:01"), (address,), 1500)
        self._settings = AgentSettings(
            cluster=cluster, node=node, runtime_dir=str(where), state_dir=str(where), retry_s=0.02, retry_s_max=0.1,
            start_log_s=0.05, wait_applied_s=1.0, endpoint_ready_s=1.0, checkpoint_s=1.0,
        )  # fmt: skip
        self.running: asyncio.Task[None] | None = None
        self.crashes = 0
        self.start()

    def start(self) -> None:
        """A new process."""
        self.log = MemoryLog(self.mesh.store)
        self.log.disturb = self.mesh.disturb
        self.kernel = FakeKernel(self.memory)
        self.work: Node = build_node(
            self._settings,
            self._underlay,
            self.mesh.clock,
            self.log,
            self.kernel,
            self.devices,
            None,
            InlineWorker(),
        )
        self.running = asyncio.create_task(self._run())

    async def _run(self) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                await self.work.open()
                for task in self.work.tasks():
                    group.create_task(task)
        except* Crash as crash:
            self.crashes += len(crash.exceptions)

    def __str__(self) -> str:
        report = self.work.parts.reconciler.status()
        return (
            f"{self.node}: running {self.is_running}, ready {self.work.ready}, joined {self.work.joined}, "
            f"connected {self.log.connected}, in sync {self.work.follower.in_sync}, "
            f"applied {self.work.follower.state.revision} of {self.mesh.store.records[-1].revision}, "
            f"realized {report.realized_generation}, {[(row.table, row.reason) for row in report.not_done]}"
        )

    @property
    def is_running(self) -> bool:
        return self.running is not None and not self.running.done()

    async def crash(self) -> None:
        """kill -9: nothing is given back, nothing saved."""
        if self.running is not None:
            self.running.cancel()
            await asyncio.gather(self.running, return_exceptions=True)


class SimulatedMesh:
    """Two clusters of two nodes, each with an operator."""

    def __init__(self, seed: int, where: Path) -> None:
        self.chance = random.Random(seed)
        self.clock = VirtualClock(seed)
        self.store = MemoryStore()
        self._background = [asyncio.create_task(self._pass_time())]
        self.agents: list[SimulatedAgent] = []
        self.duplicates = 0
        self.reorderings = 0
        for number, cluster in enumerate(("east", "west"), 1):
            self._start_operator(cluster, number)
            for node in (1, 2):
                directory = where / f"{cluster}-{node}"
                directory.mkdir()
                self.agents.append(
                    SimulatedAgent(self, cluster, f"{cluster}-{node}", f"192.168.{number}.{node}", directory)
                )

    def disturb(self, records: Sequence[Record]) -> Sequence[Record]:
        """What a watch makes of records: sometimes one comes twice, or two of one writer the wrong way round."""
        delivered = list(records)
        if delivered and self.chance.random() < 0.3:
            again = self.chance.randrange(len(delivered))
            delivered.insert(self.chance.randrange(again, len(delivered)) + 1, delivered[again])
            self.duplicates += 1
        # Records mostly come one by one, so a chance to turn two round is taken when it is there.
        if self.chance.random() < 0.9:
            for later, record in enumerate(delivered):
                first = next((n for n in range(later) if self._follows(delivered[n], record)), None)
                if first is not None:
                    delivered[first], delivered[later] = record, delivered[first]
                    self.reorderings += 1
                    break
        return delivered

    @staticmethod
    def _follows(earlier: Record, later: Record) -> bool:
        same = (earlier.cluster, earlier.writer) == (later.cluster, later.writer)
        return same and earlier.sequence < later.sequence

    def _start_operator(self, cluster: str, number: int) -> None:
        settings = OperatorSettings(
            cluster=cluster, cluster_id=number, retry_s=0.02, duty_s=0.1, node_dead_s=1e9
        )
        log, counters = MemoryLog(self.store), Counters()

        async def refold(error: Exception) -> State:
            return await fold(log, State())

        follower = Follower(log, State(), self.clock, settings, counters, refold)
        writer = Writer(log, follower, Author(cluster, "operator"), self.clock, settings, counters)
        cidrs, lengths = (f"10.{number}.0.0/16", f"fd00:{number}::/48"), (24, 64)
        wish = JoinCluster(number, cidrs, lengths, (f"10.96.{number * 16}.0/20",))
        duties = Duties(log, follower, writer, self.clock, settings, counters, (wish,))
        self._background += [
            asyncio.create_task(part) for part in (follower.run(), writer.run(), duties.run())
        ]

    async def _pass_time(self) -> None:
        while True:
            self.clock.advance_s(STEP_S)
            await asyncio.sleep(0.0005)

    async def wait(self, what: str, holds: Callable[[], bool]) -> None:
        """Until it holds; AssertionError naming it after the deadline."""
        try:
            async with asyncio.timeout(SETTLE_S):
                while not holds():
                    await asyncio.sleep(0.001)
        except TimeoutError:
            raise AssertionError(f"did not come: {what}\n" + "\n".join(map(str, self.agents))) from None

    async def settle(self) -> None:
        """Bring everybody back, and wait until every kernel holds all that the log says."""
        for agent in self.agents:
            agent.log.reconnect()
            if not agent.is_running:
                agent.start()
        await self.wait("every agent ready", lambda: all(map(self._is_ready, self.agents)))
        await self.wait("every kernel at the last record", lambda: all(map(self._is_level, self.agents)))

    def _is_ready(self, agent: SimulatedAgent) -> bool:
        if not agent.is_running:  # a crash that was still due
            agent.start()
        return agent.work.ready

    def _is_level(self, agent: SimulatedAgent) -> bool:
        self._is_ready(agent)
        report = agent.work.parts.reconciler.status()
        last = self.store.records[-1].revision if self.store.records else 0
        return (
            agent.work.joined and agent.work.follower.state.revision == last and report.realized_generation == last
            and not report.not_done
        )  # fmt: skip

    async def replayed(self) -> State:
        """The log folded from its first record, by nobody who took part."""
        return await fold(MemoryLog(self.store), State())

    def rows(self, state: State, agent: SimulatedAgent) -> EncodedRows:
        """What the agent's kernel must hold."""
        return encoded_rows(state, agent.cluster, agent.node)

    async def close(self) -> None:
        """End every task."""
        for agent in self.agents:
            await agent.crash()
        for task in self._background:
            task.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)
