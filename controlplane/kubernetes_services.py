"""Kubernetes Service manifests as commands. Pure.

Belongs here: their fields and annotations. Every field of a Service changes where packets go, so one that is not
supported is refused. Does not belong here: EndpointSlices (kubernetes_slices.py), what a field does (desired/).
"""

import ipaddress
from collections.abc import Mapping
from typing import Any

from controlplane.balancing import GLOBAL_ANNOTATIONS, SHARED_ANNOTATIONS, annotation_fault
from controlplane.commands.service import FAMILY_POLICIES, SINGLE_STACK, ApplyService
from controlplane.fields import Reading, path_of
from controlplane.kubernetes_pools import pool_annotation_fault
from controlplane.kubernetes_slices import IP_FAMILIES, Named, read_address
from controlplane.model import Exposure, ServicePort
from controlplane.policy.rules import PORT_MAX
from controlplane.projections.exposures import (
    AFFINITY_S_MAX,
    CLUSTER,
    CLUSTER_IP,
    EXTERNAL_NAME,
    LOAD_BALANCER,
    NODE_PORT,
    POLICIES,
    SAME_NODE,
    SAME_ZONE,
    TYPES,
)
from controlplane.projections.workloads import PROTOCOLS

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
    "sessionAffinityConfig",
    "internalTrafficPolicy",
    "externalTrafficPolicy",
    "publishNotReadyAddresses",
    "externalIPs",
    "externalName",
    "trafficDistribution",
    "healthCheckNodePort",
    "loadBalancerIP",
    "loadBalancerClass",
    "loadBalancerSourceRanges",
    "allocateLoadBalancerNodePorts",
)
OF_TYPES = {
    "externalName": (EXTERNAL_NAME,),
    "externalTrafficPolicy": (NODE_PORT, LOAD_BALANCER),
    "healthCheckNodePort": (LOAD_BALANCER,),
    "loadBalancerIP": (LOAD_BALANCER,),
    "loadBalancerClass": (LOAD_BALANCER,),
    "loadBalancerSourceRanges": (LOAD_BALANCER,),
    "allocateLoadBalancerNodePorts": (LOAD_BALANCER,),
}
"""Fields that only services of these types have."""

PORT_FIELDS = ("name", "port", "protocol", "targetPort", "appProtocol", "nodePort")
"""`appProtocol` is a hint to proxies and changes no packet."""
HEADLESS = "None"
CLIENT_IP = "ClientIP"
AFFINITY_S_DEFAULT = 10800
DISTRIBUTIONS = {"PreferClose": SAME_ZONE, SAME_ZONE: SAME_ZONE, SAME_NODE: SAME_NODE}
"""PreferClose is the older name."""
RANGES_ANNOTATION = "service.beta.kubernetes.io/load-balancer-source-ranges"
TOPOLOGY_ANNOTATIONS = ("service.kubernetes.io/topology-mode", "service.kubernetes.io/topology-aware-hints")
"""They ask the platform for hints in its EndpointSlices, which count wherever they are."""


def read_service(reading: Reading, metadata: Named, document: Mapping[str, Any]) -> ApplyService:
    fields = reading.mapping(document, "", TOP_FIELDS)
    spec = reading.mapping(fields.get("spec"), "spec", SERVICE_FIELDS)
    kind = reading.one_of(spec.get("type"), "spec.type", TYPES, CLUSTER_IP)
    for field, types in OF_TYPES.items():
        is_reached = field == "externalTrafficPolicy" and spec.get("externalIPs")
        if spec.get(field) is not None and kind not in types and not is_reached:
            reason = f"belongs to a Service of type {' or '.join(types)}, not {kind}; remove it"
            reading.refuse(f"spec.{field}", spec[field], reason)
    addresses, headless = _cluster_addresses(reading, spec)
    if headless and kind not in (CLUSTER_IP, EXTERNAL_NAME):
        reading.refuse("spec.clusterIP", HEADLESS, f"a Service of type {kind} has a cluster address")
    families, family_policy = _families(reading, spec, addresses)
    selector = spec.get("selector")
    is_global, shared = _sharing(reading, metadata.annotations)
    return ApplyService(
        namespace=metadata.namespace,
        name=metadata.name,
        cluster_ips=addresses,
        ports=_service_ports(reading, spec.get("ports"), kind, headless),
        selector=reading.labels(selector, "spec.selector") if selector else None,
        headless=headless,
        is_global=is_global,
        shared=shared,
        labels=metadata.labels,
        annotations=metadata.annotations,
        exposure=_exposure(reading, spec, kind, metadata.annotations, fields.get("status")),
        families=families,
        family_policy=family_policy,
    )


