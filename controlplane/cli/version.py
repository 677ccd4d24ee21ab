"""`meshlog version`."""

import argparse
import platform
from importlib.metadata import PackageNotFoundError, version

from controlplane.cli.errors import OK
from controlplane.cli.output import add_output, print_document


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of version."""
    parser.description = "Print the version of this program."
    parser.epilog = "Example: meshlog version -o json"
    add_output(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Of this program, not of the agent: `meshlog status` says that."""
    try:
        ours = version("meshlog")
    except PackageNotFoundError:
        ours = "unknown"
    found = {"meshlog": ours, "python": platform.python_version(), "kernel": platform.release()}
    if arguments.output in ("json", "yaml"):
        print_document(arguments.output, found)
    else:
        print(f"meshlog {found['meshlog']}, Python {found['python']}, kernel {found['kernel']}")
    return OK
