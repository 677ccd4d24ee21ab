"""How services are reached beside their cluster addresses: checks, and who has which node port. Pure.

Belongs here: what holds for every service that is exposed. Does not belong here: choosing ports
(commands/node_ports.py), frontends (desired/frontends.py).
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from controlplane.addresses import is_address, span_of
from controlplane.model import Exposure, ObjectKey, Service

if TYPE_CHECKING:
    from controlplane.projections.state import State

CLUSTER_IP, NODE_PORT, LOAD_BALANCER, EXTERNAL_NAME = "ClusterIP", "NodePort", "LoadBalancer", "ExternalName"
TYPES = (CLUSTER_IP, NODE_PORT, LOAD_BALANCER, EXTERNAL_NAME)
CLUSTER, LOCAL = "Cluster", "Local"
POLICIES = (CLUSTER, LOCAL)
SAME_ZONE, SAME_NODE = "PreferSameZone", "PreferSameNode"
AFFINITY_S_MAX = 86400
PORT_MAX = 65535
HEALTH_CHECK_PROTOCOL = "TCP"


def node_ports(service: Service) -> Iterator[tuple[int, str]]:
    """The ports of every node that are the service's, with their protocol; its health check's too."""
    for port in service.ports:
        if port.node_port:
            yield port.node_port, port.protocol
    if service.exposure.health_check_port:
        yield service.exposure.health_check_port, HEALTH_CHECK_PROTOCOL


def node_port_fault(state: "State", key: ObjectKey, service: Service) -> str:
    """Which of its node ports is another service's, or stands twice; "" if none."""
    seen: dict[tuple[int, str], None] = {}
    for number, protocol in node_ports(service):
        holder = state.node_ports.get((key.cluster, number, protocol))
        if holder is not None and holder != key:
            return f"node port {number}/{protocol} is that of service {holder.namespace}/{holder.name}"
        if (number, protocol) in seen:
            return f"node port {number}/{protocol} stands twice"
        seen[number, protocol] = None
    return ""


def exposure_fault(exposure: Exposure) -> str:
    """What is wrong with an exposure; "" if nothing is."""
    if exposure.type not in TYPES:
        return f"type {exposure.type!r}: right is {', '.join(TYPES)}"
    for address in (*exposure.external_ips, *exposure.load_balancer_ips):
        if not is_address(address):
            return f"address {address!r}: right is for example 192.0.2.10 or 2001:db8::10"
    for prefix in exposure.source_ranges:
        if span_of(prefix) is None:
            return f"source range {prefix!r}: right is for example 192.0.2.0/24, without bits beyond the length"
    for policy in (exposure.external_policy, exposure.internal_policy):
        if policy not in POLICIES:
            return f"traffic policy {policy!r}: right is {' or '.join(POLICIES)}"
    if not 0 <= exposure.affinity_s <= AFFINITY_S_MAX:
        return f"session affinity of {exposure.affinity_s} s: right is 1 to {AFFINITY_S_MAX}, 0 for none"
    if exposure.distribution not in ("", SAME_ZONE, SAME_NODE):
        return f"traffic distribution {exposure.distribution!r}: right is {SAME_ZONE} or {SAME_NODE}"
    if not 0 <= exposure.health_check_port <= PORT_MAX:
        return f"health check port {exposure.health_check_port}: right is 1 to {PORT_MAX}, 0 for none"
    return ""
