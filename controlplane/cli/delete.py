"""`meshlog delete`: what manifests name goes out of the log."""

import argparse

from controlplane.cli import apply


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of delete."""
    parser.description = "Take the objects that manifests name out of the log. One that is absent is no error."
    parser.epilog = "Example: meshlog delete -f policy.yaml"
    apply.add_flags(parser)
    parser.set_defaults(run=apply.run, path="/v1/delete")
