"""What a changed set of policies would newly allow or deny: flows that really happened, and pairs that may meet. Pure.

Belongs here: the mesh with the change in it, and judging both meshes. Does not belong here: what a verdict is
(policy/verdict.py), what was recorded (flows.py), which pairs are looked at (pairs.py).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from controlplane.codec import encode
from controlplane.commands.addresses import ApplyCidrGroup, RemoveCidrGroup
from controlplane.commands.decide import decide
from controlplane.commands.policy import ApplyPolicy, RemovePolicy
from controlplane.commands.types import Author, Rejection
from controlplane.desired.policy_inputs import policy_settings
from controlplane.desired.policy_mesh import mesh_of
from controlplane.events import SCHEMA_VERSION, Batch
from controlplane.history.flows import DENY, FlowRow, FlowSummary, Side
from controlplane.history.nearest import port_text
from controlplane.history.pairs import PairChange, Pairs, compare_pairs, deciding
from controlplane.history.records import time_text
from controlplane.kubernetes_objects import command_of, name_of, removal_of
from controlplane.model import RESERVED_IDENTITIES, ObjectKey
from controlplane.policy.mesh import End, FlowFault, Judge, Mesh, MeshEndpoint
from controlplane.policy.verdict import Verdict
from controlplane.projections.state import State
from datapath.abi.types import IDENTITY_SCOPE_NODE, IDENTITY_SCOPE_SHIFT

WRITER = "operator"
COMMANDS = (ApplyPolicy, RemovePolicy, ApplyCidrGroup, RemoveCidrGroup)
NODES = tuple(RESERVED_IDENTITIES[name] for name in ("host", "remote-node", "kube-apiserver"))


class PolicyChange(msgspec.Struct, frozen=True):
    """One manifest, or one policy that the given set leaves out. `action`: created, configured, unchanged, deleted,
    absent, rejected, or "passed over" (no policy, so nothing here depends on it)."""

    kind: str
    namespace: str
    name: str
    action: str
    reason: str = ""


class FlowChange(msgspec.Struct, frozen=True):
    """A recorded flow that would get another verdict. `recorded`: what became of it then: allow, deny or both."""

    source: str
    target: str
    port: str
    recorded: str
    before: str
    after: str
    by: list[str]
    count: int
    first: str
    last: str
    nodes: list[str]


class WhatIf(msgspec.Struct, frozen=True):
    """`flows_not_kept`: connections and packets that nodes saw and did not keep; `flows_not_judged`: recorded flows of
    which an end is not known any more. `pairs_not_compared`: beyond the bound. `notes`: what the answer leaves open."""

    revision: int
    time: str
    since: str
    policies: list[PolicyChange]
    flows: list[FlowChange]
    flows_judged: int
    flows_not_judged: int
    flows_not_kept: int
    pairs: list[PairChange]
    pairs_compared: int
    pairs_not_compared: int
    notes: list[str]

    @property
    def refused(self) -> bool:
        """Whether a manifest cannot be taken: then nothing is compared."""
        return any(each.action == "rejected" for each in self.policies)


class Asked(msgspec.Struct, frozen=True):
    """`documents` as `apply` takes them; `removal`: as `delete` does. `replace`: they are the cluster's whole set."""

    cluster: str
    documents: Sequence[Any]
    removal: bool = False
    replace: bool = False


def what_if(
    state: State, time_ns: int, asked: Asked, summaries: Sequence[FlowSummary], since_ns: int, until_ns: int
) -> WhatIf:
    """Flows last seen since `since_ns` and first seen until `until_ns`, and pairs, in the state and with the change."""
    after, policies = changed(state, asked)
    rejected = any(each.action == "rejected" for each in policies)
    meshes = mesh_of(state, asked.cluster), mesh_of(after, asked.cluster)
    judges = Judge(meshes[0]), Judge(meshes[1])
    flows = _Flows(state, meshes[0], judges)
    pairs = Pairs()
    if not rejected:
        for summary in summaries:
            flows.take(summary, since_ns, until_ns)
        flows.judge()
        pairs = compare_pairs(meshes, judges)
    return WhatIf(
        revision=state.revision,
        time=time_text(time_ns),
        since=time_text(since_ns),
        policies=policies,
        flows=flows.changes,
        flows_judged=flows.judged,
        flows_not_judged=flows.not_judged,
        flows_not_kept=sum(each.not_kept for each in summaries),
        pairs=pairs.changes,
        pairs_compared=pairs.compared,
        pairs_not_compared=pairs.not_compared,
        notes=_notes(state, summaries, since_ns),
    )


def _notes(state: State, summaries: Sequence[FlowSummary], since_ns: int) -> list[str]:
    """Which nodes' flows are missing, in part or whole."""
    notes = []
    known = {(each.cluster, each.node): each for each in summaries}
    silent = ["/".join(key) for key in sorted(state.nodes) if tuple(key) not in known]
    if silent:
        more = f" and {len(silent) - 10} more" if len(silent) > 10 else ""
        notes.append(f"no flows are recorded of node {', '.join(silent[:10])}{more}")
    for each in summaries:
        if each.since_ns > since_ns:
            notes.append(f"node {each.cluster}/{each.node} has recorded flows since {time_text(each.since_ns)} only")
        if each.not_told:
            notes.append(f"node {each.cluster}/{each.node} left {each.not_told} kinds of flow out of what it published")
    return notes


# --- the change ---------------------------------------------------------------------------------------------------


