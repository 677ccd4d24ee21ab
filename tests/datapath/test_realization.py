"""Passes against a kernel with faults: they end with what is desired, and say what they could not write."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datapath import codec
from datapath.delta import Pending
from datapath.digest import digest_of
from datapath.errors import KernelError
from datapath.kernel.fake import Crash, FakeKernel, KernelMemory
from datapath.realization import Realization, Report
from datapath.status import RowState
from datapath.tables import TABLES, Desired, DeviceKey, DeviceRow
from tests.datapath.rows import (
    Tables,
    changes,
    complete,
    encoded,
    endpoint_tables,
    merged,
    service_tables,
    state_sequences,
)

LONG_S = 60.0


def take(realization: Realization, desired: Desired | None = None, now_s: float = 0.0) -> Report:
    """One pass with one offer."""
    pending = Pending()
    if desired is not None:
        pending.merge(desired)
    return realization.converge(pending, now_s)


def opened(kernel: FakeKernel) -> Realization:
    """Ready for the first pass."""
    realization = Realization(kernel)
    realization.open()
    return realization


def due(report: Report) -> float:
    """The time of the next retry; there must be one."""
    assert report.retry_at_s is not None
    return report.retry_at_s


def device(number: int) -> tuple[DeviceKey, DeviceRow]:
    """A row without references."""
    return DeviceKey(number), DeviceRow(bytes(16), bytes(16), number, number, bytes(6))


@given(state_sequences(4))
def test_incremental_is_complete(states: list[Tables]) -> None:
    """Changes offered one after the other end with the rows that one complete offer gives."""
    kernel = FakeKernel()
    realization = opened(kernel)
    take(realization, complete(0, states[0]))
    for generation in range(1, len(states)):
        take(realization, changes(generation, states[generation - 1], states[generation]))
    assert kernel.memory.tables == encoded(states[-1])


@given(state_sequences(3), st.data())
def test_converges_through_faults_and_crashes(states: list[Tables], data: st.DataObject) -> None:
    """Rows that fail, calls that break off and agents that are killed at any write: the end is what is
    desired."""
    memory = KernelMemory()
    for generation, state in enumerate(states):
        kernel = FakeKernel(memory)
        kernel.crash_after(data.draw(st.integers(0, 12)))
        for table, rows in encoded(state).items():
            for key in rows:
                kernel.fail(table, key, times=data.draw(st.integers(0, 2)))
        kernel.fail_call(
            data.draw(st.sampled_from(["put", "delete"])), data.draw(st.sampled_from(sorted(TABLES))), 1
        )
        realization = opened(kernel)
        try:
            take(realization, complete(generation, state))
        except Crash:
            continue
        for attempt in range(1, 6):
            try:
                take(realization, now_s=attempt * LONG_S)
            except Crash:
                break
    kernel = FakeKernel(memory)
    report = take(opened(kernel), complete(9, states[-1]))
    assert memory.tables == encoded(states[-1])
    assert report.not_done == ()


@given(state_sequences(3), st.data())
def test_retries_alone_settle_everything(states: list[Tables], data: st.DataObject) -> None:
    """Without a new offer, passes at the times of the retries end with nothing left to write."""
    kernel = FakeKernel()
    realization = opened(kernel)
    for generation, state in enumerate(states):
        for table, rows in encoded(state).items():
            for key in rows:
                kernel.fail(table, key, times=data.draw(st.integers(0, 3)))
        report = take(realization, complete(generation, state), now_s=generation * LONG_S)
    for _ in range(100):
        if report.retry_at_s is None:
            break
        report = take(realization, now_s=due(report))
    assert kernel.memory.tables == encoded(states[-1])
    assert report.not_done == ()


@given(state_sequences(3))
def test_digests_follow_the_kernel(states: list[Tables]) -> None:
    """The digests that are kept up row by row are those of a dump."""
    kernel = FakeKernel()
    realization = opened(kernel)
    for generation, state in enumerate(states):
        report = take(realization, complete(generation, state))
        assert report.digests == {table: digest_of(rows) for table, rows in kernel.memory.tables.items()}


@given(state_sequences(1))
def test_restart_with_nothing_changed_writes_nothing(states: list[Tables]) -> None:
    """A second agent that wants the same makes no write at all, and its counters say so."""
    memory = KernelMemory()
    take(opened(FakeKernel(memory)), complete(1, states[0]))
    writes = memory.writes
    report = take(opened(FakeKernel(memory)), complete(1, states[0]))
    assert memory.writes == writes
    assert all(count == (0, 0) for count in report.writes.values())


def test_writes_are_counted() -> None:
    """Counters hold rows put and deleted, by table, since start."""
    realization = opened(FakeKernel())
    take(realization, complete(1, {"devices": dict([device(1), device(2)])}))
    report = take(realization, complete(2, {"devices": dict([device(2)])}))
    assert report.writes["devices"] == (2, 1)


def test_nothing_is_pruned_before_a_complete_offer() -> None:
    """Rows of an earlier agent stay until it is known that nobody wants them."""
    memory = KernelMemory()
    take(opened(FakeKernel(memory)), complete(1, {"devices": dict([device(1)])}))
    realization = opened(FakeKernel(memory))
    take(realization, Desired(2, False, {"devices": dict([device(2)])}))
    realization.repair(0.0)
    assert memory.tables["devices"].keys() == {codec.encode_key("devices", DeviceKey(n)) for n in (1, 2)}


def test_an_explicit_removal_needs_no_complete_offer() -> None:
    """A row that an incomplete offer removes goes, also after a call that broke off."""
    memory = KernelMemory()
    take(opened(FakeKernel(memory)), complete(1, {"devices": dict([device(1)])}))
    kernel = FakeKernel(memory)
    realization = opened(kernel)
    kernel.fail_call("delete", "devices", times=1)
    report = take(realization, Desired(2, False, {"devices": {DeviceKey(1): None}}))
    assert take(realization, now_s=due(report)).not_done == ()
    assert memory.tables["devices"] == {}


def test_a_complete_offer_prunes() -> None:
    """What a complete offer does not hold goes."""
    memory = KernelMemory()
    take(opened(FakeKernel(memory)), complete(1, {"devices": dict([device(1)])}))
    take(opened(FakeKernel(memory)), complete(2, {"devices": dict([device(2)])}))
    assert memory.tables == encoded({"devices": dict([device(2)])})


def test_a_failing_row_stops_no_other() -> None:
    """One row fails with its errno on record; the others are in the kernel, and the generation is
    realized."""
    kernel = FakeKernel()
    realization = opened(kernel)
    key = codec.encode_key("devices", DeviceKey(2))
    kernel.fail("devices", key, times=1, error=7)
    report = take(realization, complete(3, {"devices": dict([device(1), device(2), device(3)])}))
    (failing,) = report.not_done
    assert (failing.table, failing.key, failing.state, failing.errno, failing.attempts) == (
        "devices",
        key,
        RowState.ERROR,
        7,
        1,
    )
    assert len(kernel.memory.tables["devices"]) == 2
    assert report.realized_generation == 3
    assert report.summary.done == 2
    assert report.summary.lowest_failing_generation == 3


def test_a_failing_row_waits_for_its_time() -> None:
    """A pass before the retry is due does not try again; one after it does."""
    kernel = FakeKernel()
    realization = opened(kernel)
    kernel.fail("devices", codec.encode_key("devices", DeviceKey(1)), times=1)
    report = take(realization, complete(1, {"devices": dict([device(1)])}))
    early = take(realization, Desired(2, False, {}), now_s=due(report) / 2)
    assert early.not_done[0].attempts == 1
    assert kernel.memory.tables["devices"] == {}
    assert take(realization, now_s=due(report)).not_done == ()


def test_dependents_of_a_failing_row_are_pending() -> None:
    """A route to a device that could not be guarded waits, and says for what."""
    tables = merged(endpoint_tables(1, 11), endpoint_tables(2, 12))
    kernel = FakeKernel(KernelMemory(devices={11}))
    report = take(opened(kernel), complete(1, tables))
    pending = {row.table: row.reason for row in report.not_done if row.state is RowState.PENDING}
    assert pending == {
        "endpoints": "waits for attachments up of device 12",
        "routes": "waits for attachments up of device 12",
    }
    assert len(kernel.memory.tables["routes"]) == 1


def test_a_device_that_comes_late_is_served_by_the_retry() -> None:
    """Once the device is there, the retry writes its program and then what waited for it."""
    memory = KernelMemory(devices=set())
    realization = opened(FakeKernel(memory))
    report = take(realization, complete(1, endpoint_tables(1, 11)))
    memory.devices = {11}
    assert take(realization, now_s=due(report)).not_done == ()
    assert memory.tables == encoded(endpoint_tables(1, 11))


def test_a_full_map_recovers_when_rows_go() -> None:
    """Rows that did not fit are written once others have gone."""
    memory = KernelMemory()
    memory.limits["devices"] = 1
    realization = opened(FakeKernel(memory))
    take(realization, complete(1, {"devices": dict([device(1)])}))
    report = take(realization, complete(2, {"devices": dict([device(2)])}))
    assert report.summary.error == 1
    assert take(realization, now_s=due(report)).not_done == ()


def test_a_call_that_breaks_off_is_read_again() -> None:
    """After a call that raised half way, the table is read anew and only the rest is written."""
    kernel = FakeKernel()
    realization = opened(kernel)
    kernel.fail_call("put", "devices", times=1)
    report = take(realization, complete(1, {"devices": dict([device(1), device(2)])}))
    assert report.stale_tables == ("devices",)
    writes = kernel.memory.writes
    report = take(realization, now_s=due(report))
    assert (report.not_done, report.stale_tables) == ((), ())
    assert kernel.memory.writes - writes == 1


def test_open_reports_a_dump_that_fails() -> None:
    """Without knowing what the kernel holds there is no start."""
    kernel = FakeKernel()
    kernel.fail_call("dump", "routes", times=1)
    with pytest.raises(KernelError, match="routes"):
        Realization(kernel).open()


def test_verify_names_what_differs() -> None:
    """A missing, an alien and a corrupted row are found, each with its typed key and rows."""
    kernel = FakeKernel()
    realization = opened(kernel)
    take(realization, complete(1, {"devices": dict([device(1), device(2)])}))
    held = kernel.memory.tables["devices"]
    del held[codec.encode_key("devices", DeviceKey(1))]
    held[codec.encode_key("devices", DeviceKey(2))] = codec.encode_row("devices", device(9)[1])
    held[codec.encode_key("devices", DeviceKey(3))] = codec.encode_row("devices", device(3)[1])
    found = next(each for each in realization.verify() if each.table == "devices")
    assert [(each.kind, each.key, each.desired, each.found) for each in found.differences] == [
        ("missing", DeviceKey(1), device(1)[1], None),
        ("alien", DeviceKey(3), None, device(3)[1]),
        ("corrupted", DeviceKey(2), device(2)[1], device(9)[1]),
    ]
    assert found.desired == found.realized != found.kernel


def test_verify_of_what_is_right() -> None:
    """Three equal digests and no differences, for every table."""
    kernel = FakeKernel()
    realization = opened(kernel)
    take(realization, complete(1, merged(endpoint_tables(1, 11), service_tables(1, 4, 2))))
    for found in realization.verify():
        assert found.desired == found.realized == found.kernel
        assert (found.missing, found.alien, found.corrupted, found.error) == (0, 0, 0, "")


def test_verify_shows_bytes_that_are_no_row() -> None:
    """A row of another layout is shown as bytes instead of stopping the comparison."""
    kernel = FakeKernel()
    realization = opened(kernel)
    take(realization, complete(1, {}))
    kernel.memory.tables["attachments"][b"\xc1"] = b"\xc1"
    found = next(each for each in realization.verify() if each.table == "attachments")
    assert found.differences[0].key == b"\xc1"


def test_verify_reports_a_dump_that_fails() -> None:
    """A table that cannot be read says why; the others are compared all the same."""
    kernel = FakeKernel()
    realization = opened(kernel)
    kernel.fail_call("dump", "routes", times=1)
    errors = {found.table: found.error for found in realization.verify() if found.error}
    assert errors == {"routes": "unreadable: dump of routes: injected"}


@given(state_sequences(2))
def test_repair_makes_it_right(states: list[Tables]) -> None:
    """Whatever else wrote into the kernel, repair brings back what is desired."""
    kernel = FakeKernel()
    realization = opened(kernel)
    take(realization, complete(1, states[0]))
    kernel.memory.tables.update(encoded(states[1]))
    realization.repair(0.0)
    assert kernel.memory.tables == encoded(states[0])
    assert all(found.desired == found.realized == found.kernel for found in realization.verify())


def test_cost_follows_the_change() -> None:
    """A change of one row touches one row, however many there are: one write, in one call."""
    kernel = FakeKernel()
    realization = opened(kernel)
    take(realization, complete(1, {"devices": dict(device(number) for number in range(1, 2000))}))
    writes = kernel.memory.writes
    take(realization, Desired(2, False, {"devices": {DeviceKey(7): device(9)[1]}}))
    assert kernel.memory.writes - writes == 1


def test_repair_before_the_first_complete_offer_keeps_removals() -> None:
    """A removal that failed is not forgotten by a repair, and rows that nobody spoke of stay."""
    memory = KernelMemory()
    take(opened(FakeKernel(memory)), complete(1, {"devices": dict([device(1), device(2)])}))
    kernel = FakeKernel(memory)
    realization = opened(kernel)
    kernel.fail("devices", codec.encode_key("devices", DeviceKey(1)), times=1)
    take(realization, Desired(2, False, {"devices": {DeviceKey(1): None}}))
    realization.repair(0.0)
    assert memory.tables == encoded({"devices": dict([device(2)])})
