"""A running agent: endpoints, the CNI plugin, the first policy, a restart, memory; beside Cilium's on a like machine.

One node of a lab of the bench's own, with real etcd, operator, agent, devices and programs. Wall time as a caller
sees it; of a shared machine, so read it beside the row's own spread from run to run.
"""

import asyncio
import os
import signal
import statistics
import time
from pathlib import Path
from typing import Any

os.environ["MESHLOG_LAB"] = "mlbench"

from controlplane.api.connection import Connection
from controlplane.codec import encode
from controlplane.events import Batch
from controlplane.lab import down, machine, nodes, pods, processes, topology
from controlplane.lab.topology import LabPod
from kvstore.etcd import EtcdLog
from tests.bench.report import Row
from tests.bench.world import CLUSTER, world

ENDPOINTS = 110
BY_PLUGIN = 10
NODE = topology.node_named("east-1")
EAST = next(each for each in topology.CLUSTERS if each.name == NODE.cluster)
FAR_ENDPOINTS = 50_000
SETTLE_S_MAX = 60.0
NAMESPACE = "bench"
DENY_ALL = {
    "apiVersion": "networking.k8s.io/v1",
    "kind": "NetworkPolicy",
    "metadata": {"name": "first", "namespace": NAMESPACE},
    "spec": {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]},
}


def measure() -> list[Row]:
    """All rows of this file."""
    try:
        _start()
        return [*_creations(), _first_policy(), *_restart(), _far_memory()]
    finally:
        down.tear_down(lambda text: None)


def _start() -> None:
    nodes.build_wire()
    nodes.build_node(NODE)
    machine.ensure_bpffs(topology.BPFFS)
    nodes.ensure_etcd()
    nodes.ensure_operator(EAST, tunnel="")
    nodes.wait_ready("operator-east", topology.operator_socket("east"))
    nodes.ensure_agent(NODE)
    nodes.wait_ready(nodes.agent_name(NODE), NODE.socket)
    machine.wait_for(lambda: bool(_get("/v1/list/node")["items"][0]["pod_cidrs"]), SETTLE_S_MAX)


def _get(path: str) -> Any:
    return Connection(NODE.socket, timeout_s=SETTLE_S_MAX).get(path)


def _post(path: str, body: Any) -> Any:
    return Connection(NODE.socket, timeout_s=SETTLE_S_MAX).send("POST", path, body)


def _pod(n: int) -> LabPod:
    return LabPod("east", NODE.name, NAMESPACE, f"p{n}", {"app": f"app{n}"})


def _creations() -> list[Row]:
    """Every endpoint has labels of its own, so each needs a new identity."""
    found = [_pod(n) for n in range(ENDPOINTS)]
    manifests = [
        {
            "document": {
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": {"name": pod.name, "namespace": NAMESPACE, "labels": pod.labels},
                "spec": {},
            },
            "source": pod.name,
        }
        for pod in found
    ]
    _post("/v1/apply", {"documents": manifests})
    for pod in found:
        machine.ensure_netns(pod.netns)
    by_call = [_timed(_create, pod) for pod in found[BY_PLUGIN:]]
    by_plugin = [_timed(lambda pod: pods.call_plugin("ADD", pod, NODE), pod) for pod in found[:BY_PLUGIN]]
    call_ms, plugin_ms = statistics.median(by_call) * 1e3, statistics.median(by_plugin) * 1e3
    return [
        Row(
            "endpoint create to ready, new identity included, median",
            f"{call_ms:.1f} ms",
            "Cilium 1.19.4: 90-327 ms",
            f"{call_ms / 327:.2f}",
            "< 15 ms",
            call_ms < 15,
        ),
        Row(
            "CNI ADD, whole process, median",
            f"{plugin_ms:.0f} ms",
            "Cilium 1.19.4: 256 ms",
            f"{plugin_ms / 256:.2f}",
            "< 80 ms",
            plugin_ms < 80,
        ),
    ]


