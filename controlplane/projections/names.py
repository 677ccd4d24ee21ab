"""Names in events, checked in one place for every kind of event, before its own projection sees it. Pure.

Belongs here: what no name of the mesh may hold, since names stand in keys, in tables and on terminals. Does not belong
here: what a kind of name means.
"""

from collections.abc import Callable, Mapping, Sequence
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
_PLACES: Mapping[type[Any], tuple[tuple[int, bool], ...]] = {
    event: tuple((event.__struct_fields__.index(field), field not in NEVER_EMPTY) for field in fields)
    for event, fields in NAMED_BY.items()
}
"""Which of an event's fields are names, and whether each may be empty."""


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


def are_names(kind: type[Any], columns: Sequence[Sequence[Any]]) -> bool:
    """Whether `name_fault` finds nothing in any of several events of one kind, given field by field."""
    return all(_are_names(columns[place], may_be_empty) for place, may_be_empty in _PLACES[kind])


def _are_names(texts: Sequence[str], may_be_empty: bool) -> bool:
    whole = "".join(texts)
    return (
        whole.isprintable()
        and "/" not in whole
        and max(map(len, texts)) <= NAME_CHARS_MAX
        and (may_be_empty or "" not in texts)
    )


def _fault(field: str, text: str) -> str:
    if not text:
        return f"{field} is empty" if field in NEVER_EMPTY else ""
    if len(text) > NAME_CHARS_MAX or not text.isprintable() or "/" in text:
        shown = text[:NAME_CHARS_MAX]
        return f"{field} {shown!r}: a name has at most {NAME_CHARS_MAX} printable characters and no /"
    return ""
