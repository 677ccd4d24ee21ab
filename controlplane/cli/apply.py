"""`meshlog apply`: Kubernetes manifests into the log. Also what `delete` shares with it."""

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from controlplane.api.connection import Connection
from controlplane.cli.errors import FAILED, OK, CommandFailed, UsageError
from controlplane.cli.output import FORMATS, print_document
from controlplane.cli.target import add_target, ask, connect, socket_of_cluster

REALIZE_S_MAX = 30


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of apply."""
    parser.description = "Put Kubernetes manifests into the log. What is not supported is refused, the field named."
    parser.epilog = "Examples:\n  meshlog apply -f deploy/lab/east --cluster east\n  meshlog apply -f - < policy.yaml"
    add_flags(parser)
    parser.set_defaults(run=run, path="/v1/apply")


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Flags of apply and delete."""
    parser.add_argument("-f", "--filename", action="append", required=True, metavar="FILE|DIR|-",
                        help="manifests; may be repeated, - is standard input")
    parser.add_argument("--cluster", metavar="NAME", help="the cluster they are meant for (default: the agent's)")
    parser.add_argument("--dry-run", action="store_true", help="say what would change and change nothing")
    parser.add_argument("--wait", action="store_true", help="wait until the asked node's kernel holds it")
    parser.add_argument("-o", "--output", choices=FORMATS, default="table", help="how to print (default: table)")
    add_target(parser)


def run(arguments: argparse.Namespace) -> int:
    """Exit status 1 if anything was refused."""
    documents = read_manifests(arguments.filename)
    connection = _connection(arguments)
    body = {"documents": documents, "dry_run": arguments.dry_run}
    answer = ask(connection, arguments.path, "POST", body)
    if arguments.wait and not arguments.dry_run:
        ask(connection, f"/v1/wait?revision={answer['revision']}&timeout_s={REALIZE_S_MAX}")
    _print(arguments, answer)
    return OK if all(result["accepted"] for result in answer["results"]) else FAILED


def read_manifests(places: Sequence[str]) -> list[dict[str, Any]]:
    """The bodies of an ApplyRequest. Raises CommandFailed naming every place that cannot be read: all or nothing."""
    from controlplane.kubernetes import Unreadable, read_paths

    found = read_paths(places, sys.stdin)
    unreadable = [f"{item.source}: {item.reason}" for item in found if isinstance(item, Unreadable)]
    if unreadable:
        raise CommandFailed("\n         ".join(unreadable))
    if not found:
        raise CommandFailed(f"{', '.join(places)}: no manifest in there")
    return [{"document": item.document, "source": item.source} for item in found if not isinstance(item, Unreadable)]


def _connection(arguments: argparse.Namespace) -> Connection:
    if not arguments.cluster:
        return connect(arguments, timeout_s=60)
    if arguments.node or arguments.socket:
        raise UsageError("--cluster chooses who is asked; leave out --node and --socket")
    return Connection(socket_of_cluster(arguments.cluster), timeout_s=60)


def _print(arguments: argparse.Namespace, answer: dict[str, Any]) -> None:
    if arguments.output in ("json", "yaml"):
        print_document(arguments.output, answer)
        return
    tried = " (dry run)" if arguments.dry_run else ""
    for result in answer["results"]:
        place = f" -n {result['namespace']}" if result["namespace"] else ""
        what = f"{result['kind'].lower()}/{result['name']}{place}"
        if result["accepted"]:
            print(f"{what} {result['action']}{tried}")
        else:
            # A manifest's own refusals name each field in the reason already.
            named = not result["field"] or result["reason"].startswith(f"{result['field']}: ")
            field = "" if named else f"{result['field']}: "
            print(f"{result['source']}: {what} refused: {field}{result['reason']}", file=sys.stderr)
