"""Kubernetes Services and EndpointSlices as commands, and every refusal of theirs."""

from typing import Any

import pytest

from controlplane.commands.service import ApplyService, ReportBackends
from controlplane.kubernetes_objects import command_of
from controlplane.model import Backend, Exposure, ServicePort
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


def test_a_load_balancer_with_everything() -> None:
    """Each field becomes what it says; the address is the one that the balancer got."""
    found = command_of(
        service(
            """{type: LoadBalancer, ports: [{port: 80, nodePort: 30080}], externalTrafficPolicy: Local,
            internalTrafficPolicy: Local, sessionAffinity: ClientIP, loadBalancerSourceRanges: [192.0.2.7/24],
            externalIPs: [198.51.100.7], trafficDistribution: PreferClose, healthCheckNodePort: 31000,
            loadBalancerIP: 203.0.113.1, allocateLoadBalancerNodePorts: false, publishNotReadyAddresses: true}"""
        )
        | {"status": {"loadBalancer": {"ingress": [{"ip": "203.0.113.9"}, {"ip": "203.0.113.8", "ipMode": "Proxy"}]}}},
        CLUSTER,
    )
    assert isinstance(found, ApplyService)
    assert found.ports == (ServicePort("", 80, "TCP", 80, 30080),)
    assert found.exposure == Exposure(
        type="LoadBalancer",
        external_ips=("198.51.100.7",),
        load_balancer_ips=("203.0.113.9",),
        allocates_node_ports=False,
        source_ranges=("192.0.2.0/24",),
        external_policy="Local",
        internal_policy="Local",
        affinity_s=10800,
        publishes_not_ready=True,
        distribution="PreferSameZone",
        health_check_port=31000,
    )


def test_conditions_and_hints_of_a_slice() -> None:
    """`serving` is what `ready` is where it is not said."""
    rest = """
addressType: IPv4
endpoints:
  - {addresses: [192.0.2.1], zone: a, hints: {forZones: [{name: b}, {name: a}], forNodes: [{name: n1}]}}
  - {addresses: [192.0.2.2], conditions: {ready: false, serving: true, terminating: true}}
ports: [{port: 8080}]
"""
    found = command_of(endpoint_slice(rest), CLUSTER)
    assert isinstance(found, ReportBackends)
    assert found.backends == (
        Backend("192.0.2.1", zone="a", for_zones=("a", "b"), for_nodes=("n1",)),
        Backend("192.0.2.2", ready=False, serving=True, terminating=True),
    )


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
        backends=(Backend("192.0.2.1", True, "east-1"), Backend("192.0.2.2", False, "", False)),
        ports=(ServicePort("http", 8080, "TCP", 8080),),
    )


