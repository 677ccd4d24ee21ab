"""Limits of bandwidth: a class of a device's HTB queue for each endpoint, chosen by the priority that programs set.

Belongs here: making, finding and removing classes and the queue above them. Does not belong here: which endpoint has
which limit. Packets of no class pass the queue without a limit.

Ours is a root queue with handle 4d4c:, made with the first class of a device and removed with the last. Where another
owner has put a queue of his own at the root, the row fails.
"""

import errno

from datapath.abi.types import SHAPER_MAJOR
from datapath.errors import KernelError
from datapath.kernel import rtnetlink
from datapath.tables import ShaperKey, ShaperRow

HANDLE = SHAPER_MAJOR << 16
CLASS_MAX = 0xFFFF
BURST_BYTES_MIN = 1 << 17
"""Two segments as large as the kernel makes them, each of which passes as one packet."""
BURST_S = 0.01
TICK_NS = 64
"""The unit of times in requests about queues."""
UINT32_MAX = (1 << 32) - 1
QUANTUM_BYTES_MIN, QUANTUM_BYTES_MAX = 1500, 200_000


class Shapers:
    """Those of the network namespace that the thread which makes it is in."""

    def __init__(self) -> None:
        self._requests = rtnetlink.Requests()

    def close(self) -> None:
        """Lets go of the socket."""
        self._requests.close()

    def dump(self) -> dict[ShaperKey, ShaperRow]:
        """Every class of ours."""
        rows = {}
        for ifindex in self._requests.htb_queues(HANDLE):
            for handle, rate_bytes_s in self._requests.htb_classes(ifindex):
                if handle >> 16 == SHAPER_MAJOR:
                    rows[ShaperKey(ifindex, handle & CLASS_MAX)] = ShaperRow(rate_bytes_s)
        return rows

    def put(self, key: ShaperKey, row: ShaperRow) -> int:
        """Makes or changes a class, and the queue where it is missing; the errno, or 0. Raises KernelError for a
        number that is none."""
        if not 1 <= key.endpoint_id <= CLASS_MAX or row.rate_bytes_s < 1:
            raise KernelError(
                f"endpoint {key.endpoint_id} at {row.rate_bytes_s} bytes/s: right are an endpoint of 1 to {CLASS_MAX} "
                f"and a rate of at least 1",
                errno.EINVAL,
            )
        code = self._requests.add_htb(key.ifindex, HANDLE)
        if code and (code != errno.EEXIST or key.ifindex not in self._requests.htb_queues(HANDLE)):
            return code
        burst_bytes = max(BURST_BYTES_MIN, int(row.rate_bytes_s * BURST_S))
        burst_ticks = min(UINT32_MAX, burst_bytes * 1_000_000_000 // row.rate_bytes_s // TICK_NS)
        quantum = min(QUANTUM_BYTES_MAX, max(QUANTUM_BYTES_MIN, row.rate_bytes_s // 10))
        return self._requests.put_htb_class(
            key.ifindex, HANDLE | key.endpoint_id, HANDLE, row.rate_bytes_s, burst_ticks, quantum
        )

    def delete(self, key: ShaperKey) -> int:
        """Removes a class, and the queue with the last one; the errno, or 0. What is absent is no failure."""
        if key.ifindex not in self._requests.htb_queues(HANDLE):
            return 0
        code = self._requests.delete_htb_class(key.ifindex, HANDLE | key.endpoint_id, HANDLE)
        if code not in (0, errno.ENOENT, errno.ENODEV):
            return code
        if not self._requests.htb_classes(key.ifindex):
            code = self._requests.delete_queue(key.ifindex, HANDLE)
            return 0 if code in (0, errno.ENOENT, errno.ENODEV) else code
        return 0
