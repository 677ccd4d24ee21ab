"""Kubernetes Service and EndpointSlice manifests as commands. Pure.

Belongs here: their fields. Every field of a Service changes where packets go, so one that is not supported is refused.
"""

import ipaddress
from collections.abc import Mapping
from typing import Any, Protocol

from controlplane.commands.service import ApplyService, ReportBackends
from controlplane.fields import Reading, path_of
from controlplane.model import Backend, ServicePort
from controlplane.policy.rules import PORT_MAX

TOP_FIELDS = ("apiVersion", "kind", "metadata", "spec", "status")
SERVICE_FIELDS = (
    "type",
    "clusterIP",
    "clusterIPs",
    "selector",
    "ports",
    "ipFamilies",
    "ipFamilyPolicy",
    "sessionAffinity",
    "internalTrafficPolicy",
    "publishNotReadyAddresses",
)
NOT_CLUSTER_IP = "belongs to a Service of another type than ClusterIP; remove it"
SERVICE_UNSUPPORTED = {
    "externalIPs": "is not supported yet; remove it",
    "sessionAffinityConfig": "session affinity is not supported yet; remove it",
    "trafficDistribution": "is not supported yet; remove it",
    "externalName": NOT_CLUSTER_IP,
    "externalTrafficPolicy": NOT_CLUSTER_IP,
    "healthCheckNodePort": NOT_CLUSTER_IP,
    "loadBalancerIP": NOT_CLUSTER_IP,
    "loadBalancerClass": NOT_CLUSTER_IP,
    "loadBalancerSourceRanges": NOT_CLUSTER_IP,
    "allocateLoadBalancerNodePorts": NOT_CLUSTER_IP,
}
ONLY_SUPPORTED = {
    "type": ("ClusterIP", "NodePort, LoadBalancer and ExternalName are not supported yet"),
    "sessionAffinity": ("None", "session affinity is not supported yet"),
    "internalTrafficPolicy": ("Cluster", "node-local backends are not supported yet"),
}
"""Fields of which one value is supported, and why not the others."""

PORT_FIELDS = ("name", "port", "protocol", "targetPort", "appProtocol")
"""`appProtocol` is a hint to proxies and changes no packet."""
PORT_UNSUPPORTED = {"nodePort": NOT_CLUSTER_IP}
PROTOCOLS = ("TCP", "UDP")
HEADLESS = "None"
IP_FAMILIES = ("IPv4", "IPv6")
IP_FAMILY_POLICIES = ("SingleStack", "PreferDualStack", "RequireDualStack")

GLOBAL_ANNOTATIONS = ("service.cilium.io/global", "io.cilium/global-service")
SHARED_ANNOTATIONS = ("service.cilium.io/shared", "io.cilium/shared-service")
CILIUM_ANNOTATION_PREFIXES = ("service.cilium.io/", "io.cilium/")

SLICE_FIELDS = ("apiVersion", "kind", "metadata", "addressType", "endpoints", "ports")
ENDPOINT_FIELDS = (
    "addresses",
    "conditions",
    "nodeName",
    "hostname",
    "targetRef",
    "zone",
    "deprecatedTopology",
)
"""Of these `hostname`, `targetRef`, `zone` and `deprecatedTopology` name an endpoint and choose nothing."""
ENDPOINT_UNSUPPORTED = {"hints": "topology hints are not supported yet; remove it"}
SERVICE_NAME_LABEL = "kubernetes.io/service-name"


class Named(Protocol):
    """The metadata of the document, checked."""

    name: str
    namespace: str
    labels: dict[str, str]
    annotations: dict[str, str]


