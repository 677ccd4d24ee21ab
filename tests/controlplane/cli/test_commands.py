"""Commands that are no lists: status, verify, apply, get, log, monitor."""

import json
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import msgspec
import pytest

from controlplane.api import schema
from controlplane.cli import mesh, target
from controlplane.history.standings import MeshStanding
from tests.controlplane.cli.conftest import Run
from tests.controlplane.cli.fake_agent import FakeAgent

STATUS: dict[str, Any] = {
    "kind": "agent", "name": "n1", "cluster": "east", "node": "n1", "version": "0.1.0", "pid": 9, "health": "ok",
    "problems": [], "ready": True, "ready_after_s": 0.25, "uptime_s": 12.0, "in_sync": True,
    "log": {"endpoints": ["unix:/e"], "connected": True, "unavailable_since": None, "last_error": "", "reconnects": 0,
            "head_revision": 50, "applied_revision": 50, "lag_records": 0, "gaps": 0, "rewinds": 0, "repairing": "",
            "full_since": None, "refused": 0, "last_refused": ""},
    "kernel": {"generation": 50, "realized": 50, "in_sync": True, "rows": {"done": 5, "pending": 0, "error": 0},
               "failed": [], "writes_at_start": {"ipcache": 0}, "writes": {}},
    "counts": {"endpoints": 2}, "unknown_events": 0, "refused_events": [], "write_mode": "batch",
    "start_source": "checkpoint", "attach_mode": "clsact", "routing_mode": "native", "socket_lb": "off",
    "acceleration": "off", "balancing": "snat, random", "bandwidth": "HTB by priority, 0 limits",
    "joined_sockets": "off",
}
VERIFICATION: dict[str, Any] = {
    "revision": 50, "equal": False, "differences": [{"table": "ipcache", "key": "prefix=10.1.0.5/32",
                                                     "difference": "missing"}],
    "tables": [{"table": "ipcache", "rows": 5, "log": "a" * 32, "believed": "a" * 32, "kernel": "b" * 32,
                "equal": False}],
    "differences_total": 1, "runtime_tables": ["conntrack"], "repaired_rows": 0,
}
STANDING: dict[str, Any] = {
    "revision": 50, "in_sync": False, "lag_records": 3, "lag_s": 12.0, "left": ["west/w9: left at revision 44: no session"],
    "clusters": [{"cluster": "east", "nodes": 2, "in_sync": 1}],
    "nodes": [
        {"cluster": "east", "node": "n1", "realized": 50, "lag_records": 0, "lag_s": 0.0, "digests": "equal", "tables": [],
         "failed_rows": 0, "reported_s_ago": 1.5, "in_sync": True, "problem": ""},
        {"cluster": "east", "node": "n2", "realized": 47, "lag_records": 3, "lag_s": 12.0, "digests": "unknown", "tables": [],
         "failed_rows": 0, "reported_s_ago": None, "in_sync": False, "problem": "behind for 12 s"},
    ],
}
RECORDS: list[dict[str, Any]] = [
    {"revision": 40 + n, "cluster": "east", "writer": "n1", "sequence": n, "time": "2026-01-01T00:00:00.000Z",
     "cause": 0, "schema_version": 1, "bytes": 99, "events": [{"event": "NodeJoined", "node": f"n{n}"}], "error": ""}
    for n in range(1, 4)
]
MANIFEST = "apiVersion: v1\nkind: Namespace\nmetadata:\n  name: shop\n"


def test_answers_of_these_tests_are_those_of_the_api() -> None:
    """What the tests serve has exactly the fields of the API's shapes, so that a change there shows here."""
    pairs = [(STATUS, schema.Status), (STANDING, MeshStanding), (VERIFICATION, schema.Verification), *((r, schema.LogRecord) for r in RECORDS)]
    assert [msgspec.to_builtins(msgspec.convert(served, shape)) for served, shape in pairs] == [p[0] for p in pairs]


def test_status_of_a_healthy_agent_exits_0(agent: FakeAgent, run: Run) -> None:
    """All is well: exit 0, and the line of the kernel says what was written at the start."""
    agent.answers["GET", "/v1/status"] = (200, STATUS)
    status, out, _ = run("status")
    assert status == 0
    assert "realized 50 of 50, 5 rows, 0 failing, 0 written at start" in out


@pytest.mark.parametrize(
    ("mode", "shown"), [("tcx", "TCX"), ("clsact", "Legacy TC (clsact)"), ("", "not attached yet")]
)
def test_status_says_how_programs_are_attached(agent: FakeAgent, run: Run, mode: str, shown: str) -> None:
    """In a line of its own."""
    agent.answers["GET", "/v1/status"] = (200, STATUS | {"attach_mode": mode})
    lines = [line.split(None, 2) for line in run("status")[1].splitlines()]
    assert [line[2] for line in lines if line[:2] == ["Attach", "Mode:"]] == [shown]


