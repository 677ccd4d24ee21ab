"""Every policy drop that the suite's tables of policies and flows make is explained, and every explanation is true.

The tables are those of the policies' own tests: published semantics of all kinds. Each case is put into one mesh with a
real log; `why` is asked, and what it says is looked up again: the verdict, the rule, the policy, the record.
"""

from collections import Counter
from collections.abc import Iterator
from ipaddress import ip_address, ip_network
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controlplane import events as e
from controlplane.codec import decode
from controlplane.commands.addresses import ApplyCidrGroup, ResolveName
from controlplane.commands.decide import decide
from controlplane.commands.endpoint import CreateEndpoint
from controlplane.commands.namespace import ApplyNamespace
from controlplane.commands.service import ApplyService
from controlplane.commands.types import Author, Rejection
from controlplane.commands.workload import ApplyWorkload
from controlplane.desired.derive import Deriver
from controlplane.history.ends import End, Mesh, NoSuchEnd
from controlplane.history.provenance import Origins
from controlplane.history.rows import row_name
from controlplane.history.why import DIRECTIONS, explain, read_port
from controlplane.history.why_row import explain_row
from controlplane.kubernetes_objects import command_of
from controlplane.model import EndpointKey, Labels, NodeKey, ServicePort
from controlplane.policy.rules import ICMPV6
from controlplane.policy.verdict import ALLOW, REDIRECT
from datapath.abi.types import POLICY_EGRESS, POLICY_INGRESS
from datapath.addressing import protocol_name
from datapath.codec import address_bytes
from datapath.tables import NO_ADDRESS
from tests.controlplane.cli import test_verdict
from tests.controlplane.policy import test_cilium, test_network_policy, test_published
from tests.controlplane.policy.worlds import (
    APPS,
    NAMESPACES,
    TIERS,
    asked_for,
    cilium_policies,
    cilium_policy,
    look_up,
    network_policies,
    network_policy,
    workload_labels,
)
from tests.controlplane.random_mesh import Log
from tests.controlplane.small_mesh import CLUSTER_IDS, accept, device, mesh

Case = tuple[list[dict[str, Any]], str, str, str]
"""Manifests; source, target and port as `why` takes them."""
DENIED_MIN = 150
PORTS = {"web": (8080, "TCP")}


def world() -> Log:
    """A workload of each app, namespace, cluster and tier that the tables name, with records behind all of it."""
    log, number = mesh(), 10
    for cluster in CLUSTER_IDS:
        operator = Author(cluster, "operator")
        for namespace in NAMESPACES:
            accept(log, operator, ApplyNamespace(namespace, {"team": f"{namespace}-team"}))
            for app in (*APPS, "dark"):
                for tier in TIERS:
                    number += 1
                    name = f"{app}-{tier}" if tier else app
                    labels = {"app": app, **({"tier": tier} if tier else {})}
                    accept(log, operator, ApplyWorkload(namespace, name, labels, True, "", PORTS, "n1"))
                    create = CreateEndpoint("n1", namespace, name, device(number), f"c{number}", "eth0")
                    accept(log, Author(cluster, "node.n1"), create)
    operator = Author("east", "operator")
    accept(log, operator, ApplyCidrGroup("partners", ("198.51.100.0/24",), {"trust": "high"}))
    accept(log, operator, ResolveName("www.example.com", ("203.0.113.1",)))
    port = ServicePort("", 80, "TCP", "8080")
    accept(log, operator, ApplyService("shop", "database", (), (port,), {"app": "db"}, False, False, True))
    return log


class Asked:
    """One log that cases are put into, one after the other, and the mesh as `why` sees it then."""

    def __init__(self) -> None:
        self.log = world()
        self._origins = Origins()
        self._seen = 0
        self._names: list[tuple[str, str, str]] = []

    def put(self, manifests: list[dict[str, Any]]) -> bool:
        """Instead of those of the case before; False where a running mesh refuses one."""
        for kind, namespace, name in self._names:
            self.log.write("east", "operator", e.PolicyRemoved(kind, namespace, name))
        self._names = []
        for number, manifest in enumerate(manifests):
            named = {**manifest, "metadata": {**manifest["metadata"], "name": f"case-{number}"}}
            command = command_of(named, "east")
            if isinstance(command, tuple):
                return False
            if isinstance(decide(self.log.state, Author("east", "operator"), command), Rejection):
                return False
            self.log.wish(Author("east", "operator"), command)
            self._names.append((command.kind, command.namespace, command.name))  # type: ignore[union-attr]
        return True

    def mesh(self) -> Mesh:
        for record, changes in list(zip(self.log.records, self.log.changes, strict=True))[self._seen :]:
            self._origins.put(record, changes)
        self._seen = len(self.log.records)
        return Mesh(self.log.state, self._origins, "east")


