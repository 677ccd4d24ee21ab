"""Explanations: every denial has one that is true, and the records behind it are named."""

from collections import Counter
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from controlplane import events as e
from controlplane.commands.addresses import ChangeSettings
from controlplane.commands.endpoint import ConfigureEndpoint, DeleteEndpoint
from controlplane.commands.policy import ApplyPolicy
from controlplane.commands.service import ApplyService
from controlplane.commands.types import Author
from controlplane.commands.workload import ApplyWorkload
from controlplane.desired.derive import Deriver
from controlplane.desired.policy_mesh import mesh_of as policy_mesh
from controlplane.history.ends import End, Mesh, NoSuchEnd
from controlplane.history.nearest import differences, nearest_rule
from controlplane.history.provenance import Origins
from controlplane.history.rows import row_name
from controlplane.history.why import PortError, explain, read_port
from controlplane.history.why_row import NoSuchRow, explain_row
from controlplane.model import Exposure, NodeKey, Policy, ServicePort
from controlplane.policy.manifests import canonical
from controlplane.policy.mesh import Judge, Question
from controlplane.policy.rules import ICMPV6
from controlplane.policy.selectors import index_labels
from controlplane.policy.verdict import DENY, Flow, judge, policies_of
from controlplane.projections.state import State
from datapath.abi.types import POLICY_EGRESS, POLICY_INGRESS
from tests.controlplane.history.past import past_of, shop
from tests.controlplane.policy.worlds import (
    CLUSTER,
    MESH,
    cilium_policies,
    flows,
    network_policies,
    network_policy,
    parsed,
)
from tests.controlplane.random_mesh import Log
from tests.controlplane.small_mesh import accept, add_endpoint
from tests.controlplane.small_mesh import mesh as mesh_log

OPERATOR = Author("east", "operator")
CART_TO_DB = ("shop/cart", "shop/db")
counted: Counter[str] = Counter()


async def mesh_of(log: Log) -> Mesh:
    """The newest state, with origins."""
    moment = await past_of(log).moment(int(log.records[-1].revision))
    return Mesh(moment.state, moment.origins, "east")


def apply_policy(log: Log, spec: str, name: str = "guard") -> int:
    """A NetworkPolicy in namespace shop; the revision of its record."""
    manifest = canonical(network_policy(spec, name))
    accept(log, OPERATOR, ApplyPolicy("NetworkPolicy", "shop", name, manifest))
    return int(log.records[-1].revision)


def drawn_mesh(manifests: list[dict]) -> Mesh:  # type: ignore[type-arg]
    """No endpoints; these policies."""
    state = State()
    for manifest in manifests:
        kind, name = manifest["kind"], manifest["metadata"]["name"]
        policy = Policy(CLUSTER, kind, "shop", name, canonical(manifest))
        state.policies[parsed(manifest).key] = policy
    return Mesh(state, Origins(), CLUSTER)


def end_of(number: int) -> End:
    """An end with the identity's labels."""
    what = "endpoint" if number >= 256 else "entity"
    return End(f"identity {number}", what, "west" if number >= 2 << 16 else CLUSTER, None, number, MESH[number])


def test_every_denial_is_explained() -> None:
    """Of at least fifty denied flows under random policies, as many are explained as are denied."""
    each_denial_is_explained()
    assert counted["explained"] == counted["denied"] >= 50


@given(st.lists(network_policies() | cilium_policies(), max_size=3), st.lists(flows(), min_size=1, max_size=12))
@settings(max_examples=400, deadline=None)
def each_denial_is_explained(manifests: list[dict], drawn: list[tuple[int, int, int, int]]) -> None:  # type: ignore[type-arg]
    """For each flow that policies deny: the rule that denies it, or the enforcing policies and the nearest rule with
    what differs; and the answer's verdict is the verdict of policy/verdict.py, allowed flows included."""
    named = [{**each, "metadata": {**each["metadata"], "name": f"p{n}"}} for n, each in enumerate(manifests)]
    mesh = drawn_mesh(named)
    policies = [parsed(each) for each in named]
    for subject, remote, protocol, port in drawn:
        verdict = judge(Flow(MESH[remote], MESH[subject], protocol, port), policies)
        answer = explain(mesh, end_of(remote), end_of(subject), protocol, port)
        assert answer.verdict == ("deny" if verdict.verdict == DENY else "allow")
        counted["flows"] += 1
        if answer.verdict == "deny":
            counted["denied"] += 1
            explained = [
                side for side in answer.sides if side.verdict.startswith("deny")
                and (side.rules or (side.enforced_by and (side.differs or "no policy has" in str(answer))))
            ]  # fmt: skip
            counted["explained"] += len(explained) == sum(side.verdict.startswith("deny") for side in answer.sides)
    assert counted["explained"] == counted["denied"]


