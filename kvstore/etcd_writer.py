"""Sessions and appends in etcd: taking a writer's place, keeping its lease, the append transaction.

Belongs here: what is sent and awaited for them. Does not belong here: what a refusal means (append.py), how
etcd is reached (etcd_client.py).
"""

import asyncio
from collections.abc import Sequence

from kvstore import keys
from kvstore import rpc_pb2 as rpc
from kvstore.append import (
    Attempt,
    Conflict,
    Found,
    Landed,
    Lost,
    Place,
    attempt,
    decode_cursor,
    encode_cursor,
    settle,
    stored,
)
from kvstore.errors import ClaimConflict, Fenced, LogError, LogUnavailable
from kvstore.etcd_client import LEASE_GRANT, LEASE_REVOKE, RANGE, TXN, Client, LeaseGone
from kvstore.types import Claim, Revision, Session, Want
from kvstore.watch import put_back

EQUAL, GREATER, LESS = rpc.Compare.EQUAL, rpc.Compare.GREATER, rpc.Compare.LESS
CREATE, MOD = rpc.Compare.CREATE, rpc.Compare.MOD
TRIES_MAX = 64
"""An append is rebuilt when a copy in doubt landed; more often than this is a fault."""


def created(key: bytes, revision: int, result: rpc.Compare.CompareResult = EQUAL) -> rpc.Compare:
    """Compare a key's create_revision; 0 is absent."""
    return rpc.Compare(result=result, target=CREATE, key=key, create_revision=revision)


def modified(key: bytes, revision: int, result: rpc.Compare.CompareResult = EQUAL) -> rpc.Compare:
    """Compare a key's mod_revision; 0 is absent."""
    return rpc.Compare(result=result, target=MOD, key=key, mod_revision=revision)


def put(key: bytes, value: bytes, lease: int = 0) -> rpc.RequestOp:
    """A put inside a transaction."""
    return rpc.RequestOp(request_put=rpc.PutRequest(key=key, value=value, lease=lease))


def get(key: bytes, *, keys_only: bool = False) -> rpc.RequestOp:
    """A read inside a transaction."""
    return rpc.RequestOp(request_range=rpc.RangeRequest(key=key, keys_only=keys_only))


def delete(key: bytes) -> rpc.RequestOp:
    """A delete inside a transaction."""
    return rpc.RequestOp(request_delete_range=rpc.DeleteRangeRequest(key=key))


def first(answer: rpc.ResponseOp) -> rpc.KeyValue:
    """The key that a read found; an empty one, with revisions 0, if there was none."""
    found = answer.response_range.kvs
    return found[0] if found else rpc.KeyValue()


class Seat:
    """A session's side of the log: its place, its order of appends, its keepalive."""

    def __init__(self, client: Client, session: Session, place: Place) -> None:
        """Starts the keepalive."""
        self.session = session
        self._client = client
        self._place = place
        self._name = f"{session.cluster}/{session.writer}"
        self._turn = asyncio.Lock()
        self._session_key = keys.session_key(session.cluster, session.writer)
        self._cursor_key = keys.cursor_key(session.cluster, session.writer)
        self._fixed = rpc.TxnRequest(
            compare=[created(self._session_key, session.token)],
            failure=[get(self._session_key, keys_only=True), get(self._cursor_key)],
        ).SerializeToString()
        self._keepalive = asyncio.create_task(
            self._keep_alive(), name=f"lease of {session.cluster}/{session.writer}"
        )

    async def append(self, payload: bytes, claims: Sequence[Claim], known: int) -> Revision:
        """See EventLog.append."""
        async with self._turn:
            if self._place.sequence < known:
                # An append in doubt has landed, or the store was put back before this session began.
                await self._require(known)
            for _ in range(TRIES_MAX):
                sent = attempt(self._place, self.session.cluster, self.session.writer, payload)
                answer = await self._client.call(TXN, self._transaction(sent, claims))
                if answer.succeeded:
                    self._place = stored(sent, answer.header.revision)
                    self._client.full_since = None
                    return Revision(answer.header.revision)
                outcome = settle(sent, claims, _found(answer))
                if isinstance(outcome, Lost):
                    raise Fenced(f"session of {self._name} with token {self.session.token} is gone; open a new session")
                if isinstance(outcome, Conflict):
                    raise ClaimConflict(outcome.key, answer.header.revision)
                self._place = outcome.place
                if isinstance(outcome, Landed):
                    return outcome.revision
                if self._place.sequence < known:
                    raise put_back(self._name, self._place.sequence, known)
        raise LogError(f"append of {self._name} was refused {TRIES_MAX} times")

    async def _require(self, known: int) -> None:
        answer = await self._client.call(RANGE, rpc.RangeRequest(key=self._cursor_key))
        held = decode_cursor(answer.kvs[0].value if answer.kvs else b"").sequence
        if held < known:
            raise put_back(self._name, held, known)

    async def close(self) -> None:
        """Stop the keepalive and give the lease back."""
        await self.stop()
        try:
            await self._client.call(
                LEASE_REVOKE, rpc.LeaseRevokeRequest(ID=self.session.lease), self._client.limits.close_s
            )
        except LogError:
            # The lease runs out by itself.
            return

    async def stop(self) -> None:
        """Stop the keepalive only."""
        self._keepalive.cancel()
        await asyncio.gather(self._keepalive, return_exceptions=True)

    def _transaction(self, sent: Attempt, claims: Sequence[Claim]) -> bytes:
        """Parts of a message may follow each other on the wire: what stays the same is encoded once."""
        session = self.session
        log_key = keys.log_key(session.cluster, session.writer, sent.sequence)
        compares = [modified(self._cursor_key, sent.place.cursor_revision)]
        puts = [put(log_key, sent.value), put(self._cursor_key, encode_cursor(sent.cursor))]
        reads = [get(log_key)]
        for claim in claims:
            key = keys.claim_key(claim.key)
            compares += _claim_compares(key, claim)
            puts.append(_claim_act(key, claim))
            reads.append(get(key, keys_only=True))
        return self._fixed + rpc.TxnRequest(compare=compares, success=puts, failure=reads).SerializeToString()

    async def _keep_alive(self) -> None:
        while True:
            await asyncio.sleep(self._client.limits.keepalive_s)
            try:
                if await self._client.keep_alive(self.session.lease) <= 0:
                    return
            except LogError:
                # The next round tries again; whether the session still stands is decided by compare, on
                # append.
                continue


