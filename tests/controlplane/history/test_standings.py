"""How far nodes are: the number, the verdict, the words; and the route over a log that holds reports."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from controlplane import events as e
from controlplane.api.standing_routes import routes
from controlplane.history.at import Past, time_of
from controlplane.history.capsule import Report
from controlplane.history.replay import encoded_rows
from controlplane.history.standings import LAG_S_MAX, REPORT_AGE_S_MAX, mesh_standing, node_standing
from controlplane.model import NodeKey
from controlplane.runtime.reports import NodeReport
from tests.controlplane.history.past import shop, stored
from tests.controlplane.random_mesh import Log

WHERE = NodeKey("east", "n1")
NOW_NS = 1_000_000_000_000
S = 1_000_000_000


def report(**changes: Any) -> Report:
    well = Report("east", "n1", 40, True, 0, NOW_NS - S, {})
    return msgspec.structs.replace(well, **changes)


def standing(found: Report | None, newest: int = 40, behind: Any = (), tables: Any = ()) -> Any:
    return node_standing(WHERE, found, newest, behind, tables, NOW_NS)


def test_lag_is_the_records_that_are_later_and_the_age_of_the_oldest() -> None:
    """Of records 38, 41 and 45, a node at 40 lacks two, the first of them three seconds old: that is under way."""
    behind = [(38, NOW_NS - 9 * S), (41, NOW_NS - 3 * S), (45, NOW_NS - S)]
    found = standing(report(), 45, behind)
    assert (found.lag_records, found.lag_s, found.in_sync) == (2, 3.0, True)


def test_a_node_that_holds_the_newest_has_no_lag() -> None:
    """Zero and zero, also where the one that is asked is behind the node."""
    assert [(each.lag_records, each.lag_s) for each in (standing(report()), standing(report(realized=50)))] == [(0, 0.0)] * 2


@pytest.mark.parametrize(("found", "behind", "tables", "words"), [
    (None, (), None, "no report"),
    (report(realized=-1), (), (), "holds nothing yet"),
    (report(time_ns=NOW_NS - int((REPORT_AGE_S_MAX + 1) * S)), (), (), "has not reported for 11 s"),
    (report(), (), ("policy",), "meshlog verify --node n1"),
    (report(failed_rows=2), (), (), "2 rows fail"),
    (report(in_sync=False), (), (), "not in sync with the log"),
    (report(), None, (), "behind the kept history"),
    (report(), [(41, NOW_NS - int((LAG_S_MAX + 2) * S))], (), "behind for 12 s"),
])
def test_what_is_not_well_is_named(found: Report | None, behind: Any, tables: Any, words: str) -> None:
    """Each kind of fault takes the node, and with it the mesh, out of sync, and says what to ask next."""
    seen = standing(found, 41, behind, tables)
    assert words in seen.problem
    assert not mesh_standing(41, [seen], {}).in_sync


def test_a_mesh_without_nodes_is_not_in_sync() -> None:
    """Nothing has proven anything."""
    assert not mesh_standing(0, [], {}).in_sync


def now_ns(log: Log) -> int:
    """A second after the last record."""
    return time_of(log.records[-1]) + S


async def asked(log: Log, reports: Sequence[Report | NodeReport], query: str = "") -> dict[str, Any]:
    memory = stored(log)
    for each in reports:
        await memory.put(f"report/{each.cluster}/{each.node}", msgspec.json.encode(each))
    past = Past(memory, lambda: int(log.state.revision), now_ns=lambda: now_ns(log))
    mesh = SimpleNamespace(log=memory, past=past, follower=SimpleNamespace(state=log.state))
    app = web.Application()
    app.add_routes(routes(mesh))  # type: ignore[arg-type]
    async with TestClient(TestServer(app)) as client:
        answer = await client.get(f"/v1/mesh{query}")
        found: dict[str, Any] = await answer.json()
        return found


def reports_of(log: Log) -> list[Report]:
    """What each node says whose kernel holds all of the log."""
    revision = int(log.state.revision)
    return [
        Report(where.cluster, where.node, revision, True, 0, now_ns(log), encoded_rows(log.state, *where).digests())
        for where in sorted(log.state.nodes)
    ]


async def test_digests_are_those_of_the_log_at_the_revision_reported() -> None:
    """A node that stands at an older revision is compared with that one; a wrong digest names its table."""
    log = shop()
    first, *others = reports_of(log)
    log.write("east", "operator", e.NamespaceLabelled("late", {"a": "b"}))
    wrong = msgspec.structs.replace(others[0], digests={**others[0].digests, "ipcache": "00"})
    nodes = {each["node"]: each for each in (await asked(log, [first, wrong, *others[1:]]))["nodes"]}
    assert (nodes[first.node]["digests"], nodes[first.node]["lag_records"]) == ("equal", 1)
    assert (nodes[wrong.node]["digests"], nodes[wrong.node]["tables"]) == ("different", ["ipcache"])


async def test_what_a_node_found_in_its_own_kernel_counts() -> None:
    """Digests of what was written are equal, and the kernel has lost a row: the report's own finding is told."""
    log = shop()
    first, *others = reports_of(log)
    found = NodeReport(**msgspec.to_builtins(first), differing=("routes",))
    (seen,) = [each for each in (await asked(log, [found, *others]))["nodes"] if (each["cluster"], each["node"]) == (first.cluster, first.node)]
    assert (seen["digests"], seen["tables"], seen["in_sync"]) == ("different", ["routes"], False)


async def test_a_node_that_is_gone_is_told_and_one_without_a_report_is_missed() -> None:
    """The log's own word about a node that left, with its revision and reason; silence of one that did not."""
    log = shop()
    kept = [each for each in reports_of(log) if each.node != "n2"]
    silent = await asked(log, kept, "?left=1")
    assert (silent["in_sync"], silent["left"]) == (False, [])
    log.write("east", "operator", e.NodeLeft("n2", "no session for 60 s"))
    found = await asked(log, kept, "?left=1")
    assert found["left"] == [f"east/n2: left at revision {log.state.revision}: no session for 60 s"]
