"""Commands about policies: the manifest has been understood before it comes here (policy/manifests.py). Pure."""

import msgspec

from controlplane.commands.types import Author, Decision, Rejection
from controlplane.events import PolicyApplied, PolicyRemoved
from controlplane.model import ObjectKey
from controlplane.projections.state import State


class ApplyPolicy(msgspec.Struct, frozen=True):
    """`manifest` is canonical JSON, `parser` the version of its meaning."""

    kind: str
    namespace: str
    name: str
    manifest: str
    parser: int = 1


class RemovePolicy(msgspec.Struct, frozen=True):
    kind: str
    namespace: str
    name: str


def apply_policy(state: State, author: Author, command: ApplyPolicy) -> Decision | Rejection:
    """Nothing to do when the same manifest is in force under the same parser."""
    known = state.policies.get(ObjectKey(author.cluster, command.kind, command.namespace, command.name))
    if known is not None and (known.manifest, known.parser) == (command.manifest, command.parser):
        return Decision()
    return Decision((PolicyApplied(command.kind, command.namespace, command.name, command.manifest, command.parser),))


def remove_policy(state: State, author: Author, command: RemovePolicy) -> Decision | Rejection:
    """Removing what is not there is done already."""
    if ObjectKey(author.cluster, command.kind, command.namespace, command.name) not in state.policies:
        return Decision()
    return Decision((PolicyRemoved(command.kind, command.namespace, command.name),))
