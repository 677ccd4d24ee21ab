"""Addresses of one identity that policies tell apart: what they are, that a change of them is derived alone, and that
no moment between two writes is under a third policy."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controlplane.commands.endpoint import DeleteEndpoint
from controlplane.commands.policy import ApplyPolicy, RemovePolicy
from controlplane.commands.types import Author
from controlplane.commands.workload import ApplyWorkload
from controlplane.desired.derive import Deriver
from controlplane.desired.facets import SCOPE
from controlplane.policy.manifests import canonical
from datapath import codec
from datapath.abi.types import POLICY_SUBJECT_ASKS_FACETS, POLICY_SUBJECT_HAS_FACETS
from datapath.tables import FacetKey, PolicySubjectKey
from tests.controlplane.policy.worlds import cilium_policy, network_policy
from tests.controlplane.random_mesh import Log
from tests.controlplane.small_mesh import accept, add_endpoint, mesh, table
from tests.controlplane.test_relabel import PLACES, Agent, Follower, Kernel, watched

OPERATOR = Author("east", "operator")
TABLES = ("facets", "policy_subjects", "policy")


def pods(*apps: str) -> Log:
    """A pod for each label, in turns on n1 and n2."""
    log = mesh()
    for number, app in enumerate(apps):
        add_endpoint(log, "east", f"n{1 + number % 2}", f"pod-{number}", 10 + number, app=app)
    return log


def apply(log: Log, manifest: dict[str, Any]) -> None:
    name = manifest["metadata"]["name"]
    accept(log, OPERATOR, ApplyPolicy(manifest["kind"], "shop", name, canonical(manifest)))


def give(log: Log, name: str, app: str, ports: dict[str, tuple[int, str]], node: str) -> None:
    """The workload's named ports from now on."""
    accept(log, OPERATOR, ApplyWorkload("shop", name, {"app": app}, True, "", ports, node))


def block(*cidrs: str, name: str = "blocks", way: str = "ingress") -> dict[str, Any]:
    field = "from" if way == "ingress" else "to"
    return network_policy({"podSelector": {}, way: [{field: [{"ipBlock": {"cidr": each}} for each in cidrs]}]}, name)


def by_name(name: str = "named", **spec: Any) -> dict[str, Any]:
    rule = {"toPorts": [{"ports": [{"port": "web", "protocol": "TCP"}]}]}
    return cilium_policy({"endpointSelector": {}, **(spec or {"ingress": [rule]})}, name)


def test_addresses_that_look_alike_have_no_facets() -> None:
    """A block that has none of them, and a port on which all agree."""
    log = pods("web", "web", "db")
    apply(log, block("192.0.2.0/24"))
    apply(log, by_name())
    assert table(log, "facets") == {}


@pytest.mark.parametrize("way", ["ingress", "egress"])
def test_a_block_of_one_family_is_about_that_family(way: str) -> None:
    """Each identity has two facets, and rows only by that of its IPv4 addresses; the subject's flag says to look."""
    log = pods("web", "db")
    apply(log, block("0.0.0.0/0", way=way))
    facets, rows = table(log, "facets"), table(log, "policy")
    ipv4 = {row.facet for key, row in facets.items() if "." in codec.address_text(key.address)}
    assert len(facets) == 4 and len(ipv4) == 2 and all(number >= SCOPE for number in ipv4)
    remotes = {key.remote_identity for key in rows if key.remote_identity >= 256}
    assert {number for number in remotes if number >= SCOPE} == ipv4
    assert not remotes & {each.identity for each in log.state.endpoints.values()}
    subjects = table(log, "policy_subjects").values()
    assert all(row.flags == POLICY_SUBJECT_ASKS_FACETS for row in subjects)


def test_while_endpoints_disagree_on_a_port_each_look_is_a_subject() -> None:
    """The two pods of n1 have rows for their own numbers; when they agree again there are none of facets."""
    log = pods("web", "db", "web")
    apply(log, by_name())
    before = {name: table(log, name) for name in TABLES}
    give(log, "pod-2", "web", {"web": (9090, "TCP")}, "n1")
    first, _, second = log.state.endpoints.values()
    if first.workload != "pod-0":
        first, second = second, first
    facets, subjects, rows = (table(log, name) for name in TABLES)
    assert subjects[PolicySubjectKey(first.identity)].flags & POLICY_SUBJECT_HAS_FACETS
    for endpoint, port in ((first, 8080), (second, 9090)):
        number = facets[FacetKey(codec.address_bytes(endpoint.ipv4), endpoint.identity)].facet
        assert not subjects[PolicySubjectKey(number)].flags & POLICY_SUBJECT_HAS_FACETS
        assert {key.port for key in rows if key.subject_identity == number} == {port}
    give(log, "pod-2", "web", {"web": (8080, "TCP")}, "n1")
    assert {name: table(log, name) for name in TABLES} == before


