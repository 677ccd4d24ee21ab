"""A workload takes other labels: after each single row that any node writes, what its packets would meet.

The rows are those of real records, derived and realized as an agent does, on the workload's own node and on a peer.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from ipaddress import ip_network
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controlplane.commands.endpoint import RelabelEndpoint
from controlplane.commands.namespace import ApplyNamespace
from controlplane.commands.policy import ApplyPolicy
from controlplane.commands.types import Author
from controlplane.commands.workload import ApplyWorkload
from controlplane.desired.derive import Deriver
from controlplane.policy.manifests import canonical
from controlplane.runtime.clock import SystemClock
from controlplane.runtime.feed import Feed
from controlplane.runtime.follower import Follower as Follows
from controlplane.runtime.telemetry import Counters
from controlplane.settings import AgentSettings
from datapath import codec
from datapath.abi.types import IDENTITY_WORLD, POLICY_EGRESS, POLICY_INGRESS
from datapath.delta import Pending
from datapath.kernel.fake import FakeKernel, KernelMemory
from datapath.realization import Realization
from datapath.reconciler import Reconciler
from datapath.tables import DeviceKey, EndpointKey, IpcacheKey, PolicyKey, PolicyRow, PolicySubjectKey, PolicySubjectRow
from kvstore.types import Bookmark, Position, Record
from tests.controlplane.policy.worlds import asked_for, look_up
from tests.controlplane.random_mesh import Log
from tests.controlplane.small_mesh import accept, add_endpoint, mesh

OPERATOR = Author("east", "operator")
TCP = 6
WAIT_S = 10.0
PORTS = (80, 81)
APPS = ("red", "blue", "green")
PLACES = {"moved": ("n1", 10), "neighbour": ("n1", 11), "far": ("n2", 10)}
"""Each workload's node, and the number of its device there."""
PAIRS = [(source, dest) for source in PLACES for dest in PLACES if source != dest]

Packet = tuple[str, str, int]
"""Source, destination, port."""


class Kernel:
    """What one node's kernel holds, as a packet sees it."""

    def __init__(self, node: str, memory: KernelMemory, addresses: dict[str, bytes]) -> None:
        self._node, self._memory, self.addresses = node, memory, addresses

    def passes(self, packet: Packet) -> bool:
        """Whether this node lets the packet go on: egress where it is sent, ingress where it arrives."""
        source, dest, port = packet
        from_here, to_here = (PLACES[each][0] == self._node for each in (source, dest))
        sender = self._device(PLACES[source][1]) if from_here else self._ipcache(source)
        receiver = self._endpoint(dest) if to_here else self._ipcache(dest)
        subjects, rows, facets = map(self._decoded, ("policy_subjects", "policy", "facets"))
        ends = (sender, self.addresses[source]), (receiver, self.addresses[dest])
        sending, arriving = asked_for(subjects, facets, *ends), asked_for(subjects, facets, *ends[::-1])
        if from_here and not look_up(subjects, rows, *sending, POLICY_EGRESS, TCP, port):
            return False
        return not to_here or look_up(subjects, rows, *arriving, POLICY_INGRESS, TCP, port)

    def leaves(self, source: str, address: str) -> bool:
        """Whether a workload of this node reaches an address outside the mesh, which the longest prefix tells."""
        wanted, best = int.from_bytes(codec.address_bytes(address), "big"), (-1, IDENTITY_WORLD)
        for key, row in self._decoded("ipcache").items():
            rest = 128 - key.prefix_length
            if wanted >> rest == int.from_bytes(key.address, "big") >> rest:
                best = max(best, (key.prefix_length, row.identity))
        subjects, rows = self._decoded("policy_subjects"), self._decoded("policy")
        return look_up(subjects, rows, self._device(PLACES[source][1]), best[1], POLICY_EGRESS, TCP, 80)

    def _decoded(self, table: str) -> dict[Any, Any]:
        held = self._memory.tables[table]
        return {codec.decode_key(table, key): codec.decode_row(table, row) for key, row in held.items()}

    def _device(self, ifindex: int) -> int:
        return int(self._row("devices", DeviceKey(ifindex)).identity)

    def _endpoint(self, name: str) -> int:
        return int(self._row("endpoints", EndpointKey(self.addresses[name])).identity)

    def _ipcache(self, name: str) -> int:
        return int(self._row("ipcache", IpcacheKey(128, self.addresses[name])).identity)

    def _row(self, table: str, key: Any) -> Any:
        return codec.decode_row(table, self._memory.tables[table][codec.encode_key(table, key)])


