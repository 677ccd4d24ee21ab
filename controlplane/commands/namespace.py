"""Commands about namespaces. Pure."""

import msgspec

from controlplane.commands.types import Author, Decision, Rejection
from controlplane.events import NamespaceLabelled, NamespaceRemoved
from controlplane.projections.namespaces import namespace_key
from controlplane.projections.state import State


class ApplyNamespace(msgspec.Struct, frozen=True):
    """The namespace exists with exactly these labels."""

    namespace: str
    labels: dict[str, str]


class RemoveNamespace(msgspec.Struct, frozen=True):
    namespace: str


def apply_namespace(state: State, author: Author, command: ApplyNamespace) -> Decision | Rejection:
    """Nothing to do when the labels are those known."""
    known = state.namespaces.get(namespace_key(author.cluster, command.namespace))
    if known is not None and known.labels == command.labels:
        return Decision()
    return Decision((NamespaceLabelled(command.namespace, dict(sorted(command.labels.items()))),))


def remove_namespace(state: State, author: Author, command: RemoveNamespace) -> Decision | Rejection:
    """What is in it stays until it is removed itself; it only loses the namespace's labels."""
    if namespace_key(author.cluster, command.namespace) not in state.namespaces:
        return Decision()
    return Decision((NamespaceRemoved(command.namespace),))
