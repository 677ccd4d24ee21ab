"""Recorded flows: what is summed up, what is given up and counted, what survives, what a capsule keeps of them."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controlplane.history.flows import FlowsDamaged, FlowSummary, FlowTable, bounded, pack, unpack, within
from controlplane.model import NodeKey
from controlplane.runtime.flows import FlowRecorder, empty_old_flows, flow_key, gathered_flows
from controlplane.runtime.telemetry import Counters
from controlplane.settings import AgentSettings
from datapath.abi import types as abi
from datapath.codec import address_bytes
from datapath.notifications import Notification, counted_records
from kvstore.memory import MemoryLog, MemoryStore
from tests.controlplane.history.past import shop
from tests.controlplane.random_mesh import Log
from tests.controlplane.small_mesh import add_endpoint

DAY_NS = 86_400 * 10**9
ALLOWED = {"type": abi.NOTIFICATION_VERDICT, "verdict": abi.VERDICT_ALLOW, "drop_reason": 0}
DENIED = {"type": abi.NOTIFICATION_DROP, "verdict": 0, "drop_reason": abi.POLICY_DENIED}


def told(log: Log, source: str, dest: str, port: int = 80, protocol: int = 6, **fields: Any) -> Notification:
    """A notification between two ends, workloads of shop by name or addresses; allowed at the source unless said."""
    values = dict.fromkeys(Notification._fields, 0)
    for side, name in (("source", source), ("dest", dest)):
        number, address = end_of(log, name)
        values |= {side: address_bytes(address), f"{side}_identity": number}
    values |= {"dest_port": port, "protocol": protocol, "policy_direction": abi.POLICY_EGRESS, **ALLOWED, **fields}
    return Notification(**values)


def end_of(log: Log, name: str) -> tuple[int, str]:
    for endpoint in log.state.endpoints.values():
        if endpoint.workload == name:
            return endpoint.identity, endpoint.ipv4
    return 2, name


def table(rows_max: int = 100) -> FlowTable:
    return FlowTable(rows_max, DAY_NS, 1)


def lines(summary: FlowSummary) -> list[tuple[str, str, int, str, int]]:
    return [(row.source, row.dest, row.key.port, row.key.verdict, row.count) for row in summary.rows]


def test_replicas_and_source_ports_are_one_row() -> None:
    """Connections of two endpoints with the same labels are summed; the row names the last one seen."""
    log = shop()
    add_endpoint(log, "east", "n1", "cart2", 14, app="cart")
    flows = table()
    flows.take(log.state, [(told(log, "cart", "db"), 2), (told(log, "cart2", "db"), 3)], 7)
    assert lines(flows.summary("east", "n1", 9)) == [("east:shop/cart2", "east:shop/db", 80, "allow", 5)]


def test_only_verdicts_of_policies_count_and_a_denied_packet_once() -> None:
    """A drop for another reason is no verdict; of the two notifications of one denied packet the chosen one counts."""
    log = shop()
    counted = [
        (told(log, "cart", "db", **DENIED), 1),
        (told(log, "cart", "db", type=abi.NOTIFICATION_VERDICT, verdict=abi.VERDICT_DENY, drop_reason=133), 1),
        (told(log, "cart", "db", type=abi.NOTIFICATION_DROP, drop_reason=abi.INVALID_PACKET_DROPPED), 1),
        (told(log, "cart", "db", type=abi.NOTIFICATION_TRACE), 1),
    ]
    for denials in (abi.NOTIFICATION_DROP, abi.NOTIFICATION_VERDICT):
        flows = FlowTable(100, DAY_NS, 1, denials)
        flows.take(log.state, counted, 7)
        assert [row.count for row in flows.summary("east", "n1", 9).rows] == [1]


def test_the_type_of_icmp_is_the_port() -> None:
    """Policies name ICMP types, so the code is left out."""
    log = shop()
    flows = table()
    flows.take(log.state, [(told(log, "cart", "db", 8 << 8 | 3, 1), 1)], 7)
    assert flows.summary("east", "n1", 9).rows[0].key.port == 8


@given(st.lists(st.tuples(st.integers(1, 400), st.sampled_from(["cart", "198.51.100.7"]), st.booleans()), max_size=300))
@settings(max_examples=30, deadline=None)
def test_nothing_is_lost_silently(seen: list[tuple[int, str, bool]]) -> None:
    """Whatever comes, the rows stay within the bound, and their counts and what was not kept add up to what was seen."""
    flows = table(16)
    for now_ns, (port, source, denied) in enumerate(seen, 1):
        fields = DENIED if denied else {}
        flows.take(_SHOP.state, [(told(_SHOP, source, "db", port, **fields), 2)], now_ns)
    summary = flows.summary("east", "n1", 999)
    assert len(summary.rows) <= 16
    assert sum(row.count for row in summary.rows) + summary.not_kept == 2 * len(seen)


_SHOP = shop()


def test_a_scan_pushes_out_its_own_traces() -> None:
    """However many ports somebody outside tries, what the mesh itself did is kept."""
    flows = table(16)
    flows.take(_SHOP.state, [(told(_SHOP, "cart", "db"), 1)], 1)
    for port in range(1, 200):
        flows.take(_SHOP.state, [(told(_SHOP, "198.51.100.7", "db", port, **DENIED), 1)], port + 1)
    assert ("east:shop/cart", "east:shop/db", 80, "allow", 1) in lines(flows.summary("east", "n1", 999))


def test_what_is_not_seen_again_is_forgotten_after_its_age() -> None:
    """And the summary says since when it is whole."""
    flows = table()
    flows.take(_SHOP.state, [(told(_SHOP, "cart", "db"), 1)], 10)
    flows.forget_old(DAY_NS + 11)
    summary = flows.summary("east", "n1", DAY_NS + 11)
    assert (summary.rows, summary.since_ns, summary.not_kept) == ([], 11, 0)


def test_a_number_with_other_labels_takes_no_flows_over() -> None:
    """An identity's number may be used again; rows under its old labels are given up and counted."""
    log, flows = shop(), table()
    flows.take(log.state, [(told(log, "cart", "db"), 4)], 7)
    state = log.state.copy()
    number = end_of(log, "cart")[0]
    state.identities[number] = msgspec.structs.replace(state.identities[number], labels=("k8s:app=other",))
    flows.take(state, [(told(log, "cart", "db"), 1)], 8)
    summary = flows.summary("east", "n1", 9)
    assert ([row.count for row in summary.rows], summary.not_kept, summary.labels[number]) == (
        [1], 4, ("k8s:app=other",)
    )  # fmt: skip


