"""A capsule served as an agent serves the living mesh: one socket for each node, in a directory of its own.

Belongs here: the routes that make sense of a file, and the sockets. Does not belong here: the file itself
(history/capsule.py), starting a command against it (cli/capsule.py).
"""

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from aiohttp import web

from controlplane.api import flow_routes, history_routes, policy_routes, reading_routes, schema
from controlplane.api.server import Refused, build_app, serving
from controlplane.history.at import Moment, Past, ReadableLog
from controlplane.history.capsule import Capsule
from controlplane.history.capsule_log import CapsuleLog
from controlplane.history.exporting import moments_of
from controlplane.history.flows import FlowSummary
from controlplane.model import NodeKey
from controlplane.projections.state import State

PAGE_RECORDS = 10_000
BODY_BYTES_MAX = 64 * 1024 * 1024
"""As an agent takes: flows to judge, policies to try."""


class Standing:
    """The capsule's last state."""

    def __init__(self, moment: Moment) -> None:
        self.state: State = moment.state
        self.applied_revision = moment.revision


class CapsuleView:
    """What reading_routes needs, from one node's standpoint; None: from nobody's."""

    def __init__(self, capsule: Capsule, where: NodeKey | None, past: Past, last: Moment) -> None:
        self.cluster = where.cluster if where else capsule.manifest.cluster
        self.where = where
        self.log: ReadableLog = CapsuleLog(capsule)
        self.past = past
        self.page_records_max = PAGE_RECORDS
        self.follower = Standing(last)
        self._flows = capsule.flows

    def row_state(self, cluster: str, node: str, endpoint_id: int) -> str:
        """What the kernel made of it is not in the log."""
        return "recorded" if (cluster, node) == self.where else "remote"

    async def flows(self) -> Sequence[FlowSummary]:
        """Those that the capsule holds."""
        return self._flows


def directory_names(nodes: Sequence[NodeKey]) -> dict[NodeKey, str]:
    """The node's name, with its cluster's before it where two clusters have one of that name."""
    names = [key.node for key in nodes]
    return {key: key.node if names.count(key.node) == 1 else f"{key.cluster}-{key.node}" for key in nodes}


@asynccontextmanager
async def serving_capsule(capsule: Capsule, root: Path) -> AsyncIterator[Path]:
    """Sockets below `root`, until the block ends; the one of the node that exported it. Raises CapsuleDamaged."""
    first, last = moments_of(capsule)
    past = Past(
        CapsuleLog(capsule), lambda: capsule.manifest.until, base=first, now_ns=lambda: capsule.manifest.until_ns
    )
    nodes = sorted({*first.state.nodes, *last.state.nodes})
    exporter = NodeKey(capsule.manifest.cluster, capsule.manifest.node)
    if exporter not in nodes and nodes:
        own = [key for key in nodes if key.cluster == capsule.manifest.cluster]
        exporter = (own or nodes)[0]
    chosen = root / "capsule.sock"
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(serving(_app(CapsuleView(capsule, None, past, last)), chosen))
        for where, name in directory_names(nodes).items():
            (root / name).mkdir()
            path = root / name / schema.SOCKET_AGENT
            await stack.enter_async_context(serving(_app(CapsuleView(capsule, where, past, last)), path))
            chosen = path if where == exporter else chosen
        yield chosen


def _app(view: CapsuleView) -> web.Application:
    async def bpf(request: web.Request) -> web.Response:
        where = view.where
        if where is None:
            raise Refused(400, "the capsule has no node", "node")
        kind = request.match_info["kind"]
        end = view.follower.applied_revision
        answer = await history_routes.desired_rows(view.past, where, kind, request, end)
        assert answer is not None
        return answer

    async def refuse(request: web.Request) -> web.Response:
        raise Refused(404, f"a capsule is a file: it has no {request.path.removeprefix('/v1/')}")

    routes = [
        *reading_routes.routes(view),
        *history_routes.routes(view),
        *policy_routes.reading_routes(view),
        *flow_routes.routes(view),
        web.get("/v1/bpf/{kind}", bpf),
        web.route("*", "/{rest:.*}", refuse),
    ]
    return build_app(routes, lambda: view.follower.applied_revision, BODY_BYTES_MAX)
