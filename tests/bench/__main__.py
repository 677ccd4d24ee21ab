"""`python -m tests.bench [--write FILE] [ROOM ...]`: measure, print the table, and write the page of the docs."""

import argparse
import importlib
import os
import sys
from pathlib import Path

from controlplane.runtime.process import tune_collector
from tests.bench.report import Row, markdown, page

ROOMS = ("log", "tables", "packets", "frames", "live", "policy", "node")
"""Modules bench_<room>.py, in the order of the table; each has `measure() -> list[Row]`."""


INSIDE = "MESHLOG_BENCH_INSIDE"


def main() -> int:
    """Run the rooms asked for; all of them write the page."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("--write", type=Path, help="write the page to this file")
    parser.add_argument("rooms", nargs="*", metavar="ROOM", help=f"of {', '.join(ROOMS)}; default: all")
    arguments = parser.parse_args()
    unknown = [room for room in arguments.rooms if room not in ROOMS]
    if unknown:
        parser.error(f"no room {unknown[0]!r}: choose from {', '.join(ROOMS)}")
    if not os.environ.get(INSIDE):
        # Everything that touches the kernel happens in a network and a mount namespace of the bench's own.
        command = ["unshare", "--net", "--mount", "--propagation", "private", sys.executable, "-m", "tests.bench"]
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
        # An installed Meshlog comes with its bytecode: a start must not compile it.
        os.execvpe("unshare", [*command, *sys.argv[1:]], {**environment, INSIDE: "1"})
    tune_collector()  # as every process of Meshlog does
    rows: list[Row] = []
    for room in arguments.rooms or ROOMS:
        print(f"measuring: {room}", file=sys.stderr, flush=True)
        rows += importlib.import_module(f"tests.bench.bench_{room}").measure()
    print(markdown(rows))
    if arguments.write:
        arguments.write.write_text(page(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
