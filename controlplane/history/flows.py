"""Flows that really happened, summed up: who reached whom on which port, what became of it, how often and when. Pure.

Belongs here: the sum, its bounds, and its stored form. Does not belong here: reading notifications
(datapath/notifications.py), keeping and publishing the sum (runtime/flows.py), judging it again (what_if.py).

Policies judge by labels, so an end that has an identity of the mesh is kept by its number (with its labels, and one
workload as an example), any other end by its address. Replicas and source ports are summed up, so the sum stays small.
"""

import zlib
from collections.abc import Iterable, Mapping, Sequence
from hashlib import blake2b

import msgspec

from controlplane.model import EndpointKey, Labels, NodeKey
from controlplane.projections.state import State
from datapath.abi.types import (
    NOTIFICATION_DROP,
    NOTIFICATION_VERDICT,
    POLICY_DENIED,
    POLICY_DENY,
    POLICY_EGRESS,
    VERDICT_ALLOW,
    VERDICT_AUDIT,
)
from datapath.codec import address_text
from datapath.notifications import ICMP, Notification

FORMAT = 1
DIGEST_BYTES = 16
COMPRESSION = 6
SUMMARY_BYTES_MAX = 64 * 1024 * 1024
ALLOW, DENY = "allow", "deny"
POLICY_DROPS = (POLICY_DENIED, POLICY_DENY)


class FlowsDamaged(ValueError):
    """Bytes that are no summary of flows, or not what was written."""


class Side(msgspec.Struct, frozen=True, array_like=True, order=True):
    """One end of a flow. `address` "" where the identity is one of the mesh, whose labels the summary has."""

    identity: int
    address: str


class FlowKey(msgspec.Struct, frozen=True, array_like=True, order=True):
    """What one row sums up. `egress`: as the source's policies saw it; else as the destination's did."""

    egress: bool
    source: Side
    dest: Side
    protocol: int
    port: int
    verdict: str


class FlowRow(msgspec.Struct, array_like=True):
    """`count`: connections that were allowed, or packets that were denied. Times are the node's wall clock.

    `source` and `dest` name the last one seen: "cluster:namespace/workload", "node:cluster:name" or "ip:address".
    """

    key: FlowKey
    count: int
    first_ns: int
    last_ns: int
    source: str
    dest: str


class FlowSummary(msgspec.Struct, frozen=True):
    """What one node has seen since `since_ns`. `not_kept`: connections and packets of rows given up for lack of room or
    seen faster than they could be summed; `not_told`: rows that this copy leaves out. `labels`: by identity number."""

    format: int
    cluster: str
    node: str
    since_ns: int
    time_ns: int
    not_kept: int
    not_told: int
    labels: dict[int, Labels]
    rows: list[FlowRow]


