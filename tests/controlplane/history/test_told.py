"""A pasted line of the monitor: what the kernel did is explained, also where it is not what the log says."""

from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from controlplane import events as e
from controlplane.api import history_routes
from controlplane.commands.addresses import ApplyCidrGroup, ChangeSettings, ResolveName
from controlplane.commands.policy import ApplyPolicy
from controlplane.desired.derive import Deriver
from controlplane.history.ends import Mesh
from controlplane.history.rows import row_name
from controlplane.history.told import CAUSES, POLICY_REASONS, Told, explain_told, reason_named
from controlplane.history.why import explain
from controlplane.history.why_row import explain_row
from controlplane.model import NodeKey
from controlplane.policy.manifests import canonical
from datapath.abi import types as abi
from datapath.notifications import drop_reason_text
from tests.controlplane.history.past import past_of, shop
from tests.controlplane.history.test_why import OPERATOR, apply_policy, mesh_of
from tests.controlplane.policy.worlds import cilium_policy
from tests.controlplane.random_mesh import Log
from tests.controlplane.small_mesh import accept, add_endpoint
from tests.controlplane.test_policy_routes import refusals

ONLY_CART = """{podSelector: {matchLabels: {app: db}},
  ingress: [{from: [{podSelector: {matchLabels: {app: cart}}}], ports: [{port: 5432, protocol: TCP}]}]}"""


def endpoint(log: Log, workload: str) -> Any:
    return next(each for each in log.state.endpoints.values() if each.workload == workload)


async def meshes(log: Log, epoch: int) -> tuple[Mesh, Mesh]:
    past = past_of(log)
    moments = [await past.moment(epoch), await past.moment(int(log.records[-1].revision))]
    return Mesh(moments[0].state, moments[0].origins, "east"), Mesh(moments[1].state, moments[1].origins, "east")


def told_of(log: Log, **fields: Any) -> Told:
    """Of cart to db, denied by default, unless said otherwise."""
    values = {
        "reason": abi.POLICY_DENIED, "source_identity": endpoint(log, "cart").identity,
        "target_identity": endpoint(log, "db").identity, "node": "east/n1",
    }  # fmt: skip
    return Told(**(values | fields))


def test_every_drop_reason_has_a_cause() -> None:
    """Of the programs' own list, whatever is added to it; and each is found by the monitor's words for it."""
    no_drops = {abi.FORWARDED, abi.NOTIFICATIONS_LOST, abi.FORWARDED_AT_SOCKET, abi.SOCKETS_FULL}
    drops = set(abi.ENUMS["drop_reason"].values()) - no_drops - {*POLICY_REASONS}
    assert drops - set(CAUSES) == set()
    assert [number for number in drops if reason_named(drop_reason_text(number)) != number] == []


async def test_a_row_that_the_node_had_not_got_yet_is_named_with_its_record() -> None:
    """An endpoint is the world to a kernel that has not applied its record: revision, event and epoch are said, and
    that it would be allowed now."""
    log = shop()
    apply_policy(log, ONLY_CART)
    epoch = int(log.records[-1].revision)
    late = add_endpoint(log, "east", "n2", "late", 15, app="cart")
    revision = log.state.revision
    then, now = await meshes(log, epoch)
    told = told_of(log, source_identity=2, epoch=epoch)
    answer = explain_told(then, now, f"ip:{late.ipv4}", f"ip:{endpoint(log, 'db').ipv4}", 6, 5432, told)
    assert answer.verdict == "deny"
    assert any(f"since revision {revision} (EndpointCreated" in each and str(epoch) in each for each in answer.notes)
    assert any(each.startswith(f"now, at revision {revision}, the verdict is allow") for each in answer.notes)


