"""What the network reaches, and which backends are chosen for whom: the rows of one node."""

from typing import Any

import msgspec

from controlplane import events as e
from controlplane.commands.addresses import ChangeSettings
from controlplane.commands.redirect import ApplyLocalRedirect, SetBackendState
from controlplane.commands.service import ApplyService, ReportBackends
from controlplane.commands.types import Author, Rejection
from controlplane.commands.workload import ApplyWorkload
from controlplane.desired.services import ServiceCompiler
from controlplane.model import Backend, Exposure, HostPort, ServicePort
from datapath.abi import types as abi
from datapath.codec import address_text
from datapath.tables import AttachmentKey, ServiceKey, ServiceRow
from tests.controlplane.random_mesh import Log
from tests.controlplane.small_mesh import (
    UNDERLAY,
    UNDERLAY_IFINDEX,
    accept,
    add_endpoint,
    mesh,
    packed,
    table,
    underlay_device,
)

EAST = Author("east", "operator")
PORT = ServicePort("http", 80, "TCP", 8080, 30080)
SLICE_PORT = ServicePort("http", 8080, "TCP", 8080)
IN, OUT = abi.SERVICE_SCOPE_INTERNAL, abi.SERVICE_SCOPE_EXTERNAL


def apply(log: Log, annotations: dict[str, str] | None = None, selector: bool = True, **exposure: Any) -> None:
    """Service shop/web with the address 172.1.0.10."""
    exposed = Exposure(**{"type": "NodePort", **exposure})
    port = PORT if exposed.type != "ClusterIP" else msgspec.structs.replace(PORT, node_port=0)
    chosen = {"app": "web"} if selector else None
    accept(log, EAST, ApplyService("shop", "web", ("172.1.0.10",), (port,), chosen, False, False, True, {},
                                   annotations or {}, exposed))  # fmt: skip


def two_nodes(**exposure: Any) -> Log:
    """The service with a backend on n1 and one on n2."""
    log = mesh()
    add_endpoint(log, "east", "n1", "web-1", 11, app="web")
    add_endpoint(log, "east", "n2", "web-2", 12, app="web")
    apply(log, **exposure)
    return log


def row(log: Log, address: str, port: int, scope: int = IN, node: str = "n1") -> ServiceRow | None:
    found: ServiceRow | None = table(log, "services", node=node).get(ServiceKey(packed(address), port, 6, scope))
    return found


def backends(log: Log, address: str, port: int = 80, scope: int = IN, node: str = "n1") -> list[str]:
    """Addresses that new flows may go to, in order."""
    found = row(log, address, port, scope, node)
    assert found is not None
    rows = table(log, "backends", node=node)
    members = sorted((key.slot, held) for key, held in rows.items() if key.backend_set == found.backend_set)
    return [address_text(held.address) for slot, held in members if slot < found.count]


def reported(log: Log, *found: Backend) -> None:
    """The service, without a selector, with the backends of one slice."""
    apply(log, selector=False)
    accept(log, EAST, ReportBackends("shop", "s", "web", found, (SLICE_PORT,)))


def settings(log: Log, document: str) -> None:
    accept(log, EAST, ChangeSettings(document))


def test_node_ports_are_reached_at_every_address_of_the_node() -> None:
    """Of the service's family, from both sides; cluster addresses only from inside."""
    log = two_nodes()
    keys = {(address_text(key.address), key.port, key.scope) for key in table(log, "services")}
    assert keys == {("172.1.0.10", 80, IN), ("192.168.0.1", 30080, IN), ("192.168.0.1", 30080, OUT)}


def test_load_balancers_and_external_addresses_are_the_same_on_every_node() -> None:
    """With the service's own port, and flags that tell the type."""
    log = two_nodes(type="LoadBalancer", load_balancer_ips=("203.0.113.9",), external_ips=("198.51.100.7",))
    for node in ("n1", "n2"):
        balanced, external = row(log, "203.0.113.9", 80, OUT, node), row(log, "198.51.100.7", 80, OUT, node)
        assert balanced is not None and balanced.flags == abi.SERVICE_LOAD_BALANCER
        assert external is not None and external.flags == abi.SERVICE_EXTERNAL_IP


def test_external_policy_local_counts_for_the_network_only() -> None:
    """Kubernetes: traffic of the cluster to an external address goes to all backends."""
    log = two_nodes(external_policy="Local")
    assert backends(log, "192.168.0.1", 30080, OUT) == ["10.1.1.2"]
    assert backends(log, "192.168.0.1", 30080, IN) == ["10.1.1.2", "10.1.2.2"]
    found = row(log, "192.168.0.1", 30080, OUT)
    assert found is not None and found.flags & abi.SERVICE_LOCAL_BACKENDS


