"""etcd goes away and comes back while a mesh runs."""

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration import lab

pytestmark = [pytest.mark.kernel("TCX links"), pytest.mark.kernel("bpf_redirect_peer")]
NAMESPACE = "apiVersion: v1\nkind: Namespace\nmetadata:\n  name: after-the-outage\n"
NODES = ("east-1", "east-2", "west-1", "west-2")


@pytest.fixture(scope="module", autouse=True)
def mesh() -> Iterator[None]:
    """A mesh whose etcd was killed."""
    lab.well("lab", "down")
    lab.well("lab", "up")
    os.kill(lab.recorded_pid("etcd"), signal.SIGKILL)
    yield
    lab.well("lab", "down")


def waited_for_outage(node: str) -> None:
    """Until the node has noticed; bounded by the program's own deadline."""
    done = lab.meshlog("status", "--wait", "--timeout", "0", "--socket", lab.socket_of(node))
    for _ in range(200):
        if done.returncode:
            return
        done = lab.meshlog("status", "--wait", "--timeout", "0", "--socket", lab.socket_of(node))
    raise AssertionError(f"{node} never noticed that etcd is gone")


def test_status_says_since_when() -> None:
    """Without etcd the agent is not well, and says since when the log is away."""
    waited_for_outage("east-1")
    status = lab.answer("status", "--socket", lab.socket_of("east-1"))
    assert not status["log"]["connected"]
    assert status["log"]["unavailable_since"] > 1_700_000_000
    assert status["problems"]


def test_forwarding_goes_on() -> None:
    """A new connection between clusters is answered though no log is there."""
    endpoints = lab.answer("endpoint", "list", "-A", "--socket", lab.socket_of("east-1"))
    ledger = next(endpoint for endpoint in endpoints if endpoint["workload"] == "ledger")
    client = Path(__file__).parents[2] / "controlplane" / "lab" / "shop_client.py"
    shown = lab.well("lab", "exec", "east/shop/frontend", "--", "python3", str(client), "http", ledger["ipv4"], "8080")
    assert json.loads(shown)["answer"]["name"] == "ledger"


def test_reads_are_served_and_the_kernel_is_as_it_was() -> None:
    """Lists and the proof need no etcd."""
    assert len(lab.answer("service", "list", "--socket", lab.socket_of("west-1"))) == 12
    lab.well("verify", "--socket", lab.socket_of("west-1"))


def test_a_change_is_refused_with_the_reason(tmp_path: Path) -> None:
    """What cannot be recorded is not done, and the message says that the log is away."""
    manifest = tmp_path / "namespace.yaml"
    manifest.write_text(NAMESPACE)
    done = lab.meshlog("apply", "-f", str(manifest), "--socket", lab.operator_of("east"))
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert done.stderr.strip()


def test_everyone_catches_up_when_etcd_is_back(tmp_path: Path) -> None:
    """etcd starts again: no agent restarts, and a new record reaches every node."""
    pids = {node: lab.recorded_pid(f"agent-{node}") for node in NODES}
    lab.well("lab", "up")
    for node in NODES:
        lab.well("status", "--wait", "--timeout", "60", "--socket", lab.socket_of(node))
    manifest = tmp_path / "namespace.yaml"
    manifest.write_text(NAMESPACE)
    applied = lab.answer("apply", "-f", str(manifest), "--socket", lab.operator_of("east"))
    assert applied["results"][0]["changed"]
    lab.well("lab", "up")  # ends when every node has realized every record
    for node in ("east-1", "east-2"):
        assert "after-the-outage" in lab.well("get", "namespaces", "--socket", lab.socket_of(node))
    assert {node: lab.recorded_pid(f"agent-{node}") for node in NODES} == pids