class Follower:
    """One node: derives from the log and writes to its kernel; `check` is called after each row while watched."""

    def __init__(self, log: Log, node: str) -> None:
        self._log, self._node = log, node
        self._deriver = Deriver("east", node)
        self.memory = KernelMemory()
        self._check: Callable[[], None] | None = None
        self._realization = Realization(FakeKernel(self.memory, lambda *_: self._check() if self._check else None))
        self._realization.open()
        self._write(self._deriver.full(log.state))
        self._seen = len(log.changes)

    def follow(self, check: Callable[[], None] | None = None) -> None:
        """All records that have come, in one update."""
        changes, self._seen = self._log.changes[self._seen :], len(self._log.changes)
        self._check = check
        for turn in self._deriver.turns(self._log.state, changes):
            self._write(turn)
        self._check = None

    def _write(self, desired: Any) -> None:
        pending = Pending()
        pending.merge(desired)
        report = self._realization.converge(pending, 0.0)
        assert not report.not_done


class Records:
    """A log that gives what it is told to, all at once."""

    cluster_id = ""

    def __init__(self) -> None:
        self.queue: asyncio.Queue[list[Record]] = asyncio.Queue()

    async def follow(self, position: Position) -> AsyncIterator[Record | Bookmark]:
        """For ever; in sync from the start."""
        yield Bookmark(position.revision)
        while True:
            for record in await self.queue.get():
                yield record


class Unrelabelled:
    """Takes what the feed tells about changed labels; the test has said it already."""

    def offer(self, changes: object) -> None:
        """Nothing is due."""


class Agent:
    """From records to a kernel as an agent does it, in its own tasks."""

    def __init__(self, log: Log, node: str) -> None:
        self.memory = KernelMemory()
        self._check: Callable[[], None] | None = None
        self._records = Records()
        counters = Counters()
        settings = AgentSettings(cluster="east", node=node)
        self._follower = Follows(
            self._records, log.state.copy(), SystemClock(), settings, counters, None  # type: ignore[arg-type]
        )
        kernel = FakeKernel(self.memory, lambda *_: self._check() if self._check else None)
        self._reconciler = Reconciler(kernel, asyncio.get_running_loop().time)
        self._feed = Feed(self._follower, Deriver("east", node), self._reconciler, Unrelabelled(), counters)  # type: ignore[arg-type]
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Until the kernel holds the state that it began with."""
        await self._reconciler.open()
        for loop in (self._follower.run(), self._reconciler.run()):
            self._tasks.append(asyncio.create_task(loop))
        await self._follower.wait_in_sync(WAIT_S)
        self._feed.start()
        self._tasks.append(asyncio.create_task(self._feed.run()))
        await self._reconciler.wait_realized(self._follower.state.revision, WAIT_S)

    async def follow(self, records: list[Record], check: Callable[[], None]) -> None:
        """Until the kernel holds them; `check` is called after each row."""
        self._check = check
        self._records.queue.put_nowait(records)
        await self._reconciler.wait_realized(records[-1].revision, WAIT_S)
        self._check = None

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._reconciler.close()


def rule(peers: list[str], port: int | None) -> dict[str, Any]:
    ports = {"toPorts": [{"ports": [{"port": str(port), "protocol": "TCP"}]}]} if port else {}
    return {"fromEndpoints": [{"matchLabels": {"app": app}} for app in peers], **ports}


RULES = st.builds(rule, st.lists(st.sampled_from(APPS), min_size=1, max_size=2), st.sampled_from((None, *PORTS)))


def turned(listed: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same rules for egress."""
    return [{key.replace("from", "to"): value for key, value in each.items()} for each in listed]


