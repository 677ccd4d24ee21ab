"""Conntrack entries: what has expired goes, and only that."""

import asyncio
from collections.abc import Iterable, Sequence

from hypothesis import given
from hypothesis import strategies as st

from datapath import codec, conntrack
from datapath.abi import types as abi
from datapath.conntrack import ConntrackEntry, ConntrackKey, ConntrackRow
from datapath.conntrack_gc import CollectionCount, ConntrackCollector
from datapath.errors import KernelError
from datapath.kernel.fake import FakeKernel
from datapath.plan import UNSETTLED_EPOCH
from datapath.reconciler import Reconciler
from datapath.tables import Desired, NodeStateKey, NodeStateRow
from tests.datapath.rows import typed

DEADLINE_S = 10.0
SECOND_NS = 10**9


def entry(number: int, expires_ns: int) -> tuple[bytes, bytes]:
    """A TCP flow from 10.0.0.1:<number> to 10.0.0.2:80, as the map holds it."""
    key = ConntrackKey(codec.address_bytes("10.0.0.1"), codec.address_bytes("10.0.0.2"), number, 80, 6)
    row = ConntrackRow(expires_ns, 7, 2, 100, 1, 60, bytes(16), 0, abi.CONNTRACK_SEEN_REPLY, 1000, 0x02, 0x12)
    return conntrack.encode_entry(ConntrackEntry(key, row))


@given(typed(ConntrackKey), typed(ConntrackRow))
def test_round_trip(key: ConntrackKey, row: ConntrackRow) -> None:
    """Any entry comes back as it went in."""
    assert conntrack.decode_entry(*conntrack.encode_entry(ConntrackEntry(key, row))) == (key, row)


@given(st.lists(st.integers(0, 20), max_size=10), st.integers(0, 20))
def test_expired_keys(expiries: list[int], now_ns: int) -> None:
    """Exactly the entries whose time is now or before."""
    entries = [entry(number, expires_ns) for number, expires_ns in enumerate(expiries)]
    expected = [entries[number][0] for number, expires_ns in enumerate(expiries) if expires_ns <= now_ns]
    assert conntrack.expired_keys(entries, now_ns) == expected


class CountingKernel(FakeKernel):
    """Remembers how many keys each call was given; refuses the first `refusals` readings."""

    def __init__(self, refusals: int = 0) -> None:
        super().__init__()
        self.sizes: list[int] = []
        self._refusals = refusals

    def dump_runtime(self, map_name: str) -> Iterable[tuple[bytes, bytes]]:
        if self._refusals:
            self._refusals -= 1
            raise KernelError("no")
        return super().dump_runtime(map_name)

    def delete_runtime(self, map_name: str, keys: Sequence[bytes]) -> int:
        self.sizes.append(len(keys))
        return super().delete_runtime(map_name, keys)


async def test_collect_removes_expired_entries_in_chunks() -> None:
    """All expired entries go, never more per call than the chunk, and the rest stays."""
    kernel = CountingKernel()
    kernel.open()
    kernel.memory.runtime["conntrack"] = dict(entry(number, number) for number in range(10))
    reconciler = Reconciler(kernel, lambda: 0.0)
    collector = ConntrackCollector(kernel, reconciler, now_ns=lambda: 6, interval_s=0.0, chunk=3)
    removed = await collector.collect()
    reconciler.worker.close()
    assert (removed, kernel.sizes) == (7, [3, 3, 1])
    assert kernel.memory.runtime["conntrack"].keys() == {entry(number, 0)[0] for number in (7, 8, 9)}
    assert collector.count() == CollectionCount(1, 7, 10, 0, 0, 0)


def judged(port: int, epoch: int) -> tuple[bytes, bytes]:
    """An entry that was judged under an epoch."""
    decoded = conntrack.decode_entry(*entry(port, SECOND_NS))
    return conntrack.encode_entry(decoded._replace(row=decoded.row._replace(policy_epoch=epoch)))


async def test_flows_judged_under_an_undone_history_are_judged_again() -> None:
    """After a restored log: no entry keeps an epoch that the history which goes on may reach once more. At the start,
    and where the epoch goes back; not while it only grows."""
    kernel = CountingKernel()
    kernel.open()
    reconciler = Reconciler(kernel, lambda: 0.0)
    collector = ConntrackCollector(kernel, reconciler, now_ns=lambda: 6, interval_s=0.0, chunk=2)

    def epochs() -> list[int]:
        held = kernel.memory.runtime["conntrack"]
        return [conntrack.decode_entry(key, held[key]).row.policy_epoch for key in sorted(held)]

    async def at(epoch: int) -> int:
        reconciler.forget_generation()
        reconciler.offer(Desired(epoch, True, {"node_state": {NodeStateKey(0): NodeStateRow(epoch)}}))
        await reconciler.wait_realized(epoch, DEADLINE_S)
        return await collector.rejudge()

    passes = asyncio.create_task(reconciler.run())
    kernel.memory.runtime["conntrack"] = dict([judged(1, 7), judged(2, 800), judged(3, 1000 | UNSETTLED_EPOCH)])
    assert (await at(1000), epochs()) == (0, [7, 800, 1000 | UNSETTLED_EPOCH])
    kernel.memory.runtime["conntrack"].update([judged(4, 1001), judged(5, 900)])
    assert (await at(1001), await at(800), epochs()) == (0, 3, [7, 800, 0, 0, 0])
    assert (await at(1001), epochs()) == (0, [7, 800, 0, 0, 0])
    passes.cancel()
    await asyncio.gather(passes, return_exceptions=True)
    reconciler.worker.close()


async def test_run_goes_on_after_a_refusal() -> None:
    """A kernel that refuses once is counted, and asked again."""
    kernel = CountingKernel(refusals=1)
    kernel.open()
    kernel.memory.runtime["conntrack"] = dict([entry(1, 0)])
    reconciler = Reconciler(kernel, lambda: 0.0)
    collector = ConntrackCollector(kernel, reconciler, now_ns=lambda: 6, interval_s=0.001, chunk=3)
    task = asyncio.create_task(collector.run())
    async with asyncio.timeout(DEADLINE_S):
        while not collector.count().removed:
            await asyncio.sleep(0.001)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    reconciler.worker.close()
    assert collector.count().failures == 1
