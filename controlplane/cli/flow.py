"""`meshlog flow`: flows that nodes have recorded."""

import argparse
import sys
from typing import Any

from controlplane.cli.at import asked
from controlplane.cli.errors import OK
from controlplane.cli.output import GREEN, RED, add_output, coloured, print_document, print_table
from controlplane.cli.target import add_target, ask, connect

HEADER = ("NODE", "FROM", "TO", "PORT", "DIRECTION", "VERDICT", "COUNT", "LAST")
WIDE = ("FIRST", "IDENTITIES")
TIME = "a time (RFC 3339) or so long ago (-10m)"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb list."""
    parser.description = (
        "Who reached whom, as nodes have recorded it: replicas and source ports summed up. COUNT is connections where "
        "allowed, packets where denied. A node publishes every few minutes; the one that is asked knows its own now."
    )
    verbs = parser.add_subparsers(metavar="VERB", title="verbs")
    listing = verbs.add_parser(
        "list", aliases=["ls"], help="recorded flows", allow_abbrev=False, description="Recorded flows.",
        epilog="Examples:\n  meshlog flow list --since -1h --verdict deny\n  meshlog flow list --of n2 -o json",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    listing.add_argument("--since", default="", metavar="TIME", help=f"seen since then: {TIME}")
    listing.add_argument("--until", default="", metavar="TIME", help="first seen until then (default: now)")
    listing.add_argument("--of", default="", metavar="NODE", help="recorded by this node: n1 or cluster/n1")
    listing.add_argument("--verdict", choices=("allow", "deny"), help="only these")
    add_output(listing)
    add_target(listing)
    listing.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """What was not kept is said on standard error."""
    query = {"since": arguments.since, "until": arguments.until, "node": arguments.of}
    answer = ask(connect(arguments, 60.0), asked("/v1/flows", query))
    items = [each for each in answer["items"] if arguments.verdict in (None, each["verdict"])]
    if arguments.output in ("json", "yaml"):
        print_document(arguments.output, {**answer, "items": items})
        return OK
    wide = arguments.output == "wide"
    print_table([(*HEADER, *WIDE) if wide else HEADER], [_row(item, wide) for item in items])
    for node in answer["nodes"]:
        if node["not_kept"] or node["not_told"]:
            print(
                f"node {node['node']}: {node['not_kept']} connections or packets not kept since {node['since']}, "
                f"{node['not_told']} rows not published", file=sys.stderr,
            )  # fmt: skip
    return OK


def _row(item: dict[str, Any], wide: bool) -> list[Any]:
    verdict = coloured(item["verdict"], RED if item["verdict"] == "deny" else GREEN)
    row = [item["node"], item["source"], item["target"], item["port"], item["direction"], verdict, item["count"],
           item["last"]]  # fmt: skip
    return [*row, item["first"], f"{item['source_identity']}->{item['target_identity']}"] if wide else row
