"""`meshlog log bisect`: the first revision at which a check fails.

Belongs here: the search by halves, and running the check. Does not belong here: what a check asks; it is any command,
and every `meshlog` command in it answers about MESHLOG_AT.
"""

import argparse
import os
import subprocess
import sys
from collections.abc import Callable, Sequence

from controlplane.cli.errors import CANNOT_SAY, FAILED, OK, CommandFailed
from controlplane.cli.main import AT_ENVIRONMENT
from controlplane.cli.target import socket_of


def first_failing(revisions: Sequence[int], fails: Callable[[int], bool | None]) -> Sequence[int]:
    """Of revisions whose last one fails and whose first one does not: the first that fails, if it goes on failing.

    Several where the check could not say (None) of those between what holds and what fails.
    """
    low, high = 0, len(revisions) - 1
    unsaid: dict[int, None] = {}
    while True:
        between = [place for place in range(low + 1, high) if place not in unsaid]
        if not between:
            return revisions[low + 1 : high + 1]
        middle = between[len(between) // 2]
        answer = fails(revisions[middle])
        if answer is None:
            unsaid[middle] = None
        else:
            low, high = (low, middle) if answer else (middle, high)


def run_bisect(arguments: argparse.Namespace, revisions: Sequence[int], describe: Callable[[int], str]) -> int:
    """Says each step, and what the check prints, on standard error; on standard output the answer alone. `describe`
    tells what a record is. Raises CommandFailed."""
    socket = socket_of(arguments)

    def fails(revision: int) -> bool | None:
        environment = {**os.environ, AT_ENVIRONMENT: str(revision), "MESHLOG_SOCKET": socket}
        status = subprocess.run(
            arguments.check, shell=True, env=environment, check=False, stdout=sys.stderr
        ).returncode
        if status == CANNOT_SAY:
            print(f"revision {revision}: the check cannot say (exit status {CANNOT_SAY})", file=sys.stderr)
            return None
        print(f"revision {revision}: {'fails' if status else 'holds'}", file=sys.stderr, flush=True)
        return bool(status)

    if not revisions:
        raise CommandFailed("no record lies between these points")
    checks = len(revisions).bit_length() + 1
    print(f"{len(revisions)} revisions, about {checks} checks", file=sys.stderr, flush=True)
    newest, oldest = revisions[-1], revisions[0]
    if fails(newest) is not True:
        print(f"The check does not fail at the newest revision asked, {newest}.", file=sys.stderr)
        return FAILED
    at_oldest = None if len(revisions) == 1 else fails(oldest)
    if len(revisions) == 1 or at_oldest:
        print(f"The check does not hold at the oldest revision asked, {oldest}: begin earlier.", file=sys.stderr)
        return FAILED
    found = first_failing(revisions, fails)
    if len(found) > 1 and at_oldest is None and found[0] == revisions[1]:
        print(f"Before revision {found[-1]} the check could say nothing.", file=sys.stderr)
    elif len(found) > 1:
        among = ", ".join(map(str, found))
        print(f"The check cannot say which: the first that fails is one of {among}.", file=sys.stderr)
        return FAILED
    print(found[-1])
    print(describe(found[-1]), file=sys.stderr)
    return OK