def test_status_says_whose_sockets_are_translated(agent: FakeAgent, run: Run) -> None:
    """In the agent's words."""
    agent.answers["GET", "/v1/status"] = (200, STATUS | {"socket_lb": "all sockets in /sys/fs/cgroup/n1"})
    lines = run("status")[1].splitlines()
    assert [line.split(None, 2)[2] for line in lines if line.startswith("Socket LB:")] == [
        "all sockets in /sys/fs/cgroup/n1"
    ]


def test_status_without_etcd_says_since_when(agent: FakeAgent, run: Run) -> None:
    """The log is away: exit 1, and the line names the moment and the reason."""
    log = STATUS["log"] | {"connected": False, "unavailable_since": 1_700_000_000.0, "last_error": "refused"}
    served = STATUS | {"log": log, "health": "degraded", "problems": ["etcd is away"]}
    agent.answers["GET", "/v1/status"] = (200, served)
    status, out, _ = run("status")
    assert status == 1
    assert "Unavailable since 2023-11-1" in out


def test_status_brief_names_the_problem(agent: FakeAgent, run: Run) -> None:
    """--brief is one line for scripts."""
    agent.answers["GET", "/v1/status"] = (200, STATUS | {"health": "degraded", "problems": ["etcd is away"]})
    assert run("status", "--brief")[:2] == (1, "error in etcd is away\n")


def test_status_waits_until_ready(agent: FakeAgent, run: Run) -> None:
    """--wait asks again until the agent is well."""
    answers = iter([STATUS | {"ready": False, "health": "starting"}, STATUS])
    agent.answers["GET", "/v1/status"] = lambda body: (200, next(answers))
    assert run("status", "--wait", "--brief")[:2] == (0, "OK\n")


def test_status_wait_ends_with_the_reason(agent: FakeAgent, run: Run) -> None:
    """The time is over: exit 1 with what is not well."""
    agent.answers["GET", "/v1/status"] = (200, STATUS | {"health": "degraded", "problems": ["row refused"]})
    status, _, err = run("status", "--wait", "--timeout", "0")
    assert status == 1
    assert "row refused" in err


def test_verify_exits_1_where_digests_differ(agent: FakeAgent, run: Run) -> None:
    """A difference is a failure, and the row is named."""
    agent.answers["GET", "/v1/verify"] = (200, VERIFICATION)
    status, out, _ = run("verify")
    assert status == 1
    assert "ipcache prefix=10.1.0.5/32: missing in the kernel" in out


def test_verify_repair_posts(agent: FakeAgent, run: Run) -> None:
    """--repair asks for the repair and reports what is equal afterwards."""
    repaired = VERIFICATION | {"equal": True, "differences": [], "differences_total": 0, "repaired_rows": 1}
    agent.answers["POST", "/v1/repair"] = (200, repaired)
    status, _, err = run("verify", "--repair")
    assert status == 0
    assert "1 row repaired" in err


def result(**fields: Any) -> dict[str, Any]:
    """One object's result."""
    return {"source": "f:1", "kind": "Namespace", "namespace": "", "name": "shop", "accepted": True, "changed": True,
            "action": "created", "reason": "", "field": "", **fields}


def test_apply_sends_documents_with_their_place(agent: FakeAgent, run: Run, tmp_path: Path) -> None:
    """Each document goes with file and line, so that a refusal can name them."""
    (tmp_path / "a.yaml").write_text(MANIFEST)
    agent.answers["POST", "/v1/apply"] = (200, {"revision": 5, "results": [result()]})
    assert run("apply", "-f", str(tmp_path))[:2] == (0, "namespace/shop created\n")
    assert agent.asked[0][2]["documents"][0]["source"] == f"{tmp_path}/a.yaml:1"


def test_apply_names_the_field_that_is_refused(agent: FakeAgent, run: Run, tmp_path: Path) -> None:
    """A refusal: exit 1, with place, object, field and reason in one line."""
    (tmp_path / "a.yaml").write_text(MANIFEST)
    refused = result(accepted=False, action="rejected", reason="is not supported yet", field="spec.x")
    agent.answers["POST", "/v1/apply"] = (200, {"revision": 5, "results": [refused]})
    assert run("apply", "-f", str(tmp_path)) == (1, "", "f:1: namespace/shop refused: spec.x: is not supported yet\n")


