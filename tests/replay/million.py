"""Folds many generated events in two processes that hash differently, and says whether they agree.

Belongs here: generating without keeping, and comparing. Does not belong here: what a wish is (random_mesh.py).

    python -m tests.replay.million [EVENTS]          a million, in two processes; exit code 1 where they differ
    python -m tests.replay.million fold EVENTS       one of them: prints the fingerprint

Each event is decided as an operator or an agent would have it, but for forgeries now and then.
"""

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from controlplane.codec import encode
from controlplane.events import Batch, Event
from controlplane.projections.state import State
from tests.controlplane.random_mesh import LAST, LEAVE, Log, Step, forgery, joined, wish
from tests.replay.fold import fingerprint

MILLION = 1_000_000
CHECKPOINT_EVENTS = 1_500
SEEDS = ("1", "4242")
ROOT = Path(__file__).parent.parent.parent


class _Fold(Log):
    """Keeps the state and no record; starts again from its own checkpoint now and then."""

    def __init__(self) -> None:
        super().__init__()
        self.events = 0
        self._due = CHECKPOINT_EVENTS

    def write(self, cluster: str, writer: str, *events: Event) -> tuple[Any, ...]:
        payload = encode(Batch(1, self.events, 0, events))
        changed = self.state.apply(self.state.next_record(cluster, writer, payload))
        self.events += len(events)
        if self.events >= self._due:
            self.state, self._due = State.load(self.state.save()), self._due + CHECKPOINT_EVENTS
        return changed


def steps() -> Iterator[Step]:
    """Numbers as good as random and always the same, in every version of Python: a linear congruential generator
    (Knuth's MMIX). No cluster leaves."""
    seed = 1
    while True:
        found = []
        for bound in (LAST + 1, 6, 4, 4):
            seed = (seed * 6_364_136_223_846_793_005 + 1_442_695_040_888_963_407) % 2**64
            found.append((seed >> 33) % bound)
        if found[0] != LEAVE:
            yield found[0], found[1], found[2], found[3]


def fold(events: int) -> State:
    """The state after so many events at least."""
    log = _Fold()
    for author, command in joined():
        log.wish(author, command)
    for step in steps():
        if log.events >= events:
            break
        if step[0] == LAST:
            cluster, writer, forged = forgery((log.events, *step[1:]))
            log.write(cluster, writer, *forged)
        else:
            log.wish(*wish(step))
    return log.state


def fingerprints(events: int, pythons: Sequence[str] = (sys.executable,)) -> list[str]:
    """Of every Python with every hash seed, side by side. Raises RuntimeError for a process that failed."""
    running = []
    for python in pythons:
        for seed in SEEDS:
            environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
            command = [python, "-m", "tests.replay.million", "fold", str(events)]
            pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
            running.append(subprocess.Popen(command, cwd=ROOT, env=environment, text=True, **pipes))
    found = []
    for process in running:
        told, complaint = process.communicate()
        if process.returncode:
            raise RuntimeError(complaint)
        found.append(told.strip())
    return found


def main(arguments: Sequence[str]) -> int:
    """0: they agree; 1: they do not."""
    if arguments[:1] == ["fold"]:
        print(fingerprint(fold(int(arguments[1]))))
        return 0
    events = int(arguments[0]) if arguments else MILLION
    started_s = time.monotonic()
    print(f"folding {events} events in {len(SEEDS)} processes ...", file=sys.stderr, flush=True)
    first, *others = fingerprints(events)
    agree = all(each == first for each in others)
    print(first)
    print(f"{'equal' if agree else 'DIFFERENT'} with hash seeds {', '.join(SEEDS)}, {time.monotonic() - started_s:.0f} s")
    return 0 if agree else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
