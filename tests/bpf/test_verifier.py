"""Every object through the verifier, as it will be loaded, with every combination of features."""

import itertools
from pathlib import Path

import pytest

from datapath.kernel import programs
from datapath.masquerade import PREFIXES_MAX, masquerade_constants, node_constants
from tests.bpf import node as nodes

pytestmark = pytest.mark.kernel("bpf_redirect_peer")

TRIED = "rehearsal.bpf.o"
"""Never attached: its programs run on packets that are tried."""
PROGRAMS = {
    "endpoint.bpf.o": {"from_endpoint", "to_endpoint"},
    "host.bpf.o": {"from_network", "from_network_guarded", "to_network", "to_network_answering"},
    "overlay.bpf.o": {"from_overlay", "to_overlay"},
    "sock.bpf.o": {
        f"socket_{call}{family}" for call in ("connect", "sendmsg", "recvmsg", "peername") for family in (4, 6)
    },
    "sockmap.bpf.o": {"socket_life", "socket_message"},
    "xdp.bpf.o": {"xdp_from_network"},
    TRIED: {"from_overlay", "from_overlay_rehearsed", "to_overlay"},
}
OBJECTS = (*programs.OBJECTS, programs.SOCKET_OBJECT, programs.JOINING_OBJECT, programs.XDP_OBJECT)
EXCLUDED = tuple(f"10.{number}.0.0/16" for number in range(PREFIXES_MAX))
NODES = ((), ("192.168.9.1",), ("fd00:9::1",), ("192.168.9.1", "fd00:9::1"))
"""The node's addresses: what is masqueraded, of which family."""
FEATURES = tuple(itertools.product(NODES, ((), EXCLUDED), (0, 1), (0, 1), (0, nodes.UNDERLAY)))


@pytest.mark.parametrize("name", (*OBJECTS, TRIED))
def test_every_program_passes_the_verifier(objects_dir: Path, name: str) -> None:
    """The object loads, and has exactly the programs that the agent attaches or tries."""
    with nodes.load(objects_dir / name) as loaded:
        assert set(loaded.programs) == PROGRAMS[name]


@pytest.mark.parametrize("name", OBJECTS)
def test_every_combination_passes_the_verifier(objects_dir: Path, name: str) -> None:
    """Constants decide which branches the verifier sees: each combination is a program of its own."""
    for addresses, excluded, drops, verdicts, underlay in FEATURES:
        constants = {
            **node_constants(addresses),
            **masquerade_constants(addresses, (10000, 29999), excluded),
            "config_notify_drops": drops,
            "config_notify_verdicts": verdicts,
            "config_notify_denials": verdicts,
            "config_underlay_ifindex": underlay,
            programs.CONTENT_ID_CONSTANT: 1,
        }
        with nodes.load(objects_dir / name, **constants) as loaded:
            assert set(loaded.programs) == PROGRAMS[name]


def test_no_object_is_left_out(objects_dir: Path) -> None:
    """Every compiled object but the one for types is loaded above."""
    assert {path.name for path in objects_dir.glob("*.bpf.o")} - {"abi_types.bpf.o"} == set(PROGRAMS)
