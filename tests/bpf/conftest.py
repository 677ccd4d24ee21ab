"""Nodes for the packet tests, each with maps of its own.

Belongs here: fixtures. Does not belong here: rows (node.py), bytes (packets.py).
"""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.bpf import node as nodes


@pytest.fixture(params=[4, 6], ids=["ipv4", "ipv6"])
def family(request: pytest.FixtureRequest) -> int:
    """Both families in turn."""
    return int(request.param)


@pytest.fixture
def node(objects_dir: Path, family: int) -> Iterator[nodes.Node]:
    """endpoint.bpf.o on a node with CLIENT and SERVER."""
    with nodes.load(objects_dir / "endpoint.bpf.o") as loaded:
        loaded.family = family
        loaded.settle()
        yield loaded


@pytest.fixture
def network(objects_dir: Path, family: int) -> Iterator[nodes.Node]:
    """host.bpf.o on the same node."""
    with nodes.load(objects_dir / "host.bpf.o") as loaded:
        loaded.family = family
        loaded.settle()
        yield loaded
