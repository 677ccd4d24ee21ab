"""`connectivity test`: which tests run, what is printed of them, and that the table agrees with the policy model."""

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest

from controlplane.cli.connectivity import Lines, chosen_tests, document, junit, report
from controlplane.cli.errors import UsageError
from controlplane.kubernetes_mesh import MeshReader
from controlplane.lab import connectivity_cases as cases
from controlplane.lab.connectivity import Outcome
from controlplane.lab.connectivity_cases import TESTS, Case, Trial
from controlplane.policy.answers import answer
from controlplane.policy.mesh import Judge
from controlplane.policy.settings import DEFAULTS
from tests.controlplane.cli.conftest import Run

GOOD = Outcome("same node (IPv4)", True, 3.2, "client -> echo-same-node (10.1.1.4:8080): echo-same-node answered")
BAD = Outcome(
    "other node (IPv6)", False, 2000.0, 'client -> echo-other-node: no answer: "timed out" & more',
    ["deny: no rule allows it", "told: Policy denied (133) on east/east-2"],
)  # fmt: skip


@pytest.mark.parametrize(
    ("words", "names"),
    [
        ([], [test.name for test in TESTS]),
        (["pod-to-pod"], ["pod-to-pod"]),
        (["^host-", "deny$"], ["host-to-pod", "host-to-service", "all-ingress-deny"]),
        (["pod-to-.*,!service,!host"], ["pod-to-pod", "pod-to-nodeport"]),
    ],
)
def test_tests_are_chosen_as_in_cilium(words: list[str], names: list[str]) -> None:
    """Regular expressions, several of them, and ! for all others; order is the table's."""
    assert [test.name for test in chosen_tests(TESTS, words)] == names


@pytest.mark.parametrize("word", ["nothing-like-it", "(", "!.*"])
def test_a_choice_that_leaves_nothing_is_refused(word: str) -> None:
    """A script that mistypes a name must not succeed."""
    with pytest.raises(UsageError, match="--test"):
        chosen_tests(TESTS, [word])


def test_the_list_needs_no_lab(run: Run) -> None:
    """--list prints names; a wrong name is a wrong usage, told before anything is made."""
    status, out, _ = run("connectivity", "test", "--list", "--test", "egress")
    assert (status, out.split()[0], len(out.splitlines())) == (0, "client-egress", 1)
    assert run("connectivity", "test", "--test", "no-such")[0] == 2


def test_the_report_ends_as_ciliums(capsys: pytest.CaptureFixture[str]) -> None:
    """All well in one line; otherwise what failed, and the reasons where it was tried."""
    assert report({"pod-to-pod": [GOOD]}, 2, "ns") == (
        "✅ [ns] All 1 tests (1 actions) successful, 2 tests skipped, 0 scenarios skipped."
    )
    lines = report({"pod-to-pod": [GOOD, BAD], "host-to-pod": [GOOD]}, 0, "ns").splitlines()
    assert lines[1] == "❌ 1/2 tests failed (1/3 actions), 0 tests skipped, 0 scenarios skipped:"
    assert lines[2] == "Test [pod-to-pod]:" and "🟥 pod-to-pod/other node (IPv6)" in lines[3]
    import sys

    Lines(sys.stdout, "ns").action(TESTS[0], BAD)
    assert "why: deny: no rule allows it" in capsys.readouterr().out


def test_programs_get_json_and_junit(tmp_path: Path) -> None:
    """Both say the same; the XML is well formed whatever a message holds."""
    outcomes = {"pod-to-pod": [GOOD, BAD], "host-to-pod": [GOOD]}
    found = json.loads(json.dumps(document(outcomes, 4.5)))
    assert (found["ok"], [test["ok"] for test in found["tests"]]) == (False, [False, True])
    suites = ElementTree.fromstring(junit(outcomes, 4.5))
    assert [(suite.get("name"), suite.get("tests"), suite.get("failures")) for suite in suites] == [
        ("pod-to-pod", "2", "1"), ("host-to-pod", "1", "0"),
    ]  # fmt: skip
    failure = suites.find(".//failure")
    assert failure is not None and '"timed out" & more; deny: no rule allows it' in str(failure.get("message"))


def judge_of(test: Trial) -> Judge:
    """The tests' manifests and the policies of one, as the model sees them."""
    reader = MeshReader(cases.EAST, DEFAULTS)
    for cluster in (cases.EAST, cases.WEST):
        for each in cases.manifests_of(cluster):
            reader.take(each, each["metadata"]["name"], cluster)
    for each in test.policies:
        reader.take(each, each["metadata"]["name"], cases.EAST)
    assert not reader.refused
    return Judge(reader.mesh({}, {}))


def pod_behind(case: Case) -> str:
    """Of a target that is a service: the only pod that serves it."""
    served = {"service:echo": "echo-other-node", "service:echo-global": "echo-other-cluster"}
    return served.get(case.target, case.target)


@pytest.mark.parametrize("test", TESTS, ids=lambda test: test.name)
def test_the_table_says_what_policies_mean(test: Trial) -> None:
    """Every case between pods is expected to end as the model judges it; a denial names a flow that would pass without
    the test's policies."""
    pods = {pod.name: f"{pod.cluster}:{pod.namespace}/{pod.name}" for pod in cases.PODS}
    judge, free = judge_of(test), judge_of(TESTS[0])
    for number, case in enumerate(test.cases):
        target = pod_behind(case)
        if case.source in pods and target in pods:
            flow = {"from": pods[case.source], "to": pods[target], "l4": f"TCP/{cases.POD_PORT}"}
            assert answer(judge, flow, number)["verdict"] == ("allow" if case.answered_by else "deny"), case
            assert answer(free, flow, number)["verdict"] == "allow", case
            assert case.answered_by in ("", target)
