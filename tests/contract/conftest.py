"""The logs that the contract suite runs against, and the faults it asks of each."""

import asyncio
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from kvstore import keys
from kvstore import rpc_pb2 as rpc
from kvstore.append import Cursor, encode_batch, encode_cursor
from kvstore.embedded import EmbeddedEtcd
from kvstore.errors import LogUnavailable
from kvstore.etcd import EtcdLog
from kvstore.etcd_client import LEASE_REVOKE, PUT, TXN, Client, Limits, Method
from kvstore.etcd_writer import put
from kvstore.memory import MemoryLog, MemoryStore
from kvstore.types import Record, Session


class LossyClient(Client):
    """A client that can lose the answer of its next transactions after etcd has carried them out."""

    losses = 0

    async def send(self, method: Method, request: Any, timeout_s: float) -> Any:
        """As Client.send, but without the answer while losses are due."""
        answer = await super().send(method, request, timeout_s)
        if method is TXN and self.losses:
            self.losses -= 1
            raise LogUnavailable("the answer was lost by the test")
        return answer


class MemoryBed:
    """Memory logs that share one store."""

    def __init__(self) -> None:
        self.store = MemoryStore()

    async def log(self) -> MemoryLog:
        """A new handle."""
        return MemoryLog(self.store)

    def lose_answers(self, log: MemoryLog, count: int) -> None:
        """The next `count` appends take effect without an answer."""
        for _ in range(count):
            log.fail_next("append", landed=True)

    async def expire(self, session: Session) -> None:
        """The session's lease runs out."""
        self.store.expire_session(session.cluster, session.writer)

    async def forge(self, record: Record) -> None:
        """A record that no session appended."""
        self.store.put_record(record)

    async def truncate(self, cluster: str, low: int) -> None:
        """Retention moves on."""
        self.store.truncate(low)

    async def close(self) -> None:
        """Nothing to give back."""


class EtcdBed:
    """Logs over one real etcd."""

    def __init__(self, endpoint: str) -> None:
        self.endpoint = endpoint
        self.logs: list[EtcdLog] = []
        self.client = Client((endpoint,), None, Limits())
        self.clients: dict[EtcdLog, LossyClient] = {}

    async def log(self) -> EtcdLog:
        """A new connection."""
        client = LossyClient((self.endpoint,), None, Limits(quiet_s=0.05, keepalive_s=0.2))
        log = EtcdLog(client)
        self.clients[log] = client
        self.logs.append(log)
        return log

    def lose_answers(self, log: EtcdLog, count: int) -> None:
        """The next `count` appends take effect without an answer."""
        self.clients[log].losses = count

    async def expire(self, session: Session) -> None:
        """The session's lease ends."""
        await self.client.call(LEASE_REVOKE, rpc.LeaseRevokeRequest(ID=session.lease))

    async def forge(self, record: Record) -> None:
        """A record that no session appended, under its writer's own cursor."""
        key = keys.log_key(record.cluster, record.writer, record.sequence)
        cursor = encode_cursor(Cursor(record.sequence, record.token, 0))
        puts = [
            put(key, encode_batch(record.token, record.payload)),
            put(keys.cursor_key(record.cluster, record.writer), cursor),
        ]
        await self.client.call(TXN, rpc.TxnRequest(success=puts))

    async def truncate(self, cluster: str, low: int) -> None:
        """Retention moves on."""
        await self.client.call(PUT, rpc.PutRequest(key=keys.low_key(cluster), value=b"%d" % low))

    async def close(self) -> None:
        """Close what the test opened, and let history begin at 0 again."""
        first, end = keys.prefix_range(keys.LOW)
        drop = rpc.RequestOp(request_delete_range=rpc.DeleteRangeRequest(key=first, range_end=end))
        await self.client.call(TXN, rpc.TxnRequest(success=[drop]))
        for log in self.logs:
            await log.close()
        await self.client.close()


@pytest.fixture(scope="module")
def etcd() -> Iterator[EmbeddedEtcd]:
    """One real etcd for the module."""
    with tempfile.TemporaryDirectory(prefix="meshlog-contract-") as folder:
        child = asyncio.run(EmbeddedEtcd.start(Path(folder) / "etcd"))
        yield child
        asyncio.run(child.stop())


@pytest.fixture(params=["memory", "etcd"])
async def bed(request: pytest.FixtureRequest, etcd: EmbeddedEtcd) -> AsyncIterator[MemoryBed | EtcdBed]:
    """Each implementation in turn."""
    made = MemoryBed() if request.param == "memory" else EtcdBed(etcd.endpoint)
    yield made
    await made.close()
