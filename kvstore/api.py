"""The door of this room: what a log and its sessions promise. memory.py and etcd.py keep it, under one suite.

Belongs here: the Protocols and what each call promises. Does not belong here: any implementation.
"""

from collections.abc import AsyncIterator, Sequence
from typing import Protocol

from kvstore.types import Bookmark, Claim, Position, Record, Revision, Session, Stored


class LogStatus(Protocol):
    """What `status` shows of a log connection. Plain attributes: reading one does no I/O."""

    @property
    def endpoints(self) -> Sequence[str]:
        """Where the log is, as it was given."""
        ...

    @property
    def connected(self) -> bool:
        """True if the last call or stream got an answer."""
        ...

    @property
    def unavailable_since(self) -> float | None:
        """Wall-clock seconds of the first call without an answer since the last that had one."""
        ...

    @property
    def last_error(self) -> str:
        """The latest failure to reach the store, as text."""
        ...

    @property
    def full_since(self) -> float | None:
        """Wall-clock seconds since when the store refuses writes for lack of space; None: it takes them."""
        ...

    @property
    def reconnects(self) -> int:
        """How often the store came back after it was away."""
        ...

    @property
    def cluster_id(self) -> int:
        """The store's own id, for Position.cluster_id; 0 before the first answer."""
        ...

    @property
    def refused(self) -> int:
        """Records dropped because they were malformed or carried an old fencing token."""
        ...

    @property
    def last_refused(self) -> str:
        """Which was the latest of them, and why."""
        ...

    @property
    def holes(self) -> int:
        """Records that came out of sequence, those that a second look repaired among them."""
        ...


class EventLog(LogStatus, Protocol):
    """One ordered log shared by all clusters of a mesh, and how it is reached."""

    async def open_session(self, cluster: str, writer: str) -> Session:
        """Take the writer's place. Any earlier session of the same writer is fenced from now on.

        Raises LogUnavailable. The lease is kept alive until `close_session`; its loss shows as `Fenced` on
        append.
        """
        ...

    async def close_session(self, session: Session) -> None:
        """Give the place back at once instead of waiting for the lease to run out. Never raises."""
        ...

    async def append(
        self, session: Session, payload: bytes, claims: Sequence[Claim] = (), *, known: int = 0
    ) -> Revision:
        """Store one batch, exactly once, and return its revision.

        `known` is the last sequence of this writer that the decision has seen: a store that holds less was put back to
        a backup, and takes nothing that was decided before (LogRewound).

        An unknown outcome is resolved inside: the same transaction is sent again until its fate is known or
        the deadline passes (LogUnavailable; a later append of the same session first settles the one in
        doubt). Appends of one session are sent one at a time, in call order. Raises Fenced, ClaimConflict,
        LogFull, LogRewound, PayloadTooLarge, LogUnavailable.
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

    async def put(
        self, key: str, value: bytes, session: Session | None = None, *, lasting: bool = False
    ) -> Revision:
        """Overwrite one key of the side tables ("report/east/n1"); with a session, if that holds its place still, and
        bound to its lease unless `lasting`. Raises Fenced, LogFull, LogUnavailable."""
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
