"""The routes about policies, over real HTTP and a state folded from real events; and the events behind them."""

from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest
import pytest_asyncio
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from controlplane import events as e
from controlplane.api import policy_routes
from controlplane.api.server import Refused
from controlplane.commands.addresses import ApplyCidrGroup, ChangeSettings, ExpireName, RemoveCidrGroup, ResolveName
from controlplane.commands.decide import decide
from controlplane.commands.policy import ApplyPolicy, RemovePolicy
from controlplane.commands.types import Author, Decision, Rejection
from controlplane.desired.policy_problems import policy_problems
from controlplane.policy.manifests import canonical
from controlplane.projections.state import State
from controlplane.runtime.writer import Written
from datapath.abi import types as abi
from tests.controlplane import small_mesh
from tests.controlplane.policy.worlds import cilium_policy
from tests.controlplane.random_mesh import Log
from tests.controlplane.small_mesh import accept

OPERATOR = Author("east", "operator")


def apply_policy(log: Log, spec: str) -> None:
    text = canonical(cilium_policy(spec))
    log.write("east", "operator", e.PolicyApplied("CiliumNetworkPolicy", "shop", "policy", text))


class Mesh:
    """A log whose writer takes one command at a time."""

    def __init__(self) -> None:
        self.log = Log()
        self.cluster = "east"
        self.where = None
        self.past = None
        self.writer = self

    @property
    def follower(self) -> Any:
        return SimpleNamespace(state=self.log.state, applied_revision=self.log.state.revision)

    async def submit_all(self, commands: list[Any]) -> list[Any]:
        found = decide(self.log.state, OPERATOR, commands[0])
        if isinstance(found, Rejection):
            return [found]
        self.log.write("east", "operator", *found.events)
        return [Written(self.log.state.revision, found.events)]


@web.middleware
async def refusals(request: web.Request, handler: Any) -> Any:
    """As the server answers them."""
    try:
        return await handler(request)
    except Refused as refused:
        return web.json_response({"reason": str(refused)}, status=refused.status)


@pytest_asyncio.fixture
async def served() -> AsyncIterator[tuple[Mesh, TestClient]]:  # type: ignore[type-arg]
    mesh = Mesh()
    app = web.Application(middlewares=[refusals])
    app.add_routes(policy_routes.reading_routes(mesh) + policy_routes.changing_routes(mesh))  # type: ignore[arg-type]
    client = TestClient(TestServer(app))
    await client.start_server()
    yield mesh, client
    await client.close()


@pytest.mark.asyncio
async def test_a_name_opens_what_a_policy_allows_by_name(served: Any) -> None:
    """`name add` is a fact of the log: the verdict follows it, and follows its end."""
    mesh, client = served
    apply_policy(mesh.log, "{endpointSelector: {}, egress: [{toFQDNs: [{matchName: www.example.com}]}]}")
    body = {"name": "WWW.example.com.", "addresses": ["192.0.2.1"]}
    assert (await client.post("/v1/names", json=body)).status == 200
    listed = await (await client.get("/v1/names")).json()
    assert listed["items"] == [{"cluster": "east", "name": "www.example.com", "addresses": ["192.0.2.1"]}]
    selectors = await (await client.get("/v1/policy/selectors")).json()
    (found,) = selectors["items"]
    assert (found["selector"], found["users"]) == ("fqdn:www.example.com", ["CiliumNetworkPolicy/shop/policy"])
    assert [number >> 24 for number in found["identities"]] == [abi.IDENTITY_SCOPE_PREFIX]
    await client.post("/v1/names", json={**body, "expired": True})
    assert (await (await client.get("/v1/names")).json())["items"] == []


@pytest.mark.asyncio
async def test_settings_that_cannot_be_read_are_refused(served: Any) -> None:
    """With the setting named; others are taken and shown, those about nodes too."""
    _, client = served
    refused = await client.post("/v1/policy/settings", json={"policy-cidr-match-mode": "pods"})
    assert (refused.status, "policy-cidr-match-mode" in await refused.text()) == (409, True)
    wanted = {"policy-cidr-match-mode": "nodes", "enable-node-selector-labels": True}
    assert (await client.post("/v1/policy/settings", json=wanted)).status == 200
    shown = await (await client.get("/v1/policy/settings")).json()
    assert (shown["settings"], shown["notes"]) == (wanted, [])


@pytest.mark.asyncio
async def test_an_endpoint_is_configured_by_name(served: Any) -> None:
    """As Cilium words it; a later look shows it; of nobody, or of another cluster's, it is refused."""
    mesh, client = served
    mesh.log = small_mesh.mesh()
    mesh.where = None
    for cluster, name in (("east", "cart"), ("west", "db")):
        small_mesh.add_endpoint(mesh.log, cluster, "n1", name, 11)
    mesh.row_state = lambda *_: "ready"
    body = {"endpoint": "shop/cart", "PolicyAuditMode": True}
    assert (await client.post("/v1/policy/endpoint", json=body)).status == 200
    shown = await (await client.get("/v1/policy/endpoint?endpoint=shop/cart")).json()
    assert [(each["endpoint"]["audited"], each["endpoint"]["configured_audit"]) for each in shown["items"]] == [(True, True)]
    assert [each.is_audited for each in mesh.log.state.endpoints.values()] == [True, False]
    for endpoint, status in (("shop/none", 404), ("shop/db", 409)):
        assert (await client.post("/v1/policy/endpoint", json={**body, "endpoint": endpoint})).status == status


