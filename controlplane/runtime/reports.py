"""What a node tells the mesh about itself: one key per node, overwritten, bound to the writer's lease.

Belongs here: the report, sending it, reading the reports of the mesh. Does not belong here: what follows from them
(duties.py).
"""

from collections.abc import Sequence

import msgspec
import structlog

from controlplane.history.at import ReadableLog
from controlplane.runtime.announced import OwnFile
from controlplane.runtime.archivist import ArchiveReport, Archivist
from controlplane.runtime.clock import Clock
from controlplane.runtime.follower import Follower
from controlplane.runtime.inspection import Inspection
from controlplane.runtime.writer import Writer
from controlplane.settings import AgentSettings
from datapath.reconciler import Reconciler
from kvstore.api import EventLog
from kvstore.errors import Fenced, LogError


class NodeReport(msgspec.Struct, frozen=True):
    """How far a node's kernel is. `time_ns` is the node's wall clock."""

    cluster: str
    node: str
    realized: int
    in_sync: bool
    failed_rows: int
    time_ns: int
    digests: dict[str, str]
    differing: tuple[str, ...] = ()
    """Tables of which the kernel itself was seen to hold other rows than were written."""
    blocks: tuple[str, ...] = ()
    """What this node's endpoints live in: a log that was put back to a backup may not say so."""
    archive: ArchiveReport | None = None
    """The copy of the history that this node keeps; None: it keeps none."""


def report_key(cluster: str, node: str) -> str:
    """Where a node's report stands."""
    return f"report/{cluster}/{node}"


async def read_all_reports(log: ReadableLog) -> Sequence[NodeReport]:
    """Those of the nodes of every cluster whose lease holds, in order of their names. Raises LogError."""
    found = []
    for stored in await log.list("report/"):
        try:
            found.append(msgspec.json.decode(stored.value, type=NodeReport))
        except msgspec.MsgspecError:
            continue  # of another version: the operator shows the node as without a report
    return found


class Reporter:
    """Sends this node's report now and then."""

    def __init__(
        self,
        log: EventLog,
        writer: Writer,
        follower: Follower,
        reconciler: Reconciler,
        inspection: Inspection,
        clock: Clock,
        settings: AgentSettings,
        own: OwnFile,
        archivist: Archivist | None,
    ) -> None:
        self._log = log
        self._writer = writer
        self._follower = follower
        self._reconciler = reconciler
        self._inspection = inspection
        self._clock = clock
        self._settings = settings
        self._own = own
        self._archivist = archivist
        self._logger = structlog.get_logger()

    async def run(self) -> None:
        """For ever; a failure is only the log's being away, which its status shows."""
        while True:
            try:
                await self.send()
            except LogError as error:
                self._logger.debug("report not sent", reason=str(error))
            await self._clock.sleep_s(self._clock.jitter(self._settings.report_s))

    async def send(self) -> None:
        """Once. Raises LogError."""
        session = await self._writer.session()
        realized = self._reconciler.status()
        report = NodeReport(
            cluster=self._settings.cluster,
            node=self._settings.node,
            realized=realized.realized_generation,
            in_sync=self._follower.in_sync and realized.in_sync,
            failed_rows=realized.summary.error,
            time_ns=self._clock.time_ns(),
            digests=dict(realized.digests),
            differing=tuple(sorted(self._inspection.since_ns)),
            blocks=self._own.blocks(),
            archive=self._archivist.report if self._archivist else None,
        )
        key = report_key(self._settings.cluster, self._settings.node)
        try:
            await self._log.put(key, msgspec.json.encode(report), session)
        except Fenced:
            self._writer.forget_session(session)
            raise
