"""Policies as their authors wrote them. Belongs here: their two events; not what they mean (policy/). Pure."""

from typing import TYPE_CHECKING

from controlplane.events import PolicyApplied, PolicyRemoved
from controlplane.model import ObjectKey, Policy
from controlplane.projections.change import Change
from kvstore.types import Record

if TYPE_CHECKING:
    from controlplane.projections.state import State


def policy_applied(state: "State", record: Record, event: PolicyApplied, changes: list[Change]) -> str:
    key = ObjectKey(record.cluster, event.kind, event.namespace, event.name)
    old = state.policies.get(key)
    new = Policy(record.cluster, event.kind, event.namespace, event.name, event.manifest, event.parser)
    if old != new:
        state.policies[key] = new
        changes.append(Change("policy", key, old, new))
    return ""


def policy_removed(state: "State", record: Record, event: PolicyRemoved, changes: list[Change]) -> str:
    key = ObjectKey(record.cluster, event.kind, event.namespace, event.name)
    old = state.policies.pop(key, None)
    if old is not None:
        changes.append(Change("policy", key, old, None))
    return ""
