"""Entries that outlived what they stand for: flows to backends that left, ports whose flow has ended."""

import asyncio
from typing import NamedTuple

import pytest

from controlplane.api.kernel_views import nat_rows
from datapath import codec, conntrack, orphans
from datapath.abi import types as abi
from datapath.conntrack import ConntrackEntry, ConntrackKey, ConntrackRow
from datapath.conntrack_gc import ConntrackCollector
from datapath.kernel.fake import FakeKernel
from datapath.orphans import NatKey, NatRow
from datapath.reconciler import Reconciler
from datapath.tables import (
    NO_ADDRESS,
    TABLES,
    BackendKey,
    BackendRow,
    Desired,
    IpcacheKey,
    IpcacheRow,
    NodeStateKey,
    NodeStateRow,
    ServiceKey,
    ServiceRow,
)

TCP, UDP = 6, 17
DEADLINE_S = 10.0
EPOCH = 1
CLIENT, FRONTEND, FIRST, SECOND, WORLD, NODE = map(
    codec.address_bytes, ("10.1.0.5", "10.96.0.10", "10.1.0.6", "10.2.0.7", "198.51.100.9", "192.168.9.1")
)
Rows = dict[bytes, bytes]


def entry(
    protocol: int,
    initiator: orphans.End,
    responder: orphans.End,
    flags: int,
    translated: orphans.End,
    expires_ns: int = 9,
) -> tuple[bytes, bytes]:
    """As the map holds it."""
    low, high = sorted((initiator, responder))
    flags |= abi.CONNTRACK_INITIATOR_HIGH * (initiator == high)
    row = ConntrackRow(expires_ns, 1, 1, 1, 1, 1, *translated, flags, 1, 0, 0)
    return conntrack.encode_entry(ConntrackEntry(ConntrackKey(low[0], high[0], low[1], high[1], protocol), row))


def flow(protocol: int, backend: orphans.End, client: orphans.End = (CLIENT, 1000)) -> Rows:
    """Both entries of a flow through the frontend."""
    return dict(
        (
            entry(protocol, client, (FRONTEND, 80), abi.CONNTRACK_DNAT, backend),
            entry(protocol, client, backend, abi.CONNTRACK_REVERSE_DNAT, (FRONTEND, 80)),
        )
    )


def tables(
    protocol: int, backends: list[orphans.End], in_mesh: tuple[bytes, ...] = ()
) -> dict[str, dict[object, object]]:
    """A frontend with these backends, and the addresses that somebody in the mesh has."""
    return {
        "node_state": {NodeStateKey(0): NodeStateRow(EPOCH)},
        "services": {ServiceKey(FRONTEND, 80, protocol): ServiceRow(5, len(backends), 0)},
        "backends": {BackendKey(5, slot): BackendRow(*each, 0) for slot, each in enumerate(backends)},
        "ipcache": {IpcacheKey(128, each): IpcacheRow(NO_ADDRESS, 1, 0) for each in in_mesh},
    }


def known(rows: dict[str, dict[object, object]]) -> orphans.Backends:
    """The same, encoded."""
    return orphans.backends_of({name: codec.encode_rows(name, each) for name, each in rows.items()}.__getitem__)


@pytest.mark.parametrize("scope", abi.ENUMS["service_scope"].values())
def test_flow_to_a_terminating_backend_stays(scope: int) -> None:
    """A backend above the frontend's count keeps its flows, datagrams too, whichever side asked."""
    rows = tables(UDP, [(FIRST, 8080), (SECOND, 8080)])
    rows["services"] = {ServiceKey(FRONTEND, 80, UDP, scope): ServiceRow(5, 1, 0)}
    assert orphans.departed_flows(flow(UDP, (SECOND, 8080)).items(), known(rows)) == []


@pytest.mark.parametrize("protocol", [TCP, UDP])
@pytest.mark.parametrize("client", [(CLIENT, 1000), (bytes(15) + b"\1", 1000), (bytes([255] * 16), 1000)])
def test_flow_to_a_backend_that_serves_stays(protocol: int, client: orphans.End) -> None:
    """Whichever end compares lower."""
    rows = flow(protocol, (FIRST, 8080), client)
    assert orphans.departed_flows(rows.items(), known(tables(protocol, [(FIRST, 8080)]))) == []


@pytest.mark.parametrize("client", [(CLIENT, 1000), (bytes(15) + b"\1", 1000), (bytes([255] * 16), 1000)])
@pytest.mark.parametrize("in_mesh", [(), (FIRST,)], ids=["gone", "still there"])
def test_datagrams_to_a_backend_that_left_go(client: orphans.End, in_mesh: tuple[bytes, ...]) -> None:
    """Both entries, whether the endpoint is still there or not."""
    rows = flow(UDP, (FIRST, 8080), client)
    found = orphans.departed_flows(rows.items(), known(tables(UDP, [(SECOND, 8080)], in_mesh)))
    assert sorted(found) == sorted(rows)


@pytest.mark.parametrize(("in_mesh", "goes"), [((), True), ((FIRST,), False)], ids=["gone", "still there"])
def test_connection_lives_as_long_as_its_backend(in_mesh: tuple[bytes, ...], goes: bool) -> None:
    """Taken out of the service it may end in its own time; gone it is ended."""
    rows = flow(TCP, (FIRST, 8080))
    found = orphans.departed_flows(rows.items(), known(tables(TCP, [(SECOND, 8080)], in_mesh)))
    assert sorted(found) == (sorted(rows) if goes else [])


def test_backend_on_another_port_is_another() -> None:
    """The port changed with the service."""
    rows = flow(UDP, (FIRST, 8080))
    assert len(orphans.departed_flows(rows.items(), known(tables(UDP, [(FIRST, 8081)], (FIRST,))))) == 2


