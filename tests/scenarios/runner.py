"""Runs a scenario: a text of steps, each with what it leads to indented below it. Returns the text as it should be.

  # ...                                     a comment
  follow <cluster>/<node>                   from here on, show how this node's rows change
  given <cluster>/<writer> <Event> f=json   an event in the log, right or forged
  ask <cluster>/<writer> <Command> f=json   a command: its events, its claims, or why it is rejected

Fields are those of the Python types, their values JSON; a value within a type is an array. Rows appear as
"+ table key -> row" when they are there or changed, "- table key" when they are gone.

Belongs here: reading steps, and writing outcomes for people. Does not belong here: any rule of the mesh.
"""

import json
from collections.abc import Iterable, Iterator
from typing import Any

import msgspec

from controlplane.codec import encode
from controlplane.commands.decide import DECISIONS, Author, decide
from controlplane.commands.types import Decision
from controlplane.desired.derive import Deriver
from controlplane.events import EVENTS, Batch, Event
from controlplane.projections.state import State
from datapath.codec import address_text, prefix_text
from datapath.tables import NO_ADDRESS
from kvstore.types import Record, Revision, Want

EVENT_TYPES: dict[str, Any] = {event.__name__: event for event in EVENTS}
COMMAND_TYPES: dict[str, Any] = {command.__name__: command for command in DECISIONS}
INDENT = "  "
CLAIMED = {Want.TAKEN: "take", Want.HELD: "hold", Want.FREED: "give back"}


class Scenario:
    """The mesh of one scenario while its steps run."""

    def __init__(self) -> None:
        self._state = State()
        self._derivers: dict[str, Deriver] = {}
        self._tables: dict[str, dict[str, dict[Any, Any]]] = {}
        self._revision = 0

    def run(self, text: str) -> str:
        """The text with the outcomes of this run. Raises ValueError for a line that is no step."""
        lines: list[str] = []
        for line in text.splitlines():
            if line.startswith(INDENT):
                continue
            lines.append(line)
            if line and not line.startswith("#"):
                lines += [INDENT + outcome for outcome in self._step(line)]
        return "\n".join(lines) + "\n"

    def _step(self, line: str) -> list[str]:
        verb, _, rest = line.partition(" ")
        if verb == "follow":
            return self._follow(rest)
        place, _, rest = rest.partition(" ")
        cluster, _, writer = place.partition("/")
        name, _, fields = rest.partition(" ")
        if verb == "given":
            return self._append(cluster, writer, (event_of(name, read_fields(fields)),))
        if verb == "ask":
            return self._ask(Author(cluster, writer), msgspec.convert(read_fields(fields), COMMAND_TYPES[name]))
        raise ValueError(f"{line!r}: a step begins with given, ask or follow")

    def _follow(self, place: str) -> list[str]:
        self._derivers[place] = Deriver(*place.split("/"))
        full = self._derivers[place].full(self._state)
        self._tables[place] = {name: dict(rows) for name, rows in full.tables.items()}
        return [
            row_text(place, name, key, row) for name, rows in full.tables.items() for key, row in sorted(rows.items())
        ]

    def _ask(self, author: Author, command: Any) -> list[str]:
        decision = decide(self._state, author, command)
        if not isinstance(decision, Decision):
            return [f"rejected {decision.field + ': ' if decision.field else ''}{decision.reason}"]
        if not decision.events:
            return ["already so"]
        lines = [f"event {event_text(event)}" for event in decision.events]
        lines += [f"claim {CLAIMED[claim.want]} {claim.key}" for claim in decision.claims]
        return lines + self._append(*author, decision.events)

    def _append(self, cluster: str, writer: str, events: tuple[Event, ...]) -> list[str]:
        self._revision += 1
        refused = self._state.refused_count
        sequence = self._state.sequences.get(f"{cluster}/{writer}", 0) + 1
        payload = encode(Batch(1, 0, 0, events))
        changes = self._state.apply(Record(Revision(self._revision), cluster, writer, sequence, 1, payload))
        count = self._state.refused_count - refused
        lines = [
            f"refused: {each.reason}" for each in self._state.refused_events[len(self._state.refused_events) - count :]
        ]
        for place, deriver in self._derivers.items():
            desired = deriver.update(self._state, [changes])
            for name, rows in desired.tables.items():
                lines += self._changed(place, name, rows)
        return lines

    def _changed(self, place: str, name: str, rows: Any) -> Iterator[str]:
        held = self._tables[place][name]
        for key, row in sorted(rows.items()):
            if held.get(key) != row:
                yield row_text(place, name, key, row)
            if row is None:
                held.pop(key, None)
            else:
                held[key] = row


def read_fields(text: str) -> dict[str, Any]:
    """`a=1 b=["x"]` as a dict. Raises ValueError."""
    fields: dict[str, Any] = {}
    decoder = json.JSONDecoder()
    while text:
        name, equals, text = text.partition("=")
        if not equals:
            raise ValueError(f"{name!r}: right is field=json")
        fields[name.strip()], end = decoder.raw_decode(text)
        text = text[end:].lstrip()
    return fields


def event_of(name: str, fields: dict[str, Any]) -> Event:
    """An event by the names of its fields; those at the end may be left to their defaults."""
    kind = EVENT_TYPES[name]
    values = [fields.pop(field, None) for field in kind.__struct_fields__]
    if fields:
        raise ValueError(f"{name} has no field {', '.join(fields)}")
    while values and values[-1] is None:
        values.pop()
    event: Event = msgspec.convert([name, *values], kind)
    return event


def event_text(event: Event) -> str:
    """The event's name and the fields that are not its defaults."""
    shown = []
    for field in msgspec.structs.fields(event):
        value = getattr(event, field.name)
        if field.required or value != (field.default_factory() if callable(field.default_factory) else field.default):
            shown.append(f"{field.name}={msgspec.json.encode(value, order='sorted').decode()}")
    return " ".join([type(event).__name__, *shown])


def row_text(place: str, table: str, key: Any, row: Any) -> str:
    """One line for a row that is there, or that is gone."""
    if row is None:
        return f"{place} - {table} {fields_text(key)}"
    return f"{place} + {table} {fields_text(key)} -> {fields_text(row)}"


def fields_text(row: Any) -> str:
    """Names and values, with addresses and MACs as people write them."""
    values = row._asdict()
    if "prefix_length" in values:
        values = {"prefix": prefix_text(values["prefix_length"], values["address"])}
    return " ".join(f"{name}={_value_text(value)}" for name, value in values.items())


def _value_text(value: Any) -> str:
    if not isinstance(value, bytes):
        return str(value)
    if len(value) == len(NO_ADDRESS):
        return "none" if value == NO_ADDRESS else address_text(value)
    return ":".join(_pairs(value.hex()))


def _pairs(digits: str) -> Iterable[str]:
    return (digits[place : place + 2] for place in range(0, len(digits), 2))
