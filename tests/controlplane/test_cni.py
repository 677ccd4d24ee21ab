"""The CNI plugin as a container runtime calls it: a process, an environment, JSON in and out. The agent is a fake."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from controlplane import cni
from tests.controlplane.cli.fake_agent import FakeAgent

CONTAINER = "c0ffee"
ENVIRONMENT = {
    "CNI_CONTAINERID": CONTAINER, "CNI_NETNS": "/run/netns/x", "CNI_IFNAME": "eth0", "CNI_PATH": "/opt/cni/bin",
    "CNI_ARGS": "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=cart",
}
ENDPOINT: dict[str, Any] = {
    "cluster": "east", "node": "n1", "endpoint_id": 7, "identity": 65793,
    "addresses": [
        {"address": "10.1.0.7/32", "gateway": "10.1.0.1"}, {"address": "fd00:1::7/128", "gateway": "fd00:1::1"},
    ],
    "routes": {"0.0.0.0/0": "10.1.0.1", "::/0": "fd00:1::1"}, "host_device": "ml7", "host_mac": "02:00:00:00:00:02",
    "device": "eth0", "mac": "02:00:00:00:00:01", "mtu": 1500, "revision": 9,
}
PATH = f"/v1/endpoints/{CONTAINER}/eth0"
Call = Callable[..., tuple[int, Any]]


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[FakeAgent]:
    """The node's agent."""
    fake = FakeAgent(tmp_path / "agent.sock")
    try:
        yield fake
    finally:
        fake.close()


@pytest.fixture
def call(tmp_path: Path) -> Call:
    """Run the plugin: (exit status, what it printed)."""

    def run(command: str, config: Any = None, **changes: str | None) -> tuple[int, Any]:
        given = {"cniVersion": "1.0.0", "name": "mesh", "type": "meshlog", "socket": str(tmp_path / "agent.sock")}
        raw = config if isinstance(config, str) else json.dumps({**given, **(config or {})})
        env = {**ENVIRONMENT, "CNI_COMMAND": command, "PATH": os.environ["PATH"], **changes}
        done = subprocess.run(
            [sys.executable, "-I", "-m", "controlplane.cni"], input=raw, capture_output=True, text=True, check=False,
            env={name: value for name, value in env.items() if value is not None},
        )
        assert done.stderr == ""
        return done.returncode, json.loads(done.stdout) if done.stdout.strip() else None

    return run


def test_version_names_what_is_supported(call: Call) -> None:
    """VERSION needs no agent and lists the versions of the specification."""
    status, answer = call("VERSION")
    assert (status, answer["supportedVersions"]) == (0, ["0.4.0", "1.0.0", "1.1.0"])


def test_add_asks_for_the_workload_by_name(agent: FakeAgent, call: Call) -> None:
    """The request carries container, interface, namespace path and the pod's name from CNI_ARGS."""
    agent.answers["POST", "/v1/endpoints"] = (200, ENDPOINT)
    call("ADD")
    assert agent.asked[0][2] == {
        "container_id": CONTAINER, "interface": "eth0", "netns": "/run/netns/x", "namespace": "shop",
        "workload": "cart", "mtu": 0,
    }


def test_add_answers_with_a_result_of_the_specification(agent: FakeAgent, call: Call) -> None:
    """Interfaces on both sides, addresses bound to the inner one, routes."""
    agent.answers["POST", "/v1/endpoints"] = (200, ENDPOINT)
    status, answer = call("ADD")
    assert status == 0
    assert answer == {
        "cniVersion": "1.0.0",
        "interfaces": [
            {"name": "ml7", "mac": "02:00:00:00:00:02"},
            {"name": "eth0", "mac": "02:00:00:00:00:01", "sandbox": "/run/netns/x"},
        ],
        "ips": [
            {"interface": 1, "address": "10.1.0.7/32", "gateway": "10.1.0.1"},
            {"interface": 1, "address": "fd00:1::7/128", "gateway": "fd00:1::1"},
        ],
        "routes": [{"dst": "0.0.0.0/0", "gw": "10.1.0.1"}, {"dst": "::/0", "gw": "fd00:1::1"}],
        "dns": {},
    }


