"""`meshlog apply --offline` and `--replace`, `name`, `policy selectors|settings|lint`, `verdict` of a running mesh."""

import json
from pathlib import Path

import pytest

from controlplane.cli.main import main
from tests.controlplane.cli.fake_agent import FakeAgent

POLICY = """
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {{name: {name}, namespace: shop}}
spec: {{endpointSelector: {{}}, ingress: [{{{rule}}}]}}
---
"""


@pytest.fixture
def manifests(tmp_path: Path) -> str:
    """One good policy and one with a fault."""
    path = tmp_path / "policies.yaml"
    bad = POLICY.format(name="bad", rule="fromCIDR: [nowhere]")
    path.write_text(POLICY.format(name="good", rule="fromCIDR: [10.0.0.0/8]") + bad)
    return str(path)


def test_offline_checks_without_a_mesh(manifests: str, capsys: pytest.CaptureFixture[str]) -> None:
    """One result per object, the refused one with its field, exit status 1."""
    assert main(["apply", "-f", manifests, "--offline", "-o", "json"]) == 1
    results = json.loads(capsys.readouterr().out)["results"]
    assert [(each["name"], each["accepted"], each["field"]) for each in results] == [
        ("good", True, ""),
        ("bad", False, "spec.ingress[0].fromCIDR[0]"),
    ]


