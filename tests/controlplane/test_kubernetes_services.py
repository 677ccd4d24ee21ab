"""Kubernetes Services and EndpointSlices as commands, and every refusal of theirs."""

from typing import Any

import pytest

from controlplane.commands.service import ApplyService, ReportBackends
from controlplane.kubernetes_objects import command_of
from controlplane.model import Backend, ServicePort
from tests.controlplane.kubernetes_documents import (
    CLUSTER,
    endpoint_slice,
    refusals,
    service,
)


def test_a_service_by_selector() -> None:
    """targetPort defaults to the port, protocol to TCP, the address is assigned."""
    found = command_of(service("{selector: {app: web}, ports: [{port: 80}]}"), CLUSTER)
    assert isinstance(found, ApplyService)
    assert found.cluster_ips == ()
    assert found.selector == {"app": "web"}
    assert found.ports == (ServicePort("", 80, "TCP", 80),)
    assert (found.headless, found.is_global, found.shared) == (False, False, True)


def test_service_ports_by_number_and_name() -> None:
    """A named targetPort stays a name: each backend resolves it for itself."""
    ports = "[{name: web, port: 80, targetPort: http}, {name: dns, port: 53, protocol: UDP, targetPort: 5353}]"
    found = command_of(service(f"{{ports: {ports}}}"), CLUSTER)
    assert isinstance(found, ApplyService)
    assert found.ports == (ServicePort("web", 80, "TCP", "http"), ServicePort("dns", 53, "UDP", 5353))


def test_cluster_addresses_are_canonical() -> None:
    """One per family, IPv6 shortened."""
    spec = "{clusterIP: 10.96.0.10, clusterIPs: [10.96.0.10, 'fd00:96::00a'], ports: [{port: 80}]}"
    found = command_of(service(spec), CLUSTER)
    assert isinstance(found, ApplyService)
    assert found.cluster_ips == ("10.96.0.10", "fd00:96::a")


@pytest.mark.parametrize(
    "families",
    [
        "clusterIP: 10.96.0.1, ipFamilyPolicy: SingleStack, ipFamilies: [IPv4]",
        "clusterIPs: [10.96.0.1, 'fd00::1'], ipFamilyPolicy: RequireDualStack, ipFamilies: [IPv4, IPv6]",
        "ipFamilyPolicy: PreferDualStack",
        "clusterIP: None, ipFamilyPolicy: SingleStack, ipFamilies: [IPv4]",
    ],
)
def test_families_that_agree_are_accepted(families: str) -> None:
    """What the API server writes beside addresses says nothing more than they do."""
    assert isinstance(command_of(service(f"{{{families}, ports: [{{port: 80}}]}}"), CLUSTER), ApplyService)


def test_a_headless_service_needs_no_ports() -> None:
    """clusterIP None asks for no address at all."""
    found = command_of(service("{clusterIP: None, selector: {app: web}}"), CLUSTER)
    assert isinstance(found, ApplyService)
    assert (found.headless, found.cluster_ips, found.ports) == (True, (), ())


@pytest.mark.parametrize(
    ("annotations", "is_global", "shared"),
    [
        ("{service.cilium.io/global: 'true'}", True, True),
        ("{service.cilium.io/global: 'false'}", False, True),
        ("{io.cilium/global-service: 'true'}", True, True),
        ("{service.cilium.io/global: 'true', service.cilium.io/shared: 'false'}", True, False),
        ("{io.cilium/global-service: 'true', io.cilium/shared-service: 'false'}", True, False),
        ("{example.com/owner: me}", False, True),
    ],
)
def test_global_services(annotations: str, is_global: bool, shared: bool) -> None:
    """Cilium's annotations, the older names too; those of others are notes."""
    found = command_of(service(annotations=annotations), CLUSTER)
    assert isinstance(found, ApplyService)
    assert (found.is_global, found.shared) == (is_global, shared)


def test_an_endpoint_slice_reports_backends() -> None:
    """Readiness is absent: ready, as the API says; the node is kept."""
    rest = """
addressType: IPv4
endpoints:
  - {addresses: [192.0.2.1], nodeName: east-1}
  - {addresses: [192.0.2.2], conditions: {ready: false}}
ports: [{name: http, port: 8080}]
"""
    assert command_of(endpoint_slice(rest), CLUSTER) == ReportBackends(
        namespace="default",
        name="web-1",
        service="web",
        backends=(Backend("192.0.2.1", True, "east-1"), Backend("192.0.2.2", False, "")),
        ports=(ServicePort("http", 8080, "TCP", 8080),),
    )


