"""After etcd was put back to a backup: the operator applies again what had been added to its cluster since.

Belongs here: who does it and when. Does not belong here: what is added again and what is not (history/loss.py), what is
named for people (losses.py).

One process of a cluster does it, the holder of the duty, and only if it was at work when it happened: one that comes
back later knows a past that others may have mended since.
"""

import asyncio
from collections.abc import Sequence
from typing import Any

import structlog

from controlplane.commands.types import Rejection
from controlplane.history.loss import additions
from controlplane.projections.state import State
from controlplane.runtime.clock import Clock
from controlplane.runtime.duties import Duties
from controlplane.runtime.follower import Follower
from controlplane.runtime.telemetry import Counters
from controlplane.runtime.writer import Writer, WriterFailed
from controlplane.settings import OperatorSettings


class Keeping:
    """One operator's."""

    def __init__(
        self,
        follower: Follower,
        writer: Writer,
        duties: Duties,
        clock: Clock,
        settings: OperatorSettings,
        counters: Counters,
    ) -> None:
        self._follower = follower
        self._writer = writer
        self._duties = duties
        self._clock = clock
        self._settings = settings
        self._counters = counters
        self._lost: State | None = None
        self._due = asyncio.Event()
        self._logger = structlog.get_logger()
        follower.on_rewind.append(self._rewound)

    async def run(self) -> None:
        """For ever."""
        while True:
            await self._due.wait()
            try:
                await self._follower.wait_in_sync(self._settings.wait_applied_s)
                if self._duties.held and self._lost is not None:
                    await self._keep(self._lost)
            except (WriterFailed, TimeoutError) as error:
                self._logger.info("what was added since the backup waits", reason=str(error) or "the log is away")
            if self._due.is_set():
                await self._clock.sleep_s(self._clock.jitter(self._settings.retry_s))

    def _rewound(self, lost: State, found: State) -> None:
        if self._settings.after_restore == "keep" and self._follower.has_been_in_sync and self._lost is None:
            self._lost = lost
            self._due.set()

    async def _keep(self, lost: State) -> None:
        """As the log is by now: nodes have announced the workloads of what lives. Raises WriterFailed."""
        commands: Sequence[Any] = additions(lost, self._follower.state, self._settings.cluster)
        outcomes = await self._writer.submit_all(commands)
        refused = [str(each.reason) for each in outcomes if isinstance(each, Rejection)]
        self._counters.add("restore_additions_total", len(outcomes) - len(refused))
        self._logger.warning("applied again what the log had lost", objects=len(outcomes), refused=refused)
        self._lost = None
        self._due.clear()
