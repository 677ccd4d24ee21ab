"""Names in events, checked in one place for every kind of event, before its own projection sees it. Pure.

Belongs here: what no name of the mesh may hold, since names stand in keys, in tables and on terminals. Does not belong
here: what a kind of name means.
"""

from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from operator import attrgetter
from typing import Any

from controlplane.events import EVENTS

NAME_CHARS_MAX = 253
"""As in Kubernetes, where the longest names are those of DNS."""
FIELDS = ("kind", "namespace", "name", "node", "workload", "interface")
NEVER_EMPTY = ("kind", "name")
NAMED_BY: Mapping[type[Any], tuple[str, ...]] = {
    event: tuple(name for name in event.__struct_fields__ if name in FIELDS) for event in EVENTS
}
_TEXTS: Mapping[type[Any], Callable[[Any], tuple[str, ...]]] = {
    # The first field twice: of one field alone attrgetter gives no tuple.
    event: attrgetter(*fields, fields[0])
    for event, fields in NAMED_BY.items()
    if fields
}


def name_fault(event: Any) -> str:
    """Which field of an event is no name, and why; "" if all are. Every event passes here, so the usual case is short.
    """
    texts = _TEXTS.get(type(event))
    if texts is None:
        return ""
    found = texts(event)
    whole = "".join(found)
    if len(whole) <= NAME_CHARS_MAX and "" not in found and whole.isprintable() and "/" not in whole:
        return ""
    return next((fault for field in NAMED_BY[type(event)] if (fault := _fault(field, getattr(event, field)))), "")


def are_names(events: Sequence[Any]) -> bool:
    """Whether `name_fault` finds nothing in any of several events of one kind, asked of all at once."""
    kind = type(events[0])
    texts = _TEXTS.get(kind)
    if texts is None:
        return True
    found = list(chain.from_iterable(map(texts, events)))
    whole = "".join(found)
    return (
        max(map(len, found)) <= NAME_CHARS_MAX
        and whole.isprintable()
        and "/" not in whole
        and all(all(map(attrgetter(field), events)) for field in NEVER_EMPTY if field in NAMED_BY[kind])
    )


def _fault(field: str, text: str) -> str:
    if not text:
        return f"{field} is empty" if field in NEVER_EMPTY else ""
    if len(text) > NAME_CHARS_MAX or not text.isprintable() or "/" in text:
        shown = text[:NAME_CHARS_MAX]
        return f"{field} {shown!r}: a name has at most {NAME_CHARS_MAX} printable characters and no /"
    return ""
