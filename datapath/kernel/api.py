"""The door to one node's kernel: what real.py and fake.py both promise, under one contract suite.

Every call blocks; the reconciler makes them from one worker thread. Keys and rows are the bytes of codec.py,
in every table alike. Belongs here: the Protocol and its promises, nothing that does I/O.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple, Protocol


class RowFailure(NamedTuple):
    """A row that could not be written or removed: why, in words, with the errno where the kernel gave one."""

    key: bytes
    reason: str
    errno: int


class Kernel(Protocol):
    """One node: its maps, links, routes and neighbours. Only what carries our mark is dumped, changed or removed.

    A row of zeros in an array, node_state or tunnel, counts as absent: it can be put, and is not dumped.
    `attach_mode`: how programs are attached, "tcx" or "clsact"; "" before the first open.
    """

    attach_mode: str

    def open(self) -> None:
        """Load the programs or take up the pinned ones; create maps that are missing. Changes nothing that is
        already right. Raises datapath.errors.KernelError (FeatureUnsupported names the first kernel that has it)."""
        ...

    def dump(self, table: str) -> Mapping[bytes, bytes]:
        """What the kernel really holds of a table: of maps, the map that the attached programs use."""
        ...

    def put(self, table: str, rows: Sequence[tuple[bytes, bytes]]) -> Sequence[RowFailure]:
        """Write rows, idempotently, in the order given; the rows not in the answer are in the kernel."""
        ...

    def delete(self, table: str, keys: Sequence[bytes]) -> Sequence[RowFailure]:
        """Remove rows; removing what is absent is no failure."""
        ...

    def stray_pins(self, restore: bool = False) -> Mapping[str, str]:
        """Maps that the next start would not find as the programs use them, since somebody has taken away or replaced
        their pins: by name, what is there instead. `restore`: they are pinned again. Raises KernelError where that
        fails."""
        ...

    def dump_runtime(self, map_name: str) -> Iterable[tuple[bytes, bytes]]:
        """Entries of a runtime map; of a per-CPU map the value holds every CPU's row, one after the other."""
        ...

    def put_runtime(self, map_name: str, rows: Sequence[tuple[bytes, bytes]]) -> None:
        """Write entries of a runtime map over those that are there; what a program writes at the same moment is
        lost."""
        ...

    def delete_runtime(self, map_name: str, keys: Sequence[bytes]) -> int:
        """Remove entries of a runtime map; the number that were there."""
        ...

    def end_sockets(self, cookies: frozenset[int]) -> int:
        """End the node's connected UDP sockets of these cookies, in whatever namespace: their next call fails with
        ECONNABORTED. How many there were. May be called from any thread. Raises KernelError."""
        ...

    def settle(self) -> bool:
        """One step of work that nothing waits for and that no table shows, some 30 ms long; False when there is none
        left. Raises KernelError."""
        ...

    def close(self) -> None:
        """Let go of descriptors. What is pinned goes on working."""
        ...
