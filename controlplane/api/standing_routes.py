"""The route that says how far every node of the mesh is.

Belongs here: reading reports and what of the log they need. Does not belong here: what follows from them
(history/standings.py).
"""

import asyncio
from collections.abc import Sequence

import msgspec
from aiohttp import web

from controlplane.api.reading_routes import Readable
from controlplane.api.server import Refused, json_response
from controlplane.codec import decode
from controlplane.events import NodeLeft
from controlplane.history.at import BeforeHistory, BeyondHead, time_of
from controlplane.history.capsule import Report
from controlplane.history.exporting import checked
from controlplane.history.points import parse_point
from controlplane.history.standings import Behind, mesh_standing, node_standing
from controlplane.model import NodeKey
from controlplane.runtime.reports import read_all_reports
from kvstore.errors import HistoryTruncated, LogError

NODES_COMPARED_MAX = 16
"""Nodes whose rows are derived without being asked to: the digests of more cost seconds."""
LEFT_WITHIN = "-1h"
LEFT_NAME = NodeLeft.__name__.encode()


def routes(mesh: Readable) -> list[web.RouteDef]:
    """The table."""
    return [web.get("/v1/mesh", _StandingRoutes(mesh).mesh)]


class _StandingRoutes:
    def __init__(self, mesh: Readable) -> None:
        self._mesh = mesh

    async def mesh(self, request: web.Request) -> web.Response:
        state = self._mesh.follower.state
        newest = int(state.revision)
        try:
            known = await read_all_reports(self._mesh.log)
            found = [msgspec.convert(msgspec.to_builtins(each), Report) for each in known]
            reports = {NodeKey(each.cluster, each.node): each for each in found}
            told = {NodeKey(each.cluster, each.node): each.differing for each in known}
            behind = await self._behind(found, newest)
            left = await self._left(newest) if request.query.get("left") == "1" else {}
        except LogError as error:
            raise Refused(503, f"the reports of the nodes cannot be read: {error}") from None
        nodes = sorted({*state.nodes, *reports})
        is_compared = len(nodes) <= NODES_COMPARED_MAX or request.query.get("digests") == "1"
        now_ns = self._mesh.past.now_ns()
        rows = [
            node_standing(where, reports.get(where), newest, behind,
                          await self._different(reports.get(where), is_compared, told.get(where, ())), now_ns)
            for where in nodes
        ]  # fmt: skip
        gone = {where: text for where, text in left.items() if where not in state.nodes}
        return json_response(mesh_standing(newest, rows, gone))

    async def _behind(self, reports: Sequence[Report], newest: int) -> Behind | None:
        """Records that some node has not realized. Raises LogError."""
        begun = [each.realized for each in reports if each.realized > 0]
        if not begun or min(begun) >= newest:
            return []
        try:
            return [(int(each.revision), time_of(each)) async for each in self._mesh.past.records(min(begun), newest)]
        except HistoryTruncated:
            return None

    async def _different(self, report: Report | None, is_compared: bool, told: Sequence[str]) -> list[str] | None:
        """Tables whose digest is not that of the log at the revision reported, and those that the node itself found to
        differ in its kernel; None where nobody can tell."""
        if report is None or report.realized <= 0 or told or not is_compared:
            return list(told) or None
        try:
            moment = await self._mesh.past.moment(report.realized)
        except (BeyondHead, LogError):
            return None
        return (await asyncio.to_thread(checked, moment.state, report)).tables

    async def _left(self, newest: int) -> dict[NodeKey, str]:
        """Nodes that the log says have left lately, and why. Raises LogError."""
        try:
            since = await self._mesh.past.resolve(parse_point(LEFT_WITHIN))
        except BeforeHistory:
            since = 0
        found = {}
        try:
            async for record in self._mesh.past.records(since, newest):
                if LEFT_NAME in record.payload:
                    for event in decode(record.payload).events:
                        if isinstance(event, NodeLeft):
                            reason = f"left at revision {record.revision}: {event.reason}"
                            found[NodeKey(record.cluster, event.node)] = reason
        except (HistoryTruncated, ValueError):
            return found
        return found
