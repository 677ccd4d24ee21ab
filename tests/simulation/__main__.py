"""Run the simulation for many seeds, on all processors: `make simulate SEEDS=17`, `SEEDS=1..500`, `SEEDS=1..` for ever.

Belongs here: which seeds, and saying what came of them. Does not belong here: a run (run.py).

    python -m tests.simulation SEEDS [STEPS]      SEEDS: 17, 3,5,8, 1..500, or 1.. until interrupted
"""

import itertools
import os
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from multiprocessing import get_context

from tests.simulation.run import STEPS, Course, simulate

NOTES_SHOWN = 80
PROGRESS_S = 5.0


def seeds_of(text: str) -> Iterable[int]:
    """Raises ValueError."""
    first, dots, last = text.partition("..")
    if dots:
        return range(int(first), int(last) + 1) if last else itertools.count(int(first))
    return [int(part) for part in text.split(",")]


def _courses(seeds: Iterable[int], steps: int) -> Iterator[Course]:
    """In the order in which they end. A process for each processor, and few seeds under way, so that memory and an
    interruption have a bound."""
    work = zip(seeds, itertools.repeat(steps), strict=False)
    with get_context("fork").Pool(os.cpu_count()) as pool:
        while portion := list(itertools.islice(work, 64)):
            yield from pool.imap_unordered(_simulate, portion)


def _simulate(work: tuple[int, int]) -> Course:
    return simulate(*work)


def told(course: Course) -> str:
    """A failing seed, with the steps that led to it."""
    notes = "\n".join(course.notes[-NOTES_SHOWN:])
    return (
        f"seed {course.seed} fails after {course.virtual_s:.3f} virtual seconds and {course.records} records\n{notes}\n"
        f"{course.what}\nagain: make simulate SEEDS={course.seed}"
    )


def main(arguments: list[str]) -> int:
    """0: all held; 1: some did not; 2: wrong arguments."""
    try:
        seeds, steps = seeds_of(arguments[0]), int(arguments[1]) if len(arguments) > 1 else STEPS
    except (IndexError, ValueError):
        print(__doc__, file=sys.stderr)
        return 2
    failed: list[int] = []
    seen: Counter[str] = Counter()
    started_s = shown_s = time.monotonic()
    done = 0
    try:
        for course in _courses(seeds, steps):
            done += 1
            seen.update(course.seen)
            if course.broken:
                failed.append(course.seed)
                print(told(course), flush=True)
            if time.monotonic() - shown_s > PROGRESS_S:
                shown_s = time.monotonic()
                print(f"{done} seeds, {len(failed)} failed", file=sys.stderr, flush=True)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
    print("happened:", ", ".join(f"{what} {count}" for what, count in sorted(seen.items())))
    print(f"{done} seeds in {time.monotonic() - started_s:.0f} s; failed: {', '.join(map(str, sorted(failed))) or 'none'}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
