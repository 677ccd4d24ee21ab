"""How far each node of the mesh is, as a number: from what nodes have reported, and the log. Pure.

Belongs here: lag, and what of a report is not well. Does not belong here: reading reports or the log, deriving rows
(api/standing_routes.py).
"""

from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence

import msgspec

from controlplane.history.capsule import Report
from controlplane.model import NodeKey

LAG_S_MAX = 10.0
"""A node that is behind for longer is not in sync: five of its reports, so that what is under way does not count."""
REPORT_AGE_S_MAX = 10.0
"""Five reports. One that is not renewed goes with its agent's lease, 15 s after a kill."""

Behind = Sequence[tuple[int, int]]
"""(revision, time_ns of the writer's clock) of records, in order: at least those that some node has not realized."""
EQUAL, DIFFERENT, UNKNOWN = "equal", "different", "unknown"


class NodeStanding(msgspec.Struct, frozen=True):
    """How far one node is, by its last report. `lag_records`: records of the log that its kernel does not hold yet;
    `lag_s`: how long the oldest of them has been there, by the writers' clocks. Both null where they cannot be told.

    `digests`: "equal", "different" (in `tables`), or "unknown" where nobody compared them: what the agent has written,
    against the log at the revision `realized`; what the kernel holds is for `verify`. `reported_s_ago` null: no report.
    `problem` says why it is not `in_sync`, and what to ask next.
    """

    cluster: str
    node: str
    realized: int
    lag_records: int | None
    lag_s: float | None
    digests: str
    tables: list[str]
    failed_rows: int
    reported_s_ago: float | None
    in_sync: bool
    problem: str


class ClusterStanding(msgspec.Struct, frozen=True):
    """Of one cluster: how many nodes, and how many of them are in sync."""

    cluster: str
    nodes: int
    in_sync: int


class MeshStanding(msgspec.Struct, frozen=True):
    """The whole mesh against the log at `revision`: the greatest lag of its nodes, and each of them. `left`: nodes
    that are gone within the last hour, where they were asked for, one line each."""

    revision: int
    in_sync: bool
    lag_records: int
    lag_s: float
    clusters: list[ClusterStanding]
    nodes: list[NodeStanding]
    left: list[str]


def node_standing(
    where: NodeKey, report: Report | None, newest: int, behind: Behind | None, tables: Sequence[str] | None, now_ns: int
) -> NodeStanding:
    """`tables`: whose digests differ from those of the log at the revision reported; None where nobody compared.
    `behind` None: the log cannot tell any more."""
    if report is None:
        problem = "no report: its agent is down, or does not reach etcd"
        return NodeStanding(where.cluster, where.node, 0, None, None, UNKNOWN, [], 0, None, False, problem)
    lag_records, lag_s = _lag(report.realized, newest, behind, now_ns)
    digests = UNKNOWN if tables is None else DIFFERENT if tables else EQUAL
    age_s = round(max(now_ns - report.time_ns, 0) / 1e9, 1)
    problem = _problem(report, lag_records, lag_s, tables or (), age_s)
    return NodeStanding(
        where.cluster, where.node, max(report.realized, 0), lag_records, lag_s, digests, list(tables or ()),
        report.failed_rows, age_s, not problem, problem,
    )  # fmt: skip


def _lag(realized: int, newest: int, behind: Behind | None, now_ns: int) -> tuple[int | None, float | None]:
    """Records that are not realized, and how long the oldest of them has been there."""
    if realized >= newest:
        return 0, 0.0
    if behind is None or realized <= 0:
        return None, None
    place = bisect_right(behind, realized, key=lambda each: each[0])
    if place == len(behind):
        return 0, 0.0
    return len(behind) - place, round(max(now_ns - behind[place][1], 0) / 1e9, 1)


def _problem(
    report: Report, lag_records: int | None, lag_s: float | None, tables: Sequence[str], age_s: float
) -> str:
    """The worst, and what to ask next; "" if it is well."""
    name = report.node
    if report.realized <= 0:
        return f"its kernel holds nothing yet: `meshlog status --node {name}` says why"
    if age_s > REPORT_AGE_S_MAX:
        return f"has not reported for {age_s:.0f} s: its agent hangs, etcd is full, or its clock is behind"
    if tables:
        return f"other rows than the log's: `meshlog verify --node {name}` names them"
    if report.failed_rows:
        return f"{report.failed_rows} rows fail: `meshlog status --node {name}` names them"
    if not report.in_sync:
        return f"not in sync with the log: `meshlog status --node {name}` says why"
    if lag_records is None:
        return "behind the kept history"
    if lag_s is not None and lag_s > LAG_S_MAX:
        return f"behind for {lag_s:.0f} s: `meshlog status --node {name}` says why"
    return ""


def mesh_standing(revision: int, nodes: Iterable[NodeStanding], left: Mapping[NodeKey, str]) -> MeshStanding:
    """The whole. `left`: nodes that are gone lately and why; that is told, and is no fault of those that are there."""
    rows = sorted(nodes, key=lambda each: (each.cluster, each.node))
    clusters = [
        ClusterStanding(name, sum(each.cluster == name for each in rows),
                        sum(each.cluster == name and each.in_sync for each in rows))
        for name in dict.fromkeys(each.cluster for each in rows)
    ]  # fmt: skip
    lags = [each.lag_s or 0.0 for each in rows]
    return MeshStanding(
        revision=revision,
        in_sync=bool(rows) and all(each.in_sync for each in rows),
        lag_records=max((each.lag_records or 0 for each in rows), default=0),
        lag_s=max(lags, default=0.0),
        clusters=clusters,
        nodes=rows,
        left=[f"{key.cluster}/{key.node}: {text}" for key, text in sorted(left.items())],
    )
