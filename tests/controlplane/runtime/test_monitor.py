"""The reader of the notification ring: what it keeps for those who come later, and what it hands on."""

import asyncio
import os

import pytest

from controlplane.runtime.monitor import Monitor
from controlplane.runtime.telemetry import Counters
from datapath.abi.types import STRUCTS
from datapath.notifications import RECORD_BYTES


class PipedRing:
    """A ring whose records a test writes into a pipe."""

    def __init__(self) -> None:
        self._out, self._in = os.pipe()

    def fileno(self) -> int:
        """To wait on."""
        return self._out

    def tell(self, first: int, count: int) -> None:
        """So many records at once; the length counts up from `first`."""
        place = next(field.offset for field in STRUCTS["notification"].fields if field.name == "length")
        for number in range(first, first + count):
            record = bytearray(RECORD_BYTES)
            record[place : place + 4] = number.to_bytes(4, "little")
            os.write(self._in, record)

    def read(self) -> memoryview:
        """Everything that is there."""
        return memoryview(os.read(self._out, 65536))

    def close(self) -> None:
        """Both ends."""
        os.close(self._out)
        os.close(self._in)


@pytest.mark.parametrize("readings", [[1] * 9, [9], [2, 5, 2], [7, 1, 1]])
async def test_the_newest_are_kept_however_they_were_read(readings: list[int]) -> None:
    """As many as are asked for and kept, oldest first; whoever listens has all of them too."""
    ring, taken = PipedRing(), bytearray()
    monitor = Monitor(records_max=16, recent_max=4, counters=Counters(), take=taken.extend)
    monitor.start(ring)
    with monitor.listening() as listener:
        told = 0
        for count in readings:
            ring.tell(told, count)
            told += count
            while len(taken) < told * RECORD_BYTES:
                await asyncio.sleep(0)
        records, lost = await anext(listener.chunks())
    monitor.stop()
    assert [each.length for each in records] == list(range(9)) and not lost
    assert [each.length for each in monitor.recent(100)] == [5, 6, 7, 8]
    assert [each.length for each in monitor.recent(2)] == [7, 8]
    assert monitor.recent(0) == []
