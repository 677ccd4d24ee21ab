"""The compiler of a node's policy tables: what a change writes, and that the way there does not matter."""

from typing import Any

import msgspec
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from controlplane.desired.members import HOST
from controlplane.desired.policy import PolicyCompiler
from controlplane.desired.policy_bounds import NODE_MAX
from controlplane.desired.policy_inputs import policy_settings
from controlplane.desired.policy_mesh import mesh_node
from controlplane.model import Device, Endpoint, EndpointKey, Identity, Node, NodeKey, ObjectKey, Policy
from controlplane.policy.manifests import PARSER_VERSION, canonical
from controlplane.policy.mesh import host_labels
from controlplane.policy.verdict import ALLOW, AUDIT, judge_side, policies_of
from controlplane.projections.change import Change
from controlplane.projections.state import State
from datapath.abi.types import POLICY_EGRESS, POLICY_INGRESS, POLICY_SUBJECT_AUDIT
from datapath.tables import PolicyKey, PolicyRow, PolicySubjectKey, PolicySubjectRow
from tests.controlplane.policy.worlds import (
    CLUSTER,
    MESH,
    TCP,
    WORKLOADS,
    cilium_policies,
    flows,
    look_up,
    network_policies,
    network_policy,
    parsed,
    workload_labels,
)

NODE = "east-1"
DB, FRONT, CART, DB_GOLD = (
    next(number for number in WORKLOADS if MESH[number] == labels)
    for labels in (
        workload_labels("db"),
        workload_labels("front"),
        workload_labels("cart"),
        workload_labels("db", tier="gold"),
    )
)
FROM_FRONT = "{podSelector: {matchLabels: {app: db}}, ingress: [{from: [{podSelector: {matchLabels: {app: front}}}]}]}"
OPEN = PolicySubjectRow(0, 0, 0, 0)


class World:
    """A state that is changed by hand, and the rows that a compiler's updates lead to."""

    def __init__(self, room: int = NODE_MAX) -> None:
        self.state = State()
        self.compiler = PolicyCompiler(room)
        self.changes: list[Change] = []
        self.subjects: dict[PolicySubjectKey, PolicySubjectRow] = {}
        self.rows: dict[PolicyKey, PolicyRow] = {}
        self.compiler.full(self.state, CLUSTER, NODE)

    def put_identity(self, number: int) -> None:
        self._put("identity", self.state.identities, number, Identity(number, MESH[number], CLUSTER))

    def remove_identity(self, number: int) -> None:
        self._put("identity", self.state.identities, number, None)

    def put_policy(self, manifest: dict[str, Any], parser: int = PARSER_VERSION) -> None:
        metadata = manifest["metadata"]
        place = CLUSTER, manifest["kind"], metadata.get("namespace", ""), metadata["name"]
        policy = Policy(*place, canonical(manifest), parser)
        self._put("policy", self.state.policies, ObjectKey(*policy_key(policy)), policy)

    def remove_policy(self, key: ObjectKey) -> None:
        self._put("policy", self.state.policies, key, None)

    def put_endpoint(self, endpoint_id: int, identity: int, node: str = NODE) -> None:
        key = EndpointKey(CLUSTER, node, endpoint_id)
        endpoint = Endpoint(
            *key, "shop", f"w{endpoint_id}", MESH[identity], identity, "", "", Device("", 0, ""), "", ""
        )
        self.state.node_endpoints.setdefault(NodeKey(CLUSTER, node), {})[key] = None
        self._put("endpoint", self.state.endpoints, key, endpoint)

    def remove_endpoint(self, endpoint_id: int) -> None:
        key = EndpointKey(CLUSTER, NODE, endpoint_id)
        self.state.node_endpoints.get(NodeKey(CLUSTER, NODE), {}).pop(key, None)
        self._put("endpoint", self.state.endpoints, key, None)

    def put_settings(self, document: str) -> None:
        self._put("settings", self.state.policy_settings, CLUSTER, document)

    def put_node(self, zone: str) -> None:
        node = Node(CLUSTER, NODE, ("192.168.9.1",), Device("eth0", 5, ""), (f"k8s:zone={zone}",))
        self._put("node", self.state.nodes, NodeKey(CLUSTER, NODE), node)

    def _put(self, kind: Any, held: dict[Any, Any], key: Any, new: Any) -> None:
        old = held.pop(key, None)
        if new is not None:
            held[key] = new
        self.changes.append(Change(kind, key, old, new))

    def update(self) -> tuple[dict[Any, Any], dict[Any, Any]]:
        """Let the compiler see the changes so far; what it answered."""
        subjects: dict[Any, Any] = {}
        rows: dict[Any, Any] = {}
        for stage in self.compiler.stages(self.state, self.changes):
            for held, changed, whole in ((self.subjects, stage.subjects, subjects), (self.rows, stage.rows, rows)):
                whole.update(changed)
                for key, row in changed.items():
                    if row is None:
                        held.pop(key, None)
                    else:
                        held[key] = row
        self.changes = []
        return subjects, rows