def changed(state: State, asked: Asked) -> tuple[State, list[PolicyChange]]:
    """A copy of the state after the change, and what became of each manifest."""
    after, found = state.copy(), []
    author, settings = Author(asked.cluster, WRITER), policy_settings(state, asked.cluster)
    for document in asked.documents:
        command = removal_of(document) if asked.removal else command_of(document, asked.cluster, settings)
        found.append(_decided(after, author, name_of(document), command))
    if asked.replace:
        named = {name_of(document) for document in asked.documents}
        for key in sorted((*state.policies, *state.cidr_groups)):
            name = (key.kind, key.namespace, key.name)
            if key.cluster == asked.cluster and name not in named:
                found.append(_decided(after, author, name, _removal(state, key)))
    return after, found


def _removal(state: State, key: ObjectKey) -> RemovePolicy | RemoveCidrGroup:
    return RemoveCidrGroup(key.name) if key in state.cidr_groups else RemovePolicy(key.kind, key.namespace, key.name)


def _decided(after: State, author: Author, name: tuple[str, str, str], command: Any) -> PolicyChange:
    if isinstance(command, tuple):
        return PolicyChange(*name, "rejected", "; ".join(str(refusal) for refusal in command))
    if not isinstance(command, COMMANDS):
        return PolicyChange(*name, "passed over")
    decided = decide(after, author, command)
    if isinstance(decided, Rejection):
        field = f"{decided.field}: " if decided.field else ""
        return PolicyChange(*name, "rejected", f"{field}{decided.reason}")
    known = len(after.policies) + len(after.cidr_groups)
    removal = isinstance(command, (RemovePolicy, RemoveCidrGroup))
    if not decided.events:
        return PolicyChange(*name, "absent" if removal else "unchanged")
    payload = encode(Batch(SCHEMA_VERSION, 0, 0, decided.events))
    after.apply(after.next_record(*author, payload))
    if removal:
        return PolicyChange(*name, "deleted")
    return PolicyChange(*name, "created" if len(after.policies) + len(after.cidr_groups) > known else "configured")


# --- recorded flows -----------------------------------------------------------------------------------------------


class _Merged(msgspec.Struct):
    """One flow as all nodes saw it."""

    source: End | None
    target: End | None
    row: FlowRow
    verdicts: dict[str, None]
    counts: dict[bool, int]
    nodes: dict[str, None]


class _Flows:
    """Recorded flows in both meshes."""

    def __init__(self, state: State, mesh: Mesh, judges: tuple[Judge, Judge]) -> None:
        self.changes: list[FlowChange] = []
        self.judged = 0
        self.not_judged = 0
        self._judges = judges
        self._clusters = {cluster.cluster_id: name for name, cluster in state.clusters.items()}
        self._workloads = {f"{each.cluster}:{each.namespace}/{each.name}": each for each in mesh.endpoints}
        self._merged: dict[tuple[Side, Side, int, int], _Merged] = {}

    def take(self, summary: FlowSummary, since_ns: int, until_ns: int) -> None:
        """Rows of one node; the source's node and the target's may both have seen a flow."""
        for row in summary.rows:
            if row.last_ns < since_ns or row.first_ns > until_ns:
                continue
            key = row.key
            place = key.source, key.dest, key.protocol, key.port
            merged = self._merged.get(place)
            if merged is None:
                ends = (
                    self._end(key.source, row.source, summary.labels, summary.node if key.egress else ""),
                    self._end(key.dest, row.dest, summary.labels, "" if key.egress else summary.node),
                )
                merged = self._merged[place] = _Merged(*ends, msgspec.structs.replace(row), {}, {}, {})
            merged.verdicts[key.verdict] = None
            merged.counts[key.egress] = merged.counts.get(key.egress, 0) + row.count
            merged.nodes[f"{summary.cluster}/{summary.node}"] = None
            merged.row.first_ns = min(merged.row.first_ns, row.first_ns)
            merged.row.last_ns = max(merged.row.last_ns, row.last_ns)

    def _end(self, side: Side, name: str, labels: Mapping[int, tuple[str, ...]], node: str) -> End | None:
        """By the labels that it had; addresses, ports and node of a workload that is there still with these labels."""
        if side.address:
            is_node = side.identity in NODES or side.identity >> IDENTITY_SCOPE_SHIFT == IDENTITY_SCOPE_NODE
            if is_node and name.startswith("node:"):
                try:
                    return self._judges[0].end(name)
                except FlowFault:
                    return None
            return self._judges[0].place(side.address)
        known = self._workloads.get(name)
        if known is not None and known.labels == labels.get(side.identity):
            return known
        cluster = self._clusters.get(side.identity >> 16)
        if cluster is None or side.identity not in labels:
            return None
        namespace, _, workload = name.partition(":")[2].partition("/")
        return MeshEndpoint(cluster, namespace, workload, labels[side.identity], (), {}, node)

    def judge(self) -> None:
        """Those whose ends are known."""
        for place in sorted(self._merged):
            merged = self._merged[place]
            if merged.source is None or merged.target is None:
                self.not_judged += 1
                continue
            self.judged += 1
            ends = merged.source, merged.target, place[2], place[3]
            before, after = (judge.between(*ends) for judge in self._judges)
            if before.verdict != after.verdict:
                self.changes.append(_change(merged, before, after))
        self.changes.sort(key=lambda each: (each.after != DENY, -each.count, each.source, each.target, each.port))


def _change(merged: _Merged, before: Verdict, after: Verdict) -> FlowChange:
    row = merged.row
    return FlowChange(
        source=row.source,
        target=row.dest,
        port=port_text(row.key.protocol, row.key.port),
        recorded="both" if len(merged.verdicts) > 1 else next(iter(merged.verdicts)),
        before=before.verdict,
        after=after.verdict,
        by=deciding(before, after),
        count=max(merged.counts.values()),
        first=time_text(row.first_ns),
        last=time_text(row.last_ns),
        nodes=list(merged.nodes),
    )

