"""What `meshlog connectivity test` tries: its pods, services and policies, and who must reach whom. Values only.

Belongs here: the expectations, as one table. Does not belong here: making and trying them (connectivity.py).
"""

from typing import Any

import msgspec

from controlplane.lab.topology import LabPod

Document = dict[str, Any]

NAMESPACE = "connectivity-test"
EAST, WEST = "east", "west"
CLIENT = LabPod(EAST, "east-1", NAMESPACE, "client", {"kind": "client"})
SAME_NODE = LabPod(EAST, "east-1", NAMESPACE, "echo-same-node", {"kind": "echo"})
OTHER_NODE = LabPod(EAST, "east-2", NAMESPACE, "echo-other-node", {"kind": "echo", "name": "echo-other-node"})
OTHER_CLUSTER = LabPod(WEST, "west-1", NAMESPACE, "echo-other-cluster", {"kind": "echo", "name": "echo-global"})
PODS = (CLIENT, SAME_NODE, OTHER_NODE, OTHER_CLUSTER)
HOST_NODES = ("east-1", "east-2")
"""Nodes of which the host itself answers too."""
HOST_PORT = 18080
POD_PORT = 8080


class Case(msgspec.Struct, frozen=True):
    """`source`: a pod's name, "node:NAME" or "outside". `target`: a pod's name, "service:NAME", "nodeport:NODE" or
    "node:NAME". `answered_by`: the pod, or "host-NODE"; "" where policy must deny it."""

    title: str
    source: str
    target: str
    answered_by: str


class Trial(msgspec.Struct, frozen=True):
    """Cases that belong together; `policies` are in force in the tests' own namespace while they are tried."""

    name: str
    text: str
    cases: tuple[Case, ...]
    policies: tuple[Document, ...] = ()


def host_server(node: str) -> str:
    """The name that the host of a node answers under."""
    return f"host-{node}"


def _policy(name: str, spec: Document) -> Document:
    return {"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
            "metadata": {"name": name, "namespace": NAMESPACE}, "spec": spec}  # fmt: skip


def _service(name: str, selector: dict[str, str], kind: str = "ClusterIP", **annotations: str) -> Document:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": NAMESPACE, "annotations": annotations},
        "spec": {"type": kind, "selector": selector, "ports": [{"name": "http", "port": 80, "targetPort": POD_PORT}]},
    }


def _pod(pod: LabPod) -> Document:
    container = {"name": pod.name, "image": "meshlog/http-echo:1", "ports": [{"containerPort": POD_PORT}]}
    return {"apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": pod.name, "namespace": pod.namespace, "labels": pod.labels},
            "spec": {"nodeName": pod.node, "containers": [container]}}  # fmt: skip


def manifests_of(cluster: str) -> list[Document]:
    """Everything but the policies of tests, in the order in which it is applied."""
    found: list[Document] = [{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}}]
    if cluster == EAST:
        found.append(_service("echo", OTHER_NODE.labels))
        found.append(_service("echo-node-port", OTHER_NODE.labels, "NodePort"))
    found.append(_service("echo-global", OTHER_CLUSTER.labels, **{"service.cilium.io/global": "true"}))
    return [*found, *(_pod(pod) for pod in PODS if pod.cluster == cluster)]


DENY_ALL = _policy("deny-all-ingress", {"podSelector": {"matchLabels": OTHER_NODE.labels}, "policyTypes": ["Ingress"]})
ALLOW_CLIENT = _policy(
    "allow-client",
    {
        "podSelector": {"matchLabels": OTHER_NODE.labels},
        "policyTypes": ["Ingress"],
        "ingress": [
            {
                "from": [{"podSelector": {"matchLabels": CLIENT.labels}}],
                "ports": [{"port": POD_PORT, "protocol": "TCP"}],
            }
        ],
    },
)
DENY_EGRESS = _policy(
    "client-egress",
    {
        "podSelector": {"matchLabels": CLIENT.labels},
        "policyTypes": ["Egress"],
        "egress": [{"to": [{"podSelector": {"matchLabels": {"name": "echo-other-node"}}}]}],
    },
)

TESTS = (
    Trial("pod-to-pod", "pods reach pods at their own addresses", (
        Case("same node", "client", "echo-same-node", "echo-same-node"),
        Case("other node", "client", "echo-other-node", "echo-other-node"),
        Case("other cluster", "client", "echo-other-cluster", "echo-other-cluster"),
    )),
    Trial("pod-to-service", "pods reach services at their cluster addresses", (
        Case("ClusterIP", "client", "service:echo", "echo-other-node"),
        Case("itself behind its service", "echo-other-node", "service:echo", "echo-other-node"),
        Case("global service of the other cluster", "client", "service:echo-global", "echo-other-cluster"),
    )),
    Trial("pod-to-nodeport", "pods reach node ports", (
        Case("of their own node", "client", "nodeport:east-1", "echo-other-node"),
        Case("of the backend's node", "client", "nodeport:east-2", "echo-other-node"),
    )),
    Trial("outside-to-nodeport", "a client outside the mesh reaches node ports", (
        Case("of the backend's node", "outside", "nodeport:east-2", "echo-other-node"),
        Case("of another node", "outside", "nodeport:east-1", "echo-other-node"),
    )),
    Trial("pod-to-host", "pods reach the hosts of nodes", (
        Case("own node", "client", "node:east-1", "host-east-1"),
        Case("other node", "client", "node:east-2", "host-east-2"),
    )),
    Trial("host-to-pod", "hosts reach pods", (
        Case("own pod", "node:east-1", "echo-same-node", "echo-same-node"),
        Case("pod of another node", "node:east-1", "echo-other-node", "echo-other-node"),
        Case("pod of another cluster", "node:east-1", "echo-other-cluster", "echo-other-cluster"),
    )),
    Trial("host-to-service", "hosts reach services at their cluster addresses", (
        Case("ClusterIP", "node:east-1", "service:echo", "echo-other-node"),
    )),
    Trial("all-ingress-deny", "a policy without rules lets nobody in", (
        Case("from another node", "client", "echo-other-node", ""),
        Case("through a service", "client", "service:echo", ""),
        Case("from another cluster", "echo-other-cluster", "echo-other-node", ""),
        Case("others stay reachable", "client", "echo-same-node", "echo-same-node"),
    ), (DENY_ALL,)),
    Trial("client-ingress", "a rule lets in whom it names, and nobody else", (
        Case("named", "client", "echo-other-node", "echo-other-node"),
        Case("named, through a service", "client", "service:echo", "echo-other-node"),
        Case("not named", "echo-same-node", "echo-other-node", ""),
    ), (ALLOW_CLIENT,)),
    Trial("client-egress", "a rule lets out to whom it names, and to nobody else", (
        Case("named", "client", "echo-other-node", "echo-other-node"),
        Case("not named", "client", "echo-same-node", ""),
        Case("not named, other cluster", "client", "echo-other-cluster", ""),
    ), (DENY_EGRESS,)),
    Trial("policy-removed", "what policies had denied is let through when they are gone", (
        Case("in again", "echo-same-node", "echo-other-node", "echo-other-node"),
        Case("out again", "client", "echo-same-node", "echo-same-node"),
    )),
)  # fmt: skip
"""In the order in which they run."""
