"""Direct return through a tunnel: what is said of it."""

import pytest

from controlplane import events as e
from controlplane.commands.addresses import ChangeSettings
from controlplane.commands.types import Author
from controlplane.desired.forwarding import balancing_text, settings_notes
from controlplane.model import NodeKey, Tunnel
from tests.controlplane.small_mesh import UNDERLAY, accept, device, mesh, underlay_device

NOTE = ": 1 of 2 nodes have a tunnel, and backends reached through it are asked with the node's address (snat)"


@pytest.mark.parametrize(
    ("mode", "wrapped", "plain", "notes"),
    [
        ("snat", "snat, maglev", "snat, maglev", []),
        ("dsr", "dsr, maglev; snat through the tunnel", "dsr, maglev", [f"bpf-lb-mode dsr{NOTE}"]),
        ("hybrid", "hybrid, maglev; snat through the tunnel", "hybrid, maglev", [f"bpf-lb-mode hybrid{NOTE}"]),
    ],
)
def test_direct_return_ends_at_the_tunnel(mode: str, wrapped: str, plain: str, notes: list[str]) -> None:
    """Said by a node with one, and beside the settings while any node of the cluster has one."""
    log, node = mesh(), ("east", "n1")
    settings = f'{{"bpf-lb-mode":"{mode}","bpf-lb-algorithm":"maglev"}}'
    accept(log, Author("east", "operator"), ChangeSettings(settings))
    assert settings_notes(log.state, "east") == []
    tunnel = Tunnel("vxlan", 8472, device(3))
    log.write(node[0], "node.n1", e.NodeJoined("n1", UNDERLAY[node], underlay_device(*node), tunnel=tunnel))
    assert balancing_text(log.state, NodeKey("east", "n1")) == wrapped
    assert balancing_text(log.state, NodeKey("east", "n2")) == plain
    assert settings_notes(log.state, "east") == notes
