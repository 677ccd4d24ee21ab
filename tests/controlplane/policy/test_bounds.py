"""More policy rows than there is room for: what is left out is closed, and nothing is left out unnoticed."""

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from controlplane.desired.members import HOST
from controlplane.desired.policy import PolicyCompiler
from controlplane.model import ObjectKey
from controlplane.policy.settings import POLICY_MAP_MAX, PolicySettings, read_policy_settings
from datapath.abi.types import POLICY_EGRESS, POLICY_INGRESS
from datapath.tables import PolicyKey, PolicyRow, PolicySubjectKey
from tests.controlplane.policy.test_compiler import DB, FRONT, NODE, World, play, random_acts
from tests.controlplane.policy.worlds import CLUSTER, TCP, WORKLOADS, cilium_policy, flows, look_up

ROOM = 5


def crowded(kind: str = "ingress") -> World:
    """An endpoint of db, with rules about all at two ports each, and room for few rows."""
    world = World(ROOM)
    for number in WORKLOADS:
        world.put_identity(number)
    world.put_endpoint(1, DB)
    ports = '{ports: [{port: "80", protocol: TCP}, {port: "443", protocol: TCP}]}'
    spec = f"{{endpointSelector: {{}}, {kind}: [{{fromEndpoints: [{{}}], toPorts: [{ports}]}}], ingress: [{{}}]}}"
    spec = spec if kind != "ingress" else spec.replace(", ingress: [{}]}", "}")
    denial = cilium_policy("{endpointSelector: {}, ingressDeny: [{fromEntities: [world]}]}", "denial")
    world.put_policy(cilium_policy(spec, "crowd"))
    world.put_policy(denial)
    world.update()
    return world


def test_rows_that_do_not_fit_are_not_allowed_and_denials_stay() -> None:
    """Enforcement stands, so what is left out is closed; the answer is the same from any side."""
    world = crowded()
    assert len(world.rows) == ROOM and world.compiler.overflow[DB].allowed == ROOM
    assert world.rows[PolicyKey(DB, 2, 0, 0, 0, POLICY_INGRESS)] == PolicyRow(2)
    assert world.subjects[PolicySubjectKey(DB)].ingress_enforced == 1
    assert (world.subjects, world.rows) == PolicyCompiler(ROOM).full(world.state, CLUSTER, NODE)
    world.remove_identity(FRONT)
    world.update()
    assert (world.subjects, world.rows) == PolicyCompiler(ROOM).full(world.state, CLUSTER, NODE)
    world.remove_policy(ObjectKey(CLUSTER, "CiliumNetworkPolicy", "shop", "crowd"))
    world.update()
    assert not world.compiler.overflow
    assert (world.subjects, world.rows) == PolicyCompiler(ROOM).full(world.state, CLUSTER, NODE)


def test_where_denials_do_not_fit_everything_is_closed() -> None:
    """The own host's way in too: no flow that a lost denial was about passes."""
    world = crowded("ingressDeny")
    assert world.rows == {}
    assert not look_up(world.subjects, world.rows, DB, HOST, POLICY_INGRESS, TCP, 80)
    assert not look_up(world.subjects, world.rows, DB, FRONT, POLICY_EGRESS, TCP, 80)
    assert (world.subjects, world.rows) == PolicyCompiler(ROOM).full(world.state, CLUSTER, NODE)


@settings(max_examples=60, deadline=None)
@given(random_acts(), st.integers(0, 12), st.lists(flows(), min_size=1, max_size=6))
def test_bounded_rows_never_allow_more(
    acts: list[tuple[str, Any]], room: int, asked: list[tuple[int, int, int, int]]
) -> None:
    """However little room there is: incremental equals full, the bound holds, and nothing opens."""
    free, tight = World(), World(room)
    play(free, acts)
    play(tight, acts)
    assert (tight.subjects, tight.rows) == PolicyCompiler(room).full(tight.state, CLUSTER, NODE)
    assert len(tight.rows) <= room
    for subject in (key.identity for key in tight.subjects):
        for _, remote, protocol, port in asked:
            for direction in (POLICY_INGRESS, POLICY_EGRESS):
                flow = (subject, remote, direction, protocol, port)
                assert look_up(tight.subjects, tight.rows, *flow) <= look_up(free.subjects, free.rows, *flow)


def test_the_bound_is_a_setting_by_ciliums_name() -> None:
    """As text too, as a ConfigMap holds it; out of range it is refused."""
    assert PolicySettings().policy_map_max == POLICY_MAP_MAX == 16384
    _, found = read_policy_settings({"bpf-policy-map-max": "1024"})
    assert isinstance(found, PolicySettings) and found.policy_map_max == 1024
    (refusal,) = read_policy_settings({"bpf-policy-map-max": 7})
    assert str(refusal).startswith("bpf-policy-map-max")
