"""Commands about local redirects and judged backends. Pure."""

import msgspec

from controlplane.commands.types import Author, Decision, Rejection
from controlplane.events import BackendStateSet, LocalRedirectApplied, LocalRedirectRemoved
from controlplane.model import LocalRedirect, ServicePort
from controlplane.projections.redirects import (
    ACTIVE,
    backend_key,
    backend_state_fault,
    redirect_fault,
    redirect_key,
)
from controlplane.projections.state import State


class ApplyLocalRedirect(msgspec.Struct, frozen=True):
    """A CiliumLocalRedirectPolicy: `address` or `service` is the frontend, `selector` chooses the workloads."""

    namespace: str
    name: str
    address: str
    service: str
    ports: tuple[ServicePort, ...]
    selector: dict[str, str]
    all_ports: bool = False


class RemoveLocalRedirect(msgspec.Struct, frozen=True):
    namespace: str
    name: str


class SetBackendState(msgspec.Struct, frozen=True):
    """`state`: active, quarantined or maintenance."""

    address: str
    port: int
    protocol: str
    state: str


def apply_local_redirect(state: State, author: Author, command: ApplyLocalRedirect) -> Decision | Rejection:
    event = LocalRedirectApplied(*msgspec.structs.astuple(command))
    fault = redirect_fault(event)
    if fault:
        return Rejection(fault, "spec")
    known = state.local_redirects.get(redirect_key(author.cluster, command.namespace, command.name))
    if known == LocalRedirect(author.cluster, *msgspec.structs.astuple(event)):
        return Decision()
    return Decision((event,))


def remove_local_redirect(state: State, author: Author, command: RemoveLocalRedirect) -> Decision | Rejection:
    """Removing what is not there is done already."""
    if redirect_key(author.cluster, command.namespace, command.name) not in state.local_redirects:
        return Decision()
    return Decision((LocalRedirectRemoved(command.namespace, command.name),))


def set_backend_state(state: State, author: Author, command: SetBackendState) -> Decision | Rejection:
    """Nothing to do while it is in that state. A backend that is not there yet may be judged too; each cluster judges
    its own, for services of all."""
    event = BackendStateSet(*msgspec.structs.astuple(command))
    fault = backend_state_fault(event)
    if fault:
        return Rejection(fault)
    holder = state.addresses.get(command.address)
    if holder is not None and holder.cluster != author.cluster:
        reason = f"{command.address} is of cluster {holder.cluster}; ask one of its agents, or its operator"
        return Rejection(reason, "address")
    known = state.backend_states.get(backend_key(author.cluster, command.address, command.port, command.protocol))
    if (known.state if known else ACTIVE) == command.state:
        return Decision()
    return Decision((event,))
