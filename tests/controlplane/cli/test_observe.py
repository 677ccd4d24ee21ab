"""`observe`: Hubble's filters, forms and habits, over notifications as an agent tells them."""

import io
import json
from typing import Any

import pytest

from controlplane.cli.flow_forms import Form, written
from controlplane.cli.flow_shape import Flow, flow_of, time_ns
from controlplane.cli.why import flow_of_line
from tests.controlplane.cli.conftest import Run
from tests.controlplane.cli.fake_agent import FakeAgent

START_NS = 1_777_898_828_811_000_000
CART, PAY = ("east", "shop/cart", 65792, ("k8s:app=cart", "k8s:tier=web")), ("east", "bank/pay-1", 65793, ("k8s:app=pay",))
DENIED = {"reason": "Policy denied", "reason_code": 133, "reason_name": "POLICY_DENIED"}


def told(number: int, **fields: Any) -> dict[str, Any]:
    """The n-th notification: cart asks pay at TCP port 8080, and may."""
    ends = {"source": CART, "target": PAY}
    found: dict[str, Any] = {
        "type": "verdict", "wall_time_ns": START_NS + number * 1_000_000_000, "cluster": "east", "node": "n1",
        "verdict": "allow", "direction": "ingress", "match": "L3-L4", "protocol": "TCP", "source": "10.1.0.5",
        "source_port": 40000 + number, "target": "10.2.0.6", "target_port": 8080, "endpoint_id": 7, "tcp_flags": "SYN",
        "policy_epoch": 41,
    }  # fmt: skip
    for side, (cluster, name, identity, labels) in ends.items():
        found |= {f"{side}_cluster": cluster, f"{side}_name": name, f"{side}_identity": identity,
                  f"{side}_labels": list(labels)}  # fmt: skip
    return found | fields


TOLD = [
    told(0),
    told(1, type="drop", verdict="deny", **DENIED),
    told(2, protocol="UDP", tcp_flags="", target_port=53, node="n2"),
    told(3, type="drop", verdict="deny", target="192.0.2.1", target_name="", target_cluster="", target_identity=2,
         target_labels=["reserved:world"], **DENIED),
    told(4, protocol="ICMP", source_port=0, target_port=8 << 8, source="fd00::5", target="fd00::6", tcp_flags=""),
]  # fmt: skip
"""Allowed; denied; UDP on node n2; denied to the world; a ping over "IPv6"."""


@pytest.fixture
def observe(agent: FakeAgent, run: Run) -> Any:
    """Runs the command; the source ports of what is shown, less 40000 (the ping has none: -40000)."""
    body = b"".join(json.dumps(each).encode() + b"\n" for each in [*TOLD, {"type": "now"}])
    agent.answers["GET", "/v1/monitor"] = (200, body)

    def call(*words: str) -> list[int]:
        status, out, err = run("observe", "-o", "json", *words)
        assert status == 0, err
        flows = [json.loads(line)["flow"] for line in out.splitlines()]
        return [TOLD.index(next(each for each in TOLD if time_ns(flow) == each["wall_time_ns"])) for flow in flows]

    return call


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        ("", [0, 1, 2, 3, 4]),
        ("--last 2", [3, 4]),
        ("--first 2", [0, 1]),
        ("--last 1 --verdict FORWARDED", [4]),
        ("--verdict DROPPED", [1, 3]),
        ("--verdict dropped --not --to-identity world", [1]),
        ("--verdict DROPPED --verdict FORWARDED --protocol udp", [2]),
        ("--protocol icmp", [4]),
        ("--port 8080", [0, 1, 3]),
        ("--from-port 8080", []),
        ("--to-port 53", [2]),
        ("--ip 192.0.2.0/24", [3]),
        ("--to-ip 10.0.0.0/8", [0, 1, 2]),
        ("--from-ip fd00::/16", [4]),
        ("--pod shop/cart --to-pod bank/pay", [0, 1, 2, 4]),
        ("--to-pod shop/cart", []),
        ("--pod pay-1", []),
        ("--pod bank/", [0, 1, 2, 4]),
        ("-n bank", [0, 1, 2, 4]),
        ("--from-namespace bank", []),
        ("-l app=pay", [0, 1, 2, 4]),
        ("--from-label k8s:app=cart,tier!=db", [0, 1, 2, 3, 4]),
        ("--to-label !app", [3]),
        ("--identity 65793", [0, 1, 2, 4]),
        ("--identity reserved:world", [3]),
        ("-t drop:133", [1, 3]),
        ("-t policy-verdict", [0, 2, 4]),
        ("--drop-reason-desc policy_denied --drop-reason-desc 181", [1, 3]),
        ("--node-name n2", [2]),
        ("--node-name east/n? --not --node-name west/", [0, 1, 2, 3, 4]),
        ("-6", [4]),
        ("--not --verdict DROPPED --not --protocol UDP", [0, 4]),
        ("--since 2026-05-04T12:47:11Z", [3, 4]),
        ("--until 2026-05-04T12:47:09Z", [0]),
        ("--since 1m", []),
    ],
)
def test_filters_choose_as_hubbles_do(observe: Any, words: str, shown: list[int]) -> None:
    """One kind twice is either, two kinds are both, --not leaves out, and --last counts what is left."""
    assert observe(*words.split()) == shown


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--not", "--not"),
        ("--verdict LOST", "right is one of FORWARDED"),
        ("--port 99999", "1 to 65535"),
        ("--ip 10.1.0", "an address or a prefix"),
        ("--identity shop", "a number, or one of host"),
        ("--label =x", "KEY=VALUE"),
        ("-t drop:x", "drop:NUMBER"),
        ("--since 42", "no revisions"),
        ("--since soon", "--since soon"),
        ("--last 3 --all", "give one of them"),
        ("-f --until 1m", "has no end"),
        ("-f -o table", "-o compact"),
    ],
)
def test_what_cannot_be_meant_is_refused(agent: FakeAgent, run: Run, words: str, said: str) -> None:
    """With the flag, and what would be right; nobody is asked."""
    status, _, err = run("observe", *words.split())
    assert status == 2 and said in err
    assert not agent.asked


