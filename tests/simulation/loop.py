"""An event loop on virtual time: the same coroutines with the same seed take the same turns in the same order.

Belongs here: time that jumps to the next timer as soon as nothing is left to do, threads that are none, tasks whose
order in a set does not depend on where they lie in memory. Does not belong here: anything about a mesh.
"""

import asyncio
import gc
import itertools
import selectors
import warnings
from collections.abc import Callable, Coroutine
from contextvars import ContextVar
from typing import Any, Protocol, TypeVar

Result = TypeVar("Result")


class Gate(Protocol):
    """Whose work passes through it; it may never come out again."""

    async def at(self, point: str) -> None:
        """Return at once, later, or never."""
        ...


OWNER: ContextVar[Gate | None] = ContextVar("OWNER", default=None)
"""The simulated process that the running task belongs to."""


class Standstill(Exception):
    """Nothing is left to do and nothing is due: whoever waits, waits for ever."""


class _Task(asyncio.Task[Any]):
    """A task with a number: sets of tasks, as in a TaskGroup, then have an order of their own."""

    _numbers = itertools.count()

    def __init__(self, *arguments: Any, **named: Any) -> None:
        self._number = next(self._numbers)
        super().__init__(*arguments, **named)

    def __hash__(self) -> int:
        return self._number


class _Selector(selectors.SelectSelector):
    """Where a loop would wait for `timeout` seconds, that much time has passed instead."""

    now_s = 0.0

    def select(self, timeout: float | None = None) -> Any:
        ready = super().select(0)
        if not ready:
            if timeout is None:
                raise Standstill
            self.now_s += max(timeout, 0.0)
        return ready


class VirtualLoop(asyncio.SelectorEventLoop):
    """Time begins at 0. What is handed to a thread is done at once, in the loop."""

    def __init__(self) -> None:
        self._virtual = _Selector()
        super().__init__(self._virtual)
        self._clock_resolution = 1e-9
        _Task._numbers = itertools.count()
        self.set_task_factory(lambda loop, work, **named: _Task(work, loop=loop, **named))

    def time(self) -> float:
        """Virtual seconds."""
        return self._virtual.now_s

    def run_in_executor(self, executor: Any, function: Callable[..., Any], *arguments: Any) -> "asyncio.Future[Any]":
        """A process may die before and after, like anywhere else."""
        return asyncio.ensure_future(self._call(function, arguments), loop=self)

    async def _call(self, function: Callable[..., Any], arguments: Any) -> Any:
        owner = OWNER.get()
        if owner is not None:
            await owner.at("before file")
        found = function(*arguments)
        if owner is not None:
            await owner.at("after file")
        return found


def run_virtual(work: Callable[[], Coroutine[Any, Any, Result]]) -> Result:
    """Run it to its end on a loop of its own; whatever is left over then is thrown away, as processes are.

    No garbage is collected meanwhile: when a finalizer runs would depend on everything that ran before.
    """
    was_collecting = gc.isenabled()
    gc.disable()
    loop = VirtualLoop()
    complaints: list[Any] = []
    loop.set_exception_handler(lambda _, context: complaints.append(context))
    try:
        asyncio.set_event_loop(loop)
        return loop.run_until_complete(work())
    finally:
        _throw_away(loop)
        if was_collecting:
            gc.enable()


def _throw_away(loop: VirtualLoop) -> None:
    """Tasks of dead processes wait for ever, some were never started: that is no mistake here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        while left := asyncio.all_tasks(loop):
            for task in left:
                task.cancel()
            loop.run_until_complete(asyncio.sleep(0.01))
        asyncio.set_event_loop(None)
        loop.close()
        gc.unfreeze()  # an agent that gets ready freezes what there is
        gc.collect()
