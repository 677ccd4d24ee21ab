"""The writer: order, grouping, conflicts, fencing, and what a caller is told."""

import asyncio

import pytest

from controlplane.commands.decide import decide
from controlplane.commands.endpoint import CreateEndpoint, DeleteEndpoint
from controlplane.commands.identity import ReleaseIdentity
from controlplane.commands.node import AssignAddressBlock
from controlplane.commands.service import ApplyService
from controlplane.commands.types import Rejection
from controlplane.commands.workload import ApplyWorkload
from controlplane.model import Device, ServicePort
from controlplane.runtime.writer import WriterFailed
from kvstore.errors import ClaimConflict, LogUnavailable
from kvstore.memory import MemoryStore
from tests.controlplane.runtime.mesh import JOIN_EAST, JOIN_N1, Part, joined, running


def device(number: int) -> Device:
    return Device(f"ml{number}", 100 + number, f"02:00:00:00:01:{number:02x}", f"02:00:00:00:02:{number:02x}")


def create(number: int) -> CreateEndpoint:
    return CreateEndpoint("n1", "shop", f"web-{number}", device(number), f"c{number}", "eth0")


async def test_written_is_applied_when_submit_returns():
    """When `submit` returns, the writer's own state holds the event."""
    operator = Part(MemoryStore(), "operator")
    async with running(operator):
        written = await operator.writer.submit(JOIN_EAST)
        assert operator.follower.state.revision == written.revision
        assert "east" in operator.follower.state.clusters


async def test_wish_that_is_true_appends_nothing():
    """The same command again gives no event and no record."""
    store = MemoryStore()
    operator = Part(store, "operator")
    async with running(operator):
        await operator.writer.submit(JOIN_EAST)
        again = await operator.writer.submit(JOIN_EAST)
        assert again.events == ()
        assert len(store.records) == 1


async def test_group_shares_a_batch_and_each_sees_those_before():
    """Commands that wait together go into one record, and no two of them get the same address or id."""
    store = MemoryStore()
    operator, agent = Part(store, "operator"), Part(store, "node.n1")
    async with running(operator, agent):
        await joined(operator, agent)
        await agent.writer.submit_all([ApplyWorkload("shop", f"web-{n}", {"app": "web"}) for n in range(20)])
        before = len(store.records)
        outcomes = await agent.writer.submit_all([create(n) for n in range(20)])
        endpoints = agent.follower.state.endpoints.values()
        assert len(store.records) - before == 1
        assert len({outcome.revision for outcome in outcomes}) == 1
        assert len({endpoint.ipv4 for endpoint in endpoints}) == 20
        assert len({endpoint.endpoint_id for endpoint in endpoints}) == 20
        assert agent.follower.state.refused_count == 0


async def test_rejection_stops_no_other_command():
    """A refused command of a group leaves the others as they would be without it."""
    operator = Part(MemoryStore(), "operator")
    async with running(operator):
        await operator.writer.submit(JOIN_EAST)
        first, second = await operator.writer.submit_all(
            [AssignAddressBlock("nobody"), ApplyWorkload("shop", "web", {})]
        )
        assert isinstance(first, Rejection) and "nobody" in first.reason
        assert len(second.events) == 1


async def test_preview_appends_nothing():
    """A preview decides each command after those before it, and the log stays as it was."""
    store = MemoryStore()
    operator = Part(store, "operator")
    async with running(operator):
        decisions = operator.writer.preview([JOIN_EAST, JOIN_EAST])
        assert [len(decision.events) for decision in decisions] == [1, 0]
        assert store.records == []


async def test_two_writers_never_share_an_identity():
    """Two writers that allocate at once from the same state end with one number for the labels."""
    store = MemoryStore()
    operator, one, two = Part(store, "operator"), Part(store, "node.n1"), Part(store, "node.n2")
    async with running(operator, one, two):
        await joined(operator, one)
        join_n2 = JOIN_N1.__class__("n2", ("192.168.0.2",), device(99))
        await two.writer.submit(join_n2)
        await operator.follower.wait_applied(two.follower.state.revision, 5)
        block = await operator.writer.submit(AssignAddressBlock("n2"))
        web = await one.writer.submit_all([ApplyWorkload("shop", f"web-{n}", {"app": "web"}) for n in (1, 2)])
        for part in (one, two):
            await part.follower.wait_applied(max(web[-1].revision, block.revision), 5)
        second = CreateEndpoint("n2", "shop", "web-2", device(2), "c2", "eth0")
        await asyncio.gather(one.writer.submit(create(1)), two.writer.submit(second))
        state = two.follower.state
        await two.follower.wait_applied(max(record.revision for record in store.records), 5)
        assert len(state.identities) == 1
        assert len(state.endpoints) == 2
        assert state.refused_count == 0