def read_service(reading: Reading, metadata: Named, document: Mapping[str, Any]) -> ApplyService:
    fields = reading.mapping(document, "", TOP_FIELDS)
    spec = reading.mapping(fields.get("spec"), "spec", SERVICE_FIELDS, SERVICE_UNSUPPORTED)
    for field, (supported, reason) in ONLY_SUPPORTED.items():
        if spec.get(field, supported) != supported:
            reading.refuse(f"spec.{field}", spec[field], f"{reason}; write {supported}")
    if reading.flag(spec.get("publishNotReadyAddresses"), "spec.publishNotReadyAddresses", False):
        reading.refuse("spec.publishNotReadyAddresses", True, "only ready backends serve; remove it")
    addresses, headless = _cluster_addresses(reading, spec)
    if not headless:
        _check_families(reading, spec, addresses)
    selector = spec.get("selector")
    is_global, shared = _sharing(reading, metadata.annotations)
    return ApplyService(
        namespace=metadata.namespace,
        name=metadata.name,
        cluster_ips=addresses,
        ports=_service_ports(reading, spec.get("ports"), headless),
        selector=reading.labels(selector, "spec.selector") if selector else None,
        headless=headless,
        is_global=is_global,
        shared=shared,
        labels=metadata.labels,
        annotations=metadata.annotations,
    )


def _cluster_addresses(reading: Reading, spec: Mapping[str, Any]) -> tuple[tuple[str, ...], bool]:
    """The addresses asked for, () to have them assigned; and whether the service is headless."""
    path = "spec.clusterIPs"
    listed = reading.sequence(spec.get("clusterIPs"), path)
    first = reading.text(spec.get("clusterIP"), "spec.clusterIP")
    if first and listed and listed[0] != first:
        reading.refuse(path, listed, f"must begin with spec.clusterIP, {first}")
    texts = [(path_of(path, f"[{n}]").replace(".[", "["), item) for n, item in enumerate(listed)]
    texts = texts or ([("spec.clusterIP", first)] if first else [])
    if [item for _, item in texts] == [HEADLESS]:
        return (), True
    found = [_address(reading, item, where) for where, item in texts]
    families = [ipaddress.ip_address(each).version for each in found if each]
    if len(families) != len(set(families)):
        reading.refuse(path, listed, "holds at most one address per family")
    return tuple(each for each in found if each), False


def _address(reading: Reading, value: Any, path: str, family: str = "") -> str:
    """In canonical form, or "" after a refusal."""
    try:
        address = ipaddress.ip_address(value) if isinstance(value, str) else None
    except ValueError:
        address = None
    if address is None or (family and f"IPv{address.version}" != family) or "%" in str(address):
        reading.refuse(path, value, f"must be an {family or 'IP'} address")
        return ""
    return str(address)


def _check_families(reading: Reading, spec: Mapping[str, Any], addresses: tuple[str, ...]) -> None:
    """A service has an address of each family that its cluster has, or the addresses that it names: no other choice."""
    path = "spec.ipFamilies"
    named = [f"IPv{ipaddress.ip_address(address).version}" for address in addresses] or list(IP_FAMILIES)
    listed = reading.sequence(spec.get("ipFamilies"), path)
    found = [reading.one_of(item, f"{path}[{n}]", IP_FAMILIES) for n, item in enumerate(listed)]
    if all(found) and found and sorted(found) != sorted(named):
        reading.refuse(path, listed, "leave it out, or name the address wanted in clusterIPs")
    policy = reading.one_of(spec.get("ipFamilyPolicy"), "spec.ipFamilyPolicy", IP_FAMILY_POLICIES)
    chosen = {"SingleStack": 1, "RequireDualStack": 2}.get(policy)
    if chosen and len(addresses) != chosen:
        reason = f"needs {chosen} in clusterIPs; without it a service has an address of each family of its cluster"
        reading.refuse("spec.ipFamilyPolicy", policy, reason)


def _sharing(reading: Reading, annotations: Mapping[str, str]) -> tuple[bool, bool]:
    """(global, shared). Other annotations of Cilium's on a service change its balancing and are refused."""
    for key, value in annotations.items():
        known = key in GLOBAL_ANNOTATIONS + SHARED_ANNOTATIONS
        if key.startswith(CILIUM_ANNOTATION_PREFIXES) and not known:
            reading.refuse(f"metadata.annotations[{key}]", value, "is not supported yet; remove it")
        if known and value.lower() not in ("true", "false"):
            reading.refuse(f"metadata.annotations[{key}]", value, 'must be "true" or "false"')

    def flag(names: tuple[str, ...], default: bool) -> bool:
        values = [annotations[name].lower() == "true" for name in names if name in annotations]
        return values[0] if values else default

    return flag(GLOBAL_ANNOTATIONS, False), flag(SHARED_ANNOTATIONS, True)


