"""`meshlog policy`: policies in force."""

import argparse
from typing import Any

from controlplane.cli.at import add_at, asked, say_at
from controlplane.cli.errors import FAILED, OK
from controlplane.cli.listing import add_list
from controlplane.cli.output import add_output, print_document, print_table
from controlplane.cli.target import add_target, ask, connect
from controlplane.cli.what_if import add_what_if

HEADER = ("CLUSTER", "KIND", "NAMESPACE", "NAME", "ENDPOINTS")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verbs list, selectors, settings, lint and what-if."""
    parser.description = "Network policies in force. `meshlog get KIND` prints them as they were written."
    add_list(parser, "policy", "policies in force and how many endpoints each selects", layout, more=add_verbs)


def layout(items: list[dict[str, Any]], wide: bool) -> Any:
    """ENDPOINTS: how many the policy selects, in its cluster."""
    fields = ("cluster", "kind", "namespace", "name", "selected")
    return [HEADER], [[item[field] for field in fields] for item in items]


def add_verbs(verbs: Any) -> None:
    """Those that only policies have."""
    selectors = verbs.add_parser("selectors", help="selectors in use and what they select", allow_abbrev=False)
    selectors.set_defaults(run=list_selectors)
    settings = verbs.add_parser("settings", help="settings of policies; NAME=VALUE changes them", allow_abbrev=False)
    settings.add_argument("changes", nargs="*", metavar="NAME=VALUE", help="NAME= takes the default again")
    settings.set_defaults(run=show_settings)
    for verb in (selectors, settings):
        add_output(verb)
        add_at(verb)
        add_target(verb)
    lint = verbs.add_parser("lint", help="policies in manifests that do not do what they seem to", allow_abbrev=False)
    lint.add_argument("--manifests", action="append", required=True, metavar="[CLUSTER=]DIR", help="may be repeated")
    lint.add_argument("--settings", metavar="FILE", help="policy settings, JSON or YAML, named as in Cilium")
    add_output(lint)
    lint.set_defaults(run=lint_manifests, names=None, ip_labels=None)
    add_what_if(verbs)


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
    if arguments.changes:
        for change in arguments.changes:
            name, _, value = change.partition("=")
            settings = {key: held for key, held in settings.items() if key != name} | ({name: value} if value else {})
        ask(connect(arguments), "/v1/policy/settings", "POST", settings)
    if arguments.output in ("json", "yaml"):
        print_document(arguments.output, settings)
    else:
        print_table([("SETTING", "VALUE")], [[name, str(settings[name])] for name in sorted(settings)])
    return OK


def lint_manifests(arguments: argparse.Namespace) -> int:
    """Exit status 1 if anything was found."""
    from controlplane.cli.verdict import mesh_from_manifests
    from controlplane.policy.lint import findings

    found = findings(mesh_from_manifests(arguments))
    if arguments.output in ("json", "yaml"):
        items = [{"policy": each.policy, "where": each.where, "reason": each.reason} for each in found]
        print_document(arguments.output, items)
    elif found:
        print_table([("POLICY", "WHERE", "REASON")], [[each.policy, each.where, each.reason] for each in found])
    return FAILED if found else OK
