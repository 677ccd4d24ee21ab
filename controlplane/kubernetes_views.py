"""What the mesh knows, written as Kubernetes manifests: the way back of kubernetes_objects.py. Pure.

Belongs here: the nouns of model.py as documents that `apply` takes again (a Node excepted: agents report those).
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

from controlplane.balancing import GLOBAL_ANNOTATIONS, SHARED_ANNOTATIONS, WEIGHT_ANNOTATION
from controlplane.kubernetes_pods import EGRESS_BANDWIDTH, INGRESS_BANDWIDTH, SOCKOPS
from controlplane.kubernetes_pools import API_VERSIONS as POOL_VERSIONS
from controlplane.kubernetes_services import CLIENT_IP, HEADLESS
from controlplane.kubernetes_slices import SERVICE_NAME_LABEL
from controlplane.model import (
    Backend,
    BackendSlice,
    BalancerPool,
    CidrGroup,
    Exposure,
    HostPort,
    LocalRedirect,
    Namespace,
    Node,
    Policy,
    Service,
    ServicePort,
    Workload,
)
from controlplane.policy.cidr_groups import API_VERSIONS as CIDR_GROUP_VERSIONS
from controlplane.policy.cidr_groups import KIND as CIDR_GROUP
from controlplane.projections.balancer_pools import KIND as POOL
from controlplane.projections.exposures import CLUSTER
from controlplane.projections.redirects import KIND as REDIRECT

DELETED_AT = "1970-01-01T00:00:00Z"
"""Of a Pod that is terminating: when its platform asked for that is not in the log."""
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
    ports: list[dict[str, Any]] = [
        {"name": name, "containerPort": number, "protocol": protocol}
        for name, (number, protocol) in sorted(found.ports.items())
    ]
    ports += [_host_port(each) for each in found.host_ports]
    spec: dict[str, Any] = {"containers": [{"name": CONTAINER, "ports": ports} if ports else {"name": CONTAINER}]}
    if found.service_account:
        spec["serviceAccountName"] = found.service_account
    if found.node:
        spec["nodeName"] = found.node
    if found.host_network:
        spec["hostNetwork"] = True
    metadata = _metadata(found.name, found.namespace, labels=found.labels, annotations=_pod_annotations(found))
    if found.terminating:
        metadata["deletionTimestamp"] = DELETED_AT
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": metadata,
        "spec": spec,
        "status": {"conditions": [{"type": "Ready", "status": "True" if found.ready else "False"}]},
    }


def _host_port(port: HostPort) -> dict[str, Any]:
    where = {"hostIP": port.address} if port.address else {}
    return {"containerPort": port.port, "hostPort": port.host_port, "protocol": port.protocol, **where}


def _pod_annotations(found: Workload) -> dict[str, str]:
    limits = {EGRESS_BANDWIDTH: found.egress_bits_s, INGRESS_BANDWIDTH: found.ingress_bits_s}
    shown = {name: str(bits_s) for name, bits_s in limits.items() if bits_s}
    return _weight(found.weight) | shown | ({} if found.joins_sockets else {SOCKOPS: "off"})


def _weight(weight: int) -> dict[str, str]:
    return {} if weight == 1 else {WEIGHT_ANNOTATION: str(weight)}


def _service(found: Service) -> dict[str, Any]:
    spec: dict[str, Any] = {"type": found.exposure.type, **_exposure(found.exposure)}
    addresses = [HEADLESS] if found.headless else list(found.cluster_ips)
    if addresses:
        spec |= {"clusterIP": addresses[0], "clusterIPs": addresses}
    if found.selector:
        spec["selector"] = dict(found.selector)
    if found.ports:
        spec["ports"] = [_service_port(port) for port in found.ports]
    metadata = _metadata(found.name, found.namespace, labels=found.labels, annotations=_service_annotations(found))
    document = {"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": spec}
    if found.exposure.load_balancer_ips:
        ingress = [{"ip": address} for address in found.exposure.load_balancer_ips]
        document["status"] = {"loadBalancer": {"ingress": ingress}}
    return document


def _exposure(found: Exposure) -> dict[str, Any]:
    """Fields that are not the defaults."""
    affinity = {"sessionAffinity": CLIENT_IP} if found.affinity_s else {}
    config = {"sessionAffinityConfig": {"clientIP": {"timeoutSeconds": found.affinity_s}}} if affinity else {}
    fields = {
        "externalIPs": list(found.external_ips),
        "loadBalancerClass": found.load_balancer_class,
        "loadBalancerSourceRanges": list(found.source_ranges),
        "externalTrafficPolicy": "" if found.external_policy == CLUSTER else found.external_policy,
        "internalTrafficPolicy": "" if found.internal_policy == CLUSTER else found.internal_policy,
        "publishNotReadyAddresses": found.publishes_not_ready,
        "trafficDistribution": found.distribution,
        "healthCheckNodePort": found.health_check_port,
        "externalName": found.external_name,
    }
    spec: dict[str, Any] = {name: value for name, value in fields.items() if value}
    if not found.allocates_node_ports:
        spec["allocateLoadBalancerNodePorts"] = False
    return {**spec, **affinity, **config}


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
    node_port = {"nodePort": port.node_port} if port.node_port else {}
    return {**named, "port": port.port, "protocol": port.protocol, "targetPort": port.target_port, **node_port}


def _endpoint_slice(found: BackendSlice) -> dict[str, Any]:
    family = "IPv6" if any(":" in backend.address for backend in found.backends) else "IPv4"
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": _metadata(
            found.name, found.namespace, labels={SERVICE_NAME_LABEL: found.service}, annotations=_weight(found.weight)
        ),
        "addressType": family,
        "endpoints": [_backend(backend) for backend in found.backends],
        "ports": [{"name": port.name, "port": port.port, "protocol": port.protocol} for port in found.ports],
    }


def _backend(backend: Backend) -> dict[str, Any]:
    conditions: dict[str, Any] = {"ready": backend.ready}
    if backend.terminating or backend.serving != backend.ready:
        conditions |= {"serving": backend.serving, "terminating": backend.terminating}
    hints = {
        name: [{"name": each} for each in given]
        for name, given in (("forZones", backend.for_zones), ("forNodes", backend.for_nodes))
        if given
    }
    place = {"nodeName": backend.node, "zone": backend.zone, "hints": hints}
    given = {name: value for name, value in place.items() if value}
    return {"addresses": [backend.address], "conditions": conditions, **given}


def _local_redirect(found: LocalRedirect) -> dict[str, Any]:
    asked = [{"name": p.name, "port": str(p.port), "protocol": p.protocol} for p in found.ports]
    targets = [{"name": p.name, "port": str(p.target_port), "protocol": p.protocol} for p in found.ports]
    matcher: dict[str, Any] = {"ip": found.address}
    if found.service:
        matcher = {"serviceName": found.service, "namespace": found.namespace}
    if not found.all_ports:
        matcher["toPorts"] = asked
    return {
        "apiVersion": "cilium.io/v2",
        "kind": REDIRECT,
        "metadata": _metadata(found.name, found.namespace),
        "spec": {
            "redirectFrontend": {"serviceMatcher" if found.service else "addressMatcher": matcher},
            "redirectBackend": {
                "localEndpointSelector": {"matchLabels": dict(found.selector)},
                "toPorts": targets,
            },
        },
    }


def _balancer_pool(found: BalancerPool) -> dict[str, Any]:
    spec: dict[str, Any] = {"blocks": [{"cidr": block} for block in found.blocks], "disabled": found.disabled}
    if found.selector:
        spec["serviceSelector"] = {"matchLabels": dict(found.selector)}
    if not found.edges:
        spec["allowFirstLastIPs"] = "No"
    return {"apiVersion": POOL_VERSIONS[0], "kind": POOL, "metadata": _metadata(found.name), "spec": spec}


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
    REDIRECT: _local_redirect,
    "Node": _node,
    "NetworkPolicy": _policy,
    "CiliumNetworkPolicy": _policy,
    "CiliumClusterwideNetworkPolicy": _policy,
    CIDR_GROUP: _cidr_group,
    POOL: _balancer_pool,
}
VIEWS = tuple(_VIEWS)
