"""Keeps the labels of this node's endpoints what their workloads and namespaces ask for.

Belongs here: when to look, and submitting. Does not belong here: which endpoint is concerned (commands/upkeep.py).
"""

import asyncio
from collections.abc import Sequence

import structlog

from controlplane.commands.types import Rejection
from controlplane.commands.upkeep import node_upkeep
from controlplane.model import NodeKey
from controlplane.projections.change import Change
from controlplane.runtime.clock import Clock
from controlplane.runtime.follower import Follower
from controlplane.runtime.writer import Writer, WriterFailed
from controlplane.settings import AgentSettings


class Relabelling:
    """One node's."""

    def __init__(
        self, where: NodeKey, follower: Follower, writer: Writer, clock: Clock, settings: AgentSettings
    ) -> None:
        self._where = where
        self._follower = follower
        self._writer = writer
        self._clock = clock
        self._settings = settings
        self._changes: list[Change] | None = None
        """None: everything is to be looked at, as after a start or a failure."""
        self._work = asyncio.Event()
        self._work.set()
        self._logger = structlog.get_logger()

    def offer(self, changes: Sequence[Change] | None) -> None:
        """What changed in the state; None: it is another state."""
        if changes is None:
            self._changes = None
        elif self._changes is not None:
            self._changes += changes
        self._work.set()

    async def run(self) -> None:
        """For ever."""
        while True:
            await self._work.wait()
            changes, self._changes = self._changes, []
            self._work.clear()
            due = node_upkeep(self._follower.state, self._where, changes)
            try:
                outcomes = await self._writer.submit_all(due)
            except WriterFailed as error:
                self._logger.info("endpoints keep their labels until the log is back", reason=str(error))
                self.offer(None)
                await self._clock.sleep_s(self._clock.jitter(self._settings.retry_s))
                continue
            for outcome in outcomes:
                if isinstance(outcome, Rejection):
                    self._logger.warning("an endpoint keeps its labels", reason=outcome.reason)