@pytest.mark.asyncio
async def test_flows_are_judged_by_the_state(served: Any) -> None:
    """In order; one that cannot be judged says so and the others are judged."""
    _, client = served
    flow = {"from": "ip:192.0.2.1", "to": "entity:host", "l4": "TCP/80"}
    answer = await (await client.post("/v1/verdict", json={"flows": [flow, {}]})).json()
    assert answer["answers"][0] == {"verdict": "allow", "by": []}
    assert "from: is required" in answer["answers"][1]["error"]


def test_the_state_keeps_groups_names_and_settings() -> None:
    """Through saving and loading; the digest moves with each and comes back with its end."""
    log = Log()
    empty = log.state.digest()
    for command in (
        ApplyCidrGroup("a", ("10.0.0.0/8",), {"trust": "high"}),
        ResolveName("example.com", ("192.0.2.1", "192.0.2.2")),
    ):
        accept(log, OPERATOR, command)
    assert State.load(log.state.save()).digest() == log.state.digest() != empty
    for command in (RemoveCidrGroup("a"), ExpireName("example.com", ("192.0.2.1",)), ExpireName("example.com")):
        accept(log, OPERATOR, command)
    assert log.state.digest() == empty


def test_settings_without_which_a_policy_cannot_be_read_are_kept() -> None:
    """Turning one off is rejected with the policy and its field while there is such a policy, and not after."""
    log, author = small_mesh.mesh(), Author("east", "operator")
    on, off = ChangeSettings('{"enable-node-selector-labels":true}'), ChangeSettings("{}")
    small_mesh.accept(log, author, on)
    manifest = {"apiVersion": "cilium.io/v2", "kind": "CiliumNetworkPolicy", "metadata": {"name": "p", "namespace": "shop"},
                "spec": {"endpointSelector": {}, "ingress": [{"fromNodes": [{}]}]}}  # fmt: skip
    small_mesh.accept(log, author, ApplyPolicy("CiliumNetworkPolicy", "shop", "p", canonical(manifest)))
    rejection = decide(log.state, author, off)
    assert isinstance(rejection, Rejection)
    for told in ("CiliumNetworkPolicy shop/p", "ingress[0].fromNodes[0]", "enable-node-selector-labels", "change or delete"):
        assert told in rejection.reason
    small_mesh.accept(log, author, RemovePolicy("CiliumNetworkPolicy", "shop", "p"))
    assert small_mesh.accept(log, author, off).events


def test_a_wish_that_is_true_already_writes_nothing() -> None:
    """Groups, names and settings alike."""
    log = Log()
    wishes = [ApplyCidrGroup("a", ()), ResolveName("a.b", ("192.0.2.1",)), ChangeSettings('{"enable-policy":"never"}')]
    for wish in wishes:
        accept(log, OPERATOR, wish)
        assert decide(log.state, OPERATOR, wish) == Decision()


@pytest.mark.parametrize(
    ("command", "field"),
    [
        (ResolveName("a b", ("192.0.2.1",)), "name"),
        (ResolveName("a", ("192.0.2.300",)), "addresses"),
        (ResolveName("a", ()), "addresses"),
        (ChangeSettings('{"enable-policy":"sometimes"}'), ""),
    ],
)
def test_what_is_not_meant_is_rejected(command: Any, field: str) -> None:
    """With the field."""
    found = decide(State(), OPERATOR, command)
    assert isinstance(found, Rejection) and found.field == field


def test_status_names_policies_that_are_held_stricter() -> None:
    """Requests without a proxy; ICMP types are what they say."""
    log = Log()
    apply_policy(
        log,
        "{endpointSelector: {}, ingress: [{icmps: [{fields: [{type: 8}]}]}, "
        "{toPorts: [{ports: [{port: '80', protocol: TCP}], rules: {http: [{}]}}]}]}",
    )
    (problem,) = policy_problems(log.state)
    assert "CiliumNetworkPolicy/shop/policy" in problem and "proxy" in problem


def test_status_names_policies_about_an_api_server_that_nobody_is() -> None:
    """Until an address is known as one, a denial of it denies nothing; entity cluster is more than that."""
    log = Log()
    apply_policy(log, "{endpointSelector: {}, egressDeny: [{toEntities: [kube-apiserver]}]}")
    (problem,) = policy_problems(log.state)
    assert "CiliumNetworkPolicy/shop/policy" in problem and "kube-apiserver-addresses" in problem
    log.write("east", "operator", e.SettingsChanged('{"kube-apiserver-addresses":["192.0.2.10"]}'))
    assert not policy_problems(log.state)
    apply_policy(log, "{endpointSelector: {}, egressDeny: [{toEntities: [cluster]}]}")
    assert not policy_problems(log.state)
