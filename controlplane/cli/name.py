"""`meshlog name`: DNS names and the addresses that policies by name count on."""

import argparse
from typing import Any

from controlplane.cli.at import add_at, asked, say_at
from controlplane.cli.errors import OK
from controlplane.cli.output import add_output, print_document, print_table
from controlplane.cli.target import add_target, ask, connect

HEADER = ("NAME", "ADDRESSES", "CLUSTER")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verbs list, add and remove."""
    parser.description = "DNS names and their addresses, as policies with toFQDNs see them."
    parser.epilog = "Example: meshlog name add www.example.com 192.0.2.1"
    verbs = parser.add_subparsers(metavar="VERB", title="verbs")
    listing = verbs.add_parser(
        "list", aliases=["ls"], help="names that are resolved", description="Names that are resolved, of all clusters.",
        epilog="Example: meshlog name list -o json",
    )
    add_output(listing)
    add_at(listing)
    listing.set_defaults(run=list_names)
    for verb, text, count in (
        ("add", "record that a name has these addresses", "+"),
        ("remove", "record that it has them no longer; none given: all", "*"),
    ):
        change = verbs.add_parser(
            verb, help=text, description=text, epilog=f"Example: meshlog name {verb} www.example.com 192.0.2.1"
        )
        change.add_argument("name", metavar="NAME", help="in full: www.example.com")
        change.add_argument("addresses", nargs=count, metavar="ADDRESS", help="IPv4 or IPv6")
        change.set_defaults(run=change_name, expired=verb == "remove")
        add_target(change)
    add_target(listing)


def list_names(arguments: argparse.Namespace) -> int:
    """All of the mesh."""
    answer = ask(connect(arguments), asked("/v1/names", {"at": arguments.at}))
    say_at(arguments, answer)
    items: list[dict[str, Any]] = answer["items"]
    if arguments.output in ("json", "yaml"):
        print_document(arguments.output, items)
    else:
        print_table([HEADER], [[item["name"], item["addresses"], item["cluster"]] for item in items])
    return OK


def change_name(arguments: argparse.Namespace) -> int:
    """In the cluster of the agent that is asked."""
    body = {"name": arguments.name, "addresses": arguments.addresses, "expired": arguments.expired}
    answer = ask(connect(arguments), "/v1/names", "POST", body)
    print(f"name/{arguments.name} {'changed' if answer['changed'] else 'unchanged'}, revision {answer['revision']}")
    return OK