def test_internal_policy_local_leaves_the_backends_of_the_node() -> None:
    """For cluster addresses; a node without any has none."""
    log = two_nodes(internal_policy="Local")
    assert backends(log, "172.1.0.10") == ["10.1.1.2"]
    assert backends(log, "192.168.0.1", 30080) == ["10.1.1.2", "10.1.2.2"]


def test_backend_of_another_cluster_is_judged_there() -> None:
    """A judgement of the own cluster would mean another backend, and change nothing."""
    log = mesh()
    address = add_endpoint(log, "west", "n1", "web-1", 11).ipv4
    refused = log.wish(EAST, SetBackendState(address, 8080, "TCP", "maintenance"))
    assert isinstance(refused, Rejection) and "west" in refused.reason


def test_health_checks_follow_the_services_that_ask_for_them() -> None:
    """Of the own cluster, with their port of the node, until the service wants none."""
    log = two_nodes(type="LoadBalancer", external_policy="Local", health_check_port=32000)
    compiler = ServiceCompiler("east", "n1")
    compiler.full(log.state)
    assert [port for _, port in compiler.health_checks()] == [32000]
    seen = len(log.changes)
    apply(log)
    compiler.update(log.state, [change for changes in log.changes[seen:] for change in changes])
    assert compiler.health_checks() == []


def egress_program(log: Log, node: str = "n1") -> str:
    """What runs on the way out of the node's device to the others."""
    found = table(log, "attachments", node=node).get(AttachmentKey(UNDERLAY_IFINDEX, "egress"))
    return found.program if found else ""


def test_answers_of_a_nodes_own_network_are_translated_where_there_are_any() -> None:
    """Only on the node of such a backend, and only while the network can ask for it."""
    log = two_nodes()
    assert egress_program(log) == ""
    accept(log, EAST, ReportBackends("shop", "s", "web", (Backend("192.168.0.1"),), (SLICE_PORT,)))
    assert (egress_program(log), egress_program(log, "n2")) == ("to_network_answering", "")
    apply(log, type="ClusterIP")
    assert egress_program(log) == ""


def test_terminating_backends_are_the_last_resort() -> None:
    """While one is ready it alone gets new flows; the others stay in the set, above the count."""
    log = mesh()
    leaving = Backend("10.9.0.2", ready=False, serving=True, terminating=True)
    reported(log, Backend("10.9.0.1"), leaving, Backend("10.9.0.3", ready=False, serving=False, terminating=True))
    assert backends(log, "172.1.0.10") == ["10.9.0.1"]
    assert sorted(held.flags for held in table(log, "backends").values()) == [0, 1, 1]
    accept(log, EAST, ReportBackends("shop", "s", "web", (leaving,), (SLICE_PORT,)))
    assert backends(log, "172.1.0.10") == ["10.9.0.2"]


def test_a_pod_that_goes_gets_no_new_flows() -> None:
    """Its deletion is what its platform says first."""
    log = two_nodes()
    accept(log, EAST, ApplyWorkload("shop", "web-1", {"app": "web"}, True, terminating=True))
    assert backends(log, "172.1.0.10") == ["10.1.2.2"]


def test_hints_count_where_every_backend_has_them() -> None:
    """And one is for the node's zone; otherwise all serve."""
    log = mesh()
    log.write("east", "node.n1", e.NodeJoined("n1", UNDERLAY["east", "n1"], underlay_device("east", "n1"),
                                              ("k8s:topology.kubernetes.io/zone=a",)))  # fmt: skip
    near, far = Backend("10.9.0.1", for_zones=("a",)), Backend("10.9.0.2", for_zones=("b",))
    reported(log, near, far)
    assert backends(log, "172.1.0.10") == ["10.9.0.1"]
    assert backends(log, "172.1.0.10", node="n2") == ["10.9.0.1", "10.9.0.2"]
    reported(log, near, Backend("10.9.0.2"))
    assert backends(log, "172.1.0.10") == ["10.9.0.1", "10.9.0.2"]


def test_a_distribution_prefers_the_node_then_the_zone() -> None:
    """By the labels of nodes, where a selector chooses."""
    log = two_nodes(distribution="PreferSameNode")
    assert backends(log, "172.1.0.10") == ["10.1.1.2"]
    assert backends(log, "172.1.0.10", node="n2") == ["10.1.2.2"]


def test_judged_backends_keep_their_flows_only() -> None:
    """Whatever their platform says; weight 0 is the same by hand."""
    log = mesh()
    reported(log, Backend("10.9.0.1"), Backend("10.9.0.2"))
    accept(log, EAST, SetBackendState("10.9.0.1", 8080, "TCP", "quarantined"))
    assert backends(log, "172.1.0.10") == ["10.9.0.2"]
    assert sorted(held.flags for held in table(log, "backends").values()) == [0, abi.BACKEND_QUARANTINED]


