"""Addresses of load balancers out of pools: who gets which, who keeps it, and what the platform's manifests say."""

from typing import Any

import msgspec
import pytest

from controlplane import events as e
from controlplane.commands.balancer_pools import (
    ApplyBalancerPool,
    AssignBalancerAddresses,
    RemoveBalancerPool,
    due_assignments,
)
from controlplane.commands.service import ApplyService, RemoveService
from controlplane.commands.types import Author, Decision, Rejection
from controlplane.commands.upkeep import POOLS_ROUND_S, Upkeep, due_commands
from controlplane.desired.services import ServiceCompiler
from controlplane.kubernetes_objects import command_of, removal_of
from controlplane.kubernetes_views import manifest_of
from controlplane.model import Exposure, ServicePort
from controlplane.projections.balancer_pools import KIND, pool_key
from controlplane.projections.services import service_key
from controlplane.projections.state import State
from datapath.abi.types import SERVICE_SCOPE_EXTERNAL
from datapath.codec import address_text
from kvstore.types import Want
from tests.controlplane.random_mesh import Log
from tests.controlplane.small_mesh import accept, mesh

EAST = Author("east", "operator")
V4, V6 = "203.0.113.0/29", "2001:db8:5::/64"


def pool(log: Log, name: str = "p", blocks: tuple[str, ...] = (V4, V6), **fields: Any) -> None:
    accept(log, EAST, ApplyBalancerPool(name, blocks, **fields))


def wanted(name: str, annotations: dict[str, str] | None = None, labels: dict[str, str] | None = None, **exposed: Any) -> ApplyService:
    exposure = Exposure(**{"type": "LoadBalancer", **exposed})
    port = ServicePort("", 80, "TCP", 8080)
    return ApplyService("shop", name, (), (port,), {"app": name}, labels=labels or {}, annotations=annotations or {}, exposure=exposure)


def balancer(log: Log, name: str, **fields: Any) -> tuple[str, ...]:
    accept(log, EAST, wanted(name, **fields))
    return has(log, name)


def has(log: Log, name: str) -> tuple[str, ...]:
    return log.state.services[service_key("east", "shop", name)].exposure.load_balancer_ips


def assign(log: Log) -> None:
    """What the operator's duty does, until nothing is due."""
    for command in due_assignments(log.state, "east"):
        accept(log, EAST, command)
    assert due_assignments(log.state, "east") == []


def test_a_service_gets_an_address_of_each_of_its_families() -> None:
    """The lowest that nobody has, recorded with the service; applied again it keeps them, and the network reaches it there."""
    log = mesh()
    pool(log)
    assert balancer(log, "a") == ("203.0.113.0", "2001:db8:5::")
    assert balancer(log, "b") == ("203.0.113.1", "2001:db8:5::1")
    revision = log.state.revision
    assert balancer(log, "a") == ("203.0.113.0", "2001:db8:5::") and log.state.revision == revision
    compiler = ServiceCompiler("east", "n1")
    compiler.full(log.state)
    keys = compiler.frontends(service_key("east", "shop", "b"))
    reached = {address_text(key.address) for key in keys if key.scope == SERVICE_SCOPE_EXTERNAL and key.port == 80}
    assert reached == {"203.0.113.1", "2001:db8:5::1"}


def test_an_address_that_is_given_back_is_given_out_again() -> None:
    """Of a service that goes, or is none of that type any more; its claims say so to other writers."""
    log = mesh()
    pool(log)
    balancer(log, "a")
    decision = log.wish(EAST, RemoveService("shop", "a"))
    assert isinstance(decision, Decision)
    freed = {claim.key for claim in decision.claims if claim.want is Want.FREED}
    assert {"balancer-ip/east/203.0.113.0", "balancer-ip/east/2001_db8_5__"} <= freed
    assert balancer(log, "b") == ("203.0.113.0", "2001:db8:5::")
    assert balancer(log, "b", type="ClusterIP") == ()
    assert balancer(log, "c") == ("203.0.113.0", "2001:db8:5::")


def test_what_a_service_brings_or_another_balancer_gives_is_left_alone() -> None:
    """And nobody gets an address that such a service has; one that is brought again as it was chosen stays chosen."""
    log = mesh()
    pool(log)
    assert balancer(log, "given", load_balancer_ips=("203.0.113.0",)) == ("203.0.113.0",)
    assert balancer(log, "other", load_balancer_class="example.com/lb") == ()
    assert balancer(log, "external", type="ClusterIP", external_ips=("203.0.113.1",)) == ()
    assert balancer(log, "a", load_balancer_class="io.cilium/l2-announcer") == ("203.0.113.2", "2001:db8:5::")
    accept(log, EAST, wanted("a", load_balancer_ips=("203.0.113.2", "2001:db8:5::")))
    assert log.state.services[service_key("east", "shop", "a")].exposure.load_balancer_chosen


