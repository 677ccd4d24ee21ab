"""Builds the lab, in order; every step is safe to repeat, so that a second run only fills what is missing.

Belongs here: the order, and what is said about it. Does not belong here: how one thing is made (nodes.py, pods.py).
"""

import os
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

import msgspec

from controlplane.api.connection import Connection
from controlplane.api.quickclient import ApiRefused, ApiUnavailable
from controlplane.lab import machine, nodes, pods, processes, topology
from controlplane.lab.flows import POD_PORT
from controlplane.lab.topology import LabNode, LabPod

TOPOLOGY_FILE = Path(topology.ROOT) / "topology.json"
OBJECTS = Path(__file__).resolve().parents[2] / "bpf"
REALIZED_S_MAX = 20.0


class LabTopology(msgspec.Struct, frozen=True):
    """What runs, for `lab status` and `lab exec`."""

    nodes: tuple[LabNode, ...]
    pods: tuple[LabPod, ...]
    tunnel: str = ""


class Progress:
    """One line per step: what is being done while it is done, and how long it took after it."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    @contextmanager
    def step(self, text: str) -> Iterator[None]:
        """The line stays open until the step ends."""
        print(f"  {text} ...", end=" ", file=self._stream, flush=True)
        started = time.monotonic()
        try:
            yield
        except BaseException:
            print("failed", file=self._stream, flush=True)
            raise
        print(f"{time.monotonic() - started:.1f} s", file=self._stream, flush=True)

    def note(self, text: str) -> None:
        """A line of its own."""
        print(text, file=self._stream, flush=True)


def build(progress: Progress, with_pods: bool = True, tunnel: str | None = None) -> LabTopology:
    """The whole lab. `tunnel`: how nodes wrap packets for each other, "" for not at all; None: as it is now.

    Raises LabFailure; what was built stays for a look, and `lab down` removes it.
    """
    check_machine()
    wrapped = tunnel if tunnel is not None else _tunnel_there()
    with progress.step(f"joining {len(topology.NODES)} nodes and a client outside by a bridge"):
        machine.ensure_bpffs(topology.BPFFS)
        nodes.build_wire()
        for node in topology.NODES:
            nodes.build_node(node)
        nodes.build_outside()
    with progress.step("starting etcd"):
        nodes.ensure_etcd()
    with progress.step(f"starting {len(topology.CLUSTERS)} operators"):
        _start_operators(wrapped)
    with progress.step(f"starting {len(topology.NODES)} agents"):
        start_agents()
    wait_routing(wrapped)
    found = _pods_there()
    if with_pods:
        found = [pod for cluster in topology.CLUSTERS for pod in pods.pods_of(cluster.name)]
        with progress.step("applying the shop's manifests"):
            for cluster in topology.CLUSTERS:
                apply_manifests(cluster.name)
        with progress.step(f"attaching {len(found)} pods through the CNI plugin"):
            attach_pods(found)
    built = LabTopology(topology.NODES, tuple(found), wrapped)
    TOPOLOGY_FILE.write_bytes(msgspec.json.format(msgspec.json.encode(built)))
    return built


def _pods_there() -> list[LabPod]:
    """Those of an earlier build."""
    try:
        return list(read_topology().pods)
    except machine.LabFailure:
        return []


def _tunnel_there() -> str:
    try:
        return read_topology().tunnel
    except machine.LabFailure:
        return ""


def read_topology() -> LabTopology:
    """Raises LabFailure where no lab runs."""
    try:
        return msgspec.json.decode(TOPOLOGY_FILE.read_bytes(), type=LabTopology)
    except (OSError, msgspec.MsgspecError):
        raise machine.LabFailure("no lab runs here; start one with `meshlog lab up`") from None


def check_machine() -> None:
    """Everything that a lab needs, before anything is made. Raises LabFailure."""
    if os.geteuid() != 0:
        raise machine.LabFailure("the lab makes network namespaces and loads programs: run it as root")
    missing = machine.missing_tools()
    if missing:
        raise machine.LabFailure(f"missing programs: {', '.join(missing)}; `make mesh` installs them")
    if not list(OBJECTS.glob("*.bpf.o")):
        raise machine.LabFailure(f"no compiled programs in {OBJECTS}; build them with `make build`")
    if not Path(nodes.meshlog_program()).exists():
        raise machine.LabFailure(f"{nodes.meshlog_program()} is absent; install Meshlog with `make venv`")
    machine.cgroup_root()


def _start_operators(tunnel: str) -> None:
    for cluster in topology.CLUSTERS:
        nodes.ensure_operator(cluster, tunnel)
    for cluster in topology.CLUSTERS:
        nodes.wait_ready(f"operator-{cluster.name}", topology.operator_socket(cluster.name))


def start_agents() -> None:
    """All of them at once, then wait for each."""
    for node in topology.NODES:
        nodes.ensure_agent(node)
    for node in topology.NODES:
        nodes.wait_ready(nodes.agent_name(node), node.socket)


def wait_routing(tunnel: str) -> None:
    """Wait until every node sends to every other as it should. Raises LabFailure."""
    wanted = f"tunnel [{tunnel}]" if tunnel else "native"
    for node in topology.NODES:
        status: dict[str, Any] = {}

        def is_so(node: LabNode = node, status: dict[str, Any] = status) -> bool:
            status.update(nodes.status_of(node.socket) or {})
            return status.get("routing_mode") == wanted and "natively" not in " ".join(status.get("problems", ()))

        if not machine.wait_for(is_so, REALIZED_S_MAX):
            problems = "; ".join(status.get("problems", ())) or f"its routing is {status.get('routing_mode')}"
            raise machine.LabFailure(f"{node.name} does not route by {wanted}: {problems}")


def apply_manifests(cluster: str) -> int:
    """Apply the cluster's manifests through its operator; the revision. Raises LabFailure naming what was refused."""
    documents = pods.manifests_of(cluster)
    answer = ask(topology.operator_socket(cluster), "POST", "/v1/apply", {"documents": documents})
    for result in answer["results"]:
        if not result["accepted"]:
            where = f"{result['source']}: {result['kind']} {result['name']}"
            raise machine.LabFailure(f"{where} was refused: {result['field']}: {result['reason']}")
    return int(answer["revision"])


