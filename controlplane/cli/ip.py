"""`meshlog ip`: the columns of `cilium-dbg ip list`."""

import argparse
from typing import Any

from controlplane.cli.listing import add_list

HEADER = ("IP", "IDENTITY", "SOURCE")
WIDE = ("HOST", "NAME")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb list."""
    parser.description = "Addresses and prefixes, and whose they are."
    add_list(parser, "ip", "prefixes and their identities, as the log has them", layout)


def layout(items: list[dict[str, Any]], wide: bool) -> Any:
    """Wide adds the node and the name of the owner."""
    rows: list[list[Any]] = []
    for item in items:
        row = [item["prefix"], item["identity"], item["source"]]
        host = f"{item['cluster']}/{item['node']}" if item["node"] else ""
        rows.append([*row, host, item["name"]] if wide else row)
    return [HEADER + WIDE if wide else HEADER], rows
