"""The flows that the story shows: who asks whom over which family, and what must come of it.

Belongs here: the expectations, as one table next to deploy/lab, and how one flow is tried with real sockets.
Does not belong here: the order of the story (story.py).
"""

import json
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from controlplane.lab import machine, topology
from controlplane.lab.topology import LabNode, LabPod

CLIENT = str(Path(__file__).with_name("shop_client.py"))
POD_PORT = 8080
SERVICE_PORT = 80
FLOW_S_MAX = 15.0
FAMILIES = ("ipv4", "ipv6")


class Flow(msgspec.Struct, frozen=True):
    """`source` is a pod; `target` a pod, or with `service` a service of the source's cluster.

    `answered_by` is the pod whose process must answer; "" means that the flow must be denied.
    """

    title: str
    source: str
    target: str
    answered_by: str
    service: bool = False


ALLOWED = (
    Flow("pod to pod on one node", "east/shop/frontend", "east/shop/cart", "east/shop/cart"),
    Flow("pod to pod across nodes", "east/shop/frontend", "east/shop/catalog", "east/shop/catalog"),
    Flow("pod to pod across clusters", "east/shop/frontend", "west/shop/ledger", "west/shop/ledger"),
    Flow("pod to ClusterIP", "east/shop/frontend", "shop/catalog", "east/shop/catalog", service=True),
    Flow("global service of west, used from east", "east/shop/frontend", "shop/payment", "west/shop/payment",
         service=True),
)
DENIED = (
    Flow("denied: not allowed by any rule", "east/shop/cart", "east/shop/catalog", ""),
    Flow("denied: a deny rule wins", "east/guest/intruder", "east/shop/cart", ""),
)


class NodePortFlow(msgspec.Struct, frozen=True):
    """From outside the mesh to a port of a node that does not run the pod which answers."""

    title: str
    node: str
    port: int
    answered_by: str


OUTSIDE = NodePortFlow("client outside, through the port of another node", "east-2", 30080, "east/shop/frontend")


class Places:
    """Addresses of pods and services by name, as the log has them."""

    def __init__(self, endpoints: Iterable[Mapping[str, Any]], services: Iterable[Mapping[str, Any]]) -> None:
        self._pods = {f"{e['cluster']}/{e['namespace']}/{e['workload']}": e for e in endpoints}
        self._services = list(services)

    def endpoint(self, pod: str) -> Mapping[str, Any]:
        """Raises LabFailure."""
        if pod not in self._pods:
            raise machine.LabFailure(f"pod {pod} is not in the log; see `meshlog endpoint list -A -o wide`")
        return self._pods[pod]

    def address(self, flow: Flow, family: str) -> tuple[str, int]:
        """"" where it has no address of that family. Raises LabFailure."""
        if not flow.service:
            return str(self.endpoint(flow.target)[family]), POD_PORT
        cluster = flow.source.partition("/")[0]
        for service in self._services:
            if (service["cluster"], f"{service['namespace']}/{service['name']}") != (cluster, flow.target):
                continue
            if service["address"] and (":" in service["address"]) == (family == "ipv6"):
                return str(service["address"]), int(service["port"])
        return "", SERVICE_PORT


def client(pod: LabPod, *words: str) -> list[str]:
    """The command line of the client inside the pod's namespace and cgroup."""
    command = machine.in_netns(pod.netns, sys.executable, "-I", "-S", CLIENT, *words)
    return machine.in_cgroup(machine.ensure_cgroup(pod.cgroup), command)


def request(pod: LabPod, address: str, port: int) -> dict[str, Any]:
    """One HTTP request from inside the pod; the client's verdict. Raises LabFailure."""
    return _verdict(client(pod, "http", address, str(port)), pod.title)


def request_host(node: LabNode, address: str, port: int) -> dict[str, Any]:
    """One HTTP request by the host of a node; its verdict. Raises LabFailure."""
    words = (sys.executable, "-I", "-S", CLIENT, "http", address, str(port))
    cgroup = machine.ensure_cgroup(f"{node.cgroup}/node")
    return _verdict(machine.in_cgroup(cgroup, machine.in_netns(node.netns, *words)), node.name)


def address_text(address: str, port: int) -> str:
    """10.1.0.5:80 or [fd00::5]:80."""
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def request_outside(address: str, port: int) -> dict[str, Any]:
    """One HTTP request by the client outside the mesh; its verdict. Raises LabFailure."""
    words = (sys.executable, "-I", "-S", CLIENT, "http", address, str(port))
    return _verdict(machine.in_netns(topology.OUTSIDE.netns, *words), topology.OUTSIDE.name)


def _verdict(argv: list[str], place: str) -> dict[str, Any]:
    done = subprocess.run(argv, check=False, capture_output=True, text=True, timeout=FLOW_S_MAX)
    try:
        verdict: dict[str, Any] = json.loads(done.stdout)
    except ValueError:
        raise machine.LabFailure(f"the client in {place} failed: {done.stderr.strip()[-300:]}") from None
    return verdict


def answered_by(verdict: Mapping[str, Any]) -> str:
    """The pod whose process answered, or ""."""
    if not verdict["ok"]:
        return ""
    who = verdict["answer"]
    return f"{who['cluster']}/{who['namespace']}/{who['name']}"


def enforcing_policies(documents: Iterable[Mapping[str, Any]], labels: Mapping[str, str]) -> list[str]:
    """Names of the policies whose selector takes these labels: they put the pod into enforcement."""
    found = []
    for document in documents:
        spec = document.get("spec") or {}
        selector = spec.get("podSelector", spec.get("endpointSelector")) or {}
        wanted = selector.get("matchLabels") or {}
        if all(labels.get(key.removeprefix("k8s:")) == value for key, value in wanted.items()):
            found.append(f"{document['kind']} {document['metadata']['name']}")
    return found
