"""Time and chance: the only place that reads either. Everything else is handed a Clock.

Belongs here: clocks, waiting for a time, and random numbers for jitter and names. Does not belong here: any decision
about what a time means.
"""

import asyncio
import heapq
import random
import time
from typing import Protocol


class Clock(Protocol):
    """What the runtime may ask of time and chance."""

    def time_ns(self) -> int:
        """Wall clock, nanoseconds since the epoch: information for people, never order."""
        ...

    def monotonic_s(self) -> float:
        """Seconds that only go forward, from an arbitrary start."""
        ...

    async def sleep_s(self, delay_s: float) -> None:
        """Return when `delay_s` seconds have passed."""
        ...

    def jitter(self, value: float) -> float:
        """`value` times a random factor between 0.8 and 1.2."""
        ...

    def token(self) -> str:
        """Eight random hexadecimal digits, for a name that must not be met again."""
        ...


class SystemClock:
    """The machine's time and the operating system's chance."""

    def __init__(self) -> None:
        self._random = random.SystemRandom()

    def time_ns(self) -> int:
        """See Clock."""
        return time.time_ns()

    def monotonic_s(self) -> float:
        """See Clock."""
        return time.monotonic()

    async def sleep_s(self, delay_s: float) -> None:
        """See Clock."""
        await asyncio.sleep(delay_s)

    def jitter(self, value: float) -> float:
        """See Clock."""
        return value * self._random.uniform(0.8, 1.2)

    def token(self) -> str:
        """See Clock."""
        return f"{self._random.getrandbits(32):08x}"


class VirtualClock:
    """Time that stands still until `advance_s`; chance from a seed. For simulations, which must be repeatable."""

    def __init__(self, seed: int, start_ns: int = 1_700_000_000_000_000_000) -> None:
        self._random = random.Random(seed)
        self._start_ns = start_ns
        self._now_s = 0.0
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []
        self._count = 0

    def time_ns(self) -> int:
        """See Clock."""
        return self._start_ns + int(self._now_s * 1e9)

    def monotonic_s(self) -> float:
        """See Clock."""
        return self._now_s

    async def sleep_s(self, delay_s: float) -> None:
        """See Clock."""
        woken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._count += 1
        heapq.heappush(self._sleepers, (self._now_s + delay_s, self._count, woken))
        await woken

    def advance_s(self, step_s: float) -> None:
        """Let `step_s` pass and wake, in order of their times, those whose time has come."""
        self._now_s += step_s
        while self._sleepers and self._sleepers[0][0] <= self._now_s:
            woken = heapq.heappop(self._sleepers)[2]
            if not woken.done():
                woken.set_result(None)

    def jitter(self, value: float) -> float:
        """See Clock."""
        return value * self._random.uniform(0.8, 1.2)

    def token(self) -> str:
        """See Clock."""
        return f"{self._random.getrandbits(32):08x}"