def place_of(labels: Labels) -> str:
    """The workload of the world with these labels, or the entity."""
    if labels[0].startswith("reserved:"):
        return f"entity:{labels[0].partition(':')[2]}"
    for cluster in CLUSTER_IDS:
        for namespace in NAMESPACES:
            for app in APPS:
                for tier in TIERS:
                    if workload_labels(app, namespace, cluster, tier) == labels:
                        return f"{cluster}:{namespace}/{app}-{tier}" if tier else f"{cluster}:{namespace}/{app}"
    return ""


def port_of(l4: str) -> str:
    name, _, number = l4.partition("/")
    return f"{number}/{name}"


def sides(table: Any, make: Any, is_ingress: bool) -> Iterator[Case]:
    subject = "east:shop/db" if is_ingress else "east:shop/front"
    for spec, remote, protocol, port, _, _ in table:
        other = place_of(remote)
        ends = (other, subject) if is_ingress else (subject, other)
        yield [make(spec)], *ends, f"{port}/{protocol_name(protocol)}"


def cases() -> Iterator[Case]:
    """Of all tables."""
    def cilium(spec: str) -> dict[str, Any]:
        return cilium_policy(f"endpointSelector: {{}}\n{spec}")

    yield from sides(test_network_policy.INGRESS_CASES, network_policy, True)
    yield from sides(test_network_policy.EGRESS_CASES, network_policy, False)
    yield from sides(test_cilium.INGRESS_CASES, cilium, True)
    yield from sides(test_cilium.EGRESS_CASES, cilium, False)
    for _, policies, flow, _ in test_published.CASES:
        asked = test_published.read_flow(flow)
        made = [test_published.policy(kind, spec) for kind, spec in policies]
        yield made, asked["from"], asked["to"], port_of(asked["l4"])
    for _, policies, flow, _, _ in test_published.HTTP_CASES:
        asked = test_published.read_flow(flow)
        made = [test_published.policy(kind, spec) for kind, spec in policies]
        yield made, asked["from"], asked["to"], port_of(asked["l4"])
    for kind, spec, (source, target, l4), _ in test_verdict.CASES:
        yield [test_verdict.policy(kind, spec)], source, target, port_of(l4)


def test_every_drop_of_the_suites_tables_is_explained() -> None:
    """All of them, and no explanation says anything that is not so."""
    asked, counted, wrong = Asked(), Counter[str](), []
    for manifests, source, target, text in cases():
        counted["cases"] += 1
        if not asked.put(manifests):
            counted["refused online"] += 1
            continue
        mesh = asked.mesh()
        try:
            ends = mesh.end(source), mesh.end(target)
        except NoSuchEnd:
            counted["end not in this mesh"] += 1
            continue
        answer = explain(mesh, *ends, *read_port(text))
        faults = list(untrue(asked.log, mesh, source, target, text, answer))
        counted["denied"] += answer.verdict == "deny"
        counted["explained"] += answer.verdict == "deny" and not faults
        wrong += [f"{manifests} {source} -> {target} {text}: {fault}; said: {answer.reasons}" for fault in faults]
    assert wrong == [], f"{len(wrong)} of {dict(counted)}"
    assert counted["explained"] == counted["denied"] >= DENIED_MIN, counted


