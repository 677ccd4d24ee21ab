"""`meshlog identity`: the columns of `cilium-dbg identity list` and `identity get`."""

import argparse
from typing import Any

from controlplane.cli.at import add_at, asked, say_at
from controlplane.cli.errors import OK, CommandFailed
from controlplane.cli.listing import add_list
from controlplane.cli.output import add_output, print_document, print_table
from controlplane.cli.target import add_target, ask, connect

HEADER = ("ID", "LABELS", "REFCOUNT")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verbs list and get."""
    parser.description = "Security identities: a number for each set of labels."
    text = "identities of all clusters, the reserved ones and those of prefixes, nodes and facets too"
    add_list(parser, "identity", text, layout, more=add_get)


def add_get(verbs: Any) -> None:
    """The verb get."""
    text = "what a number stands for"
    get = verbs.add_parser("get", help=text, description=text, epilog="Example: meshlog identity get 65793",
                           allow_abbrev=False)  # fmt: skip
    get.add_argument("number", metavar="NUMBER", type=int, help="as policy rows, drops and flows have it")
    add_output(get)
    add_at(get)
    add_target(get)
    get.set_defaults(run=run_get)


def run_get(arguments: argparse.Namespace) -> int:
    """Where two clusters give one number to prefixes of their own, both are shown."""
    answer = ask(connect(arguments), asked("/v1/list/identity", {"at": arguments.at}))
    say_at(arguments, answer)
    found = [item for item in answer["items"] if item["number"] == arguments.number]
    if not found:
        raise CommandFailed(f"identity {arguments.number}: there is none; see meshlog identity list")
    if arguments.output in ("json", "yaml"):
        print_document(arguments.output, found)
        return OK
    print_table(*layout(found, arguments.output == "wide"))
    return OK


def layout(items: list[dict[str, Any]], wide: bool) -> Any:
    """REFCOUNT: endpoints that use the number."""
    rows: list[list[Any]] = []
    for item in items:
        row = [item["number"], item["labels"], item["endpoints"]]
        rows.append([*row, item["cluster"] or "reserved"] if wide else row)
    return [(*HEADER, "CLUSTER") if wide else HEADER], rows
