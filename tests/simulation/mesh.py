"""A whole mesh in one process: machines, agents and operators over one memory log, fake kernels, virtual time.

Belongs here: what stays when a process dies, starting and killing processes, leases, cutting off and settling. Does not
belong here: what happens to the mesh (changes.py, faults.py), what must hold (witness.py).
"""

import asyncio
import random
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from controlplane.agent import build_node
from controlplane.api.schema import EndpointResult
from controlplane.commands.cluster import JoinCluster
from controlplane.commands.types import Author
from controlplane.model import Device
from controlplane.projections.state import State
from controlplane.runtime.checkpoints import Checkpoints
from controlplane.runtime.duties import Duties
from controlplane.runtime.follower import Follower
from controlplane.runtime.node import Node
from controlplane.runtime.retention import Retention
from controlplane.runtime.telemetry import Counters
from controlplane.runtime.underlay import Underlay
from controlplane.runtime.writer import Writer
from controlplane.settings import AgentSettings, OperatorSettings
from datapath.kernel.fake import FakeKernel, KernelMemory
from kvstore.archive import Archive
from kvstore.errors import LogError
from kvstore.memory import _Kept
from kvstore.types import Claim, Revision, Session
from tests.simulation.history import Archives, HistoryStore
from tests.simulation.process import Process, SimulatedDevices, SimulatedWorker
from tests.simulation.witness import Witness

CLUSTERS = ("east", "west")
VISITOR = "south"
NODES = ("n1", "n2")
SETTLE_S = 120.0
"""Virtual: longer than any lease, retry and dead node together."""
LEASE_S = 3.0
NODE_DEAD_S = 3.0


class WitnessedStore(HistoryStore):
    """Tells the witness of everything that happens to the log."""

    witness: Witness

    def open(self, cluster: str, writer: str) -> Session:
        """See MemoryStore."""
        session = super().open(cluster, writer)
        self.witness.opened(session)
        return session

    def revoke(self, lease: int) -> None:
        """See MemoryStore."""
        self.witness.revoked(lease)
        super().revoke(lease)

    def append(self, session: Session, payload: bytes, claims: Sequence[Claim], known: int = 0) -> Revision:
        """See MemoryStore."""
        revision = super().append(session, payload, claims, known)
        self.witness.landed(self.records[-1])
        return revision


class Machine:
    """What outlives a process: its directory, kernel and devices. `process` runs there now, or died there."""

    def __init__(self, mesh: "SimulatedMesh", cluster: str, name: str, where: Path) -> None:
        self.mesh, self.cluster, self.name, self.where = mesh, cluster, name, where
        self.process: Process | None = None
        self.archives: Archives = ()
        self.down_until_s = 0.0
        """Whoever brings machines back leaves it until then."""
        where.mkdir()

    def __str__(self) -> str:
        return f"{self.cluster}/{self.name}"

    @property
    def writer_name(self) -> str:
        raise NotImplementedError

    @property
    def is_running(self) -> bool:
        return self.process is not None and not self.process.is_dead

    @property
    def follower(self) -> Follower:
        raise NotImplementedError

    @property
    def writer(self) -> Writer:
        raise NotImplementedError

    def start(self) -> None:
        """A new process."""
        assert not self.is_running
        self.mesh.note(f"{self} starts")
        self.process = Process(self.mesh, str(self), next(self.mesh.numbers), self.archives)
        self._build(self.process)

    def _build(self, process: Process) -> None:
        raise NotImplementedError


class NodeMachine(Machine):
    """A node of a cluster."""

    def __init__(self, mesh: "SimulatedMesh", cluster: str, name: str, address: str, where: Path) -> None:
        super().__init__(mesh, cluster, name, where)
        self.memory = KernelMemory()
        self.devices: dict[str, int] = {}
        self.living: dict[str, EndpointResult] = {}
        """By container, the endpoints that somebody was told to be there and has not asked to remove."""
        self.removals: Counter[str] = Counter()
        self.realized_max = 0
        self._underlay = Underlay(Device("eth0", 2, "02:00:00:00:00:01"), (address,), 1500)
        zone = "ab"[NODES.index(name) % 2]
        self._settings = AgentSettings(
            cluster=cluster, node=name, runtime_dir=str(where), state_dir=str(where), retry_s=0.05, retry_s_max=0.4,
            start_log_s=0.5, wait_applied_s=2.0, endpoint_ready_s=2.0, checkpoint_s=1.5, report_s=0.5, flows_save_s=5.0,
            restore_wait_s=2.0,
            labels=(f"topology.kubernetes.io/zone={zone}",),
        )  # fmt: skip
        self.work: Node
        self.kernel: FakeKernel
        self.writes_at_start = 0
        self.was_empty = True

    @property
    def writer_name(self) -> str:
        return f"node.{self.name}"

    @property
    def follower(self) -> Follower:
        return self.work.follower

    @property
    def writer(self) -> Writer:
        return self.work.writer

    def _build(self, process: Process) -> None:
        self.kernel = FakeKernel(self.memory)
        self.writes_at_start = self.memory.writes
        self.was_empty = not any(self.memory.tables.values())
        self.work = build_node(
            self._settings, self._underlay, process.clock, process.log, self.kernel,
            SimulatedDevices(process, self.devices), None, SimulatedWorker(process),
        )  # fmt: skip
        process.start(self._run)

    async def _run(self) -> None:
        work = self.work
        async with asyncio.TaskGroup() as group:
            await work.open()
            for task in work.tasks():
                group.create_task(task)


