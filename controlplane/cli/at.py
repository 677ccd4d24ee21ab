"""The flag --at of commands that read. Belongs here: the flag, its place in a request, what is said about it."""

import argparse
import os
import sys
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlencode

from controlplane.cli.main import AT_ENVIRONMENT

POINT = "a revision, a time (RFC 3339; UTC if no zone is given) or so long ago (-10m)"


def add_at(parser: argparse.ArgumentParser) -> None:
    """Times are those of the writers' clocks, so the revision that is used is said on standard error."""
    parser.add_argument(
        "--at", default=os.environ.get(AT_ENVIRONMENT, ""), metavar="POINT",
        help=f"as it was then: {POINT}; by the writers' clocks. Default: {AT_ENVIRONMENT}, else now",
    )  # fmt: skip


def asked(path: str, query: Mapping[str, Any]) -> str:
    """A request's target with what is given of the query."""
    given = {name: value for name, value in query.items() if value not in ("", None)}
    return f"{path}?{urlencode(given)}" if given else path


def say_at(arguments: argparse.Namespace, answer: Mapping[str, Any]) -> None:
    """Which revision the answer stands at, where the past was asked for."""
    if arguments.at:
        print(f"at revision {answer['revision']} ({answer.get('time') or 'before the first record'})", file=sys.stderr)