REFUSALS = [
    (service("null"), "spec.ports", "needs at least one port"),
    (service("{type: Node, ports: [{port: 80}]}"), "spec.type", "must be one of ClusterIP, NodePort"),
    (service("{sessionAffinity: Cookie, ports: [{port: 80}]}"), "spec.sessionAffinity", "one of None, ClientIP"),
    (service("{internalTrafficPolicy: Near, ports: [{port: 80}]}"), "spec.internalTrafficPolicy", "Cluster, Local"),
    (service("{publishNotReadyAddresses: 1, ports: [{port: 80}]}"), "spec.publishNotReadyAddresses", "true or false"),
    (service("{trafficDistribution: Far, ports: [{port: 80}]}"), "spec.trafficDistribution", "one of PreferClose"),
    (service("{externalIPs: [here], ports: [{port: 80}]}"), "spec.externalIPs[0]", "must be an IP address"),
    (service("{type: ExternalName}"), "spec.externalName", "is required"),
    (service("{type: NodePort, clusterIP: None, ports: [{port: 80}]}"), "spec.clusterIP", "has a cluster address"),
    (
        service("{type: LoadBalancer, loadBalancerSourceRanges: [192.0.2.1/40], ports: [{port: 80}]}"),
        "spec.loadBalancerSourceRanges[0]",
        "must be a prefix",
    ),
    (
        service("{sessionAffinityConfig: {clientIP: {timeoutSeconds: 5}}, ports: [{port: 80}]}"),
        "spec.sessionAffinityConfig",
        "needs sessionAffinity ClientIP",
    ),
    (
        service(
            "{sessionAffinity: ClientIP, sessionAffinityConfig: {clientIP: {timeoutSeconds: 90000}}, ports: [{port: 80}]}"
        ),
        "spec.sessionAffinityConfig.clientIP.timeoutSeconds",
        "from 1 to 86400",
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
    (service("{clusterIP: 10.0.0.1, ipFamilies: [IPv6], ports: [{port: 80}]}"), "spec.ipFamilies", "has IPv4"),
    (service("{ipFamilies: [IPv4, IPv4], ports: [{port: 80}]}"), "spec.ipFamilies", "names each family once"),
    (
        service("{ipFamilyPolicy: SingleStack, clusterIPs: [10.0.0.1, 'fd00::1'], ports: [{port: 80}]}"),
        "spec.ipFamilyPolicy",
        "an address of each family",
    ),
    (service("{selector: {app: 1}, ports: [{port: 80}]}"), "spec.selector[app]", "must be text"),
    (service("{}"), "spec.ports", "needs at least one port"),
    (service("{ports: [{port: 0}]}"), "spec.ports[0].port", "from 1 to 65535"),
    (
        service("{ports: [{port: 80, nodePort: 30080}]}"),
        "spec.ports[0].nodePort",
        "a Service of type ClusterIP has none",
    ),
    (service("{ports: [{port: 80, protocol: ICMP}]}"), "spec.ports[0].protocol", "one of TCP, UDP, SCTP"),
    (service("{ports: [{port: 80, targetPort: 70000}]}"), "spec.ports[0].targetPort", "from 1 to 65535"),
    (service("{ports: [{port: 80, name: a}, {port: 81}]}"), "spec.ports[1].name", "is required"),
    (service("{ports: [{port: 80, name: a}, {port: 81, name: a}]}"), "spec.ports[1].name", "earlier port"),
    (
        service("{ports: [{port: 80, name: a}, {port: 80, name: b}]}"),
        "spec.ports[1].port",
        "earlier TCP port",
    ),
    (
        service(annotations="{service.cilium.io/proxy-delegation: here}"),
        "metadata.annotations[service.cilium.io/proxy-delegation]",
        "is not supported",
    ),
    (
        service(annotations="{service.cilium.io/global: maybe}"),
        "metadata.annotations[service.cilium.io/global]",
        "must be true or false",
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
        endpoint_slice("addressType: IPv4\nendpoints: [{addresses: [192.0.2.1], hints: {forZone: []}}]"),
        "endpoints[0].hints.forZone",
        "did you mean forZones?",
    ),
    (endpoint_slice("addressType: IPv4\nports: [{name: a}]"), "ports[0].port", "from 1 to 65535"),
]
REFUSALS += [
    (service(f"{{{field}: {value}, ports: [{{port: 80}}]}}"), f"spec.{field}", "belongs to a Service of type")
    for field, value in (
        ("externalName", "a"),
        ("externalTrafficPolicy", "Local"),
        ("healthCheckNodePort", "31000"),
        ("loadBalancerIP", "192.0.2.1"),
        ("loadBalancerClass", "a"),
        ("loadBalancerSourceRanges", "[192.0.2.0/24]"),
        ("allocateLoadBalancerNodePorts", "true"),
    )
]


@pytest.mark.parametrize(("found", "field", "reason"), REFUSALS)
def test_refusal(found: Any, field: str, reason: str) -> None:
    """One field, its path, and what would be right."""
    ((named, why),) = refusals(command_of(found, CLUSTER))
    assert named == field
    assert reason in why
