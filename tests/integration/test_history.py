"""The history of a real mesh: an agent, an operator and their etcd, asked by the program itself."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from controlplane.history.flows import unpack
from tests.integration.test_agent import Machine, machine, wait_for

__all__ = ["machine"]
pytestmark = [
    pytest.mark.kernel("TCX links"),
    pytest.mark.skipif(shutil.which("etcd") is None, reason="needs etcd (Debian: etcd-server)"),
]
PROGRAM = [sys.executable, "-c", "from controlplane.cli.main import main; raise SystemExit(main())"]
GUARD = {
    "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"name": "guard", "namespace": "shop"},
    "spec": {"podSelector": {}, "ingress": [{"ports": [{"port": 8080, "protocol": "TCP"}]}]},
}  # fmt: skip
FLOW = ("--from", "entity:world", "--to", "shop/web", "--port", "80/TCP")


def meshlog(machine: Machine, *words: str) -> subprocess.CompletedProcess[str]:
    """Asking the agent."""
    environment = {**os.environ, "MESHLOG_SOCKET": machine.agent_socket}
    return subprocess.run([*PROGRAM, *words], capture_output=True, text=True, check=False, env=environment, timeout=60)


def told(machine: Machine, *words: str) -> Any:
    """The JSON answer."""
    done = meshlog(machine, *words, "-o", "json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture
def incident(machine: Machine, make_namespace: Callable[[], Any]) -> tuple[Machine, int, int]:
    """An endpoint, then a policy; the revisions of the two."""
    machine.start_agent()
    created = machine.create(make_namespace().path)["revision"]
    applied = machine.ask("POST", "/v1/apply", {"documents": [{"document": GUARD}]})["revision"]
    return machine, created, applied


def test_the_past_is_what_was(incident: tuple[Machine, int, int]) -> None:
    """Lists and map rows before the endpoint, before the policy, and now; now they are the kernel's own rows."""
    machine, created, applied = incident
    machine.ask("GET", f"/v1/wait?revision={applied}&timeout_s=10")
    assert told(machine, "endpoint", "list", "--at", str(created - 1)) == []
    assert told(machine, "policy", "list", "--at", str(applied - 1)) == []
    assert told(machine, "bpf", "policy", "list", "--at", str(applied - 1)) == []
    for kind in ("endpoint", "ipcache", "policy", "lb"):
        assert told(machine, "bpf", kind, "list", "--at", str(applied)) == told(machine, "bpf", kind, "list")
    assert f"at revision {applied} (" in meshlog(machine, "endpoint", "list", "--at=-0s").stderr


def test_a_denial_is_traced_to_its_record(incident: tuple[Machine, int, int]) -> None:
    """`why` names the policy's revision; before it the flow was allowed; the record shows the rows it put there."""
    machine, _, applied = incident
    answer = told(machine, "why", *FLOW)
    assert (answer["verdict"], applied in [each["revision"] for each in answer["evidence"]]) == ("deny", True)
    assert told(machine, "why", *FLOW, "--at", str(applied - 1))["verdict"] == "allow"
    shown = told(machine, "log", "show", str(applied))
    assert {"policy", "policy_subjects"} <= {row["table"] for row in shown["rows"]}
    assert told(machine, "diff", str(applied - 1), str(applied), "--tables")["rows"] == shown["rows"]


@pytest.mark.parametrize("redact", [(), ("--redact",)])
def test_an_exported_capsule_verifies(incident: tuple[Machine, int, int], redact: tuple[str, ...]) -> None:
    """What the node reported is recomputed from the file, in the mesh's own words and in others."""
    machine, _, applied = incident
    path = str(machine.where / "incident.capsule")

    def verified() -> bool:
        """Once the node has reported what it realized last."""
        assert meshlog(machine, "capsule", "export", *redact, path).returncode == 0
        done = meshlog(machine, "capsule", "verify", path, "-o", "json")
        nodes = json.loads(done.stdout)["nodes"]
        return done.returncode == 0 and bool(nodes) and nodes[0]["realized"] >= applied

    wait_for("a report of the policy's revision that verifies", verified)
    content = Path(path).read_bytes()
    assert content.startswith(b"meshlog capsule")


def test_the_near_past_is_told_without_etcd(incident: tuple[Machine, int, int]) -> None:
    """With etcd gone the agent still tells what it applied since its start."""
    machine, created, applied = incident
    machine.end("operator", signal.SIGTERM)
    assert told(machine, "endpoint", "list", "--at", str(created - 1)) == []
    assert [each["workload"] for each in told(machine, "endpoint", "list", "--at", str(applied - 1))] == ["web"]
    assert told(machine, "why", *FLOW, "--at", str(applied - 1))["verdict"] == "allow"


def test_flows_are_recorded_and_outlive_a_kill(machine: Machine, make_namespace: Callable[[], Any]) -> None:
    """What an endpoint tries is told by `flow list`; a killed agent knows it again; `what-if` closes it."""
    machine.agent_flags += ["--flows-save-s", "0.2"]
    machine.start_agent()
    pod = make_namespace()
    machine.create(pod.path)
    pod.run(sys.executable, "-c", "import socket; socket.socket(type=2).sendto(b'x', ('192.168.77.9', 7777))")

    def recorded() -> bool:
        """Exactly that one."""
        items = told(machine, "flow", "list")["items"]
        return [(each["source"], each["port"], each["verdict"]) for each in items] == [
            ("east:shop/web", "7777/UDP", "allow")
        ]

    wait_for("the flow", recorded)
    kept = machine.where / "n1-state" / "flows"
    wait_for("the flow in the file", lambda: kept.exists() and unpack(kept.read_bytes()).rows)
    machine.end("agent", signal.SIGKILL)
    machine.start_agent()
    assert recorded()
    policy = machine.where / "policy.json"
    policy.write_text(json.dumps({**GUARD, "spec": {"podSelector": {}, "policyTypes": ["Egress"]}}))
    answer = told(machine, "policy", "what-if", "-f", str(policy))
    assert [(each["target"], each["before"], each["after"]) for each in answer["flows"]] == [
        ("ip:192.168.77.9", "allow", "deny")
    ]
