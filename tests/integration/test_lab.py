"""The whole mesh: built, shown, removed, as `make mesh` and `make mesh-down` do."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration import lab

ROOT = Path(__file__).parents[2]

pytestmark = [pytest.mark.kernel("TCX links"), pytest.mark.kernel("bpf_redirect_peer")]


@pytest.fixture(autouse=True)
def no_lab() -> Iterator[None]:
    """No lab before, none after."""
    lab.well("lab", "down")
    yield
    lab.well("lab", "down")


def told() -> dict[str, Any]:
    """The story, as values; fails with the verdicts that are not ok."""
    done = lab.meshlog("lab", "story", "-o", "json")
    assert done.stdout, done.stderr
    story: dict[str, Any] = json.loads(done.stdout)
    assert [verdict for verdict in story["verdicts"] if not verdict["ok"]] == []
    assert (done.returncode, story["ok"]) == (0, True)
    return story


def test_the_story_is_told_twice_and_leaves_no_trace() -> None:
    """Every flow, drop, restart and digest of the story is as promised, on a new mesh and on one that runs already,
    and after its end nothing is left."""
    story = told()
    titles = " ".join(verdict["title"] for verdict in story["verdicts"])
    parts = ("across nodes (IPv6)", "across clusters (IPv4)", "global service", "client outside", "denied", "TCP stream")
    for part in (*parts, "replay"):
        assert part in titles
    restart = story["figures"]["restart"]
    assert restart["stream"]["bytes"] > 100_000
    assert restart["datagrams"]["sent"] > 100
    assert (restart["stream"]["bytes_lost"], restart["datagrams"]["lost"], restart["map_writes"]) == (0, 0, 0)
    assert len(story["figures"]["replay"]["nodes"]) == 4
    told()
    lab.well("lab", "down")
    assert lab.traces() == []


def test_the_commands_of_the_readme_run() -> None:
    """Every `meshlog` command that README shows works on a mesh as `make mesh` leaves it; those that never end are
    ended once they have begun."""
    lab.well("lab", "up")
    blocks = re.findall(r"```sh\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    lines = [line.partition(" #")[0] for block in blocks for line in block.splitlines()]
    commands = [shlex.split(line)[1:] for line in lines if line.startswith("meshlog ")]
    assert commands
    for words in commands:
        if words[0] == "monitor":
            lab.begun(*words)
        else:
            lab.well(*words)


def test_a_second_up_changes_nothing() -> None:
    """`lab up` on a lab that runs starts no process again and writes no record."""
    lab.well("lab", "up")
    before = lab.answer("lab", "status")
    records = lab.answer("log", "list", "--socket", lab.socket_of("east-1"))
    lab.well("lab", "up")
    assert lab.answer("lab", "status") == before
    assert lab.answer("log", "list", "--socket", lab.socket_of("east-1")) == records


def test_a_second_up_fills_what_is_missing() -> None:
    """An agent and a pod's process that were killed are started again, and the lab is well."""
    lab.well("lab", "up")
    for process in ("agent-west-1", "pod-east-shop-cart"):
        os.kill(lab.recorded_pid(process), signal.SIGKILL)
    assert lab.meshlog("lab", "status").returncode == 1
    lab.well("lab", "up")
    lab.well("lab", "status")


def test_down_after_a_crash_of_everything() -> None:
    """All processes killed, all records lost: names alone suffice to remove every trace."""
    lab.well("lab", "up")
    for record in (lab.ROOT / "processes").glob("*.json"):
        os.kill(lab.recorded_pid(record.stem), signal.SIGKILL)
    shutil.rmtree(lab.ROOT / "processes")
    (lab.ROOT / "topology.json").unlink()
    assert "No trace" in lab.well("lab", "down")
    assert lab.traces() == []


def test_down_with_running_processes_and_lost_records() -> None:
    """Processes that no record names are found by their cgroup."""
    lab.well("lab", "up", "--no-pods")
    shutil.rmtree(lab.ROOT / "processes")
    lab.well("lab", "down")
    assert lab.traces() == []


def test_down_of_a_half_built_lab() -> None:
    """A namespace, a file where a namespace should have been, an empty directory: all of it goes."""
    subprocess.run(["ip", "netns", "add", f"{lab.NAME}-east-1"], check=True)
    Path(f"/run/netns/{lab.NAME}-wire").touch()
    (lab.ROOT / "bpf").mkdir(parents=True)
    lab.well("lab", "down")
    assert lab.traces() == []


def test_up_after_a_half_built_lab() -> None:
    """A build that broke off is completed by the next."""
    subprocess.run(["ip", "netns", "add", f"{lab.NAME}-east-1"], check=True)
    Path(f"/run/netns/{lab.NAME}-wire").touch()
    lab.well("lab", "up", "--no-pods")
    lab.well("lab", "status")


def test_exec_runs_inside_a_pod() -> None:
    """The command sees the pod's addresses, finds the program on its PATH and asks the pod's node."""
    lab.well("lab", "up")
    endpoints = lab.answer("endpoint", "list", "--socket", lab.socket_of("east-1"))
    cart = next(endpoint for endpoint in endpoints if endpoint["workload"] == "cart")
    shown = lab.well("lab", "exec", "east/shop/cart", "--", "ip", "-o", "address")
    assert cart["ipv4"] in shown
    assert cart["ipv6"] in shown
    status = lab.well("lab", "exec", "east/shop/cart", "--", "meshlog", "status", "-o", "json")
    assert json.loads(status)["node"] == "east-1"


def test_the_machines_own_network_stays_as_it_is() -> None:
    """No link, address or route of the machine's own namespace changes while a lab is built and removed."""

    def seen() -> str:
        shown = [subprocess.run(["ip", "-o", kind], capture_output=True, text=True, check=True).stdout
                 for kind in ("link", "route")]
        return "\n".join(shown)

    before = seen()
    lab.well("lab", "up")
    during = seen()
    lab.well("lab", "down")
    assert (during, seen()) == (before, before)
