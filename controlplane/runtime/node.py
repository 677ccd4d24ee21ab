"""One running node: its parts, the order in which they start and end, and what it says about itself.

Belongs here: the sequence of a start. Does not belong here: building the parts (agent.py), HTTP (api/).
"""

import asyncio
import gc
import os
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from typing import Any

import msgspec
import structlog

from controlplane.api import schema
from controlplane.api.kernel_views import metrics_rows
from controlplane.commands.node import JoinNode
from controlplane.commands.types import Rejection
from controlplane.desired.forwarding import balancing_text
from controlplane.history.at import Past
from controlplane.history.flows import FlowSummary
from controlplane.history.replay import EncodedRows, encoded_rows
from controlplane.model import EndpointKey, NodeKey
from controlplane.runtime import status
from controlplane.runtime.acceleration import acceleration, acceleration_text
from controlplane.runtime.announced import OwnFile
from controlplane.runtime.archives import reaching, whereabouts
from controlplane.runtime.archivist import Archivist
from controlplane.runtime.checkpoints import Checkpoints
from controlplane.runtime.clock import Clock
from controlplane.runtime.devices import Devices
from controlplane.runtime.endpoints import Endpoints
from controlplane.runtime.feed import Feed
from controlplane.runtime.flows import FlowRecorder, gathered_flows
from controlplane.runtime.follower import Follower
from controlplane.runtime.health_checks import HealthChecks
from controlplane.runtime.inspection import Inspection
from controlplane.runtime.losses import Losses
from controlplane.runtime.monitor import Monitor, Ring
from controlplane.runtime.overlay import Overlay
from controlplane.runtime.recovery import Recovery
from controlplane.runtime.relabelling import Relabelling
from controlplane.runtime.reports import Reporter
from controlplane.runtime.settling import Settling
from controlplane.runtime.shared_checkpoint import shared_state_at
from controlplane.runtime.sockets import joining_cgroup, joining_text, socket_cgroup, socket_lb_text
from controlplane.runtime.telemetry import Counters
from controlplane.runtime.underlay import Underlay
from controlplane.runtime.writer import Writer, WriterFailed
from controlplane.settings import AgentSettings
from datapath.conntrack_gc import ConntrackCollector
from datapath.errors import DatapathError, KernelError
from datapath.kernel.api import Kernel
from datapath.reconciler import Reconciler
from kvstore.api import EventLog

METRICS = "metrics"


class NodeParts(msgspec.Struct, frozen=True):
    """Everything a node consists of; agent.py makes it."""

    settings: AgentSettings
    underlay: Underlay
    clock: Clock
    counters: Counters
    log: EventLog
    checkpoints: Checkpoints
    follower: Follower
    writer: Writer
    kernel: Kernel
    reconciler: Reconciler
    feed: Feed
    relabelling: Relabelling
    health_checks: HealthChecks
    devices: Devices
    endpoints: Endpoints
    overlay: Overlay
    settling: Settling
    inspection: Inspection
    reporter: Reporter
    monitor: Monitor
    flows: FlowRecorder
    collector: ConntrackCollector
    open_ring: Callable[[], Ring] | None
    losses: Losses
    archivist: Archivist | None
    own: OwnFile
    recovery: Recovery
    start_source: str


