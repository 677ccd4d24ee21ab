"""The reconciler on an event loop: when passes run, who waits for them, and that the loop is never
blocked."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

import pytest

from datapath import codec
from datapath.errors import KernelError
from datapath.kernel.api import RowFailure
from datapath.kernel.fake import Crash, FakeKernel, KernelMemory
from datapath.realization import Report
from datapath.reconciler import TURNS_MAX, Reconciler
from datapath.tables import Desired, DeviceKey, DeviceRow
from tests.datapath.rows import complete, encoded

DEADLINE_S = 10.0


class GatedKernel(FakeKernel):
    """A kernel whose put waits until the test lets it go on."""

    def __init__(self) -> None:
        super().__init__()
        self.entered = threading.Event()
        self.gate = threading.Event()
        self.put_threads: set[str] = set()
        self.put_rows: list[bytes] = []

    def put(self, table: str, rows: Sequence[tuple[bytes, bytes]]) -> Sequence[RowFailure]:
        self.put_threads.add(threading.current_thread().name)
        self.entered.set()
        assert self.gate.wait(DEADLINE_S)
        self.put_rows += (row for _, row in rows)
        return super().put(table, rows)


def devices(*numbers: int) -> dict[str, dict[DeviceKey, DeviceRow]]:
    """Rows without references."""
    return {"devices": {DeviceKey(n): DeviceRow(bytes(16), bytes(16), n, n, bytes(6)) for n in numbers}}


@asynccontextmanager
async def running(
    kernel: FakeKernel, on_writes: Callable[[Report], None] | None = None
) -> AsyncIterator[Reconciler]:
    """A reconciler that is open and runs until the block ends."""
    reconciler = Reconciler(kernel, time.monotonic, on_writes=on_writes)
    await reconciler.open()
    task = asyncio.create_task(reconciler.run())
    try:
        yield reconciler
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await reconciler.close()


async def entered(kernel: GatedKernel) -> None:
    """Wait until the worker is inside put."""
    assert await asyncio.to_thread(kernel.entered.wait, DEADLINE_S)


async def test_offer_is_realized() -> None:
    """After wait_realized the kernel holds what was offered, and nothing failed."""
    kernel = FakeKernel()
    async with running(kernel) as reconciler:
        reconciler.offer(complete(4, devices(1, 2)))
        assert await reconciler.wait_realized(4, DEADLINE_S) == ()
        assert kernel.memory.tables == encoded(devices(1, 2))
        assert reconciler.realized_generation == 4
        assert reconciler.status().in_sync


async def test_offers_during_a_pass_become_one() -> None:
    """While a pass runs, any number of offers wait as one, and only the latest values are written."""
    kernel = GatedKernel()
    passes: list[int] = []
    async with running(kernel, lambda report: passes.append(report.realized_generation)) as reconciler:
        reconciler.offer(complete(1, devices(1)))
        await entered(kernel)
        for generation in range(2, 102):
            row = DeviceRow(bytes(16), bytes(16), generation, 1, bytes(6))
            reconciler.offer(Desired(generation, False, {"devices": {DeviceKey(1): row}}))
        kernel.gate.set()
        await reconciler.wait_realized(101, DEADLINE_S)
        assert passes == [1, 101]
        assert kernel.memory.writes == 2


async def test_turns_are_passes_of_their_own() -> None:
    """What ends a turn is written whole before what is offered after it, however much waits; up to a bound."""
    kernel = GatedKernel()
    passes: list[int] = []
    async with running(kernel, lambda report: passes.append(report.realized_generation)) as reconciler:
        reconciler.offer(complete(1, devices(1)))
        await entered(kernel)
        for generation in range(2, TURNS_MAX + 20):
            row = DeviceRow(bytes(16), bytes(16), generation, 1, bytes(6))
            offered = Desired(generation, False, {"devices": {DeviceKey(1): row}})
            reconciler.offer(offered, ends_turn=generation != 3)
        kernel.gate.set()
        await reconciler.wait_realized(TURNS_MAX + 19, DEADLINE_S)
        assert passes == [1, 2, *range(4, TURNS_MAX + 3), TURNS_MAX + 19]


async def test_offers_of_two_kinds_are_passes_of_their_own() -> None:
    """What is of neither kind goes with either."""
    kernel = GatedKernel()
    passes: list[int] = []
    async with running(kernel, lambda report: passes.append(report.realized_generation)) as reconciler:
        reconciler.offer(complete(1, devices(1)))
        await entered(kernel)
        for generation, kind in enumerate(("", "moved", "", "moved", "meant", "", "moved"), 2):
            reconciler.offer(Desired(generation, False, {}), kind)
        kernel.gate.set()
        await reconciler.wait_realized(8, DEADLINE_S)
        assert passes == [1, 5, 7, 8]


async def test_what_an_offer_leads_to_is_seen_only_whole() -> None:
    """Each in a pass of its own and in order, nothing else with them, and one report."""
    kernel = GatedKernel()
    passes: list[int] = []
    async with running(kernel, lambda report: passes.append(report.realized_generation)) as reconciler:
        reconciler.offer(complete(1, devices(1)))
        await entered(kernel)
        rows = [DeviceRow(bytes(16), bytes(16), number, 1, bytes(6)) for number in range(2, 7)]
        first, second, third, last, after = (Desired(2, False, {"devices": {DeviceKey(1): row}}) for row in rows)
        reconciler.offer(first)
        reconciler.offer(second, leads_to=[third, last._replace(generation=3)])
        reconciler.offer(after._replace(generation=4))
        kernel.gate.set()
        await reconciler.wait_realized(4, DEADLINE_S)
        assert passes == [1, 2, 3, 4]
        assert [codec.decode_row("devices", row).identity for row in kernel.put_rows] == [1, 2, 3, 4, 5, 6]


async def test_a_complete_offer_and_a_generation_that_is_forgotten_end_all_turns() -> None:
    """Neither writes anything that was offered before."""
    kernel = GatedKernel()
    passes: list[int] = []
    async with running(kernel, lambda report: passes.append(report.realized_generation)) as reconciler:
        reconciler.offer(complete(1, devices(1)))
        await entered(kernel)
        reconciler.offer(Desired(2, False, {}), ends_turn=True)
        reconciler.offer(complete(3, devices(2)))
        kernel.gate.set()
        await reconciler.wait_realized(3, DEADLINE_S)
        assert passes == [1, 3]


async def test_the_loop_runs_while_the_kernel_blocks() -> None:
    """A kernel call that blocks does so in the worker thread: the loop goes on and status answers."""
    kernel = GatedKernel()
    async with running(kernel) as reconciler:
        reconciler.offer(complete(1, devices(1)))
        await entered(kernel)
        assert reconciler.status().realized_generation == -1
        kernel.gate.set()
        await reconciler.wait_realized(1, DEADLINE_S)
        assert all(name.startswith("kernel") for name in kernel.put_threads)


async def test_wait_realized_times_out() -> None:
    """A generation that nobody offered is not waited for without end."""
    async with running(FakeKernel()) as reconciler:
        with pytest.raises(TimeoutError):
            await reconciler.wait_realized(1, 0.01)


async def test_wait_realized_returns_what_failed() -> None:
    """A row that failed does not hold up the generation; the waiter learns which it is."""
    kernel = FakeKernel()
    kernel.fail("devices", codec.encode_key("devices", DeviceKey(2)), times=1000)
    async with running(kernel) as reconciler:
        reconciler.offer(complete(1, devices(1, 2)))
        (failing,) = await reconciler.wait_realized(1, DEADLINE_S)
        assert codec.decode_key(failing.table, failing.key) == DeviceKey(2)


async def test_failed_rows_are_tried_again_by_themselves() -> None:
    """Without any further offer the retry comes, and the row is done."""
    kernel = FakeKernel()
    kernel.fail("devices", codec.encode_key("devices", DeviceKey(1)), times=2)
    settled = asyncio.Event()

    def on_writes(report: Report) -> None:
        if report.summary.done == 1:
            settled.set()

    async with running(kernel, on_writes) as reconciler:
        reconciler.offer(complete(1, devices(1)))
        async with asyncio.timeout(DEADLINE_S):
            await settled.wait()
        assert reconciler.status().not_done == ()


async def test_restart_writes_nothing() -> None:
    """A second reconciler over the same kernel, offered the same, counts no write."""
    memory = KernelMemory()
    async with running(FakeKernel(memory)) as reconciler:
        reconciler.offer(complete(1, devices(1, 2)))
        await reconciler.wait_realized(1, DEADLINE_S)
    async with running(FakeKernel(memory)) as reconciler:
        reconciler.offer(complete(1, devices(1, 2)))
        await reconciler.wait_realized(1, DEADLINE_S)
        assert all(count == (0, 0) for count in reconciler.status().writes.values())


async def test_a_crash_ends_run() -> None:
    """What is no refusal of the kernel is no row's status: run() raises it."""
    kernel = FakeKernel()
    kernel.crash_after(0)
    reconciler = Reconciler(kernel, time.monotonic)
    await reconciler.open()
    reconciler.offer(complete(1, devices(1)))
    with pytest.raises(Crash):
        async with asyncio.timeout(DEADLINE_S):
            await reconciler.run()
    await reconciler.close()


async def test_open_raises_what_the_kernel_says() -> None:
    """A kernel that cannot be read is no kernel to start on."""
    kernel = FakeKernel()
    kernel.fail_call("dump", "devices", times=1)
    reconciler = Reconciler(kernel, time.monotonic)
    with pytest.raises(KernelError):
        await reconciler.open()
    await reconciler.close()


async def test_verify_and_repair() -> None:
    """Verify finds what someone else removed; repair brings it back."""
    kernel = FakeKernel()
    async with running(kernel) as reconciler:
        reconciler.offer(complete(1, devices(1)))
        await reconciler.wait_realized(1, DEADLINE_S)
        kernel.memory.tables["devices"].clear()
        assert [found.table for found in await reconciler.verify() if found.missing] == ["devices"]
        assert not any(found.differences for found in await reconciler.repair())
        assert kernel.memory.tables == encoded(devices(1))


async def test_digests_are_those_of_the_verification() -> None:
    """The digests kept up with each write are those of a fresh dump."""
    async with running(FakeKernel()) as reconciler:
        reconciler.offer(complete(1, devices(1, 2, 3)))
        await reconciler.wait_realized(1, DEADLINE_S)
        assert reconciler.digests() == {found.table: found.kernel for found in await reconciler.verify()}
