"""The stored form of a batch of events: msgpack, one array per event with its tag first.

Belongs here: bytes to events and back, and what becomes of an event of a newer version. Does not belong here: what an
event changes. An old schema version is read through an upcaster, so that history written by any version stays readable.
"""

from collections.abc import Callable, Mapping
from functools import reduce
from operator import or_
from typing import Any

import msgspec

from controlplane.events import EVENTS, SCHEMA_VERSION, Batch, Event, Unknown


class MalformedBatch(ValueError):
    """A payload that is no batch of events: what is wrong with it."""


_AnyEvent: Any = reduce(or_, EVENTS)
_FAULTS = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
"""What decoding raises for bytes that are no msgpack, hold no text where text must be, or nest without end."""


class _Stored(msgspec.Struct, frozen=True, array_like=True):
    schema_version: int
    time_ns: int
    cause: int
    events: tuple[_AnyEvent, ...]


class _StoredRaw(msgspec.Struct, frozen=True, array_like=True):
    schema_version: int
    time_ns: int
    cause: int
    events: tuple[msgspec.Raw, ...]


class _Version(msgspec.Struct, frozen=True, array_like=True):
    schema_version: int


_decode = msgspec.msgpack.Decoder(_Stored).decode
_decode_raw = msgspec.msgpack.Decoder(_StoredRaw).decode
_decode_version = msgspec.msgpack.Decoder(_Version).decode
_decode_event = msgspec.msgpack.Decoder(_AnyEvent).decode
_decode_any = msgspec.msgpack.Decoder().decode
_encode = msgspec.msgpack.Encoder().encode
_TAGS = frozenset(event.__name__ for event in EVENTS)

UPCASTERS: Mapping[int, Callable[[bytes], bytes]] = {}
"""From a schema version to the payload of the version after it. Version 1 is the first."""


def encode(batch: Batch) -> bytes:
    """The payload of a record. An Unknown event goes back exactly as it came."""
    events: list[Any] = [msgspec.Raw(event.raw) if isinstance(event, Unknown) else event for event in batch.events]
    return _encode((batch.schema_version, batch.time_ns, batch.cause, events))


def decode(payload: bytes) -> Batch:
    """The batch of a record. Raises MalformedBatch."""
    try:
        stored = _decode(payload)
    except _FAULTS:
        return _decode_slowly(payload)
    if stored.schema_version != SCHEMA_VERSION:
        return _decode_slowly(payload)
    return Batch(stored.schema_version, stored.time_ns, stored.cause, stored.events)


def _decode_slowly(payload: bytes) -> Batch:
    """Event by event: one of another version, or one that is malformed, must not hide the others."""
    try:
        version = _decode_version(payload).schema_version
        while version in UPCASTERS:
            payload = UPCASTERS[version](payload)
            version += 1
        if version < SCHEMA_VERSION:
            raise MalformedBatch(f"schema version {version} is not known; the first is 1")
        raw = _decode_raw(payload)
    except _FAULTS as error:
        raise MalformedBatch(f"payload is no batch of events: {error}") from None
    return Batch(raw.schema_version, raw.time_ns, raw.cause, tuple(_event(bytes(each)) for each in raw.events))


def _event(raw: bytes) -> Event | Unknown:
    try:
        parts = _decode_any(raw)
    except _FAULTS as error:
        raise MalformedBatch(f"event is not msgpack: {error}") from None
    if not isinstance(parts, list) or not parts or not isinstance(parts[0], str):
        raise MalformedBatch("event is not an array that begins with its tag")
    if parts[0] not in _TAGS:
        return Unknown(parts[0], raw)
    try:
        return _decode_event(raw)  # type: ignore[no-any-return]
    except _FAULTS as error:
        raise MalformedBatch(f"{parts[0]}: {error}") from None