def _exposure(
    reading: Reading, spec: Mapping[str, Any], kind: str, annotations: Mapping[str, str], status: Any
) -> Exposure:
    external = reading.sequence(spec.get("externalIPs"), "spec.externalIPs")
    name = reading.dns_subdomain(spec["externalName"], "spec.externalName") if spec.get("externalName") else ""
    if kind == EXTERNAL_NAME and not name and not spec.get("externalName"):
        reading.refuse("spec.externalName", None, f"is required of a Service of type {EXTERNAL_NAME}")
    distribution = reading.one_of(spec.get("trafficDistribution"), "spec.trafficDistribution", tuple(DISTRIBUTIONS))
    health_port = spec.get("healthCheckNodePort")
    return Exposure(
        type=kind,
        external_ips=_addresses(reading, external, "spec.externalIPs"),
        load_balancer_ips=_balancer_addresses(reading, spec, status) if kind == LOAD_BALANCER else (),
        load_balancer_class=reading.text(spec.get("loadBalancerClass"), "spec.loadBalancerClass"),
        allocates_node_ports=reading.flag(
            spec.get("allocateLoadBalancerNodePorts"), "spec.allocateLoadBalancerNodePorts", True
        ),
        source_ranges=_source_ranges(reading, spec, annotations),
        external_policy=reading.one_of(
            spec.get("externalTrafficPolicy"), "spec.externalTrafficPolicy", POLICIES, CLUSTER
        ),
        internal_policy=reading.one_of(
            spec.get("internalTrafficPolicy"), "spec.internalTrafficPolicy", POLICIES, CLUSTER
        ),
        affinity_s=_affinity(reading, spec),
        publishes_not_ready=reading.flag(
            spec.get("publishNotReadyAddresses"), "spec.publishNotReadyAddresses", False
        ),
        distribution=DISTRIBUTIONS.get(distribution, ""),
        health_check_port=reading.number(health_port, "spec.healthCheckNodePort", 1, PORT_MAX) or 0
        if health_port
        else 0,
        external_name=name,
    )


def _addresses(reading: Reading, listed: list[Any], path: str) -> tuple[str, ...]:
    found = (read_address(reading, item, f"{path}[{number}]") for number, item in enumerate(listed))
    return tuple(dict.fromkeys(each for each in found if each))


def _balancer_addresses(reading: Reading, spec: Mapping[str, Any], status: Any) -> tuple[str, ...]:
    """What the load balancer got; what is asked for where it has got nothing yet. A balancer that answers for its
    addresses itself ("Proxy") keeps them."""
    path = "status.loadBalancer.ingress"
    balancer = reading.mapping(reading.mapping(status, "status").get("loadBalancer"), "status.loadBalancer")
    found = []
    listed = reading.sequence(balancer.get("ingress"), path)
    for number, item in enumerate(listed):
        fields = reading.mapping(item, f"{path}[{number}]")
        if fields.get("ip") and fields.get("ipMode", "VIP") == "VIP":
            found.append(read_address(reading, fields["ip"], f"{path}[{number}].ip"))
    asked = spec.get("loadBalancerIP")
    if asked and not listed:
        found.append(read_address(reading, asked, "spec.loadBalancerIP"))
    return tuple(dict.fromkeys(each for each in found if each))


def _source_ranges(
    reading: Reading, spec: Mapping[str, Any], annotations: Mapping[str, str]
) -> tuple[str, ...]:
    path = "spec.loadBalancerSourceRanges"
    listed = reading.sequence(spec.get("loadBalancerSourceRanges"), path)
    if not listed and RANGES_ANNOTATION in annotations:
        path = f"metadata.annotations[{RANGES_ANNOTATION}]"
        listed = [each.strip() for each in annotations[RANGES_ANNOTATION].split(",") if each.strip()]
    found = []
    for number, item in enumerate(listed):
        try:
            found.append(str(ipaddress.ip_network(item.strip() if isinstance(item, str) else "", strict=False)))
        except ValueError:
            reading.refuse(f"{path}[{number}]", item, "must be a prefix such as 192.0.2.0/24")
    return tuple(sorted(dict.fromkeys(found)))


