"""`meshlog policy`: policies in force."""

import argparse
from typing import Any

from controlplane.cli.listing import add_list

HEADER = ("CLUSTER", "KIND", "NAMESPACE", "NAME", "ENDPOINTS")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb list."""
    parser.description = "Network policies in force. `meshlog get KIND` prints them as they were written."
    add_list(parser, "policy", "policies in force and how many endpoints each selects", layout)


def layout(items: list[dict[str, Any]], wide: bool) -> Any:
    """ENDPOINTS: how many the policy selects, in its cluster."""
    fields = ("cluster", "kind", "namespace", "name", "selected")
    return [HEADER], [[item[field] for field in fields] for item in items]
