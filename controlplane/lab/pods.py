"""The lab's pods: what a kubelet would do. A namespace, one call of the CNI plugin, a process.

Belongs here: Pods, made, found and removed. Does not belong here: their networking, which the agent does.
"""

import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from controlplane.kubernetes import Unreadable, read_paths
from controlplane.lab import machine, processes, topology
from controlplane.lab.topology import LabNode, LabPod

MANIFESTS = Path(__file__).resolve().parents[2] / "deploy" / "lab"
INTERFACE = "eth0"
CNI_VERSION = "1.0.0"
CNI_S_MAX = 60.0
SERVE_S_MAX = 15.0


def manifests_of(cluster: str) -> list[dict[str, Any]]:
    """The bodies of an ApplyRequest: everything below deploy/lab/CLUSTER/. Raises LabFailure."""
    found = read_paths([str(MANIFESTS / cluster)], sys.stdin)
    for item in found:
        if isinstance(item, Unreadable):
            raise machine.LabFailure(f"{item.source}: {item.reason}")
    return [{"document": item.document, "source": item.source} for item in found if not isinstance(item, Unreadable)]


def pods_of(cluster: str) -> list[LabPod]:
    """Every Pod of the cluster's manifests. Raises LabFailure for one without a lab node."""
    documents = manifests_of(cluster)
    found = [given["document"] for given in documents if given["document"].get("kind") == "Pod"]
    return [_pod(cluster, document) for document in found]


def _pod(cluster: str, document: dict[str, Any]) -> LabPod:
    metadata = document["metadata"]
    node = document.get("spec", {}).get("nodeName", "")
    known = [n.name for n in topology.NODES if n.cluster == cluster]
    if node not in known:
        raise machine.LabFailure(f"Pod {metadata['name']}: spec.nodeName is {node!r}; right is one of {known}")
    return LabPod(cluster, node, metadata.get("namespace", "default"), metadata["name"], metadata.get("labels", {}))


def container_id(pod: LabPod) -> str:
    return hashlib.sha256(pod.title.encode()).hexdigest()


def process_name(pod: LabPod) -> str:
    return f"pod-{pod.cluster}-{pod.namespace}-{pod.name}"


def ensure_pod(pod: LabPod) -> bool:
    """True if it was made now. Raises LabFailure with what the plugin said."""
    if processes.find(process_name(pod)):
        return False
    node = topology.node_named(pod.node)
    machine.ensure_netns(pod.netns)
    call_plugin("ADD", pod, node)
    argv = [sys.executable, "-I", "-S", str(Path(__file__).with_name("shop_server.py"))]
    env = {"SHOP_NAME": pod.name, "SHOP_NAMESPACE": pod.namespace, "SHOP_CLUSTER": pod.cluster, "SHOP_NODE": pod.node}
    processes.start(process_name(pod), argv, pod.netns, pod.cgroup, env)
    return True


def wait_serving(netns: str, port: int) -> None:
    """Until somebody listens, for both families. Raises LabFailure."""
    listening = f":{port:04X} {'0' * 32}:0000 0A"  # as /proc/net/tcp6 has it
    command = machine.in_netns(netns, "cat", "/proc/net/tcp6")
    if not machine.wait_for(lambda: listening in machine.run(*command), SERVE_S_MAX, 0.1):
        raise machine.LabFailure(f"nobody listens on port {port} in namespace {netns}")


def remove_pod(pod: LabPod) -> None:
    """Its process, its endpoint, its namespace; what is gone already is no failure. Raises LabFailure."""
    processes.stop(process_name(pod), signal.SIGKILL)
    call_plugin("DEL", pod, topology.node_named(pod.node))
    machine.kill_cgroup(machine.cgroup_root() / pod.cgroup)
    machine.remove_netns(pod.netns)
    machine.remove_cgroup(machine.cgroup_root() / pod.cgroup)


def call_plugin(command: str, pod: LabPod, node: LabNode) -> dict[str, Any]:
    """Run the CNI plugin as a container runtime would. Raises LabFailure with its error object."""
    config = {"cniVersion": CNI_VERSION, "name": "meshlog-lab", "type": "meshlog", "socket": node.socket}
    env = {
        "PATH": os.environ.get("PATH", os.defpath),
        "CNI_COMMAND": command,
        "CNI_CONTAINERID": container_id(pod),
        "CNI_NETNS": str(machine.NETNS_DIR / pod.netns),
        "CNI_IFNAME": INTERFACE,
        "CNI_PATH": str(Path(sys.executable).parent),
        "CNI_ARGS": f"IgnoreUnknown=1;K8S_POD_NAMESPACE={pod.namespace};K8S_POD_NAME={pod.name}",
    }
    plugin = [sys.executable, "-I", "-m", "controlplane.cni"]
    done = subprocess.run(
        machine.in_netns(node.netns, *plugin),
        input=json.dumps(config), check=False, capture_output=True, text=True, env=env, timeout=CNI_S_MAX,
    )
    try:
        answer: dict[str, Any] = json.loads(done.stdout) if done.stdout.strip() else {}
    except ValueError:
        answer = {"msg": done.stdout.strip()}
    if done.returncode:
        reason = f"{answer.get('msg', done.stderr.strip())} {answer.get('details', '')}".strip()
        raise machine.LabFailure(f"CNI {command} for pod {pod.title} on {node.name}: {reason}")
    return answer


def resolve(word: str, pods: Iterable[LabPod]) -> LabPod | None:
    """The pod that "shop/web-1", "east/shop/web-1" or "web-1" means. Raises LabFailure if several are meant."""
    matching = [pod for pod in pods if f"/{pod.title}".endswith(f"/{word}")]
    if len(matching) > 1:
        raise machine.LabFailure(f"{word!r} is {len(matching)} pods: {', '.join(pod.title for pod in matching)}")
    return matching[0] if matching else None
