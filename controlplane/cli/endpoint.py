"""`meshlog endpoint`: the columns of `cilium-dbg endpoint list`."""

import argparse
from typing import Any

from controlplane.cli.at import add_at, asked, say_at
from controlplane.cli.errors import OK, UsageError
from controlplane.cli.listing import add_list
from controlplane.cli.output import add_output, print_document, print_table
from controlplane.cli.target import add_target, ask, connect

HEADERS = (
    ("ENDPOINT", "POLICY (ingress)", "POLICY (egress)", "IDENTITY", "LABELS (source:key[=value])", "IPv6", "IPv4",
     "STATUS"),
    ("", "ENFORCEMENT", "ENFORCEMENT", "", "", "", "", ""),
)
RULE_HEADER = ("POLICY", "RULE", "DIRECTION", "VERDICT", "PEERS", "PORTS", "ROWS")
RULE_FIELDS = ("policy", "path", "direction", "verdict", "peers", "ports")
OPTIONS = ("PolicyAuditMode",)
VALUES = {"enabled": True, "true": True, "disabled": False, "false": False}
WIDE = (("CLUSTER", "NODE", "WORKLOAD", "DEVICE"), ("", "", "", ""))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verbs list, get and config."""
    parser.description = "Workloads attached to a node."
    text = "endpoints of the node that is asked"
    listing = add_list(parser, "endpoint", text, layout, keep, more=add_verbs)
    listing.add_argument("-A", "--all-nodes", action="store_true", help="of every node of the mesh")


def add_verbs(verbs: Any) -> None:
    """Those that only endpoints have."""
    add_get(verbs)
    text = "options of one endpoint; OPTION=Enabled or Disabled changes one"
    config = verbs.add_parser("config", help=text, description=text + ". PolicyAuditMode: what its policies would deny "
                              "passes, and `meshlog monitor -t policy-verdict` tells it.", allow_abbrev=False,
                              epilog="Example: meshlog endpoint config shop/cart PolicyAuditMode=Enabled")
    config.add_argument("endpoint", metavar="ENDPOINT", help="its number, NS/POD, CLUSTER:NS/POD or an address")
    config.add_argument("options", nargs="*", metavar="OPTION=VALUE", help=f"of {', '.join(OPTIONS)}")
    add_output(config)
    add_target(config)
    config.set_defaults(run=run_config, at=None)


def add_get(verbs: Any) -> None:
    """The verb that shows one endpoint with the policy rules and rows that hold for it."""
    text = "one endpoint, the policy rules about it, and the rows that each became"
    get = verbs.add_parser("get", help=text, description=text, epilog="Example: meshlog endpoint get shop/cart",
                           allow_abbrev=False)
    get.add_argument("endpoint", metavar="ENDPOINT", help="its number, NS/POD, CLUSTER:NS/POD or an address")
    add_output(get)
    add_at(get)
    add_target(get)
    get.set_defaults(run=run_get)


def run_get(arguments: argparse.Namespace) -> int:
    """Several of one name are all shown."""
    answer = ask(connect(arguments), asked("/v1/policy/endpoint", {"endpoint": arguments.endpoint, "at": arguments.at}))
    say_at(arguments, answer)
    items: list[dict[str, Any]] = answer["items"]
    if arguments.output in ("json", "yaml"):
        print_document(arguments.output, items)
        return OK
    headers, rows = layout([item["endpoint"] for item in items], arguments.output == "wide")
    print_table(headers, rows)
    rules = [rule for item in items for rule in item["rules"]]
    if rules:
        print()
        lines = [[*(rule[field] for field in RULE_FIELDS), rule["rows"] or ["no row"]] for rule in rules]
        print_table([RULE_HEADER], lines)
    return OK


def run_config(arguments: argparse.Namespace) -> int:
    """As they are, after the changes that are asked for."""
    changes: dict[str, bool] = {}
    for option in arguments.options:
        name, _, value = option.partition("=")
        if name not in OPTIONS or value.lower() not in VALUES:
            raise UsageError(f"{option}: right is {' or '.join(OPTIONS)}, =Enabled or =Disabled")
        changes[name] = VALUES[value.lower()]
    agent = connect(arguments)
    if changes:
        ask(agent, "/v1/policy/endpoint", "POST", {"endpoint": arguments.endpoint, **changes})
    answer = ask(agent, asked("/v1/policy/endpoint", {"endpoint": arguments.endpoint}))
    items = [item["endpoint"] for item in answer["items"]]
    found = [{"endpoint": f"{each['cluster']}:{each['namespace']}/{each['workload']}",
              "PolicyAuditMode": _enforcement(each["configured_audit"])} for each in items]  # fmt: skip
    if arguments.output in ("json", "yaml"):
        print_document(arguments.output, found)
    else:
        print_table([("ENDPOINT", *OPTIONS)], [list(each.values()) for each in found])
    return OK


def keep(item: dict[str, Any], arguments: argparse.Namespace) -> bool:
    """The node's own, unless all are wanted."""
    return bool(arguments.all_nodes) or item["state"] != "remote"


def layout(items: list[dict[str, Any]], wide: bool) -> Any:
    """Labels stand one per line."""
    rows = []
    for item in items:
        row: list[Any] = [
            item["endpoint_id"], *(_enforced(item, f"{way}_enforced") for way in ("ingress", "egress")),
            item["identity"], item["labels"], item["ipv6"], item["ipv4"], item["state"],
        ]
        workload = f"{item['namespace']}/{item['workload']}"
        rows.append([*row, item["cluster"], item["node"], workload, item["device"]] if wide else row)
    headers = [one + more if wide else one for one, more in zip(HEADERS, WIDE, strict=True)]
    return headers, rows


def _enforced(item: dict[str, Any], field: str) -> str:
    """Under audit nothing is denied, in Cilium's words."""
    return "Disabled (Audit)" if item[field] and item.get("audited") else _enforcement(item[field])


def _enforcement(enforced: bool) -> str:
    return "Enabled" if enforced else "Disabled"
