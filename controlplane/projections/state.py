"""The state of the mesh, folded from the log. Pure.

Belongs here: the dicts, the one mutator `apply` with its two halves, saving and loading. Not here: what a kind of event
changes (the other modules of projections/), decisions (commands/), rows (desired/).

A function of the log alone: no order of insertion shows in what is asked for, saved or derived. An event that its
writer may not write, or that contradicts the state, is refused, remembered, and changes nothing.
"""

from collections.abc import Callable, Mapping, Sequence
from hashlib import blake2b
from itertools import groupby
from typing import Any

import msgspec
from msgspec import msgpack
from msgspec.structs import astuple

from controlplane import events as e
from controlplane.addresses import Span, span_of
from controlplane.codec import MalformedBatch, decode
from controlplane.model import (
    API_SERVER_SERVICE,
    BackendSlice,
    BackendState,
    BalancerPool,
    CidrGroup,
    Cluster,
    Endpoint,
    EndpointKey,
    Identity,
    LocalRedirect,
    Namespace,
    Node,
    NodeKey,
    ObjectKey,
    Policy,
    ResolvedName,
    Service,
    Workload,
)
from controlplane.projections import (
    addresses,
    balancer_pools,
    clusters,
    endpoints,
    identities,
    namespaces,
    nodes,
    policies,
    redirects,
    services,
    workloads,
)
from controlplane.projections.change import Change, RefusedEvent
from controlplane.projections.names import are_names, name_fault
from kvstore.types import Position, Record, Revision

REFUSED_EVENTS_MAX = 256
"""Refusals kept for people to read; more are counted."""

STATE_FORMAT = 1

Projection = Callable[["State", Record, Any, list[Change]], str]
"""Applies one event, or says why it is refused; then nothing has changed."""

PROJECTIONS: Mapping[type[Any], Projection] = {
    e.ClusterJoined: clusters.cluster_joined,
    e.ClusterLeft: clusters.cluster_left,
    e.NodeJoined: nodes.node_joined,
    e.AddressBlockAssigned: nodes.address_block_assigned,
    e.NodeLeft: nodes.node_left,
    e.NamespaceLabelled: namespaces.namespace_labelled,
    e.NamespaceRemoved: namespaces.namespace_removed,
    e.WorkloadApplied: workloads.workload_applied,
    e.WorkloadRemoved: workloads.workload_removed,
    e.IdentityAllocated: identities.identity_allocated,
    e.IdentityReleased: identities.identity_released,
    e.EndpointCreated: endpoints.endpoint_created,
    e.EndpointRelabelled: endpoints.endpoint_relabelled,
    e.EndpointConfigured: endpoints.endpoint_configured,
    e.EndpointDeleted: endpoints.endpoint_deleted,
    e.ServiceApplied: services.service_applied,
    e.ServiceRemoved: services.service_removed,
    e.BackendsReported: services.backends_reported,
    e.BackendsWithdrawn: services.backends_withdrawn,
    e.BackendStateSet: redirects.backend_state_set,
    e.LocalRedirectApplied: redirects.local_redirect_applied,
    e.LocalRedirectRemoved: redirects.local_redirect_removed,
    e.BalancerPoolApplied: balancer_pools.pool_applied,
    e.BalancerPoolRemoved: balancer_pools.pool_removed,
    e.PolicyApplied: policies.policy_applied,
    e.PolicyRemoved: policies.policy_removed,
    e.CIDRGroupApplied: addresses.cidr_group_applied,
    e.CIDRGroupRemoved: addresses.cidr_group_removed,
    e.NameResolved: addresses.name_resolved,
    e.NameExpired: addresses.name_expired,
    e.SettingsChanged: addresses.settings_changed,
}

BULK_PROJECTIONS: Mapping[type[Any], Callable[["State", Record, Any, list[Change]], bool | None]] = {
    e.WorkloadApplied: workloads.workloads_applied,
    e.EndpointCreated: endpoints.endpoints_created,
}
"""Of the kinds that come in long runs: applies several events of one batch at once, given field by field, and says
whether a policy or ipcache row can change; or nothing, and says None."""

EPOCH_KINDS = frozenset(
    ("cluster", "node", "namespace", "identity", "endpoint", "policy", "cidr_group", "name", "settings")
)
"""Changes of these kinds can change a policy or ipcache row of some node, so they move the policy epoch."""


