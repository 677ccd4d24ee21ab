"""`meshlog apply`: Kubernetes manifests into the log. Also what `delete` shares with it."""

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from controlplane.api.connection import Connection
from controlplane.cli import offline
from controlplane.cli.errors import FAILED, OK, CommandFailed, UsageError
from controlplane.cli.output import FORMATS, print_document
from controlplane.cli.target import add_target, ask, connect, socket_of_cluster

REALIZE_S_MAX = 30


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of apply."""
    parser.description = "Put Kubernetes manifests into the log. What is not supported is refused, the field named."
    parser.epilog = "Examples:\n  meshlog apply -f deploy/lab/east --cluster east\n  meshlog apply -f - < policy.yaml"
    add_flags(parser)
    parser.add_argument("--offline", action="store_true", help="check the manifests without a running mesh")
    parser.add_argument("--settings", metavar="FILE",
                        help="with --offline: policy settings of the mesh, JSON or YAML, named as in Cilium")
    parser.add_argument("--replace", action="store_true",
                        help="take out the policies and CIDR groups of the cluster that the manifests do not name")
    parser.set_defaults(run=run_apply, path="/v1/apply")


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Flags of apply and delete."""
    parser.add_argument("-f", "--filename", action="append", required=True, metavar="FILE|DIR|-",
                        help="manifests; may be repeated, - is standard input")
    parser.add_argument("--cluster", metavar="NAME", help="the cluster they are meant for (default: the agent's)")
    parser.add_argument("--dry-run", action="store_true", help="say what would change and change nothing")
    parser.add_argument("--wait", action="store_true", help="wait until the asked node's kernel holds it")
    parser.add_argument("-o", "--output", choices=FORMATS, default="table", help="how to print (default: table)")
    add_target(parser)


def run_apply(arguments: argparse.Namespace) -> int:
    """Apply, which can be checked only, or be the whole set. Nothing is taken out where anything was refused."""
    if arguments.offline:
        if arguments.replace or arguments.wait or arguments.node or arguments.socket:
            raise UsageError("--offline asks no mesh; leave out --replace, --wait, --node and --socket")
        from controlplane.cli.verdict import settings_of

        _, settings = settings_of(arguments.settings)
        answer = offline.check(read_manifests(arguments.filename), arguments.cluster or "", settings)
        _print(arguments, answer)
        return OK if all(result["accepted"] for result in answer["results"]) else FAILED
    if arguments.settings:
        raise UsageError("--settings is for --offline; a running mesh has its own, see `meshlog policy settings`")
    documents = read_manifests(arguments.filename)
    if not arguments.replace:
        return _send(arguments, documents)
    answer = _sent(arguments, documents)
    if not all(result["accepted"] for result in answer["results"]):
        _print(arguments, answer)
        return FAILED
    connection = _connection(arguments)
    known = [
        each for kind in offline.REPLACED_KINDS for each in ask(connection, f"/v1/get/{kind}")["documents"]
    ]
    superfluous = offline.left_over(documents, known)
    if superfluous:
        body = {"documents": superfluous, "dry_run": arguments.dry_run}
        gone = ask(connection, "/v1/delete", "POST", body)
        _wait(arguments, connection, gone)
        answer = {**answer, "revision": gone["revision"], "results": [*answer["results"], *gone["results"]]}
    _print(arguments, answer)
    return OK


def run(arguments: argparse.Namespace) -> int:
    """Exit status 1 if anything was refused."""
    return _send(arguments, read_manifests(arguments.filename))


def _send(arguments: argparse.Namespace, documents: list[dict[str, Any]]) -> int:
    answer = _sent(arguments, documents)
    _print(arguments, answer)
    return OK if all(result["accepted"] for result in answer["results"]) else FAILED


def _sent(arguments: argparse.Namespace, documents: list[dict[str, Any]]) -> dict[str, Any]:
    connection = _connection(arguments)
    answer: dict[str, Any] = ask(
        connection, arguments.path, "POST", {"documents": documents, "dry_run": arguments.dry_run}
    )
    _wait(arguments, connection, answer)
    return answer


def _wait(arguments: argparse.Namespace, connection: Connection, answer: dict[str, Any]) -> None:
    if arguments.wait and not arguments.dry_run:
        ask(connection, f"/v1/wait?revision={answer['revision']}&timeout_s={REALIZE_S_MAX}")


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
