"""Host policies with a real agent: turned on under audit, then enforced, asked from another machine on its link.

Belongs here: what takes an agent and sockets. Does not belong here: which packets are judged
(tests/bpf/test_firewall.py), what a host policy says (tests/controlplane/policy).
"""

import json
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.bpf.test_wire import open_socket
from tests.conftest import Namespace
from tests.integration.test_agent import Machine, made_machine, pytestmark, wait_for
from tests.integration.test_history import PROGRAM, told

__all__ = ["pytestmark"]

OWN = {4: "192.168.77.1", 6: "fd77::1"}
FAR = {4: "192.168.77.2", 6: "fd77::2"}
OPEN_PORT, CLOSED_PORT = 7001, 7002
POLICY = {
    "apiVersion": "cilium.io/v2", "kind": "CiliumClusterwideNetworkPolicy", "metadata": {"name": "guard"},
    "spec": {"nodeSelector": {}, "ingress": [
        {"fromEntities": ["world"], "toPorts": [{"ports": [{"port": str(OPEN_PORT), "protocol": "ANY"}]}]},
    ]},
}  # fmt: skip


class Link:
    """The node, and a machine without a program at the other end of its device."""

    def __init__(self, machine: Machine, node: Namespace, far: Namespace) -> None:
        self.machine, self.node, self.far = machine, node, far
        node.run("ip", "link", "set", "up1", "netns", far.name)
        node.add_address(f"{OWN[6]}/64", "up0")
        far.run("ip", "link", "set", "up1", "up")
        far.add_address(f"{FAR[4]}/24", "up1")
        far.add_address(f"{FAR[6]}/64", "up1")

    def passes(self, family: int, port: int) -> bool:
        """Whether a datagram of a new flow from afar comes to this port of the node, and its answer back."""
        with (
            self.node.call(open_socket, family, socket.SOCK_DGRAM, (OWN[family], port)) as answering,
            self.far.call(open_socket, family, socket.SOCK_DGRAM, (FAR[family], 0)) as asking,
        ):
            answering.settimeout(0.3)
            asking.sendto(b"question", (OWN[family], port))
            try:
                question, source = answering.recvfrom(100)
            except TimeoutError:
                return False
            answering.sendto(question, source)
            assert asking.recv(100) == question
            return True

    def passing(self) -> list[tuple[int, int]]:
        """Every family and port that does."""
        asked = [(family, port) for family in OWN for port in (OPEN_PORT, CLOSED_PORT)]
        return [each for each in asked if self.passes(*each)]

    def set(self, **settings: bool) -> None:
        """Policy settings, in words of Python, once the kernel follows them."""
        body = {name.replace("_", "-"): value for name, value in settings.items()}
        self._wait(self.machine.ask("POST", "/v1/policy/settings", body)["revision"])

    def apply(self, *documents: Any) -> None:
        """Likewise."""
        answer = self.machine.ask("POST", "/v1/apply", {"documents": [{"document": each} for each in documents]})
        assert all(each["accepted"] for each in answer["results"]), answer
        self._wait(answer["revision"])

    def _wait(self, revision: int) -> None:
        self.machine.ask("GET", f"/v1/wait?revision={revision}&timeout_s=10")


@pytest.fixture
def link(bpffs: Path, objects_dir: Path, make_namespace: Callable[[], Namespace]) -> Iterator[Link]:
    """With an agent that runs."""
    node, far = make_namespace(), make_namespace()
    with made_machine(bpffs, objects_dir, node) as machine:
        made = Link(machine, node, far)
        machine.start_agent()
        yield made


@contextmanager
def monitoring(machine: Machine) -> Iterator[Callable[[Callable[[], Any]], dict[str, Any]]]:
    """Does something until the monitor has told of a packet to the closed port; the line."""
    words = [*PROGRAM, "monitor", "-o", "json", "--socket", machine.agent_socket]
    heard_here = machine.where / "monitor"
    with heard_here.open("w") as output, subprocess.Popen(words, stdout=output, stderr=subprocess.DEVNULL) as monitor:

        def heard(act: Callable[[], Any]) -> dict[str, Any]:
            def found() -> list[dict[str, Any]]:
                act()
                lines = heard_here.read_text().split("\n")[:-1]
                return [each for each in map(json.loads, lines) if each.get("target_port") == CLOSED_PORT]

            return dict(wait_for("the packet in the monitor", found)[0])

        try:
            yield heard
        finally:
            monitor.terminate()


def test_audit_first_then_enforced(link: Link) -> None:
    """Under audit all passes and the monitor names what would not; then a port that no rule opens is closed in both
    families, and `why` of the monitor's line names the policy; the agent goes on all the while."""
    everything = link.passing()
    assert len(everything) == 4
    link.set(policy_audit_mode=True, enable_host_firewall=True)
    link.apply(POLICY)
    assert link.passing() == everything
    with monitoring(link.machine) as heard:
        line = heard(lambda: link.passes(4, CLOSED_PORT))
        assert (line["type"], line["verdict"], line["direction"]) == ("verdict", "audit", "ingress")
    link.set(enable_host_firewall=True)
    assert link.passing() == [(4, OPEN_PORT), (6, OPEN_PORT)]
    for family in OWN:
        with monitoring(link.machine) as heard:
            line = heard(lambda family=family: link.passes(family, CLOSED_PORT))  # type: ignore[misc]
        assert (line["type"], line["target"]) == ("drop", OWN[family])
        answer = told(link.machine, "why", json.dumps(line))
        assert (answer["verdict"], "guard" in json.dumps(answer["reasons"])) == ("deny", True), answer
    assert link.machine.status()["health"] == "ok"
    assert link.machine.ask("GET", "/v1/verify")["equal"]
    link.set()
    assert link.passing() == everything
