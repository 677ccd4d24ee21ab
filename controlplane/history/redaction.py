"""A capsule without the names of the mesh that it came from: the same shape, other words. Pure.

Belongs here: which field of a noun, an event, a report holds what. A text field that is not named here becomes a name,
so that one that is added later tells nothing. Does not belong here: the pseudonyms themselves (pseudonyms.py).
"""

from collections.abc import Sequence
from typing import Any

import msgspec

from controlplane import codec
from controlplane.events import Batch, Unknown
from controlplane.history.capsule import Capsule, Report
from controlplane.history.exporting import DIFFERENT, OUTSIDE, NodeCheck, check
from controlplane.history.flows import FlowKey, FlowRow, FlowSummary, Side
from controlplane.history.provenance import Origin, Origins
from controlplane.history.pseudonyms import WITHHELD, Pseudonyms
from controlplane.history.replay import encoded_rows
from controlplane.model import IDENTITY_N_MIN, EndpointKey, NodeKey, ObjectKey
from controlplane.projections.state import State, rewrite_saved
from kvstore.types import Record

ATTEMPTS_MAX = 64
MALFORMED = b"\xc1"
"""The one byte that msgpack never uses: a batch that is as unreadable as the original was."""
NO_DIGEST = "f" * 32

ADDRESS_FIELDS = frozenset(
    ("ipv4", "ipv6", "address", "addresses", "blocks", "pod_cidrs", "service_cidrs", "cluster_ips", "prefixes",
     "last_created", "external_ips", "load_balancer_ips", "source_ranges")
)  # fmt: skip
LABEL_FIELDS = frozenset(("labels", "selector"))
CGROUP_FIELDS = frozenset(("cgroup", "joining_cgroup"))
MAC_FIELDS = frozenset(("mac", "host_mac"))
KEPT_FIELDS = frozenset(
    ("kind", "protocol", "event", "unknown_tags", "routing_mode", "tunnel_protocol", "acceleration")
)
KEPT_OF_NOUNS = frozenset((
    ("Exposure", "type"), ("Exposure", "external_policy"), ("Exposure", "internal_policy"),
    ("Exposure", "distribution"), ("BackendState", "state"), ("BackendStateSet", "state"),
))  # fmt: skip
"""One of a few words each, the same in every mesh."""
DNS_NOUNS = frozenset(("ResolvedName", "NameResolved", "NameExpired"))


class RedactionFailed(ValueError):
    """No key was found under which no address of the mesh stands in the file."""


def redacted(capsule: Capsule, key: bytes) -> Capsule:
    """`key` is secret and for this file only. Raises RedactionFailed, CapsuleDamaged."""
    block_bits = _block_bits(capsule)
    met = Pseudonyms(key, block_bits)
    _redacted(capsule, met)
    for attempt in range(ATTEMPTS_MAX):
        names = Pseudonyms(key + bytes((attempt,)), block_bits, met.names())
        found = _redacted(capsule, names)
        if not names.tells:
            return found
    raise RedactionFailed("the mesh's prefixes leave too few bits to change; export without --redact")


def _block_bits(capsule: Capsule) -> dict[int, int]:
    """By IP version, the length of the shortest block of a node."""
    state = capsule.state()
    lengths: dict[int, int] = {}
    for record in capsule.records:
        state.apply(record)
        _shortest(state, lengths)
    _shortest(state, lengths)
    return lengths


def _shortest(state: State, lengths: dict[int, int]) -> None:
    for cluster in state.clusters.values():
        for prefix, length in zip(cluster.pod_cidrs, cluster.block_prefixes, strict=False):
            version = 6 if ":" in prefix else 4
            lengths[version] = min(length, lengths.get(version, length))


def _redacted(capsule: Capsule, names: Pseudonyms) -> Capsule:
    words = _Words(names)
    saved = State.load(rewrite_saved(capsule.saved, words.struct)).save()
    records = [words.record(record) for record in capsule.records]
    manifest = msgspec.structs.replace(
        capsule.manifest,
        cluster=names.name(capsule.manifest.cluster),
        node=names.name(capsule.manifest.node),
        redacted=True,
    )
    flows = [words.flows(each) for each in capsule.flows]
    bare = Capsule(manifest, saved, words.origins(capsule.origins), records, [], flows)
    return msgspec.structs.replace(bare, reports=_reports(capsule, bare, names))