def policy_key(policy: Policy) -> tuple[str, str, str, str]:
    return policy.cluster, policy.kind, policy.namespace, policy.name


def row_key(subject: int, remote: int) -> PolicyKey:
    return PolicyKey(subject, remote, 0, 0, 0, POLICY_INGRESS)


def guarded_db() -> World:
    """An endpoint of db, open to front only; front is not known yet."""
    world = World()
    world.put_identity(DB)
    world.put_endpoint(1, DB)
    world.put_policy(network_policy(FROM_FRONT))
    world.update()
    return world


def test_an_endpoint_without_policy_has_an_open_subject_row() -> None:
    """A missing row would fail closed: the programs cannot tell it from an endpoint not yet known."""
    world = World()
    world.put_identity(DB)
    world.put_endpoint(1, DB)
    assert world.update() == ({PolicySubjectKey(DB): OPEN}, {})


def test_only_local_identities_are_subjects() -> None:
    """An endpoint of another node brings nothing here."""
    world = World()
    world.put_identity(DB)
    world.put_endpoint(1, DB, "east-2")
    world.put_policy(network_policy(FROM_FRONT))
    assert world.update() == ({}, {})


def test_an_identity_that_is_not_known_has_no_row() -> None:
    """Without labels nothing can be decided, so nothing passes; its rows come with its labels."""
    world = World()
    world.put_endpoint(1, DB)
    assert world.update() == ({}, {})
    world.put_identity(DB)
    assert world.update() == ({PolicySubjectKey(DB): OPEN}, {})


def test_a_new_remote_identity_adds_only_its_rows() -> None:
    """The subject's own row stands, and the rows of other remotes."""
    world = guarded_db()
    world.put_identity(FRONT)
    assert world.update() == ({}, {row_key(DB, FRONT): PolicyRow(1)})


def test_a_released_identity_takes_its_rows_along() -> None:
    """Before its number can come back for other labels."""
    world = guarded_db()
    world.put_identity(FRONT)
    world.update()
    world.remove_identity(FRONT)
    assert world.update() == ({}, {row_key(DB, FRONT): None})


def test_an_identity_that_no_rule_selects_changes_nothing() -> None:
    """Most of the mesh is of no concern to a node."""
    world = guarded_db()
    world.put_identity(CART)
    assert world.update() == ({}, {})


def test_a_removed_policy_takes_its_rows_along() -> None:
    """Enforcement ends with the last policy about the endpoint."""
    world = guarded_db()
    world.put_identity(FRONT)
    world.update()
    world.remove_policy(ObjectKey(CLUSTER, "NetworkPolicy", "shop", "policy"))
    assert world.update() == ({PolicySubjectKey(DB): OPEN}, {row_key(DB, FRONT): None})


