"""Runs the passes that make the kernel hold what is desired, off the event loop.

Belongs here: asyncio around realization.py: when a pass runs, who is told afterwards. Does not belong here:
what is written, and in which order.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import msgspec

from datapath.delta import Pending
from datapath.kernel.api import Kernel
from datapath.realization import Realization, Report, TableVerification
from datapath.status import RowStatus
from datapath.tables import Desired

T = TypeVar("T")


class KernelWorker:
    """The one thread that calls the kernel of a node."""

    def __init__(self) -> None:
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="kernel")

    async def call(self, function: Callable[..., T], *arguments: Any) -> T:
        """Run it in the thread, after what was asked before."""
        return await asyncio.get_running_loop().run_in_executor(self._executor, function, *arguments)

    def close(self) -> None:
        """Wait for what is running; refuse what comes after."""
        self._executor.shutdown(wait=True, cancel_futures=True)


TURNS_MAX = 64
"""Passes that may wait, some milliseconds each; beyond it their offers become one."""


class Reconciler:
    """`clock` gives monotonic seconds. `on_writes` is called on the loop after each pass, with its report."""

    def __init__(
        self,
        kernel: Kernel,
        clock: Callable[[], float],
        *,
        on_writes: Callable[[Report], None] | None = None,
        worker: KernelWorker | None = None,
    ) -> None:
        self._clock = clock
        self._on_writes = on_writes
        self._worker = worker if worker is not None else KernelWorker()
        self._realization = Realization(kernel)
        self._report = self._realization.report()
        self._turns: list[Pending] = []
        """What is to be realized before what is pending, each in a pass of its own."""
        self._pending, self._kind = Pending(), ""
        self._work = asyncio.Event()
        self._passed = asyncio.Event()
        self._forgets = 0
        self._is_forgotten = False
        self.was_empty = False
        """Whether the kernel held no row of ours when it was opened."""

    @property
    def realized_generation(self) -> int:
        """All rows up to this generation are done or recorded as failed; -1 before the first pass."""
        return self._report.realized_generation

    @property
    def worker(self) -> KernelWorker:
        """The thread for other calls of the same kernel."""
        return self._worker

    async def open(self) -> None:
        """Open the kernel and read what it holds. Raises KernelError."""
        self._publish(await self._worker.call(self._realization.open))
        self.was_empty = self._realization.is_empty

    async def close(self) -> None:
        """Let go of the kernel; what is in it stays. run() must have ended."""
        await self._worker.call(self._realization.close)
        self._worker.close()

    def forget_generation(self) -> None:
        """Generations begin anew, and may be lower: what is offered and not yet written counts no more, and nothing is
        realized until a later offer is. Rows stay."""
        self._forgets += 1
        self._is_forgotten = True
        self._turns.clear()
        self._pending, self._kind = Pending(), ""
        self._publish(self._report)

    def offer(
        self, desired: Desired, kind: str = "", *, ends_turn: bool = False, leads_to: Sequence[Desired] = ()
    ) -> None:
        """What the kernel should hold. Offers that no pass has taken yet become one, but not two of a different `kind`;
        `ends_turn`: nor with those that come after. Unless TURNS_MAX passes wait. `leads_to`: what it is to hold right
        after it, one after the other; nobody sees the kernel in between."""
        if desired.complete:
            self._turns.clear()
        elif leads_to or (kind and self._kind not in ("", kind)):
            self._end_turn()
        self._pending.merge(desired)
        self._kind = kind or self._kind
        for following in leads_to:
            self._pending.is_whole = False
            self._end_turn()
            self._pending.merge(following)
            self._pending.is_whole = True
        if ends_turn or leads_to:
            self._end_turn()
        self._work.set()

    def _end_turn(self) -> None:
        if self._pending and len(self._turns) < TURNS_MAX:
            self._turns.append(self._pending)
            self._pending, self._kind = Pending(), ""

    async def run(self) -> None:
        """Pass after pass, until cancelled. Returns never; what a row fails with is in its status."""
        while True:
            await self._wait_work()
            turns = self._next_turns()
            forgets = self._forgets
            report = await self._worker.call(self._converge, turns, self._clock())
            if turns[-1] and forgets == self._forgets:
                self._is_forgotten = False
            self._publish(report)
            if self._on_writes:
                self._on_writes(report)

    def _converge(self, turns: Sequence[Pending], now_s: float) -> Report:
        for turn in turns:
            report = self._realization.converge(turn, now_s)
        return report

    def _next_turns(self) -> Sequence[Pending]:
        """The next pass's, up to one after which the kernel can be seen."""
        for count, turn in enumerate(self._turns, 1):
            if turn.is_whole:
                found, self._turns = self._turns[:count], self._turns[count:]
                return found
        found, self._turns = self._turns, []
        return [*found, self._take_pending()]

    def _take_pending(self) -> Pending:
        pending, self._pending, self._kind = self._pending, Pending(), ""
        self._work.clear()
        return pending

    async def wait_realized(self, generation: int, timeout_s: float) -> tuple[RowStatus, ...]:
        """Wait until `realized_generation` is at least this. The rows that are not done by then: () is
        success. Raises TimeoutError."""
        async with asyncio.timeout(timeout_s):
            while self._report.realized_generation < generation:
                await self._passed.wait()
        return self._report.not_done

    def status(self) -> Report:
        """How far the kernel is, as of the last pass."""
        return self._report

    async def wait_pass(self) -> None:
        """Until the next pass has ended."""
        await self._passed.wait()

    def realized_rows(self, table: str) -> Mapping[bytes, bytes]:
        """What the kernel holds of a table, as was written; only for calls in the worker's thread."""
        return self._realization.realized_rows(table)

    def digests(self) -> Mapping[str, str]:
        """Of each table, as realized."""
        return self._report.digests

    async def verify(self) -> tuple[TableVerification, ...]:
        """Compare each table with a fresh dump of the kernel. Changes nothing."""
        return await self._worker.call(self._realization.verify)

    async def verify_table(self, table: str) -> TableVerification:
        """Compare one table with a fresh dump of the kernel. Changes nothing."""
        return await self._worker.call(self._realization.verify_table, table)

    async def repair(self) -> tuple[TableVerification, ...]:
        """Write whatever a fresh dump shows to differ; then verify. Raises KernelError."""
        self._publish(await self._worker.call(self._realization.repair, self._clock()))
        self._work.set()
        return await self.verify()

    def _publish(self, report: Report) -> None:
        self._report = msgspec.structs.replace(report, realized_generation=-1) if self._is_forgotten else report
        passed, self._passed = self._passed, asyncio.Event()
        passed.set()

    async def _wait_work(self) -> None:
        """Until something is offered or a failed row is due."""
        retry_at_s = self._report.retry_at_s
        delay_s = None if retry_at_s is None else max(0.0, retry_at_s - self._clock())
        try:
            async with asyncio.timeout(delay_s):
                await self._work.wait()
        except TimeoutError:
            pass