def test_flow_of_a_frontend_that_went() -> None:
    """No service row: nobody serves."""
    rows = flow(UDP, (FIRST, 8080))
    assert len(orphans.departed_flows(rows.items(), known({"services": {}, "backends": {}, "ipcache": {}}))) == 2


def test_plain_flows_are_none_of_its_business() -> None:
    """To an address that is a backend's, but without a frontend."""
    rows = [entry(UDP, (CLIENT, 1000), (FIRST, 8080), 0, (NO_ADDRESS, 0))]
    assert orphans.departed_flows(rows, known(tables(UDP, []))) == []


def packed(key: NamedTuple, row: NamedTuple) -> tuple[bytes, bytes]:
    """As the programs write them."""
    return codec.struct_codec(type(key)).encode(key), codec.struct_codec(type(row)).encode(row)


def ports() -> Rows:
    """Both nat entries of CLIENT:1000 -> WORLD:443 by the node's port 20000."""
    return dict(
        (
            packed(NatKey(CLIENT, WORLD, 1000, 443, UDP, abi.NAT_OUTBOUND), NatRow(NODE, 20000)),
            packed(NatKey(NODE, WORLD, 20000, 443, UDP, abi.NAT_INBOUND), NatRow(CLIENT, 1000)),
        )
    )


@pytest.mark.parametrize(("expires_ns", "idle"), [(None, 2), (5, 2), (6, 0)], ids=["no flow", "expired", "in use"])
def test_ports_live_as_long_as_their_flow(expires_ns: int | None, idle: int) -> None:
    """Both entries of it."""
    flows: Rows = {}
    if expires_ns is not None:
        masqueraded = abi.CONNTRACK_MASQUERADED
        flows = dict([entry(UDP, (CLIENT, 1000), (WORLD, 443), masqueraded, (NO_ADDRESS, 0), expires_ns)])
    assert len(orphans.idle_ports(ports().items(), flows, 5)) == idle


async def test_collect_frees_ports() -> None:
    """Those of flows that ended, beside the flows themselves."""
    kernel = FakeKernel()
    kernel.open()
    kernel.memory.runtime["nat"] = ports()
    reconciler = Reconciler(kernel, lambda: 0.0)
    collector = ConntrackCollector(kernel, reconciler, now_ns=lambda: 6, interval_s=1.0, chunk=1)
    await collector.collect()
    reconciler.worker.close()
    assert kernel.memory.runtime["nat"] == {}
    assert collector.count().ports == 2


async def test_backend_that_leaves_takes_its_flows_along() -> None:
    """Without being asked, once the rows are written; flows of the others stay."""
    kernel = FakeKernel()
    reconciler = Reconciler(kernel, lambda: 0.0)
    await reconciler.open()
    collector = ConntrackCollector(kernel, reconciler, now_ns=lambda: 6, interval_s=DEADLINE_S, chunk=100)
    tasks = [asyncio.create_task(work) for work in (reconciler.run(), collector.run())]
    leaving, staying = flow(UDP, (FIRST, 8080)), flow(UDP, (SECOND, 8080), (CLIENT, 1001))
    everything = {name: {} for name in TABLES} | tables(UDP, [(FIRST, 8080), (SECOND, 8080)])
    async with asyncio.timeout(DEADLINE_S):
        reconciler.offer(Desired(1, True, everything))
        await reconciler.wait_realized(1, DEADLINE_S)
        kernel.memory.runtime["conntrack"] = {**leaving, **staying}
        reconciler.offer(Desired(2, True, everything | tables(UDP, [(SECOND, 8080)])))
        while collector.count().departed < len(leaving):
            await reconciler.worker.call(int)
            await asyncio.sleep(0.001)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await reconciler.close()
    assert kernel.memory.runtime["conntrack"] == staying


def socket_flow(cookie: int, backend: orphans.End, protocol: int = UDP) -> tuple[bytes, bytes]:
    """As the map holds it."""
    key = orphans.SocketFlowKey(cookie, *backend, protocol)
    return packed(key, orphans.SocketFlowRow(FRONTEND, 80, 0))


async def test_sockets_end_with_their_backend() -> None:
    """UDP sockets to a backend that left, once; their flows are forgotten. TCP ends in its own time."""
    kernel = FakeKernel()
    reconciler = Reconciler(kernel, lambda: 0.0)
    await reconciler.open()
    collector = ConntrackCollector(kernel, reconciler, now_ns=lambda: 6, interval_s=1.0, chunk=100)
    leaving, staying = socket_flow(1, (FIRST, 8080)), socket_flow(2, (SECOND, 8080))
    stream = socket_flow(3, (FIRST, 8080), TCP)
    kernel.memory.runtime["socket_flows"] = dict((leaving, staying, stream))
    kernel.memory.sockets = {1, 2, 3}
    running = asyncio.create_task(reconciler.run())
    everything = {name: {} for name in TABLES} | tables(UDP, [(SECOND, 8080)])
    reconciler.offer(Desired(1, True, everything))
    await reconciler.wait_realized(1, DEADLINE_S)
    await collector.purge()
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    await reconciler.close()
    assert kernel.memory.sockets == {2, 3}
    assert kernel.memory.runtime["socket_flows"] == dict((staying, stream))
    assert collector.count().sockets == 1


def test_rows_for_people_tell_both_ways() -> None:
    """What `meshlog bpf nat list` gets: the way out first, ends as text."""
    rows = nat_rows(ports().items())
    assert [(row["direction"], row["near"], row["near_port"], row["translated"]) for row in rows] == [
        ("outbound", "10.1.0.5", 1000, "192.168.9.1"),
        ("inbound", "192.168.9.1", 20000, "10.1.0.5"),
    ]