def test_a_policy_that_turns_to_others_leaves_its_old_subjects() -> None:
    """A changed podSelector frees those it selected before."""
    world = guarded_db()
    world.put_policy(network_policy(FROM_FRONT.replace("app: db", "app: cart")))
    assert world.update() == ({PolicySubjectKey(DB): OPEN}, {})


def test_a_changed_policy_writes_only_what_differs() -> None:
    """Rows that both forms have are not written again."""
    world = guarded_db()
    world.put_identity(FRONT)
    world.put_identity(CART)
    world.update()
    more = FROM_FRONT.replace("{podSelector: {matchLabels: {app: front}}}", "{podSelector: {}}")
    world.put_policy(network_policy(more))
    assert world.update() == ({}, {row_key(DB, CART): PolicyRow(1), row_key(DB, DB): PolicyRow(1)})


def test_a_changed_policy_still_follows_new_identities() -> None:
    """The selectors that both forms use stay in use."""
    world = guarded_db()
    world.put_policy(network_policy(FROM_FRONT.replace("}]}]}", "}], ports: [{port: 80}]}]}")))
    world.update()
    world.put_identity(FRONT)
    assert world.update() == ({}, {PolicyKey(DB, FRONT, 80, 16, TCP, POLICY_INGRESS): PolicyRow(1)})


def test_the_last_endpoint_takes_the_subject_along() -> None:
    """A second endpoint of the identity keeps it."""
    world = guarded_db()
    world.put_endpoint(2, DB)
    assert world.update() == ({}, {})
    world.remove_endpoint(1)
    assert world.update() == ({}, {})
    world.remove_endpoint(2)
    subjects, _ = world.update()
    assert subjects == {PolicySubjectKey(DB): None}
    assert (world.subjects, world.rows) == ({}, {})


def test_a_policy_that_cannot_be_read_closes_its_namespace() -> None:
    """A manifest of a newer parser is not ignored: everything is denied, and the compiler says why."""
    world = guarded_db()
    world.put_policy(network_policy(FROM_FRONT), parser=PARSER_VERSION + 1)
    world.update()
    assert world.subjects[PolicySubjectKey(DB)] == PolicySubjectRow(1, 1, 0, 0)
    assert [key.name for key in world.compiler.unreadable] == ["policy"]
    world.put_policy(network_policy(FROM_FRONT))
    world.update()
    assert not world.compiler.unreadable


def test_a_manifest_of_another_name_than_its_event_is_not_taken() -> None:
    """An event cannot bring a policy of another namespace; the namespace that it names is closed, and says so."""
    world = guarded_db()
    key = ObjectKey(CLUSTER, "NetworkPolicy", "guest", "policy")
    forged = Policy(*key, canonical(network_policy("{podSelector: {}}")))
    world.state.policies[key] = forged
    world.changes.append(Change("policy", key, None, forged))
    assert world.update() == ({}, {})
    assert sorted(world.compiler.unreadable) == [key]


def test_reserved_identities_are_always_known() -> None:
    """They are in no event; other nodes with an API server are remote nodes too."""
    world = World()
    world.put_identity(DB)
    world.put_endpoint(1, DB)
    world.put_policy(
        {
            "kind": "CiliumNetworkPolicy",
            "metadata": {"name": "a", "namespace": "shop"},
            "spec": {"endpointSelector": {}, "ingress": [{"fromEntities": ["world", "remote-node"]}]},
        }
    )
    _, rows = world.update()
    assert sorted(rows) == [row_key(DB, 2), row_key(DB, 6), row_key(DB, 7)]


FEW = [
    number
    for number in WORKLOADS
    if MESH[number]
    in (
        workload_labels("db"),
        workload_labels("front"),
        workload_labels("cart"),
        workload_labels("db", tier="gold"),
        workload_labels("front", "guest"),
        workload_labels("front", cluster="west"),
    )
]
"""So few that random changes meet each other."""


def _about_all(manifest: dict[str, Any]) -> dict[str, Any]:
    """The same rules for every endpoint of the namespace, so that there is a subject to see them at."""
    field = "podSelector" if manifest["kind"] == "NetworkPolicy" else "endpointSelector"
    return {**manifest, "spec": {**manifest["spec"], field: {}}}