REFUSALS = [
    (service("null"), "spec.ports", "needs at least one port"),
    (service("{type: NodePort, ports: [{port: 80}]}"), "spec.type", "write ClusterIP"),
    (service("{type: LoadBalancer, ports: [{port: 80}]}"), "spec.type", "write ClusterIP"),
    (service("{sessionAffinity: ClientIP, ports: [{port: 80}]}"), "spec.sessionAffinity", "write None"),
    (
        service("{internalTrafficPolicy: Local, ports: [{port: 80}]}"),
        "spec.internalTrafficPolicy",
        "write Cluster",
    ),
    (
        service("{publishNotReadyAddresses: true, ports: [{port: 80}]}"),
        "spec.publishNotReadyAddresses",
        "ready",
    ),
    (service("{port: 80, ports: [{port: 80}]}"), "spec.port", "did you mean ports?"),
    (service("{clusterIP: bad, ports: [{port: 80}]}"), "spec.clusterIP", "must be an IP address"),
    (
        service("{clusterIP: 10.0.0.1, clusterIPs: [10.0.0.2], ports: [{port: 80}]}"),
        "spec.clusterIPs",
        "must begin with spec.clusterIP",
    ),
    (
        service("{clusterIPs: [10.0.0.1, 10.0.0.2], ports: [{port: 80}]}"),
        "spec.clusterIPs",
        "one address per family",
    ),
    (service("{ipFamilies: [IPv5], ports: [{port: 80}]}"), "spec.ipFamilies[0]", "one of IPv4, IPv6"),
    (service("{ipFamilyPolicy: Dual, ports: [{port: 80}]}"), "spec.ipFamilyPolicy", "one of SingleStack"),
    (service("{ipFamilies: [IPv4], ports: [{port: 80}]}"), "spec.ipFamilies", "leave it out"),
    (
        service("{ipFamilyPolicy: SingleStack, ports: [{port: 80}]}"),
        "spec.ipFamilyPolicy",
        "needs 1 in clusterIPs",
    ),
    (service("{ipFamilyPolicy: RequireDualStack, ports: [{port: 80}]}"), "spec.ipFamilyPolicy", "needs 2 in"),
    (service("{selector: {app: 1}, ports: [{port: 80}]}"), "spec.selector[app]", "must be text"),
    (service("{}"), "spec.ports", "needs at least one port"),
    (service("{ports: [{port: 0}]}"), "spec.ports[0].port", "from 1 to 65535"),
    (
        service("{ports: [{port: 80, nodePort: 30080}]}"),
        "spec.ports[0].nodePort",
        "another type than ClusterIP",
    ),
    (service("{ports: [{port: 80, protocol: SCTP}]}"), "spec.ports[0].protocol", "one of TCP, UDP"),
    (service("{ports: [{port: 80, targetPort: 70000}]}"), "spec.ports[0].targetPort", "from 1 to 65535"),
    (service("{ports: [{port: 80, name: a}, {port: 81}]}"), "spec.ports[1].name", "is required"),
    (service("{ports: [{port: 80, name: a}, {port: 81, name: a}]}"), "spec.ports[1].name", "earlier port"),
    (
        service("{ports: [{port: 80, name: a}, {port: 80, name: b}]}"),
        "spec.ports[1].port",
        "earlier TCP port",
    ),
    (
        service(annotations="{service.cilium.io/affinity: local}"),
        "metadata.annotations[service.cilium.io/affinity]",
        "not supported yet",
    ),
    (
        service(annotations="{service.cilium.io/global: maybe}"),
        "metadata.annotations[service.cilium.io/global]",
        'must be "true" or "false"',
    ),
    (endpoint_slice(label="a: b"), "metadata.labels[kubernetes.io/service-name]", "is required"),
    (endpoint_slice(""), "addressType", "is required"),
    (endpoint_slice("addressType: FQDN"), "addressType", "one of IPv4, IPv6"),
    (
        endpoint_slice("{addressType: IPv4, endpoints: [{addresses: ['::1']}]}".strip("{}").replace(", e", "\ne")),
        "endpoints[0].addresses[0]",
        "must be an IPv4 address",
    ),
    (
        endpoint_slice("addressType: IPv4\nendpoints: [{addresses: [192.0.2.1, 192.0.2.2]}]"),
        "endpoints[0].addresses",
        "must hold one address",
    ),
    (
        endpoint_slice("addressType: IPv4\nendpoints: [{addresses: [192.0.2.1], hints: {}}]"),
        "endpoints[0].hints",
        "not supported yet",
    ),
    (endpoint_slice("addressType: IPv4\nports: [{name: a}]"), "ports[0].port", "from 1 to 65535"),
]
REFUSALS += [
    (service(f"{{{field}: a, ports: [{{port: 80}}]}}"), f"spec.{field}", reason)
    for field, reason in (
        ("externalIPs", "not supported yet"),
        ("sessionAffinityConfig", "not supported yet"),
        ("trafficDistribution", "not supported yet"),
        ("externalName", "another type"),
        ("externalTrafficPolicy", "another type"),
        ("healthCheckNodePort", "another type"),
        ("loadBalancerIP", "another type"),
        ("loadBalancerClass", "another type"),
        ("loadBalancerSourceRanges", "another type"),
        ("allocateLoadBalancerNodePorts", "another type"),
    )
]


@pytest.mark.parametrize(("found", "field", "reason"), REFUSALS)
def test_refusal(found: Any, field: str, reason: str) -> None:
    """One field, its path, and what would be right."""
    ((named, why),) = refusals(command_of(found, CLUSTER))
    assert named == field
    assert reason in why
