"""A process of its own that writes to the log or follows it, for tests that kill, stop and replace processes.

    python -m tests.integration.log_part writer|reader ENDPOINT DIRECTORY NAME

A writer submits commands without end and prints "ACKNOWLEDGED revision name" for each. A reader begins at its
checkpoint, saves it as often as it can, and prints "AT revision of-the-checkpoint-it-began-with digest".
"""

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from controlplane.commands.types import Author
from controlplane.commands.workload import ApplyWorkload
from controlplane.projections.state import State
from controlplane.runtime.checkpoints import Checkpoints
from controlplane.runtime.clock import SystemClock
from controlplane.runtime.follower import Follower
from controlplane.runtime.telemetry import Counters
from controlplane.runtime.writer import Writer, WriterFailed, Written
from controlplane.settings import AgentSettings
from kvstore.errors import LogError
from kvstore.etcd import EtcdLog
from kvstore.etcd_client import Limits

LIMITS = Limits(transaction_s=1.0, call_s=5.0, quiet_s=0.02, keepalive_s=0.2, audit_s=0.2, lease_s=1)
SETTINGS = AgentSettings(cluster="east", node="n1", retry_s=0.02, retry_s_max=0.1, wait_applied_s=20.0)


class Part:
    """What a process of ours has: a log, a follower from its checkpoint, a writer."""

    def __init__(self, log: EtcdLog, directory: Path, writer: str) -> None:
        clock, counters = SystemClock(), Counters()
        self.log = log
        self.counters = counters
        self.checkpoints = Checkpoints(directory)
        state = self.checkpoints.load() or State()
        self.began_at = state.revision
        self.follower = Follower(log, state, clock, SETTINGS, counters, self.refold)
        self.writer = Writer(log, self.follower, Author("east", writer), clock, SETTINGS, counters)

    @classmethod
    async def connect(cls, endpoint: str, directory: Path, writer: str) -> "Part":
        """With fast deadlines and a lease of a second."""
        directory.mkdir(exist_ok=True)
        return cls(await EtcdLog.connect([endpoint], limits=LIMITS), directory, writer)

    async def refold(self, error: LogError) -> State:
        """As an agent does."""
        return await self.checkpoints.refold(self.log, error)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """At work until the block ends."""
        tasks = [asyncio.create_task(each) for each in (self.follower.run(), self.writer.run())]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self.log.close()

    async def write(self) -> None:
        """Command after command; one that failed is submitted again, as an operator's tool does."""
        number = 0
        while True:
            name = f"{self.writer.author.writer.replace('.', '-')}-{os.getpid()}-{number}"
            revision = await self.submit(ApplyWorkload("shop", name, {"number": str(number)}))
            print("ACKNOWLEDGED", revision, name, flush=True)
            number += 1

    async def submit(self, command: Any) -> int:
        """The revision as of which it is true."""
        while True:
            try:
                outcome = await self.writer.submit(command)
            except WriterFailed:
                continue
            assert isinstance(outcome, Written), outcome
            return outcome.revision

    async def report(self) -> None:
        """What is held, each time that it has been saved."""
        while True:
            await self.follower.wait_moved()
            await self.checkpoints.save_if_trusted(self.follower)
            state = self.follower.state
            print("AT", state.revision, self.began_at, state.digest(), flush=True)


async def main(role: str, endpoint: str, directory: str, name: str) -> None:
    """Until it is killed."""
    part = await Part.connect(endpoint, Path(directory), name)
    own: Coroutine[Any, Any, None] = part.write() if role == "writer" else part.report()
    await asyncio.gather(part.follower.run(), part.writer.run(), own)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