def host_policy(spec: dict[str, Any] | str, name: str = "host") -> dict[str, Any]:
    """A clusterwide policy about nodes."""
    content = yaml.safe_load(spec) if isinstance(spec, str) else spec
    return {"kind": "CiliumClusterwideNetworkPolicy", "metadata": {"name": name}, "spec": content}


@st.composite
def _host_policies(draw: st.DrawFn) -> dict[str, Any]:
    spec = dict(draw(cilium_policies())["spec"])
    del spec["endpointSelector"]
    zone = draw(st.sampled_from(({}, {"matchLabels": {"zone": "a"}})))
    return host_policy({"nodeSelector": zone, **spec})


SETTINGS = (
    "{}",
    '{"enable-host-firewall":true}',
    '{"enable-policy":"always","enable-host-firewall":true}',
    '{"enable-policy":"never"}',
    '{"policy-audit-mode":true,"enable-host-firewall":true}',
    '{"allow-localhost":"policy"}',
)


@st.composite
def random_acts(draw: st.DrawFn) -> list[tuple[str, Any]]:
    names = st.sampled_from(("a", "b"))
    written = names.flatmap(lambda name: network_policies(name) | cilium_policies(name))
    manifests = written | written.map(_about_all) | _host_policies()
    local = st.sampled_from([DB, DB_GOLD, FRONT])
    act = st.one_of(
        st.tuples(st.just("put_identity"), st.sampled_from(FEW)),
        st.tuples(st.just("remove_identity"), st.sampled_from(FEW)),
        st.tuples(st.just("put_policy"), manifests),
        st.tuples(st.just("put_policy"), manifests),
        st.tuples(st.just("remove_policy"), st.integers(0, 1)),
        st.tuples(st.just("put_settings"), st.sampled_from(SETTINGS)),
        st.tuples(st.just("put_node"), st.sampled_from("ab")),
        st.tuples(st.just("put_endpoint"), st.tuples(st.integers(1, 3), local)),
        st.tuples(st.just("remove_endpoint"), st.integers(1, 3)),
        st.just(("update", None)),
        st.just(("update", None)),
    )
    known = [("put_identity", number) for number in FEW if draw(st.booleans())]
    return [
        *known,
        ("put_endpoint", (1, DB)),
        ("update", None),
        *draw(st.lists(act, min_size=1, max_size=20)),
    ]


def play(world: World, acts: list[tuple[str, Any]]) -> None:
    for name, value in acts:
        if name == "update":
            world.update()
        elif name == "remove_policy":
            keys = sorted(world.state.policies)
            if keys:
                world.remove_policy(keys[value % len(keys)])
        else:
            getattr(world, name)(*value if isinstance(value, tuple) else (value,))
    world.update()


@settings(max_examples=100, deadline=None)
@given(random_acts())
def test_incremental_equals_full(acts: list[tuple[str, Any]]) -> None:
    """Whatever happened in whatever batches, the rows are those that a new compiler makes of the state."""
    world = World()
    play(world, acts)
    assert (world.subjects, world.rows) == PolicyCompiler().full(world.state, CLUSTER, NODE)


@settings(max_examples=100, deadline=None)
@given(random_acts())
def test_a_second_update_changes_nothing(acts: list[tuple[str, Any]]) -> None:
    """Changes seen twice write nothing, so a repeated batch costs nothing."""
    world = World()
    play(world, acts)
    world.changes = [
        *(Change("identity", key, None, None) for key in WORKLOADS),
        *(Change("policy", key, None, None) for key in world.state.policies),
        *(Change("endpoint", key, None, None) for key in world.state.endpoints),
        Change("settings", CLUSTER, None, None),
        Change("node", NodeKey(CLUSTER, NODE), None, None),
    ]
    assert world.update() == ({}, {})


