"""Identities: numbers of label sets, and how many endpoints use each. Pure.

Belongs here: allocation, release, and since which revision a number has no user. Does not belong here: choosing a
number (commands/identity.py).
"""

from typing import TYPE_CHECKING

from controlplane.events import IdentityAllocated, IdentityReleased
from controlplane.labels import identity_fault
from controlplane.model import IDENTITY_BITS, IDENTITY_N_MAX, IDENTITY_N_MIN, Identity
from controlplane.projections.change import Change
from kvstore.types import Record

if TYPE_CHECKING:
    from controlplane.projections.state import State

OPERATOR = "operator"
N_MASK = (1 << IDENTITY_BITS) - 1


def identity_allocated(state: "State", record: Record, event: IdentityAllocated, changes: list[Change]) -> str:
    number, cluster_name = event.number, record.cluster
    known = state.identities.get(number)
    new = Identity(number, event.labels, cluster_name)
    if known == new:
        return ""
    if known is not None:
        return f"number {number} has other labels already: {','.join(known.labels)}"
    cluster = state.clusters.get(cluster_name)
    if cluster is None or number >> IDENTITY_BITS != cluster.cluster_id:
        return f"number {number} is not of cluster {cluster_name}"
    if not IDENTITY_N_MIN <= number & N_MASK <= IDENTITY_N_MAX:
        return f"number {number}: its low 16 bits must be at least {IDENTITY_N_MIN}"
    same = state.identity_numbers.get((cluster_name, event.labels))
    if same is not None:
        return f"these labels have the number {same}"
    fault = identity_fault(cluster_name, event.labels)
    if fault:
        return fault
    state.identities[number] = new
    state.identity_numbers[cluster_name, event.labels] = number
    state.identity_unused_since[number] = record.revision
    state.last_identity[cluster_name] = number
    changes.append(Change("identity", number, None, new))
    return ""


def identity_released(state: "State", record: Record, event: IdentityReleased, changes: list[Change]) -> str:
    if record.writer != OPERATOR:
        return f"only {OPERATOR} may write it"
    old = state.identities.get(event.number)
    if old is None:
        return ""
    if old.cluster != record.cluster:
        return f"number {event.number} is cluster {old.cluster}'s"
    if state.identity_users.get(event.number):
        return f"number {event.number} has {state.identity_users[event.number]} endpoints"
    del state.identities[event.number]
    del state.identity_numbers[old.cluster, old.labels]
    state.identity_unused_since.pop(event.number, None)
    changes.append(Change("identity", event.number, old, None))
    return ""


def use_identity(state: "State", number: int) -> None:
    """One endpoint more has it."""
    if number in state.identity_users:
        state.identity_users[number] += 1
    else:
        state.identity_users[number] = 1
        state.identity_unused_since.pop(number, None)


def drop_identity(state: "State", record: Record, number: int) -> None:
    """One endpoint less has it; the last one leaves the revision behind."""
    count = state.identity_users[number] - 1
    if count:
        state.identity_users[number] = count
    else:
        del state.identity_users[number]
        state.identity_unused_since[number] = record.revision
