"""What all `NOUN list` commands share. Belongs here: the request and the choice of format; columns are the nouns'."""

import argparse
from collections.abc import Callable, Sequence
from typing import Any

from controlplane.cli.at import add_at, asked, say_at
from controlplane.cli.errors import OK
from controlplane.cli.output import Cell, add_output, print_document, print_table
from controlplane.cli.target import add_target, ask, connect

Item = dict[str, Any]
Keep = Callable[[Item, argparse.Namespace], bool]
Layout = Callable[[list[Item], bool], tuple[Sequence[Sequence[str]], Sequence[Sequence[Cell]]]]
"""Items, and whether the table is wide -> header lines and rows."""


def add_list(
    parser: argparse.ArgumentParser, kind: str, text: str, layout: Layout, keep: Keep | None = None,
    more: Callable[[Any], None] | None = None,
) -> argparse.ArgumentParser:
    """The verb `list` (alias `ls`) of a noun; returns its parser for flags of the noun's own.

    `more` takes argparse's verbs and adds those that only this noun has.
    """
    verbs = parser.add_subparsers(metavar="VERB", title="verbs")
    if more is not None:
        more(verbs)
    listing = verbs.add_parser(
        "list", aliases=["ls"], help=text, description=text, epilog=f"Example: meshlog {kind} list -o wide",
        allow_abbrev=False,
    )
    add_output(listing)
    listing.add_argument("--no-headers", action="store_true", help="print rows only")
    add_at(listing)
    add_target(listing)

    def run(arguments: argparse.Namespace) -> int:
        answer = ask(connect(arguments), asked(f"/v1/list/{kind}", {"at": arguments.at}))
        say_at(arguments, answer)
        items = [item for item in answer["items"] if keep is None or keep(item, arguments)]
        if arguments.output in ("json", "yaml"):
            print_document(arguments.output, items)
            return OK
        headers, rows = layout(items, arguments.output == "wide")
        print_table([] if arguments.no_headers else headers, rows)
        return OK

    listing.set_defaults(run=run)
    return listing


def address_and_port(address: str, port: int, protocol: str = "") -> str:
    """"10.0.0.1:80/TCP", "[fd00::1]:80/TCP"."""
    host = f"[{address}]" if ":" in address else address
    return f"{host}:{port}/{protocol}" if protocol else f"{host}:{port}"
