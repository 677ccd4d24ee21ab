"""`meshlog mesh status`: how far every node of the mesh is, as numbers."""

import argparse
import sys
import time
from typing import Any

from controlplane.api.quickclient import ApiRefused, ApiUnavailable
from controlplane.cli.at import asked
from controlplane.cli.errors import FAILED, OK, CommandFailed
from controlplane.cli.output import GREEN, RED, add_output, coloured, print_document, print_table
from controlplane.cli.target import add_target, ask, connect

HEADER = ("NODE", "STATE", "REVISION", "LAG", "LAG S", "DIGESTS", "REPORTED")
PAUSE_S = 0.5
EPILOG = """REVISION is what the node's kernel holds; LAG how many records of the log are later, LAG S for how long the
oldest of them has been there. DIGESTS compare what the agent has written with the log at that revision, table by table;
`meshlog verify` reads the kernel itself. Nodes report every two seconds; one is out of sync when it is behind for more
than ten.

Examples:
  meshlog mesh status
  meshlog mesh status --wait --timeout 60
  meshlog mesh status -o json"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb status."""
    parser.description = "All clusters and nodes that share the log."
    verbs = parser.add_subparsers(metavar="VERB", title="verbs")
    text = "how far every node is; exit status 1 if one is not in sync"
    status = verbs.add_parser("status", help=text, description=f"H{text[1:]}.", epilog=EPILOG)
    add_output(status)
    status.add_argument("--wait", action="store_true", help="until every node holds what the log holds now")
    status.add_argument("--timeout", type=float, default=60.0, metavar="SECONDS", help="how long to wait (default: 60)")
    status.add_argument("--digests", action="store_true", help="compare digests in a mesh of more than 16 nodes too")
    add_target(status)
    status.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Exit status 0 only if every node is in sync."""
    connection = connect(arguments)
    target = asked("/v1/mesh", {"digests": 1 if arguments.digests else "", "left": 1})
    if arguments.wait:
        _wait(connection, asked("/v1/mesh", {"digests": 1 if arguments.digests else ""}), arguments.timeout)
    answer = ask(connection, target)
    if arguments.output in ("json", "yaml"):
        print_document(arguments.output, answer)
    else:
        _print(answer)
    return OK if answer["in_sync"] else FAILED


def _wait(connection: Any, target: str, timeout_s: float) -> None:
    """Until every node has realized the revision that is the newest at the first answer."""
    deadline, wanted, told = time.monotonic() + timeout_s, 0, ""
    while True:
        try:
            answer = connection.get(target)
            wanted = wanted or answer["revision"]
            waited_for = [
                f"{each['cluster']}/{each['node']}: {each['problem'] or 'realized ' + str(each['realized'])}"
                for each in answer["nodes"] if not each["in_sync"] or each["realized"] < wanted
            ]
            if not waited_for and answer["in_sync"]:
                return
            problem = "; ".join(waited_for) or "no node has joined"
        except ApiUnavailable as error:
            problem = str(error)
        except ApiRefused as error:
            if error.status < 500:
                raise CommandFailed(str(error)) from None
            problem = str(error)
        if time.monotonic() > deadline:
            raise CommandFailed(f"not in sync through revision {wanted} after {timeout_s:g} s: {problem}")
        if problem != told:
            print(f"waiting for revision {wanted}: {problem}", file=sys.stderr, flush=True)
            told = problem
        time.sleep(PAUSE_S)


def _print(answer: dict[str, Any]) -> None:
    print_table([HEADER], [_row(each) for each in answer["nodes"]])
    for each in answer["nodes"]:
        if each["problem"]:
            print(f"{each['cluster']}/{each['node']}: {coloured(each['problem'], RED)}")
    for text in answer["left"]:
        print(text)
    clusters = ", ".join(f"{each['cluster']} {each['in_sync']} of {each['nodes']}" for each in answer["clusters"])
    lag = f"the greatest lag is {answer['lag_records']} records, {answer['lag_s']:g} s"
    print(f"In sync with revision {answer['revision']}: {clusters or 'no node has joined'}; {lag}.", file=sys.stderr)


def _row(node: dict[str, Any]) -> list[Any]:
    state = coloured("in sync", GREEN) if node["in_sync"] else coloured("NOT IN SYNC", RED)
    digests = f"{node['digests']}: {', '.join(node['tables'])}" if node["tables"] else node["digests"]
    reported = "-" if node["reported_s_ago"] is None else f"{node['reported_s_ago']:g} s ago"
    lag = ["-" if node[name] is None else f"{node[name]:g}" for name in ("lag_records", "lag_s")]
    where = f"{node['cluster']}/{node['node']}"
    return [where, state, node["realized"] or "-", *lag, digests, reported]