class StateDamaged(ValueError):
    """Saved bytes that cannot be used: damaged, of another format, or without events that are understood now."""


class Nouns(msgspec.Struct, array_like=True):
    """What the mesh is, each kind in the order of its keys; no revision in it."""

    clusters: list[Cluster]
    nodes: list[Node]
    last_created: list[tuple[NodeKey, tuple[str, str]]]
    namespaces: list[Namespace]
    workloads: list[Workload]
    identities: list[Identity]
    last_identity: list[tuple[str, int]]
    endpoints: list[Endpoint]
    services: list[Service]
    backend_slices: list[BackendSlice]
    policies: list[Policy]
    cidr_groups: list[CidrGroup] = []
    resolved_names: list[ResolvedName] = []
    policy_settings: list[tuple[str, str]] = []
    local_redirects: list[LocalRedirect] = []
    backend_states: list[BackendState] = []
    balancer_pools: list[BalancerPool] = []


def no_nouns() -> Nouns:
    """Of an empty mesh; whoever has it may fill it."""
    return Nouns([], [], [], [], [], [], [], [], [], [], [])


class _Saved(msgspec.Struct, array_like=True):
    state_format: int
    revision: int
    store_id: int
    sequences: dict[str, int]
    policy_epoch: int
    unknown_tags: dict[str, int]
    refused_count: int
    refused_events: list[RefusedEvent]
    identity_unused_since: list[tuple[int, int]]
    content: Nouns
    policy_revisions: list[tuple[ObjectKey, int]] = []


_encode = msgpack.Encoder(order="sorted").encode
_decode = msgpack.Decoder(_Saved).decode


