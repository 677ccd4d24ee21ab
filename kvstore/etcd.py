"""The log in etcd: the EventLog that the product runs on.

Belongs here: the door object that joins writer, reader, side tables and status. Does not belong here: the
append transaction and sessions (etcd_writer.py), catch-up and watch (etcd_reader.py), channels
(etcd_client.py).
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

from kvstore import etcd_reader, keys
from kvstore import rpc_pb2 as rpc
from kvstore.append import check_claims
from kvstore.archives import Archives, Finder
from kvstore.errors import Fenced, LogError, PayloadTooLarge
from kvstore.etcd_catchup import head_position
from kvstore.etcd_client import PUT, RANGE, TLS, TXN, Client, Limits, Login
from kvstore.etcd_retention import Retention
from kvstore.etcd_writer import Seat, created, first, get, put, take_seat
from kvstore.types import BATCH_BYTES_MAX, Bookmark, Claim, Position, Record, Revision, Session, Stored
from kvstore.watch import Tally

DEFAULT_LIMITS = Limits()


class EtcdLog:
    """An EventLog and a LogStatus over one etcd, of one or more members."""

    def __init__(self, client: Client, archive: Path | None = None, find: Finder | None = None) -> None:
        """Use `connect`."""
        self._client = client
        self._directory = archive
        self._archive = Archives(archive, find)
        self._seats: dict[Session, Seat] = {}
        self._tally = Tally()

    @classmethod
    async def connect(
        cls,
        endpoints: Sequence[str],
        *,
        tls: TLS | None = None,
        limits: Limits = DEFAULT_LIMITS,
        archive: Path | None = None,
        login: Login | None = None,
    ) -> "EtcdLog":
        """A log over these endpoints: "unix:/path", "host:port", "http://host:port" or "https://host:port".

        `archive` is the directory in which records are found that etcd has no more: readers do not notice.

        Nothing is sent before the first call. Raises ValueError on a malformed endpoint, OSError on an
        unreadable TLS file.
        """
        return cls(Client(endpoints, tls, limits, login), archive)

    def reaching(self, find: Finder) -> "EtcdLog":
        """The same store, for readers of old history: missing segments are looked for where `find` says."""
        return EtcdLog(self._client, self._directory, find)

    @property
    def endpoints(self) -> Sequence[str]:
        """As given to `connect`."""
        return self._client.endpoints

    @property
    def connected(self) -> bool:
        """True if the last call or stream got an answer."""
        return self._client.connected

    @property
    def unavailable_since(self) -> float | None:
        """Wall-clock seconds of the first call without an answer since the last that had one."""
        return self._client.unavailable_since

    @property
    def last_error(self) -> str:
        """The latest failure to reach etcd, as text."""
        return self._client.last_error

    @property
    def full_since(self) -> float | None:
        """Wall-clock seconds since when etcd refuses writes for lack of space; None: it takes them."""
        return self._client.full_since

    @property
    def reconnects(self) -> int:
        """How often etcd came back after it was away."""
        return self._client.reconnects

    @property
    def cluster_id(self) -> int:
        """etcd's own id, for Position.cluster_id; 0 before the first call had an answer."""
        return self._client.cluster_id

    @property
    def refused(self) -> int:
        """Records that were malformed, or under a fencing token older than one seen before."""
        return self._tally.refused

    @property
    def last_refused(self) -> str:
        """Which was the latest of them, and why."""
        return self._tally.last_refused

    @property
    def holes(self) -> int:
        """Records that came out of sequence; those that a range repaired are counted too."""
        return self._tally.holes

    async def open_session(self, cluster: str, writer: str) -> Session:
        """See EventLog. Raises ValueError on a malformed name."""
        seat = await take_seat(self._client, cluster, writer)
        self._seats[seat.session] = seat
        return seat.session

    async def close_session(self, session: Session) -> None:
        """See EventLog."""
        seat = self._seats.pop(session, None)
        if seat is not None:
            await seat.close()

    async def append(
        self, session: Session, payload: bytes, claims: Sequence[Claim] = (), *, known: int = 0
    ) -> Revision:
        """See EventLog. Raises ValueError on malformed claims."""
        if len(payload) > BATCH_BYTES_MAX:
            raise PayloadTooLarge(f"payload of {len(payload)} bytes: at most {BATCH_BYTES_MAX}")
        check_claims(claims)
        seat = self._seats.get(session)
        if seat is None:
            raise Fenced(f"session of {session.cluster}/{session.writer} was closed or is not of this log")
        return await seat.append(payload, claims, known)

    async def head(self) -> Revision:
        """See EventLog."""
        answer = await self._client.call(RANGE, rpc.RangeRequest(key=keys.LOG, count_only=True))
        return Revision(answer.header.revision)

    async def position(self) -> Position:
        """The position of a reader that holds everything up to now."""
        return await head_position(self._client)

    def read(self, after: Position, through: Revision | None = None) -> AsyncIterator[Record]:
        """See EventLog."""
        return etcd_reader.read(self._client, self._tally, after, through, self._archive)

    def follow(self, after: Position) -> AsyncIterator[Record | Bookmark]:
        """See EventLog. A slow consumer slows the watch; nothing is queued but a few segments."""
        return etcd_reader.follow(self._client, self._tally, after, self._archive)

    async def put(
        self, key: str, value: bytes, session: Session | None = None, *, lasting: bool = False
    ) -> Revision:
        """See EventLog. Raises ValueError on a key outside the side tables, Fenced if the session is gone."""
        place = keys.side_key(key)
        if session is None:
            answer = await self._client.call(PUT, rpc.PutRequest(key=place, value=value))
            return Revision(answer.header.revision)
        session_key = keys.session_key(session.cluster, session.writer)
        answer = await self._client.call(
            TXN,
            rpc.TxnRequest(
                compare=[created(session_key, session.token)],
                success=[put(place, value, 0 if lasting else session.lease)],
            ),
        )
        if not answer.succeeded:
            raise Fenced(f"put of {key!r}: the session with token {session.token} is gone")
        return Revision(answer.header.revision)

    async def acquire(self, session: Session, duty: str) -> bool:
        """See EventLog. Raises ValueError on a malformed duty, Fenced if the session is gone."""
        duty_key = keys.duty_key(duty)
        session_key = keys.session_key(session.cluster, session.writer)
        holder = f"{session.cluster}/{session.writer}".encode()
        answer = await self._client.call(
            TXN,
            rpc.TxnRequest(
                compare=[created(session_key, session.token), created(duty_key, 0)],
                success=[put(duty_key, holder, session.lease)],
                failure=[get(session_key, keys_only=True), get(duty_key)],
            ),
        )
        if answer.succeeded:
            return True
        if first(answer.responses[0]).create_revision != session.token:
            raise Fenced(f"duty {duty!r}: the session with token {session.token} is gone")
        return bool(first(answer.responses[1]).lease == session.lease)

    async def list(self, prefix: str) -> Sequence[Stored]:
        """See EventLog. Raises ValueError on a prefix outside the listed tables."""
        start, end = keys.list_range(prefix)
        answer = await self._client.call(RANGE, rpc.RangeRequest(key=start, range_end=end))
        return tuple(Stored(keys.relative(kv.key), kv.value, Revision(kv.mod_revision)) for kv in answer.kvs)

    def retention(self, cluster: str) -> Retention:
        """What the holder of the cluster's duty does with its history. Raises ValueError on a malformed name."""
        return Retention(self._client, keys.checked_name("cluster", cluster))

    async def close(self) -> None:
        """See EventLog. Sessions are left to their leases; `close_session` gives a place back at once."""
        seats, self._seats = tuple(self._seats.values()), {}
        await asyncio.gather(*(seat.stop() for seat in seats), return_exceptions=True)
        try:
            await self._client.close()
        except LogError:
            return