class OperatorMachine(Machine):
    """Where an operator of a cluster runs; there may be two, of which one has the duty."""

    def __init__(self, mesh: "SimulatedMesh", cluster: str, name: str, where: Path) -> None:
        super().__init__(mesh, cluster, name, where)
        self.archives = ((cluster, where / "archive"),)
        self._held: tuple[Follower, Writer, Duties, Retention]

    @property
    def writer_name(self) -> str:
        return "operator"

    @property
    def follower(self) -> Follower:
        return self._held[0]

    @property
    def writer(self) -> Writer:
        return self._held[1]

    @property
    def duties(self) -> Duties:
        return self._held[2]

    def _build(self, process: Process) -> None:
        number = (*CLUSTERS, VISITOR).index(self.cluster) + 1
        settings = OperatorSettings(
            cluster=self.cluster, cluster_id=number, retry_s=0.05, retry_s_max=0.4, duty_s=0.4, wait_applied_s=2.0,
            node_dead_s=NODE_DEAD_S, identity_release_s=0.8, checkpoint_s=1.5, retention_round_s=0.7, retention_s=4.0,
            segment_age_s=2.0, shared_checkpoint_s=3.0,
        )  # fmt: skip
        checkpoints, counters, log = Checkpoints(self.where), Counters(), process.log

        async def refold(error: LogError) -> State:
            return await checkpoints.refold(log, error)

        follower = Follower(log, checkpoints.load() or State(), process.clock, settings, counters, refold)
        writer = Writer(log, follower, Author(self.cluster, "operator"), process.clock, settings, counters)
        wish = self.mesh.cluster_wish(self.cluster)
        duties = Duties(log, follower, writer, process.clock, settings, counters, (wish,))
        archive = Archive(self.archives[0][1])
        keeping: Any = (log, archive, None, follower, writer, duties, process.clock, settings, counters)
        self._held = (follower, writer, duties, Retention(*keeping))

        async def run() -> None:
            async with asyncio.TaskGroup() as group:
                for part in self._held:
                    group.create_task(part.run())
                group.create_task(checkpoints.run(follower, process.clock, settings))

        process.start(run)