def summary_of(rows: int) -> FlowSummary:
    flows = table(10_000)
    for port in range(rows):
        flows.take(_SHOP.state, [(told(_SHOP, "cart", "db", port), 1)], port + 1)
    return flows.summary("east", "n1", 9)


def test_what_is_packed_comes_back_and_damage_is_found() -> None:
    """A changed byte anywhere is refused, and nothing else is raised."""
    packed = pack(summary_of(20))
    assert pack(unpack(packed)) == packed
    for place in range(len(packed)):
        with pytest.raises(FlowsDamaged):
            unpack(packed[:place] + bytes((packed[place] ^ 1,)) + packed[place + 1 :])


def test_what_is_published_is_bounded_and_says_what_is_left_out() -> None:
    """The copy fits, holds the newest rows, and counts the others."""
    summary = summary_of(3000)
    told_of = unpack(bounded(summary, 4096))
    assert len(bounded(summary, 4096)) <= 4096
    assert 0 < len(told_of.rows) < 3000
    assert told_of.not_told == 3000 - len(told_of.rows)
    assert max(row.key.port for row in told_of.rows) == 2999


def test_a_stretch_of_time() -> None:
    """Rows whose time overlaps it."""
    assert [row.key.port for row in within(summary_of(10), 4, 6).rows] == [3, 4, 5]


def test_records_that_differ_in_what_no_policy_sees_are_counted_together() -> None:
    """Source port, time and length are no part of a flow; the destination port is."""
    layout = abi.STRUCTS["notification"]
    size = {field.name: (field.offset, field.size) for field in layout.fields}

    def record(**fields: int) -> bytes:
        raw = bytearray(layout.size)
        for name, value in fields.items():
            offset, width = size[name]
            raw[offset : offset + width] = value.to_bytes(width, "big" if name.endswith("port") else "little")
        return bytes(raw)

    raw = b"".join([
        record(dest_port=80, source_port=1, timestamp_ns=5, length=60), record(dest_port=80, source_port=2),
        record(dest_port=81),
    ])  # fmt: skip
    assert [(each.dest_port, each.source_port, count) for each, count in counted_records(raw)] == [
        (80, 0, 2), (81, 0, 1)
    ]  # fmt: skip


# --- the recorder -------------------------------------------------------------------------------------------------


class Clock:
    now_ns = 1_000

    def time_ns(self) -> int:
        return self.now_ns

    def monotonic_s(self) -> float:
        return self.now_ns / 1e9


def recorder(directory: Path, log: MemoryLog, session: Any, **bounds: Any) -> FlowRecorder:
    async def own() -> Any:
        return session

    writer = SimpleNamespace(session=own)
    follower = SimpleNamespace(state=_SHOP.state)
    agent = AgentSettings(cluster="east", node="n1", **bounds)
    return FlowRecorder(directory, log, writer, follower, Clock(), agent, Counters())  # type: ignore[arg-type]


async def test_a_restart_goes_on_with_the_sum(tmp_path: Path) -> None:
    """What was saved is there again, and a damaged file starts a new sum instead of stopping the agent."""
    log = MemoryLog(MemoryStore())
    first = recorder(tmp_path, log, None)
    first._table.take(_SHOP.state, [(told(_SHOP, "cart", "db"), 3)], 5)
    await first.save()
    assert lines(recorder(tmp_path, log, None).summary()) == [("east:shop/cart", "east:shop/db", 80, "allow", 3)]
    (tmp_path / "flows").write_bytes(b"nonsense")
    assert recorder(tmp_path, log, None).summary().rows == []


async def test_what_nodes_publish_is_gathered_and_emptied_when_they_are_long_gone(tmp_path: Path) -> None:
    """The key outlives the session; the operator empties it once the node is gone and its time has passed."""
    log = MemoryLog(MemoryStore())
    session = await log.open_session("east", "node.n1")
    own = recorder(tmp_path, log, session)
    own._table.take(_SHOP.state, [(told(_SHOP, "cart", "db"), 3)], 5)
    await own.publish()
    await log.close_session(session)
    assert [each.node for each in await gathered_flows(log)] == ["n1"]
    assert await empty_old_flows(log, "east", [NodeKey("east", "n1")], 10_000) == 0
    assert await empty_old_flows(log, "east", [], 500) == 0
    assert await empty_old_flows(log, "east", [], 10_000) == 1
    assert await gathered_flows(log) == []
    assert await empty_old_flows(log, "east", [], 10_000) == 0


async def test_a_summary_in_another_nodes_place_is_not_believed(tmp_path: Path) -> None:
    """A node's flows count only under its own key."""
    log = MemoryLog(MemoryStore())
    await log.put(flow_key("east", "n2"), pack(summary_of(1)))
    await log.put(flow_key("east", "n3"), b"nonsense")
    assert await gathered_flows(log) == []
