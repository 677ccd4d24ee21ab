"""Runs the connectivity tests in a lab that is up: pods of their own, real sockets, and nothing left behind.

Belongs here: making, trying, explaining a failure, removing. Does not belong here: what must come of what
(connectivity_cases.py), how it is printed (cli/connectivity.py).
"""

import fcntl
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlencode

import msgspec

from controlplane.api.connection import Connection
from controlplane.api.quickclient import ApiRefused, ApiUnavailable
from controlplane.lab import connectivity_cases as cases
from controlplane.lab import flows, machine, pods, processes, topology, up
from controlplane.lab.connectivity_cases import Case, Document, Trial
from controlplane.lab.topology import LabNode, LabPod

DROP_S_MAX = 3.0
RECENT_MAX = 4096
REASONS_MAX = 4
LOCK = f"{topology.ROOT}/connectivity.lock"
SERVER = str(Path(flows.__file__).with_name("shop_server.py"))
FAMILY_NAMES = {"ipv4": "IPv4", "ipv6": "IPv6"}
PODS = {pod.name: pod for pod in cases.PODS}


class Outcome(msgspec.Struct, frozen=True):
    """Of one action. `ms`: until the answer, or until it was given up. `why`: lines that help where it is not ok."""

    title: str
    ok: bool
    ms: float
    detail: str
    why: list[str] = []


class Watcher(Protocol):
    """Is told what happens."""

    def note(self, text: str) -> None:
        """What is done now, beside the tests."""

    def test(self, number: int, count: int, test: Trial) -> None:
        """A test begins, the first is 1."""

    def action(self, test: Trial, outcome: Outcome) -> None:
        """An action has ended."""


def run(tests: Sequence[Trial], watcher: Watcher) -> dict[str, list[Outcome]]:
    """The outcomes by test, in order. Raises LabFailure where nothing can be tried."""
    up.read_topology()
    with _alone():
        _remove(watcher.note)  # of a run that was killed
        try:
            mesh, outcomes = _make(watcher.note), {}
            for number, test in enumerate(tests, 1):
                watcher.test(number, len(tests), test)
                outcomes[test.name] = _run(mesh, test, watcher)
            return outcomes
        finally:
            _remove(watcher.note)


