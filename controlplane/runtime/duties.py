"""The duties of a cluster: work that exactly one process does, the one that holds the duty's lease.

Belongs here: holding the lease, asking what is due, submitting it. Does not belong here: what is due
(commands/upkeep.py).
"""

import asyncio
from collections.abc import Sequence
from typing import Any

import structlog

from controlplane.commands.types import Rejection
from controlplane.commands.upkeep import Upkeep, due_commands
from controlplane.model import NodeKey
from controlplane.projections.state import State
from controlplane.runtime.clock import Clock
from controlplane.runtime.follower import Follower
from controlplane.runtime.reports import NodeReport, read_all_reports
from controlplane.runtime.telemetry import Counters
from controlplane.runtime.writer import Writer, WriterFailed
from controlplane.settings import OperatorSettings
from kvstore.api import EventLog
from kvstore.errors import Fenced, LogError, LogFull

BLOCKS_KEPT_S = 600.0
"""How long address blocks are kept for nodes that a log has lost which was put back to a backup."""


class Duties:
    """One cluster's. `held`: this process does them now; `reports`: what was read in the last round."""

    def __init__(
        self,
        log: EventLog,
        follower: Follower,
        writer: Writer,
        clock: Clock,
        settings: OperatorSettings,
        counters: Counters,
        wishes: Sequence[Any],
    ) -> None:
        self.held = False
        self.reports: Sequence[NodeReport] = ()
        self.last_error = ""
        self._log = log
        self._follower = follower
        self._writer = writer
        self._clock = clock
        self._settings = settings
        self._counters = counters
        self._wishes = wishes
        self._upkeep = Upkeep(settings.cluster, settings.node_dead_s, settings.identity_release_s)
        self._refused: dict[str, None] = {}
        self._is_reserve = False
        self._logger = structlog.get_logger()
        follower.on_rewind.append(self._rewound)

    async def run(self) -> None:
        """Round after round, for ever."""
        while True:
            try:
                await self._follower.wait_in_sync(self._settings.wait_applied_s)
                await self.round()
                self.last_error = ""
            except LogFull as error:
                # The lease goes on in a full etcd, and so does the duty: its holder is the one that makes room.
                self.last_error = str(error)
            except (LogError, WriterFailed, TimeoutError) as error:
                self.held = False
                self.last_error = str(error) or "no answer in time"
                self._logger.info("duties rest", reason=self.last_error)
            await self._pause()

    def _rewound(self, lost: State, found: State) -> None:
        """Nobody gets what a lost log had assigned before its holder could say so."""
        self._upkeep.remember_blocks(lost, self._clock.monotonic_s() + BLOCKS_KEPT_S)

    async def _pause(self) -> None:
        """Until the next round is due, or the mesh has other nodes: a new one waits for its address block."""
        known = tuple(self._follower.state.nodes)
        due = asyncio.ensure_future(self._clock.sleep_s(self._clock.jitter(self._settings.duty_s)))
        try:
            while not due.done() and tuple(self._follower.state.nodes) == known:
                moved = asyncio.ensure_future(self._follower.wait_moved())
                await asyncio.wait((due, moved), return_when=asyncio.FIRST_COMPLETED)
                moved.cancel()
        finally:
            due.cancel()

    async def round(self) -> None:
        """Take the duty if it is free; do what is due. Raises LogError, WriterFailed."""
        self.held = await self._take()
        reports = await read_all_reports(self._log)
        self.reports = [report for report in reports if report.cluster == self._settings.cluster]
        if not self.held:
            return
        sessions = await self._log.list(f"session/{self._settings.cluster}/")
        told = {report.node: report.blocks for report in self.reports}
        self._upkeep.hear_blocks(told, self._clock.monotonic_s())
        alive = {stored.key.rpartition("/")[2] for stored in sessions}
        due = due_commands(
            self._upkeep, self._follower.state, alive,
            {NodeKey(report.cluster, report.node): report.realized for report in reports}, self._clock.monotonic_s(),
        )  # fmt: skip
        commands = [*self._wishes, *due]
        for command, outcome in zip(commands, await self._writer.submit_all(commands), strict=True):
            name = type(command).__name__
            if isinstance(outcome, Rejection):
                self._complain(name, outcome.reason)
            elif outcome.events:
                self._counters.add("duty_commands_total", command=name)
                self._logger.info("did a duty", command=name, revision=outcome.revision)

    async def _take(self) -> bool:
        """Whether the duty is this process's now. One that starts takes it from whoever has it, who may be its own
        predecessor; one from whom it was taken waits until nobody has it, or two would take it from each other without
        end."""
        duty = f"operator-{self._settings.cluster}"
        if self._is_reserve and any(each.key == f"duty/{duty}" for each in await self._log.list("duty/")):
            return False
        session = await self._writer.session()
        try:
            held = await self._log.acquire(session, duty)
        except Fenced:
            self._writer.forget_session(session)
            self._is_reserve = True
            raise
        self._is_reserve = False
        return held

    def _complain(self, name: str, reason: str) -> None:
        """Once for each reason: the next round meets the same one."""
        if reason not in self._refused:
            self._refused[reason] = None
            self._logger.warning("a duty was refused", command=name, reason=reason)