async def test_a_wrong_row_is_named() -> None:
    """The kernel had another identity for the source than the log of that very revision: both numbers with their
    labels, the command that compares, and what policies say to the identity that it had."""
    log = shop()
    apply_policy(log, ONLY_CART)
    now = await mesh_of(log)
    front, cart, db = (endpoint(log, name) for name in ("front", "cart", "db"))
    told = told_of(log, source_identity=front.identity, epoch=now.state.revision)
    answer = explain_told(now, now, f"ip:{cart.ipv4}", f"ip:{db.ipv4}", 6, 5432, told)
    assert answer.verdict == "deny"
    assert f"said identity {front.identity}" in answer.reasons[0]
    assert f"the log says {cart.identity}" in answer.reasons[0]
    assert "meshlog verify" in answer.reasons[0]
    assert "judged so: ingress of east:shop/db" in answer.reasons[1]


async def test_a_denial_that_the_log_allows_says_so() -> None:
    """Identities agree, the flow is allowed, and it was denied all the same: the policy rows are wrong."""
    log = shop()
    apply_policy(log, ONLY_CART)
    now = await mesh_of(log)
    cart, db = endpoint(log, "cart"), endpoint(log, "db")
    answer = explain_told(now, now, f"ip:{cart.ipv4}", f"ip:{db.ipv4}", 6, 5432, told_of(log))
    assert (answer.verdict, "meshlog verify --node n1" in answer.reasons[0]) == ("deny", True)


async def test_a_drop_that_is_no_policys_is_explained_by_its_reason() -> None:
    """First what happened, then what policies say."""
    log = shop()
    now = await mesh_of(log)
    cart, db = endpoint(log, "cart"), endpoint(log, "db")
    told = told_of(log, reason=abi.STALE_OR_UNROUTABLE_IP)
    answer = explain_told(now, now, f"ip:{cart.ipv4}", f"ip:{db.ipv4}", 6, 80, told)
    assert answer.verdict == "deny"
    assert answer.reasons[0].startswith("Stale or unroutable IP: dropped by the programs and not by a policy: ")


@pytest.mark.parametrize(("address", "number"), [("192.168.0.1", 1), ("192.168.0.2", 6), ("8.8.8.8", 2)])
async def test_numbers_that_are_right_are_not_complained_about(address: str, number: int) -> None:
    """The own node is the host, another one a remote node, anybody else the world."""
    log = shop()
    apply_policy(log, ONLY_CART)
    now = await mesh_of(log)
    answer = explain_told(now, now, f"ip:{address}", "shop/db", 6, 1, told_of(log, source_identity=number))
    assert not [each for each in answer.reasons if "the node's row" in each]


async def test_a_node_that_policies_tell_apart_is_explained_by_its_labels_and_record() -> None:
    """What was told with its own number is right, and remote-node is wrong; the verdict, what differs, the node's record,
    the setting; the row of the kernel likewise."""
    log = shop()
    accept(log, OPERATOR, ChangeSettings('{"enable-node-selector-labels":true}'))
    spec = "{endpointSelector: {matchLabels: {app: db}}, ingress: [{fromNodes: [{matchLabels: {role: gpu}}]}]}"
    accept(log, OPERATOR, ApplyPolicy("CiliumNetworkPolicy", "shop", "nodes", canonical(cilium_policy(spec, "nodes"))))
    facts = log.state.nodes["east", "n2"]
    log.write("east", "node.n2", e.NodeJoined("n2", facts.addresses, facts.device, ("k8s:role=cpu",)))
    joined = log.state.revision
    now, where = await mesh_of(log), NodeKey("east", "n1")
    number = now.nodes(where).numbers[facts.addresses[0]]
    ends = f"ip:{facts.addresses[0]}", "shop/db", 6, 80
    answer = explain_told(now, now, *ends, told_of(log, source_identity=number))
    assert not [each for each in answer.reasons if "the node's row" in each]
    assert "node:role is cpu, the rule wants node:role=gpu" in answer.reasons[0]
    assert (answer.source.identity, "node:role=cpu" in answer.source.labels) == (number, True)
    known = {(each.about, each.event): each.revision for each in answer.evidence}
    assert known["node east/n2", "NodeJoined"] == joined
    assert any(event == "SettingsChanged" for _, event in known)
    wrong = explain_told(now, now, *ends, told_of(log, source_identity=6))
    assert f"said identity 6 (reserved:remote-node), and the log says {number}" in wrong.reasons[0]
    row = explain_row(now, where, "ipcache", facts.addresses[0])
    assert any("node:role=cpu" in each for each in row.reasons)
    log.write("east", "node.n2", e.NodeJoined("n2", facts.addresses, facts.device, ("k8s:role=gpu",)))
    now = await mesh_of(log)
    assert explain(now, now.end("node:n2"), now.end("shop/db"), 6, 80).verdict == "allow"
    (key,) = (key for key in Deriver(*where).full(log.state).tables["policy"] if key.remote_identity >> 24 == 2)
    row = explain_row(now, where, "policy", row_name("policy", key))
    assert ("node east/n2", "NodeJoined") in {(each.about, each.event) for each in row.evidence}


