"""Namespaces and their labels. Belongs here: their two events. Pure."""

from typing import TYPE_CHECKING

from controlplane.events import NamespaceLabelled, NamespaceRemoved
from controlplane.model import Namespace, ObjectKey
from controlplane.projections.change import Change
from kvstore.types import Record

if TYPE_CHECKING:
    from controlplane.projections.state import State

KIND = "Namespace"


def namespace_key(cluster: str, name: str) -> ObjectKey:
    return ObjectKey(cluster, KIND, "", name)


def namespace_labelled(state: "State", record: Record, event: NamespaceLabelled, changes: list[Change]) -> str:
    key = namespace_key(record.cluster, event.namespace)
    old, new = state.namespaces.get(key), Namespace(record.cluster, event.namespace, event.labels)
    if old != new:
        state.namespaces[key] = new
        changes.append(Change("namespace", key, old, new))
    return ""


def namespace_removed(state: "State", record: Record, event: NamespaceRemoved, changes: list[Change]) -> str:
    key = namespace_key(record.cluster, event.namespace)
    old = state.namespaces.pop(key, None)
    if old is not None:
        changes.append(Change("namespace", key, old, None))
    return ""
