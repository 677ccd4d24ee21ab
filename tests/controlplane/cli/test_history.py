"""Flags about the past, and reading lines of the monitor."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlplane.cli.bisect import first_failing
from controlplane.cli.errors import UsageError
from controlplane.cli.monitor import line
from controlplane.cli.why import flow_of_line
from tests.controlplane.cli.conftest import Run
from tests.controlplane.cli.fake_agent import FakeAgent

DROP = {
    "type": "drop", "reason": "Policy denied", "protocol": "TCP", "source": "10.1.0.5", "source_port": 40000,
    "source_name": "shop/cart", "target": "10.1.0.7", "target_port": 80, "target_name": "shop/db", "tcp_flags": "SYN",
}  # fmt: skip
FLOW = {"from": "ip:10.1.0.5", "to": "ip:10.1.0.7", "port": "80/TCP"}


def listing(agent: FakeAgent, kind: str, revision: int) -> None:
    """An empty one."""
    agent.answers["GET", f"/v1/list/{kind}"] = (
        200, {"kind": kind, "revision": revision, "items": [], "time": "2026-05-01T12:00:00.000Z"}
    )  # fmt: skip


@pytest.mark.parametrize("words", [("--at", "-10m"), ("--at=-10m",)])
def test_the_point_is_asked_for_and_the_revision_said(agent: FakeAgent, run: Run, words: tuple[str, ...]) -> None:
    """Both ways to write it reach the agent; the revision used stands on standard error only."""
    listing(agent, "node", 41)
    _, out, err = run("node", "list", *words, "-o", "json")
    assert agent.asked[-1][1] == "/v1/list/node?at=-10m"
    assert (json.loads(out), err) == ([], "at revision 41 (2026-05-01T12:00:00.000Z)\n")


def test_the_environment_gives_the_point(agent: FakeAgent, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """MESHLOG_AT holds where no flag is given; a command about now refuses under it."""
    listing(agent, "node", 41)
    monkeypatch.setenv("MESHLOG_AT", "41")
    run("node", "list")
    assert agent.asked[-1][1] == "/v1/list/node?at=41"
    status, _, err = run("status")
    assert (status, "MESHLOG_AT is set" in err) == (2, True)


def test_log_filters_reach_the_agent(agent: FakeAgent, run: Run) -> None:
    """Each filter by its own name."""
    agent.answers["GET", "/v1/log"] = (200, b"")
    run("log", "list", "--kind", "policy", "--on", "n1", "--since", "-1h", "--cause", "7", "-n", "shop")
    asked = agent.asked[-1][1]
    assert all(part in asked for part in ("kind=policy", "node=n1", "since=-1h", "cause=7", "namespace=shop"))


@pytest.mark.parametrize("text", [line(DROP), json.dumps(DROP)])
def test_lines_of_the_monitor_are_understood(text: str) -> None:
    """As text and as JSON, as `meshlog monitor` prints them."""
    assert flow_of_line(text) == {**FLOW, "reason": "Policy denied"}


def test_lines_of_the_monitor_about_ipv6_are_understood() -> None:
    """Addresses stand in brackets there."""
    drop = {**DROP, "source": "fd00:1::5", "target": "fd00:1::7"}
    found = flow_of_line(line(drop))
    assert {name: found[name] for name in FLOW} == {"from": "ip:fd00:1::5", "to": "ip:fd00:1::7", "port": "80/TCP"}


def test_what_else_a_line_says_is_asked_with_it() -> None:
    """Reason, identities and epoch, of the text too; the node only of JSON, which has it."""
    drop = {**DROP, "source_identity": 2, "target_identity": 65793, "policy_epoch": 41, "endpoint_id": 3}
    told = {"reason": "Policy denied", "source_identity": 2, "target_identity": 65793, "epoch": 41}
    assert flow_of_line(line(drop)) == FLOW | {name: str(value) for name, value in told.items()}
    in_json = json.dumps({**drop, "cluster": "east", "node": "n1"})
    assert flow_of_line(in_json) == FLOW | told | {"node": "east/n1"}


@pytest.mark.parametrize("text", [
    "xx drop (Policy denied) flow 0x0 to endpoint 3, identity 7->8: 10.1.0.5 -> 10.1.0.7 icmp type 8 code 0",
    line({**DROP, "protocol": "ICMP", "source_port": 0, "target_port": 8 << 8, "tcp_flags": ""}),
    json.dumps({**DROP, "protocol": "ICMP", "source_port": 0, "target_port": 8 << 8}),
])  # fmt: skip
def test_lines_about_icmp_are_understood(text: str) -> None:
    """The type is what policies are asked about, as the programs' own lines, the monitor's and JSON have it."""
    assert flow_of_line(text)["port"] == "8/ICMP"


@pytest.mark.parametrize("text", ["", "nonsense", "{}", '{"source": 3}', "{"])
def test_other_lines_are_refused(text: str) -> None:
    """With what would be right."""
    with pytest.raises(UsageError):
        flow_of_line(text)


@given(st.integers(2, 200).flatmap(lambda size: st.tuples(st.just(size), st.integers(1, size - 1))))
def test_bisect_finds_the_first_that_fails(drawn: tuple[int, int]) -> None:
    """Of any history with one change from holding to failing, in no more checks than halving needs."""
    size, bad = drawn
    asked: list[int] = []

    def fails(revision: int) -> bool:
        asked.append(revision)
        return revision >= bad

    assert list(first_failing(range(size), fails)) == [bad]
    assert len(asked) <= size.bit_length()


@given(st.integers(2, 40), st.data())
def test_bisect_passes_over_what_the_check_cannot_say(size: int, data: st.DataObject) -> None:
    """The answer is one revision, or those that no check could tell apart; the right one is always among them."""
    bad = data.draw(st.integers(1, size - 1))
    unsaid = data.draw(st.sets(st.integers(1, size - 1)))
    found = list(first_failing(range(size), lambda revision: None if revision in unsaid else revision >= bad))
    assert bad in found
    assert set(found[:-1]) <= unsaid


def test_a_directory_that_is_not_there_is_one_line(agent: FakeAgent, run: Run, tmp_path: Path) -> None:
    """`capsule open` of no file says which."""
    status, _, err = run("capsule", "open", str(tmp_path / "none"), "--", "node", "list")
    assert (status, err) == (1, f"meshlog: {tmp_path / 'none'}: No such file or directory\n")


EXPLAINED = {
    "revision": 41, "time": "2026-05-01T12:00:00.000Z", "verdict": "allow", "reasons": ["egress: allow"], "port": "80/TCP",
    "source": {"text": "shop/cart", "what": "endpoint", "identity": 65792, "labels": [], "address": "10.1.0.5"},
    "target": {"text": "service:shop/db", "what": "service", "identity": 0, "labels": [], "address": "172.1.0.10"},
    "sides": [{}], "evidence": [], "notes": [], "paths": [],
}  # fmt: skip
MET = {"node": "east/n1", "table": "policy_subjects", "key": "65792", "row": {"egress_enforced": 0}}


@pytest.mark.parametrize(
    ("done", "agrees", "status", "said"),
    [("allow", True, 0, "as explained"), ("deny", True, 1, "NOT as explained"), ("allow", False, 1, "NOT as explained")],
)
def test_the_programs_are_asked_what_was_explained(
    agent: FakeAgent, run: Run, done: str, agrees: bool, status: int, said: str
) -> None:
    """At the same revision, of a service by its address; what they do otherwise is exit status 1."""
    programs = {"verdict": done, "way": ["east/n1 from_endpoint"], "egress": done, "rows": [MET]}
    agent.answers["GET", "/v1/why"] = (200, EXPLAINED)
    agent.answers["POST", "/v1/verdict/datapath"] = (200, {"answers": [{"datapath": programs, "agrees": agrees}]})
    words = ("why", "--from", "shop/cart", "--to", "service:shop/db", "--port", "80/TCP", "--datapath", "--at=-10m")
    code, out, _ = run(*words)
    method, path, body = agent.asked[-1]
    assert (method, path) == ("POST", "/v1/verdict/datapath?at=41")
    assert body == {"flows": [{"from": "shop/cart", "to": "ip:172.1.0.10", "l4": "TCP/80"}]}
    assert code == status and f"Programs: {done.capitalize()}, {said}" in out
    assert ["east/n1", "policy_subjects", "65792", "egress_enforced=0"] in [line.split() for line in out.splitlines()]
    assert json.loads(run(*words, "-o", "json")[1])["agrees"] is (status == 0)


def test_a_flow_without_a_packet_is_no_difference(agent: FakeAgent, run: Run) -> None:
    """It says why there is none."""
    agent.answers["GET", "/v1/why"] = (200, EXPLAINED)
    agent.answers["POST", "/v1/verdict/datapath"] = (200, {"answers": [{"datapath": {"error": "no address"}}]})
    code, out, _ = run("why", "--from", "shop/cart", "--to", "service:shop/db", "--port", "80/TCP", "--datapath")
    assert (code, "Programs: not asked: no address" in out) == (0, True)
    assert run("why", "map", "ipcache", "10.1.0.5", "--datapath")[0] != 0
