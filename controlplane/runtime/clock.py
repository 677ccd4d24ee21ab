"""Time and chance: the only place that reads either. Everything else is handed a Clock.

Belongs here: clocks, waiting for a time, and random numbers for jitter and names. Does not belong here: any decision
about what a time means.
"""

import asyncio
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