class FlowTable:
    """The sum of one node. `rows_max`: rows kept; `age_ns`: how long one is kept that is not seen again.

    `denials`: the kind of notification that a denied packet is counted by, since one packet may have both.
    """

    def __init__(self, rows_max: int, age_ns: int, since_ns: int, denials: int = NOTIFICATION_DROP) -> None:
        self.not_kept = 0
        self._rows_max = rows_max
        self._age_ns = age_ns
        self._since_ns = since_ns
        self._denials = denials
        self._rows: dict[FlowKey, FlowRow] = {}
        self._labels: dict[int, Labels] = {}

    def take(self, state: State, counted: Iterable[tuple[Notification, int]], now_ns: int) -> None:
        """Add what was seen just now. Allowed flows are told once a connection, denied ones once a packet."""
        for told, count in counted:
            verdict = self._verdict(told)
            if not verdict:
                continue
            source, source_name = self._side(state, told.source_identity, told.source)
            dest, dest_name = self._side(state, told.dest_identity, told.dest)
            port = told.dest_port >> 8 if told.protocol in ICMP else told.dest_port
            egress = told.policy_direction == POLICY_EGRESS
            key = FlowKey(egress, source, dest, told.protocol, port, verdict)
            row = self._rows.get(key)
            if row is None:
                self._rows[key] = FlowRow(key, count, now_ns, now_ns, source_name, dest_name)
            else:
                row.count, row.last_ns, row.source, row.dest = row.count + count, now_ns, source_name, dest_name
        if len(self._rows) > self._rows_max:
            self._give_up(now_ns)

    def _verdict(self, told: Notification) -> str:
        if told.type == NOTIFICATION_VERDICT and told.verdict in (VERDICT_ALLOW, VERDICT_AUDIT):
            return ALLOW
        return DENY if told.type == self._denials and told.drop_reason in POLICY_DROPS else ""

    def _side(self, state: State, number: int, address: bytes) -> tuple[Side, str]:
        text = address_text(address)
        holder = state.addresses.get(text)
        name = f"ip:{text}"
        if isinstance(holder, EndpointKey):
            endpoint = state.endpoints[holder]
            name = f"{endpoint.cluster}:{endpoint.namespace}/{endpoint.workload}"
        elif isinstance(holder, NodeKey):
            name = f"node:{holder.cluster}:{holder.node}"
        identity = state.identities.get(number)
        if identity is None:
            return Side(number, text), name
        if self._labels.setdefault(number, identity.labels) != identity.labels:
            self._renumbered(number, identity.labels)
        return Side(number, ""), name

    def _renumbered(self, number: int, labels: Labels) -> None:
        """The number stands for other labels now: what was summed under it is no flow of theirs."""
        self._labels[number] = labels
        for key in [key for key in self._rows if number in (key.source.identity, key.dest.identity)]:
            self.not_kept += self._rows.pop(key).count

    def _give_up(self, now_ns: int) -> None:
        """An eighth more than must go, so that this is rare."""
        self.forget_old(now_ns)
        excess = len(self._rows) - (self._rows_max - self._rows_max // 8)
        if len(self._rows) > self._rows_max:
            for row in sorted(self._rows.values(), key=_worth)[:excess]:
                del self._rows[row.key]
                self.not_kept += row.count

    def forget_old(self, now_ns: int) -> None:
        """What was not seen for the whole age is not history that anybody asks for, and counts as kept."""
        oldest = now_ns - self._age_ns
        for key in [key for key, row in self._rows.items() if row.last_ns < oldest]:
            del self._rows[key]
        self._since_ns = max(self._since_ns, oldest)

    def summary(self, cluster: str, node: str, now_ns: int) -> FlowSummary:
        """A copy, in an order that does not depend on when rows came."""
        rows = [msgspec.structs.replace(self._rows[key]) for key in sorted(self._rows)]
        return FlowSummary(
            FORMAT, cluster, node, self._since_ns, now_ns, self.not_kept, 0, _labels_of(rows, self._labels), rows
        )

    def restore(self, summary: FlowSummary) -> None:
        """Go on from a summary that was kept."""
        self._rows = {row.key: row for row in summary.rows}
        self._labels = dict(summary.labels)
        self._since_ns, self.not_kept = summary.since_ns, summary.not_kept


def _labels_of(rows: Sequence[FlowRow], labels: Mapping[int, Labels]) -> dict[int, Labels]:
    used = {number for row in rows for number in (row.key.source.identity, row.key.dest.identity)}
    return {number: labels[number] for number in sorted(used) if number in labels}


def _worth(row: FlowRow) -> tuple[bool, int, FlowKey]:
    """Least first: what was kept out and has an end outside the mesh (a scan pushes out its own); then by age."""
    outside = bool(row.key.source.address or row.key.dest.address)
    return not (outside and row.key.verdict == DENY), row.last_ns, row.key


def bounded(summary: FlowSummary, bytes_max: int) -> bytes:
    """Its stored form in at most so many bytes: the rows of most worth, and how many are left out."""
    packed = pack(summary)
    if len(packed) <= bytes_max:
        return packed
    rows = sorted(summary.rows, key=_worth, reverse=True)
    kept = len(rows)
    while kept and len(packed) > bytes_max:
        kept = min(kept - 1, kept * bytes_max * 9 // (len(packed) * 10))
        told = sorted(rows[:kept], key=lambda row: row.key)
        packed = pack(msgspec.structs.replace(
            summary, rows=told, labels=_labels_of(told, summary.labels),
            not_told=summary.not_told + len(rows) - kept,
        ))  # fmt: skip
    return packed


def pack(summary: FlowSummary) -> bytes:
    """Compressed, with a digest before it."""
    content = zlib.compress(msgspec.msgpack.encode(summary), COMPRESSION)
    return blake2b(content, digest_size=DIGEST_BYTES).digest() + content


def unpack(packed: bytes) -> FlowSummary:
    """Raises FlowsDamaged."""
    digest, content = packed[:DIGEST_BYTES], packed[DIGEST_BYTES:]
    if blake2b(content, digest_size=DIGEST_BYTES).digest() != digest:
        raise FlowsDamaged("the digest does not match")
    try:
        stream = zlib.decompressobj()
        whole = stream.decompress(content, SUMMARY_BYTES_MAX)
        if stream.unconsumed_tail:
            raise FlowsDamaged(f"more than {SUMMARY_BYTES_MAX} bytes")
        found = msgspec.msgpack.decode(whole, type=FlowSummary)
    except (zlib.error, msgspec.MsgspecError) as error:
        raise FlowsDamaged(f"it cannot be read: {error}") from None
    if found.format != FORMAT:
        raise FlowsDamaged(f"its format is {found.format}, this version reads {FORMAT}")
    return found


def within(summary: FlowSummary, since_ns: int, until_ns: int) -> FlowSummary:
    """Only rows seen in this stretch of time: the last time not before it, the first not after it."""
    rows = [row for row in summary.rows if row.last_ns >= since_ns and row.first_ns <= until_ns]
    return msgspec.structs.replace(summary, rows=rows, labels=_labels_of(rows, summary.labels))
