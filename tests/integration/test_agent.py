"""A real agent and a real operator, as processes, over a real etcd and the real kernel of a namespace of their own."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from controlplane.api.quickclient import ApiRefused, ApiUnavailable, request
from kvstore.embedded import CLIENT_SOCKET
from tests.conftest import Namespace

pytestmark = [
    pytest.mark.kernel("TCX links"),
    pytest.mark.skipif(shutil.which("etcd") is None, reason="needs etcd (Debian: etcd-server)"),
]
ROOT = Path(__file__).parent.parent.parent
DEADLINE_S = 20.0
POD = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "web", "namespace": "shop", "labels": {"app": "web"}},
       "spec": {"containers": [{"name": "web"}]}}  # fmt: skip


def wait_for(what: str, holds: Callable[[], Any]) -> Any:
    """The first answer that is true. Fails after the deadline, saying what did not come."""
    deadline = time.monotonic() + DEADLINE_S
    while time.monotonic() < deadline:
        try:
            found = holds()
        except (ApiUnavailable, ApiRefused):
            found = None
        if found:
            return found
        time.sleep(0.02)
    raise AssertionError(f"did not come within {DEADLINE_S:g} s: {what}")


class Machine:
    """One node's agent and its cluster's operator, which runs the etcd."""

    def __init__(self, where: Path, bpffs: Path, objects_dir: Path, netns: str) -> None:
        self.where = where
        self.agent_socket = str(where / "n1" / "agent.sock")
        self.operator_socket = str(where / "op" / "operator.sock")
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self._etcd = str(where / "etcd")
        self.agent_flags = [
            "--cluster", "east", "--node", "n1", "--netns", netns, "--device", "up0", "--bpffs", str(bpffs),
            "--objects-dir", str(objects_dir), "--etcd", f"unix:{self._etcd}/{CLIENT_SOCKET}",
            "--runtime-dir", str(where / "n1"), "--state-dir", str(where / "n1-state"),
        ]  # fmt: skip

    def start(self, name: str, flags: list[str]) -> None:
        code = f"from controlplane.{name} import main; raise SystemExit(main())"
        with (self.where / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                [sys.executable, "-c", code, *flags],
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def start_operator(self) -> None:
        self.start("operator", [
            "--cluster", "east", "--cluster-id", "1", "--pod-cidr", "10.1.0.0/16", "--pod-cidr", "fd00:1::/48",
            "--service-cidr", "10.96.0.0/20", "--embedded-etcd", self._etcd, "--runtime-dir", str(self.where / "op"),
            "--state-dir", str(self.where / "op-state"),
        ])  # fmt: skip
        wait_for(
            "an operator that is ready", lambda: request(self.operator_socket, "GET", "/v1/status")["ready"]
        )

    def start_agent(self, health: str = "") -> dict[str, Any]:
        """Its status once it is ready, or once it says to be of this health."""
        self.start("agent", self.agent_flags)

        def is_up() -> bool:
            status = self.status()
            ended = self.processes["agent"].poll() is not None
            return not ended and bool(status["health"] == health if health else status["ready"])

        wait_for(f"an agent that is {health or 'ready'}", is_up)
        return self.status()

    def end(self, name: str, how: signal.Signals) -> int:
        process = self.processes.pop(name)
        process.send_signal(how)
        return process.wait(DEADLINE_S)

    def status(self) -> dict[str, Any]:
        return request(self.agent_socket, "GET", "/v1/status")

    def ask(self, method: str, path: str, body: Any = None) -> dict[str, Any]:
        return request(self.agent_socket, method, path, body)

    def create(self, netns: str) -> dict[str, Any]:
        self.ask("POST", "/v1/apply", {"documents": [{"document": POD}]})
        body = {
            "container_id": "c1",
            "interface": "eth0",
            "netns": netns,
            "namespace": "shop",
            "workload": "web",
        }
        return self.ask("POST", "/v1/endpoints", body)


@contextmanager
def made_machine(bpffs: Path, objects_dir: Path, node: Namespace) -> Iterator[Machine]:
    """An operator with its etcd, and the namespace in which an agent can be started."""
    node.run("ip", "link", "add", "up0", "type", "veth", "peer", "name", "up1")
    node.add_address("192.168.77.1/24", "up0")
    node.run("ip", "link", "set", "up0", "up")
    node.run("ip", "link", "set", "up1", "up")
    where = Path(
        tempfile.mkdtemp(prefix="mlt-", dir="/tmp")
    )  # short: a unix socket's path has at most 107 bytes
    made = Machine(where, bpffs, objects_dir, node.path)
    try:
        made.start_operator()
        yield made
    finally:
        for name in ("agent", "operator"):
            if name in made.processes:
                made.end(name, signal.SIGTERM)
        shutil.rmtree(where)


@pytest.fixture
def machine(bpffs: Path, objects_dir: Path, make_namespace: Callable[[], Namespace]) -> Iterator[Machine]:
    """One of the test's own."""
    with made_machine(bpffs, objects_dir, make_namespace()) as made:
        yield made


@pytest.mark.parametrize("mode", ["tcx", "clsact"])
def test_killed_agent_comes_back_without_a_write(
    machine: Machine, make_namespace: Callable[[], Any], mode: str
) -> None:
    """After kill -9 and a restart with nothing changed the kernel gets no write, and all three digests are equal:
    in both forms of attachment."""
    machine.agent_flags += ["--attach-mode", mode]
    machine.start_agent()
    made = machine.create(make_namespace().path)
    assert made["addresses"][0]["address"].startswith("10.1.0.")
    machine.end("agent", signal.SIGKILL)
    status = machine.start_agent()
    assert sum(status["kernel"]["writes_at_start"].values()) == 0
    assert status["attach_mode"] == mode
    assert machine.ask("GET", "/v1/list/endpoint")["items"][0]["state"] == "ready"
    assert machine.ask("GET", "/v1/verify")["equal"]