PORTS = st.sampled_from(({}, {"web": (80, "TCP")}, {"web": (81, "TCP")}, {"web": (80, "UDP")}))
MANIFESTS = st.sampled_from(
    (
        block("0.0.0.0/0", name="p"), block("10.1.1.0/24", "::/0", name="p", way="egress"), by_name("p"),
        block("10.1.1.2/32", name="q"), by_name("q", egress=[{"toPorts": [{"ports": [{"port": "web"}]}]}]),
        by_name("q", ingressDeny=[{"fromEndpoints": [{}], "toPorts": [{"ports": [{"port": "web"}]}]}]),
        cilium_policy({"endpointSelector": {}, "ingress": [{"fromEndpoints": [{}]}]}, "r"),
    )
)  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 4), PORTS, MANIFESTS), min_size=1, max_size=8))
def test_a_change_is_derived_as_the_whole(steps: list[tuple[int, Any, dict[str, Any]]]) -> None:
    """Pods that come and go, other ports, policies that ask and cease to ask: rows by changes are those from nothing."""
    log, deriver = pods("web", "web", "db", "web"), Deriver("east", "n1")
    held = {name: dict(rows) for name, rows in deriver.full(log.state).tables.items()}
    seen = len(log.changes)
    for number, ports, manifest in steps:
        if number < 2:
            apply(log, manifest)
        elif number == 2:
            log.wish(OPERATOR, RemovePolicy(manifest["kind"], "shop", manifest["metadata"]["name"]))
        elif number == 3:
            give(log, "pod-2", "db", ports, "n1")
            give(log, "pod-0", "web", ports, "n1")
        else:
            late = [each for each in log.state.endpoints.values() if each.workload == "late"]
            for each in late:
                accept(log, Author("east", "node.n1"), DeleteEndpoint("n1", each.endpoint_id))
            if not late:
                add_endpoint(log, "east", "n1", "late", 40, app="web")
        changed = deriver.update(log.state, log.changes[seen:])
        seen = len(log.changes)
        for name, rows in changed.tables.items():
            for key, row in rows.items():
                if row is None:
                    held[name].pop(key, None)
                else:
                    held[name][key] = row
        whole = Deriver("east", "n1").full(log.state).tables
        assert {name: held[name] for name in TABLES} == {name: whole[name] for name in TABLES}


@settings(max_examples=60, deadline=None)
@given(st.lists(MANIFESTS, min_size=1, max_size=3), *(PORTS for _ in range(4)))
def test_other_numbers_of_a_port_never_lead_to_a_third_policy(
    manifests: list[dict[str, Any]], before: Any, after: Any, neighbour: Any, far: Any
) -> None:
    """At every moment, on every node, each packet meets its old verdict or its new one while a port's number changes."""
    log = mesh()
    addresses = {}
    for name, (node, ifindex) in PLACES.items():
        endpoint = add_endpoint(log, "east", node, name, ifindex, app="web")
        addresses[name] = codec.address_bytes(endpoint.ipv4)
    for name, ports in (("moved", before), ("neighbour", neighbour), ("far", far)):
        give(log, name, "web", ports, PLACES[name][0])
    for manifest in manifests:
        apply(log, manifest)
    nodes = {node: Follower(log, node) for node in ("n1", "n2")}
    give(log, "moved", "web", after, "n1")
    for node, follower in nodes.items():
        old, *between, new = watched(follower, Kernel(node, follower.memory, addresses))
        for verdicts in between:
            assert all(now in (was, will) for was, now, will in zip(old, verdicts, new, strict=True))


async def test_a_policy_that_comes_right_after_other_ports_never_meets_the_old_ones() -> None:
    """A port is called otherwise, then a policy allows it by that name: no state of the log lets the packet pass, and no
    state of the kernel, though both records come at once. The old number under the new policy would."""
    log = mesh()
    addresses = {}
    for (name, (node, ifindex)), number in zip(PLACES.items(), (80, 80, 82), strict=True):
        endpoint = add_endpoint(log, "east", node, name, ifindex, app="web")
        addresses[name] = codec.address_bytes(endpoint.ipv4)
        give(log, name, "web", {"web": (number, "TCP")}, node)
    apply(log, by_name("p", ingress=[{"fromEntities": ["health"], "toPorts": [{"ports": [{"port": "web"}]}]}]))
    agent = Agent(log, "n1")
    await agent.start()
    before = len(log.records)
    give(log, "moved", "web", {"web": (81, "TCP")}, "n1")
    apply(log, by_name("p"))
    kernel, found = Kernel("n1", agent.memory, addresses), []
    await agent.follow(log.records[before:], lambda: found.append(kernel.passes(("far", "moved", 80))))
    assert len(found) > 5 and not any(found)
    assert kernel.passes(("far", "moved", 81))
    await agent.stop()


async def test_an_agent_realizes_the_turns_of_one_change() -> None:
    """A denial becomes a permission with an exception: what neither lets out stays in at every moment."""
    log = pods("web")
    apply(log, cilium_policy({"endpointSelector": {}, "egressDeny": [{"toCIDRSet": [{"cidr": "0.0.0.0/0"}]}]}, "p"))
    agent = Agent(log, "n1")
    await agent.start()
    before = len(log.records)
    allowed = [{"toCIDRSet": [{"cidr": "0.0.0.0/0", "except": ["192.0.2.0/24"]}]}]
    apply(log, cilium_policy({"endpointSelector": {}, "egress": allowed}, "p"))
    kernel, found = Kernel("n1", agent.memory, {}), []
    await agent.follow(log.records[before:], lambda: found.append(kernel.leaves("moved", "192.0.2.1")))
    assert len(found) > 3 and not any(found)
    assert kernel.leaves("moved", "198.51.100.1")
    await agent.stop()
