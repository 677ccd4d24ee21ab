"""The routes that agent and operator share: how they are, and changing the mesh.

Belongs here: requests to answers over a Mesh. Does not belong here: HTTP in general (server.py), reading
(reading_routes.py), a node's kernel (node_routes.py).
"""

import asyncio
from collections.abc import Sequence
from typing import Any, Protocol

from aiohttp import web

from controlplane.api import (
    applying,
    flow_routes,
    history_routes,
    loss_routes,
    policy_routes,
    reading_routes,
    schema,
    service_routes,
    standing_routes,
)
from controlplane.api.server import (
    Refused,
    json_response,
    query_int,
    query_seconds,
    read_body,
)
from controlplane.history.at import Past
from controlplane.history.flows import FlowSummary
from controlplane.model import NodeKey
from controlplane.runtime.follower import Follower
from controlplane.runtime.losses import Losses
from controlplane.runtime.telemetry import Labels, prometheus_text
from controlplane.runtime.writer import Outcome, Writer, WriterFailed
from kvstore.api import EventLog

WAIT_S_MAX = 3600.0
METRICS_HELP = {
    "log_head_position": "Revision of the last record known to exist.",
    "log_applied_position": "Revision up to which the log is applied.",
    "conntrack_entries": "Tracked flows, as of the last collection.",
    "conntrack_limit": "Tracked flows that fit; beyond it the least used go.",
    "conntrack_backend_gone_total": "Entries removed because their backend serves no more.",
    "masquerade_ports_freed_total": "Entries of ports removed because their flow has ended.",
    "log_lag_events": "Records known to exist that are not applied yet.",
    "log_gap_total": "Contradictions found in the log, by kind; each was repaired by folding again.",
    "map_writes_total": "Rows put into or removed from a table of the kernel.",
    "drop_count_total": "Packets dropped, by reason and direction.",
    "forward_count_total": "Packets forwarded, by direction.",
}


class Mesh(Protocol):
    """What these routes need of an agent or an operator."""

    @property
    def cluster(self) -> str: ...

    @property
    def where(self) -> NodeKey | None: ...

    @property
    def log(self) -> EventLog: ...

    @property
    def past(self) -> Past: ...

    @property
    def page_records_max(self) -> int: ...

    @property
    def follower(self) -> Follower: ...

    @property
    def writer(self) -> Writer: ...

    @property
    def losses(self) -> Losses: ...

    def status(self) -> Any: ...

    def row_state(self, cluster: str, node: str, endpoint_id: int) -> str: ...

    async def flows(self) -> Sequence[FlowSummary]: ...

    async def wait_realized(self, revision: int, timeout_s: float) -> schema.Waited: ...

    async def samples(self) -> list[tuple[str, Labels, float]]: ...


def routes(mesh: Mesh) -> list[web.RouteDef]:
    """The table."""
    serve = _MeshRoutes(mesh)
    return [
        *reading_routes.routes(mesh),
        *history_routes.routes(mesh),
        *policy_routes.reading_routes(mesh),
        *standing_routes.routes(mesh),
        *flow_routes.routes(mesh),
        *loss_routes.routes(mesh),
        *policy_routes.changing_routes(mesh),
        *service_routes.changing_routes(mesh),
        web.get("/v1/status", serve.status),
        web.post("/v1/apply", serve.apply),
        web.post("/v1/delete", serve.delete),
        web.get("/v1/wait", serve.wait),
        web.get("/metrics", serve.metrics),
    ]


class _MeshRoutes:
    def __init__(self, mesh: Mesh) -> None:
        self._mesh = mesh

    async def status(self, request: web.Request) -> web.Response:
        return json_response(self._mesh.status())

    async def apply(self, request: web.Request) -> web.Response:
        return await self._change(request, False)

    async def delete(self, request: web.Request) -> web.Response:
        return await self._change(request, True)

    async def _change(self, request: web.Request, removal: bool) -> web.Response:
        body = await read_body(request, schema.ApplyRequest)
        state = self._mesh.follower.state
        read = applying.read_all(body.documents, self._mesh.cluster, removal, state)
        commands = [item.command for item in read if item.command is not None]
        if body.dry_run:
            outcomes: list[Any] = list(self._mesh.writer.preview(commands))
        else:
            outcomes = list(await submit_all(self._mesh.writer, commands))
        answers = iter(outcomes)
        results = [
            item.result if item.command is None else applying.result(item, next(answers)) for item in read
        ]
        revision = max((getattr(outcome, "revision", 0) for outcome in outcomes), default=0)
        return json_response(schema.ApplyResult(revision or self._mesh.follower.applied_revision, results))

    async def wait(self, request: web.Request) -> web.Response:
        revision = query_int(request, "revision", 0)
        timeout_s = query_seconds(request, "timeout_s", 60.0, WAIT_S_MAX)
        try:
            waited = await self._mesh.wait_realized(revision, timeout_s)
        except TimeoutError:
            applied = self._mesh.follower.applied_revision
            raise Refused(
                504, f"not realized through {revision} within {timeout_s:g} s; applied is {applied}"
            ) from None
        return json_response(waited)

    async def metrics(self, request: web.Request) -> web.Response:
        return web.Response(
            text=prometheus_text(await self._mesh.samples(), METRICS_HELP),
            content_type="text/plain",
            charset="utf-8",
        )


async def submit_all(writer: Writer, commands: Sequence[Any]) -> list[Outcome]:
    """To the end, even if the caller has gone away. Raises Refused 503."""
    try:
        return await asyncio.shield(asyncio.ensure_future(writer.submit_all(commands)))
    except WriterFailed as error:
        raise Refused(503, str(error)) from None