class _Words:
    """The pseudonyms, put into the nouns and events of the mesh."""

    def __init__(self, names: Pseudonyms) -> None:
        self._names = names

    def struct(self, value: Any) -> Any:
        """Any struct, field by field."""
        kind = type(value)
        return kind(*(self._field(kind.__name__, name, getattr(value, name)) for name in kind.__struct_fields__))

    def record(self, record: Record) -> Record:
        try:
            batch = codec.decode(record.payload)
        except ValueError:
            payload = MALFORMED
        else:
            events = tuple(self._event(event) for event in batch.events)
            payload = codec.encode(Batch(batch.schema_version, batch.time_ns, batch.cause, events))
        names = self._names
        return msgspec.structs.replace(
            record, cluster=names.name(record.cluster), writer=names.writer(record.writer), payload=payload
        )

    def flows(self, summary: FlowSummary) -> FlowSummary:
        """In the order that the new names have."""
        names = self._names
        rows = [
            FlowRow(
                self._flow(row.key), row.count, row.first_ns, row.last_ns, self._end(row.source), self._end(row.dest)
            )
            for row in summary.rows
        ]
        return msgspec.structs.replace(
            summary, cluster=names.name(summary.cluster), node=names.name(summary.node),
            labels={number: tuple(sorted(map(names.label, each))) for number, each in summary.labels.items()},
            rows=sorted(rows, key=lambda row: row.key),
        )  # fmt: skip

    def _flow(self, key: FlowKey) -> FlowKey:
        return msgspec.structs.replace(key, source=self._side(key.source), dest=self._side(key.dest))

    def _side(self, side: Side) -> Side:
        """The identity of a prefix is a hash of it, from which it could be guessed: only reserved numbers stay."""
        if not side.address:
            return side
        return Side(side.identity if side.identity < IDENTITY_N_MIN else 0, self._names.address(side.address))

    def _end(self, text: str) -> str:
        """ "cluster:namespace/workload", "node:cluster:name" or "ip:address"."""
        names, (first, _, rest) = self._names, text.partition(":")
        if first == "ip":
            return f"ip:{names.address(rest)}"
        if first == "node":
            return f"node:{':'.join(map(names.name, rest.split(':')))}"
        return f"{names.name(first)}:{'/'.join(map(names.name, rest.split('/')))}"

    def _event(self, event: Any) -> Any:
        if isinstance(event, Unknown):
            return Unknown(event.tag, msgspec.msgpack.encode([event.tag]))
        return self.struct(event)

    def origins(self, origins: Origins) -> Origins:
        """Of the same things."""
        found = Origins(origins.since)
        for (kind, key), origin in origins.held.items():
            found.held[kind, self._key(kind, key)] = self._origin(origin)
        return found

    def _key(self, kind: str, key: Any) -> Any:
        if isinstance(key, (NodeKey, EndpointKey, ObjectKey)):
            words = {name: self._field(kind, name, each) for name, each in key._asdict().items()}
            if kind == "name":
                words["name"] = self._names.dns(key._asdict()["name"])
            if kind == "backend_state":  # "address port/protocol"
                address, _, rest = key._asdict()["name"].partition(" ")
                words["name"] = f"{self._names.address(address)} {rest}"
            return type(key)(**words)
        return self._names.name(key) if isinstance(key, str) else key

    def _origin(self, origin: Origin) -> Origin:
        names = self._names
        return msgspec.structs.replace(
            origin, cluster=names.name(origin.cluster), writer=names.writer(origin.writer)
        )

    def _field(self, owner: str, name: str, value: Any) -> Any:
        names = self._names
        if name in KEPT_FIELDS or (owner, name) in KEPT_OF_NOUNS or not value or isinstance(value, (int, float)):
            return value
        if name in CGROUP_FIELDS:
            return "/" + names.name(value)
        if name == "reason":
            return WITHHELD
        if name == "writer":
            return names.writer(value)
        if name == "manifest":
            return names.manifest(value)
        if name == "document":
            return names.settings(value)
        if name == "name" and owner in DNS_NOUNS:
            return names.dns(value)
        if name == "sequences":
            return {"/".join(self._writer_of(key)): number for key, number in value.items()}
        if name == "policy_settings":
            return [(names.name(cluster), names.settings(text)) for cluster, text in value]
        if name == "last_created":
            return [(self._plain(owner, "", key), self._plain(owner, "address", found)) for key, found in value]
        if name == "annotations":
            return names.annotations(value)
        if name in LABEL_FIELDS:
            return names.labels(value) if isinstance(value, dict) else tuple(sorted(map(names.label, value)))
        return self._plain(owner, name, value)

    def _writer_of(self, key: str) -> tuple[str, str]:
        cluster, _, writer = key.partition("/")
        return self._names.name(cluster), self._names.writer(writer)

    def _plain(self, owner: str, name: str, value: Any) -> Any:
        """A text by the field that it stands in; lists and mappings item by item."""
        if isinstance(value, str):
            if name in ADDRESS_FIELDS:
                return self._names.address(value)
            return self._names.mac(value) if name in MAC_FIELDS else self._names.name(value)
        if isinstance(value, msgspec.Struct):
            return self.struct(value)
        if isinstance(value, dict):
            return {self._plain(owner, name, key): self._kept_tuple(owner, each) for key, each in value.items()}
        if isinstance(value, tuple) and hasattr(value, "_fields"):
            return type(value)(*(self._plain(owner, name, each) for each in value))
        if isinstance(value, (list, tuple)):
            return type(value)(self._plain(owner, name, each) for each in value)
        return value

    def _kept_tuple(self, owner: str, value: Any) -> Any:
        """The value of a named port is a number and a protocol's name."""
        return value if isinstance(value, tuple) else self._plain(owner, "", value)


def _reports(capsule: Capsule, bare: Capsule, names: Pseudonyms) -> Sequence[Report]:
    """What nodes would have reported of the renamed mesh; a table that differed differs still."""
    results = {(each.cluster, each.node): each for each in check(capsule)}
    found = []
    state, place = bare.state(), 0
    for report in sorted(capsule.reports, key=lambda each: each.realized):
        result = results[report.cluster, report.node]
        while place < len(bare.records) and bare.records[place].revision <= report.realized:
            state.apply(bare.records[place])
            place += 1
        cluster, node = names.name(report.cluster), names.name(report.node)
        digests = {} if result.result == OUTSIDE else encoded_rows(state, cluster, node).digests()
        found.append(msgspec.structs.replace(
            report, cluster=cluster, node=node, digests=_digests(report, result, digests)
        ))  # fmt: skip
    return found


def _digests(report: Report, result: NodeCheck, digests: dict[str, str]) -> dict[str, str]:
    wrong = result.tables if result.result == DIFFERENT else []
    return {table: NO_DIGEST if table in wrong else digests.get(table, NO_DIGEST) for table in report.digests}