class SimulatedMesh:
    """Two clusters of two nodes; two machines for the operators of each, of which the second is in reserve."""

    def __init__(self, seed: int, where: Path) -> None:
        self.seed = seed
        self.chance = random.Random(seed)
        self.numbers = iter(range(1_000_000))
        self.notes: list[str] = []
        self.seen: Counter[str] = Counter()
        """What happened, and how often: a run in which nothing happens proves nothing."""
        self.store = WitnessedStore()
        self.witness = Witness(self)
        self.store.witness = self.witness
        self.modes = dict.fromkeys(CLUSTERS, "native")
        self.requests: list[tuple[Process | None, asyncio.Task[None]]] = []
        self.nodes = [
            NodeMachine(self, cluster, node, f"192.168.{number}.{place}", where / f"{cluster}-{node}")
            for number, cluster in enumerate(CLUSTERS, 1)
            for place, node in enumerate(NODES, 1)
        ]
        self.operators = [
            OperatorMachine(self, cluster, f"operator-{place}", where / f"{cluster}-operator-{place}")
            for cluster in CLUSTERS
            for place in (1, 2)
        ]
        self.spoilt: dict[bytes, tuple[float, _Kept]] = {}
        """Keys that were damaged: when, and what they held."""
        self.visitor = OperatorMachine(self, VISITOR, "operator", where / VISITOR)
        """A cluster without nodes, which joins and leaves."""
        for machine in (*self.nodes, *self.operators[::2]):
            machine.start()

    @property
    def machines(self) -> list[Machine]:
        return [*self.nodes, *self.operators, self.visitor]

    def note(self, what: str) -> None:
        """One line of what happened, with its virtual time."""
        self.notes.append(f"{asyncio.get_running_loop().time():8.3f} {what}")

    def cluster_wish(self, cluster: str) -> JoinCluster:
        """What an operator's flags say."""
        number = (*CLUSTERS, VISITOR).index(cluster) + 1
        pods = (f"10.{number}.0.0/16", f"fd00:{number}::/48")
        services = (f"172.{number}.0.0/24", f"fd01:{number}::/112")
        return JoinCluster(number, pods, (28, 64), services, self.modes.get(cluster, "native"))

    def kill(self, process: Process) -> None:
        """kill -9: nothing is given back, nothing saved; its lease runs out later."""
        process.is_dead = True
        self._expire_later(process)

    def _expire_later(self, process: Process) -> None:
        """Unless the process comes back in time, or another takes its place meanwhile."""
        machine = next(each for each in self.machines if each.process is process)
        token = self.witness.tokens.get(f"{machine.cluster}/{machine.writer_name}")

        def expire() -> None:
            is_away = process.is_dead or process.is_stopped or not process.log.connected
            same = self.witness.tokens.get(f"{machine.cluster}/{machine.writer_name}") == token
            if is_away and same and token is not None:
                self.note(f"the lease of {process.name} ends")
                self.seen["lease ended"] += 1
                self.store.expire_session(machine.cluster, machine.writer_name)

        asyncio.get_running_loop().call_later(LEASE_S, expire)

    def cut_off(self, machines: Sequence[Machine], for_s: float) -> None:
        """From the log, for a while."""
        for machine in machines:
            if machine.is_running:
                assert machine.process is not None
                machine.process.log.disconnect()
                self._expire_later(machine.process)
                asyncio.get_running_loop().call_later(for_s, self._join, machine.process)

    def _join(self, process: Process) -> None:
        if not process.is_dead and not process.log.connected:
            self.note(f"{process.name} reaches the log again")
            process.log.reconnect()

    def stop(self, process: Process, for_s: float) -> None:
        """SIGSTOP, and SIGCONT later."""
        process.stop()
        self._expire_later(process)
        asyncio.get_running_loop().call_later(for_s, process.resume)

    async def wait(self, what: str, holds: Callable[[], bool]) -> None:
        """Until it holds; AssertionError naming it after the deadline."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + SETTLE_S
        while not holds():
            self.witness.check()
            if loop.time() >= deadline:
                told = "\n".join(map(self._told, self.nodes))
                self.witness.breach("everything settles", f"did not come: {what}\n{told}")
            await asyncio.sleep(0.05)
        self.witness.check()

    async def settle(self) -> None:
        """Bring everybody back, and wait until every kernel holds all that the log says, and that stays."""
        if self.visitor.is_running:
            assert self.visitor.process is not None
            self.kill(self.visitor.process)
        for machine in (*self.nodes, *self.operators[::2]):
            if machine.process is not None and not machine.process.is_dead:
                machine.process.resume()
                machine.process.lag_s = 0.0
                self._join(machine.process)
        await self.wait("every kernel at the last record", self._is_level)

    def _is_level(self) -> bool:
        last = self.witness.state.revision
        levels = [self._is_level_at(node, last) for node in self.nodes]
        levels += [self._is_back(each) and each.follower.state.revision == last for each in self.operators[::2]]
        return all(levels)

    def _is_back(self, machine: Machine) -> bool:
        if not machine.is_running:  # by a fault that was still due
            machine.start()
        return True

    def _is_level_at(self, node: NodeMachine, last: int) -> bool:
        self._is_back(node)
        report = node.work.parts.reconciler.status()
        return (
            node.work.ready and node.work.joined and node.follower.state.revision == last
            and report.realized_generation == last and not report.not_done
        )  # fmt: skip

    def _told(self, node: NodeMachine) -> str:
        report = node.work.parts.reconciler.status()
        return (
            f"{node}: running {node.is_running}, ready {node.work.ready}, joined {node.work.joined}, in sync "
            f"{node.follower.in_sync}, repairing {node.follower.repairing!r}, applied {node.follower.state.revision} "
            f"of {self.witness.state.revision}, realized {report.realized_generation}, "
            f"{[(row.table, row.reason) for row in report.not_done[:5]]}"
        )

    async def answer_all(self) -> None:
        """Every request to a process that lives has its answer by now, or gets it."""

        def are_answered() -> bool:
            return all(task.done() for process, task in self.requests if process is not None and not process.is_dead)

        await self.wait("an answer to every request", are_answered)
        for process, task in self.requests:
            if task.done() and process is not None and not process.is_dead and task.exception() is not None:
                self.witness.breach("nothing falls over", f"a request to {process.name}: {task.exception()!r}")

    def all_know_the_store(self) -> bool:
        """Whether nobody decides any more by what a restored store has lost."""
        known = [each.follower.state.store_id for each in self.machines if each.is_running]
        return self.seen["restored"] == 0 or all(each == self.store.cluster_id for each in known)

    def restore(self, revision: int) -> None:
        """The store is put back to this revision, as another store."""
        self.seen["restored"] += 1
        self.store.restore(revision, cluster_id=self.store.cluster_id + 1)
        for machine in self.machines:
            if machine.process is not None:
                machine.process.log._in_doubt.clear()
        for node in self.nodes:
            node.realized_max = min(node.realized_max, revision)
        self.witness.rewound(revision)
