"""The follower: applying, waiting, outages, and records that contradict each other."""

import asyncio

import pytest

from controlplane.commands.workload import ApplyWorkload
from kvstore.memory import MemoryStore
from tests.controlplane.runtime.mesh import JOIN_EAST, WAIT_S, Part, running


async def test_second_process_sees_the_same_state():
    """What one process writes, another holds when it has applied the revision."""
    store = MemoryStore()
    one, two = Part(store, "operator"), Part(store, "node.n1")
    async with running(one, two):
        written = await one.writer.submit(JOIN_EAST)
        await two.follower.wait_applied(written.revision, WAIT_S)
        assert two.follower.state.digest() == one.follower.state.digest()


async def test_waiting_for_a_revision_that_does_not_come_ends():
    """`wait_applied` raises TimeoutError when its time is over."""
    part = Part(MemoryStore(), "operator")
    async with running(part):
        with pytest.raises(TimeoutError):
            await part.follower.wait_applied(1000, 0.01)


async def test_outage_keeps_the_state_and_ends_by_itself():
    """While the log is away the state stays; what was written meanwhile is applied when it is back."""
    store = MemoryStore()
    one, two = Part(store, "operator"), Part(store, "node.n1")
    async with running(one, two):
        await one.writer.submit(JOIN_EAST)
        await two.follower.wait_applied(one.follower.state.revision, WAIT_S)
        two.log.disconnect()
        written = await one.writer.submit(ApplyWorkload("shop", "web", {}))
        assert two.follower.state.revision < written.revision
        two.log.reconnect()
        await two.follower.wait_applied(written.revision, WAIT_S)
        assert two.follower.state.digest() == one.follower.state.digest()


async def test_gap_is_counted_and_the_state_served_meanwhile():
    """A missing record is seen, named in `repairing`, and the state held before stays served."""
    store = MemoryStore()
    one, two = Part(store, "operator"), Part(store, "node.n1")
    async with running(one, two):
        await one.writer.submit(JOIN_EAST)
        await two.follower.wait_applied(one.follower.state.revision, WAIT_S)
        two.log.disconnect()
        lost = await one.writer.submit(ApplyWorkload("shop", "web", {}))
        after = await one.writer.submit(ApplyWorkload("shop", "api", {}))
        store.lose_record(lost.revision)
        two.log.reconnect()
        async with asyncio.timeout(WAIT_S):
            while not two.follower.gaps:
                await asyncio.sleep(0.005)
        assert "sequence" in two.follower.repairing
        assert "east" in two.follower.state.clusters
        assert two.follower.state.revision < after.revision


async def test_rewound_store_is_folded_again_not_merged():
    """After a restore from a backup the state is that of the restored log, without what it no longer has."""
    store = MemoryStore()
    one, two = Part(store, "operator"), Part(store, "node.n1")
    async with running(one, two):
        kept = await one.writer.submit(JOIN_EAST)
        await one.writer.submit(ApplyWorkload("shop", "web", {}))
        await two.follower.wait_applied(one.follower.state.revision, WAIT_S)
        store.restore(kept.revision)
        async with asyncio.timeout(WAIT_S):
            while two.follower.state.revision != kept.revision:
                await asyncio.sleep(0.005)
        assert two.follower.rewinds == 1
        assert two.follower.state.workloads == {}
        replaced, _ = two.follower.take_changes()
        assert replaced
