"""The routes that ask about the past: a point, what a record did, what is other between two points.

Belongs here: requests to answers over a Readable mesh. Does not belong here: folding (history/at.py), comparing
(history/changes.py), explaining (history/why.py).
"""

import asyncio
import time
from typing import Any

import msgspec
from aiohttp import web

from controlplane.api import kernel_views, schema
from controlplane.api.asking import asked_moment, asked_node, asked_point, moment_at
from controlplane.api.reading_routes import Readable
from controlplane.api.server import Refused, json_response, query_int
from controlplane.history import changes
from controlplane.history.at import Moment, Past
from controlplane.history.capsule import Capsule, Report, pack
from controlplane.history.ends import End, Mesh, NoSuchEnd
from controlplane.history.exporting import export
from controlplane.history.records import log_record, time_text
from controlplane.history.replay import encoded_rows
from controlplane.history.told import Told, explain_told, reason_named
from controlplane.history.why import PortError, explain, read_port
from controlplane.history.why_row import NoSuchRow, explain_row
from controlplane.model import NodeKey
from controlplane.projections.state import State
from controlplane.runtime.reports import read_all_reports
from controlplane.runtime.status import package_version
from kvstore.errors import LogError
from kvstore.types import Record

NODES_MAX = 16
"""Nodes whose kernels are derived for one question; of more, the node that answers and those named only."""


def routes(mesh: Readable) -> list[web.RouteDef]:
    """The table."""
    serve = _HistoryRoutes(mesh)
    return [
        web.get("/v1/at", serve.at),
        web.get("/v1/effects/{revision}", serve.effects),
        web.get("/v1/diff", serve.diff),
        web.get("/v1/why", serve.why),
        web.get("/v1/capsule", serve.capsule),
        web.get("/v1/why/map/{table}", serve.why_row),
    ]


async def desired_rows(
    past: Past, where: NodeKey, kind: str, request: web.Request, otherwise: int | None = None
) -> web.Response | None:
    """What the kernel had to hold at the point asked for, or `otherwise`; None where there is none. Raises Refused."""
    if not request.query.get("at") and otherwise is None:
        return None
    if kind not in kernel_views.KIND_TABLES:
        right = ", ".join(kernel_views.KIND_TABLES)
        raise Refused(400, f"{kind} is written by the programs and not in the log; right with --at: {right}", "at")
    moment = await asked_moment(past, request) or await moment_at(past, otherwise or 0)
    rows = await asyncio.to_thread(_kernel_rows, moment.state, where, kind)
    return json_response(schema.KernelRows(kind, moment.revision, rows, time_text(moment.time_ns)))


def _kernel_rows(state: State, where: NodeKey, kind: str) -> list[kernel_views.Row]:
    return kernel_views.kernel_rows(kind, encoded_rows(state, *where).tables)


def standing(moment: Moment) -> schema.Standing:
    """Its revision and time."""
    return schema.Standing(moment.revision, time_text(moment.time_ns))


def _end(mesh: Mesh, query: dict[str, str], name: str) -> End:
    try:
        return mesh.end(query[name])
    except NoSuchEnd as error:
        raise Refused(404, str(error), name) from None


def _port(query: dict[str, str]) -> tuple[int, int]:
    try:
        return read_port(query["port"])
    except PortError as error:
        raise Refused(400, str(error), "port") from None


def _told(request: web.Request) -> Told:
    """What a line of the monitor says besides its flow. Raises Refused 400."""
    reason = request.query.get("reason", "")
    code = reason_named(reason) if reason else 0
    if reason and not code:
        raise Refused(400, f"{reason!r} is no drop reason", "reason")
    numbers = {name: query_int(request, name, 0) for name in ("source_identity", "target_identity", "epoch")}
    return Told(reason=code, node=request.query.get("node", ""), **numbers)


