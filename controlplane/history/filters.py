"""Which records of the log a person wants to see. Pure.

Belongs here: matching a readable record. Does not belong here: reading the log, points in time (points.py).
"""

from collections.abc import Mapping
from typing import Any

import msgspec

from controlplane.api.schema import LogRecord

OBJECT_FIELDS = ("name", "workload", "service", "endpoint_id", "number", "identity", "ipv4", "ipv6", "container_id")


class RecordFilter(msgspec.Struct, frozen=True):
    """"" and None stand for any. `kind`: an event's name or its beginning, in any case ("endpoint", "PolicyApplied").

    `object`: "name" or "namespace/name" of what an event is about. `cause`: the revision that led to the record.
    """

    kind: str = ""
    object: str = ""
    namespace: str = ""
    writer: str = ""
    cluster: str = ""
    node: str = ""
    cause: int | None = None

    def matches(self, record: LogRecord) -> bool:
        """What is said of an event must hold of one and the same event of the record."""
        if self.cluster and record.cluster != self.cluster:
            return False
        if self.writer and self.writer not in (record.writer, record.writer.removeprefix("node.")):
            return False
        if self.cause is not None and record.cause != self.cause:
            return False
        if not (self.kind or self.object or self.namespace or self.node):
            return True
        return any(self._about(record, event) for event in record.events)

    def _about(self, record: LogRecord, event: Mapping[str, Any]) -> bool:
        if self.kind and not str(event["event"]).lower().startswith(self.kind.lower()):
            return False
        if self.namespace and event.get("namespace") != self.namespace:
            return False
        if self.node and self.node not in (event.get("node"), record.writer.removeprefix("node.")):
            return False
        return not self.object or self._names(event)

    def _names(self, event: Mapping[str, Any]) -> bool:
        namespace, slash, name = self.object.partition("/")
        if slash and event.get("namespace") != namespace:
            return False
        wanted = name if slash else namespace
        kind = str(event["event"])
        if (kind.startswith("Namespace") and wanted == event.get("namespace")) or (
            kind.startswith(("Node", "AddressBlock")) and wanted == event.get("node")
        ):
            return True
        return any(str(event[field]) == wanted for field in OBJECT_FIELDS if event.get(field))