async def test_a_prefix_has_the_number_of_the_longest_that_policies_name() -> None:
    """The world's address inside a named prefix is that prefix's identity to the kernel."""
    log = shop()
    spec = "{podSelector: {matchLabels: {app: db}}, ingress: [{from: [{ipBlock: {cidr: 203.0.113.0/24}}]}]}"
    apply_policy(log, spec)
    now = await mesh_of(log)
    answer = explain_told(now, now, "ip:203.0.113.9", "shop/db", 6, 80, told_of(log, reason=0, source_identity=2))
    wrong = [each for each in answer.reasons if "said identity 2" in each]
    assert bool(wrong)


async def test_groups_and_names_are_records_behind_an_address() -> None:
    """An address outside is known by the groups and names that have it; both records are named, others are not."""
    log = shop()
    accept(log, OPERATOR, ApplyCidrGroup("partners", ("203.0.113.0/24",)))
    accept(log, OPERATOR, ApplyCidrGroup("others", ("198.51.100.0/24",)))
    accept(log, OPERATOR, ResolveName("www.example.com", ("203.0.113.9",)))
    mesh = await mesh_of(log)
    answer = explain(mesh, mesh.end("ip:203.0.113.9"), mesh.end("shop/db"), 6, 80)
    events = sorted(each.event for each in answer.evidence if each.event in ("CIDRGroupApplied", "NameResolved"))
    assert events == ["CIDRGroupApplied", "NameResolved"]


class Agent:
    """What the history's routes need of one."""

    cluster, where = "east", NodeKey("east", "n1")

    def __init__(self, log: Log) -> None:
        self.past = past_of(log)
        self.log = self.past._log
        self.follower = type("Standing", (), {"state": log.state, "applied_revision": log.state.revision})


async def test_the_line_is_judged_as_of_the_epoch_it_names() -> None:
    """Over HTTP: a policy that came later does not explain an earlier drop, and a reason that is none is refused."""
    log = shop()
    apply_policy(log, ONLY_CART)
    epoch = log.state.revision
    apply_policy(log, "{podSelector: {matchLabels: {app: db}}, ingress: [{}]}", "open")
    app = web.Application(middlewares=[refusals])
    app.add_routes(history_routes.routes(Agent(log)))  # type: ignore[arg-type]
    front, db = endpoint(log, "front"), endpoint(log, "db")
    query = {"from": f"ip:{front.ipv4}", "to": f"ip:{db.ipv4}", "port": "5432/TCP", "reason": "Policy denied"}
    async with TestClient(TestServer(app)) as client:
        found = await (await client.get("/v1/why", params=query | {"epoch": str(epoch)})).json()
        assert (found["revision"], found["verdict"]) == (epoch, "deny")
        assert any("the verdict is allow" in note for note in found["notes"])
        assert (await client.get("/v1/why", params=query | {"reason": "bad luck"})).status == 400
