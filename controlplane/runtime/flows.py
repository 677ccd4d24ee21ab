"""The flows that a node has seen: summed as they are told, kept over restarts, published for the whole mesh.

Belongs here: the file in the state directory, the key beside the log, and gathering those of all nodes. Does not belong
here: the sum (history/flows.py).

One key for each node, overwritten slowly and bounded; it is in no record, so it costs the log nothing, and no agent
watches it. It outlives the node's lease: what a dead node saw is what its incident is about. The operator empties it as
the history of its time leaves etcd.
"""

import asyncio
import os
from collections.abc import Container, Sequence
from contextlib import suppress
from pathlib import Path

import structlog

from controlplane.history.at import ReadableLog
from controlplane.history.flows import FlowsDamaged, FlowSummary, FlowTable, bounded, pack, unpack
from controlplane.model import NodeKey
from controlplane.runtime.clock import Clock
from controlplane.runtime.follower import Follower
from controlplane.runtime.telemetry import Counters
from controlplane.runtime.writer import Writer
from controlplane.settings import AgentSettings
from datapath.abi.types import NOTIFICATION_DROP, NOTIFICATION_VERDICT
from datapath.notifications import RECORD_BYTES, counted_records
from kvstore.api import EventLog
from kvstore.errors import Fenced, LogError

FLOWS_FILE = "flows"
PREFIX = "flow/"
RECORDS_MAX = 8192
"""Notifications summed at once: about 10 ms; what is told faster is counted as not kept."""


def flow_key(cluster: str, node: str) -> str:
    """Where a node's summary stands."""
    return f"{PREFIX}{cluster}/{node}"


class FlowRecorder:
    """Sums up what the node's programs tell."""

    def __init__(
        self, directory: Path, log: EventLog, writer: Writer, follower: Follower, clock: Clock,
        settings: AgentSettings, counters: Counters,
    ) -> None:  # fmt: skip
        self._path = directory / FLOWS_FILE
        self._log = log
        self._writer = writer
        self._follower = follower
        self._clock = clock
        self._settings = settings
        self._counters = counters
        # The drop of a denied packet says all that its verdict does, so one of the two counts.
        denials = NOTIFICATION_DROP if "drops" in settings.notify else NOTIFICATION_VERDICT
        age_ns = int(settings.flows_age_s * 1e9)
        self._table = FlowTable(settings.flows_rows_max, age_ns, clock.time_ns(), denials)
        self._logger = structlog.get_logger()
        self._load()

    def _load(self) -> None:
        try:
            self._table.restore(unpack(self._path.read_bytes()))
        except FileNotFoundError:
            return
        except (FlowsDamaged, OSError) as error:
            self._logger.warning("recorded flows are not used", path=str(self._path), reason=str(error))

    def take(self, raw: bytes) -> None:
        """Records of the ring as they are."""
        extra = max(0, len(raw) // RECORD_BYTES - RECORDS_MAX)
        if extra:
            self._table.not_kept += extra
            self._counters.add("flows_not_kept_total", extra)
        counted = counted_records(raw[: RECORDS_MAX * RECORD_BYTES])
        self._table.take(self._follower.state, counted, self._clock.time_ns())

    def summary(self) -> FlowSummary:
        """As it is now."""
        return self._table.summary(self._settings.cluster, self._settings.node, self._clock.time_ns())

    async def run(self) -> None:
        """Keep and publish now and then, for ever; a failure is a full disk or the log's being away, and said."""
        published_s = 0.0
        while True:
            await self._clock.sleep_s(self._clock.jitter(self._settings.flows_save_s))
            await self.save()
            now_s = self._clock.monotonic_s()
            if not published_s or now_s - published_s >= self._settings.flows_publish_s:
                try:
                    await self.publish()
                    published_s = now_s
                except LogError as error:
                    self._logger.debug("flows not published", reason=str(error))

    async def save(self) -> None:
        """Replace the file at once. What cannot be written is said and tried again."""
        self._table.forget_old(self._clock.time_ns())
        try:
            await asyncio.to_thread(_replace, self._path, self.summary())
        except OSError as error:
            self._logger.warning("recorded flows could not be written", path=str(self._path), reason=str(error))

    async def publish(self) -> None:
        """Once. Raises LogError."""
        session = await self._writer.session()
        told = await asyncio.to_thread(bounded, self.summary(), self._settings.flows_publish_bytes_max)
        try:
            key = flow_key(self._settings.cluster, self._settings.node)
            await self._log.put(key, told, session, lasting=True)
        except Fenced:
            self._writer.forget_session(session)
            raise


def _replace(path: Path, summary: FlowSummary) -> None:
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(pack(summary))
        os.replace(fresh, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(fresh)
        raise


async def gathered_flows(log: ReadableLog, own: FlowSummary | None = None) -> Sequence[FlowSummary]:
    """What every node has published, by cluster and node; of the node that answers, what it knows itself.

    Raises LogError where there is nothing but what others have.
    """
    found: dict[tuple[str, str], FlowSummary] = {}
    try:
        for stored in await log.list(PREFIX):
            with suppress(FlowsDamaged):  # emptied, or of another version: the node shows as one without flows
                each = unpack(stored.value)
                if stored.key == flow_key(each.cluster, each.node):
                    found[each.cluster, each.node] = each
    except LogError:
        if own is None:
            raise
    if own is not None:
        found[own.cluster, own.node] = own
    return [found[key] for key in sorted(found)]


async def empty_old_flows(log: EventLog, cluster: str, nodes: Container[NodeKey], oldest_ns: int) -> int:
    """Empty the keys of nodes that are gone and last published before a time; how many. Raises LogError."""
    emptied = 0
    for stored in await log.list(f"{PREFIX}{cluster}/"):
        if not stored.value or NodeKey(cluster, stored.key.rpartition("/")[2]) in nodes:
            continue
        try:
            is_old = unpack(stored.value).time_ns < oldest_ns
        except FlowsDamaged:
            is_old = True
        if is_old:
            await log.put(stored.key, b"")
            emptied += 1
    return emptied

