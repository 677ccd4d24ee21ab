"""From manifests to commands, and from their outcomes to one result per manifest. Pure.

Belongs here: the words of a result. Does not belong here: what a manifest means (kubernetes_objects.py).
"""

from collections.abc import Sequence
from typing import Any

import msgspec

from controlplane.api.schema import ObjectResult, SourcedDocument
from controlplane.commands.types import Decision, Rejection
from controlplane.desired.policy_inputs import policy_settings
from controlplane.events import Event
from controlplane.kubernetes_objects import command_of, name_of, removal_of
from controlplane.model import ObjectKey
from controlplane.policy.settings import PolicySettings
from controlplane.projections.namespaces import namespace_key
from controlplane.projections.state import State
from controlplane.projections.workloads import workload_key
from controlplane.runtime.writer import Written


class ReadDocument(msgspec.Struct, frozen=True):
    """A manifest that was read: its command, or None and the result that says why not."""

    command: Any
    result: ObjectResult
    removal: bool
    is_new: bool = False


def read_all(found: Sequence[SourcedDocument], cluster: str, removal: bool, state: State) -> list[ReadDocument]:
    """Under the cluster's settings of policies, by which some say what others may not."""
    settings = policy_settings(state, cluster)
    return [_read(each, cluster, removal, state, settings) for each in found]


def _read(
    found: SourcedDocument, cluster: str, removal: bool, state: State, settings: PolicySettings
) -> ReadDocument:
    """The command of one manifest; every refusal is in the result's reason, the first one's field beside it."""
    kind, namespace, name = name_of(found.document)
    command = removal_of(found.document) if removal else command_of(found.document, cluster, settings)
    if isinstance(command, tuple):
        reason = "; ".join(str(refusal) for refusal in command)
        refused = ObjectResult(
            found.source, kind, namespace, name, False, False, "rejected", reason, command[0].field
        )
        return ReadDocument(None, refused, removal)
    unchanged = ObjectResult(found.source, kind, namespace, name, True, False, "unchanged")
    return ReadDocument(command, unchanged, removal, not _is_known(state, cluster, kind, namespace, name))


def _is_known(state: State, cluster: str, kind: str, namespace: str, name: str) -> bool:
    """Whether the mesh has something of this kind and name."""
    if kind == "Namespace":
        return namespace_key(cluster, name) in state.namespaces
    if kind == "Pod":
        return workload_key(cluster, namespace, name) in state.workloads
    key = ObjectKey(cluster, kind, namespace, name)
    return key in state.services or key in state.backend_slices or key in state.policies


def result(item: ReadDocument, outcome: Decision | Written | Rejection) -> ObjectResult:
    """What a command came to."""
    if isinstance(outcome, Rejection):
        return msgspec.structs.replace(
            item.result, accepted=False, action="rejected", reason=outcome.reason, field=outcome.field
        )
    return msgspec.structs.replace(
        item.result, changed=bool(outcome.events), action=_action(item, outcome.events)
    )


def _action(item: ReadDocument, events: tuple[Event, ...]) -> str:
    if item.removal:
        return "deleted" if events else "absent"
    if not events:
        return "unchanged"
    return "created" if item.is_new else "configured"
