"""`meshlog connectivity test` in a lab: real packets, a failure that is explained, and nothing left behind."""

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration import lab

pytestmark = [pytest.mark.kernel("TCX links"), pytest.mark.kernel("bpf_redirect_peer")]

NAMESPACE = "connectivity-test"
CLOSED = f"""
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {{name: closed, namespace: {NAMESPACE}}}
spec:
  endpointSelector: {{matchLabels: {{name: echo-other-node}}}}
  ingressDeny:
    - fromEntities: [all]
"""


@pytest.fixture(scope="module", autouse=True)
def running_lab() -> Iterator[None]:
    """Nodes without pods of their own."""
    lab.well("lab", "down")
    lab.well("lab", "up", "--no-pods")
    yield
    lab.well("lab", "down")


def outcomes(*words: str) -> tuple[int, dict[str, Any]]:
    """Exit status, and every action by its test and title."""
    done = lab.meshlog("connectivity", "test", "-o", "json", *words)
    assert done.stdout, done.stderr
    found = json.loads(done.stdout)
    actions = {f"{test['name']}/{each['title']}": each for test in found["tests"] for each in test["actions"]}
    return done.returncode, actions


def left() -> list[str]:
    """What is there of the tests: namespaces, processes, endpoints, objects in the log."""
    found = [str(path) for path in Path("/run/netns").glob(f"{lab.NAME}-pod-*-{NAMESPACE}-*")]
    found += [str(path) for path in (lab.ROOT / "processes").glob(f"*{NAMESPACE}*")]
    for kind in ("endpoint", "service", "policy"):
        listed = lab.answer(kind, "list", "--socket", lab.operator_of("east"))
        found += [f"{kind} {each}" for each in listed if each["namespace"] == NAMESPACE]
    return found


def test_a_way_that_is_closed_fails_and_is_explained() -> None:
    """Under a policy of somebody else one way of three fails, with the rule and the drop as reasons."""
    policy = lab.ROOT / "closed.yaml"
    policy.write_text(CLOSED)
    lab.well("apply", "-f", str(policy), "--socket", lab.operator_of("east"))
    try:
        status, actions = outcomes("--test", "pod-to-pod")
    finally:
        lab.well("delete", "-f", str(policy), "--socket", lab.operator_of("east"))
    failed = {title: each for title, each in actions.items() if not each["ok"]}
    assert status == 1 and sorted(failed) == ["pod-to-pod/other node (IPv4)", "pod-to-pod/other node (IPv6)"]
    for each in failed.values():
        why = " ".join(each["why"])
        assert "closed" in why and "told: Policy denied by denylist (181) on east/east-2" in why
    assert left() == []


def test_a_run_that_is_ended_removes_what_it_made() -> None:
    """SIGTERM in the middle of it; what SIGKILL leaves goes with the next run."""
    for end in (signal.SIGTERM, signal.SIGKILL):
        words = [lab.PROGRAM, "connectivity", "test", "--test", "pod-to-pod"]
        with subprocess.Popen(words, env=lab.ENVIRONMENT, stdout=subprocess.PIPE, text=True) as program:
            assert program.stdout
            assert any("[=]" in line for line in program.stdout)
            os.kill(program.pid, end)
        if end is signal.SIGTERM:
            assert left() == []
    assert left() != []
    status, actions = outcomes("--test", "host-to-pod,outside-to-nodeport,client-ingress")
    assert (status, len(actions)) == (0, 16)
    assert left() == []
