"""Local redirects, and what backends were judged to be. Belongs here: their events and the checks on them. Pure."""

from typing import TYPE_CHECKING

import msgspec

from controlplane.addresses import is_address
from controlplane.events import BackendStateSet, LocalRedirectApplied, LocalRedirectRemoved
from controlplane.model import BackendState, LocalRedirect, ObjectKey
from controlplane.projections.change import Change
from controlplane.projections.services import ports_fault
from controlplane.projections.workloads import PORT_MAX, PROTOCOLS
from kvstore.types import Record

if TYPE_CHECKING:
    from controlplane.projections.state import State

KIND = "CiliumLocalRedirectPolicy"
BACKEND_KIND = "Backend"
ACTIVE, TERMINATING, QUARANTINED, MAINTENANCE = "active", "terminating", "quarantined", "maintenance"
STATES = (ACTIVE, QUARANTINED, MAINTENANCE)
"""That a backend can be judged to be; "terminating" is what its platform says."""


def redirect_key(cluster: str, namespace: str, name: str) -> ObjectKey:
    return ObjectKey(cluster, KIND, namespace, name)


def backend_key(cluster: str, address: str, port: int, protocol: str) -> ObjectKey:
    return ObjectKey(cluster, BACKEND_KIND, "", f"{address} {port}/{protocol}")


def redirect_fault(redirect: LocalRedirectApplied) -> str:
    """What is wrong with a redirect; "" if nothing is."""
    if bool(redirect.address) == bool(redirect.service):
        return "needs an address or a service, and not both"
    if redirect.address and not is_address(redirect.address):
        return f"address {redirect.address!r}: right is for example 169.254.169.254"
    if not redirect.ports or (redirect.address and redirect.all_ports):
        return "needs at least one port, and an address has no ports of its own"
    if not redirect.selector:
        return "a selector needs at least one label"
    return ports_fault(redirect.ports)


def backend_state_fault(event: BackendStateSet) -> str:
    """What is wrong with a judgement; "" if nothing is."""
    if not is_address(event.address):
        return f"address {event.address!r}: right is for example 10.0.0.1 or fd00::1"
    if not 1 <= event.port <= PORT_MAX or event.protocol not in PROTOCOLS:
        return f"port {event.port}/{event.protocol}: right is 1 to {PORT_MAX}, and one of {', '.join(PROTOCOLS)}"
    return "" if event.state in STATES else f"state {event.state!r}: right is {', '.join(STATES)}"


def local_redirect_applied(
    state: "State", record: Record, event: LocalRedirectApplied, changes: list[Change]
) -> str:
    fault = redirect_fault(event)
    if fault:
        return fault
    key = redirect_key(record.cluster, event.namespace, event.name)
    old = state.local_redirects.get(key)
    new = LocalRedirect(record.cluster, *msgspec.structs.astuple(event))
    if old != new:
        state.local_redirects[key] = new
        changes.append(Change("local_redirect", key, old, new))
    return ""


def local_redirect_removed(
    state: "State", record: Record, event: LocalRedirectRemoved, changes: list[Change]
) -> str:
    key = redirect_key(record.cluster, event.namespace, event.name)
    old = state.local_redirects.pop(key, None)
    if old is not None:
        changes.append(Change("local_redirect", key, old, None))
    return ""


def backend_state_set(state: "State", record: Record, event: BackendStateSet, changes: list[Change]) -> str:
    fault = backend_state_fault(event)
    if fault:
        return fault
    key = backend_key(record.cluster, event.address, event.port, event.protocol)
    old = state.backend_states.pop(key, None)
    new = None if event.state == ACTIVE else BackendState(record.cluster, *msgspec.structs.astuple(event))
    if new is not None:
        state.backend_states[key] = new
    if old != new:
        changes.append(Change("backend_state", key, old, new))
    return ""