@given(
    st.lists(network_policies() | cilium_policies(), min_size=1, max_size=3),
    st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5), st.sampled_from(["80/TCP", "53/UDP", "8/ICMP"])), min_size=6),
)
@settings(max_examples=25, deadline=None)
def test_what_is_said_under_random_policies_is_so(
    manifests: list[dict[str, Any]], flows: list[tuple[int, int, str]]
) -> None:
    """The same of policies that nobody would write, and each row that they make has a rule that asks for it."""
    ends = ("shop/front", "shop/db-gold", "guest/cart", "west:shop/front", "entity:world", "node:n2")
    assert _ASKED.put(manifests)
    mesh = _ASKED.mesh()
    for source, target, text in flows:
        answer = explain(mesh, mesh.end(ends[source]), mesh.end(ends[target]), *read_port(text))
        assert list(untrue(_ASKED.log, mesh, ends[source], ends[target], text, answer)) == []
    where = NodeKey("east", "n1")
    rows = tables_of(mesh, where)["policy"]
    for key in list(rows)[:: max(1, len(rows) // 5)]:
        answer = explain_row(mesh, where, "policy", row_name("policy", key))
        assert [each for each in answer.reasons if "asks for it" in each], (key, answer.reasons)


_ASKED = Asked()


def untrue(log: Log, mesh: Mesh, source: str, target: str, text: str, answer: Any) -> Iterator[str]:
    """What an explanation says that a second look at the mesh and its log does not bear out."""
    closed = [side for side in answer.sides if side.verdict == REDIRECT]
    kernels = rows_allow(mesh, mesh.end(source), mesh.end(target), *read_port(text))
    if (answer.verdict == ALLOW) not in kernels:
        yield f"the verdict is {answer.verdict}, and by the kernel's rows it is allowed: {kernels}"
    if not all(reason.strip() for reason in answer.reasons) or not answer.reasons:
        yield "a reason is empty"
    revisions = {each.about: each.revision for each in answer.evidence}
    for side in answer.sides:
        policies = {part.name: part for part in mesh.inputs("east").policies.values()}
        denied = side.verdict.startswith("deny") or side in closed
        if denied and not side.rules and not (side.enforced_by and (side.differs or not side.nearest)):
            yield f"{side.direction} is denied without a rule, an enforcing policy or what differs"
        for cited in (*side.rules, *([side.nearest] if side.nearest else ())):
            origin, _, policy = cited.partition(" of ")
            rules = [rule for part in policies[policy].parts for rule in part.rules if rule.origin == origin]
            if [DIRECTIONS[rule.direction] for rule in rules] != [side.direction]:
                yield f"{cited} is no rule for {side.direction}"
            elif rules[0].deny != (side.verdict == "deny-explicit" and cited in side.rules):
                yield f"{cited} is cited for {side.verdict}"
        if side.nearest and not side.differs:
            yield f"{side.nearest} is nearest, and nothing differs"
        for policy in {*side.enforced_by, *(each.partition(" of ")[2] for each in side.rules)}:
            about = f"policy east:{policy}".replace("//", "/")
            if not revisions.get(about):
                yield f"no record of {policy} is named"
            elif policy not in named_in(log, revisions[about]):
                yield f"revision {revisions[about]} is no record of {policy}"


def rows_allow(mesh: Mesh, source: End, target: End, protocol: int, port: int) -> list[bool]:
    """What the programs would do with the rows of both ends; for the world at large, by either address family."""
    for side, other in ((source, target), (target, source)):
        if side.text == "entity:world":
            ends = [mesh.at_address(each) for each in ("8.8.8.8", "2001:db8::8")]
            pairs = [(each, other) if side is source else (other, each) for each in ends]
            return [each for pair in pairs for each in rows_allow(mesh, *pair, protocol, port)]
    allowed = True
    for direction, own, remote in ((POLICY_EGRESS, source, target), (POLICY_INGRESS, target, source)):
        if own.what == "endpoint":
            tables = tables_of(mesh, NodeKey(own.cluster, own.key.node))
            number = number_of(tables["ipcache"], remote, own)
            version = 6 if protocol == ICMPV6 or any(":" in end.address for end in (source, target)) else 4
            ends = (own.identity, address_of(mesh, own, version)), (number, address_of(mesh, remote, version))
            asked = asked_for(tables["policy_subjects"], tables["facets"], *ends)
            allowed &= look_up(tables["policy_subjects"], tables["policy"], *asked, direction, protocol, port)
    return [allowed]


def address_of(mesh: Mesh, end: End, version: int) -> bytes:
    """Of this family, of an endpoint; nobody's of others."""
    if not isinstance(end.key, EndpointKey):
        return NO_ADDRESS
    endpoint = mesh.state.endpoints[end.key]
    return address_bytes(endpoint.ipv6 if version == 6 else endpoint.ipv4)


def tables_of(mesh: Mesh, where: NodeKey) -> Any:
    """Derived once for each mesh."""
    if where not in mesh.__dict__.setdefault("derived", {}):
        mesh.__dict__["derived"][where] = Deriver(*where).full(mesh.state).tables
    return mesh.__dict__["derived"][where]


def number_of(ipcache: Any, end: End, own: End) -> int:
    """As the longest prefix of the ipcache has it; of entities their own."""
    if end.what == "entity":
        return end.identity
    if isinstance(end.key, NodeKey):
        return 1 if end.key == (own.cluster, own.key.node) else 6
    address = ip_address(address_bytes(end.address))
    found = [key for key in ipcache if address in ip_network((key.address, key.prefix_length), strict=False)]
    return ipcache[max(found, key=lambda key: key.prefix_length)].identity


def named_in(log: Log, revision: int) -> list[str]:
    """The policies that the record of this revision applied."""
    record = next(each for each in log.records if each.revision == revision)
    found = [each for each in decode(record.payload).events if isinstance(each, e.PolicyApplied)]
    return [f"{each.kind}/{each.namespace}/{each.name}" for each in found]


@pytest.mark.parametrize(("node", "text"), [("n1", "node:n1"), ("n2", "node:east:n2")])
def test_a_node_is_an_end(node: str, text: str) -> None:
    """By its name, in the own cluster or a named one; one that is not there is refused."""
    mesh_now = Asked().mesh()
    assert mesh_now.end(text).key == ("east", node)
    with pytest.raises(NoSuchEnd, match="no node"):
        mesh_now.end("node:n9")