def test_a_pool_is_for_those_that_it_selects() -> None:
    """By labels, namespace or name; of several the first by name that has one left."""
    log = mesh()
    pool(log, "gold", ("203.0.113.16/32",), selector={"tier": "gold"})
    pool(log, "named", ("203.0.113.32/30",), selector={"io.kubernetes.service.name": "n", "io.kubernetes.service.namespace": "shop"})
    pool(log, "off", ("203.0.113.64/30",), disabled=True)
    assert balancer(log, "plain") == ()
    assert balancer(log, "a", labels={"tier": "gold"}) == ("203.0.113.16",)
    assert balancer(log, "b", labels={"tier": "gold"}) == ()
    assert balancer(log, "n", labels={"tier": "gold"}) == ("203.0.113.32",)


def test_addresses_that_are_asked_for() -> None:
    """Those of them that a pool has and nobody else, and no other instead."""
    log = mesh()
    pool(log)
    asked = {"lbipam.cilium.io/ips": "203.0.113.5, 2001:db8:5::77"}
    assert balancer(log, "a", annotations=asked) == ("203.0.113.5", "2001:db8:5::77")
    assert balancer(log, "b", annotations={"io.cilium/lb-ipam-ips": "203.0.113.5,203.0.113.6"}) == ("203.0.113.6",)
    assert balancer(log, "c", annotations={"lbipam.cilium.io/ips": "192.0.2.1"}) == ()


def test_a_change_of_pools_reaches_the_services_that_are_there() -> None:
    """They get addresses, keep those that a pool still has, and lose or change the others; a disabled pool keeps its own."""
    log = mesh()
    assert balancer(log, "a") == ()
    pool(log)
    assert has(log, "a") == ()
    assign(log)
    assert has(log, "a") == ("203.0.113.0", "2001:db8:5::")
    pool(log, disabled=True)
    assign(log)
    assert has(log, "a") == ("203.0.113.0", "2001:db8:5::") and balancer(log, "b") == ()
    pool(log, blocks=("203.0.113.8/29", V6))
    assign(log)
    assert has(log, "a") == ("203.0.113.8", "2001:db8:5::")
    accept(log, EAST, RemoveBalancerPool("p"))
    assign(log)
    assert has(log, "a") == has(log, "b") == ()


def test_the_operator_looks_when_pools_change_and_now_and_then() -> None:
    """Until nothing is due; a service that waits for a free address is found at the next look."""
    log, upkeep = mesh(), Upkeep("east", 60.0, 60.0)

    def due(now_s: float) -> list[Any]:
        alive = {"node.n1", "node.n2"}
        return [each for each in due_commands(upkeep, log.state, alive, {}, now_s) if isinstance(each, AssignBalancerAddresses)]

    balancer(log, "a")
    pool(log, blocks=("203.0.113.0/32",))
    assert due(0.0) == [AssignBalancerAddresses("shop", "a")]
    assign(log)
    assert due(1.0) == [] and balancer(log, "b") == ()
    accept(log, EAST, RemoveService("shop", "a"))
    assert due(2.0) == []
    assert due(1.0 + POOLS_ROUND_S) == [AssignBalancerAddresses("shop", "b")]


@pytest.mark.parametrize(
    ("blocks", "why"),
    [
        (("203.0.113.0/24",), "shares addresses with 203.0.113.0/29 of pool p"),
        (("10.1.0.0/24",), "shares addresses with 10.1.0.0/16 of cluster east"),
        (("172.2.0.0/28",), "of cluster west"),
        (("203.0.113.1/24",), "without bits beyond the length"),
    ],
)
def test_a_pool_has_what_nobody_else_has(blocks: tuple[str, ...], why: str) -> None:
    """Neither another pool, nor endpoints and services of any cluster."""
    log = mesh()
    pool(log)
    refused = log.wish(EAST, ApplyBalancerPool("other", blocks))
    assert isinstance(refused, Rejection) and why in refused.reason


def test_the_edges_of_a_prefix_may_be_left_out() -> None:
    """Of one that has more than them."""
    log = mesh()
    pool(log, blocks=("203.0.113.0/30", "203.0.113.8/31"), edges=False)
    found = [balancer(log, name) for name in "abcde"]
    assert found == [("203.0.113.1",), ("203.0.113.2",), ("203.0.113.8",), ("203.0.113.9",), ()]


