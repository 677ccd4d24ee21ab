"""What a request says about the past: a point in the history, a node, which records.

Belongs here: the query to values, with refusals that name the field. Does not belong here: answering.
"""

from aiohttp import web

from controlplane.api.server import Refused, query_int
from controlplane.history.at import BeforeHistory, BeyondHead, Moment, Past
from controlplane.history.filters import RecordFilter
from controlplane.history.points import PointError, parse_point
from controlplane.model import NodeKey
from controlplane.projections.state import State
from kvstore.errors import HistoryTruncated, LogError


async def asked_moment(past: Past, request: web.Request, name: str = "at") -> Moment | None:
    """The mesh at the point that the query names; None where it names none. Raises Refused."""
    revision = await asked_point(past, request, name)
    return None if revision is None else await moment_at(past, revision, name)


async def moment_at(past: Past, revision: int, name: str = "at") -> Moment:
    """Raises Refused 400, 410, 503."""
    try:
        return await past.moment(revision)
    except BeyondHead as error:
        raise Refused(400, str(error), name) from None
    except HistoryTruncated as error:
        oldest = past.oldest(error.low)
        reason = f"the history kept does not reach back to {revision}; the oldest is {oldest}{await past.elsewhere()}"
        raise Refused(410, reason, name) from None
    except LogError as error:
        raise Refused(503, f"the log cannot be read: {error}", name) from None


async def asked_point(past: Past, request: web.Request, name: str, before_history: int | None = None) -> int | None:
    """A revision; None where the query names no point. `before_history` stands for a time before the first record.

    Raises Refused 400, 410, 503.
    """
    text = request.query.get(name, "")
    if not text:
        return None
    try:
        return await past.resolve(parse_point(text))
    except PointError as error:
        raise Refused(400, str(error), name) from None
    except BeforeHistory as error:
        if before_history is not None:
            return before_history
        raise Refused(410, f"{text}: {error}", name) from None
    except HistoryTruncated as error:
        reason = f"{text}: the history kept begins at {past.oldest(error.low)}{await past.elsewhere()}"
        raise Refused(410, reason, name) from None
    except LogError as error:
        raise Refused(503, f"the log cannot be read: {error}", name) from None


def asked_time_ns(past: Past, request: web.Request, name: str, otherwise: int | None) -> int:
    """A time as the query names it, for what has no revision. `otherwise` None: now. Raises Refused 400."""
    text = request.query.get(name, "")
    if not text:
        return past.now_ns() if otherwise is None else otherwise
    try:
        point = parse_point(text)
    except PointError as error:
        raise Refused(400, str(error), name) from None
    if point.revision is not None:
        raise Refused(400, f"{text} is a revision, and flows have times; right is for example -24h", name)
    return point.time_at(past.now_ns())


def asked_node(request: web.Request, state: State, cluster: str, where: NodeKey | None) -> NodeKey | None:
    """The node that the query names, "n1" or "cluster/n1"; else the one that answers. Raises Refused 404."""
    text = request.query.get("node", "")
    if not text:
        return where
    first, slash, second = text.partition("/")
    key = NodeKey(first, second) if slash else NodeKey(cluster, first)
    if key not in state.nodes:
        alike = [known for known in sorted(state.nodes) if not slash and known.node == first]
        if len(alike) == 1:
            return alike[0]
        there = ", ".join("/".join(known) for known in sorted(state.nodes)[:20]) or "none"
        raise Refused(404, f"there was no node {text!r} then; there were: {there}", "node")
    return key


def asked_filter(request: web.Request) -> RecordFilter:
    """Raises Refused 400."""
    names = ("kind", "object", "namespace", "writer", "cluster", "node")
    cause = query_int(request, "cause", 0) if request.query.get("cause") else None
    return RecordFilter(**{name: request.query.get(name, "") for name in names}, cause=cause)
