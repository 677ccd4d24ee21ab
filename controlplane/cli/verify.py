"""`meshlog verify`: what the log says, what the agent believes and what the kernel holds, as one digest per table."""

import argparse
import sys
from typing import Any

from controlplane.cli.errors import FAILED, OK
from controlplane.cli.output import GREEN, RED, add_output, coloured, print_document, print_table
from controlplane.cli.target import add_target, ask, connect

HEADER = ("TABLE", "ROWS", "LOG", "AGENT", "KERNEL", "VERDICT")
DIGITS = 12


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of verify."""
    parser.description = "Compare what the kernel holds with what the log says. Exit status 1 where they differ."
    parser.epilog = "Example: meshlog verify --repair"
    add_output(parser)
    add_target(parser)
    parser.add_argument("--repair", action="store_true", help="write the rows that differ, then compare again")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Exit status 0 only if all digests are equal."""
    connection = connect(arguments)
    answer = ask(connection, "/v1/repair", "POST") if arguments.repair else ask(connection, "/v1/verify")
    if arguments.output in ("json", "yaml"):
        print_document(arguments.output, answer)
    else:
        _print(answer, arguments.output == "wide")
    return OK if answer["equal"] else FAILED


def _print(answer: dict[str, Any], wide: bool) -> None:
    digits = None if wide else DIGITS
    rows = [
        [table["table"], table["rows"], *(table[side][:digits] for side in ("log", "believed", "kernel")),
         coloured("equal", GREEN) if table["equal"] else coloured("DIFFERENT", RED)]
        for table in answer["tables"]
    ]
    print_table([HEADER], rows)
    for table in answer["tables"]:
        if ": " in table["kernel"]:
            print(f"{table['table']} {table['kernel']}")
    for row in answer["differences"]:
        print(f"{row['table']} {row['key']}: {row['difference']} in the kernel")
    hidden = answer["differences_total"] - len(answer["differences"])
    if hidden:
        print(f"... and {hidden} rows more")
    verdict = "the kernel holds what the log says" if answer["equal"] else "the kernel differs from the log"
    count = answer["repaired_rows"]
    repaired = f", {count} {'row' if count == 1 else 'rows'} repaired" if count else ""
    runtime = ", ".join(answer["runtime_tables"])
    text = f"At revision {answer['revision']} {verdict}{repaired}. Not derived from the log: {runtime}."
    print(text, file=sys.stderr)
    if answer["differences"]:
        print("`meshlog verify --repair` writes them; `meshlog why map TABLE KEY` names the records.", file=sys.stderr)
