"""Reading the log from etcd: catch-up by range, hand-over to the watch, and back whenever it must.

Belongs here: the watch, and going from one to the other. Does not belong here: ranges (etcd_catchup.py), what an answer
means for the reader's place (watch.py).
"""

import asyncio
import random
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from typing import Any

import grpc
import grpc.aio

from kvstore import keys
from kvstore import rpc_pb2 as rpc
from kvstore.append import decode_record
from kvstore.archives import Archives
from kvstore.backoff import delay_s
from kvstore.errors import LogUnavailable
from kvstore.etcd_catchup import catch_up, confirm, head_position, held_revisions, survey
from kvstore.etcd_client import Client
from kvstore.types import Bookmark, Position, Record, Revision
from kvstore.watch import Phase, Reader, Tally, Turn, Verdict

_WATCH_FIRST, _WATCH_END = keys.prefix_range(keys.LOG)


async def read(
    client: Client, tally: Tally, after: Position, through: Revision | None, archive: Archives
) -> AsyncGenerator[Record, None]:
    """See EventLog.read."""
    async with aclosing(catch_up(client, Reader(after, tally), through, archive)) as pieces:
        async for piece in pieces:
            for record in piece:
                yield record


async def follow(
    client: Client, tally: Tally, after: Position, archive: Archives
) -> AsyncGenerator[Record | Bookmark, None]:
    """See EventLog.follow."""
    reader = Reader(after, tally)
    tries, got_through = 0, False
    while True:
        try:
            if reader.phase is Phase.CATCH_UP:
                async with aclosing(catch_up(client, reader, None, archive)) as pieces:
                    async for piece in pieces:
                        for record in piece:
                            yield record
                yield Bookmark(Revision(reader.revision), reader.cluster_id)
            elif reader.phase is Phase.RESUME:
                await _resume(client, reader)
            else:
                async with aclosing(_watch(client, reader)) as deliveries:
                    async for delivery in deliveries:
                        yield delivery
                # A watch that etcd cancels each time must not become a busy loop.
                await asyncio.sleep(delay_s(0, random.random()))
            tries, got_through = 0, True
        except LogUnavailable:
            if not got_through or client.closed:
                raise
            reader.turn(Turn.DISCONNECTED)
            await asyncio.sleep(delay_s(tries, random.random()))
            tries += 1


async def _resume(client: Client, reader: Reader) -> None:
    """Ask a majority, not one member, where the store stands: a member that lags is not a rewound store."""
    held = await held_revisions(client, reader)
    now = await survey(client)
    reader.meet(now.revision, now.store_id, (), now.sequences)
    confirm(reader, held, now)
    reader.resume(now.revision)


async def _watch(client: Client, reader: Reader) -> AsyncGenerator[Record | Bookmark, None]:
    """Records as they are stored, Bookmarks when it is quiet; returns with the reader in its next phase."""
    stream = client.watch()
    audit_at = asyncio.get_running_loop().time() + client.limits.audit_s
    live, wait_s = False, client.limits.transaction_s
    pending: asyncio.Task[Any] | None = asyncio.create_task(_open(stream, _watch_request(reader)))
    try:
        while reader.phase is Phase.WATCH:
            pending = pending or asyncio.create_task(stream.read())
            done, _ = await asyncio.wait((pending,), timeout=wait_s)
            if done:
                if pending.cancelled():
                    raise LogUnavailable("the watch was cancelled on our side")
                answer, pending = pending.result(), None
                live, wait_s = True, client.limits.quiet_s
                for record in _heard(reader, answer):
                    yield record
                if answer.canceled:
                    client.last_error = f"etcd cancelled a watch: {answer.cancel_reason or 'compacted'}"
            elif not live:
                raise LogUnavailable("etcd did not answer the request to watch")
            else:
                yield Bookmark(Revision(reader.revision), reader.cluster_id)
                audit_at = await _audit(client, reader, audit_at)
    except grpc.aio.AioRpcError as error:
        raise client.failed(error) from None
    except asyncio.InvalidStateError as error:
        raise LogUnavailable(f"the watch ended: {error}") from None
    finally:
        stream.cancel()
        if pending is not None:
            pending.cancel()
            await asyncio.gather(pending, return_exceptions=True)


async def _open(stream: Any, request: rpc.WatchRequest) -> Any:
    await stream.write(request)
    return await stream.read()


def _watch_request(reader: Reader) -> rpc.WatchRequest:
    return rpc.WatchRequest(
        create_request=rpc.WatchCreateRequest(
            key=_WATCH_FIRST,
            range_end=_WATCH_END,
            start_revision=reader.revision + 1,
            filters=[rpc.WatchCreateRequest.NODELETE],
            fragment=True,
        )
    )


def _heard(reader: Reader, answer: Any) -> Iterator[Record]:
    """The records of one watch response; a response that ends the watch moves the reader on."""
    if answer is grpc.aio.EOF:
        raise LogUnavailable("etcd ended the watch")
    for event in answer.events:
        try:
            record = decode_record(event.kv.key, event.kv.value, event.kv.mod_revision)
        except ValueError as error:
            reader.tally.refuse(f"record at revision {event.kv.mod_revision}", str(error))
            continue
        verdict = reader.accept(record)
        if verdict is Verdict.DELIVER:
            yield record
        elif verdict is Verdict.HOLE:
            reader.turn(Turn.HOLE)
            return
    if answer.canceled:
        reader.turn(Turn.CANCELLED)


async def _audit(client: Client, reader: Reader, due: float) -> float:
    """While it is quiet, compare with the writers' cursors: etcd is known to have lost watch deliveries.

    Gives back when the next audit is due: soon, while some writer is ahead of what was delivered.
    """
    now = asyncio.get_running_loop().time()
    if now < due:
        return due
    position = await head_position(client)
    if reader.overdue(position.sequences):
        reader.turn(Turn.HOLE)
    return now + (0.0 if reader.waiting else client.limits.audit_s)
