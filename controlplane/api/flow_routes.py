"""The routes about recorded flows: which there were, and what changed policies would make of them.

Belongs here: requests to answers over a Readable mesh. Does not belong here: recording (runtime/flows.py), judging
(history/what_if.py).
"""

import asyncio
from typing import Any

import msgspec
from aiohttp import web

from controlplane.api.asking import asked_moment, asked_node, asked_time_ns, moment_at
from controlplane.api.reading_routes import Readable
from controlplane.api.server import Refused, json_response, read_body
from controlplane.history.flows import FlowSummary, within
from controlplane.history.nearest import port_text
from controlplane.history.records import time_text
from controlplane.history.what_if import Asked, what_if
from kvstore.errors import LogError


class WhatIfAsked(msgspec.Struct, frozen=True):
    """`documents`: manifests. `removal`: they are taken out. `replace`: they are the cluster's whole set."""

    documents: list[Any]
    removal: bool = False
    replace: bool = False


def routes(mesh: Readable) -> list[web.RouteDef]:
    """The table."""
    serve = _FlowRoutes(mesh)
    return [web.get("/v1/flows", serve.flows), web.post("/v1/policy/what-if", serve.what_if)]


class _FlowRoutes:
    def __init__(self, mesh: Readable) -> None:
        self._mesh = mesh

    async def _summaries(self) -> list[FlowSummary]:
        try:
            return list(await self._mesh.flows())
        except LogError as error:
            raise Refused(503, f"what nodes have recorded cannot be read: {error}") from None

    async def flows(self, request: web.Request) -> web.Response:
        since_ns = asked_time_ns(self._mesh.past, request, "since", 0)
        until_ns = asked_time_ns(self._mesh.past, request, "until", None)
        summaries = await self._summaries()
        if request.query.get("node"):
            where = asked_node(request, self._mesh.follower.state, self._mesh.cluster, self._mesh.where)
            summaries = [each for each in summaries if (each.cluster, each.node) == where]
        items = [item for each in summaries for item in _items(within(each, since_ns, until_ns))]
        nodes = [
            {"node": f"{each.cluster}/{each.node}", "since": time_text(each.since_ns), "time": time_text(each.time_ns),
             "not_kept": each.not_kept, "not_told": each.not_told}
            for each in summaries
        ]  # fmt: skip
        return json_response({"items": items, "nodes": nodes})

    async def what_if(self, request: web.Request) -> web.Response:
        body = await read_body(request, WhatIfAsked)
        past = self._mesh.past
        moment = await asked_moment(past, request)
        if moment is None:
            moment = await moment_at(past, self._mesh.follower.applied_revision)
        until_ns = moment.time_ns if request.query.get("at") else past.now_ns()
        since_ns = asked_time_ns(past, request, "since", 0)
        asked = Asked(self._mesh.cluster, body.documents, body.removal, body.replace)
        summaries = await self._summaries()
        answer = await asyncio.to_thread(
            what_if, moment.state, moment.time_ns, asked, summaries, since_ns, until_ns
        )
        return json_response(answer)


def _items(summary: FlowSummary) -> list[dict[str, Any]]:
    return [
        {
            "node": f"{summary.cluster}/{summary.node}", "source": row.source, "target": row.dest,
            "source_identity": row.key.source.identity, "target_identity": row.key.dest.identity,
            "port": port_text(row.key.protocol, row.key.port), "direction": "egress" if row.key.egress else "ingress",
            "verdict": row.key.verdict, "count": row.count, "first": time_text(row.first_ns),
            "last": time_text(row.last_ns),
        }
        for row in summary.rows
    ]  # fmt: skip