@given(st.lists(network_policies() | cilium_policies(), min_size=1, max_size=3), flows())
@settings(max_examples=200, deadline=None)
def test_what_differs_is_true(manifests: list[dict], flow: tuple[int, int, int, int]) -> None:  # type: ignore[type-arg]
    """A rule has no differences exactly if it matches, and no other rule has fewer than the nearest."""
    subject, remote, protocol, port = flow
    policies = policies_of(MESH[subject], [parsed(each) for each in manifests])
    index = index_labels(MESH[remote])
    for direction in (POLICY_INGRESS, POLICY_EGRESS):
        rules = [rule for each in policies for rule in each.rules if rule.direction == direction and not rule.deny]
        nearest = nearest_rule(direction, policies, index, protocol, port)
        counts = [len(differences(rule, index, protocol, port)) for rule in rules]
        assert (nearest is None) == (not rules)
        assert nearest is None or len(nearest.differs) == min(counts)


async def test_no_policy_allows() -> None:
    """Without a policy nothing is denied, and both ends' records are named."""
    answer = explain(mesh := await mesh_of(shop()), mesh.end("shop/cart"), mesh.end("shop/db"), 6, 80)
    assert answer.verdict == "allow"
    assert {each.event for each in answer.evidence} == {"EndpointCreated", "IdentityAllocated", "WorkloadApplied"}


async def test_default_deny_names_the_policy_its_record_and_what_differs() -> None:
    """The enforcing policy, the revision and writer of its record, and the one field of the nearest rule."""
    log = shop()
    revision = apply_policy(log, """
        podSelector: {matchLabels: {app: db}}
        ingress:
          - from: [{podSelector: {matchLabels: {app: cart}}}]
            ports: [{port: 5432, protocol: TCP}]
    """)
    mesh = await mesh_of(log)
    answer = explain(mesh, mesh.end("shop/cart"), mesh.end("shop/db"), 6, 80)
    side = answer.sides[-1]
    assert (answer.verdict, side.enforced_by, side.nearest) == (
        "deny", ["NetworkPolicy/shop/guard"], "spec.ingress[0] of NetworkPolicy/shop/guard"
    )  # fmt: skip
    assert side.differs == ["port: the flow has 80/TCP, the rule has 5432/TCP"]
    policy = next(each for each in answer.evidence if each.about.startswith("policy"))
    assert (policy.revision, policy.writer, policy.event) == (revision, "east/operator", "PolicyApplied")


async def test_a_label_that_differs_is_named_with_both_values() -> None:
    """The other end's label, what it is and what the rule wants."""
    log = shop()
    apply_policy(log, """
        podSelector: {matchLabels: {app: db}}
        ingress: [{from: [{podSelector: {matchLabels: {app: front}}}]}]
    """)
    mesh = await mesh_of(log)
    answer = explain(mesh, mesh.end("shop/cart"), mesh.end("shop/db"), 6, 80)
    assert answer.sides[-1].differs == ["source's label k8s:app is cart, the rule wants k8s:app=front"]


async def test_the_own_node_is_let_in_and_another_is_not() -> None:
    """By the address of its own node an endpoint is reached whatever policies say; by another node's it is not."""
    log = shop()
    apply_policy(log, "{podSelector: {matchLabels: {app: db}}}")
    mesh = await mesh_of(log)
    own, other = mesh.end("ip:192.168.0.1"), mesh.end("ip:192.168.0.2")
    assert explain(mesh, own, mesh.end("shop/db"), 6, 80).verdict == "allow"
    assert explain(mesh, other, mesh.end("shop/db"), 6, 80).verdict == "deny"


async def test_an_unreadable_policy_is_the_reason() -> None:
    """A policy that cannot be read closes its namespace, and the explanation says what is wrong with it."""
    log = shop()
    log.write("east", "operator", e.PolicyApplied("NetworkPolicy", "shop", "odd", '{"spec": {"podSelector": 3}}'))
    mesh = await mesh_of(log)
    answer = explain(mesh, mesh.end("shop/cart"), mesh.end("shop/db"), 6, 80)
    assert answer.verdict == "deny"
    assert any("cannot be read" in reason for reason in answer.reasons)