def test_etcd_gone_and_back(machine: Machine, make_namespace: Callable[[], Any]) -> None:
    """Without etcd an agent serves reads, says so, and even starts from its checkpoint; back, it takes writes again."""
    machine.start_agent()
    machine.create(make_namespace().path)
    machine.end("agent", signal.SIGTERM)
    machine.end("operator", signal.SIGTERM)
    status = machine.start_agent("degraded")
    assert not status["log"]["connected"]
    assert sum(status["kernel"]["writes"].values()) == 0
    assert len(machine.ask("GET", "/v1/list/endpoint")["items"]) == 1
    machine.start_operator()
    wait_for("an agent that is well again", lambda: machine.status()["health"] == "ok")
    pod = {**POD, "metadata": {"name": "api", "namespace": "shop"}}
    answer = machine.ask("POST", "/v1/apply", {"documents": [{"document": pod}]})
    assert answer["results"][0]["action"] == "created"


def test_delete_is_idempotent_and_leaves_nothing(machine: Machine, make_namespace: Callable[[], Any]) -> None:
    """Deleting an endpoint removes device, rows and event of it; deleting it again is done already."""
    machine.start_agent()
    pod = make_namespace()
    machine.create(pod.path)
    assert "eth0" in pod.run("ip", "link", "show")
    first = machine.ask("DELETE", "/v1/endpoints/c1/eth0")
    machine.ask("GET", f"/v1/wait?revision={first['revision']}&timeout_s=5")
    assert first["removed"] and not machine.ask("DELETE", "/v1/endpoints/c1/eth0")["removed"]
    assert "eth0" not in pod.run("ip", "link", "show")
    assert machine.ask("GET", "/v1/list/endpoint")["items"] == []
    assert machine.ask("GET", "/v1/verify")["equal"]


def test_failed_creation_leaves_nothing(machine: Machine, make_namespace: Callable[[], Any]) -> None:
    """A creation that is refused names the field, and its device is gone again."""
    machine.start_agent()
    pod = make_namespace()
    body = {
        "container_id": "c1",
        "interface": "eth0",
        "netns": pod.path,
        "namespace": "shop",
        "workload": "nobody",
    }
    with pytest.raises(ApiRefused, match="nobody") as refused:
        machine.ask("POST", "/v1/endpoints", body)
    assert (refused.value.status, refused.value.field) == (422, "workload")
    assert "eth0" not in pod.run("ip", "link", "show")


def test_endpoint_whose_device_is_gone_leaves_the_log(
    machine: Machine, make_namespace: Callable[[], Any]
) -> None:
    """A device that vanished while the agent was down takes its endpoint out of the log at the next start."""
    machine.start_agent()
    pod = make_namespace()
    machine.create(pod.path)
    machine.end("agent", signal.SIGKILL)
    pod.run("ip", "link", "delete", "eth0")
    machine.start_agent()
    wait_for("an empty list", lambda: machine.ask("GET", "/v1/list/endpoint")["items"] == [])
    assert machine.ask("GET", "/v1/verify")["equal"]


def test_second_agent_in_one_place_is_refused(machine: Machine) -> None:
    """A second agent for the same directory ends with exit code 1 and one line that names the first."""
    machine.start_agent()
    code = "from controlplane.agent import main; raise SystemExit(main())"
    second = subprocess.run(
        [sys.executable, "-c", code, *machine.agent_flags],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=DEADLINE_S,
    )
    assert second.returncode == 1
    assert second.stderr.count("\n") == 1
    assert f"in use by process {machine.processes['agent'].pid}" in second.stderr


def test_wrong_device_is_told_in_one_line(machine: Machine) -> None:
    """A device that does not exist is named with its flag and what there is; exit code 1, and no socket is left."""
    flags = [*machine.agent_flags, "--device", "nope0"]
    code = "from controlplane.agent import main; raise SystemExit(main())"
    found = subprocess.run(
        [sys.executable, "-c", code, *flags],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=DEADLINE_S,
    )
    assert found.returncode == 1
    assert "--device: there is no device 'nope0' here; there are: lo, up0, up1" in found.stderr
    assert not os.path.exists(machine.agent_socket)


def test_underlay_balances_itself_from_one_start_to_the_next(machine: Machine, bpffs: Path) -> None:
    """As each start says: in the driver, before the stack, not at all; the kernel holds what the log says each time."""
    pins = bpffs / "meshlog" / "n1" / "xdp"
    flags = list(machine.agent_flags)
    for way, shown, pinned in (
        ("native", "native on up0", "xdp"), ("generic", "generic on up0", "xdp-generic"), ("disabled", "off", ""),
    ):  # fmt: skip
        machine.agent_flags = [*flags, "--bpf-lb-acceleration", way]
        machine.start_agent()
        wait_for(f"{way} in the log", lambda shown=shown: machine.status()["acceleration"] == shown)
        wait_for("every row realized", lambda: machine.status()["kernel"]["in_sync"])
        assert [path.name.partition("-")[2] for path in pins.iterdir()] == ([pinned] if pinned else [])
        assert machine.ask("GET", "/v1/verify")["equal"]
        machine.end("agent", signal.SIGTERM)