@pytest.mark.parametrize("content", ["a: [1", "", "a: 1\na: 2\n"])
def test_apply_sends_nothing_if_a_file_is_broken(agent: FakeAgent, run: Run, tmp_path: Path, content: str) -> None:
    """An unreadable or empty manifest: exit 1, one message, and nothing was asked of the agent."""
    (tmp_path / "a.yaml").write_text(content)
    status, _, err = run("apply", "-f", str(tmp_path / "a.yaml"))
    assert (status, agent.asked) == (1, [])
    assert "a.yaml" in err


def test_apply_finds_the_cluster_by_name(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """--cluster asks the operator of that cluster, and a name that nobody here has is wrong usage."""
    monkeypatch.setattr(target, "LAB_ROOT", str(tmp_path))
    (tmp_path / "a.yaml").write_text(MANIFEST)
    operators = []
    for cluster in ("east", "west"):
        (tmp_path / cluster).mkdir()
        operators.append(FakeAgent(tmp_path / cluster / "operator.sock"))
        operators[-1].answers["GET", "/v1/status"] = (200, {"cluster": cluster})
        operators[-1].answers["POST", "/v1/apply"] = (200, {"revision": 5, "results": [result(source=cluster)]})
    try:
        answer = json.loads(run("apply", "-f", str(tmp_path / "a.yaml"), "--cluster", "west", "-o", "json")[1])
        assert answer["results"][0]["source"] == "west"
        assert run("apply", "-f", str(tmp_path / "a.yaml"), "--cluster", "north")[0] == 2
    finally:
        for operator in operators:
            operator.close()


def test_get_prints_one_named_object_as_it_is(agent: FakeAgent, run: Run) -> None:
    """A named object is printed alone, several in a List, as kubectl does."""
    document = {"kind": "Namespace", "metadata": {"name": "shop"}}
    agent.answers["GET", "/v1/get/namespace"] = (200, {"revision": 1, "documents": [document]})
    assert json.loads(run("get", "namespace", "shop", "-o", "json")[1]) == document
    assert json.loads(run("get", "namespace", "-o", "json")[1])["items"] == [document]


def test_get_shows_services_as_kubectl_does(agent: FakeAgent, run: Run) -> None:
    """Type, addresses and ports with their node ports."""
    spec = {"type": "LoadBalancer", "clusterIP": "10.96.0.9", "ports": [{"port": 80, "protocol": "TCP", "nodePort": 30001}]}
    document = {"kind": "Service", "metadata": {"name": "web", "namespace": "shop"}, "spec": spec}
    agent.answers["GET", "/v1/get/svc"] = (200, {"revision": 1, "documents": [document]})
    header, row = (line.split() for line in run("get", "svc", "-n", "shop")[1].splitlines())
    assert header == ["NAMESPACE", "NAME", "TYPE", "CLUSTER-IP", "EXTERNAL-IP", "PORT(S)"]
    assert row == ["shop", "web", "LoadBalancer", "10.96.0.9", "<pending>", "80:30001/TCP"]


def test_get_of_an_absent_object_exits_1(agent: FakeAgent, run: Run) -> None:
    """A name that is not there is a failure; an empty list is not."""
    agent.answers["GET", "/v1/get/pod"] = (200, {"revision": 1, "documents": []})
    assert run("get", "pod", "x")[0] == 1
    assert run("get", "pod")[0] == 0


def test_get_keeps_to_the_namespace(agent: FakeAgent, run: Run) -> None:
    """-n asks for one namespace, -A for all."""
    agent.answers["GET", "/v1/get/pod"] = (200, {"revision": 1, "documents": []})
    run("get", "pod", "-n", "shop")
    run("get", "pod", "-A")
    asked = [parse_qs(urlsplit(target).query).get("namespace", [""]) for _, target, _ in agent.asked]
    assert asked == [["shop"], [""]]


def serve_records(agent: FakeAgent, records: list[dict[str, Any]]) -> None:
    """/v1/log as NDJSON."""
    agent.answers["GET", "/v1/log"] = (200, b"".join(json.dumps(r).encode() + b"\n" for r in records))


def test_log_list_shows_one_record_per_row(agent: FakeAgent, run: Run) -> None:
    """Revision, writer and what happened, in the log's order."""
    serve_records(agent, RECORDS)
    lines = run("log", "list")[1].splitlines()
    assert [line.split()[0] for line in lines] == ["REVISION", "41", "42", "43"]
    assert lines[1].endswith("NodeJoined n1")


def test_log_follow_prints_records_as_lines(agent: FakeAgent, run: Run) -> None:
    """JSON output is one record per line, for pipes."""
    serve_records(agent, RECORDS)
    lines = run("log", "follow", "--after", "0", "-o", "json")[1].splitlines()
    assert [json.loads(line)["revision"] for line in lines] == [41, 42, 43]


def test_a_stream_that_fails_midway_is_a_failure(agent: FakeAgent, run: Run) -> None:
    """A line that is an error ends the command with 1 and the reason."""
    serve_records(agent, [RECORDS[0], {"error": "the log is away"}])
    status, _, err = run("log", "list")
    assert (status, err) == (1, "meshlog: the log is away\n")


def test_log_show_prints_the_whole_record(agent: FakeAgent, run: Run) -> None:
    """As YAML unless asked otherwise."""
    agent.answers["GET", "/v1/log/41"] = (200, RECORDS[0])
    assert "revision: 41" in run("log", "show", "41")[1]


NOTIFICATIONS: list[dict[str, Any]] = [
    {"type": "drop", "reason": "Policy denied", "reason_code": 133, "protocol": "TCP", "source": "10.1.0.5",
     "source_port": 4, "source_identity": 7, "source_name": "shop/cart", "target": "10.1.0.6", "target_port": 80,
     "target_identity": 8, "endpoint_id": 3, "ifindex": 9, "tcp_flags": "SYN"},
    {"type": "verdict", "verdict": "allow", "direction": "ingress", "protocol": "TCP", "source": "::1",
     "target": "::2"},
    {"type": "lost", "lost": 4},
]


def serve_notifications(agent: FakeAgent) -> None:
    """/v1/monitor as NDJSON."""
    agent.answers["GET", "/v1/monitor"] = (200, b"".join(json.dumps(n).encode() + b"\n" for n in NOTIFICATIONS))


def test_monitor_reads_as_in_cilium(agent: FakeAgent, run: Run) -> None:
    """A drop names reason, endpoint, identities and both sides."""
    serve_notifications(agent)
    out = run("monitor", "-t", "drop")[1]
    assert out == (
        "xx drop (Policy denied) to endpoint 3, ifindex 9, identity 7->8: "
        "10.1.0.5:4 (shop/cart) -> 10.1.0.6:80 tcp SYN\n"
    )


def test_monitor_keeps_to_the_types_asked_for(agent: FakeAgent, run: Run) -> None:
    """-t policy-verdict leaves drops out."""
    serve_notifications(agent)
    out = run("monitor", "-t", "policy-verdict", "-o", "json")[1]
    assert [json.loads(line)["type"] for line in out.splitlines()] == ["verdict"]


def test_monitor_says_what_was_lost(agent: FakeAgent, run: Run) -> None:
    """Lost notifications are never passed over in silence."""
    serve_notifications(agent)
    assert "NOTIFICATIONS LOST: 4" in run("monitor")[2]


def test_mesh_status_has_one_line_per_node_and_says_what_is_wrong(agent: FakeAgent, run: Run) -> None:
    """Numbers in columns, problems and nodes that left as lines below, the summary apart; exit 1 as one is behind."""
    agent.answers["GET", "/v1/mesh"] = (200, STANDING)
    status, out, err = run("mesh", "status")
    lines = [line.split() for line in out.splitlines()]
    assert (status, lines[1]) == (1, ["east/n1", "in", "sync", "50", "0", "0", "equal", "1.5", "s", "ago"])
    assert lines[2] == ["east/n2", "NOT", "IN", "SYNC", "47", "3", "12", "unknown", "-"]
    assert out.splitlines()[3:] == ["east/n2: behind for 12 s", "west/w9: left at revision 44: no session"]
    assert err == "In sync with revision 50: east 1 of 2; the greatest lag is 3 records, 12 s.\n"
    assert max(map(len, out.splitlines())) <= 100


def test_mesh_status_waits_for_the_revision_that_was_newest(
    agent: FakeAgent, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every node must hold what the log held at the first answer, not what came since."""
    monkeypatch.setattr(mesh, "PAUSE_S", 0.01)
    def at(revision: int, *realized: int) -> dict[str, Any]:
        nodes = [{**STANDING["nodes"][0], "node": f"n{place}", "realized": each} for place, each in enumerate(realized)]
        return {**STANDING, "revision": revision, "in_sync": True, "nodes": nodes}
    answers = iter([at(50, 50, 49), at(60, 50, 50), at(70, 50, 51)])
    agent.answers["GET", "/v1/mesh"] = lambda _: (200, next(answers))
    status, out, err = run("mesh", "status", "--wait", "-o", "json")
    assert (status, json.loads(out)["revision"]) == (0, 70)
    assert err == "waiting for revision 50: east/n1: realized 49\n"


def test_mesh_status_that_waited_in_vain_says_for_what(agent: FakeAgent, run: Run) -> None:
    """Exit 1, one last line with the node and its problem."""
    agent.answers["GET", "/v1/mesh"] = (200, STANDING)
    status, _, err = run("mesh", "status", "--wait", "--timeout", "0")
    assert (status, err) == (1, "meshlog: not in sync through revision 50 after 0 s: east/n2: behind for 12 s\n")
