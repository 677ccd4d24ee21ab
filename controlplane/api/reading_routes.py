"""The routes that only read: lists, manifests and the log, now and at any point of the history. A capsule has them too.

Belongs here: requests to answers over a Readable mesh. Does not belong here: the shape of a list (views.py), changing
the mesh (mesh_routes.py), comparing and explaining (history_routes.py).
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Sequence
from typing import Protocol

import msgspec
from aiohttp import web

from controlplane.api import documents, schema, views
from controlplane.api.asking import asked_filter, asked_moment, asked_point
from controlplane.api.server import Refused, json_response, query_int, stream_lines
from controlplane.history.at import Past, ReadableLog
from controlplane.history.filters import RecordFilter
from controlplane.history.flows import FlowSummary
from controlplane.history.records import log_record, time_text
from controlplane.model import NodeKey
from controlplane.projections.state import State
from kvstore.errors import HistoryTruncated, LogError
from kvstore.types import Bookmark, Position, Record

CHUNK_RECORDS = 64


class Standpoint(Protocol):
    """A state, and up to which revision everything is in it."""

    state: State
    applied_revision: int


class Readable(Protocol):
    """What can be asked without changing anything, of an agent, an operator or a capsule."""

    @property
    def cluster(self) -> str: ...

    @property
    def where(self) -> NodeKey | None: ...

    @property
    def log(self) -> ReadableLog: ...

    @property
    def past(self) -> Past: ...

    @property
    def page_records_max(self) -> int: ...

    @property
    def follower(self) -> Standpoint: ...

    def row_state(self, cluster: str, node: str, endpoint_id: int) -> str: ...

    async def flows(self) -> Sequence[FlowSummary]: ...


def routes(mesh: Readable) -> list[web.RouteDef]:
    """The table."""
    serve = _ReadingRoutes(mesh)
    return [
        web.get("/v1/list/{kind}", serve.listing),
        web.get("/v1/get/{kind}", serve.get),
        web.get("/v1/log", serve.log),
        web.get("/v1/log/{revision}", serve.record),
    ]


class _ReadingRoutes:
    def __init__(self, mesh: Readable) -> None:
        self._mesh = mesh

    async def listing(self, request: web.Request) -> web.Response:
        kind = request.match_info["kind"]
        if kind not in schema.LIST_KINDS:
            right = ", ".join(schema.LIST_KINDS)
            raise Refused(404, f"{kind!r} cannot be listed; right is one of {right}", "kind")
        moment = await asked_moment(self._mesh.past, request)
        if moment is None:
            items = views.items_of(kind, self._mesh.follower.state, self._mesh.where, self._mesh.row_state)
            return json_response(schema.Listing(kind, self._mesh.follower.applied_revision, items))
        items = await asyncio.to_thread(
            views.items_of, kind, moment.state, self._mesh.where, self._past_row_state
        )
        return json_response(schema.Listing(kind, moment.revision, items, time_text(moment.time_ns)))

    def _past_row_state(self, cluster: str, node: str, endpoint_id: int) -> str:
        return "recorded" if (cluster, node) == self._mesh.where else "remote"

    async def get(self, request: web.Request) -> web.Response:
        moment = await asked_moment(self._mesh.past, request)
        try:
            found = documents.documents(
                self._mesh.follower.state if moment is None else moment.state,
                self._mesh.cluster,
                request.match_info["kind"],
                request.query.get("namespace", ""),
                request.query.get("name", ""),
            )
        except documents.UnknownKind as error:
            raise Refused(404, str(error), "kind") from None
        if moment is None:
            return json_response(schema.Documents(self._mesh.follower.applied_revision, found))
        return json_response(schema.Documents(moment.revision, found, time_text(moment.time_ns)))

    async def log(self, request: web.Request) -> web.StreamResponse:
        after = query_int(request, "after", 0)
        limit = query_int(request, "limit", self._mesh.page_records_max)
        wanted = asked_filter(request)
        if request.query.get("follow") == "1":
            chunks = self._followed(after, wanted)
        else:
            since, through = await self._bounds(request)
            last = query_int(request, "last", 0)
            read = self._newest(max(after, since), through, last, wanted) if last else None
            chunks = read or self._read(max(after, since), through, limit, wanted)
        return await stream_lines(request, self._mesh.follower.applied_revision, chunks)

    async def _bounds(self, request: web.Request) -> tuple[int, int | None]:
        """What `since` and `until` mean: after which revision, and through which. A revision itself is included."""
        since = await asked_point(self._mesh.past, request, "since", before_history=0)
        until = await asked_point(self._mesh.past, request, "until", before_history=0)
        if since and request.query["since"].strip().isdigit():
            since -= 1
        return since or 0, until

    async def record(self, request: web.Request) -> web.Response:
        text = request.match_info["revision"]
        if not text.isascii() or not text.isdigit():
            raise Refused(400, f"{text!r} is not a revision, which is a whole number", "revision")
        revision = int(text)
        async for record in self._records(revision - 1):
            if record.revision == revision:
                return json_response(log_record(record))
            raise Refused(404, f"no record has revision {revision}; the next one has {record.revision}", "revision")
        newest = self._mesh.follower.state.revision
        raise Refused(404, f"no record has revision {revision}; the newest has {newest}", "revision")

    async def _records(self, after: int, through: int | None = None) -> AsyncIterator[Record]:
        try:
            async for record in self._mesh.past.records_from(self._start(after), after, through):
                yield record
        except HistoryTruncated as error:
            reason = f"history begins after revision {error.low}{await self._mesh.past.elsewhere()}"
            raise Refused(410, reason, "after") from None
        except LogError as error:
            raise Refused(503, f"the log cannot be read: {error}") from None

    def _start(self, after: int) -> Position:
        """Where to read from: the sequences held at a revision are known only of states that are held."""
        held = self._mesh.follower.state.position
        return held if after >= held.revision else self._mesh.past.position_near(after)

    async def _read(
        self, after: int, through: int | None, limit: int, wanted: RecordFilter
    ) -> AsyncIterator[bytes]:
        lines: list[bytes] = []
        sent = 0
        async for record in self._records(after, through):
            if sent == limit:
                break
            view = log_record(record)
            if not wanted.matches(view):
                continue
            lines.append(msgspec.json.encode(view) + b"\n")
            sent += 1
            if len(lines) == CHUNK_RECORDS:
                yield b"".join(lines)
                lines.clear()
        yield b"".join(lines)

    async def _newest(
        self, after: int, through: int | None, last: int, wanted: RecordFilter
    ) -> AsyncIterator[bytes]:
        """The last so many that match; what is decoded for nobody is not decoded without a filter."""
        kept: deque[Record] = deque(maxlen=min(last, self._mesh.page_records_max))
        seen = 0
        async for record in self._records(after, through):
            if wanted == RecordFilter() or wanted.matches(log_record(record)):
                kept.append(record)
            seen += 1
            if seen % CHUNK_RECORDS == 0:
                await asyncio.sleep(0)
        yield b"".join(msgspec.json.encode(log_record(record)) + b"\n" for record in kept)

    async def _followed(self, after: int, wanted: RecordFilter) -> AsyncIterator[bytes]:
        try:
            async for item in self._mesh.log.follow(self._start(after)):
                if isinstance(item, Bookmark) or item.revision <= after:
                    continue
                view = log_record(item)
                if wanted.matches(view):
                    yield msgspec.json.encode(view) + b"\n"
        except LogError as error:
            raise Refused(503, f"the log cannot be followed: {error}") from None
