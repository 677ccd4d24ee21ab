"""From the state of the mesh to what one node's kernel should hold.

Belongs here: which rows a change can reach, and putting the tables together. Does not belong here: the rows
themselves (the other modules of desired/). Pure; it remembers what belongs to the state that was derived last.
"""

from collections.abc import Iterable, Mapping
from itertools import chain
from typing import Any

from controlplane.desired import ipcache
from controlplane.desired.local import LocalTables
from controlplane.desired.policy import PolicyCompiler
from controlplane.desired.policy_bounds import Overflow
from controlplane.desired.services import ServiceCompiler
from controlplane.desired.underlay import next_hops, node_addresses
from controlplane.model import Labels, Node, NodeKey
from controlplane.projections.change import Change
from controlplane.projections.state import State
from datapath import tables as t

NodeStateRows = dict[t.NodeStateKey, t.NodeStateRow]


class Deriver:
    """One node's. `full` comes first; `update` or `turns` then takes every change of the state, none left out."""

    def __init__(self, cluster: str, node: str) -> None:
        self._node = NodeKey(cluster, node)
        self._local = LocalTables(self._node)
        self._services = ServiceCompiler(cluster, node)
        self._policies = PolicyCompiler()
        self._revision = 0

    @property
    def services(self) -> ServiceCompiler:
        """The frontends behind the rows."""
        return self._services

    @property
    def derived_labels(self) -> Mapping[int, Labels]:
        """What the numbers of prefixes, of nodes and of facets stand for."""
        return {**self._policies.prefixes.labels, **self._policies.nodes.labels, **self._policies.facets.labels}

    @property
    def policy_overflow(self) -> list[Overflow]:
        """The identities of the node whose policies are more rows than they may have, in order."""
        return [self._policies.overflow[number] for number in sorted(self._policies.overflow)]

    @property
    def policy_fullness(self) -> float:
        """The largest share that an identity's policies take of the rows that they may have."""
        return self._policies.fullness()

    def full(self, state: State) -> t.Desired:
        """Every row of every table."""
        subjects, policy = self._policies.full(state, *self._node)
        services = self._services.full(state)
        tables = {
            **self._local.full(state, self._services.is_answering),
            "ipcache": ipcache.all_rows(state, self._node, self._policies.numbers),
            **services,
            "facets": self._policies.facets.rows,
            "policy_subjects": subjects,
            "policy": policy,
            "node_state": _node_state(state),
        }
        self._revision = state.revision
        return t.Desired(state.revision, True, {name: tables[name] for name in t.TABLES})

    def update(self, state: State, applied: Iterable[tuple[Change, ...]]) -> t.Desired:
        """Only rows that can have changed, None for those that go. `applied`: what State.apply returned, in order."""
        tables: dict[str, dict[Any, Any]] = {}
        for turn in self.turns(state, applied):
            for name, rows in turn.tables.items():
                tables.setdefault(name, {}).update(rows)
        return t.Desired(state.revision, False, {name: tables[name] for name in t.TABLES if name in tables})

    def turns(self, state: State, applied: Iterable[tuple[Change, ...]]) -> list[t.Desired]:
        """The same in order, each to be realized whole before the next; only with the last is the state's revision
        reached."""
        changes = tuple(chain.from_iterable(applied))
        found = []
        for stage in self._policies.stages(state, changes):
            tables: dict[str, Mapping[Any, Any]] = {}
            addresses: Iterable[str] = ()
            if stage.is_change:
                services = self._services.update(state, changes)
                tables = {**self._local.update(state, changes, self._services.is_answering), **services}
                addresses = self._changed_addresses(state, changes)
            tables["ipcache"] = self._ipcache_rows(state, (*map(ipcache.host_prefix, addresses), *stage.prefixes))
            tables |= {"facets": stage.facets, "policy_subjects": stage.subjects, "policy": stage.rows}
            found.append(tables)
        found[-1]["node_state"] = _node_state(state)
        before, self._revision = self._revision, state.revision
        revisions = [*(before for _ in found[1:]), state.revision]
        return [
            t.Desired(revision, False, {name: tables[name] for name in t.TABLES if tables.get(name)})
            for revision, tables in zip(revisions, found, strict=True)
        ]

    def _ipcache_rows(
        self, state: State, prefixes: Iterable[str]
    ) -> dict[t.IpcacheKey, t.IpcacheRow | None]:
        known = self._policies.numbers
        return {
            ipcache.prefix_key(each): ipcache.prefix_row(state, self._node, each, known)
            for each in dict.fromkeys(prefixes)
        }

    def _changed_addresses(self, state: State, changes: Iterable[Change]) -> Iterable[str]:
        addresses: dict[str, None] = {}
        for change in changes:
            if change.kind == "endpoint":
                for endpoint in (change.old, change.new):
                    if endpoint is not None:
                        addresses[endpoint.ipv4] = addresses[endpoint.ipv6] = None
            elif change.kind == "node":
                addresses.update(_reached_by_node(state, self._node, change))
        addresses.pop("", None)
        return addresses


def _reached_by_node(state: State, own: NodeKey, change: Change) -> dict[str, None]:
    """The addresses whose row a change of a node can reach: its own, its endpoints' where the way there changes, and
    everyone's where the way from here does."""
    if change.key == own and _wraps_otherwise(change.old, change.new):
        return dict.fromkeys((*state.addresses, *(node_addresses(change.old) if change.old else ())))
    addresses: dict[str, None] = {}
    for node in (change.old, change.new):
        if node is not None:
            addresses.update(dict.fromkeys(node_addresses(node)))
    if change.old is not None and change.new is not None and _is_reached_otherwise(change.old, change.new):
        for endpoint in state.endpoints_of(change.key):
            addresses[endpoint.ipv4] = addresses[endpoint.ipv6] = None
    return addresses


def _wraps_otherwise(old: Node | None, new: Node | None) -> bool:
    """Only a node with a tunnel reaches others by way of its own facts."""
    tunnels = [node.tunnel if node else None for node in (old, new)]
    addresses = [node.addresses if node else () for node in (old, new)]
    return tunnels[0] != tunnels[1] or (tunnels[0] is not None and addresses[0] != addresses[1])


def _is_reached_otherwise(old: Node, new: Node) -> bool:
    return next_hops(old) != next_hops(new) or old.tunnel != new.tunnel


def _node_state(state: State) -> NodeStateRows:
    """No row while nothing has set an epoch: of the kernel's array a row of zeros counts as absent."""
    return {t.NodeStateKey(0): t.NodeStateRow(state.policy_epoch)} if state.policy_epoch else {}
