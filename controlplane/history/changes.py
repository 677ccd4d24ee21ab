"""What is other between two states, or what one record did: in the mesh, and in the kernels of nodes. Pure.

Belongs here: comparing. Does not belong here: which states (at.py), printing.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from controlplane.api.schema import RowChange, ThingChange
from controlplane.desired.derive import Deriver
from controlplane.history.rows import row_fields, row_name, thing_fields, thing_name
from controlplane.model import NodeKey
from controlplane.projections.change import Change
from controlplane.projections.state import State
from datapath.tables import Desired
from kvstore.types import Record

KINDS: Mapping[str, str] = {
    "cluster": "clusters", "node": "nodes", "namespace": "namespaces", "workload": "workloads",
    "identity": "identities", "endpoint": "endpoints", "service": "services", "backends": "backend_slices",
    "policy": "policies", "cidr_group": "cidr_groups", "name": "resolved_names", "settings": "policy_settings",
    "local_redirect": "local_redirects", "backend_state": "backend_states", "balancer_pool": "balancer_pools",
}  # fmt: skip
"""Kind of thing -> the state's dict that holds it."""
ADDED, REMOVED, CHANGED = "added", "removed", "changed"

Tables = Mapping[str, Mapping[Any, Any]]


def thing_changes(before: State, after: State) -> list[ThingChange]:
    """Everything that is other in `after`, by kind and name."""
    found = []
    for kind, attribute in KINDS.items():
        old, new = getattr(before, attribute), getattr(after, attribute)
        for key in sorted({*old, *new}):
            if old.get(key) != new.get(key):
                found.append(_thing(kind, key, old.get(key), new.get(key)))
    return found


def row_changes(where: NodeKey, before: Tables, after: Tables) -> list[RowChange]:
    """Every row that is other in `after`, by table and key."""
    found = []
    for table in after:
        old, new = before[table], after[table]
        for key in sorted({*old, *new}):
            if old.get(key) != new.get(key):
                found.append(_row(where, table, key, old.get(key), new.get(key)))
    return found


def node_row_changes(before: State, after: State, where: NodeKey) -> list[RowChange]:
    """Between two states, in one node's kernel."""
    return row_changes(where, Deriver(*where).full(before).tables, Deriver(*where).full(after).tables)


def effects(
    before: State, record: Record, nodes: Iterable[NodeKey]
) -> tuple[list[ThingChange], list[RowChange], list[str]]:
    """What a record did to the state before it: things, rows of these nodes' kernels, and what was refused of it."""
    derivers = [(where, Deriver(*where)) for where in nodes]
    full = [deriver.full(before) for _, deriver in derivers]
    after = before.copy()
    changes = after.apply(record)
    count = after.refused_count - before.refused_count
    refused = after.refused_events[-count:] if count else []
    rows: list[RowChange] = []
    for (where, deriver), desired in zip(derivers, full, strict=True):
        rows += _updated(where, desired, deriver.update(after, [changes]))
    return merged(changes), rows, [str(each) for each in refused]


def merged(changes: Iterable[Change]) -> list[ThingChange]:
    """Each thing once: from before the first of its changes to after the last."""
    first: dict[tuple[str, Any], Any] = {}
    last: dict[tuple[str, Any], Any] = {}
    for change in changes:
        first.setdefault((change.kind, change.key), change.old)
        last[change.kind, change.key] = change.new
    return [_thing(kind, key, first[kind, key], new) for (kind, key), new in last.items() if first[kind, key] != new]


def _updated(where: NodeKey, before: Desired, update: Desired) -> list[RowChange]:
    found = []
    for table, rows in update.tables.items():
        for key in sorted(rows):
            old, new = before.tables[table].get(key), rows[key]
            if old != new:
                found.append(_row(where, table, key, old, new))
    return found


def _thing(kind: str, key: Any, old: Any, new: Any) -> ThingChange:
    before = {} if old is None else thing_fields(old)
    after = {} if new is None else thing_fields(new)
    fields = {
        name: [before.get(name), after.get(name)]
        for name in (after or before)
        if before.get(name) != after.get(name) and (before.get(name) or after.get(name))
    }
    return ThingChange(kind, thing_name(kind, key, old if new is None else new), _kind_of(old, new), fields)


def _row(where: NodeKey, table: str, key: Any, old: Any, new: Any) -> RowChange:
    return RowChange(
        where.cluster, where.node, table, row_name(table, key), _kind_of(old, new),
        None if old is None else row_fields(table, old), None if new is None else row_fields(table, new),
    )  # fmt: skip


def _kind_of(old: Any, new: Any) -> str:
    return ADDED if old is None else REMOVED if new is None else CHANGED
