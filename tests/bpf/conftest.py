"""Nodes for the packet tests, each with maps of its own.

Belongs here: fixtures. Does not belong here: rows (node.py, gate.py), bytes (packets.py).
"""

import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.bpf import gate as gates
from tests.bpf import node as nodes
from tests.bpf.gate import Gate, MakeGate
from tests.conftest import Namespace


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


@pytest.fixture
def make_gate(objects_dir: Path, family: int, make_namespace: Callable[[], Namespace]) -> Iterator[MakeGate]:
    """Makes gates of an object, with other constants than usual."""
    place = gates.routed(make_namespace)
    underlay = place.call(socket.if_nametoindex, "und")
    made: list[Gate] = []

    def make(name: str = "endpoint.bpf.o", **constants: int | bytes) -> Gate:
        named = {**gates.CONSTANTS, "config_underlay_ifindex": underlay, **constants}
        gate = Gate(nodes.loaded(objects_dir / name, **named), place, family)
        made.append(gate)
        gate.__enter__()
        gate.settle()
        return gate

    yield make
    for gate in made:
        gate.__exit__()


@pytest.fixture
def gate(make_gate: MakeGate) -> Gate:
    """endpoint.bpf.o with the usual constants."""
    return make_gate()


@pytest.fixture
def wall(make_gate: MakeGate) -> Gate:
    """host.bpf.o with the usual constants."""
    return make_gate("host.bpf.o")
