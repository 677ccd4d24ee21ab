"""Policies and labels change under a real agent while packets flow between two of its pods, both families.

Belongs here: what takes an agent and sockets. Does not belong here: which rows a policy becomes
(tests/controlplane/policy), in which order they are written (tests/datapath/test_plan.py).

Each change is done and undone under one run of traffic. By port a flow is one that both policies allow, that neither
does, or that only one does; see traffic.py.
"""

import itertools
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from threading import Event
from typing import Any

import pytest

from tests.conftest import Namespace, mounted_bpffs
from tests.integration.test_agent import Machine, made_machine, pytestmark, wait_for
from tests.integration.traffic import CLOSED, GRANTED, KEPT, REVOKED, ROLES, Datagrams, Pod, Stream, Way

__all__ = ["pytestmark"]

Document = dict[str, Any]
BEFORE, AFTER = (KEPT, REVOKED), (KEPT, GRANTED)
ALL_PORTS = tuple(ROLES)
ROUNDS = 30
SETTLED_S = 10
RUNS_S, HALTS_MAX = 0.0005, 300


def document(kind: str, name: str, spec: Document, **metadata: Any) -> Document:
    """Of a kind that the tests here apply."""
    version = {"NetworkPolicy": "networking.k8s.io/v1", "CiliumNetworkPolicy": "cilium.io/v2"}.get(kind, "v1")
    place = {} if kind == "Namespace" else {"namespace": metadata.pop("namespace", "shop")}
    return {"apiVersion": version, "kind": kind, "metadata": {"name": name, **place, **metadata}, "spec": spec}


def pod(name: str, namespace: str = "shop", **labels: str) -> Document:
    return document("Pod", name, {"containers": [{"name": name}]}, namespace=namespace, labels=labels)


def space(**labels: str) -> Document:
    """The client's namespace."""
    return document("Namespace", "guest", {}, labels=labels)


def listed(ports: Sequence[int]) -> list[Document]:
    return [{"protocol": protocol, "port": port} for port in ports for protocol in ("UDP", "TCP")]


def admitting(
    name: str, ports: Sequence[int], peer: Document | None = None, server: Document | None = None
) -> Document:
    """Lets a peer (by default the client) reach these ports of the pods labelled `server` (by default the server)."""
    rule = {"from": [peer or {"namespaceSelector": {}, "podSelector": {"matchLabels": {"app": "client"}}}],
            "ports": listed(ports)}  # fmt: skip
    spec = {"podSelector": {"matchLabels": server or {"app": "server"}}, "policyTypes": ["Ingress"], "ingress": [rule]}
    return document("NetworkPolicy", name, spec)


def sending(ports: Sequence[int]) -> Document:
    """Lets the client send to these ports."""
    rule = {"to": [{"namespaceSelector": {}}], "ports": listed(ports)}
    spec = {"podSelector": {}, "policyTypes": ["Egress"], "egress": [rule]}
    return document("NetworkPolicy", "sending", spec, namespace="guest")


def denying(ports: Sequence[int]) -> Document:
    """Nobody reaches these ports of the server, whatever else is allowed."""
    named = [{"port": str(each["port"]), "protocol": each["protocol"]} for each in listed(ports)]
    spec = {"endpointSelector": {"matchLabels": {"app": "server"}}, "enableDefaultDeny": {"ingress": False},
            "ingressDeny": [{"fromEntities": ["all"], "toPorts": [{"ports": named}]}]}  # fmt: skip
    return document("CiliumNetworkPolicy", "denying", spec)


def closing(namespace: str) -> Document:
    """Nothing in and nothing out but what is allowed."""
    return document("NetworkPolicy", "closing", {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]},
                    namespace=namespace)  # fmt: skip


def serving(port: int) -> Document:
    """The server, which has a port of the name "web"."""
    ports = [{"name": f"web-{each['protocol'].lower()}", "protocol": each["protocol"], "containerPort": each["port"]}
             for each in listed([port])]  # fmt: skip
    return {**SERVER, "spec": {"containers": [{"name": "server", "ports": ports}]}}


def admitting_to_web() -> Document:
    made = admitting("web", [KEPT])
    made["spec"]["ingress"][0]["ports"] += [{"protocol": each, "port": f"web-{each.lower()}"} for each in ("UDP", "TCP")]
    return made


SERVER, SECOND = (pod(name, app="server", tier="old") for name in ("server", "second"))
"""Of one identity."""
BASE = [space(trust="some"), pod("client", "guest", app="client", role="old"), SERVER, SECOND]
CLOSED_POLICIES = [closing("guest"), closing("shop"), sending(ALL_PORTS)]