class State:
    """Read the dicts freely, change them only by `apply`. Values are immutable; copies are cheap."""

    def __init__(self) -> None:
        self.revision = 0
        self.store_id = 0
        """etcd's own id, for `position`: whoever reads the log sets it, since no record tells."""
        self.sequences: dict[str, int] = {}
        self.policy_epoch = 0
        """Revision of the last record that could change a policy or ipcache row of any node."""
        self.policy_revisions: dict[ObjectKey, int] = {}
        """Of the record that last changed each policy."""
        self.unknown_tags: dict[str, int] = {}
        self.refused_count = 0
        self.refused_events: list[RefusedEvent] = []

        self.clusters: dict[str, Cluster] = {}
        self.nodes: dict[NodeKey, Node] = {}
        self.namespaces: dict[ObjectKey, Namespace] = {}
        self.workloads: dict[ObjectKey, Workload] = {}
        self.identities: dict[int, Identity] = {}
        self.endpoints: dict[EndpointKey, Endpoint] = {}
        self.services: dict[ObjectKey, Service] = {}
        self.backend_slices: dict[ObjectKey, BackendSlice] = {}
        self.policies: dict[ObjectKey, Policy] = {}
        self.cidr_groups: dict[ObjectKey, CidrGroup] = {}
        self.resolved_names: dict[ObjectKey, ResolvedName] = {}
        self.policy_settings: dict[str, str] = {}
        """By cluster, canonical JSON; absent where all are the defaults."""
        self.local_redirects: dict[ObjectKey, LocalRedirect] = {}
        self.backend_states: dict[ObjectKey, BackendState] = {}
        """Only those that are not active."""
        self.balancer_pools: dict[ObjectKey, BalancerPool] = {}

        self.last_created: dict[NodeKey, tuple[str, str]] = {}
        """For each node, ipv4 and ipv6 of the endpoint created last, or "": where the search for free ones goes on."""
        self.last_identity: dict[str, int] = {}
        """By cluster, the number given out last."""
        self.identity_unused_since: dict[int, int] = {}
        """The revision from which on a number has no endpoint."""

        self.pod_spans: dict[str, tuple[Span, ...]] = {}
        self.block_spans: dict[NodeKey, tuple[Span, ...]] = {}
        self.block_heads: dict[str, NodeKey] = {}
        """First three octets, when all addresses that begin so are in a node's block: a cache, for replay."""
        self.blocks: dict[str, NodeKey] = {}
        self.addresses: dict[str, EndpointKey | NodeKey] = {}
        """Who has an address: endpoints, and nodes with their own and their router's."""
        self.node_endpoints: dict[NodeKey, dict[EndpointKey, None]] = {}
        self.attachments: dict[tuple[str, str, str, str], EndpointKey] = {}
        """By cluster, node, container_id and interface."""
        self.workload_endpoints: dict[tuple[str, str, str], tuple[EndpointKey, ...]] = {}
        """By cluster, namespace and workload."""
        self.identity_numbers: dict[tuple[str, tuple[str, ...]], int] = {}
        """By cluster and labels."""
        self.identity_users: dict[int, int] = {}
        self.service_addresses: dict[tuple[str, str], ObjectKey] = {}
        """By cluster and cluster address."""
        self.node_ports: dict[tuple[str, int, str], ObjectKey] = {}
        """By cluster, number and protocol."""
        self.service_twins: dict[tuple[str, str], tuple[ObjectKey, ...]] = {}
        """By namespace and name, the services of that name in all clusters."""
        self.service_slices: dict[ObjectKey, tuple[ObjectKey, ...]] = {}
        self.service_policies: dict[ObjectKey, None] = {}
        """Policies that name services: for them a service can change a policy row."""

    @property
    def position(self) -> Position:
        """How far the log is in this state."""
        return Position(Revision(self.revision), dict(self.sequences), self.store_id, is_record=self.revision > 0)

    @property
    def unknown_events(self) -> int:
        """Events of a newer version: they are in the log and change nothing here."""
        return sum(self.unknown_tags.values())

    def apply(self, record: Record) -> tuple[Change, ...]:
        """Fold one record in; what changed, in order. One at or below `revision` has been: nothing changes."""
        batch = self.begin(record)
        return () if batch is None else self.apply_batch(record, batch)

    def begin(self, record: Record) -> e.Batch | None:
        """Move on to a record; its batch, to be applied now. None: it has been, or it is refused as a whole."""
        if record.revision <= self.revision:
            return None
        self.revision = record.revision
        self.sequences[f"{record.cluster}/{record.writer}"] = record.sequence
        try:
            return decode(record.payload)
        except MalformedBatch as error:
            self._refuse(record, "", str(error))
            return None

    def apply_batch(self, record: Record, batch: e.Batch) -> tuple[Change, ...]:
        """The batch of the record that was begun last; what changed, in order."""
        changes: list[Change] = []
        if len(batch.events) == 1:
            self._apply_event(record, batch.events[0], changes)
            moves = self._move_rows(changes)
        else:
            runs = [self._apply_run(record, kind, list(run), changes) for kind, run in groupby(batch.events, type)]
            moves = any(runs)
        if moves:
            self.policy_epoch = record.revision
        return tuple(changes)

    def _apply_run(self, record: Record, kind: type[Any], events: Sequence[Any], changes: list[Change]) -> bool:
        """Events of one kind; whether a policy or ipcache row can change."""
        bulk = BULK_PROJECTIONS.get(kind) if len(events) > 1 else None
        if bulk is not None:
            columns = list(zip(*map(astuple, events), strict=True))
            moves = bulk(self, record, columns, changes) if are_names(kind, columns) else None
            if moves is not None:
                return moves
        before = len(changes)
        for event in events:
            self._apply_event(record, event, changes)
        return self._move_rows(changes[before:])

    def _apply_event(self, record: Record, event: e.Event | e.Unknown, changes: list[Change]) -> None:
        if isinstance(event, e.Unknown):
            self.unknown_tags[event.tag] = self.unknown_tags.get(event.tag, 0) + 1
            return
        refusal = name_fault(event) or PROJECTIONS[type(event)](self, record, event, changes)
        if refusal:
            self._refuse(record, type(event).__name__, refusal)

    def _move_rows(self, changes: Sequence[Change]) -> bool:
        """Whether a policy or ipcache row can change. Policies see named ports, what `toServices` stands for, and who
        the API server is, too."""
        for change in changes:
            kind = change.kind
            if kind == "workload":
                old, new = change.old, change.new
                if (old.ports if old else workloads.NO_PORTS) != (new.ports if new else workloads.NO_PORTS):
                    return True
            elif kind in EPOCH_KINDS or self._is_seen_by_policies(change):
                return True
        return False

    def _is_seen_by_policies(self, change: Change) -> bool:
        if change.kind == "backends" and any(
            each and (each.namespace, each.service) == API_SERVER_SERVICE for each in (change.old, change.new)
        ):
            return True
        return change.kind in ("service", "backends") and bool(self.service_policies)

    def _refuse(self, record: Record, event: str, reason: str) -> None:
        self.refused_count += 1
        self.refused_events.append(RefusedEvent(record.revision, record.cluster, record.writer, event, reason))
        if len(self.refused_events) > REFUSED_EVENTS_MAX:
            del self.refused_events[0]

    def endpoints_of(self, node: NodeKey) -> tuple[Endpoint, ...]:
        """A node's endpoints, by endpoint_id."""
        return tuple(self.endpoints[key] for key in sorted(self.node_endpoints.get(node, ())))

    def endpoint_of(self, cluster: str, node: str, container_id: str, interface: str) -> Endpoint | None:
        """The endpoint of an attachment."""
        key = self.attachments.get((cluster, node, container_id, interface))
        return None if key is None else self.endpoints[key]

    def forget_objects(self, cluster: str, changes: list[Change]) -> None:
        """Everything of a cluster that its platform declared."""
        for key in sorted(key for key in self.services if key.cluster == cluster):
            services.remove_service(self, key, changes)
        for key in sorted(key for key in self.backend_slices if key.cluster == cluster):
            services.remove_slice(self, key, changes)
        self._forget("policy", self.policies, cluster, changes)
        self.service_policies = {key: None for key in self.service_policies if key.cluster != cluster}
        self.policy_revisions = {key: held for key, held in self.policy_revisions.items() if key.cluster != cluster}
        self._forget("local_redirect", self.local_redirects, cluster, changes)
        self._forget("backend_state", self.backend_states, cluster, changes)
        self._forget("balancer_pool", self.balancer_pools, cluster, changes)
        self._forget("cidr_group", self.cidr_groups, cluster, changes)
        self._forget("name", self.resolved_names, cluster, changes)
        settings = self.policy_settings.pop(cluster, None)
        if settings is not None:
            changes.append(Change("settings", cluster, settings, None))
        self._forget("workload", self.workloads, cluster, changes)
        self._forget("namespace", self.namespaces, cluster, changes)

    def _forget(self, kind: Any, held: dict[ObjectKey, Any], cluster: str, changes: list[Change]) -> None:
        for key in sorted(key for key in held if key.cluster == cluster):
            changes.append(Change(kind, key, held.pop(key), None))

    def next_record(self, cluster: str, writer: str, payload: bytes) -> Record:
        """What a writer's next batch would be if nothing came before it: to ask a copy what would follow."""
        sequence = self.sequences.get(f"{cluster}/{writer}", 0) + 1
        return Record(Revision(self.revision + 1), cluster, writer, sequence, 0, payload)

    def copy(self) -> "State":
        """Another state that can be changed without this one."""
        new = State.__new__(State)
        for name, value in vars(self).items():
            setattr(new, name, value.copy() if isinstance(value, (dict, list)) else value)
        new.node_endpoints = {key: held.copy() for key, held in self.node_endpoints.items()}
        return new

    def digest(self) -> str:
        """Of what the mesh is, whatever way it came about: 64 hexadecimal digits."""
        return blake2b(_encode(self._content()), digest_size=32).hexdigest()

    def save(self) -> bytes:
        """The same state gives the same bytes."""
        return _encode(
            _Saved(
                STATE_FORMAT,
                self.revision,
                self.store_id,
                self.sequences,
                self.policy_epoch,
                self.unknown_tags,
                self.refused_count,
                self.refused_events,
                sorted(self.identity_unused_since.items()),
                self._content(),
                sorted(self.policy_revisions.items()),
            )
        )

    def _content(self) -> Nouns:
        def values(held: Mapping[Any, Any]) -> list[Any]:
            return [held[key] for key in sorted(held)]

        return Nouns(
            values(self.clusters),
            values(self.nodes),
            sorted(self.last_created.items()),
            values(self.namespaces),
            values(self.workloads),
            values(self.identities),
            sorted(self.last_identity.items()),
            values(self.endpoints),
            values(self.services),
            values(self.backend_slices),
            values(self.policies),
            values(self.cidr_groups),
            values(self.resolved_names),
            sorted(self.policy_settings.items()),
            values(self.local_redirects),
            values(self.backend_states),
            values(self.balancer_pools),
        )

    @classmethod
    def load(cls, saved: bytes) -> "State":
        """The state that was saved. Raises StateDamaged, a ValueError."""
        try:
            found = _decode(saved)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise StateDamaged(f"no saved state: {error}") from None
        if found.state_format != STATE_FORMAT:
            raise StateDamaged(f"saved in format {found.state_format}; this version reads {STATE_FORMAT}")
        known = {event.__name__ for event in e.EVENTS}
        learned = sorted(tag for tag in found.unknown_tags if tag in known)
        if learned:
            raise StateDamaged(f"saved by a version that did not know {', '.join(learned)}; fold the log again")
        state = cls()
        state.revision, state.store_id = found.revision, found.store_id
        state.sequences, state.policy_epoch = found.sequences, found.policy_epoch
        state.unknown_tags = found.unknown_tags
        state.policy_revisions = dict(found.policy_revisions)
        state.refused_count, state.refused_events = found.refused_count, found.refused_events
        try:
            state._hold(found.content)
        except KeyError as error:
            raise StateDamaged(f"the saved state lacks {error}") from None
        state.identity_unused_since = dict(found.identity_unused_since)
        return state

    @classmethod
    def of(cls, nouns: Nouns) -> "State":
        """A state without a log. Nothing is checked: whoever made the nouns has. Raises KeyError for a reference that
        is not there."""
        state = cls()
        state._hold(nouns)
        return state

    def _hold(self, content: Nouns) -> None:
        for cluster in content.clusters:
            self.clusters[cluster.name] = cluster
            self.pod_spans[cluster.name] = tuple(span for span in map(span_of, cluster.pod_cidrs) if span)
        for node in content.nodes:
            self._hold_node(NodeKey(node.cluster, node.name), node)
        self.last_created = dict(content.last_created)
        self.namespaces = {namespaces.namespace_key(each.cluster, each.name): each for each in content.namespaces}
        for workload in content.workloads:
            key = workloads.workload_key(workload.cluster, workload.namespace, workload.name)
            self.workloads[key] = workload
        for identity in content.identities:
            self.identities[identity.number] = identity
            self.identity_numbers[identity.cluster, identity.labels] = identity.number
        self.last_identity = dict(content.last_identity)
        for endpoint in content.endpoints:
            endpoint_key = EndpointKey(endpoint.cluster, endpoint.node, endpoint.endpoint_id)
            self.node_endpoints[NodeKey(endpoint.cluster, endpoint.node)][endpoint_key] = None
            endpoints.hold_endpoint(self, endpoint_key, endpoint)
        for service in content.services:
            service_key = services.service_key(service.cluster, service.namespace, service.name)
            services.hold_service(self, service_key, service)
        for each in content.backend_slices:
            services.hold_slice(self, services.slice_key(each.cluster, each.namespace, each.name), each)
        self.policies = {
            ObjectKey(each.cluster, each.kind, each.namespace, each.name): each for each in content.policies
        }
        self.service_policies = {key: None for key, each in self.policies.items() if policies.names_services(each)}
        self.cidr_groups = {addresses.group_key(each.cluster, each.name): each for each in content.cidr_groups}
        self.resolved_names = {addresses.name_key(each.cluster, each.name): each for each in content.resolved_names}
        self.policy_settings = dict(content.policy_settings)
        for redirect in content.local_redirects:
            self.local_redirects[redirects.redirect_key(redirect.cluster, redirect.namespace, redirect.name)] = redirect
        for judged in content.backend_states:
            self.backend_states[redirects.backend_key(*astuple(judged)[:4])] = judged
        for pool in content.balancer_pools:
            self.balancer_pools[balancer_pools.pool_key(pool.cluster, pool.name)] = pool

    def _hold_node(self, key: NodeKey, node: Node) -> None:
        self.nodes[key] = node
        self.node_endpoints[key] = {}
        for address in node.addresses:
            self.addresses[address] = key
        nodes.hold_blocks(self, key, node)


def rewrite_saved(saved: bytes, rewrite: Callable[[Any], Any]) -> bytes:
    """Saved bytes with the struct in them replaced by what `rewrite` makes of it. Raises msgspec.MsgspecError."""
    return _encode(rewrite(_decode(saved)))
