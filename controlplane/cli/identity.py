"""`meshlog identity`: the columns of `cilium-dbg identity list`."""

import argparse
from typing import Any

from controlplane.cli.listing import add_list

HEADER = ("ID", "LABELS", "REFCOUNT")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb list."""
    parser.description = "Security identities: a number for each set of labels."
    add_list(parser, "identity", "identities of all clusters, the reserved ones too", layout)


def layout(items: list[dict[str, Any]], wide: bool) -> Any:
    """REFCOUNT: endpoints that use the number."""
    rows: list[list[Any]] = []
    for item in items:
        row = [item["number"], item["labels"], item["endpoints"]]
        rows.append([*row, item["cluster"] or "reserved"] if wide else row)
    return [(*HEADER, "CLUSTER") if wide else HEADER], rows
