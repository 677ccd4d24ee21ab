"""What keeps tests that build a lab apart, where several processes share the work.

Belongs here: the lock. Does not belong here: the lab itself (lab.py).
"""

import fcntl
from collections.abc import Iterator
from pathlib import Path

import pytest

LOCK = Path("/run/lock/meshlog-lab-tests")


@pytest.fixture(scope="module", autouse=True)
def alone(request: pytest.FixtureRequest) -> Iterator[None]:
    """A lab has names that can be on a machine only once, so that the modules that build one take turns."""
    if not hasattr(request.module, "lab"):
        yield
        return
    LOCK.parent.mkdir(parents=True, exist_ok=True)
    with LOCK.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