@st.composite
def manifests(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Policies about workloads by their label `app`."""
    found = []
    for number in range(draw(st.integers(1, 3))):
        spec: dict[str, Any] = {"endpointSelector": {"matchLabels": {"app": draw(st.sampled_from(APPS))}}}
        for section in draw(st.lists(st.sampled_from(("ingress", "ingressDeny", "egress", "egressDeny")), min_size=1)):
            listed = draw(st.lists(RULES, max_size=2))
            spec[section] = turned(listed) if section.startswith("egress") else listed
        found.append(policy(f"p{number}", spec))
    return found


def policy(name: str, spec: dict[str, Any]) -> dict[str, Any]:
    kind, version = "CiliumNetworkPolicy", "cilium.io/v2"
    return {"apiVersion": version, "kind": kind, "metadata": {"name": name, "namespace": "shop"}, "spec": spec}


def world(policies: list[dict[str, Any]], **apps: str) -> tuple[Log, dict[str, Follower], dict[str, Kernel]]:
    """Three workloads on two nodes under these policies."""
    log = mesh()
    addresses = {}
    for name, (node, ifindex) in PLACES.items():
        endpoint = add_endpoint(log, "east", node, name, ifindex, app=apps[name])
        addresses[name] = codec.address_bytes(endpoint.ipv4)
    for each in policies:
        accept(log, OPERATOR, ApplyPolicy(each["kind"], "shop", each["metadata"]["name"], canonical(each)))
    nodes = {node: Follower(log, node) for node in ("n1", "n2")}
    return log, nodes, {node: Kernel(node, nodes[node].memory, addresses) for node in nodes}


def relabel(log: Log, **labels: str) -> None:
    """The workload that moves has these labels from now on; its agent records its new identity."""
    accept(log, OPERATOR, ApplyWorkload("shop", "moved", labels, True, "", {"web": (8080, "TCP")}, "n1"))
    (endpoint,) = (each for each in log.state.endpoints.values() if each.workload == "moved")
    accept(log, Author("east", "node.n1"), RelabelEndpoint("n1", endpoint.endpoint_id))


def watched(node: Follower, kernel: Kernel) -> list[tuple[bool, ...]]:
    """Follows the log; the verdicts of all packets before, after each row, and at the end."""
    packets = [(*pair, port) for pair in PAIRS for port in PORTS]

    def verdicts() -> tuple[bool, ...]:
        return tuple(map(kernel.passes, packets))

    found = [verdicts()]
    node.follow(lambda: found.append(verdicts()))
    return [*found, verdicts()]


@settings(max_examples=40, deadline=None)
@given(manifests(), *(st.sampled_from(APPS) for _ in range(4)))
def test_a_relabelled_endpoint_is_never_under_a_third_policy(
    policies: list[dict[str, Any]], before: str, after: str, neighbour: str, far: str
) -> None:
    """At every moment, on every node, each packet meets its old verdict or its new one."""
    log, nodes, kernels = world(policies, moved=before, neighbour=neighbour, far=far)
    relabel(log, app=after)
    for name, node in nodes.items():
        old, *between, new = watched(node, kernels[name])
        for verdicts in between:
            for was, now, will in zip(old, verdicts, new, strict=True):
                assert now in (was, will), (name, was, now, will)


def test_the_last_endpoint_of_an_identity_keeps_its_policy_until_it_has_moved() -> None:
    """Nothing is selected, so nothing is ever lost: the row of the identity that it leaves goes last."""
    log, nodes, kernels = world([], moved="red", neighbour="green", far="green")
    relabel(log, app="blue")
    for name, node in nodes.items():
        assert all(map(all, watched(node, kernels[name])))


def test_labels_of_a_namespace_move_an_endpoint_likewise() -> None:
    """A policy that looks at the namespace's labels: closed, then open, with no verdict between."""
    spec = {"endpointSelector": {"matchLabels": {"app": "green"}}, "ingress": [
        {"fromEndpoints": [{"matchExpressions": [
            {"key": "k8s:io.cilium.k8s.namespace.labels.team", "operator": "In", "values": ["blue"]},
            {"key": "k8s:io.kubernetes.pod.namespace", "operator": "Exists"}]}]}]}  # fmt: skip
    log, nodes, kernels = world([policy("team", spec)], moved="red", neighbour="green", far="green")
    accept(log, OPERATOR, ApplyNamespace("shop", {"team": "blue"}))
    relabel(log, app="red")
    for name, node in nodes.items():
        old, *between, new = watched(node, kernels[name])
        assert old != new
        assert all(now in (was, will) for now_all in between for was, now, will in zip(old, now_all, new, strict=True))


ALLOWING = {"endpointSelector": {"matchLabels": {"app": "green"}}, "ingress": [rule(["red", "blue"], None)]}
REFUSING = {**ALLOWING, "ingress": [rule(["blue"], None)], "ingressDeny": [rule(["red"], None)]}
ADMITTING = {**ALLOWING, "ingress": [rule(["red"], None)]}
NOBODY = {**ALLOWING, "ingress": [{}]}


@pytest.mark.parametrize(("old", "new", "passes"), [(ALLOWING, REFUSING, True), (NOBODY, ADMITTING, False)])
async def test_a_policy_that_comes_right_after_a_move_never_meets_the_old_identity(
    old: dict[str, Any], new: dict[str, Any], passes: bool
) -> None:
    """red becomes blue, then a policy is about blue, or about red: every state of the log lets the packet pass, or none,
    and so does every state of the kernel, though both records come at once. The old identity under the new policy would
    not."""
    log, _, kernels = world([policy("p", old)], moved="red", neighbour="green", far="green")
    agents = {name: Agent(log, name) for name in kernels}
    for agent in agents.values():
        await agent.start()
    before = len(log.records)
    relabel(log, app="blue")
    accept(log, OPERATOR, ApplyPolicy("CiliumNetworkPolicy", "shop", "p", canonical(policy("p", new))))
    for name, dest in (("n1", "neighbour"), ("n2", "far")):
        kernel, found = Kernel(name, agents[name].memory, kernels[name].addresses), []
        await agents[name].follow(log.records[before:], lambda k=kernel, d=dest, f=found: f.append(k.passes(("moved", d, 80))))
        assert len(found) > 3 and set(found) == {passes}, (name, found)
        await agents[name].stop()


OUTSIDE = ("10.1.2.3", "10.200.0.1", "192.0.2.1")
CIDRS = st.sampled_from(("0.0.0.0/0", "10.0.0.0/8", "10.1.0.0/16"))
EVERYONE = st.sampled_from(({"toEntities": ["world"]}, {"toPorts": [{"ports": [{"port": "80"}]}]}, {"toEntities": ["all"]}))
HOLES = st.lists(st.sampled_from(("10.0.0.0/8", "10.1.0.0/16", "10.1.2.0/24")), max_size=2, unique=True)


@st.composite
def outward(draw: st.DrawFn) -> dict[str, Any]:
    """A policy about prefixes within each other."""
    spec: dict[str, Any] = {"endpointSelector": {"matchLabels": {"app": "red"}}}
    for section in draw(st.lists(st.sampled_from(("egress", "egressDeny")), min_size=1, unique=True)):
        sets = st.lists(st.fixed_dictionaries({"cidr": CIDRS, "except": HOLES}), min_size=1, max_size=2)
        listed = draw(st.lists(sets, max_size=2))
        within = [[each for each in some if _is_whole(each)] for some in listed]
        spec[section] = [{"toCIDRSet": some} for some in within if some] + draw(st.lists(EVERYONE, max_size=1))
    return policy("outward", spec)


def _is_whole(each: dict[str, Any]) -> bool:
    """Every hole is inside."""
    return all(ip_network(hole).subnet_of(ip_network(each["cidr"])) for hole in each["except"])


@settings(max_examples=60, deadline=None)
@given(outward(), outward())
def test_an_address_that_gets_another_prefix_is_never_under_a_third_policy(
    before: dict[str, Any], after: dict[str, Any]
) -> None:
    """One policy takes another's place, and with it prefixes come and go: whatever both let out goes out at every moment,
    and what neither does never."""
    log, nodes, kernels = world([before], moved="red", neighbour="green", far="green")
    accept(log, OPERATOR, ApplyPolicy("CiliumNetworkPolicy", "shop", "outward", canonical(after)))
    node, kernel = nodes["n1"], kernels["n1"]
    found = [[kernel.leaves("moved", address) for address in OUTSIDE]]
    node.follow(lambda: found.append([kernel.leaves("moved", address) for address in OUTSIDE]))
    found.append([kernel.leaves("moved", address) for address in OUTSIDE])
    for seen in zip(*found, strict=True):
        assert seen[0] != seen[-1] or set(seen) == {seen[0]}, found


@pytest.mark.parametrize("table", ["policy_subjects", "policy"])
def test_the_oracle_would_see_a_row_that_goes_too_soon(table: str) -> None:
    """Without its identity's rows a packet is dropped, so a wrong order would show."""
    subject = PolicySubjectKey(9)
    rows = {PolicyKey(9, 0, 0, 0, 0, POLICY_EGRESS): PolicyRow(1)}
    subjects = {subject: PolicySubjectRow(0, 1, 0, 1)}
    assert look_up(subjects, rows, 9, 8, POLICY_EGRESS, TCP, 80)
    {"policy_subjects": subjects, "policy": rows}[table].clear()  # type: ignore[attr-defined]
    assert not look_up(subjects, rows, 9, 8, POLICY_EGRESS, TCP, 80)
