"""Two processes that hash differently come to the same bytes and the same rows."""

import os
import subprocess
import sys
from pathlib import Path

from controlplane.projections.state import State
from tests.controlplane.random_mesh import history
from tests.replay.fold import fingerprint, script

ROOT = Path(__file__).parent.parent.parent
DEADLINE_S = 120


def folded(seed: str) -> str:
    environment = {**os.environ, "PYTHONHASHSEED": seed}
    command = [sys.executable, "-m", "tests.replay.fold"]
    outcome = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=DEADLINE_S, check=False
    )
    assert outcome.returncode == 0, outcome.stderr
    return outcome.stdout.strip()


def test_hash_seeds_do_not_show() -> None:
    """Saved state, and every table of every node, whatever the order in which sets and dicts would iterate."""
    assert folded("1") == folded("4242")


def test_the_history_is_worth_folding() -> None:
    """It ends with endpoints, services with backends, and policy rows, so that the other test compares something."""
    lines = fingerprint(history(script()).state).splitlines()
    sizes: dict[str, int] = {}
    for line in lines[1:]:
        _, table, count, _ = line.split()
        sizes[table] = sizes.get(table, 0) + int(count)
    assert all(sizes[table] > 0 for table in ("devices", "backends", "policy", "routes"))


def test_replay_from_records_gives_the_fingerprint_of_deciding() -> None:
    """Folding a log that someone else wrote ends where the writer's own state ended."""
    log = history(script())
    state = State()
    for record in log.records:
        state.apply(record)
    assert fingerprint(state) == fingerprint(log.state)
