"""Many generated events come to the same bytes and the same rows, whoever folds them."""

import os
import shutil
import subprocess
import sys

import pytest

from tests.replay.million import ROOT, fingerprints

EVENTS = 4000
"""`python -m tests.replay.million` folds a million."""
OTHERS = ("/usr/bin/python3", "python3.11", "python3.12", "python3.13", "python3.14")
VERSION = "import sys, msgspec, hypothesis, controlplane.codec; print(sys.version.split()[0])"


def other_pythons() -> dict[str, str]:
    """By version, those that are not this one and have, or can take from here, what a fold needs. MESHLOG_PYTHONS names
    more, separated by commas."""
    found: dict[str, str] = {}
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    for name in (*filter(None, os.environ.get("MESHLOG_PYTHONS", "").split(",")), *OTHERS):
        path = shutil.which(name)
        if path is None:
            continue
        told = subprocess.run(
            [path, "-c", VERSION], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60, check=False
        )
        version = told.stdout.strip()
        if told.returncode == 0 and version != sys.version.split()[0]:
            found.setdefault(version, path)
    return found


def test_hash_seeds_do_not_show_in_many_events() -> None:
    """Decided, folded, and started from checkpoints again, in two processes."""
    first, second = fingerprints(EVENTS)
    assert first == second


def test_python_versions_do_not_show_in_many_events() -> None:
    """The same state and the same rows of every node from each Python that this machine has."""
    others = other_pythons()
    if not others:
        pytest.skip(f"no other Python has msgspec: this is {sys.version.split()[0]}; MESHLOG_PYTHONS may name one")
    assert len(set(fingerprints(EVENTS // 4, (sys.executable, *others.values())))) == 1, list(others)
