"""The routes that only an agent has: its endpoints, its kernel, its notifications.

Belongs here: requests to answers over a Node. Does not belong here: HTTP in general (server.py), how a row reads
(kernel_views.py), the life of an endpoint (runtime/endpoints.py).
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress

import msgspec
from aiohttp import web

from controlplane.api import history_routes, items, kernel_views, notification_views, schema, views
from controlplane.api.server import Refused, json_response, query_int, read_body, stream_lines
from controlplane.history.replay import EncodedRows
from controlplane.runtime.endpoints import EndpointRefused
from controlplane.runtime.node import Node
from controlplane.runtime.writer import WriterFailed
from datapath.digest import digest_of
from datapath.errors import KernelError
from datapath.notifications import Notification
from datapath.realization import TableVerification
from datapath.tables import RUNTIME_MAPS

VERIFY_ROUNDS_MAX = 4
VERIFY_WAIT_S = 5.0


def routes(node: Node) -> list[web.RouteDef]:
    """The table."""
    serve = _NodeRoutes(node)
    attachment = "/v1/endpoints/{container_id}/{interface}"
    return [
        web.post("/v1/endpoints", serve.create_endpoint),
        web.get(attachment, serve.check_endpoint),
        web.delete(attachment, serve.delete_endpoint),
        web.get("/v1/bpf/{kind}", serve.bpf),
        web.get("/v1/digests", serve.digests),
        web.get("/v1/verify", serve.verify),
        web.post("/v1/repair", serve.repair),
        web.get("/v1/monitor", serve.monitor),
    ]


class _NodeRoutes:
    def __init__(self, node: Node) -> None:
        self._node = node
        self._parts = node.parts

    async def create_endpoint(self, request: web.Request) -> web.Response:
        body = await read_body(request, schema.EndpointRequest)
        try:
            return json_response(await self._parts.endpoints.create(body))
        except EndpointRefused as error:
            raise Refused(error.status, str(error), error.field) from None
        except WriterFailed as error:
            raise Refused(503, str(error)) from None

    async def delete_endpoint(self, request: web.Request) -> web.Response:
        found = request.match_info
        try:
            return json_response(
                await self._parts.endpoints.delete(found["container_id"], found["interface"])
            )
        except EndpointRefused as error:
            raise Refused(error.status, str(error), error.field) from None
        except (WriterFailed, KernelError) as error:
            raise Refused(503, str(error)) from None

    async def check_endpoint(self, request: web.Request) -> web.Response:
        container_id, interface = request.match_info["container_id"], request.match_info["interface"]
        try:
            problems = await self._parts.endpoints.check(container_id, interface)
        except EndpointRefused as error:
            raise Refused(error.status, str(error), error.field) from None
        endpoint = self._parts.endpoints.find(container_id, interface)
        if endpoint is None:
            raise Refused(404, f"the endpoint of {container_id!r} was deleted just now")
        item = views.endpoint_item(self._parts.follower.state, endpoint, self._node.row_state)
        return json_response(schema.EndpointCheck(item, not problems, problems))

    async def bpf(self, request: web.Request) -> web.Response:
        kind = request.match_info["kind"]
        if kind not in schema.BPF_KINDS:
            raise Refused(
                404, f"the kernel has no {kind!r}; right is one of {', '.join(schema.BPF_KINDS)}", "kind"
            )
        then = await history_routes.desired_rows(self._node.past, self._node.where, kind, request)
        if then is not None:
            return then
        try:
            rows = await self._kernel_rows(kind)
        except KernelError as error:
            raise Refused(503, str(error)) from None
        return json_response(schema.KernelRows(kind, self._node.revision(), rows))

    async def _kernel_rows(self, kind: str) -> list[kernel_views.Row]:
        kernel, worker = self._parts.kernel, self._parts.reconciler.worker
        runtime_map = kernel_views.KIND_RUNTIME_MAPS.get(kind)
        if runtime_map is None:
            tables = {
                table: await worker.call(kernel.dump, table) for table in kernel_views.KIND_TABLES[kind]
            }
            return kernel_views.kernel_rows(kind, tables)
        entries = await worker.call(kernel.dump_runtime, runtime_map)
        if kind == "metrics":
            return kernel_views.metrics_rows(entries)
        if kind == "nat":
            return kernel_views.nat_rows(entries)
        view = kernel_views.affinity_rows if kind == "affinity" else kernel_views.conntrack_rows
        return view(entries, int(self._parts.clock.monotonic_s() * 1e9))

    async def digests(self, request: web.Request) -> web.Response:
        rows = self._node.derive_anew()
        return json_response(
            schema.Digests(
                revision=rows.generation,
                realized=self._parts.reconciler.realized_generation,
                desired={table: digest_of(encoded) for table, encoded in rows.tables.items()},
                believed=dict(self._parts.reconciler.digests()),
            )
        )

    async def verify(self, request: web.Request) -> web.Response:
        return json_response(await self._verified())

    async def repair(self, request: web.Request) -> web.Response:
        before = self._writes()
        try:
            await self._parts.reconciler.repair()
        except KernelError as error:
            raise Refused(503, str(error)) from None
        return json_response(await self._verified(repaired_rows=self._writes() - before))

    def _writes(self) -> int:
        return sum(count.puts + count.deletes for count in self._parts.reconciler.status().writes.values())

    async def _verified(self, repaired_rows: int = 0) -> schema.Verification:
        """Compared again where the log moved on meanwhile: log, belief and kernel must be of one revision."""
        for _ in range(VERIFY_ROUNDS_MAX):
            rows = self._node.derive_anew()
            with suppress(TimeoutError):
                await self._parts.reconciler.wait_realized(rows.generation, VERIFY_WAIT_S)
            found = await self._parts.reconciler.verify()
            result = self._verification(rows, found, repaired_rows)
            if result.equal or rows.generation == self._node.generation():
                break
        self._parts.inspection.note(found, self._parts.clock.time_ns())
        return result

    def _verification(
        self, rows: EncodedRows, found: tuple[TableVerification, ...], repaired_rows: int
    ) -> schema.Verification:
        digests = {table: digest_of(encoded) for table, encoded in rows.tables.items()}
        tables = [
            schema.TableVerification(
                table=each.table,
                rows=len(rows.tables[each.table]),
                log=digests[each.table],
                believed=each.realized,
                kernel=each.kernel or each.error,
                equal=digests[each.table] == each.realized == each.kernel,
            )
            for each in found
        ]
        differences = [
            schema.DifferentRow(each.table, kernel_views.readable_key(each.table, row.key), row.kind)
            for each in found
            for row in each.differences
        ]
        return schema.Verification(
            revision=rows.generation,
            equal=all(table.equal for table in tables),
            tables=tables,
            differences=differences[: self._parts.settings.verify_differences_max],
            differences_total=sum(each.missing + each.alien + each.corrupted for each in found),
            runtime_tables=list(RUNTIME_MAPS),
            repaired_rows=repaired_rows,
        )

    async def monitor(self, request: web.Request) -> web.StreamResponse:
        recent, follow = query_int(request, "recent", 0), query_int(request, "follow", 1)
        return await stream_lines(request, self._node.revision(), self._notifications(recent, bool(follow)))

    async def _notifications(self, recent: int, follow: bool) -> AsyncIterator[bytes]:
        monitor = self._parts.monitor
        with monitor.listening() as listener:
            if recent:
                now = msgspec.json.encode(items.Notification(type="now"))
                yield self._told(monitor.recent(recent)) + now + b"\n"
            if not follow:
                return
            async for records, lost in listener.chunks():
                told = self._told(records)
                if lost:
                    told += msgspec.json.encode(items.Notification(type="lost", lost=lost)) + b"\n"
                yield told
                await asyncio.sleep(self._parts.settings.monitor_flush_s)

    def _told(self, records: Sequence[Notification]) -> bytes:
        """A line each."""
        parts = self._parts
        started_ns = parts.clock.time_ns() - int(parts.clock.monotonic_s() * 1e9)
        names = notification_views.Names(parts.follower.state, started_ns, parts.feed.deriver.derived_labels)
        told = [notification_views.notification(each, names, self._node.where) for each in records]
        return b"".join(msgspec.json.encode(each) + b"\n" for each in told)