class Node:
    """An agent's parts at work."""

    def __init__(self, parts: NodeParts) -> None:
        self.parts = parts
        self.cluster = parts.settings.cluster
        self.where = NodeKey(parts.settings.cluster, parts.settings.node)
        self.log = parts.log
        self.settings = parts.settings
        self.follower = parts.follower
        self.writer = parts.writer
        self.losses = parts.losses
        self.page_records_max = parts.settings.log_page_records_max
        self.past = Past(
            parts.log, self.revision, parts.follower.recent, parts.checkpoints.start,
            shared=partial(shared_state_at, parts.log), old_log=reaching(parts.log),
            whereabouts=partial(whereabouts, parts.log),
        )
        self.follower.on_rewind.append(lambda lost, found: self.past.forget())
        self.ready = False
        self.ready_after_s: float | None = None
        self.joined = False
        self.writes_at_start: dict[str, int] = {}
        self._is_static = False
        self._started_s = parts.clock.monotonic_s()
        self._logger = structlog.get_logger()

    async def open(self) -> None:
        """The kernel: programs and maps, new or as they were. Changes nothing that is right. Raises KernelError."""
        await self.parts.reconciler.open()

    def tasks(self) -> list[Coroutine[Any, Any, None]]:
        """What runs for as long as the node does."""
        parts = self.parts
        return [
            *((parts.archivist.run(),) if parts.archivist else ()),
            parts.follower.run(),
            parts.writer.run(),
            parts.reconciler.run(),
            parts.collector.run(),
            parts.settling.run(),
            parts.flows.run(),
            parts.checkpoints.run(parts.follower, parts.clock, parts.settings),
            parts.own.run(),
            parts.recovery.run(self._wish, parts.reporter.send, parts.endpoints.remove_stale),
            self._start(),
        ]

    def revision(self) -> int:
        """Up to which everything is applied."""
        return self.parts.follower.applied_revision

    def generation(self) -> int:
        """Revision of the last record applied: what the kernel is asked to hold."""
        return self.parts.follower.state.revision

    def derive_anew(self) -> EncodedRows:
        """What the kernel should hold, derived from nothing but the state."""
        return encoded_rows(self.parts.follower.state, self.cluster, self.where.node)

    def row_state(self, cluster: str, node: str, endpoint_id: int) -> str:
        """ "ready", "pending", "error"; "remote" of another node's endpoint."""
        if (cluster, node) != self.where:
            return "remote"
        endpoint = self.follower.state.endpoints.get(EndpointKey(cluster, node, endpoint_id))
        report = self.parts.reconciler.status()
        return status.endpoint_state(endpoint, report, self.generation())

    async def flows(self) -> Sequence[FlowSummary]:
        """What the nodes of the mesh have seen, this one up to now."""
        return await gathered_flows(self.log, self.parts.flows.summary())

    async def samples(self) -> list[status.Sample]:
        """What /metrics shows. A kernel that cannot be read leaves its part out."""
        parts = self.parts
        try:
            entries = await parts.reconciler.worker.call(parts.kernel.dump_runtime, METRICS)
            metrics = metrics_rows(entries)
        except KernelError:
            metrics = []
        found = [*parts.counters.samples(), *status.log_samples(parts.log, parts.follower)]
        found += status.collector_samples(parts.collector)
        found += status.bounds_samples(parts.feed.deriver, parts.reconciler.status())
        return [*found, *status.kernel_samples(parts.reconciler, metrics)]

    async def wait_realized(self, revision: int, timeout_s: float) -> schema.Waited:
        """Until the kernel holds everything up to a revision. Raises TimeoutError."""
        async with asyncio.timeout(timeout_s):
            await self.parts.follower.wait_applied(revision, timeout_s)
            await self.parts.reconciler.wait_realized(self.generation(), timeout_s)
        return schema.Waited(self.revision(), self.parts.reconciler.realized_generation)

    async def close(self) -> None:
        """A clean end: the checkpoint is fresh, the writer's place is free, what is pinned stays."""
        parts = self.parts
        parts.monitor.stop()
        await parts.flows.save()
        await parts.checkpoints.save_if_trusted(parts.follower)
        await parts.writer.close()
        await parts.devices.close()
        await parts.reconciler.close()
        await parts.log.close()

    def status(self) -> schema.Status:
        """What `meshlog status` shows."""
        parts, follower = self.parts, self.parts.follower
        state = follower.state
        connection = status.log_connection(parts.log, follower)
        kernel = status.kernel_status(parts.reconciler, state.revision, self.writes_at_start)
        problems = status.log_problems(connection, follower.in_sync) + status.state_problems(state)
        own = state.nodes.get(self.where)
        problems += status.node_problems(own, kernel) + parts.overlay.problems()
        problems += parts.archivist.problems() if parts.archivist else []
        problems += parts.recovery.problems() + parts.losses.problems() + parts.inspection.problems()
        problems += status.collector_problems(parts.collector)
        problems += status.bounds_problems(parts.feed.deriver, parts.reconciler.status())
        return schema.Status(
            kind="agent",
            name=f"{parts.settings.cluster}/{parts.settings.node}",
            cluster=parts.settings.cluster,
            node=parts.settings.node,
            version=status.package_version(),
            pid=os.getpid(),
            health=status.health(self.ready, problems, self._is_static and not follower.in_sync),
            problems=problems,
            ready=self.ready,
            ready_after_s=self.ready_after_s,
            uptime_s=round(parts.clock.monotonic_s() - self._started_s, 3),
            in_sync=follower.in_sync,
            log=connection,
            kernel=kernel,
            counts=status.counts(state),
            unknown_events=state.unknown_events,
            refused_events=status.refused_events(state),
            write_mode="log" if connection.connected and follower.in_sync else "read-only",
            start_source=parts.start_source,
            attach_mode=parts.kernel.attach_mode,
            routing_mode=parts.overlay.mode(),
            bandwidth=status.bandwidth_text(state, self.where),
            socket_lb=socket_lb_text(parts.settings, own.cgroup if own else ""),
            acceleration=acceleration_text(own),
            balancing=balancing_text(state, self.where),
            joined_sockets=joining_text(own),
        )

    # --- start ------------------------------------------------------------------------------------------------

    async def _start(self) -> None:
        """The order of a start: in sync, joined, derived, realized, ready; then follow."""
        parts = self.parts
        joining = asyncio.create_task(self._join())
        try:
            await self._wait_log(joining)
            parts.feed.start()
            async with asyncio.TaskGroup() as group:
                group.create_task(parts.feed.run())
                group.create_task(parts.reporter.run())
                group.create_task(parts.relabelling.run())
                group.create_task(parts.health_checks.run())
                group.create_task(parts.overlay.run(self._tell))
                await self._wait_ready()
                await self._start_monitor()
                group.create_task(parts.inspection.run())
                await joining
        finally:
            joining.cancel()

    async def _wait_log(self, joining: "asyncio.Task[None]") -> None:
        """Until this node has joined; with a checkpoint, not longer than the log may take when it is away."""
        parts = self.parts
        has_checkpoint = parts.follower.state.revision > 0
        while not joining.done():
            await asyncio.wait((joining,), timeout=parts.settings.start_log_s)
            is_away = not parts.log.connected or not parts.follower.in_sync
            if has_checkpoint and is_away and not joining.done() and not self._is_progressing():
                self._logger.warning("the log is away; serving from the checkpoint", revision=self.revision())
                self._is_static = True
                return

    async def _start_monitor(self) -> None:
        """Last: until then the ring keeps what comes, and opening it takes an import of 50 ms."""
        if self.parts.open_ring is not None:
            self.parts.monitor.start(await asyncio.to_thread(self.parts.open_ring))

    def _is_progressing(self) -> bool:
        connection = status.log_connection(self.parts.log, self.parts.follower)
        return connection.connected and connection.unavailable_since is None

    async def _join(self) -> None:
        """Once log and devices agree: tell the log what this node is."""
        parts = self.parts
        while not self.joined:
            try:
                await parts.follower.wait_in_sync(parts.settings.wait_applied_s)
                await parts.follower.wait_released(parts.settings.wait_applied_s)
                await self._join_once()
            except (WriterFailed, TimeoutError, DatapathError) as error:
                waits_for = parts.follower.held if parts.follower.in_sync else "the log is away"
                self._logger.info("not joined yet", reason=str(error) or waits_for)
                await parts.clock.sleep_s(parts.clock.jitter(parts.settings.retry_s))

    async def _join_once(self) -> None:
        revision = await self._tell()
        self.joined = True
        self._logger.info("joined", revision=revision)

    async def _tell(self) -> int:
        """What this node is, if the log does not say so yet; the revision. Raises WriterFailed, KernelError."""
        outcome = await self.parts.writer.submit(await self._wish())
        if isinstance(outcome, Rejection):
            raise WriterFailed(f"this node may not join: {outcome.reason}")
        return outcome.revision

    async def _wish(self) -> JoinNode:
        """What this node is. Raises KernelError."""
        parts = self.parts
        return JoinNode(
            node=parts.settings.node,
            addresses=parts.underlay.addresses,
            device=parts.underlay.device,
            labels=tuple(sorted(parts.settings.labels)),
            tunnel=await parts.overlay.tunnel(),
            cgroup=socket_cgroup(parts.settings),
            acceleration=acceleration(parts.settings),
            joining_cgroup=joining_cgroup(parts.settings),
        )

    async def _wait_block(self) -> None:
        """Without addresses for its endpoints a node cannot do its work."""
        while not status.has_block(self.parts.follower.state.nodes.get(self.where)):
            await self.parts.follower.wait_moved()

    async def _wait_ready(self) -> None:
        """Until the kernel has held the whole desired state once; of a log that was put back meanwhile, the new one."""
        parts = self.parts
        await self._wait_block()
        generation = self.generation()
        while parts.reconciler.realized_generation < generation:
            try:
                await parts.reconciler.wait_realized(generation, parts.settings.endpoint_ready_s)
            except TimeoutError:
                self._logger.warning("the kernel does not hold the desired state yet", generation=generation)
                generation = min(generation, self.generation())
        writes = parts.reconciler.status().writes
        self.writes_at_start = {table: count.puts + count.deletes for table, count in writes.items()}
        self.ready_after_s = round(parts.clock.monotonic_s() - self._started_s, 4)
        self.ready = True
        gc.freeze()  # the state and the rows stay: no later collection need look at them
        self._logger.info(
            "ready", after_s=self.ready_after_s, map_writes=sum(self.writes_at_start.values()), generation=generation,
            writes={table: count for table, count in self.writes_at_start.items() if count},
        )  # fmt: skip