def test_source_ranges_hold_for_the_network_at_load_balancers() -> None:
    """The node port takes any client unless the setting says otherwise; annotated, the ranges are turned away."""
    log = two_nodes(type="LoadBalancer", load_balancer_ips=("203.0.113.9",), source_ranges=("192.0.2.0/24",))
    outside, inside = row(log, "203.0.113.9", 80, OUT), row(log, "203.0.113.9", 80, IN)
    node_port = row(log, "192.168.0.1", 30080, OUT)
    assert outside and inside and node_port
    assert (bool(outside.source_range_set), inside.source_range_set, node_port.source_range_set) == (True, 0, 0)
    (key,) = table(log, "source_ranges")
    assert (key.prefix_length, key.source_range_set) == (64 + 120, outside.source_range_set)
    settings(log, '{"bpf-lb-source-range-all-types":true}')
    node_port = row(log, "192.168.0.1", 30080, OUT)
    assert node_port and node_port.source_range_set == outside.source_range_set


def test_modes_by_setting_and_annotation() -> None:
    """Hybrid: only TCP is answered by the backend's node; a service's own word goes before; never for local backends."""
    log = two_nodes()
    settings(log, '{"bpf-lb-mode":"hybrid"}')
    found = row(log, "192.168.0.1", 30080, OUT)
    assert found and found.flags & abi.SERVICE_DSR
    apply(log, {"service.cilium.io/forwarding-mode": "snat"})
    found = row(log, "192.168.0.1", 30080, OUT)
    assert found and not found.flags & abi.SERVICE_DSR


def test_maglev_tables_are_the_same_on_every_node() -> None:
    """For what the network reaches; cluster addresses keep to the hash."""
    log = two_nodes()
    settings(log, '{"bpf-lb-algorithm":"maglev","bpf-lb-maglev-table-size":1021}')
    found, cluster = row(log, "192.168.0.1", 30080, OUT), row(log, "172.1.0.10", 80)
    assert found and cluster and (found.maglev_slots, cluster.maglev_slots) == (1021, 0)
    assert len(table(log, "maglev")) == 2
    assert table(log, "maglev") == table(log, "maglev", node="n2")


def test_affinity_knows_the_backends_of_new_flows() -> None:
    """By address, so that one that left is not taken for one that is there."""
    log = two_nodes(affinity_s=60)
    found = row(log, "172.1.0.10", 80)
    assert found and found.affinity_s == 60
    assert {address_text(key.address) for key in table(log, "affinity_backends")} == {"10.1.1.2", "10.1.2.2"}


def test_host_ports_lead_to_the_one_workload() -> None:
    """On its node, at the node's addresses of its families."""
    log = mesh()
    add_endpoint(log, "east", "n1", "web-1", 11)
    ports = (HostPort(9090, 8080, "TCP"),)
    accept(log, EAST, ApplyWorkload("shop", "web-1", {"app": "web"}, False, "", {}, "n1", ports))
    assert backends(log, "192.168.0.1", 9090, OUT) == ["10.1.1.2"]
    assert backends(log, "fd02::1", 9090, OUT) == ["fd00:1:0:1::2"]
    assert table(log, "services", node="n2") == {}


def test_a_workload_of_the_hosts_network_is_reached_at_its_node() -> None:
    """It has no endpoint."""
    log = mesh()
    apply(log)
    accept(log, EAST, ApplyWorkload("shop", "web-1", {"app": "web"}, True, "", {}, "n2", (), True))
    assert backends(log, "172.1.0.10") == ["192.168.0.2"]


def test_a_redirect_leads_to_workloads_of_the_node_while_there_are_any() -> None:
    """Otherwise the service is what it is."""
    log = two_nodes()
    target = ServicePort("", 8080, "TCP", 8080)
    accept(log, EAST, ApplyLocalRedirect("shop", "near", "", "web", (target,), {"app": "web"}, True))
    assert backends(log, "172.1.0.10") == ["10.1.1.2"]
    found = row(log, "172.1.0.10", 80)
    assert found and found.flags & abi.SERVICE_LOCAL_REDIRECT
    accept(log, EAST, ApplyWorkload("shop", "web-1", {"app": "web"}, False))
    assert backends(log, "172.1.0.10") == ["10.1.2.2"]


def test_the_older_kind_of_frontend_has_a_key_that_two_ask_for() -> None:
    """A cluster's own address goes before an external address of another service; removed, the other has it."""
    log = two_nodes()
    port = ServicePort("http", 80, "TCP", 9999)
    other = Exposure(external_ips=("172.1.0.10",))
    accept(log, EAST, ApplyService("shop", "other", (), (port,), {"app": "web"}, exposure=other))
    found = row(log, "172.1.0.10", 80)
    assert found and found.flags & abi.SERVICE_CLUSTER_IP
    log.write("east", "operator", e.ServiceRemoved("shop", "web"))
    found = row(log, "172.1.0.10", 80)
    assert found and found.flags & abi.SERVICE_EXTERNAL_IP
