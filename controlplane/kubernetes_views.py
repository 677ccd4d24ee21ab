"""What the mesh knows, written as Kubernetes manifests: the way back of kubernetes_objects.py. Pure.

Belongs here: the nouns of model.py as documents that `apply` takes again (a Node excepted: agents report those).
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

from controlplane.kubernetes_services import (
    GLOBAL_ANNOTATIONS,
    HEADLESS,
    SERVICE_NAME_LABEL,
    SHARED_ANNOTATIONS,
)
from controlplane.model import BackendSlice, CidrGroup, Namespace, Node, Policy, Service, ServicePort, Workload
from controlplane.policy.cidr_groups import API_VERSIONS as CIDR_GROUP_VERSIONS
from controlplane.policy.cidr_groups import KIND as CIDR_GROUP

CONTAINER = "workload"
"""The name of the one container that stands for a workload's: only named ports are known of them."""


def manifest_of(kind: str, found: Any) -> dict[str, Any]:
    """Raises KeyError for a kind that is not one of VIEWS."""
    return _VIEWS[kind](found)


def _metadata(name: str, namespace: str = "", **more: Mapping[str, str]) -> dict[str, Any]:
    metadata: dict[str, Any] = {"name": name}
    if namespace:
        metadata["namespace"] = namespace
    metadata.update({field: dict(value) for field, value in more.items() if value})
    return metadata


def _namespace(found: Namespace) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": _metadata(found.name, labels=found.labels)}


def _pod(found: Workload) -> dict[str, Any]:
    ports = [
        {"name": name, "containerPort": number, "protocol": protocol}
        for name, (number, protocol) in sorted(found.ports.items())
    ]
    spec: dict[str, Any] = {"containers": [{"name": CONTAINER, "ports": ports} if ports else {"name": CONTAINER}]}
    if found.service_account:
        spec["serviceAccountName"] = found.service_account
    if found.node:
        spec["nodeName"] = found.node
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": _metadata(found.name, found.namespace, labels=found.labels),
        "spec": spec,
        "status": {"conditions": [{"type": "Ready", "status": "True" if found.ready else "False"}]},
    }


def _service(found: Service) -> dict[str, Any]:
    spec: dict[str, Any] = {"type": "ClusterIP"}
    addresses = [HEADLESS] if found.headless else list(found.cluster_ips)
    if addresses:
        spec |= {"clusterIP": addresses[0], "clusterIPs": addresses}
    if found.selector:
        spec["selector"] = dict(found.selector)
    if found.ports:
        spec["ports"] = [_service_port(port) for port in found.ports]
    metadata = _metadata(found.name, found.namespace, labels=found.labels, annotations=_service_annotations(found))
    return {"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": spec}


def _service_annotations(found: Service) -> dict[str, str]:
    """The author's, and the two that say what is in force where the author's do not."""
    annotations = dict(found.annotations)
    if found.is_global and not any(name in annotations for name in GLOBAL_ANNOTATIONS):
        annotations[GLOBAL_ANNOTATIONS[0]] = "true"
    if not found.shared and not any(name in annotations for name in SHARED_ANNOTATIONS):
        annotations[SHARED_ANNOTATIONS[0]] = "false"
    return annotations


def _service_port(port: ServicePort) -> dict[str, Any]:
    named = {"name": port.name} if port.name else {}
    return {**named, "port": port.port, "protocol": port.protocol, "targetPort": port.target_port}


def _endpoint_slice(found: BackendSlice) -> dict[str, Any]:
    family = "IPv6" if any(":" in backend.address for backend in found.backends) else "IPv4"
    endpoints = [
        {
            "addresses": [backend.address],
            "conditions": {"ready": backend.ready},
            **({"nodeName": backend.node} if backend.node else {}),
        }
        for backend in found.backends
    ]
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": _metadata(found.name, found.namespace, labels={SERVICE_NAME_LABEL: found.service}),
        "addressType": family,
        "endpoints": endpoints,
        "ports": [{"name": port.name, "port": port.port, "protocol": port.protocol} for port in found.ports],
    }


def _node(found: Node) -> dict[str, Any]:
    spec: dict[str, Any] = {}
    if blocks := [block for block in found.blocks if block]:
        spec = {"podCIDR": blocks[0], "podCIDRs": blocks}
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": _metadata(found.name, labels=_plain_labels(found.labels)),
        "spec": spec,
        "status": {"addresses": [{"type": "InternalIP", "address": address} for address in found.addresses]},
    }


def _plain_labels(labels: Sequence[str]) -> dict[str, str]:
    """Without their source, as the platform writes them."""
    pairs = (label.partition(":")[2].partition("=") for label in labels)
    return {key: value for key, _, value in pairs}


def _policy(found: Policy) -> dict[str, Any]:
    """As its author wrote it."""
    manifest: dict[str, Any] = msgspec.json.decode(found.manifest)
    return manifest


def _cidr_group(found: CidrGroup) -> dict[str, Any]:
    return {
        "apiVersion": CIDR_GROUP_VERSIONS[0],
        "kind": CIDR_GROUP,
        "metadata": _metadata(found.name, labels=found.labels),
        "spec": {"externalCIDRs": list(found.prefixes)},
    }


_VIEWS: Mapping[str, Callable[[Any], dict[str, Any]]] = {
    "Namespace": _namespace,
    "Pod": _pod,
    "Service": _service,
    "EndpointSlice": _endpoint_slice,
    "Node": _node,
    "NetworkPolicy": _policy,
    "CiliumNetworkPolicy": _policy,
    "CiliumClusterwideNetworkPolicy": _policy,
    CIDR_GROUP: _cidr_group,
}
VIEWS = tuple(_VIEWS)
