"""What changed policies would newly allow or deny: recorded flows and pairs, against the verdicts of the mesh itself."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from controlplane import events as e
from controlplane.cli.main import main
from controlplane.commands.addresses import ChangeSettings
from controlplane.desired.policy_mesh import mesh_of
from controlplane.history.capsule import pack
from controlplane.history.flows import FlowSummary
from controlplane.history.pairs import compare_pairs
from controlplane.history.what_if import Asked, WhatIf, changed, what_if
from controlplane.policy.manifests import canonical
from controlplane.policy.mesh import Judge, Question
from tests.controlplane.history.past import shop
from tests.controlplane.history.test_capsule import asked, capsule_of
from tests.controlplane.history.test_flows import DENIED, table, told
from tests.controlplane.history.test_why import OPERATOR, apply_policy
from tests.controlplane.policy.worlds import cilium_policy
from tests.controlplane.random_mesh import Log
from tests.controlplane.small_mesh import accept, add_endpoint

NOW_NS = 1_000_000_000_000
DB_FROM_CART = """{podSelector: {matchLabels: {app: db}}, policyTypes: [Ingress],
  ingress: [{from: [{podSelector: {matchLabels: {app: cart}}}], ports: [{port: 5432, protocol: TCP}]}]}"""


def manifest(spec: str, name: str = "guard") -> dict[str, Any]:
    return {
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"name": name, "namespace": "shop"}, "spec": yaml.safe_load(spec),
    }  # fmt: skip


def recorded(log: Log, *flows: Any) -> FlowSummary:
    seen = table()
    for place, flow in enumerate(flows, 1):
        seen.take(log.state, [(flow, 1)], place)
    return seen.summary("east", "n1", 99)


def ask(log: Log, *documents: Any, flows: tuple[FlowSummary, ...] = (), **fields: bool) -> WhatIf:
    return what_if(log.state, 0, Asked("east", documents, **fields), flows, 0, NOW_NS)


def test_a_new_policy_denies_what_really_happened() -> None:
    """Of the recorded flows those that it closes are named, with the policy; those that it allows are not."""
    log = shop()
    flows = recorded(log, told(log, "cart", "db", 5432), told(log, "front", "db", 5432), told(log, "cart", "db", 22))
    answer = ask(log, manifest(DB_FROM_CART), flows=(flows,))
    assert [each.action for each in answer.policies] == ["created"]
    assert {(each.source, each.target, each.port, each.before, each.after, *each.by) for each in answer.flows} == {
        ("east:shop/front", "east:shop/db", "5432/TCP", "allow", "deny", "NetworkPolicy/shop/guard"),
        ("east:shop/cart", "east:shop/db", "22/TCP", "allow", "deny", "NetworkPolicy/shop/guard"),
    }  # fmt: skip
    assert answer.flows_judged == 3


def test_the_mesh_s_settings_count() -> None:
    """What may be said only under one is refused without it; with it, a node of another label is denied."""
    log = shop()
    spec = {"endpointSelector": {"matchLabels": {"app": "db"}}, "ingress": [{"fromNodes": [{"matchLabels": {"role": "gpu"}}]}]}
    document = cilium_policy(spec, "nodes")
    assert [each.action for each in ask(log, document).policies] == ["rejected"]
    accept(log, OPERATOR, ChangeSettings('{"enable-node-selector-labels":true}'))
    answer = ask(log, document)
    assert [each.action for each in answer.policies] == ["created"]
    assert ("node:east:n2", "east:shop/db", "deny") in {(each.source, each.target, each.after) for each in answer.pairs}


def test_taking_a_policy_out_allows_what_was_denied() -> None:
    """Of one manifest by name, or of all that a given set does not name."""
    log = shop()
    apply_policy(log, DB_FROM_CART)
    flows = recorded(log, told(log, "front", "db", 5432, **DENIED))
    for fields, documents in (({"removal": True}, [manifest("{}", "policy")]), ({"replace": True}, [])):
        if fields == {"removal": True}:
            key = next(iter(log.state.policies))
            documents = [manifest("{podSelector: {}}", key.name)]
        answer = ask(log, *documents, flows=(flows,), **fields)
        assert [each.action for each in answer.policies] == ["deleted"]
        assert [(each.recorded, each.before, each.after) for each in answer.flows] == [("deny", "deny", "allow")]
        assert {each.after for each in answer.pairs} == {"allow"}


def test_pairs_are_those_whose_verdict_changes_and_no_others() -> None:
    """Each pair and port that is reported differs by `verdict` too; every pair of workloads that differs is reported."""
    log = shop()
    add_endpoint(log, "east", "n2", "cart2", 14, app="cart")
    answer = ask(log, manifest(DB_FROM_CART))
    after, _ = changed(log.state, Asked("east", [manifest(DB_FROM_CART)]))
    judges = Judge(mesh_of(log.state, "east")), Judge(mesh_of(after, "east"))
    expected = set()
    for source in ("cart", "db", "front"):
        for target in ("cart", "db", "front"):
            for port in (5432, 1):
                question = Question(f"east:shop/{source}", f"east:shop/{target}", f"TCP/{port}")
                before, then = (judge.answer(question).verdict for judge in judges)
                if before != then:
                    expected.add((f"east:shop/{source}", f"east:shop/{target}", "5432/TCP" if port > 1 else "other/TCP"))
    inside = {(each.source, each.target, each.port) for each in answer.pairs if each.sources and each.targets}
    assert inside == expected
    assert {each.source for each in answer.pairs if not each.sources} >= {"entity:world"}
    assert [each.sources for each in answer.pairs if each.source == "east:shop/cart"] == [2]


def test_an_unchanged_set_compares_nothing() -> None:
    """The same manifest again: no pair is even looked at, and no flow changes."""
    log = shop()
    apply_policy(log, DB_FROM_CART)
    policy = next(iter(log.state.policies.values()))
    answer = ask(log, json.loads(policy.manifest), flows=(recorded(log, told(log, "front", "db", 5432)),))
    assert ([each.action for each in answer.policies], answer.flows, answer.pairs_compared) == (["unchanged"], [], 0)


def test_a_refused_manifest_is_named_and_nothing_is_compared() -> None:
    """The answer must not seem to be about the whole set."""
    answer = ask(shop(), manifest(DB_FROM_CART), manifest("{podSelector: {}, ingress: 5}", "wrong"))
    assert (answer.refused, answer.pairs_compared, answer.flows) == (True, 0, [])
    assert "ingress" in answer.policies[1].reason


def test_what_is_no_policy_is_passed_over() -> None:
    """A directory of manifests holds more than policies; the answer says that they were not looked at."""
    answer = ask(shop(), {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "x"}})
    assert [each.action for each in answer.policies] == ["passed over"]


def test_a_workload_that_is_gone_is_judged_by_the_labels_it_had() -> None:
    """A nightly job has no endpoint in the morning, and its flow would be denied all the same."""
    log = shop()
    flows = recorded(log, told(log, "front", "db", 5432))
    front = next(each for each in log.state.endpoints.values() if each.workload == "front")
    log.write("east", "node.n2", e.EndpointDeleted("n2", front.endpoint_id))
    assert log.state.refused_events == []
    answer = ask(log, manifest(DB_FROM_CART), flows=(flows,))
    assert [(each.source, each.after) for each in answer.flows] == [("east:shop/front", "deny")]


def test_flows_from_outside_are_judged_by_their_address() -> None:
    """A prefix of the new policy lets one address in and not another."""
    log = shop()
    flows = recorded(log, told(log, "203.0.113.9", "db", 80), told(log, "198.51.100.1", "db", 80))
    spec = "{podSelector: {matchLabels: {app: db}}, ingress: [{from: [{ipBlock: {cidr: 203.0.113.0/24}}]}]}"
    answer = ask(log, manifest(spec), flows=(flows,))
    assert [each.source for each in answer.flows] == ["ip:198.51.100.1"]


def test_what_the_answer_leaves_open_is_said() -> None:
    """Nodes without flows, nodes that recorded later, and what was not kept or not published."""
    log = shop()
    seen = recorded(log, told(log, "cart", "db", 80))
    late = FlowSummary(1, "east", "n2", 500, 600, 7, 3, {}, [])
    answer = what_if(log.state, 0, Asked("east", []), (seen, late), 100, NOW_NS)
    assert answer.flows_not_kept == 7
    assert any("west/n1" in note for note in answer.notes)
    assert any("n2 has recorded flows since" in note for note in answer.notes)
    assert any("n2 left 3 kinds of flow out" in note for note in answer.notes)


def test_too_many_pairs_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond the bound nothing is judged, and how much that is is said."""
    monkeypatch.setattr("controlplane.history.pairs.JUDGED_MAX", 3)
    log = shop()
    after, _ = changed(log.state, Asked("east", [manifest(DB_FROM_CART)]))
    meshes = mesh_of(log.state, "east"), mesh_of(after, "east")
    found = compare_pairs(meshes, (Judge(meshes[0]), Judge(meshes[1])))
    assert found.compared == 3
    assert found.not_compared > 0


async def test_a_capsule_answers_with_the_flows_in_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`flow list` and `policy what-if` over a file, redacted or not, give the same counts."""
    log = shop()
    capsule = await capsule_of(log, flows=[recorded(log, told(log, "cart", "db", 5432), told(log, "front", "db", 22))])
    path, policy = tmp_path / "a.capsule", tmp_path / "policy.json"
    path.write_bytes(pack(capsule))
    policy.write_text(canonical(manifest(DB_FROM_CART)))
    status, out, _ = asked(path, "flow", "list", "-o", "json")
    assert (status, len(json.loads(out)["items"])) == (0, 2)
    words = ("policy", "what-if", "-f", str(policy), "--since=1970-01-01T00:00:00Z")
    status, out, err = asked(path, *words, "--exit-code")
    assert status == 1, err
    assert "east:shop/front" in out
    assert asked(path, *words)[0] == 0
    assert main(["capsule", "verify", str(path)]) == 0