class Site:
    """The agent and the pods between which packets flow."""

    def __init__(self, machine: Machine, client: Pod, server: Pod) -> None:
        self.machine, self.client, self.server = machine, client, server
        self.policies: dict[tuple[str, str, str], Document] = {}

    def apply(self, *documents: Document) -> None:
        """Each on its own, in this order, and until the kernel holds what comes of it."""
        for each in documents:
            self._send("/v1/apply", each)

    def remove(self, *documents: Document) -> None:
        """Likewise."""
        for each in documents:
            self._send("/v1/delete", each)

    def set(self, **settings: Any) -> None:
        """The cluster's policy settings, in words of Python."""
        body = {name.replace("_", "-"): value for name, value in settings.items()}
        self._wait(self.machine.ask("POST", "/v1/policy/settings", body)["revision"])

    def audit(self, endpoint: str, is_on: bool) -> None:
        """Whether what the endpoint's policies deny passes."""
        body = {"endpoint": endpoint, "PolicyAuditMode": is_on}
        self._wait(self.machine.ask("POST", "/v1/policy/endpoint", body)["revision"])

    def filter_labels(self, patterns: str) -> None:
        """Identities are of these labels, and until the kernel holds what comes of it."""
        self.set(labels=patterns)
        wait_for("the labels at the endpoints", lambda: self._are_filtered(patterns))
        self._wait(self.machine.status()["log"]["applied_revision"])

    def _are_filtered(self, patterns: str) -> bool:
        """Whether endpoints have the labels of BASE, but for those that a pattern "!KEY" leaves out."""
        left_out = f"k8s:{patterns.removeprefix('!')}="
        found = self.machine.ask("GET", "/v1/list/endpoint")["items"]
        labels = [label for each in found for label in each["labels"]]
        wanted = [f"k8s:{key}={value}" for each in BASE if each["kind"] == "Pod"
                  for key, value in each["metadata"]["labels"].items()]  # fmt: skip
        return all((label in labels) is not label.startswith(left_out) for label in wanted)

    def _send(self, path: str, sent: Document) -> None:
        answer = self.machine.ask("POST", path, {"documents": [{"document": sent}]})
        (result,) = answer["results"]
        assert result["accepted"], result
        metadata = sent["metadata"]
        key = (sent["kind"], metadata.get("namespace", ""), metadata["name"])
        if sent["kind"].endswith("Policy"):
            if path.endswith("apply"):
                self.policies[key] = sent
            else:
                self.policies.pop(key, None)
        if sent["kind"] in ("Pod", "Namespace"):
            wait_for("the labels at the endpoint", lambda: self._carries(sent))
        self._wait(max(answer["revision"], self.machine.status()["log"]["applied_revision"]))

    def _carries(self, sent: Document) -> bool:
        """Whether the endpoints concerned, if there are any, have the document's labels."""
        metadata = sent["metadata"]
        is_pod = sent["kind"] == "Pod"
        prefix = "k8s:" if is_pod else "k8s:io.cilium.k8s.namespace.labels."
        wanted = {f"{prefix}{key}={value}" for key, value in metadata["labels"].items()}
        place = (metadata["namespace"], metadata["name"]) if is_pod else (metadata["name"],)
        found = self.machine.ask("GET", "/v1/list/endpoint")["items"]
        own = [each for each in found if (each["namespace"], each["workload"])[: len(place)] == place]
        return all(wanted <= set(each["labels"]) for each in own)

    def _wait(self, revision: int) -> None:
        self.machine.ask("GET", f"/v1/wait?revision={revision}&timeout_s={SETTLED_S}")

    def reset(self) -> None:
        """As it was at the beginning: nothing passes."""
        self.set()
        self.remove(*self.policies.values())
        self.apply(*BASE, *CLOSED_POLICIES)


