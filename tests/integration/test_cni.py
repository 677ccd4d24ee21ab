"""The CNI plugin against a real agent: a kubelet's calls, a real namespace, real devices."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from controlplane import cni
from tests.integration import lab

pytestmark = [pytest.mark.kernel("TCX links"), pytest.mark.kernel("bpf_redirect_peer")]
POD = """apiVersion: v1
kind: Pod
metadata: {name: visitor, namespace: shop, labels: {app: visitor}}
spec: {nodeName: east-1, containers: [{name: visitor, image: none}]}
"""
NETNS = f"{lab.NAME}-visitor"
CONFIG = {"cniVersion": "1.0.0", "name": "mesh", "type": "meshlog", "socket": lab.socket_of("east-1")}


@pytest.fixture(scope="module", autouse=True)
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A mesh whose log knows one more pod, which nobody has attached yet."""
    manifest = tmp_path_factory.mktemp("pod") / "visitor.yaml"
    manifest.write_text(POD)
    lab.well("lab", "down")
    lab.well("lab", "up", "--no-pods")
    lab.well("apply", "-f", str(manifest), "--socket", lab.operator_of("east"))
    yield
    lab.well("lab", "down")


@pytest.fixture
def netns() -> Iterator[str]:
    """A pod's namespace, as a container runtime makes it; the attachment is removed afterwards."""
    subprocess.run(["ip", "netns", "add", NETNS], check=True)
    yield f"/run/netns/{NETNS}"
    call("DEL")
    subprocess.run(["ip", "netns", "del", NETNS], check=True)


def call(command: str, previous: Any = None, **changes: str) -> tuple[int, Any]:
    """The plugin as a process: (exit status, what it printed)."""
    env = {
        "PATH": os.environ["PATH"], "CNI_COMMAND": command, "CNI_CONTAINERID": "visitor-1", "CNI_IFNAME": "eth0",
        "CNI_NETNS": f"/run/netns/{NETNS}", "CNI_ARGS": "K8S_POD_NAMESPACE=shop;K8S_POD_NAME=visitor", **changes,
    }
    config = CONFIG if previous is None else {**CONFIG, "prevResult": previous}
    done = subprocess.run(
        [str(Path(sys.executable).parent / "meshlog-cni")], input=json.dumps(config), env=env, capture_output=True,
        text=True, check=False,
    )
    return done.returncode, json.loads(done.stdout) if done.stdout.strip() else None


def inside(*words: str) -> str:
    """What a command prints in the pod's namespace."""
    done = subprocess.run(["ip", "-n", NETNS, *words], capture_output=True, text=True, check=True)
    return done.stdout


def endpoints() -> list[dict[str, Any]]:
    """Of the node."""
    found: list[dict[str, Any]] = lab.answer("endpoint", "list", "--socket", lab.socket_of("east-1"))
    return found


def test_add_gives_the_pod_a_device_with_its_addresses(netns: str) -> None:
    """The result is what the namespace has: device, MAC, both addresses, default routes; the endpoint is ready."""
    status, answer = call("ADD")
    assert status == 0, answer
    shown = inside("-o", "address", "show", "dev", "eth0")
    assert [ip["address"] for ip in answer["ips"] if ip["address"].partition("/")[0] not in shown] == []
    assert answer["interfaces"][1]["mac"] in inside("link", "show", "dev", "eth0")
    assert "default" in inside("route")
    assert [endpoint["state"] for endpoint in endpoints()] == ["ready"]


def test_add_twice_is_one_endpoint(netns: str) -> None:
    """A runtime that repeats ADD gets the same addresses, not a second endpoint."""
    first, second = call("ADD")[1], call("ADD")[1]
    assert first["ips"] == second["ips"]
    assert len(endpoints()) == 1


def test_check_accepts_what_add_made(netns: str) -> None:
    """CHECK with ADD's own result succeeds."""
    answer = call("ADD")[1]
    assert call("CHECK", previous=answer) == (0, None)


def test_check_sees_a_device_that_is_gone(netns: str) -> None:
    """Somebody deleted the device: CHECK says so."""
    answer = call("ADD")[1]
    inside("link", "del", "eth0")
    status, error = call("CHECK", previous=answer)
    assert (status, error["code"]) == (1, cni.CHECK_FAILED)


def test_del_leaves_nothing_and_may_come_twice(netns: str) -> None:
    """Device and endpoint are gone, the second DEL succeeds too, and the kernel holds what the log says."""
    call("ADD")
    assert call("DEL") == (0, None)
    assert call("DEL") == (0, None)
    assert endpoints() == []
    assert "eth0" not in inside("-o", "link", "show")
    lab.well("verify", "--socket", lab.socket_of("east-1"))


def test_del_works_without_the_namespace(netns: str) -> None:
    """The runtime removed the namespace first: DEL succeeds all the same."""
    call("ADD")
    subprocess.run(["ip", "netns", "del", NETNS], check=True)
    try:
        assert call("DEL", CNI_NETNS="") == (0, None)
        assert endpoints() == []
    finally:
        subprocess.run(["ip", "netns", "add", NETNS], check=True)


def test_add_into_a_namespace_that_is_not_there_leaves_nothing(netns: str) -> None:
    """A wrong path is an error of the specification's shape, and no endpoint stays behind."""
    status, error = call("ADD", CNI_NETNS="/run/netns/no-such-namespace")
    assert status == 1
    assert error["code"] >= 4
    assert endpoints() == []


def test_check_of_an_attachment_that_never_was(netns: str) -> None:
    """The code tells the runtime that there is nothing to clean up."""
    assert call("CHECK", previous={"ips": []})[1]["code"] == cni.UNKNOWN_CONTAINER