class _HistoryRoutes:
    def __init__(self, mesh: Readable) -> None:
        self._mesh = mesh

    async def at(self, request: web.Request) -> web.Response:
        return json_response(standing(await self._asked(request, "at")))

    async def _asked(self, request: web.Request, name: str) -> Moment:
        """The point named, or now."""
        moment = await asked_moment(self._mesh.past, request, name)
        return moment or await moment_at(self._mesh.past, self._mesh.follower.applied_revision, name)

    async def effects(self, request: web.Request) -> web.Response:
        text = request.match_info["revision"]
        if not text.isascii() or not text.isdigit():
            raise Refused(400, f"{text!r} is not a revision, which is a whole number", "revision")
        before = await moment_at(self._mesh.past, int(text) - 1, "revision")
        record = await self._record(int(text))
        nodes = self._nodes(request, before.state)
        things, rows, refused = await asyncio.to_thread(changes.effects, before.state, record, nodes)
        names = ["/".join(where) for where in nodes]
        return json_response(schema.Effects(log_record(record), refused, things, rows, names))

    async def _record(self, revision: int) -> Record:
        try:
            async for record in self._mesh.past.records(revision - 1, revision):
                return record
        except LogError as error:
            raise Refused(503, f"the log cannot be read: {error}") from None
        raise Refused(404, f"no record has revision {revision}", "revision")

    def _nodes(self, request: web.Request, state: State) -> list[NodeKey]:
        if request.query.get("node"):
            named = asked_node(request, state, self._mesh.cluster, self._mesh.where)
            return [named] if named else []
        if len(state.nodes) <= NODES_MAX:
            return sorted(state.nodes)
        return [self._mesh.where] if self._mesh.where else []

    async def diff(self, request: web.Request) -> web.Response:
        before, after = await self._asked(request, "from"), await self._asked(request, "to")
        things = await asyncio.to_thread(changes.thing_changes, before.state, after.state)
        rows: list[Any] = []
        if request.query.get("tables") == "1" or request.query.get("node"):
            known = after if len(after.state.nodes) >= len(before.state.nodes) else before
            for where in self._nodes(request, known.state):
                rows += await asyncio.to_thread(changes.node_row_changes, before.state, after.state, where)
        return json_response(schema.Difference(standing(before), standing(after), things, rows))

    async def why(self, request: web.Request) -> web.Response:
        told = _told(request)
        moment = await self._asked(request, "at")
        realized = {} if request.query.get("at") else await self._realized()
        query = {name: request.query.get(name, "") for name in ("from", "to", "port")}
        for name, text in query.items():
            if not text:
                raise Refused(400, "is missing", name)
        if told != Told():
            then = moment if request.query.get("at") else await self._stood_at(told.epoch, moment)
            return json_response(await asyncio.to_thread(self._explained_told, then, moment, query, told))
        return json_response(await asyncio.to_thread(self._explained, moment, query, realized))

    async def _stood_at(self, epoch: int, newest: Moment) -> Moment:
        """The mesh that a kernel stood at when it told; the newest where that is not known, or not kept."""
        if not 0 < epoch < newest.revision:
            return newest
        try:
            return await self._mesh.past.moment(epoch)
        except LogError:
            return newest

    def _explained_told(
        self, then: Moment, newest: Moment, query: dict[str, str], told: Told
    ) -> schema.Explanation:
        stood, now = (Mesh(each.state, each.origins, self._mesh.cluster) for each in (then, newest))
        protocol, port = _port(query)
        try:
            return explain_told(stood, now, query["from"], query["to"], protocol, port, told, then.time_ns)
        except NoSuchEnd as error:
            raise Refused(404, str(error), "from") from None

    def _explained(self, moment: Moment, query: dict[str, str], realized: dict[NodeKey, int]) -> schema.Explanation:
        mesh = Mesh(moment.state, moment.origins, self._mesh.cluster)
        source, target = _end(mesh, query, "from"), _end(mesh, query, "to")
        protocol, port = _port(query)
        return explain(mesh, source, target, protocol, port, realized, moment.time_ns)

    async def _realized(self) -> dict[NodeKey, int]:
        """What nodes have reported; nothing while the log is away."""
        try:
            reports = await read_all_reports(self._mesh.log)
        except LogError:
            return {}
        return {NodeKey(report.cluster, report.node): report.realized for report in reports}

    async def why_row(self, request: web.Request) -> web.Response:
        moment = await self._asked(request, "at")
        where = asked_node(request, moment.state, self._mesh.cluster, self._mesh.where)
        if where is None:
            raise Refused(400, "an operator has no kernel; name a node", "node")
        mesh = Mesh(moment.state, moment.origins, self._mesh.cluster)
        table, key = request.match_info["table"], request.query.get("key", "")
        try:
            answer = await asyncio.to_thread(explain_row, mesh, where, table, key, moment.time_ns)
        except NoSuchRow as error:
            raise Refused(404, str(error), "key") from None
        return json_response(answer)

    async def capsule(self, request: web.Request) -> web.Response:
        try:
            made = await self._exported(request)
        except LogError as error:
            raise Refused(503, f"the log cannot be read: {error}") from None
        return web.Response(body=await asyncio.to_thread(pack, made), content_type="application/octet-stream")

    async def _exported(self, request: web.Request) -> Capsule:
        """Reports are read before the end is chosen, so that it lies behind them. Raises LogError, Refused."""
        past, where = self._mesh.past, self._mesh.where
        known = await read_all_reports(self._mesh.log)
        reports = [msgspec.convert(msgspec.to_builtins(each), Report) for each in known]
        since = await asked_point(past, request, "since", before_history=0) or 0
        until = await asked_point(past, request, "until", before_history=0)
        if until is None:
            until = self._mesh.follower.applied_revision
        if since and request.query["since"].strip().isdigit():
            since -= 1
        if until < since:
            raise Refused(400, f"it ends at {until}, before it begins at {since}", "until")
        first = await moment_at(past, since, "since")
        node = where.node if where else ""
        flows = await self._mesh.flows()
        return await export(
            past, first, until, reports, self._mesh.cluster, node, package_version(), time.time_ns(), flows
        )