def test_pools_outlive_a_checkpoint_and_not_their_cluster() -> None:
    """Saved and loaded they are the same; an event with a bad block is refused."""
    log = mesh()
    pool(log, selector={"a": "b"})
    assert State.load(log.state.save()).digest() == log.state.digest()
    log.write("east", "operator", e.BalancerPoolApplied("bad", ("203.0.113.1/24",)))
    assert "without bits" in log.state.refused_events[-1].reason
    assert list(log.state.balancer_pools) == [pool_key("east", "p")]


def manifest(spec: dict[str, Any], version: str = "cilium.io/v2") -> dict[str, Any]:
    return {"apiVersion": version, "kind": KIND, "metadata": {"name": "p"}, "spec": spec}


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ({"blocks": [{"cidr": "203.0.113.0/29"}, {"cidr": "2001:db8:5::/64"}]}, ApplyBalancerPool("p", (V4, V6))),
        ({"cidrs": [{"cidr": "203.0.113.3/29"}], "disabled": True}, ApplyBalancerPool("p", (V4,), {}, True)),
        (
            {"blocks": [{"start": "203.0.113.5", "stop": "203.0.113.8"}, {"start": "2001:db8::1"}]},
            ApplyBalancerPool("p", ("203.0.113.5/32", "203.0.113.6/31", "203.0.113.8/32", "2001:db8::1/128")),
        ),
        (
            {"blocks": [{"start": "203.0.113.4", "stop": "203.0.113.7"}, {"cidr": "203.0.113.8/29"}], "allowFirstLastIPs": "No",
             "serviceSelector": {"matchLabels": {"tier": "gold"}}},
            ApplyBalancerPool("p", ("203.0.113.4/31", "203.0.113.6/31", "203.0.113.8/29"), {"tier": "gold"}, False, False),
        ),
    ],
)  # fmt: skip
def test_manifests_are_understood_and_shown_again(spec: dict[str, Any], expected: ApplyBalancerPool) -> None:
    """Both versions of the kind; what is shown asks for the same."""
    for version in ("cilium.io/v2", "cilium.io/v2alpha1"):
        assert command_of(manifest(spec, version), "east") == expected
    log = mesh()
    log.write("east", "operator", e.BalancerPoolApplied(*msgspec.structs.astuple(expected)))
    assert command_of(manifest_of(KIND, log.state.balancer_pools[pool_key("east", "p")]), "east") == expected
    assert removal_of(manifest(spec)) == RemoveBalancerPool("p")


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        ({}, "spec.blocks"),
        ({"blocks": [{"cidr": "nonsense"}]}, "spec.blocks[0].cidr"),
        ({"blocks": [{"start": "203.0.113.8", "stop": "203.0.113.5"}]}, "spec.blocks[0]"),
        ({"blocks": [{"start": "203.0.113.8", "stop": "2001:db8::1"}]}, "spec.blocks[0]"),
        ({"blocks": [{"cidr": V4, "start": "203.0.113.8"}]}, "spec.blocks[0]"),
        ({"blocks": [{"cidr": V4}, {"cidr": "203.0.113.4/32"}]}, "spec.blocks[1]"),
        ({"blocks": [{"cidr": V4}], "serviceSelector": {"matchExpressions": []}}, "spec.serviceSelector.matchExpressions"),
        ({"blocks": [{"cidr": V4}], "allowFirstLastIPs": "Maybe"}, "spec.allowFirstLastIPs"),
        ({"blocks": [{"start": "10.0.0.1", "stop": "10.0.255.1"}], "allowFirstLastIPs": "No"}, "spec.blocks[0]"),
    ],
)
def test_manifests_are_refused_with_the_field(spec: dict[str, Any], field: str) -> None:
    """And nothing of them is taken."""
    refused = command_of(manifest(spec), "east")
    assert isinstance(refused, tuple) and field in {refusal.field for refusal in refused}, refused


@pytest.mark.parametrize(
    ("name", "value", "is_good"),
    [
        ("lbipam.cilium.io/ips", "203.0.113.5,2001:db8::5", True),
        ("lbipam.cilium.io/ips", "203.0.113.05", False),
        ("lbipam.cilium.io/sharing-key", "one", False),
    ],
)
def test_annotations_of_services_about_pools(name: str, value: str, is_good: bool) -> None:
    """Which addresses it wants; shared ones are refused, as nothing would share them."""
    document = {
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "a", "annotations": {name: value}},
        "spec": {"type": "LoadBalancer", "ports": [{"port": 80}]},
    }  # fmt: skip
    assert isinstance(command_of(document, "east"), tuple) is not is_good
