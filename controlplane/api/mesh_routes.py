"""The routes that agent and operator share: what the mesh is, changing it, and its log.

Belongs here: requests to answers over a Mesh. Does not belong here: HTTP in general (server.py), the shape of a list
(views.py), a node's kernel (node_routes.py).
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any, Protocol

import msgspec
from aiohttp import web

from controlplane.api import applying, documents, schema, views
from controlplane.api.server import (
    Refused,
    json_response,
    query_int,
    query_seconds,
    read_body,
    stream_lines,
)
from controlplane.history.records import log_record
from controlplane.model import NodeKey
from controlplane.runtime.follower import Follower
from controlplane.runtime.telemetry import Labels, prometheus_text
from controlplane.runtime.writer import Outcome, Writer, WriterFailed
from controlplane.settings import CommonSettings
from kvstore.api import EventLog
from kvstore.errors import HistoryTruncated, LogError
from kvstore.types import Bookmark, Position, Record, Revision

WAIT_S_MAX = 3600.0
CHUNK_RECORDS = 64
METRICS_HELP = {
    "log_head_position": "Revision of the last record known to exist.",
    "log_applied_position": "Revision up to which the log is applied.",
    "log_lag_events": "Records known to exist that are not applied yet.",
    "log_gap_total": "Contradictions found in the log, by kind; each was repaired by folding again.",
    "map_writes_total": "Rows put into or removed from a table of the kernel.",
    "drop_count_total": "Packets dropped, by reason and direction.",
    "forward_count_total": "Packets forwarded, by direction.",
}


class Mesh(Protocol):
    """What these routes need of an agent or an operator."""

    cluster: str
    where: NodeKey | None
    log: EventLog
    settings: CommonSettings
    follower: Follower
    writer: Writer

    def status(self) -> Any: ...

    def row_state(self, cluster: str, node: str, endpoint_id: int) -> str: ...

    async def wait_realized(self, revision: int, timeout_s: float) -> schema.Waited: ...

    async def samples(self) -> list[tuple[str, Labels, float]]: ...


def routes(mesh: Mesh) -> list[web.RouteDef]:
    """The table."""
    serve = _MeshRoutes(mesh)
    return [
        web.get("/v1/status", serve.status),
        web.get("/v1/list/{kind}", serve.listing),
        web.get("/v1/get/{kind}", serve.get),
        web.post("/v1/apply", serve.apply),
        web.post("/v1/delete", serve.delete),
        web.get("/v1/log", serve.log),
        web.get("/v1/log/{revision}", serve.record),
        web.get("/v1/wait", serve.wait),
        web.get("/metrics", serve.metrics),
    ]


class _MeshRoutes:
    def __init__(self, mesh: Mesh) -> None:
        self._mesh = mesh

    async def status(self, request: web.Request) -> web.Response:
        return json_response(self._mesh.status())

    async def listing(self, request: web.Request) -> web.Response:
        kind = request.match_info["kind"]
        if kind not in schema.LIST_KINDS:
            raise Refused(404, f"{kind!r} cannot be listed; right is one of {', '.join(schema.LIST_KINDS)}", "kind")
        items = views.items(kind, self._mesh.follower.state, self._mesh.where, self._mesh.row_state)
        return json_response(schema.Listing(kind, self._mesh.follower.applied_revision, items))

    async def get(self, request: web.Request) -> web.Response:
        try:
            found = documents.documents(
                self._mesh.follower.state,
                self._mesh.cluster,
                request.match_info["kind"],
                request.query.get("namespace", ""),
                request.query.get("name", ""),
            )
        except documents.UnknownKind as error:
            raise Refused(404, str(error), "kind") from None
        return json_response(schema.Documents(self._mesh.follower.applied_revision, found))

    async def apply(self, request: web.Request) -> web.Response:
        return await self._change(request, False)

    async def delete(self, request: web.Request) -> web.Response:
        return await self._change(request, True)

    async def _change(self, request: web.Request, removal: bool) -> web.Response:
        body = await read_body(request, schema.ApplyRequest)
        read = [applying.read(found, self._mesh.cluster, removal) for found in body.documents]
        commands = [item.command for item in read if item.command is not None]
        if body.dry_run:
            outcomes: list[Any] = list(self._mesh.writer.preview(commands))
        else:
            outcomes = list(await submit_all(self._mesh.writer, commands))
        answers = iter(outcomes)
        results = [item.result if item.command is None else applying.result(item, next(answers)) for item in read]
        revision = max((getattr(outcome, "revision", 0) for outcome in outcomes), default=0)
        return json_response(schema.ApplyResult(revision or self._mesh.follower.applied_revision, results))

    async def log(self, request: web.Request) -> web.StreamResponse:
        after = query_int(request, "after", 0)
        limit = query_int(request, "limit", self._mesh.settings.log_page_records_max)
        chunks = self._followed(after) if request.query.get("follow") == "1" else self._read(after, limit)
        return await stream_lines(request, self._mesh.follower.applied_revision, chunks)

    async def record(self, request: web.Request) -> web.Response:
        text = request.match_info["revision"]
        if not text.isascii() or not text.isdigit():
            raise Refused(400, f"{text!r} is not a revision, which is a whole number", "revision")
        revision = int(text)
        async for record in self._records(revision - 1, revision):
            return json_response(log_record(record))
        raise Refused(404, f"no record has revision {revision}", "revision")

    async def wait(self, request: web.Request) -> web.Response:
        revision = query_int(request, "revision", 0)
        timeout_s = query_seconds(request, "timeout_s", 60.0, WAIT_S_MAX)
        try:
            waited = await self._mesh.wait_realized(revision, timeout_s)
        except TimeoutError:
            applied = self._mesh.follower.applied_revision
            raise Refused(504, f"not realized through {revision} within {timeout_s:g} s; applied is {applied}") from None
        return json_response(waited)

    async def metrics(self, request: web.Request) -> web.Response:
        return web.Response(
            text=prometheus_text(await self._mesh.samples(), METRICS_HELP), content_type="text/plain", charset="utf-8"
        )

    async def _records(self, after: int, through: int | None = None) -> AsyncIterator[Record]:
        try:
            end = None if through is None else Revision(through)
            async for record in self._mesh.log.read(self._start(after), end):
                if record.revision > after:
                    yield record
        except HistoryTruncated as error:
            raise Refused(410, f"history begins after revision {error.low}", "after") from None
        except LogError as error:
            raise Refused(503, f"the log cannot be read: {error}") from None

    def _start(self, after: int) -> Position:
        """Where to read from: the sequences held at a revision are known only of the state's own and of none."""
        held = self._mesh.follower.state.position
        return held if after >= held.revision else Position()

    async def _read(self, after: int, limit: int) -> AsyncIterator[bytes]:
        lines: list[bytes] = []
        sent = 0
        async for record in self._records(after):
            if sent == limit:
                break
            lines.append(msgspec.json.encode(log_record(record)) + b"\n")
            sent += 1
            if len(lines) == CHUNK_RECORDS:
                yield b"".join(lines)
                lines.clear()
        yield b"".join(lines)

    async def _followed(self, after: int) -> AsyncIterator[bytes]:
        try:
            async for item in self._mesh.log.follow(self._start(after)):
                if not isinstance(item, Bookmark) and item.revision > after:
                    yield msgspec.json.encode(log_record(item)) + b"\n"
        except LogError as error:
            raise Refused(503, f"the log cannot be followed: {error}") from None


async def submit_all(writer: Writer, commands: Sequence[Any]) -> list[Outcome]:
    """To the end, even if the caller has gone away. Raises Refused 503."""
    try:
        return await asyncio.shield(asyncio.ensure_future(writer.submit_all(commands)))
    except WriterFailed as error:
        raise Refused(503, str(error)) from None