def test_add_of_version_0_4_0_says_the_family(agent: FakeAgent, call: Call) -> None:
    """Before 1.0.0 every address names its version."""
    agent.answers["POST", "/v1/endpoints"] = (200, ENDPOINT)
    _, answer = call("ADD", {"cniVersion": "0.4.0"})
    assert (answer["cniVersion"], [ip["version"] for ip in answer["ips"]]) == ("0.4.0", ["4", "6"])


def test_add_of_version_1_1_0_says_the_mtu(agent: FakeAgent, call: Call) -> None:
    """From 1.1.0 on interfaces carry their MTU."""
    agent.answers["POST", "/v1/endpoints"] = (200, ENDPOINT)
    _, answer = call("ADD", {"cniVersion": "1.1.0"})
    assert [interface["mtu"] for interface in answer["interfaces"]] == [1500, 1500]


def test_del_removes_the_attachment(agent: FakeAgent, call: Call) -> None:
    """DEL asks for exactly this container and interface, and prints nothing."""
    agent.answers["DELETE", PATH] = (200, {"removed": True, "revision": 9})
    assert call("DEL") == (0, None)
    assert agent.asked[0][:2] == ("DELETE", PATH)


@pytest.mark.parametrize("answer", [(200, {"removed": False, "revision": 9}), (404, {"error": "absent"})])
def test_del_of_what_is_gone_succeeds(agent: FakeAgent, call: Call, answer: tuple[int, Any]) -> None:
    """DEL may come twice, or for an ADD that never happened."""
    agent.answers["DELETE", PATH] = answer
    assert call("DEL", CNI_NETNS=None) == (0, None)


def checked(*problems: str) -> tuple[int, Any]:
    """The agent's answer to a check."""
    endpoint = {"endpoint_id": 7, "ipv4": "10.1.0.7", "ipv6": "fd00:1::7"}
    return 200, {"endpoint": endpoint, "ok": not problems, "problems": list(problems)}


def test_check_of_a_sound_endpoint_succeeds(agent: FakeAgent, call: Call) -> None:
    """Log, device, kernel and the runtime's own record agree."""
    agent.answers["GET", PATH] = checked()
    assert call("CHECK", {"prevResult": {"ips": [{"address": "10.1.0.7/32"}]}}) == (0, None)


def test_check_names_what_is_wrong(agent: FakeAgent, call: Call) -> None:
    """A problem the agent finds is an error of ours, in its words."""
    agent.answers["GET", PATH] = checked("the device is gone")
    status, answer = call("CHECK", {"prevResult": {"ips": []}})
    assert (status, answer["code"]) == (1, cni.CHECK_FAILED)
    assert "the device is gone" in answer["msg"]


def test_check_compares_the_runtimes_record(agent: FakeAgent, call: Call) -> None:
    """An address that the runtime remembers and the endpoint has not is an error."""
    agent.answers["GET", PATH] = checked()
    status, answer = call("CHECK", {"prevResult": {"ips": [{"address": "10.9.9.9/32"}]}})
    assert (status, answer["code"]) == (1, cni.CHECK_FAILED)
    assert "10.9.9.9/32" in answer["msg"]


def test_check_of_an_unknown_container(agent: FakeAgent, call: Call) -> None:
    """The code tells the runtime that there is nothing to clean up."""
    agent.answers["GET", PATH] = (404, {"error": "absent"})
    assert call("CHECK", {"prevResult": {"ips": []}})[1]["code"] == cni.UNKNOWN_CONTAINER


def test_gc_removes_what_the_runtime_no_longer_knows(agent: FakeAgent, call: Call) -> None:
    """Only this node's attachments that are not in the list go."""
    here = {"cluster": "east", "node": "n1", "interface": "eth0"}
    items = [here | {"container_id": "keep"}, here | {"container_id": "drop"},
             here | {"container_id": "remote", "node": "n2"}]
    agent.answers["GET", "/v1/status"] = (200, {"cluster": "east", "node": "n1"})
    agent.answers["GET", "/v1/list/endpoint"] = (200, {"items": items})
    agent.answers["DELETE", "/v1/endpoints/drop/eth0"] = (200, {"removed": True})
    valid = [{"containerID": "keep", "ifname": "eth0"}]
    assert call("GC", {"cniVersion": "1.1.0", "cni.dev/valid-attachments": valid})[0] == 0
    assert [asked[1] for asked in agent.asked if asked[0] == "DELETE"] == ["/v1/endpoints/drop/eth0"]