async def test_a_service_without_ready_backends_says_which_are_not() -> None:
    """The workloads that the service selects and that are not ready are named, with their records."""
    log = shop()
    port = ServicePort("http", 80, "TCP", "web")
    accept(log, OPERATOR, ApplyService("shop", "db", (), (port,), {"app": "db"}, False, False, True))
    accept(log, OPERATOR, ApplyWorkload("shop", "db", {"app": "db"}, False, "", {"web": (8080, "TCP")}, "n1"))
    revision = int(log.records[-1].revision)
    mesh = await mesh_of(log)
    answer = explain(mesh, mesh.end("shop/cart"), mesh.end("service:shop/db"), 6, 80)
    assert answer.verdict == "deny"
    assert "no ready backend" in answer.reasons[0]
    assert answer.reasons[1] == "workload east:shop/db is selected and is not ready"
    assert revision in [each.revision for each in answer.evidence]


async def test_a_flow_to_a_service_is_judged_at_its_backends() -> None:
    """The frontend leads to a pod and its port, which is what policies are asked about."""
    log = shop()
    port = ServicePort("http", 80, "TCP", "web")
    accept(log, OPERATOR, ApplyService("shop", "db", (), (port,), {"app": "db"}, False, False, True))
    apply_policy(log, "{podSelector: {matchLabels: {app: db}}, ingress: [{ports: [{port: 8080}]}]}")
    mesh = await mesh_of(log)
    address = next(iter(mesh.state.services.values())).cluster_ips[0]
    assert explain(mesh, mesh.end("shop/cart"), mesh.end(f"ip:{address}"), 6, 80).verdict == "allow"
    assert explain(mesh, mesh.end("shop/cart"), mesh.end("service:shop/db"), 6, 81).verdict == "deny"


async def test_a_node_that_is_behind_is_named() -> None:
    """A record behind the answer that the node has not reported as realized is said, with its revision."""
    log = shop()
    revision = apply_policy(log, "{podSelector: {matchLabels: {app: db}}}")
    mesh = await mesh_of(log)
    realized = {NodeKey("east", "n1"): revision - 1}
    answer = explain(mesh, mesh.end("shop/cart"), mesh.end("shop/db"), 6, 80, realized)
    assert [note for note in answer.notes if f"revision {revision} (PolicyApplied" in note]


async def test_an_end_that_is_gone_is_said_with_its_record() -> None:
    """Of a deleted endpoint: at which revision, and who wrote it."""
    log = shop()
    cart = next(each for each in log.state.endpoints.values() if each.workload == "cart")
    accept(log, Author("east", "node.n1"), DeleteEndpoint("n1", cart.endpoint_id, "asked for"))
    mesh = await mesh_of(log)
    revision = log.records[-1].revision
    with pytest.raises(NoSuchEnd, match=rf"went at revision {revision} \(EndpointDeleted by east/node.n1"):
        mesh.end("shop/cart")


async def test_a_host_policy_is_named_where_host_policies_are_in_force() -> None:
    """A denial at the node itself leads to the policy that selects it; without the firewall none is about it."""
    log = shop()
    spec = {"nodeSelector": {}, "ingress": [{"fromEntities": ["cluster"]}]}
    manifest = {"apiVersion": "cilium.io/v2", "kind": "CiliumClusterwideNetworkPolicy", "metadata": {"name": "host"},
                "spec": spec}  # fmt: skip
    accept(log, OPERATOR, ApplyPolicy("CiliumClusterwideNetworkPolicy", "", "host", canonical(manifest)))
    for firewall, verdict in ((False, "allow"), (True, "deny")):
        accept(log, OPERATOR, ChangeSettings(canonical({"enable-host-firewall": firewall})))
        mesh = await mesh_of(log)
        answer = explain(mesh, mesh.end("entity:world"), mesh.end("node:n1"), 6, 22)
        assert (answer.verdict, "host" in answer.reasons[0]) == (verdict, True), answer.reasons
        assert any("CiliumClusterwideNetworkPolicy" in each.about for each in answer.evidence) is firewall


