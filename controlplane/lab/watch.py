"""`meshlog monitor` of one node, read as a stream while flows are tried.

Belongs here: the program's start, its lines, its end.
"""

import json
import subprocess
import threading
import time
from typing import Any, Self

from controlplane.lab import nodes
from controlplane.lab.topology import LabNode

DROP_S_MAX = 5.0


class DropWatch:
    """Collects drops of a node from the moment the block is entered."""

    def __init__(self, node: LabNode) -> None:
        self._node = node
        self._drops: list[dict[str, Any]] = []
        self._changed = threading.Condition()
        self._listening = threading.Event()

    def __enter__(self) -> Self:
        """Returns once the program listens."""
        argv = [nodes.meshlog_program(), "monitor", "-t", "drop", "-o", "json", "--socket", self._node.socket]
        self._program = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self._threads = [threading.Thread(target=self._read_drops), threading.Thread(target=self._read_notes)]
        for thread in self._threads:
            thread.start()
        self._listening.wait(DROP_S_MAX)
        return self

    def __exit__(self, *_: object) -> None:
        self._program.terminate()
        for thread in self._threads:
            thread.join()
        self._program.wait()

    def find(self, source: str, target: str) -> dict[str, Any] | None:
        """The first drop from one address to the other; waits up to 5 s for it."""
        deadline = time.monotonic() + DROP_S_MAX
        with self._changed:
            while True:
                for drop in self._drops:
                    if (drop.get("source"), drop.get("target")) == (source, target):
                        return drop
                if not self._changed.wait(max(0.0, deadline - time.monotonic())):
                    return None

    def _read_drops(self) -> None:
        assert self._program.stdout
        for line in self._program.stdout:
            with self._changed:
                self._drops.append(json.loads(line))
                self._changed.notify_all()

    def _read_notes(self) -> None:
        assert self._program.stderr
        for line in self._program.stderr:
            if line.startswith("Listening"):
                self._listening.set()
        self._listening.set()
