"""How a long-running process begins and ends: one line on stderr when it cannot start, a clean end on SIGTERM.

Belongs here: signals, exit codes, the loop. Does not belong here: what the process runs.
"""

import asyncio
import gc
import signal
import sys
from collections.abc import Awaitable, Callable

import uvloop

from controlplane.api.server import SocketTaken
from controlplane.runtime.flags import EXIT_BAD_FLAG
from controlplane.runtime.place import PlaceTaken
from controlplane.runtime.underlay import UnderlayError
from controlplane.settings import SettingsError
from datapath.errors import DatapathError
from kvstore.errors import LogError

EXIT_FAILED = 1

COLLECTOR_THRESHOLDS = (50_000, 20, 20)
"""For gc.set_threshold. Nearly all that a process makes is state that stays, and next to nothing is cyclic; with
Python's own 700 a fold of 50,000 endpoints spends a third of its time looking for garbage."""

START_ERRORS = (DatapathError, LogError, PlaceTaken, SettingsError, SocketTaken, UnderlayError)
"""What a person can act on: told in one line, without a traceback."""


def run_process(program: str, run: Callable[[asyncio.Event], Awaitable[None]]) -> int:
    """Run until `run` returns; the event it is given is set by SIGTERM or SIGINT. The exit code."""
    tune_collector()
    try:
        uvloop.run(_with_signals(run))
    except BaseExceptionGroup as group:
        causes = _causes(group)
        if not all(isinstance(cause, START_ERRORS) for cause in causes):
            raise
        return complain(program, causes[0])
    except START_ERRORS as error:
        return complain(program, error)
    return 0


def tune_collector() -> None:
    """From now on the garbage collector runs seldom, and leaves alone what is there already."""
    gc.set_threshold(*COLLECTOR_THRESHOLDS)
    gc.freeze()
    gc.enable()


def complain(program: str, error: BaseException) -> int:
    """One line, and the exit code: 2 for a wrong setting, 1 for everything else."""
    text = " ".join(str(error).split()) or type(error).__name__
    print(f"{program}: {text}", file=sys.stderr)
    return EXIT_BAD_FLAG if isinstance(error, SettingsError) else EXIT_FAILED


async def _with_signals(run: Callable[[asyncio.Event], Awaitable[None]]) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    await run(stop)


def _causes(group: BaseExceptionGroup[BaseException]) -> list[BaseException]:
    found: list[BaseException] = []
    for error in group.exceptions:
        found += _causes(error) if isinstance(error, BaseExceptionGroup) else [error]
    return found
