"""The log that a capsule holds, read as etcd's is.

Belongs here: reading and following it. Does not belong here: the file (capsule.py).
"""

import asyncio
from collections.abc import AsyncIterator, Sequence

import msgspec

from controlplane.history.capsule import Capsule
from kvstore.errors import HistoryTruncated
from kvstore.types import Bookmark, Position, Record, Revision, Stored


class CapsuleLog:
    """The reading part of kvstore.api.EventLog. It ends at the capsule's last record and never grows."""

    def __init__(self, capsule: Capsule) -> None:
        self._capsule = capsule

    async def read(self, after: Position, through: Revision | None = None) -> AsyncIterator[Record]:
        """See EventLog. Before the capsule's begin there is the state only: a reader from nothing gets the records."""
        since = self._capsule.manifest.since
        if 0 < after.revision < since:
            raise HistoryTruncated(since)
        for record in self._capsule.records:
            if record.revision > after.revision and (through is None or record.revision <= through):
                yield record

    async def follow(self, after: Position) -> AsyncIterator[Record | Bookmark]:
        """The records, then nothing, for ever."""
        async for record in self.read(after):
            yield record
        yield Bookmark(Revision(self._capsule.manifest.until))
        await asyncio.Event().wait()

    async def list(self, prefix: str) -> Sequence[Stored]:
        """The reports."""
        until = Revision(self._capsule.manifest.until)
        found = [(f"report/{each.cluster}/{each.node}", each) for each in self._capsule.reports]
        return [Stored(key, msgspec.json.encode(each), until) for key, each in sorted(found) if key.startswith(prefix)]
