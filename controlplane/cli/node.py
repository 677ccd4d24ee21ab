"""`meshlog node`: the columns of `cilium-dbg node list`."""

import argparse
from typing import Any

from controlplane.cli.listing import add_list

HEADER = ("Name", "IPv4 Address", "Endpoint CIDR", "IPv6 Address", "Endpoint CIDR", "Source")
WIDE = ("Endpoints", "Device", "Labels")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb list."""
    parser.description = "Nodes of all clusters of the mesh."
    add_list(parser, "node", "nodes of all clusters of the mesh", layout)


def layout(items: list[dict[str, Any]], wide: bool) -> Any:
    """Source is "local" for the node that answers, else "kvstore"."""
    rows = []
    for item in items:
        source = "local" if item["local"] else "kvstore"
        row: list[Any] = [f"{item['cluster']}/{item['name']}", item["ipv4"], _blocks(item, False), item["ipv6"],
                          _blocks(item, True), source]
        rows.append([*row, item["endpoints"], item["device"], item["labels"]] if wide else row)
    return [HEADER + WIDE if wide else HEADER], rows


def _blocks(item: dict[str, Any], six: bool) -> list[str]:
    return [cidr for cidr in item["pod_cidrs"] if (":" in cidr) == six]