def test_status_of_a_node_that_is_not_ready(agent: FakeAgent, call: Call) -> None:
    """STATUS tells the runtime not to send workloads yet."""
    agent.answers["GET", "/v1/status"] = (200, {"ready": False, "problems": ["etcd is away"]})
    assert call("STATUS")[1]["code"] == cni.NOT_AVAILABLE


@pytest.mark.parametrize("command", ["ADD", "DEL"])
def test_an_absent_agent_means_try_again(call: Call, command: str) -> None:
    """The runtime keeps the pod and comes back: code 11, with the socket in the details."""
    status, answer = call(command)
    assert (status, answer["code"]) == (1, cni.TRY_AGAIN)
    assert "agent.sock" in answer["details"]


@pytest.mark.parametrize(("status", "code"), [(503, cni.TRY_AGAIN), (409, cni.REFUSED), (400, cni.REFUSED)])
def test_a_refusal_carries_the_agents_reason(agent: FakeAgent, call: Call, status: int, code: int) -> None:
    """What can pass is to be tried again; what cannot is an error of ours."""
    agent.answers["POST", "/v1/endpoints"] = (status, {"error": "no address left", "field": ""})
    answer = call("ADD")[1]
    assert answer["code"] == code
    assert "no address left" in answer["msg"]


@pytest.mark.parametrize(
    "changes",
    [
        {"CNI_CONTAINERID": None}, {"CNI_CONTAINERID": "../x"}, {"CNI_IFNAME": None}, {"CNI_IFNAME": "a/b"},
        {"CNI_IFNAME": "sixteencharacter"}, {"CNI_NETNS": None}, {"CNI_ARGS": None}, {"CNI_ARGS": "K8S_POD_NAME"},
        {"CNI_ARGS": "K8S_POD_NAMESPACE=shop"}, {"CNI_COMMAND": "NONSENSE"},
    ],
)
def test_a_wrong_environment_names_the_variable(call: Call, changes: dict[str, str | None]) -> None:
    """Code 4, and the message names the variable."""
    answer = call("ADD", **changes)[1]
    assert answer["code"] == cni.INVALID_ENVIRONMENT
    assert next(iter(changes)) in answer["msg"]


@pytest.mark.parametrize(
    ("config", "code"),
    [
        ("{", cni.UNDECODABLE), ("[]", cni.UNDECODABLE), ({"cniVersion": "9.9.9"}, cni.INCOMPATIBLE_VERSION),
        ({"cniVersion": None}, cni.INCOMPATIBLE_VERSION), ({"name": ""}, cni.INVALID_CONFIG),
        ({"socket": "relative"}, cni.INVALID_CONFIG), ({"mtu": "big"}, cni.INVALID_CONFIG),
        ({"mtu": 1}, cni.INVALID_CONFIG), ({"ipam": {"type": "host-local"}}, cni.UNSUPPORTED_FIELD),
    ],
)
def test_a_wrong_configuration_has_the_codes_of_the_specification(call: Call, config: Any, code: int) -> None:
    """Each mistake has its code, and nothing is asked of the agent."""
    status, answer = call("ADD", config)
    assert (status, answer["code"]) == (1, code)
    assert answer["cniVersion"] in cni.SUPPORTED_VERSIONS


def test_the_only_agent_is_found_without_a_socket(tmp_path: Path) -> None:
    """A configuration without `socket` works where one agent runs."""
    (tmp_path / "n1").mkdir()
    (tmp_path / "n1" / "agent.sock").touch()
    assert cni.agent_sockets(str(tmp_path)) == [str(tmp_path / "n1" / "agent.sock")]