@contextmanager
def _alone() -> Iterator[None]:
    with open(LOCK, "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise machine.LabFailure("another connectivity test runs in this lab; wait until it ends") from None
        yield


# --- making and removing ----------------------------------------------------------------------------------------


def _make(note: Callable[[str], None]) -> "_Mesh":
    note(f"Creating namespace {cases.NAMESPACE} with {len(PODS)} pods in {len(topology.CLUSTERS)} clusters")
    for cluster in topology.CLUSTERS:
        _change("apply", cluster.name, cases.manifests_of(cluster.name))
    up.attach_pods(list(PODS.values()))
    for name in cases.HOST_NODES:
        _start_host(topology.node_named(name))
    for name in cases.HOST_NODES:
        pods.wait_serving(topology.node_named(name).netns, cases.HOST_PORT)
    return _Mesh()


def _start_host(node: LabNode) -> None:
    env = {"SHOP_NAME": cases.host_server(node.name), "SHOP_NAMESPACE": cases.NAMESPACE, "SHOP_CLUSTER": node.cluster,
           "SHOP_NODE": node.name}  # fmt: skip
    argv = [sys.executable, "-I", "-S", SERVER, str(cases.HOST_PORT)]
    processes.start(_host_process(node.name), argv, node.netns, f"{node.cgroup}/node", env)


def _host_process(node: str) -> str:
    return f"{cases.NAMESPACE}-{cases.host_server(node)}"


def _remove(note: Callable[[str], None]) -> None:
    """Everything that a run makes, whatever of it is there. Raises LabFailure naming what is left, at the end."""
    left: list[str] = []
    there = [pod for pod in PODS.values() if machine.netns_usable(pod.netns) or processes.find(pods.process_name(pod))]
    for name in cases.HOST_NODES:
        processes.stop(_host_process(name))
    for pod in there:
        with _noting(left):
            pods.remove_pod(pod)
    documents = [policy for test in cases.TESTS for policy in test.policies]
    for cluster in topology.CLUSTERS:
        own = documents if cluster.name == cases.EAST else []
        with _noting(left):
            _change("delete", cluster.name, [*own, *reversed(cases.manifests_of(cluster.name))])
    if left:
        raise machine.LabFailure(f"not everything was removed: {'; '.join(left)}")
    if there:
        note(f"Removed namespace {cases.NAMESPACE} and its pods")


@contextmanager
def _noting(failures: list[str]) -> Iterator[None]:
    try:
        yield
    except machine.LabFailure as error:
        failures.append(str(error))


def _change(verb: str, cluster: str, documents: Sequence[Document]) -> None:
    """Apply or delete, and wait until every node has it. Raises LabFailure naming what was refused."""
    told = [{"document": each, "source": f"{each['kind']} {each['metadata']['name']}"} for each in documents]
    answer = up.ask(topology.operator_socket(cluster), "POST", f"/v1/{verb}", {"documents": told})
    for result in answer["results"]:
        if not result["accepted"]:
            raise machine.LabFailure(f"{verb} {result['source']}: {result['field']}: {result['reason']}")
    for node in topology.NODES:
        target = f"/v1/wait?revision={answer['revision']}&timeout_s={up.REALIZED_S_MAX}"
        up.ask(node.socket, "GET", target)


# --- trying -----------------------------------------------------------------------------------------------------


class _Mesh:
    """Where everybody is, as the log has it."""

    def __init__(self) -> None:
        path = topology.node_named(cases.CLIENT.node).socket
        self._endpoints = up.ask(path, "GET", "/v1/list/endpoint")["items"]
        self._services = up.ask(path, "GET", "/v1/list/service")["items"]

    def pod_address(self, pod: LabPod, family: str) -> str:
        """Raises LabFailure."""
        for each in self._endpoints:
            if f"{each['cluster']}/{each['namespace']}/{each['workload']}" == pod.title and each[family]:
                return str(each[family])
        raise machine.LabFailure(f"pod {pod.title} has no {FAMILY_NAMES[family]} address in the log")

    def target(self, text: str, family: str) -> tuple[str, int]:
        """Address and port. Raises LabFailure."""
        kind, _, name = text.rpartition(":")
        if not kind:
            return self.pod_address(PODS[name], family), cases.POD_PORT
        if kind == "service":
            return self._frontend(name, "ClusterIP", family)
        address = topology.node_named(name).address(family)
        return address, cases.HOST_PORT if kind == "node" else self._frontend("echo-node-port", "NodePort", family)[1]

    def _frontend(self, name: str, kind: str, family: str) -> tuple[str, int]:
        for each in self._services:
            where = each["cluster"], each["namespace"], each["name"], each["type"]
            if where == (cases.EAST, cases.NAMESPACE, name, kind) and (":" in each["address"]) == (family == "ipv6"):
                return str(each["address"]), int(each["port"])
        raise machine.LabFailure(f"service {cases.NAMESPACE}/{name} has no {FAMILY_NAMES[family]} {kind} frontend")

    def source_address(self, source: str, family: str) -> str:
        """Of a pod or a node; that of the client outside."""
        kind, _, name = source.rpartition(":")
        if kind:
            return topology.node_named(name).address(family)
        if name in PODS:
            return self.pod_address(PODS[name], family)
        return str(getattr(topology.OUTSIDE, family)).partition("/")[0]


def _run(mesh: _Mesh, test: Trial, watcher: Watcher) -> list[Outcome]:
    """Every case over both families, under the test's policies."""
    outcomes: list[Outcome] = []
    if test.policies:
        _change("apply", cases.EAST, test.policies)
    try:
        for case in test.cases:
            for family in flows.FAMILIES:
                outcomes.append(_try(mesh, case, family))
                watcher.action(test, outcomes[-1])
    finally:
        if test.policies:
            _change("delete", cases.EAST, test.policies)
    return outcomes


def _try(mesh: _Mesh, case: Case, family: str) -> Outcome:
    title = f"{case.title} ({FAMILY_NAMES[family]})"
    try:
        address, port = mesh.target(case.target, family)
        begun_ns = time.time_ns()
        verdict = _request(case.source, address, port)
    except machine.LabFailure as error:
        return Outcome(title, False, 0.0, str(error))
    who = flows.answered_by(verdict).rpartition("/")[2]
    asked = f"{case.source} -> {case.target} ({flows.address_text(address, port)})"
    ms = float(verdict["ms"])
    if case.answered_by:
        said = f"{who} answered" if who else f"no answer: {verdict.get('error', '')}"
        well = who == case.answered_by
        why = [] if well else _why(mesh, case, family, port, begun_ns)
        return Outcome(title, well, ms, f"{asked}: {said}", why)
    if who:
        detail = f"{asked}: denied by policy, but {who} answered"
        return Outcome(title, False, ms, detail, _why(mesh, case, family, port))
    drop = _find_drop(mesh.source_address(case.source, family), begun_ns)
    if drop is None:
        detail = f"{asked}: no answer ({verdict.get('error', '')}), but no policy drop was told"
        return Outcome(title, False, ms, detail, _why(mesh, case, family, port, begun_ns))
    return Outcome(title, True, ms, f"{asked}: {_drop_text(drop)}")


def _request(source: str, address: str, port: int) -> Mapping[str, Any]:
    """One HTTP request by real sockets. Raises LabFailure."""
    kind, _, name = source.rpartition(":")
    if kind == "node":
        return flows.request_host(topology.node_named(name), address, port)
    if name in PODS:
        return flows.request(PODS[name], address, port)
    return flows.request_outside(address, port)


# --- explaining -------------------------------------------------------------------------------------------------


def _drops(source: str, since_ns: int) -> list[dict[str, Any]]:
    """What all nodes told since then of packets that an address sent."""
    found = []
    for node in topology.NODES:
        with suppress(ApiUnavailable, ApiRefused):
            told = list(Connection(node.socket).lines(f"/v1/monitor?recent={RECENT_MAX}&follow=0"))
            found += [each for each in told if each["type"] == "drop" and each["wall_time_ns"] >= since_ns
                      and each["source"] == source]  # fmt: skip
    return found


def _find_drop(source: str, since_ns: int) -> dict[str, Any] | None:
    """One by policy; waits for it, since notifications are gathered."""
    found: list[dict[str, Any]] = []

    def is_told() -> bool:
        found[:] = [each for each in _drops(source, since_ns) if each["reason"].startswith("Policy denied")]
        return bool(found)

    machine.wait_for(is_told, DROP_S_MAX, 0.1)
    return found[0] if found else None


def _drop_text(drop: Mapping[str, Any]) -> str:
    return f"{drop['reason']} ({drop['reason_code']}) on {drop['cluster']}/{drop['node']}"


def _why(mesh: _Mesh, case: Case, family: str, port: int, since_ns: int | None = None) -> list[str]:
    """What the log says of the flow, and what nodes told of its packets."""
    target, service_port = _end(case.target), "80" if case.target.startswith("service:") else str(port)
    query = {"from": _end(case.source), "to": target, "port": f"{service_port}/TCP"}
    lines = [f"meshlog why --from {query['from']} --to {query['to']} --port {query['port']}"]
    try:
        answer = up.ask(topology.node_named(cases.CLIENT.node).socket, "GET", f"/v1/why?{urlencode(query)}")
        lines += [f"{answer['verdict']}: {reason}" for reason in answer["reasons"][:REASONS_MAX]]
    except machine.LabFailure as error:
        lines.append(str(error))
    if since_ns is not None:
        drops = _drops(mesh.source_address(case.source, family), since_ns)
        lines += sorted({f"told: {_drop_text(drop)}" for drop in drops})[:REASONS_MAX]
    return lines


def _end(text: str) -> str:
    """As `why` has it."""
    kind, _, name = text.rpartition(":")
    if kind == "service":
        return f"service:{cases.NAMESPACE}/{name}"
    if kind in ("node", "nodeport"):
        return f"node:{name}"
    return f"{PODS[name].cluster}:{cases.NAMESPACE}/{name}" if name in PODS else "entity:world"