@settings(max_examples=100, deadline=None)
@given(random_acts(), st.lists(flows(), min_size=1, max_size=8))
def test_the_compiled_rows_say_what_the_model_says(
    acts: list[tuple[str, Any]], asked: list[tuple[int, int, int, int]]
) -> None:
    """End to end: state, changes, rows, look-up; against the manifests and the model."""
    world = World()
    for number in WORKLOADS:
        world.put_identity(number)
    play(world, [act for act in acts if act[0] != "remove_identity"])
    policies = [parsed(msgspec.json.decode(policy.manifest)) for policy in world.state.policies.values()]
    in_force = policy_settings(world.state, CLUSTER)
    subjects = sorted(key.identity for key in world.subjects)
    for number, (_, remote, protocol, port) in enumerate(asked):
        if not subjects:
            return
        subject = subjects[number % len(subjects)]
        is_host = subject == HOST
        if is_host and remote == HOST:
            continue  # what a node says to itself passes no program
        for direction in (POLICY_INGRESS, POLICY_EGRESS):
            own = host_labels(mesh_node(world.state.nodes[NodeKey(CLUSTER, NODE)])) if is_host else MESH[subject]
            about = policies_of(own, policies, is_host)
            side = judge_side(direction, about, MESH[remote], protocol, port, settings=in_force)
            passed = look_up(world.subjects, world.rows, subject, remote, direction, protocol, port)
            assert passed == (side.verdict in (ALLOW, AUDIT)), side


FROM_WORLD = "{nodeSelector: {matchLabels: {zone: a}}, ingress: [{fromEntities: [world]}]}"


def test_host_policies_have_rows_only_while_the_firewall_is_on() -> None:
    """The setting makes the node a subject, before any policy; without it there is no row to look at."""
    world = World()
    world.put_node("a")
    world.put_policy(host_policy(FROM_WORLD))
    assert world.update() == ({}, {})
    world.put_settings(SETTINGS[1])
    subjects, rows = world.update()
    assert subjects == {PolicySubjectKey(HOST): PolicySubjectRow(1, 0, 1, 0)}
    assert set(rows) == {row_key(HOST, 2)}
    world.put_settings("{}")
    assert world.update() == ({PolicySubjectKey(HOST): None}, {row_key(HOST, 2): None})


def test_host_policies_follow_the_labels_of_the_node() -> None:
    """Also when the node says them after the policy came."""
    world = World()
    world.put_settings(SETTINGS[1])
    world.put_node("b")
    world.put_policy(host_policy(FROM_WORLD))
    assert world.update() == ({PolicySubjectKey(HOST): OPEN}, {})
    world.put_node("a")
    assert set(world.update()[1]) == {row_key(HOST, 2)}


def test_audit_is_in_every_subject_row_of_the_node() -> None:
    """And goes with the setting."""
    world = guarded_db()
    world.put_node("a")
    world.put_settings(SETTINGS[4])
    world.update()
    assert {key.identity: row.flags for key, row in world.subjects.items()} == {
        HOST: POLICY_SUBJECT_AUDIT, DB: POLICY_SUBJECT_AUDIT,
    }  # fmt: skip
    world.put_settings("{}")
    assert world.update()[0] == {PolicySubjectKey(DB): PolicySubjectRow(1, 0, 1, 0), PolicySubjectKey(HOST): None}


def test_a_row_is_looked_up_by_protocol() -> None:
    """The oracle of these tests would see a wrong shape: without the subject's bits nothing is found."""
    rows = {PolicyKey(DB, 0, 80, 16, TCP, POLICY_INGRESS): PolicyRow(1)}
    blind = {PolicySubjectKey(DB): PolicySubjectRow(1, 0, 0, 0)}
    seeing = {PolicySubjectKey(DB): PolicySubjectRow(1, 0, 1 << 17, 0)}
    assert not look_up(blind, rows, DB, FRONT, POLICY_INGRESS, TCP, 80)
    assert look_up(seeing, rows, DB, FRONT, POLICY_INGRESS, TCP, 80)
