"""Policies as their authors wrote them. Belongs here: their two events; not what they mean (policy/). Pure."""

from typing import TYPE_CHECKING

from controlplane.events import PolicyApplied, PolicyRemoved
from controlplane.model import ObjectKey, Policy
from controlplane.projections.change import Change
from kvstore.types import Record

if TYPE_CHECKING:
    from controlplane.projections.state import State


def names_services(policy: Policy) -> bool:
    """Whether services can be part of what it means: said too often, never too seldom."""
    return '"toServices"' in policy.manifest


def policy_applied(state: "State", record: Record, event: PolicyApplied, changes: list[Change]) -> str:
    key = ObjectKey(record.cluster, event.kind, event.namespace, event.name)
    old = state.policies.get(key)
    new = Policy(record.cluster, event.kind, event.namespace, event.name, event.manifest, event.parser)
    if old != new:
        state.policies[key] = new
        state.policy_revisions[key] = record.revision
        state.service_policies.pop(key, None)
        if names_services(new):
            state.service_policies[key] = None
        changes.append(Change("policy", key, old, new))
    return ""


def policy_removed(state: "State", record: Record, event: PolicyRemoved, changes: list[Change]) -> str:
    key = ObjectKey(record.cluster, event.kind, event.namespace, event.name)
    old = state.policies.pop(key, None)
    if old is not None:
        state.service_policies.pop(key, None)
        state.policy_revisions.pop(key, None)
        changes.append(Change("policy", key, old, None))
    return ""
