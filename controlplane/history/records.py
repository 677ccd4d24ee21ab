"""A record of the log as a person reads it. Pure.

Belongs here: records to the API's LogRecord. Does not belong here: reading the log, printing.
"""

from datetime import UTC, datetime
from typing import Any

import msgspec

from controlplane import codec
from controlplane.api.schema import LogRecord
from controlplane.events import Event, Unknown
from kvstore.types import Record


def log_record(record: Record) -> LogRecord:
    """One record; what cannot be decoded says why, and has no events."""
    try:
        batch = codec.decode(record.payload)
    except ValueError as error:
        return LogRecord(
            record.revision,
            record.cluster,
            record.writer,
            record.sequence,
            "",
            0,
            0,
            [],
            len(record.payload),
            str(error),
        )
    return LogRecord(
        revision=record.revision,
        cluster=record.cluster,
        writer=record.writer,
        sequence=record.sequence,
        time=time_text(batch.time_ns),
        cause=batch.cause,
        schema_version=batch.schema_version,
        events=[event_fields(event) for event in batch.events],
        bytes=len(record.payload),
    )


def event_fields(event: Event | Unknown) -> dict[str, Any]:
    """{"event": NAME, ...fields}."""
    if isinstance(event, Unknown):
        return {"event": event.tag, "unknown": True, "fields": msgspec.msgpack.decode(event.raw)}
    fields = {name: _plain(getattr(event, name)) for name in event.__struct_fields__}
    return {"event": type(event).__name__, **fields}


def _plain(value: Any) -> Any:
    """Structs by their fields' names, though they are stored as arrays."""
    if isinstance(value, msgspec.Struct):
        return {name: _plain(getattr(value, name)) for name in value.__struct_fields__}
    if isinstance(value, (tuple, list)):
        return [_plain(each) for each in value]
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    return value


def time_text(time_ns: int) -> str:
    """RFC 3339 with milliseconds, UTC; "" of 0, which no clock shows: nothing was written yet."""
    if not time_ns:
        return ""
    try:
        moment = datetime.fromtimestamp(time_ns / 1e9, UTC)
    except (OverflowError, ValueError, OSError):
        return str(time_ns)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
