"""`meshlog endpoint`: the columns of `cilium-dbg endpoint list`."""

import argparse
from typing import Any

from controlplane.cli.listing import add_list

HEADERS = (
    ("ENDPOINT", "POLICY (ingress)", "POLICY (egress)", "IDENTITY", "LABELS (source:key[=value])", "IPv6", "IPv4",
     "STATUS"),
    ("", "ENFORCEMENT", "ENFORCEMENT", "", "", "", "", ""),
)
WIDE = (("CLUSTER", "NODE", "WORKLOAD", "DEVICE"), ("", "", "", ""))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb list."""
    parser.description = "Workloads attached to a node."
    text = "endpoints of the node that is asked"
    listing = add_list(parser, "endpoint", text, layout, keep)
    listing.add_argument("-A", "--all-nodes", action="store_true", help="of every node of the mesh")


def keep(item: dict[str, Any], arguments: argparse.Namespace) -> bool:
    """The node's own, unless all are wanted."""
    return bool(arguments.all_nodes) or item["state"] != "remote"


def layout(items: list[dict[str, Any]], wide: bool) -> Any:
    """Labels stand one per line."""
    rows = []
    for item in items:
        row: list[Any] = [
            item["endpoint_id"], _enforcement(item["ingress_enforced"]), _enforcement(item["egress_enforced"]),
            item["identity"], item["labels"], item["ipv6"], item["ipv4"], item["state"],
        ]
        workload = f"{item['namespace']}/{item['workload']}"
        rows.append([*row, item["cluster"], item["node"], workload, item["device"]] if wide else row)
    headers = [one + more if wide else one for one, more in zip(HEADERS, WIDE, strict=True)]
    return headers, rows


def _enforcement(enforced: bool) -> str:
    return "Enabled" if enforced else "Disabled"
