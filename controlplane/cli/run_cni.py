"""`meshlog cni`: the CNI plugin under the program's own name; `meshlog-cni` is the same and starts faster."""

import argparse

from controlplane.cni import main


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """No flags: a runtime speaks through the environment and standard input."""
    parser.description = "The CNI plugin, 0.4.0 to 1.1.0. Install `meshlog-cni` into /opt/cni/bin as `meshlog`."
    parser.epilog = 'Example: CNI_COMMAND=VERSION meshlog cni <<< \'{"cniVersion": "1.0.0"}\''
    parser.set_defaults(run=lambda arguments: main())