def test_offline_checks_under_the_settings_of_a_mesh(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A policy that asks for one is accepted with it alone; a running mesh has its own."""
    path, settings = tmp_path / "nodes.yaml", tmp_path / "settings.json"
    path.write_text(POLICY.format(name="nodes", rule="fromNodes: [{matchLabels: {role: gpu}}]"))
    settings.write_text('{"enable-node-selector-labels": true}')
    words = ["apply", "-f", str(path), "--offline"]
    assert main(words) == 1
    assert "spec.ingress[0].fromNodes[0]" in capsys.readouterr().err
    assert main([*words, "--settings", str(settings)]) == 0
    assert main([*words[:-1], "--settings", str(settings)]) == 2
    assert "--settings is for --offline" in capsys.readouterr().err


def test_replace_takes_out_what_is_not_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """After everything was accepted; of each kind, what is in force and not in the set is deleted."""
    path = tmp_path / "policy.yaml"
    path.write_text(POLICY.format(name="good", rule=""))
    held = [
        {"kind": "CiliumNetworkPolicy", "metadata": {"name": name, "namespace": "shop"}} for name in ("good", "old")
    ]
    answer = {
        "kind": "CiliumNetworkPolicy",
        "namespace": "shop",
        "name": "good",
        "accepted": True,
        "action": "unchanged",
    }
    agent = FakeAgent(tmp_path / "agent.sock")
    try:
        agent.answers["POST", "/v1/apply"] = (200, {"revision": 1, "results": [answer]})
        agent.answers["POST", "/v1/delete"] = (200, {"revision": 2, "results": []})
        for kind in ("NetworkPolicy", "CiliumClusterwideNetworkPolicy", "CiliumCIDRGroup"):
            agent.answers["GET", f"/v1/get/{kind}"] = (200, {"documents": []})
        agent.answers["GET", "/v1/get/CiliumNetworkPolicy"] = (200, {"documents": held})
        assert main(["apply", "-f", str(path), "--replace", "--socket", str(agent.path)]) == 0
        (body,) = [body for method, target, body in agent.asked if target.startswith("/v1/delete")]
    finally:
        agent.close()
    assert [each["document"]["metadata"]["name"] for each in body["documents"]] == ["old"]
    assert "good" in capsys.readouterr().out


def test_replace_answers_in_one_document(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What was applied and what was taken out together, and the revision at which all of it is in force."""
    path = tmp_path / "policy.yaml"
    path.write_text(POLICY.format(name="good", rule=""))
    result = {"kind": "CiliumNetworkPolicy", "namespace": "shop", "accepted": True, "reason": ""}
    agent = FakeAgent(tmp_path / "agent.sock")
    try:
        agent.answers["POST", "/v1/apply"] = (200, {"revision": 1, "results": [{**result, "name": "good"}]})
        agent.answers["POST", "/v1/delete"] = (200, {"revision": 2, "results": [{**result, "name": "old"}]})
        for kind in ("NetworkPolicy", "CiliumClusterwideNetworkPolicy", "CiliumCIDRGroup"):
            agent.answers["GET", f"/v1/get/{kind}"] = (200, {"documents": []})
        held = {"kind": "CiliumNetworkPolicy", "metadata": {"name": "old", "namespace": "shop"}}
        agent.answers["GET", "/v1/get/CiliumNetworkPolicy"] = (200, {"documents": [held]})
        assert main(["apply", "-f", str(path), "--replace", "--socket", str(agent.path), "-o", "json"]) == 0
    finally:
        agent.close()
    answer = json.loads(capsys.readouterr().out)
    assert (answer["revision"], [each["name"] for each in answer["results"]]) == (2, ["good", "old"])


def test_lint_asks_the_running_mesh(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without manifests; exit status 1 where something was found."""
    agent = FakeAgent(tmp_path / "agent.sock")
    try:
        found = {"policy": "NetworkPolicy/shop/p", "where": "spec", "reason": "selects no endpoint: app=x"}
        agent.answers["GET", "/v1/policy/lint"] = (200, {"revision": 3, "items": [found]})
        assert main(["policy", "lint", "--socket", str(agent.path)]) == 1
    finally:
        agent.close()
    assert "selects no endpoint" in capsys.readouterr().out


def test_endpoint_config_changes_and_shows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`endpoint config ID PolicyAuditMode=Enabled`; what is no option is refused with those that are."""
    item = {"cluster": "east", "namespace": "shop", "workload": "x", "configured_audit": True}
    agent = FakeAgent(tmp_path / "agent.sock")
    try:
        agent.answers["GET", "/v1/policy/endpoint"] = (200, {"revision": 3, "items": [{"endpoint": item}]})
        agent.answers["POST", "/v1/policy/endpoint"] = (200, {"revision": 4, "changed": True})
        words, where = ["endpoint", "config", "shop/x"], ["--socket", str(agent.path)]
        assert main([*words, "PolicyAuditMode=Enabled", *where]) == 0
        assert capsys.readouterr().out.splitlines()[-1].split() == ["east:shop/x", "Enabled"]
        assert main([*words, "PolicyAudit=Enabled", *where]) == 2
        assert "PolicyAuditMode, =Enabled or =Disabled" in capsys.readouterr().err
    finally:
        agent.close()


def test_endpoint_get_shows_rules_and_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The endpoint's line, then a line for each rule; a rule without rows says so."""
    item = {
        "endpoint_id": 7, "ingress_enforced": True, "egress_enforced": False, "identity": 65793, "labels": ["k8s:app=x"],
        "ipv6": "", "ipv4": "10.1.0.7", "state": "ready", "cluster": "east", "node": "n1", "namespace": "shop",
        "workload": "x", "device": "ml1",
    }  # fmt: skip
    rule = {
        "policy": "NetworkPolicy/shop/p", "path": "spec.ingress[0]", "direction": "ingress", "verdict": "allow",
        "peers": ["any"], "ports": ["80/TCP"], "rows": [],
    }  # fmt: skip
    agent = FakeAgent(tmp_path / "agent.sock")
    try:
        answer = {"revision": 3, "items": [{"endpoint": item, "identity": 65793, "rules": [rule], "rows": []}]}
        agent.answers["GET", "/v1/policy/endpoint"] = (200, answer)
        assert main(["endpoint", "get", "shop/x", "--socket", str(agent.path)]) == 0
    finally:
        agent.close()
    out = capsys.readouterr().out
    assert "10.1.0.7" in out and "spec.ingress[0]" in out and "no row" in out


def test_a_running_mesh_is_asked_without_manifests(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The flows go to the agent, its answers come out."""
    flows = [{"from": "shop/a", "to": "shop/b", "l4": "TCP/80"}]
    (tmp_path / "flows.json").write_text(json.dumps(flows))
    agent = FakeAgent(tmp_path / "agent.sock")
    try:
        agent.answers["POST", "/v1/verdict"] = (200, {"revision": 7, "answers": [{"verdict": "allow", "by": []}]})
        words = ["verdict", "-f", str(tmp_path / "flows.json"), "--socket", str(agent.path), "-o", "json"]
        assert main(words) == 0
        assert agent.asked[-1][2] == {"flows": flows}
    finally:
        agent.close()
    assert json.loads(capsys.readouterr().out) == [{"verdict": "allow", "by": []}]


def test_lint_names_what_has_no_effect(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A selector without endpoints, a group that is not there, an allow below a deny, a port that nobody names."""
    rules = "fromCIDRSet: [{cidrGroupRef: nobody}]}, {toPorts: [{ports: [{port: web}]}]"
    text = POLICY.format(name="idle", rule=rules)
    (tmp_path / "all.yaml").write_text(text.replace("ingress:", "ingressDeny: [{fromEntities: [all]}], ingress:"))
    assert main(["policy", "lint", "--manifests", str(tmp_path), "-o", "json"]) == 1
    reasons = "\n".join(each["reason"] for each in json.loads(capsys.readouterr().out))
    for part in ("selects no endpoint", "no CiliumCIDRGroup is called nobody", "names a port web", "allows nothing"):
        assert part in reasons


def test_lint_names_labels_that_identities_leave_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By the setting, or by default; in the subject and in rules, whoever has the label."""
    pod = "{apiVersion: v1, kind: Pod, metadata: {name: x, namespace: shop, labels: {app: x, team: a}}, spec: {}}"
    text = POLICY.format(name="p", rule="fromEndpoints: [{matchLabels: {team: a, pod-template-hash: x}}]")
    (tmp_path / "all.yaml").write_text(
        text.replace("endpointSelector: {}", "endpointSelector: {matchLabels: {app: x}}") + pod
    )
    (tmp_path / "settings.yaml").write_text("labels: k8s:!team")
    directory = tmp_path / "manifests"
    directory.mkdir()
    (tmp_path / "all.yaml").rename(directory / "all.yaml")
    lint = ["policy", "lint", "--manifests", str(directory), "-o", "json"]
    for more, left_out in (
        ([], ["pod-template-hash"]),
        (["--settings", str(tmp_path / "settings.yaml")], ["pod-template-hash", "team"]),
    ):
        assert main([*lint, *more]) == 1
        found = [each["reason"] for each in json.loads(capsys.readouterr().out)]
        assert [each for each in found if "identity has a label" in each] == [
            f"no identity has a label any:{key}: setting labels leaves it out, or does so by default"
            for key in left_out
        ]
