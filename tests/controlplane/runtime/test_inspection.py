"""That an agent notices when its kernel loses what was written, on a clock of the test's own."""

import asyncio
from types import SimpleNamespace
from typing import Any

from controlplane.runtime.inspection import AGAIN_S, Inspection
from controlplane.settings import AgentSettings
from datapath.realization import TableVerification

SETTINGS = AgentSettings(cluster="east", node="n1", inspect_s=60.0)
S = 1_000_000_000


class Clock:
    """Sleeps take no time and move it; the test's time is over when `end_s` is passed."""

    def __init__(self, end_s: float) -> None:
        self.now_s, self.end_s = 0.0, end_s

    def jitter(self, delay_s: float) -> float:
        return delay_s

    def time_ns(self) -> int:
        return int(self.now_s * S)

    async def sleep_s(self, delay_s: float) -> None:
        self.now_s += delay_s
        if self.now_s > self.end_s:
            raise asyncio.CancelledError


class Kernel:
    """A reconciler whose table "routes" lacks a row between two times, or has the fault that is given."""

    def __init__(self, clock: Clock, from_s: float, to_s: float, refused: tuple[str, ...] = (), fault: str = "") -> None:
        self.clock, self.from_s, self.to_s = clock, from_s, to_s
        self.refused, self.fault = refused, fault

    async def verify_table(self, table: str) -> TableVerification:
        lost = int(table == "routes" and self.from_s <= self.clock.now_s < self.to_s)
        if self.fault:
            return TableVerification(table, "", "", "", 0, 0, 0, (), self.fault if lost else "")
        return TableVerification(table, "", "", "", lost, 0, 0, (), "")

    def status(self) -> Any:
        return SimpleNamespace(not_done=[SimpleNamespace(table=table) for table in self.refused])


async def inspected(
    end_s: float, from_s: float, to_s: float, refused: tuple[str, ...] = (), fault: str = ""
) -> Inspection:
    clock = Clock(end_s)
    found = Inspection(Kernel(clock, from_s, to_s, refused, fault), clock, SETTINGS)  # type: ignore[arg-type]
    try:
        await found.run()
    except asyncio.CancelledError:
        return found


async def test_a_lost_row_is_a_problem_with_its_time_and_what_to_do() -> None:
    """Told since the first look that saw it, however often it was seen again."""
    found = await inspected(300, 50, 1000)
    assert found.since_ns == {"routes": 60 * S}
    (problem,) = found.problems()
    assert "since 1970-01-01 00:01:00 UTC: routes (1)" in problem and "--repair" in problem


async def test_a_row_that_is_back_is_no_problem_any_more() -> None:
    """Whoever put it back."""
    assert (await inspected(200, 50, 100)).problems() == []


async def test_what_is_gone_for_a_moment_is_no_problem() -> None:
    """A device that goes takes its rows along before the log knows: only what two looks saw counts."""
    found = await inspected(60 + AGAIN_S, 59, 60 + AGAIN_S)
    assert (found.since_ns, found.problems()) == ({}, [])


async def test_rows_that_the_kernel_refused_are_told_once() -> None:
    """The status names them as failing already."""
    assert (await inspected(300, 50, 1000, refused=("routes",))).problems() == []


async def test_a_pin_that_is_gone_is_a_problem_though_every_row_is_there() -> None:
    """Also of a table with a row that the kernel refused; it ends when the pin is back."""
    fault = "stray: no map is pinned at /sys/fs/bpf/x/routes and the programs use map 7"
    (problem,) = (await inspected(300, 50, 1000, refused=("routes",), fault=fault)).problems()
    assert "table routes" in problem and "since 1970-01-01 00:01:00 UTC" in problem and fault in problem
    assert (await inspected(200, 50, 100, fault=fault)).problems() == []
