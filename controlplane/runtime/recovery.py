"""After etcd was put back to a backup: this node says again what of its own the log has lost, before anything is
decided upon that log or written by it.

Belongs here: when to compare, the order of the steps, and what is said meanwhile. Does not belong here: what is due
(commands/announcing.py), noticing that the log went back (kvstore/watch.py, follower.py).

Until it is done the kernel stays as it is and the writer takes nothing else: packets of endpoints that the log does not
know go on, and nobody gets their numbers and addresses.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import structlog

from controlplane.commands.announcing import announcements, living, stale_endpoints
from controlplane.commands.node import JoinNode
from controlplane.commands.types import Rejection
from controlplane.model import NodeKey, ObjectKey
from controlplane.projections.state import State
from controlplane.runtime.announced import OwnFile
from controlplane.runtime.clock import Clock
from controlplane.runtime.devices import Devices
from controlplane.runtime.follower import Follower
from controlplane.runtime.telemetry import Counters
from controlplane.runtime.writer import Outcome, Writer, WriterFailed
from controlplane.settings import AgentSettings
from datapath.errors import DatapathError
from datapath.reconciler import Reconciler
from kvstore.errors import LogError

COMPARING = "this node compares what it has written with what the log holds"
ANNOUNCING = "etcd was put back to a backup: this node announces again what the log has lost of it"


Wish = Callable[[], Awaitable[JoinNode]]
Act = Callable[[], Awaitable[None]]


class _NotYet(Exception):
    """Something else has to come first."""


class Recovery:
    """One node's. It holds the follower's state back from its making on, until the first comparison."""

    def __init__(
        self,
        where: NodeKey,
        own: OwnFile,
        follower: Follower,
        writer: Writer,
        reconciler: Reconciler,
        devices: Devices,
        clock: Clock,
        settings: AgentSettings,
        counters: Counters,
    ) -> None:
        self._where = where
        self._own = own
        self._follower = follower
        self._writer = writer
        self._reconciler = reconciler
        self._devices = devices
        self._clock = clock
        self._settings = settings
        self._counters = counters
        self._due = asyncio.Event()
        self._due.set()
        self._is_swept = False
        self._others: dict[tuple[str, str, str, str], None] = {}
        """Attachments of other nodes that the log had lost when it was put back."""
        self._policies: dict[ObjectKey, None] = {}
        """Those that had been added since the backup."""
        self._waits_for = ""
        self._refused: list[str] = []
        self._logger = structlog.get_logger()
        follower.hold(COMPARING)
        follower.on_rewind.append(self._rewound)

    def problems(self) -> list[str]:
        """What keeps it, and which endpoints could not be announced again, in words."""
        waits = [f"{self._follower.held}: {self._waits_for}"] if self._follower.held and self._waits_for else []
        return waits + self._refused

    async def run(self, wish: Wish, report: Act, sweep: Act) -> None:
        """For ever. `wish`: what this node is; `report`: tells the operator which blocks it has; `sweep`, once: makes
        log and devices agree, before endpoints are asked for."""
        while True:
            await self._due.wait()
            try:
                await self._follower.wait_in_sync(self._settings.wait_applied_s)
                self._due.clear()
                await self._compare(wish, report)
                if not self._is_swept and not self._due.is_set():
                    await sweep()
                    self._is_swept = True
            except (_NotYet, WriterFailed, LogError, DatapathError, TimeoutError) as error:
                self._waits_for = str(error)
                self._due.set()
                await self._clock.sleep_s(self._clock.jitter(self._settings.retry_s))
                continue
            if not self._due.is_set():
                self._waits_for = ""
                self._follower.release()
                self._own.keep()

    def _rewound(self, lost: State, found: State) -> None:
        """The log was put back, and this is not yet shown."""
        self._own.remember(lost)
        self._follower.hold(ANNOUNCING)
        self._reconciler.forget_generation()
        self._others |= {
            attachment: None
            for attachment in lost.attachments
            if attachment[:2] != self._where and attachment not in found.attachments
        }
        self._policies |= {key: None for key in lost.policies if key not in found.policies}
        self._due.set()

    async def _compare(self, wish: Wish, report: Act) -> None:
        if self._own.is_behind:
            self._follower.hold(ANNOUNCING)
            self._own.mark_lost()
            await report()
            await self._announce(await wish())
        await self._wait_others()

    async def _announce(self, wish: JoinNode) -> None:
        """Raises _NotYet, WriterFailed, KernelError."""
        (joined,) = await self._writer.submit_ahead((wish,))
        if isinstance(joined, Rejection):
            raise _NotYet(f"it may not join: {joined.reason}")
        known, devices = self._own.known, await self._devices.list()
        alive = living(known, devices)
        node = self._follower.state.nodes.get(self._where)
        if alive and not (node and node.blocks):
            raise _NotYet(f"the cluster's operator has to assign {', '.join(known.blocks)} to it again")
        commands = announcements(known, self._follower.state, self._where, devices)
        outcomes = await self._writer.submit_ahead(commands)
        # One that was deleted meanwhile must not stay in the log without a device.
        gone = stale_endpoints(self._follower.state, self._where, await self._devices.list())
        await self._writer.submit_ahead(gone)
        self._tell(commands, outcomes)

    def _tell(self, commands: Sequence[Any], outcomes: Sequence[Outcome]) -> None:
        refused = [each for each in zip(commands, outcomes, strict=True) if isinstance(each[1], Rejection)]
        self._refused = [_refusal(command, outcome) for command, outcome in refused]
        said = sum(bool(outcome.events) for outcome in outcomes if not isinstance(outcome, Rejection))
        self._counters.add("recovery_announcements_total", said)
        self._logger.warning("announced again what the log had lost of this node", commands=said, refused=self._refused)

    async def _wait_others(self) -> None:
        """Give other nodes the time to do the same, and operators to apply again what policies were added, so that the
        rows about them can stay meanwhile."""
        try:
            async with asyncio.timeout(self._settings.restore_wait_s):
                while self._missing():
                    count = len(self._others) + len(self._policies)
                    self._waits_for = f"{count} endpoints of other nodes and policies are not back yet"
                    await self._follower.wait_moved()
        except TimeoutError:
            policies = [f"{each.namespace}/{each.name}" for each in self._policies]
            self._logger.warning("not all came back", endpoints=len(self._others), policies=policies)
        self._others, self._policies = {}, {}

    def _missing(self) -> bool:
        state = self._follower.state
        self._others = {each: None for each in self._others if each not in state.attachments}
        self._policies = {each: None for each in self._policies if each not in state.policies}
        return bool(self._others or self._policies)


def _refusal(command: Any, outcome: Any) -> str:
    endpoint = getattr(command, "endpoint", None)
    if endpoint is None:
        return f"{type(command).__name__} was refused after etcd was put back: {outcome.reason}"
    return (
        f"endpoint {endpoint.endpoint_id} ({endpoint.namespace}/{endpoint.workload}) could not be announced again "
        f"after etcd was put back to a backup: {outcome.reason}; it has no network until its workload is made anew"
    )
