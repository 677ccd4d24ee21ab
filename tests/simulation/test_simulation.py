"""Whatever happens to a mesh, every invariant holds at every step, and in the end each kernel holds what the log says.

A failing seed is in the test's name: `make simulate SEEDS=17` runs it again, step by step the same.
"""

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest

from controlplane.events import EVENTS
from tests.simulation.__main__ import told
from tests.simulation.faults import FAULTS
from tests.simulation.process import WATCH_FAULTS
from tests.simulation.run import simulate

SEEDS = 10
SEEDS_MAX = 40
"""Where the search for what these seeds have not met ends."""
ROOT = Path(__file__).parent.parent.parent
DEADLINE_S = 120
HISTORY = ("segment sealed", "segment left", "past told", "restored", "append resent", "rejected")
_SEEN: Counter[str] = Counter()


@pytest.mark.parametrize("seed", range(SEEDS))
def test_every_invariant_holds_at_every_step(seed: int) -> None:
    """Crashes between any two steps, cut-off and stopped processes, lost, late and forgotten appends, a watch that
    repeats, drops and mixes records, truncation, damaged checkpoints, a restored store, failing kernel calls."""
    course = simulate(seed)
    assert not course.broken, told(course)
    _SEEN.update(course.seen)


def test_these_seeds_meet_what_they_are_for() -> None:
    """Every fault and kind of event has come, so that the other test proves what it says. What a change of the product
    has moved out of these seeds is met by some more."""
    if len(_SEEN) < 10:
        pytest.skip("needs the runs of the other test before it")
    wanted = [f"fault: {act.__name__}" for act, _ in FAULTS] + [f"watch: {kind}" for kind in WATCH_FAULTS]
    wanted += [kind.__name__ for kind in EVENTS] + list(HISTORY)
    for seed in range(SEEDS, SEEDS_MAX):
        if not _missing(wanted):
            break
        test_every_invariant_holds_at_every_step(seed)
    assert not _missing(wanted)


def _missing(wanted: Sequence[str]) -> list[str]:
    return [each for each in wanted if not _SEEN[each]]


def test_a_seed_gives_the_same_run_again() -> None:
    """Step by step, in processes that hash differently: a failing seed can be looked at as often as it takes."""
    program = "from tests.simulation.run import simulate; course = simulate(3); print(course.trace, course.records)"
    traces = []
    for seed in ("1", "4242"):
        outcome = subprocess.run(
            [sys.executable, "-c", program], cwd=ROOT, env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True, text=True, timeout=DEADLINE_S, check=False,
        )  # fmt: skip
        assert outcome.returncode == 0, outcome.stderr
        traces.append(outcome.stdout)
    assert traces[0] == traces[1]