@pytest.fixture(scope="module")
def built(objects_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """One agent for all tests here."""
    with ExitStack() as stack:

        def namespace() -> Namespace:
            made = Namespace()
            stack.callback(made.close)
            return made

        bpffs = stack.enter_context(mounted_bpffs(tmp_path_factory.mktemp("live") / "bpffs"))
        machine = stack.enter_context(made_machine(bpffs, objects_dir, namespace()))
        machine.start_agent()
        machine.ask("POST", "/v1/apply", {"documents": [{"document": each} for each in BASE]})
        pods = []
        for number, (place, name) in enumerate((("guest", "client"), ("shop", "server"), ("shop", "second"))):
            where = namespace()
            made = machine.ask("POST", "/v1/endpoints", {
                "container_id": f"c{number}", "interface": "eth0", "netns": where.path,
                "namespace": place, "workload": name,
            })  # fmt: skip
            addresses = [each["address"].partition("/")[0] for each in made["addresses"]]
            pods.append(Pod(where, {6 if ":" in each else 4: each for each in addresses}))
        yield Site(machine, *pods[:2])


@pytest.fixture
def site(built: Site) -> Site:
    """With both pods closed, save that the client may send."""
    built.reset()
    return built


Change = Callable[[Site], None]


class Scenario:
    """What stands first, and a change that takes REVOKED away and gives GRANTED, with the way back."""

    def __init__(self, first: list[Document], change: Change, back: Change) -> None:
        self.first, self.change, self.back = first, change, back


def applying(*documents: Document) -> Change:
    return lambda site: site.apply(*documents)


def swapping(new: Document, old: Document) -> Change:
    """The new one first: what both allow is allowed throughout."""

    def swap(site: Site) -> None:
        site.apply(new)
        site.remove(old)

    return swap


def peer(namespace: Document | None = None, **labels: str) -> Document:
    return {"namespaceSelector": {"matchLabels": namespace or {}}, "podSelector": {"matchLabels": labels}}


def by_peer(kind: str, old: Document, new: Document) -> list[Document]:
    return [admitting(f"{kind}-old", BEFORE, old), admitting(f"{kind}-new", AFTER, new)]


WITHOUT_ROLE = {"namespaceSelector": {}, "podSelector": {
    "matchLabels": {"app": "client"}, "matchExpressions": [{"key": "role", "operator": "DoesNotExist"}]}}  # fmt: skip

SCENARIOS = {
    "label of the sender": Scenario(
        by_peer("role", peer(role="old"), peer(role="new")),
        applying(pod("client", "guest", app="client", role="new")),
        applying(pod("client", "guest", app="client", role="old")),
    ),
    "label of the receiver": Scenario(
        [admitting("tier-old", BEFORE, server={"tier": "old"}), admitting("tier-new", AFTER, server={"tier": "new"})],
        applying(pod("server", app="server", tier="new")),
        applying(pod("server", app="server", tier="old")),
    ),
    "label of the namespace": Scenario(
        by_peer("trust", peer({"trust": "some"}), peer({"trust": "full"})),
        applying(space(trust="full")),
        applying(space(trust="some")),
    ),
    "filter of labels": Scenario(
        by_peer("role", peer(role="old"), WITHOUT_ROLE),
        lambda site: site.filter_labels("!role"),
        lambda site: site.filter_labels("!nothing"),
    ),
    "named port of one receiver": Scenario(
        [admitting_to_web(), serving(REVOKED), {**serving(REVOKED), "metadata": SECOND["metadata"]}],
        applying(serving(GRANTED)),
        applying(serving(REVOKED)),
    ),
    "policy at the receiver": Scenario(
        [admitting("one", BEFORE)], applying(admitting("one", AFTER)), applying(admitting("one", BEFORE))
    ),
    "policy at the sender": Scenario(
        [admitting("one", (KEPT, REVOKED, GRANTED)), sending(BEFORE)],
        applying(sending(AFTER)),
        applying(sending(BEFORE)),
    ),
    "policy replaced by another": Scenario(
        [admitting("one", BEFORE)],
        swapping(admitting("two", AFTER), admitting("one", BEFORE)),
        swapping(admitting("one", BEFORE), admitting("two", AFTER)),
    ),
    "denial moved": Scenario(
        [admitting("one", (KEPT, REVOKED, GRANTED)), denying([GRANTED, CLOSED])],
        applying(denying([REVOKED, CLOSED])),
        applying(denying([GRANTED, CLOSED])),
    ),
}


class Spans:
    """Rounds of a run: complete before the change, after it, and after the way back."""

    def __init__(self) -> None:
        self.ends: list[int] = []
        self.begins: list[int] = [1]

    def changed(self, before: int, after: int) -> None:
        self.ends.append(before)
        self.begins.append(after)

    def of(self, number: int, last: int) -> range:
        return range(self.begins[number], [*self.ends, last][number])


def check(run: Datagrams, spans: Spans, passes: dict[int, tuple[bool, bool, bool]]) -> None:
    """`passes`: by port, whether packets pass in each span. What passes or not throughout does so in between too; and
    in between the others change once."""
    for way, arrived in run.arrived.items():
        assert arrived == sorted(set(arrived)), f"{way}: packets came twice or out of order"
        found, expected = set(arrived), passes[way.port]
        whole = expected.count(expected[0]) == len(expected)
        for number, is_passing in enumerate(expected):
            span = range(1, run.rounds) if whole else spans.of(number, run.rounds)
            wrong = [each for each in span if (each in found) is not is_passing]
            what = "was dropped" if is_passing else "passed"
            assert not wrong, f"{way}: packet {wrong[0]} of rounds {span} {what} ({len(wrong)} in all)"
        if not whole:
            check_between(way, spans, found)


def check_between(way: Way, spans: Spans, found: set[int]) -> None:
    for number, (end, begin) in enumerate(zip(spans.ends, spans.begins[1:], strict=True)):
        seen = [each in found for each in range(end, begin)]
        flips = sum(one is not other for one, other in itertools.pairwise(seen))
        assert flips <= 1, f"{way}: in change {number}, rounds {end} to {begin}, it went to and fro: {seen}"


@contextmanager
def halting(site: Site, run: Datagrams) -> Iterator[None]:
    """The agent runs half a millisecond at a time, and a round passes in between: so packets meet most of what
    its writes leave behind them, one after the other."""
    pid, ends = site.machine.processes["agent"].pid, Event()

    def halt() -> None:
        for _ in range(HALTS_MAX):
            if ends.wait(RUNS_S):
                return
            os.kill(pid, signal.SIGSTOP)
            try:
                run.pass_rounds(1)
            finally:
                os.kill(pid, signal.SIGCONT)

    with ThreadPoolExecutor(1) as threads:
        halts = threads.submit(halt)
        try:
            yield
        finally:
            ends.set()
        halts.result()


def under_traffic(site: Site, change: Change, back: Change) -> tuple[Datagrams, Spans]:
    """Datagrams before, during and after a change and the way back."""
    run, spans = Datagrams(site.client, site.server), Spans()
    run.start()
    try:
        for step in (change, back):
            run.pass_rounds(ROUNDS)
            before = run.rounds
            with halting(site, run):
                step(site)
            # The round that is under way may have begun before; what a flow's other end sends may come ahead of what
            # opens it in the round after that.
            spans.changed(before, run.rounds + 3)
        run.pass_rounds(ROUNDS)
    finally:
        run.stop()
    return run, spans


@pytest.mark.parametrize("name", SCENARIOS)
def test_datagrams_while_it_changes(site: Site, name: str) -> None:
    """No datagram is lost that old and new policy allow, none passes that neither does, in either direction; what is
    revoked stops at once and for good, what is granted begins, and both again on the way back."""
    scenario = SCENARIOS[name]
    site.apply(*scenario.first)
    run, spans = under_traffic(site, scenario.change, scenario.back)
    check(run, spans, {
        KEPT: (True, True, True), CLOSED: (False, False, False),
        REVOKED: (True, False, True), GRANTED: (False, True, False),
    })  # fmt: skip


AUDITS: dict[str, tuple[Change, Change]] = {
    "of the cluster": (lambda site: site.set(policy_audit_mode=True), lambda site: site.set()),
    "of the endpoint": (lambda site: site.audit("shop/server", True), lambda site: site.audit("shop/server", False)),
}


@pytest.mark.parametrize("name", AUDITS)
def test_datagrams_while_audit_is_switched(site: Site, name: str) -> None:
    """Under audit what is denied passes, and stops with it; what is allowed never notices."""
    site.apply(admitting("one", BEFORE))
    run, spans = under_traffic(site, *AUDITS[name])
    denied = (False, True, False)
    check(run, spans, {KEPT: (True,) * 3, REVOKED: (True,) * 3, CLOSED: denied, GRANTED: denied})


@pytest.mark.parametrize("name", ["label of the sender", "label of the receiver", "label of the namespace",
                                  "policy at the receiver", "denial moved"])  # fmt: skip
def test_connections_while_it_changes(site: Site, name: str) -> None:
    """Of a revoked connection not one segment arrives any more, in either direction, whoever sends first; of one that
    is still allowed each segment does."""
    scenario = SCENARIOS[name]
    site.apply(*scenario.first)
    with ExitStack() as stack:

        def connect(port: int) -> list[Stream]:
            made = [Stream(site.client, site.server, family, port) for family in (4, 6)]
            for each in made:
                stack.callback(each.close)
                each.exchange()
            return made

        kept, revoked = connect(KEPT), connect(REVOKED)
        lost = [missing(each) for each in kept]
        scenario.change(site)
        for each in kept:
            for _ in range(ROUNDS):
                each.exchange()
        before = [(each.received(), each.sent()) for each in revoked]
        for each in revoked:
            each.server.sendall(b"to the client")
            each.client.sendall(b"to the server")
        for each in kept:
            each.exchange()
        for each, (received, sent) in zip(revoked, before, strict=True):
            assert all(new > old for new, old in zip(each.sent(), sent, strict=True)), f"{each}: nothing was sent"
            assert each.received() == received, f"{each}: segments arrived after the permission had gone"
        scenario.back(site)
        for each in kept:
            each.exchange()
        wait_for("every segment of the connections that stay", lambda: [missing(each) for each in kept] == lost)


def missing(stream: Stream) -> tuple[int, int]:
    """Segments sent and not received, each way, beside those of the handshake."""
    sent, received = stream.sent(), stream.received()
    return sent[0] - received[1], sent[1] - received[0]
