"""From policies to one node's rows: in full, and after one change of each kind. Pure; CPU time of this process."""

import gc
import statistics
import time
import tracemalloc
from collections.abc import Callable, Iterable
from typing import Any

from msgspec.structs import replace

from controlplane.desired.policy import PolicyCompiler
from controlplane.events import EndpointRelabelled, Event, IdentityAllocated, PolicyApplied
from controlplane.policy.identity_labels import identity_labels
from controlplane.policy.manifests import canonical
from controlplane.projections.change import Change
from controlplane.projections.state import State
from tests.bench.report import Row
from tests.bench.world import CLUSTER, CLUSTER_ID, Written, node_name, records, world

NODE = node_name(0)
"""Its 100 endpoints have 100 identities."""
POLICIES, IDENTITIES, ENDPOINTS = 500, 2_000, 50_000
PEERS = 20
RUNS = 20
CIDRS = 1_000


def measure() -> list[Row]:
    """All rows of this file."""
    mesh = _Mesh()
    return [mesh.full(), mesh.new_identity(), mesh.changed_policy(), mesh.relabelled_namespace(), _cidrs()]


def _policy(name: str, spec: dict[str, Any]) -> PolicyApplied:
    kind = "CiliumNetworkPolicy"
    document = {"apiVersion": "cilium.io/v2", "kind": kind, "metadata": {"name": name, "namespace": "shop"}}
    return PolicyApplied(kind, "shop", name, canonical({**document, "spec": spec}))


def _numbered(number: int, port: int = 80) -> PolicyApplied:
    """One application of every four is a subject; each lets twenty others in."""
    apps = [f"app{(number * 7 + peer) % IDENTITIES}" for peer in range(PEERS)]
    peers = {"matchExpressions": [{"key": "app", "operator": "In", "values": apps}]}
    rule = {"fromEndpoints": [peers], "toPorts": [{"ports": [{"port": str(port), "protocol": "TCP"}]}]}
    subject = {"matchLabels": {"app": f"app{number * 4 % IDENTITIES}"}}
    return _policy(f"p{number}", {"endpointSelector": subject, "ingress": [rule]})


class _Mesh:
    """The state, and the compiler of one node."""

    def __init__(self) -> None:
        self._state = State()
        self._revision = 0
        self._sequences = 0
        for record in records(world(ENDPOINTS, 0, IDENTITIES)):
            self._state.apply(record)
            self._revision = record.revision
        self._write([_numbered(number) for number in range(POLICIES)])
        self._compiler = PolicyCompiler()
        self._full_ms = 0.0

    def _write(self, events: Iterable[Event]) -> list[Change]:
        """As a writer of its own appends them, a hundred to a batch."""
        listed = list(events)
        batches = [Written("bench", tuple(listed[at : at + 100])) for at in range(0, len(listed), 100)]
        changes: list[Change] = []
        for record in records(iter(batches), self._revision):
            self._sequences += 1
            writer = "operator" if isinstance(listed[0], PolicyApplied) else f"node.{NODE}"
            changes += self._state.apply(replace(record, writer=writer, sequence=self._sequences))
            self._revision = record.revision
        assert not self._state.refused_count, self._state.refused_events[-1]
        return changes

    def full(self) -> Row:
        """From nothing, with the memory that the compiler then holds."""
        gc.collect()
        tracemalloc.start()
        PolicyCompiler().full(self._state, CLUSTER, NODE)
        peak = tracemalloc.get_traced_memory()[1] / 2**20
        tracemalloc.stop()
        self._full_ms, (_, rows) = _timed(lambda: self._compiler.full(self._state, CLUSTER, NODE))
        return Row(
            f"{POLICIES} policies, {IDENTITIES:,} identities, {ENDPOINTS:,} endpoints: all policy rows of a node",
            f"{self._full_ms:.0f} ms of CPU, {len(rows):,} rows, {peak:.0f} MB at most",
            "nothing",
            "",
            "",
            None,
        )

    def _after(self, what: str, change: Callable[[int], list[Change]], runs: int = RUNS) -> Row:
        spent, written = [], 0
        for run in range(runs):
            changes = change(run)
            took, stages = _timed(lambda changes=changes: list(self._compiler.stages(self._state, changes)))
            spent.append(took)
            written = max(written, sum(len(stage.subjects) + len(stage.rows) for stage in stages))
        median = statistics.median(spent)
        ours = f"{median:.2f} ms of CPU, {written} rows"
        return Row(
            f"{what}: what changes of them", ours, f"all: {self._full_ms:.0f} ms", f"{median / self._full_ms:.4f}", "", None
        )

    def new_identity(self) -> Row:
        """One that a policy of this node selects."""

        def change(run: int) -> list[Change]:
            labels = identity_labels(CLUSTER, "shop", {}, {"app": f"app{run % PEERS}", "run": str(run)}, "")
            return self._write([IdentityAllocated(CLUSTER_ID << 16 | 9_000 + run, labels)])

        return self._after("one new identity", change)

    def changed_policy(self) -> Row:
        """One of this node, with another port each time."""
        return self._after("one changed policy", lambda run: self._write([_numbered(1, 8000 + run)]))

    def relabelled_namespace(self) -> Row:
        """A hundred endpoints of the node take new identities."""

        def change(run: int) -> list[Change]:
            wanted = [("shop", {"team": f"t{run}"}, {"app": f"app{app}"}, "") for app in range(100)]
            labels = [identity_labels(CLUSTER, *each) for each in wanted]
            numbers = [CLUSTER_ID << 16 | 10_000 + run * 100 + app for app in range(100)]
            changes = self._write(IdentityAllocated(*each) for each in zip(numbers, labels, strict=True))
            moved = zip(range(1, 101), labels, numbers, strict=True)
            return changes + self._write(EndpointRelabelled(NODE, *each) for each in moved)

        return self._after("one relabelled namespace of 100 endpoints of the node", change, 3)


def _timed(call: Callable[[], Any]) -> tuple[float, Any]:
    """Milliseconds of CPU, and the answer."""
    gc.collect()
    start = time.process_time()
    answer = call()
    return (time.process_time() - start) * 1000, answer


def _cidrs() -> Row:
    """The design's row: prefixes that let in, and as many that keep out."""
    state = State()
    listed = list(world(1, 0, 1))
    inside = [f"11.{number >> 8}.{number & 255}.0/24" for number in range(CIDRS)]
    outside = [f"11.{number >> 8}.{number & 255}.128/25" for number in range(CIDRS)]
    spec = {"ingress": [{"fromCIDR": inside}], "ingressDeny": [{"fromCIDR": outside}]}
    listed.append(Written("operator", (_policy("cidrs", {"endpointSelector": {"matchLabels": {"app": "app0"}}, **spec}),)))
    for record in records(iter(listed)):
        state.apply(record)
    assert not state.refused_count, state.refused_events
    spent, (_, rows) = _timed(lambda: PolicyCompiler().full(state, CLUSTER, NODE))
    return Row(
        f"{CIDRS:,} CIDR rules with {CIDRS:,} deny rules to rows",
        f"{spent:.0f} ms of CPU, {len(rows):,} rows",
        "Cilium (Go): 75 ms",
        f"{spent / 75:.1f}",
        "< 300 ms",
        spent < 300,
    )
