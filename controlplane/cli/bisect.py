"""`meshlog log bisect`: the first revision at which a check fails.

Belongs here: the search by halves, and running the check. Does not belong here: what a check asks; it is any command,
and every `meshlog` command in it answers about MESHLOG_AT.
"""

import argparse
import os
import subprocess
import sys
from collections.abc import Callable, Sequence

from controlplane.cli.errors import FAILED, OK, CommandFailed
from controlplane.cli.main import AT_ENVIRONMENT
from controlplane.cli.target import socket_of

CANNOT_SAY = 125
"""Exit status of a check that can say nothing about a revision, as `git bisect` has it."""


def first_failing(revisions: Sequence[int], fails: Callable[[int], bool]) -> int:
    """Of revisions whose last one fails and whose first one does not: the first that fails, if it goes on failing."""
    low, high = 0, len(revisions) - 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if fails(revisions[middle]) else (middle, high)
    return revisions[high]


def run_bisect(arguments: argparse.Namespace, revisions: Sequence[int]) -> int:
    """Says each step on standard error, the answer on standard output. Raises CommandFailed."""
    socket = socket_of(arguments)

    def fails(revision: int) -> bool:
        environment = {**os.environ, AT_ENVIRONMENT: str(revision), "MESHLOG_SOCKET": socket}
        status = subprocess.run(arguments.check, shell=True, env=environment, check=False).returncode
        if status == CANNOT_SAY:
            raise CommandFailed(f"the check cannot say at revision {revision} (exit status {CANNOT_SAY})")
        print(f"revision {revision}: {'fails' if status else 'holds'}", file=sys.stderr)
        return bool(status)

    if not revisions:
        raise CommandFailed("no record lies between these points")
    if not fails(revisions[-1]):
        print(f"The check holds at the newest revision asked, {revisions[-1]}.", file=sys.stderr)
        return FAILED
    if len(revisions) == 1 or fails(revisions[0]):
        print(f"The check fails at the oldest revision asked, {revisions[0]}, already.", file=sys.stderr)
        return FAILED
    print(first_failing(revisions, fails))
    return OK
