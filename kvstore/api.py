"""The door of this room: what a log and its sessions promise. memory.py and etcd.py keep it, under one suite.

Belongs here: the Protocols and what each call promises. Does not belong here: any implementation.
"""

from collections.abc import AsyncIterator, Sequence
from typing import Protocol

from kvstore.types import Bookmark, Claim, Position, Record, Revision, Session, Stored


class EventLog(Protocol):
    """One ordered log shared by all clusters of a mesh."""

    async def open_session(self, cluster: str, writer: str) -> Session:
        """Take the writer's place. Any earlier session of the same writer is fenced from now on.

        Raises LogUnavailable. The lease is kept alive until `close_session`; its loss shows as `Fenced` on
        append.
        """
        ...

    async def close_session(self, session: Session) -> None:
        """Give the place back at once instead of waiting for the lease to run out. Never raises."""
        ...

    async def append(self, session: Session, payload: bytes, claims: Sequence[Claim] = ()) -> Revision:
        """Store one batch, exactly once, and return its revision.

        An unknown outcome is resolved inside: the same transaction is sent again until its fate is known or
        the deadline passes (LogUnavailable; a later append of the same session first settles the one in
        doubt). Appends of one session are sent one at a time, in call order. Raises Fenced, ClaimConflict,
        LogFull, PayloadTooLarge, LogUnavailable.
        """
        ...

    async def head(self) -> Revision:
        """The revision of the store now. Raises LogUnavailable."""
        ...

    async def position(self) -> Position:
        """The position of a reader that holds everything up to now: `follow` it to see only what comes.

        Raises LogUnavailable.
        """
        ...

    def read(self, after: Position, through: Revision | None = None) -> AsyncIterator[Record]:
        """Records of all clusters after `after`, up to `through` (or the head at the start), in order, once.

        Raises SequenceGap, HistoryTruncated, LogRewound, LogUnavailable.
        """
        ...

    def follow(self, after: Position) -> AsyncIterator[Record | Bookmark]:
        """Every record after `after`, for ever, in order, once: catch up by range, then watch.

        A Bookmark follows the catch-up, and comes again when the log stays quiet. Disconnects are ridden out:
        the iterator raises LogUnavailable only if it never got through; it raises SequenceGap,
        HistoryTruncated and LogRewound as `read` does.
        """
        ...

    async def put(self, key: str, value: bytes, session: Session | None = None) -> Revision:
        """Overwrite one key of the side tables ("report/east/n1"); with a session, bound to its lease."""
        ...

    async def acquire(self, session: Session, duty: str) -> bool:
        """Take a cluster-wide duty if it is free (or already ours). True if this session holds it now."""
        ...

    async def list(self, prefix: str) -> Sequence[Stored]:
        """The side-table keys below `prefix`, in key order."""
        ...

    async def close(self) -> None:
        """Stop keepalives and close connections. Never raises."""
        ...


class LogStatus(Protocol):
    """What `status` shows of a log connection. Kept as plain attributes, never computed by I/O."""

    endpoints: Sequence[str]
    connected: bool
    unavailable_since: float | None
    last_error: str
    reconnects: int
    cluster_id: int
    """The store's own id, for Position.cluster_id; 0 before the first answer."""
    refused: int
    """Records dropped because they were malformed or carried an old fencing token."""
    holes: int
    """Records that came out of sequence, those that a second look repaired among them."""