def _affinity(reading: Reading, spec: Mapping[str, Any]) -> int:
    """Seconds; 0 without affinity."""
    path = "spec.sessionAffinityConfig"
    kind = reading.one_of(spec.get("sessionAffinity"), "spec.sessionAffinity", ("None", CLIENT_IP), "None")
    config = reading.mapping(spec.get("sessionAffinityConfig"), path, ("clientIP",))
    client = reading.mapping(config.get("clientIP"), f"{path}.clientIP", ("timeoutSeconds",))
    given = client.get("timeoutSeconds")
    seconds = AFFINITY_S_DEFAULT
    if given is not None:
        seconds = reading.number(given, f"{path}.clientIP.timeoutSeconds", 1, AFFINITY_S_MAX) or AFFINITY_S_DEFAULT
    if kind != CLIENT_IP and config:
        reading.refuse(path, spec["sessionAffinityConfig"], f"needs sessionAffinity {CLIENT_IP}")
    return seconds if kind == CLIENT_IP else 0


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
    found = [read_address(reading, item, where) for where, item in texts]
    families = [ipaddress.ip_address(each).version for each in found if each]
    if len(families) != len(set(families)):
        reading.refuse(path, listed, "holds at most one address per family")
    return tuple(each for each in found if each), False


def _families(
    reading: Reading, spec: Mapping[str, Any], addresses: tuple[str, ...]
) -> tuple[tuple[int, ...], str]:
    """The families asked for, in order, and their policy; without either a service has all that its cluster has."""
    path = "spec.ipFamilies"
    listed = reading.sequence(spec.get("ipFamilies"), path)
    found = [reading.one_of(item, f"{path}[{n}]", IP_FAMILIES) for n, item in enumerate(listed)]
    families = tuple(int(each[-1]) for each in found if each)
    policy = reading.one_of(spec.get("ipFamilyPolicy"), "spec.ipFamilyPolicy", FAMILY_POLICIES)
    if len(families) != len(set(families)):
        reading.refuse(path, listed, "names each family once")
    if policy == SINGLE_STACK and len(families) > 1:
        reading.refuse(path, listed, f"ipFamilyPolicy {SINGLE_STACK} takes one")
    named = tuple(ipaddress.ip_address(each).version for each in addresses)
    if named and families and all(found) and named != families[: len(named)]:
        reading.refuse(path, listed, f"clusterIPs has {', '.join(f'IPv{each}' for each in named)}")
    if policy == SINGLE_STACK and len(named) > 1:
        reading.refuse("spec.ipFamilyPolicy", policy, "clusterIPs holds an address of each family")
    return families, policy


def _sharing(reading: Reading, annotations: Mapping[str, str]) -> tuple[bool, bool]:
    """(global, shared). An annotation of Cilium's that is not understood is refused: it would change the balancing."""
    for key, value in annotations.items():
        fault = pool_annotation_fault(key, value)
        fault = annotation_fault(key, value) if fault is None else fault
        if fault:
            reading.refuse(f"metadata.annotations[{key}]", value, fault)

    def flag(names: tuple[str, ...], default: bool) -> bool:
        values = [annotations[name].lower() == "true" for name in names if name in annotations]
        return values[0] if values else default

    return flag(GLOBAL_ANNOTATIONS, False), flag(SHARED_ANNOTATIONS, True)


def _service_ports(reading: Reading, value: Any, kind: str, headless: bool) -> tuple[ServicePort, ...]:
    path = "spec.ports"
    listed = reading.sequence(value, path)
    if not listed and not headless and kind != EXTERNAL_NAME:
        reading.refuse(path, value, "needs at least one port")
    ports = [_service_port(reading, item, f"{path}[{n}]", len(listed) > 1) for n, item in enumerate(listed)]
    for number, port in enumerate(ports):
        earlier = ports[:number]
        if port.node_port and kind not in (NODE_PORT, LOAD_BALANCER):
            reason = f"a Service of type {kind} has none; remove it, or write type {NODE_PORT}"
            reading.refuse(f"{path}[{number}].nodePort", port.node_port, reason)
        if any(port.name == other.name for other in earlier):
            reading.refuse(f"{path}[{number}].name", port.name, "is the name of an earlier port too")
        if any((port.port, port.protocol) == (other.port, other.protocol) for other in earlier):
            reading.refuse(f"{path}[{number}].port", port.port, f"is an earlier {port.protocol} port too")
    return tuple(ports)


def _service_port(reading: Reading, item: Any, path: str, needs_name: bool) -> ServicePort:
    fields = reading.mapping(item, path, PORT_FIELDS)
    node_port = fields.get("nodePort")
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
        node_port=reading.number(node_port, path_of(path, "nodePort"), 1, PORT_MAX) or 0 if node_port else 0,
    )