def line(number: int, **form: Any) -> str:
    """One flow as printed."""
    return written(flow_of(TOLD[number]), Form(**form)).partition(": ")[2]


def test_lines_are_those_in_hubbles_users_fingers() -> None:
    """Ends with port and identity, what told it, the verdict, the summary; ours is the revision at the end."""
    assert line(0) == (
        "shop/cart:40000 (ID:65792) -> bank/pay-1:8080 (ID:65793) policy-verdict:L3-L4 INGRESS ALLOWED "
        "(TCP Flags: SYN) revision 41"
    )
    assert line(1).endswith("(ID:65793) Policy denied (133) DROPPED (TCP Flags: SYN) revision 41")
    assert "<> 192.0.2.1:8080 (world)" in line(3)
    assert line(4, numeric=True).startswith("fd00::5 (ID:65792) -> fd00::6 (ID:65793)")
    assert "ALLOWED (ICMPv4 EchoRequest)" in line(4)


def test_json_has_hubbles_fields() -> None:
    """One GetFlowsResponse; what Hubble has no field for stands in an extension."""
    found = json.loads(written(flow_of(TOLD[1]), Form("jsonpb")))
    flow = found["flow"]
    assert found["node_name"] == "east/n1" and found["time"] == flow["time"] == "2026-05-04T12:47:09.811000000Z"
    assert (flow["verdict"], flow["drop_reason"], flow["drop_reason_desc"]) == ("DROPPED", 133, "POLICY_DENIED")
    assert flow["l4"] == {"TCP": {"source_port": 40001, "destination_port": 8080, "flags": {"SYN": True}}}
    assert flow["destination"] == {
        "ID": 7, "identity": 65793, "cluster_name": "east", "namespace": "bank", "labels": ["k8s:app=pay"],
        "pod_name": "pay-1",
    }  # fmt: skip
    assert flow["event_type"] == {"type": 1, "sub_type": 133}
    assert flow["extensions"]["value"]["policy_epoch"] == 41


def test_a_table_and_dictionaries_say_the_same(agent: FakeAgent, run: Run, observe: Any) -> None:
    """Every form names the reason of a drop by its number."""
    table = run("observe", "-o", "table", "--verdict", "DROPPED")[1].splitlines()
    assert table[0].split() == ["TIMESTAMP", "NODE", "SOURCE", "DESTINATION", "TYPE", "VERDICT", "SUMMARY", "REVISION"]
    assert len(table) == 3 and "Policy denied (133)" in table[1]
    assert "DROP REASON: 133 POLICY_DENIED" in run("observe", "-o", "dict", "--verdict", "DROPPED")[1]


def test_a_saved_file_is_shown_again(
    run: Run, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ours and Hubble's, without an agent, all of it; what is no flow is named by its line."""
    lines = [written(flow_of(each), Form("json")) for each in TOLD]
    path = tmp_path / "flows.json"
    path.write_text("\n".join([*lines, json.dumps({"IP": {"source": "10.0.0.1", "destination": "10.0.0.2"}})]) + "\n")
    assert len(run("observe", "--input-file", str(path), "-o", "json")[1].splitlines()) == len(TOLD) + 1
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(lines)))
    assert len(run("observe", "--input-file", "-", "--verdict", "DROPPED")[1].splitlines()) == 2
    path.write_text("{}\n")
    status, _, err = run("observe", "--input-file", str(path))
    assert status == 1 and f"{path}:1: no flow" in err


def test_following_goes_on_behind_what_is_known(agent: FakeAgent, run: Run) -> None:
    """First what was asked of the past, then everything that comes; what was lost is said, and why hinted at once."""
    lines = [*TOLD[:2], {"type": "now"}, {"type": "lost", "lost": 4}, *TOLD[2:]]
    agent.answers["GET", "/v1/monitor"] = (200, b"".join(json.dumps(each).encode() + b"\n" for each in lines))
    _, out, err = run("observe", "-f", "--last", "1")
    assert len(out.splitlines()) == 1 + len(TOLD[2:])
    assert agent.asked[-1][1] == "/v1/monitor?recent=1&follow=1"
    assert err.count("NOTIFICATIONS LOST: 4") == 1 and err.count("meshlog why -") == 1


@pytest.mark.parametrize("number", range(len(TOLD)))
def test_why_understands_a_flow(number: int) -> None:
    """The line of `observe -o json` asks the same as that of `monitor -o json`."""
    found = TOLD[number]
    shape: Flow = json.loads(written(flow_of(found), Form("json")))
    asked = flow_of_line(json.dumps(shape))
    plain = flow_of_line(json.dumps(found))
    assert asked == {name: str(value) for name, value in plain.items()}