def _service_ports(reading: Reading, value: Any, headless: bool) -> tuple[ServicePort, ...]:
    path = "spec.ports"
    listed = reading.sequence(value, path)
    if not listed and not headless:
        reading.refuse(path, value, "needs at least one port")
    ports = [_service_port(reading, item, f"{path}[{n}]", len(listed) > 1) for n, item in enumerate(listed)]
    for number, port in enumerate(ports):
        earlier = ports[:number]
        if any(port.name == other.name for other in earlier):
            reading.refuse(f"{path}[{number}].name", port.name, "is the name of an earlier port too")
        if any((port.port, port.protocol) == (other.port, other.protocol) for other in earlier):
            reading.refuse(f"{path}[{number}].port", port.port, f"is an earlier {port.protocol} port too")
    return tuple(ports)


def _service_port(reading: Reading, item: Any, path: str, needs_name: bool) -> ServicePort:
    fields = reading.mapping(item, path, PORT_FIELDS, PORT_UNSUPPORTED)
    port = reading.number(fields.get("port"), path_of(path, "port"), 1, PORT_MAX) or 0
    target = fields.get("targetPort", port)
    if not isinstance(target, str):
        target = reading.number(target, path_of(path, "targetPort"), 1, PORT_MAX) if target else port
    elif not target:
        target = port
    name = fields.get("name")
    if needs_name and not name:
        reading.refuse(path_of(path, "name"), name, "is required where a service has several ports")
    return ServicePort(
        name=reading.dns_label(name, path_of(path, "name")) if name else "",
        port=port,
        protocol=reading.one_of(fields.get("protocol"), path_of(path, "protocol"), PROTOCOLS, "TCP"),
        target_port=target or port,
    )


def read_backends(reading: Reading, metadata: Named, document: Mapping[str, Any]) -> ReportBackends:
    fields = reading.mapping(document, "", SLICE_FIELDS)
    service = metadata.labels.get(SERVICE_NAME_LABEL, "")
    if not service:
        path = f"metadata.labels[{SERVICE_NAME_LABEL}]"
        reading.refuse(path, None, "is required: the Service whose backends these are")
    family = reading.one_of(fields.get("addressType"), "addressType", IP_FAMILIES)
    if "addressType" not in fields:
        reading.refuse("addressType", None, f"is required: one of {', '.join(IP_FAMILIES)}")
    listed = reading.sequence(fields.get("endpoints"), "endpoints")
    ports = reading.sequence(fields.get("ports"), "ports")
    return ReportBackends(
        namespace=metadata.namespace,
        name=metadata.name,
        service=service,
        backends=tuple(_backend(reading, item, f"endpoints[{n}]", family) for n, item in enumerate(listed)),
        ports=tuple(_backend_port(reading, item, f"ports[{n}]") for n, item in enumerate(ports)),
    )


def _backend(reading: Reading, item: Any, path: str, family: str) -> Backend:
    fields = reading.mapping(item, path, ENDPOINT_FIELDS, ENDPOINT_UNSUPPORTED)
    where = path_of(path, "addresses")
    addresses = reading.sequence(fields.get("addresses"), where)
    if len(addresses) != 1:
        reading.refuse(where, fields.get("addresses"), "must hold one address; write an endpoint for each")
    conditions = path_of(path, "conditions")
    known = reading.mapping(fields.get("conditions"), conditions, ("ready", "serving", "terminating"))
    return Backend(
        address=_address(reading, addresses[0], f"{where}[0]", family) if addresses else "",
        ready=reading.flag(known.get("ready"), path_of(conditions, "ready"), True),
        node=reading.text(fields.get("nodeName"), path_of(path, "nodeName")),
    )


def _backend_port(reading: Reading, item: Any, path: str) -> ServicePort:
    fields = reading.mapping(item, path, ("name", "port", "protocol", "appProtocol"))
    port = reading.number(fields.get("port"), path_of(path, "port"), 1, PORT_MAX) or 0
    protocol = reading.one_of(fields.get("protocol"), path_of(path, "protocol"), PROTOCOLS, "TCP")
    return ServicePort(reading.text(fields.get("name"), path_of(path, "name")), port, protocol, port)
