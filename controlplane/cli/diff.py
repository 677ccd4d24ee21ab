"""`meshlog diff`: what is other between two points of the history, in the mesh and in kernels.

Belongs here: how differences read. Does not belong here: comparing (controlplane.history.changes).
"""

import argparse
import sys
from typing import Any

from controlplane.cli.at import POINT, asked
from controlplane.cli.errors import OK, UsageError
from controlplane.cli.output import GREEN, RED, YELLOW, add_output, coloured, print_document
from controlplane.cli.target import add_target, ask, connect, is_here

SIGNS = {"added": ("+", GREEN), "removed": ("-", RED), "changed": ("~", YELLOW)}
VALUE_CHARACTERS_MAX = 200


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of diff."""
    parser.description = f"What is other at the second point than at the first. A point is {POINT}."
    parser.epilog = "Examples:\n  meshlog diff 40 57 --node n1 --tables\n  meshlog diff --since -10m --tables"
    parser.add_argument("since", nargs="?", default="", metavar="POINT", help="the earlier point")
    parser.add_argument("until", nargs="?", default="", metavar="POINT", help="the later one (default: now)")
    parser.add_argument("--since", dest="since_flag", default="", metavar="POINT", help="the earlier point")
    parser.add_argument("--until", dest="until_flag", default="", metavar="POINT", help="the later point")
    parser.add_argument("--tables", action="store_true", help="also the rows of the kernels' tables")
    parser.add_argument("--of", default="", metavar="NODE",
                        help="rows of this node only: n1 or cluster/n1 (default: --node with --tables, else all)")
    add_output(parser)
    add_target(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Nothing other is no failure."""
    since = arguments.since_flag or arguments.since
    until = arguments.until_flag or arguments.until
    if not since:
        raise UsageError("the earlier point is missing; right is: meshlog diff 40 57, or meshlog diff --since -10m")
    of = arguments.of or (arguments.node if arguments.tables else "") or ""
    if of and arguments.node and not is_here(arguments.node):
        arguments.node = None  # its rows are derived, so any agent can be asked
    query = {"from": since, "to": until, "node": of, "tables": "1" if arguments.tables else ""}
    answer = ask(connect(arguments, 120.0), asked("/v1/diff", query))
    if arguments.output in ("json", "yaml"):
        print_document(arguments.output, answer)
        return OK
    for side in ("since", "until"):
        print(f"{side} revision {answer[side]['revision']} ({answer[side]['time']})", file=sys.stderr)
    print_things(answer["things"])
    print_rows(answer["rows"])
    if not answer["things"] and not answer["rows"]:
        print("No difference.", file=sys.stderr)
    return OK


def print_things(things: list[dict[str, Any]]) -> None:
    """One line each, and one for each field of what changed."""
    for thing in things:
        sign, colour = SIGNS[thing["change"]]
        print(coloured(f"{sign} {thing['kind']} {thing['name']}", colour))
        if thing["change"] == "changed":
            for name, (before, after) in thing["fields"].items():
                print(f"    {name}: {short(before)} -> {short(after)}")


def print_rows(rows: list[dict[str, Any]]) -> None:
    """Under a line for each node and table."""
    place = None
    for row in rows:
        if (row["cluster"], row["node"], row["table"]) != place:
            place = (row["cluster"], row["node"], row["table"])
            print(f"{row['cluster']}/{row['node']} {row['table']}")
        sign, colour = SIGNS[row["change"]]
        print(coloured(f"  {sign} {row['key']}", colour), _row_text(row))


def _row_text(row: dict[str, Any]) -> str:
    before, after = row["before"], row["after"]
    if before is None or after is None:
        return " ".join(f"{name}={short(value)}" for name, value in (before or after or {}).items())
    changed = (name for name in after if before.get(name) != after[name])
    return " ".join(f"{name}={short(before.get(name))}->{short(after[name])}" for name in changed)


def short(value: Any) -> str:
    """A value in one line, cut where it is long."""
    if isinstance(value, list):
        text = "[" + ",".join(map(str, value)) + "]"
    else:
        text = "none" if value in (None, "") else str(value)
    return text if len(text) <= VALUE_CHARACTERS_MAX else text[: VALUE_CHARACTERS_MAX - 3] + "..."
