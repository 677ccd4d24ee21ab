"""From manifests to commands, and from their outcomes to one result per manifest. Pure.

Belongs here: the words of a result. Does not belong here: what a manifest means (kubernetes_objects.py).
"""

from typing import Any

import msgspec

from controlplane.api.schema import ObjectResult, SourcedDocument
from controlplane.commands.types import Decision, Rejection
from controlplane.events import Event
from controlplane.kubernetes_objects import command_of, name_of, removal_of
from controlplane.runtime.writer import Written


class ReadDocument(msgspec.Struct, frozen=True):
    """A manifest that was read: its command, or None and the result that says why not."""

    command: Any
    result: ObjectResult
    removal: bool


def read(found: SourcedDocument, cluster: str, removal: bool) -> ReadDocument:
    """The command of one manifest; every refusal is in the result's reason, the first one's field beside it."""
    kind, namespace, name = name_of(found.document)
    command = removal_of(found.document) if removal else command_of(found.document, cluster)
    if isinstance(command, tuple):
        reason = "; ".join(str(refusal) for refusal in command)
        refused = ObjectResult(
            found.source, kind, namespace, name, False, False, "rejected", reason, command[0].field
        )
        return ReadDocument(None, refused, removal)
    return ReadDocument(
        command, ObjectResult(found.source, kind, namespace, name, True, False, "unchanged"), removal
    )


def result(item: ReadDocument, outcome: Decision | Written | Rejection) -> ObjectResult:
    """What a command came to."""
    if isinstance(outcome, Rejection):
        return msgspec.structs.replace(
            item.result, accepted=False, action="rejected", reason=outcome.reason, field=outcome.field
        )
    return msgspec.structs.replace(
        item.result, changed=bool(outcome.events), action=_action(item.removal, outcome.events)
    )


def _action(removal: bool, events: tuple[Event, ...]) -> str:
    if removal:
        return "deleted" if events else "absent"
    return "configured" if events else "unchanged"