async def test_endpoints_of_one_identity_are_judged_by_their_own_numbers_of_named_ports() -> None:
    """Two disagree about "web": of each, its own number is denied, or allowed, and the rule is cited."""
    log = shop()
    add_endpoint(log, "east", "n1", "twin", 14, app="db")
    accept(log, OPERATOR, ApplyWorkload("shop", "twin", {"app": "db"}, True, "", {"web": (9090, "TCP")}, "n1"))
    ports = "toPorts: [{ports: [{port: web, protocol: TCP}]}]"
    for section, other, verdicts in (
        ("ingressDeny", "ingress: [{fromEntities: [all]}], ", ("deny-explicit", "allow")), ("ingress", "", ("allow", "deny-default")),
    ):  # fmt: skip
        spec = f"{{endpointSelector: {{matchLabels: {{app: db}}}}, {other}{section}: [{{{ports}}}]}}"
        manifest = {"apiVersion": "cilium.io/v2", "kind": "CiliumNetworkPolicy",
                    "metadata": {"name": "named", "namespace": "shop"}, "spec": yaml.safe_load(spec)}  # fmt: skip
        accept(log, OPERATOR, ApplyPolicy("CiliumNetworkPolicy", "shop", "named", canonical(manifest)))
        mesh = await mesh_of(log)
        for target, port, verdict in zip(
            ("db", "db", "twin", "twin"), (8080, 9090, 9090, 8080), (*verdicts, *verdicts), strict=True
        ):
            answer = explain(mesh, mesh.end("shop/cart"), mesh.end(f"shop/{target}"), 6, port)
            (side,) = [each for each in answer.sides if each.direction == "ingress"]
            assert side.verdict == verdict, (section, target, port)
            cited = f"spec.{section}[0] of CiliumNetworkPolicy/shop/named"
            assert (cited in side.rules) is (port == (8080 if target == "db" else 9090))


async def test_audit_of_one_endpoint_is_told() -> None:
    """The flow passes, and the side says audit; of another endpoint under the same policy it does not."""
    log = shop()
    apply_policy(log, "{podSelector: {}, policyTypes: [Ingress]}")
    db = next(each for each in log.state.endpoints.values() if each.workload == "db")
    accept(log, OPERATOR, ConfigureEndpoint("n1", db.endpoint_id, True))
    mesh = await mesh_of(log)
    judge = Judge(policy_mesh(mesh.state, "east"))
    for target, verdict, side in (("shop/db", "allow", "audit"), ("shop/front", "deny", "deny-default")):
        told = explain(mesh, mesh.end("shop/cart"), mesh.end(target), 6, 80)
        model = judge.answer(Question("shop/cart", target, "TCP/80"))
        assert model.ingress is not None and told.verdict == model.verdict == verdict
        assert [each.verdict for each in told.sides if each.direction == "ingress"] == [model.ingress.verdict] == [side]


async def test_the_world_is_that_of_the_packets_version() -> None:
    """A prefix of IPv6 lets no packet of IPv4 into the world, nor the reverse."""
    log = shop()
    apply_policy(log, "{podSelector: {}, policyTypes: [Egress], egress: [{to: [{ipBlock: {cidr: '::/0'}}]}]}")
    mesh = await mesh_of(log)
    for protocol, verdict in ((6, "deny"), (ICMPV6, "allow")):
        assert explain(mesh, mesh.end("shop/cart"), mesh.end("entity:world"), protocol, 128).verdict == verdict


@pytest.mark.parametrize(
    "text", ["cart", "shop/none", "ip:nonsense", "entity:nobody", "service:shop/none", "nowhere:shop/cart"]
)
async def test_ends_that_nobody_is_are_refused(text: str) -> None:
    """Each says what is wrong."""
    with pytest.raises(NoSuchEnd):
        (await mesh_of(shop())).end(text)


@pytest.mark.parametrize("text", ["", "80/FOO", "TCP", "-1/TCP", "65536/TCP"])
def test_ports_that_are_none_are_refused(text: str) -> None:
    """With an example of what is right."""
    with pytest.raises(PortError):
        read_port(text)


