"""Policies that tell nodes apart, by label and by CIDR: rows against the model, and the numbers behind them."""

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from controlplane.desired.policy import PolicyCompiler
from controlplane.model import RESERVED_IDENTITIES
from datapath.abi.types import POLICY_EGRESS, POLICY_INGRESS
from tests.controlplane.policy.test_addresses import (
    API_SERVERS,
    ENTITIES,
    NODE_LABELS,
    NODES,
    PREFIXES,
    REMOTE_NODES,
    RESERVED,
    SECTIONS,
    SETTINGS,
    ZONE,
    World,
    cilium,
    compare,
    kubernetes,
    play,
)
from tests.controlplane.policy.worlds import CLUSTER, TCP

NODE = "east-1"

_node_peers = st.one_of(
    st.fixed_dictionaries({"Nodes": st.lists(st.sampled_from(NODES), min_size=1, max_size=2)}),
    st.fixed_dictionaries({"CIDR": st.lists(st.sampled_from((*PREFIXES[:3], "fd00::/8")), min_size=1, max_size=2)}),
    st.just({"CIDRSet": [{"cidr": "172.16.0.0/12", "except": ["172.16.0.2/32"]}]}),
    st.fixed_dictionaries({"Entities": st.lists(st.sampled_from(ENTITIES[:5]), min_size=1, max_size=2)}),
    st.fixed_dictionaries({"Endpoints": st.lists(st.sampled_from(RESERVED), min_size=1, max_size=1)}),
)


@st.composite
def _node_specs(draw: st.DrawFn) -> dict[str, Any]:
    spec: dict[str, Any] = {"endpointSelector": {}}
    for section, (egress, _) in SECTIONS.items():
        if draw(st.booleans()):
            peers = draw(st.lists(_node_peers, min_size=1, max_size=2))
            spec[section] = [{("to" if egress else "from") + name: each[name]} for each in peers for name in each]
    return cilium(spec)


_node_blocks = st.lists(st.sampled_from(("172.16.0.0/24", "172.16.0.2/32", "172.16.0.0/12")), min_size=1, max_size=2).map(
    lambda cidrs: kubernetes({"podSelector": {}, "ingress": [{"from": [{"ipBlock": {"cidr": each}} for each in cidrs]}]})
)
node_acts = st.one_of(
    st.tuples(st.just("put_policy"), st.sampled_from("pq"), _node_specs()),
    st.tuples(st.just("put_policy"), st.sampled_from("pq"), _node_specs() | _node_blocks | st.none()),
    st.tuples(st.just("put_node"), st.sampled_from(("node:east-1", *REMOTE_NODES)), st.sampled_from(NODE_LABELS)),
    st.tuples(st.just("put_node"), st.just("node:east-1"), st.sampled_from(NODE_LABELS), st.just("fd00::1")),
    st.tuples(st.just("remove_node"), st.sampled_from(sorted(REMOTE_NODES))),
    st.tuples(st.just("put_api_servers"), st.lists(st.sampled_from(API_SERVERS), max_size=2).map(tuple)),
)
node_questions = st.lists(
    st.tuples(
        st.just("db"),
        st.sampled_from(("203.0.113.9", "front", "node:east-1", *REMOTE_NODES, *REMOTE_NODES)),
        st.just((TCP, 80)),
        st.sampled_from((POLICY_INGRESS, POLICY_EGRESS)),
    ),
    min_size=8,
    max_size=12,
)


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(SETTINGS[-3:]), st.lists(node_acts, min_size=2, max_size=8), node_questions, st.booleans())
def test_rows_tell_nodes_apart_as_the_model_does(
    chosen: dict[str, Any], done: list[tuple[Any, ...]], asked: list[tuple[Any, ...]], singly: bool
) -> None:
    """With nodes selected by label, by CIDR, by both: whatever became of nodes and policies meanwhile, and from nothing."""
    world = World()
    world.put_settings(chosen)
    for part in [[each] for each in done] if singly else [done]:
        play(world, part)
    compare(world, asked)
    fresh = PolicyCompiler()
    assert (world.subjects, world.rows) == fresh.full(world.state, CLUSTER, NODE)
    assert world.compiler.numbers == fresh.numbers


def test_nodes_that_no_policy_tells_apart_share_a_number() -> None:
    """A number for each difference that policies make, none where they make none; it goes with the last such node."""
    world = World()
    world.put_settings({"enable-node-selector-labels": True})
    world.put_node("node:east-2", ("k8s:role=gpu", f"k8s:{ZONE}=a"))
    world.update()
    remote = RESERVED_IDENTITIES["remote-node"]
    assert set(world.compiler.nodes.numbers.values()) == {remote}
    by_label = {"matchLabels": {"reserved:remote-node": "", "role": "gpu"}}
    world.put_policy("p", cilium({"endpointSelector": {}, "ingress": [{"fromEndpoints": [by_label]}]}))
    world.update()
    number = world.identity_of("node:east-2")
    assert world.compiler.nodes.labels == {number: ("node:role=gpu", "reserved:remote-node")}
    assert (number >> 24, world.identity_of("node:west:w-1")) == (2, remote)
    assert world.passes("db", number, POLICY_INGRESS, TCP, 80) and not world.passes("db", remote, POLICY_INGRESS, TCP, 80)
    world.put_node("node:west:w-1", ("k8s:role=gpu",))
    world.remove_node("node:east-2")
    world.update()
    assert world.compiler.nodes.numbers == {"172.17.0.9": number}
    world.put_settings({})
    world.update()
    assert (world.compiler.nodes.numbers, world.compiler.nodes.labels) == ({"172.17.0.9": remote}, {})


def test_the_own_node_is_known_by_any_of_its_addresses() -> None:
    """It is one identity for all of them: a prefix of either family selects it, and so does one that is denied."""
    world = World()
    world.put_settings({"policy-cidr-match-mode": "nodes"})
    world.put_node("node:east-1", (), "fd00::1")
    world.put_policy("p", cilium({"endpointSelector": {}, "egress": [{"toCIDR": ["fd00::/8"]}]}))
    world.update()
    host, other = (world.identity_of(each) for each in ("node:east-1", "node:east-2"))
    assert world.passes("db", host, POLICY_EGRESS, TCP, 80) and not world.passes("db", other, POLICY_EGRESS, TCP, 80)
    world.put_policy("q", cilium({"endpointSelector": {}, "egressDeny": [{"toCIDR": ["172.16.0.1/32"]}]}))
    world.update()
    assert not world.passes("db", host, POLICY_EGRESS, TCP, 80)


def test_nodes_are_not_the_world() -> None:
    """Whatever prefixes select them by: the entities of the world, of one family too, are about addresses outside."""
    world = World()
    world.put_settings({"policy-cidr-match-mode": "nodes"})
    entities = {"toEntities": ["world", "world-ipv4", "world-ipv6"]}
    world.put_policy("p", cilium({"endpointSelector": {}, "egress": [entities]}))
    world.update()
    for node in ("node:east-1", *REMOTE_NODES):
        assert not world.passes("db", world.identity_of(node), POLICY_EGRESS, TCP, 80)
    assert world.passes("db", world.identity_of("203.0.113.9"), POLICY_EGRESS, TCP, 80)
    compare(world, [("db", each, (TCP, 80), POLICY_EGRESS) for each in ("203.0.113.9", "node:east-1", *REMOTE_NODES)])