def _timed(work: Any, pod: LabPod) -> float:
    start = time.perf_counter()
    work(pod)
    return time.perf_counter() - start


def _create(pod: LabPod) -> None:
    request = {
        "container_id": pods.container_id(pod),
        "netns": str(machine.NETNS_DIR / pod.netns),
        "interface": "eth0",
        "namespace": NAMESPACE,
        "workload": pod.name,
    }
    _post("/v1/endpoints", request)


def _first_policy() -> Row:
    start = time.perf_counter()
    applied = _post("/v1/apply", {"documents": [{"document": DENY_ALL, "source": "first"}]})
    _get(f"/v1/wait?revision={applied['revision']}&timeout_s=30")
    spent = time.perf_counter() - start
    enforced = [
        item for item in _get("/v1/list/endpoint")["items"] if item["ingress_enforced"] and item["egress_enforced"]
    ]
    assert len(enforced) == ENDPOINTS, f"{len(enforced)} of {ENDPOINTS} endpoints are enforced"
    return Row(
        f"first policy on a node of {ENDPOINTS} endpoints, enforced everywhere",
        f"{spent * 1e3:.0f} ms",
        "Cilium 1.19.4: 13-16 s",
        f"{spent / 13:.4f}",
        "< 50 ms",
        spent < 0.05,
    )


def _restart() -> list[Row]:
    process = processes.find(nodes.agent_name(NODE))
    assert process is not None
    memory = _rss_mb(process.pid)
    os.kill(process.pid, signal.SIGKILL)
    machine.wait_for(lambda: processes.find(nodes.agent_name(NODE)) is None, SETTLE_S_MAX)
    start = time.perf_counter()
    nodes.ensure_agent(NODE)
    machine.wait_for(lambda: bool((nodes.status_of(NODE.socket) or {}).get("ready")), SETTLE_S_MAX, pause_s=0.01)
    status: Any = nodes.wait_ready(nodes.agent_name(NODE), NODE.socket)
    spent = time.perf_counter() - start
    writes = sum(status["kernel"]["writes_at_start"].values())
    return [
        Row(
            f"restart after kill -9, {ENDPOINTS} local endpoints, nothing changed",
            f"{writes} map writes; ready in {spent:.2f} s, of which {status['ready_after_s']:.2f} s after the imports",
            "Cilium 1.19.4: 14.6 s",
            f"{spent / 14.6:.3f}",
            "0 writes, < 0.5 s",
            writes == 0 and spent < 0.5,
        ),
        Row(
            f"agent memory, {ENDPOINTS} endpoints",
            f"{memory:.0f} MB",
            "Cilium 1.19.4: 217 MB",
            f"{memory / 217:.2f}",
            "< 90 MB",
            memory < 90,
        ),
    ]


def _far_memory() -> Row:
    asyncio.run(_append_far())
    machine.wait_for(lambda: _get("/v1/status")["counts"]["endpoints"] == FAR_ENDPOINTS + ENDPOINTS, SETTLE_S_MAX)
    process = processes.find(nodes.agent_name(NODE))
    assert process is not None
    memory = _rss_mb(process.pid)
    return Row(
        "agent memory, 50,000 known endpoints",
        f"{memory:.0f} MB",
        "Cilium 1.19.4: 438 MB",
        f"{memory / 438:.2f}",
        "< 350 MB",
        memory < 350,
    )


async def _append_far() -> None:
    log = await EtcdLog.connect([nodes.etcd_endpoint()])
    sessions: dict[str, Any] = {}
    for written in world(FAR_ENDPOINTS):
        if written.writer not in sessions:
            sessions[written.writer] = await log.open_session(CLUSTER, written.writer)
        await log.append(sessions[written.writer], encode(Batch(1, 1, 0, written.events)))
    await log.close()


def _rss_mb(pid: int) -> float:
    line = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) / 1024
