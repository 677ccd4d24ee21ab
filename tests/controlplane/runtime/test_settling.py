"""When the kernel work that nothing waits for is done."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from controlplane.runtime.settling import Settling
from controlplane.settings import AgentSettings
from datapath.errors import KernelError
from datapath.kernel.fake import FakeKernel

SETTINGS = AgentSettings(cluster="east", node="n1", settle_quiet_s=1.0)


class Steps(FakeKernel):
    """A kernel with work for so many steps; the first `failures` of them fail."""

    def __init__(self, left: int, failures: int = 0) -> None:
        super().__init__()
        self.left, self.failures = left, failures

    def settle(self) -> bool:
        if self.failures:
            self.failures -= 1
            raise KernelError("refused by the test", 5)
        self.left -= 1
        return self.left > 0


class Creations:
    """Endpoints of which one is under way for the first `busy` questions."""

    def __init__(self, busy: int) -> None:
        self.busy = busy

    def idle_s(self) -> float:
        self.busy -= 1
        return 0.0 if self.busy >= 0 else 60.0


class Rounds:
    """A clock that ends the test after so many pauses."""

    def __init__(self, rounds: int) -> None:
        self.rounds = rounds

    async def sleep_s(self, seconds: float) -> None:
        self.rounds -= 1
        if self.rounds < 0:
            raise asyncio.CancelledError


class Inline:
    """Calls where it stands."""

    async def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return function(*arguments)


async def run(kernel: Steps, busy: int, rounds: int) -> None:
    """So many rounds of a node's settling."""
    parts: Any = (kernel, Inline(), Creations(busy), Rounds(rounds), SETTINGS)
    with pytest.raises(asyncio.CancelledError):
        await Settling(*parts).run()


async def test_all_steps_are_taken_while_nothing_waits() -> None:
    """One quiet round does it all."""
    kernel = Steps(5)
    await run(kernel, busy=0, rounds=1)
    assert kernel.left == 0


async def test_no_step_is_taken_around_a_creation() -> None:
    """A step holds up every change of a device, and so the endpoint that somebody waits for."""
    kernel = Steps(5)
    await run(kernel, busy=2, rounds=2)
    assert kernel.left == 5


async def test_a_step_that_fails_is_tried_again() -> None:
    """The next round goes on."""
    kernel = Steps(5, failures=1)
    await run(kernel, busy=0, rounds=2)
    assert kernel.left == 0
