"""`meshlog policy what-if`: what a changed set of policies would newly allow or deny.

Belongs here: the flags, and how the answer reads. Does not belong here: judging (controlplane.history.what_if).
"""

import argparse
import sys
from typing import Any

from controlplane.api.connection import Connection
from controlplane.cli.apply import read_manifests
from controlplane.cli.at import add_at, asked
from controlplane.cli.errors import FAILED, OK, UsageError
from controlplane.cli.output import GREEN, RED, add_output, coloured, print_document, print_table
from controlplane.cli.target import add_target, ask, connect, socket_of_cluster

ANSWER_S = 300.0
FLOWS = ("FROM", "TO", "PORT", "VERDICT", "RECORDED", "COUNT", "LAST", "BY")
PAIRS = ("FROM", "TO", "PORT", "VERDICT", "ENDPOINTS", "BY")
EPILOG = """Examples:
  meshlog policy what-if -f policy.yaml
  meshlog policy what-if -f policies/ --replace --since -24h -o json
  meshlog policy what-if -f policy.yaml --delete --exit-code
Recorded flows are judged by the labels that their ends had. Pairs are one representative of each identity whose
policies change, and one port of each class that the policies tell apart; "other" is a port that none of them names.
Named ports and addresses are those of the representative."""


def add_what_if(verbs: Any) -> None:
    """The verb."""
    parser = verbs.add_parser(
        "what-if", help="what changed policies would newly allow or deny", allow_abbrev=False,
        description="Which recorded flows, and which pairs of endpoints, get another verdict if these manifests were "
        "applied. Nothing is changed.",
        epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("-f", "--filename", action="append", required=True, metavar="FILE|DIR|-",
                        help="manifests of policies; may be repeated, - is standard input")
    parser.add_argument("--replace", action="store_true", help="they are the whole set of the cluster's policies")
    parser.add_argument("--delete", action="store_true", help="they are taken out")
    parser.add_argument("--since", default="-24h", metavar="TIME", help="flows seen since then (default: -24h)")
    parser.add_argument("--cluster", metavar="NAME", help="the cluster they are meant for (default: the agent's)")
    parser.add_argument("--exit-code", action="store_true", help="exit status 1 if any verdict would change")
    add_output(parser)
    add_at(parser)
    add_target(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """A change is no failure, as in `diff`, unless --exit-code asks for it; a manifest that is refused is one."""
    if arguments.replace and arguments.delete:
        raise UsageError("--replace and --delete contradict each other; give one of them")
    documents = [each["document"] for each in read_manifests(arguments.filename)]
    body = {"documents": documents, "removal": arguments.delete, "replace": arguments.replace}
    target = asked("/v1/policy/what-if", {"since": arguments.since, "at": arguments.at})
    print("judging recorded flows and pairs ...", file=sys.stderr)
    answer = ask(_connection(arguments), target, "POST", body)
    refused = [each for each in answer["policies"] if each["action"] == "rejected"]
    if arguments.output in ("json", "yaml"):
        print_document(arguments.output, answer)
    else:
        _print(answer, refused)
    if refused:
        return FAILED
    return FAILED if arguments.exit_code and (answer["flows"] or answer["pairs"]) else OK


def _connection(arguments: argparse.Namespace) -> Connection:
    if not arguments.cluster:
        return connect(arguments, ANSWER_S)
    if arguments.node or arguments.socket:
        raise UsageError("--cluster chooses who is asked; leave out --node and --socket")
    return Connection(socket_of_cluster(arguments.cluster), ANSWER_S)


def _print(answer: dict[str, Any], refused: list[dict[str, Any]]) -> None:
    for each in answer["policies"]:
        name = "/".join(part for part in (each["kind"], each["namespace"], each["name"]) if part)
        reason = f": {each['reason']}" if each["reason"] else ""
        print(f"{name} {each['action']}{reason}", file=sys.stderr)
    if refused:
        print("Nothing was compared, since not all manifests can be taken.", file=sys.stderr)
        return
    if answer["flows"]:
        print_table([FLOWS], [_flow(each) for each in answer["flows"]])
    if answer["flows"] and answer["pairs"]:
        print()
    if answer["pairs"]:
        print_table([PAIRS], [_pair(each) for each in answer["pairs"]])
    _print_limits(answer)


def _print_limits(answer: dict[str, Any]) -> None:
    """What was looked at, and what was not, on standard error."""
    first = (
        f"at revision {answer['revision']}: {len(answer['flows'])} of {answer['flows_judged']} recorded flows since "
        f"{answer['since']} and {len(answer['pairs'])} of {answer['pairs_compared']} pairs and ports change"
    )
    lines = [first]
    if answer["flows_not_kept"]:
        lines.append(f"{answer['flows_not_kept']} connections or packets were seen and not kept")
    if answer["flows_not_judged"]:
        lines.append(f"{answer['flows_not_judged']} recorded flows were not judged: the labels of an end are not known")
    if answer["pairs_not_compared"]:
        lines.append(f"{answer['pairs_not_compared']} pairs and ports were not compared: there are too many")
    print("\n".join([*lines, *answer["notes"]]), file=sys.stderr)


def _verdict(each: dict[str, Any]) -> str:
    text = f"{each['before']} -> {each['after']}"
    return coloured(text, RED if each["after"] == "deny" else GREEN)


def _flow(each: dict[str, Any]) -> list[Any]:
    return [each["source"], each["target"], each["port"], _verdict(each), each["recorded"], each["count"], each["last"],
            each["by"] or "-"]  # fmt: skip


def _pair(each: dict[str, Any]) -> list[Any]:
    counts = f"{each['sources'] or '-'} x {each['targets'] or '-'}"
    return [each["source"], each["target"], each["port"], _verdict(each), counts, each["by"] or "-"]