@pytest.mark.parametrize("where", [NodeKey("east", "n1"), NodeKey("east", "n2")])
async def test_every_row_has_a_record_behind_it(where: NodeKey) -> None:
    """Each row of each table is found by its name, and leads to at least one record, but rows about the world."""
    log = shop()
    port = ServicePort("http", 80, "TCP", "web")
    accept(log, OPERATOR, ApplyService("shop", "db", (), (port,), {"app": "db"}, False, False, True))
    apply_policy(log, "{podSelector: {}, ingress: [{from: [{podSelector: {matchLabels: {app: cart}}}]}]}")
    mesh = await mesh_of(log)
    bare = []
    for table, rows in Deriver(*where).full(mesh.state).tables.items():
        for key in rows:
            answer = explain_row(mesh, where, table, row_name(table, key))
            if not [each for each in answer.evidence if each.revision]:
                bare.append((table, row_name(table, key)))
    assert [each for each in bare if each[1] not in ("0.0.0.0/0", "::/0")] == []


async def test_a_policy_row_names_its_rule() -> None:
    """The rule that asks for the row, and the record of its policy."""
    log = shop()
    revision = apply_policy(log, """
        podSelector: {matchLabels: {app: db}}
        ingress: [{from: [{podSelector: {matchLabels: {app: cart}}}], ports: [{port: 5432, protocol: TCP}]}]
    """)
    mesh = await mesh_of(log)
    where = NodeKey("east", "n1")
    key = next(iter(Deriver(*where).full(mesh.state).tables["policy"]))
    answer = explain_row(mesh, where, "policy", row_name("policy", key))
    assert "spec.ingress[0] of NetworkPolicy/shop/guard asks for it" in answer.reasons
    assert revision in [each.revision for each in answer.evidence]


async def test_a_row_that_is_not_there_is_refused() -> None:
    """With the names that there are."""
    with pytest.raises(NoSuchRow, match="there are"):
        explain_row(await mesh_of(shop()), NodeKey("east", "n1"), "ipcache", "192.0.2.77/32")


def exposed(**exposure: Any) -> Log:
    """Service shop/db with a node port and a balancer's address, one backend on each of two nodes, closed to the world."""
    log = mesh_log()
    add_endpoint(log, "east", "n1", "cart", 20)
    for number, node in enumerate(("n1", "n2")):
        add_endpoint(log, "east", node, f"db-{node}", 21 + number, app="db")
    ports = (ServicePort("http", 80, "TCP", 8080, 30080),)
    asked = Exposure(**{"type": "LoadBalancer", "load_balancer_ips": ("203.0.113.9",), **exposure})
    accept(log, OPERATOR, ApplyService("shop", "db", (), ports, {"app": "db"}, exposure=asked))
    apply_policy(log, "{podSelector: {matchLabels: {app: db}}, ingress: [{from: [{podSelector: {}}, {ipBlock: "
                      "{cidr: 198.51.100.0/24}}]}]}")  # fmt: skip
    return log


@pytest.mark.parametrize(
    ("source", "target", "port", "exposure", "verdict", "said"),
    [
        # A backend elsewhere is asked in the node's name, which the policy does not let in.
        ("ip:198.51.100.7", "ip:203.0.113.9", 80, {}, "mixed", "asked at node east/n1"),
        ("ip:198.51.100.7", "ip:203.0.113.9", 80, {"external_policy": "Local"}, "allow", "asked at node east/n1"),
        ("ip:192.0.2.7", "ip:203.0.113.9", 80, {}, "deny", "deny-default"),
        ("ip:192.0.2.7", "ip:203.0.113.9", 80, {"source_ranges": ("198.51.100.0/24",)}, "deny", "is kept out by"),
        ("ip:198.51.100.7", "node:n2", 30080, {"external_policy": "Local"}, "allow", "asked at node east/n2"),
        ("ip:198.51.100.7", "node:n2", 30081, {}, "allow", "no policy is about this flow"),
        ("shop/cart", "ip:203.0.113.9", 80, {}, "allow", ""),
        ("shop/cart", "ip:192.168.0.2", 30080, {"external_policy": "Local"}, "allow", ""),
    ],
)
async def test_frontends_that_the_network_reaches_are_explained(
    source: str, target: str, port: int, exposure: dict[str, Any], verdict: str, said: str
) -> None:
    """By the node that is asked, its backends for who asks there, and in whose name they are asked."""
    log = exposed(**exposure)
    mesh = await mesh_of(log)
    answer = explain(mesh, mesh.end(source), mesh.end(target), 6, port)
    assert answer.verdict == verdict, (answer.reasons, answer.paths)
    told = [*answer.reasons, *answer.paths, *answer.notes]
    assert any(said in each for each in told) or not said, told
    if verdict == "mixed":
        assert [note for note in answer.notes if note.endswith("is asked in the name of node east/n1")]
