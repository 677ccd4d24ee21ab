"""Every object through the verifier, as it will be loaded."""

from pathlib import Path

import pytest

from datapath.kernel.programs import OBJECTS
from tests.bpf import node as nodes

pytestmark = pytest.mark.kernel("bpf_redirect_peer")

PROGRAMS = {"endpoint.bpf.o": {"from_endpoint", "to_endpoint"}, "host.bpf.o": {"from_network"}}


@pytest.mark.parametrize("name", OBJECTS)
def test_every_program_passes_the_verifier(objects_dir: Path, name: str) -> None:
    """The object loads, and has exactly the programs that the agent attaches."""
    with nodes.load(objects_dir / name) as loaded:
        assert set(loaded.programs) == PROGRAMS[name]


def test_no_object_is_left_out(objects_dir: Path) -> None:
    """Every compiled object but the one for types is loaded above."""
    assert {path.name for path in objects_dir.glob("*.bpf.o")} - {"abi_types.bpf.o"} == set(PROGRAMS)
