"""One running operator: its parts, and what it says about itself.

Belongs here: the parts at work, its status and metrics. Does not belong here: building them (operator.py), the duties.
"""

import os
from collections.abc import Coroutine, Sequence
from functools import partial
from typing import Any

import structlog

from controlplane.api import schema
from controlplane.history.at import Past
from controlplane.history.flows import FlowSummary
from controlplane.runtime import status
from controlplane.runtime.archives import reaching, whereabouts
from controlplane.runtime.archivist import Archivist
from controlplane.runtime.checkpoints import Checkpoints
from controlplane.runtime.clock import Clock
from controlplane.runtime.duties import Duties
from controlplane.runtime.flows import empty_old_flows, gathered_flows
from controlplane.runtime.follower import Follower
from controlplane.runtime.keeping import Keeping
from controlplane.runtime.losses import Losses
from controlplane.runtime.retention import Retention
from controlplane.runtime.shared_checkpoint import shared_state_at
from controlplane.runtime.telemetry import Counters, Labels
from controlplane.runtime.writer import Writer
from controlplane.settings import OperatorSettings
from kvstore.api import EventLog
from kvstore.errors import LogError

FLOWS_ROUND_S = 3600.0
"""Pause between two looks for flows that nodes left behind."""


class Warden:
    """An operator's parts at work."""

    def __init__(
        self,
        settings: OperatorSettings,
        clock: Clock,
        counters: Counters,
        log: EventLog,
        checkpoints: Checkpoints,
        follower: Follower,
        writer: Writer,
        duties: Duties,
        retention: Retention,
        losses: Losses,
        archivist: Archivist | None,
        keeping: Keeping,
    ) -> None:
        self.settings = settings
        self.cluster = settings.cluster
        self.where = None
        self.log = log
        self.follower = follower
        self.writer = writer
        self.losses = losses
        self.page_records_max = settings.log_page_records_max
        self.past = Past(
            log, self.revision, follower.recent, checkpoints.start,
            shared=partial(shared_state_at, log), old_log=reaching(log),
            whereabouts=partial(whereabouts, log),
        )
        self.follower.on_rewind.append(lambda lost, found: self.past.forget())
        self._clock = clock
        self._counters = counters
        self._checkpoints = checkpoints
        self._duties = duties
        self._retention = retention
        self._archivist = archivist
        self._keeping = keeping
        self._started_s = clock.monotonic_s()

    def tasks(self) -> list[Coroutine[Any, Any, None]]:
        """What runs for as long as the operator does."""
        own = [self._duties.run(), self._retention.run(), self._save_checkpoints(), self._empty_flows()]
        copying = [self._archivist.run()] if self._archivist else []
        return [self.follower.run(), self.writer.run(), self._keeping.run(), *own, *copying]

    async def close(self) -> None:
        """The writer's place and the duty are free at once."""
        await self._checkpoints.save_if_trusted(self.follower)
        await self.writer.close()
        await self.log.close()

    def revision(self) -> int:
        """Up to which everything is applied."""
        return self.follower.applied_revision

    async def flows(self) -> Sequence[FlowSummary]:
        """What the nodes of the mesh have published. Raises LogError."""
        return await gathered_flows(self.log)

    def row_state(self, cluster: str, node: str, endpoint_id: int) -> str:
        """An operator has no kernel: every endpoint is another's."""
        return "remote"

    async def wait_realized(self, revision: int, timeout_s: float) -> schema.Waited:
        """Until everything up to `revision` is applied. Raises TimeoutError."""
        await self.follower.wait_applied(revision, timeout_s)
        return schema.Waited(self.revision(), self.revision())

    async def samples(self) -> list[tuple[str, Labels, float]]:
        """What /metrics shows."""
        return [*self._counters.samples(), *status.log_samples(self.log, self.follower)]

    def status(self) -> schema.OperatorStatus:
        """What `meshlog status` shows."""
        state = self.follower.state
        connection = status.log_connection(self.log, self.follower)
        problems = status.log_problems(connection, self.follower.in_sync) + status.state_problems(state)
        problems += self.losses.problems() + self._retention.problems()
        problems += self._archivist.problems() if self._archivist else []
        if self._duties.last_error and connection.connected:
            problems.append(f"duties rest: {self._duties.last_error}")
        if self._retention.last_error and connection.connected:
            problems.append(f"retention rests: {self._retention.last_error}")
        ready = self.follower.in_sync and self.cluster in state.clusters
        return schema.OperatorStatus(
            kind="operator",
            name=self.cluster,
            cluster=self.cluster,
            version=status.package_version(),
            pid=os.getpid(),
            health=status.health(ready, problems),
            problems=problems,
            ready=ready,
            uptime_s=round(self._clock.monotonic_s() - self._started_s, 3),
            in_sync=self.follower.in_sync,
            holds_duty=self._duties.held,
            log=connection,
            reports=[
                schema.ReportItem(
                    report.cluster, report.node, report.realized, report.in_sync, report.failed_rows,
                    report.time_ns / 1e9, report.digests,
                )
                for report in self._duties.reports
            ],
            checkpoint_revision=int(self._checkpoints.revision),
            counts=status.counts(state),
            unknown_events=state.unknown_events,
            refused_events=status.refused_events(state),
        )  # fmt: skip

    async def _save_checkpoints(self) -> None:
        """Only the holder of the duty saves: one checkpoint of a cluster is enough."""
        while True:
            await self._clock.sleep_s(self._clock.jitter(self.settings.checkpoint_s))
            if self._duties.held:
                await self._checkpoints.save_if_trusted(self.follower)

    async def _empty_flows(self) -> None:
        """Those of nodes that are gone, when the history of their time has left etcd too."""
        while True:
            await self._clock.sleep_s(self._clock.jitter(FLOWS_ROUND_S))
            if not self._duties.held or not self.follower.in_sync:
                continue
            oldest_ns = self._clock.time_ns() - int(self.settings.retention_s * 1e9)
            try:
                await empty_old_flows(self.log, self.cluster, self.follower.state.nodes, oldest_ns)
            except LogError as error:
                structlog.get_logger().debug("old flows not emptied", reason=str(error))