async def test_a_release_gives_way_to_a_use_it_did_not_see():
    """A release decided before another agent took the number again is refused as a whole: claims and state agree,
    and a later release goes through."""
    store = MemoryStore()
    operator, agent = Part(store, "operator"), Part(store, "node.n1")
    async with running(operator, agent):
        await joined(operator, agent)
        await agent.writer.submit_all([ApplyWorkload("shop", f"web-{n}", {"app": "web"}) for n in (1, 2)])
        number = (await agent.writer.submit(create(1))).events[0].number
        left = await agent.writer.submit(DeleteEndpoint("n1", 1))
        await operator.follower.wait_applied(left.revision, 5)
        release = decide(operator.follower.state.copy(), operator.writer.author, ReleaseIdentity(number))
        used = await agent.writer.submit(create(2))
        with pytest.raises(ClaimConflict):
            await operator.log.append(await operator.writer.session(), b"", release.claims)
        await operator.follower.wait_applied(used.revision, 5)
        refused = await operator.writer.submit(ReleaseIdentity(number))
        assert isinstance(refused, Rejection)
        gone = await agent.writer.submit(DeleteEndpoint("n1", 1))
        await operator.follower.wait_applied(gone.revision, 5)
        assert (await operator.writer.submit(ReleaseIdentity(number))).events
        assert operator.follower.state.refused_count == 0


async def test_a_group_stands_at_what_was_really_applied(monkeypatch):
    """A release that follows other commands of its batch still says which revision the state was at: what came from
    elsewhere since then is not overlooked."""
    store = MemoryStore()
    operator, agent = Part(store, "operator"), Part(store, "node.n1")
    async with running(operator, agent):
        await joined(operator, agent)
        await agent.writer.submit(ApplyWorkload("shop", "web-1", {"app": "web"}))
        number = (await agent.writer.submit(create(1))).events[0].number
        left = await agent.writer.submit(DeleteEndpoint("n1", 1))
        await operator.follower.wait_applied(left.revision, 5)
        seen, append = [], operator.log.append

        async def recorded(session, payload, claims=(), **known):
            seen.extend(claims)
            return await append(session, payload, claims, **known)

        monkeypatch.setattr(operator.log, "append", recorded)
        labels = [ApplyWorkload("shop", f"db-{n}", {}) for n in range(3)]
        await operator.writer.submit_all([*labels, ReleaseIdentity(number)])
        assert [claim.untouched_since for claim in seen if claim.untouched_since is not None] == [left.revision]


async def test_a_service_changed_by_two_writers_loses_no_address():
    """The second change is decided again on what the first one left; the claims are those of the service that stands."""
    store = MemoryStore()
    operator, agent = Part(store, "operator"), Part(store, "node.n1")
    port = ServicePort("http", 80, "TCP", 8080)

    def service(address: str) -> ApplyService:
        return ApplyService("shop", "web", (address,), (port,), {"app": "web"})

    async with running(operator, agent):
        await joined(operator, agent)
        await asyncio.gather(operator.writer.submit(service("10.96.0.8")), agent.writer.submit(service("10.96.0.9")))
        last = max(operator.follower.applied_revision, agent.follower.applied_revision)
        await operator.follower.wait_applied(last, 5)
        (standing,) = operator.follower.state.services.values()
        claimed = [stored.key.rpartition("/")[2] for stored in await operator.log.list("claim/service-ip/")]
        assert claimed == list(standing.cluster_ips)


async def test_fenced_writer_opens_another_session():
    """A lost session costs one more round, not the command."""
    store = MemoryStore()
    operator = Part(store, "operator")
    async with running(operator):
        await operator.writer.submit(JOIN_EAST)
        store.expire_session("east", "operator")
        written = await operator.writer.submit(ApplyWorkload("shop", "web", {}))
        assert len(written.events) == 1
        assert operator.counters.value("log_session_lost_total") == 1


async def test_log_away_is_told_and_later_commands_go_through():
    """While the log is away the caller is told so; when it is back the same command succeeds, once."""
    store = MemoryStore()
    operator = Part(store, "operator")
    async with running(operator):
        await operator.writer.submit(JOIN_EAST)
        operator.log.fail_next("append", LogUnavailable("no endpoint answers"))
        with pytest.raises(WriterFailed, match="no endpoint answers"):
            await operator.writer.submit(ApplyWorkload("shop", "web", {}))
        written = await operator.writer.submit(ApplyWorkload("shop", "web", {}))
        assert len(written.events) == 1
        assert len(store.records) == 2
