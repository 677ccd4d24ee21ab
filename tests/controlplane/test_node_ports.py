"""Node ports: decided once, recorded, unique, and given back."""

import pytest

from controlplane.commands.service import ApplyService, RemoveService
from controlplane.commands.types import Author, Rejection
from controlplane.model import Exposure, ServicePort
from kvstore.types import Claim, Want
from tests.controlplane.random_mesh import Log
from tests.controlplane.small_mesh import accept, mesh

EAST = Author("east", "operator")


def service(name: str, *node_ports: int, **exposure: object) -> ApplyService:
    """One TCP port for each node port; 0: to be chosen."""
    ports = tuple(ServicePort(f"p{n}", 80 + n, "TCP", 8080, number) for n, number in enumerate(node_ports))
    exposed = Exposure(**{"type": "NodePort", **exposure})  # type: ignore[arg-type]
    return ApplyService("shop", name, (), ports, {"app": name}, exposure=exposed)


def ports_of(log: Log, name: str) -> list[int]:
    found = next(each for each in log.state.services.values() if each.name == name)
    return [port.node_port for port in found.ports]


def test_the_lowest_free_port_is_chosen_and_kept() -> None:
    """Applied again without a port, the service keeps what it has; another gets the next."""
    log = mesh()
    decision = accept(log, EAST, service("web", 0, 30001))
    assert ports_of(log, "web") == [30000, 30001]
    assert Claim("node-port/east/30000/TCP") in decision.claims
    assert accept(log, EAST, service("web", 0, 30001)).events == ()
    accept(log, EAST, service("db", 0))
    assert ports_of(log, "db") == [30002]


def test_a_port_of_another_service_is_rejected() -> None:
    """With the service that has it, and the field."""
    log = mesh()
    accept(log, EAST, service("web", 30500))
    rejection = log.wish(EAST, service("db", 30500))
    assert rejection == Rejection("30500/TCP is a node port of shop/web", "spec.ports[0].nodePort")


def test_ports_are_given_back() -> None:
    """When the service becomes one of the cluster only, or goes."""
    log = mesh()
    accept(log, EAST, service("web", 30500))
    decision = accept(log, EAST, service("web", 0, type="ClusterIP"))
    assert Claim("node-port/east/30500/TCP", Want.FREED) in decision.claims
    accept(log, EAST, service("web", 30500))
    decision = accept(log, EAST, RemoveService("shop", "web"))
    assert Claim("node-port/east/30500/TCP", Want.FREED) in decision.claims
    assert log.state.node_ports == {}


def test_a_health_check_port_comes_with_local_load_balancers() -> None:
    """It is one of the nodes' ports too."""
    log = mesh()
    accept(log, EAST, service("web", 0, type="LoadBalancer", external_policy="Local"))
    found = next(iter(log.state.services.values()))
    assert (found.ports[0].node_port, found.exposure.health_check_port) == (30000, 30001)


def test_no_node_ports_where_none_are_wanted() -> None:
    """allocateLoadBalancerNodePorts: false."""
    log = mesh()
    accept(log, EAST, service("web", 0, type="LoadBalancer", allocates_node_ports=False))
    assert ports_of(log, "web") == [0]


@pytest.mark.parametrize(
    ("families", "policy", "versions"),
    [((), "", [4, 6]), ((), "SingleStack", [4]), ((6,), "SingleStack", [6]), ((6,), "RequireDualStack", [6, 4])],
)
def test_families_are_chosen_in_the_order_asked_for(families: tuple[int, ...], policy: str, versions: list[int]) -> None:
    """Of a cluster with a range of each."""
    log = mesh()
    port = ServicePort("http", 80, "TCP", 8080)
    accept(log, EAST, ApplyService("shop", "web", (), (port,), None, families=families, family_policy=policy))
    (found,) = log.state.services.values()
    assert [6 if ":" in each else 4 for each in found.cluster_ips] == versions
