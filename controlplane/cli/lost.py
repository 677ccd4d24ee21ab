"""`meshlog log lost`: what was known and a log that was put back to a backup does not hold as it was.

Belongs here: how the list reads. Does not belong here: what is in it (controlplane.history.loss).
"""

import argparse
import sys
from typing import Any

from controlplane.cli.errors import OK
from controlplane.cli.output import print_document, print_table
from controlplane.cli.target import ask, connect

HEADER = ("CLUSTER", "KIND", "NAMESPACE", "NAME", "WHAT", "PUT BACK BY")
BY_MANIFEST = "log lost --manifests"


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Of the verb."""
    parser.add_argument("--manifests", action="store_true",
                        help="print what is gone or older as manifests, as `meshlog apply -f -` takes them")
    parser.add_argument("--cluster", default="", metavar="NAME", help="whose manifests (default: the agent's)")
    parser.add_argument("--dismiss", action="store_true", help="the log is right as it is: forget the list")


def run(arguments: argparse.Namespace) -> int:
    """Each process has its own list: what it knew."""
    connection = connect(arguments)
    if arguments.dismiss:
        print(f"dismissed {ask(connection, '/v1/lost', 'DELETE')['dismissed']}")
        return OK
    answer = ask(connection, "/v1/lost")
    items: list[dict[str, Any]] = answer["items"]
    if arguments.manifests:
        cluster = arguments.cluster or answer["cluster"]
        documents = [each["manifest"] for each in items if each["manifest"] and each["cluster"] == cluster]
        print_document("yaml", {"apiVersion": "v1", "kind": "List", "items": documents})
        for each in items:
            if each["command"] and each["cluster"] == cluster:
                print(f"not a manifest: {each['command']}", file=sys.stderr)
    elif arguments.output in ("json", "yaml"):
        print_document(arguments.output, items)
    elif items:
        print_table([HEADER], [_row(each) for each in items])
    else:
        print("nothing that was known here is missing in the log", file=sys.stderr)
    if answer["left_out"]:
        print(f"{answer['left_out']} more are not listed", file=sys.stderr)
    return OK


def _row(item: dict[str, Any]) -> list[Any]:
    kind = "Pod" if item["kind"] == "Workload" else item["kind"]
    how = BY_MANIFEST if item["manifest"] else item["command"] or "delete it if it is to be gone"
    return [item["cluster"], kind, item["namespace"], item["name"], item["what"], how]
