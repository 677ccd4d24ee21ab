"""`meshlog policy`: policies in force."""

import argparse
import sys
from typing import Any

from controlplane.cli.at import add_at, asked, say_at
from controlplane.cli.errors import FAILED, OK, UsageError
from controlplane.cli.listing import add_list
from controlplane.cli.output import add_output, print_document, print_table
from controlplane.cli.target import add_target, ask, connect
from controlplane.cli.what_if import add_what_if

SHOWN_MAX = 20
"""Endpoints of one policy in a table; -o json has them all."""
HEADER = ("CLUSTER", "KIND", "NAMESPACE", "NAME", "ENDPOINTS")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verbs list, selectors, settings, lint and what-if."""
    parser.description = "Network policies in force. `meshlog get KIND` prints them as they were written."
    add_list(parser, "policy", "policies in force and how many endpoints each selects", layout, more=add_verbs)


def layout(items: list[dict[str, Any]], wide: bool) -> Any:
    """ENDPOINTS: how many the policy selects, in its cluster. Wide: which, what it enforces there, since when."""
    fields = ("cluster", "kind", "namespace", "name", "selected")
    if not wide:
        return [HEADER], [[item[field] for field in fields] for item in items]
    rows = [[item[field] for field in fields] + _wide(item) for item in items]
    return [(*HEADER, "INGRESS", "EGRESS", "REVISION", "SELECTS")], rows


def _wide(item: dict[str, Any]) -> list[Any]:
    enforced = ["Enabled" if item[f"{way}_enforced"] else "Disabled" for way in ("ingress", "egress")]
    more = [f"and {len(item['endpoints']) - SHOWN_MAX} more"] if len(item["endpoints"]) > SHOWN_MAX else []
    return [*enforced, item["revision"], [*item["endpoints"][:SHOWN_MAX], *more]]


def add_verbs(verbs: Any) -> None:
    """Those that only policies have."""
    selectors = _verb(verbs, "selectors", "selectors in use and what they select", "selectors -o json")
    selectors.set_defaults(run=list_selectors)
    settings = _verb(verbs, "settings", "settings of policies; NAME=VALUE changes them", "settings enable-policy=")
    settings.add_argument("changes", nargs="*", metavar="NAME=VALUE", help="NAME= takes the default again")
    settings.set_defaults(run=show_settings)
    for verb in (selectors, settings):
        add_output(verb)
        add_at(verb)
        add_target(verb)
    lint = _verb(verbs, "lint", "policies that do not do what they seem to", "lint --manifests deploy/lab/east")
    lint.add_argument("--manifests", action="append", metavar="[CLUSTER=]DIR",
                      help="may be repeated. Without it the running mesh is asked")
    lint.add_argument("--settings", metavar="FILE", help="policy settings, JSON or YAML, named as in Cilium")
    add_output(lint)
    add_at(lint)
    add_target(lint)
    lint.set_defaults(run=run_lint, names=None, ip_labels=None)
    add_what_if(verbs)


def _verb(verbs: Any, name: str, text: str, example: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = verbs.add_parser(
        name, help=text, description=text[0].upper() + text[1:] + ".", epilog=f"Example: meshlog policy {example}"
    )
    return parser


def list_selectors(arguments: argparse.Namespace) -> int:
    """Of the cluster of the agent that is asked."""
    answer = ask(connect(arguments), asked("/v1/policy/selectors", {"at": arguments.at}))
    say_at(arguments, answer)
    if arguments.output in ("json", "yaml"):
        print_document(arguments.output, answer["items"])
    else:
        rows = [[each["selector"], each["users"], [str(one) for one in each["identities"]]] for each in answer["items"]]
        print_table([("SELECTOR", "USERS", "IDENTITIES")], rows)
    return OK


def show_settings(arguments: argparse.Namespace) -> int:
    """As they are, after the changes that are asked for."""
    found = ask(connect(arguments), asked("/v1/policy/settings", {"at": arguments.at}))
    settings: dict[str, Any] = found["settings"]
    unclear = next((change for change in arguments.changes if "=" not in change), None)
    if unclear is not None:
        raise UsageError(f"{unclear}: right is {unclear}=VALUE, or {unclear}= for the default again")
    if arguments.changes:
        for change in arguments.changes:
            name, _, value = change.partition("=")
            settings = {key: held for key, held in settings.items() if key != name} | ({name: value} if value else {})
        ask(connect(arguments), "/v1/policy/settings", "POST", settings)
        found = ask(connect(arguments), "/v1/policy/settings")
    if arguments.output in ("json", "yaml"):
        print_document(arguments.output, settings)
    else:
        print_table([("SETTING", "VALUE")], [[name, str(settings[name])] for name in sorted(settings)])
    for note in found.get("notes", ()):
        print(f"note: {note}", file=sys.stderr)
    return OK


def run_lint(arguments: argparse.Namespace) -> int:
    """Exit status 1 if anything was found."""
    items = _lint_manifests(arguments) if arguments.manifests else _lint_mesh(arguments)
    if arguments.output in ("json", "yaml"):
        print_document(arguments.output, items)
    elif items:
        rows = [[each["policy"], each["where"], each["reason"]] for each in items]
        print_table([("POLICY", "WHERE", "REASON")], rows)
    else:
        print("Nothing found.", file=sys.stderr)
    return FAILED if items else OK


def _lint_manifests(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    from controlplane.cli.verdict import mesh_from_manifests
    from controlplane.policy.lint import findings

    if arguments.at or arguments.node or arguments.socket:
        raise UsageError("--manifests asks no mesh; leave out --at, --node and --socket")
    found = findings(mesh_from_manifests(arguments))
    return [{"policy": each.policy, "where": each.where, "reason": each.reason} for each in found]


def _lint_mesh(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    if arguments.settings:
        raise UsageError("--settings goes with --manifests; a running mesh has its own")
    answer = ask(connect(arguments), asked("/v1/policy/lint", {"at": arguments.at}))
    say_at(arguments, answer)
    items: list[dict[str, Any]] = answer["items"]
    return items