def _found(answer: rpc.TxnResponse) -> Found:
    session, cursor, log = (first(response) for response in answer.responses[:3])
    return Found(
        session_token=session.create_revision,
        cursor=decode_cursor(cursor.value),
        cursor_revision=cursor.mod_revision,
        stored=log.value,
        stored_revision=log.mod_revision,
        claims_touched=[first(response).mod_revision for response in answer.responses[3:]],
    )


def _claim_compares(key: bytes, claim: Claim) -> list[rpc.Compare]:
    if claim.want is Want.TAKEN:
        return [created(key, 0)]
    compares = [created(key, 0, GREATER)]
    if claim.untouched_since is not None:
        compares.append(modified(key, claim.untouched_since + 1, LESS))
    return compares


def _claim_act(key: bytes, claim: Claim) -> rpc.RequestOp:
    if claim.want is Want.TAKEN:
        return put(key, claim.value)
    if claim.want is Want.FREED:
        return delete(key)
    return rpc.RequestOp(request_put=rpc.PutRequest(key=key, ignore_value=True))


async def take_seat(client: Client, cluster: str, writer: str) -> Seat:
    """Open a session: fence whoever holds the writer's place, and continue its sequence.

    Raises ValueError on a malformed name, LogUnavailable, LogFull.
    """
    session_key = keys.session_key(keys.checked_name("cluster", cluster), keys.checked_name("writer", writer))
    lease = (await client.call(LEASE_GRANT, rpc.LeaseGrantRequest(TTL=client.limits.lease_s))).ID
    reads = [get(session_key), get(keys.cursor_key(cluster, writer))]
    take = rpc.TxnRequest(
        compare=[created(session_key, 0)], success=[put(session_key, b"", lease), *reads], failure=reads
    )
    for _ in range(TRIES_MAX):
        answer = await client.call(TXN, take)
        session, cursor = (first(response) for response in answer.responses[-2:])
        if session.lease == lease:
            token = session.create_revision
            last = decode_cursor(cursor.value)
            place = Place(token, last.sequence, cursor.mod_revision, last.size)
            return Seat(client, Session(cluster, writer, token, lease), place)
        await _evict(client, session_key, session)
    raise LogUnavailable(
        f"session of {cluster}/{writer}: other sessions took the place {TRIES_MAX} times in a row"
    )


async def _evict(client: Client, session_key: bytes, session: rpc.KeyValue) -> None:
    """End an earlier session with all that is bound to its lease, its duties among them."""
    drop = rpc.TxnRequest(
        compare=[created(session_key, session.create_revision)], success=[delete(session_key)]
    )
    await client.call(TXN, drop)
    if session.lease:
        try:
            await client.call(LEASE_REVOKE, rpc.LeaseRevokeRequest(ID=session.lease))
        except LeaseGone:
            return