def attach_pods(found: list[LabPod]) -> None:
    """Several at a time, as kubelets do; then wait until all serve, and every node's kernel holds all of it."""
    with ThreadPoolExecutor(max_workers=len(topology.NODES)) as pool:
        list(pool.map(pods.ensure_pod, found))
    for pod in found:
        if processes.find(pods.process_name(pod)) is None:
            name = pods.process_name(pod)
            raise machine.LabFailure(f"pod {pod.title}: its process ended{processes.last_line(name)}")
        pods.wait_serving(pod.netns, POD_PORT)
    wait_realized()


def last_record() -> int:
    """The revision of the newest record that any agent has applied; 0 where there is none."""
    found = 0
    for node in topology.NODES:
        try:
            for record in Connection(node.socket).lines(f"/v1/log?after={found}"):
                found = max(found, int(record["revision"]))
        except (ApiUnavailable, ApiRefused) as error:
            raise machine.LabFailure(f"the log of {node.name}: {error}") from None
    return found


def wait_realized() -> int:
    """Wait until every node's kernel holds every record of now; the newest's revision. Raises LabFailure."""
    revision = last_record()
    for node in topology.NODES:
        ask(node.socket, "GET", f"/v1/wait?revision={revision}&timeout_s={REALIZED_S_MAX}")
    return revision


def ask(socket_path: str, method: str, target: str, body: Any = None) -> Any:
    """One request whose failure ends the step. Raises LabFailure."""
    try:
        return Connection(socket_path, timeout_s=60).send(method, target, body)
    except (ApiUnavailable, ApiRefused) as error:
        raise machine.LabFailure(f"{method} {target} on {socket_path}: {error}") from None


def progress_to_stderr() -> Progress:
    return Progress(sys.stderr)
