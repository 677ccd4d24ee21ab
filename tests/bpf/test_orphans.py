"""What the programs wrote, judged by the agent: flows to a backend that left, and ports of flows that ended."""

import pytest

from datapath import orphans
from datapath.abi import types as abi
from tests.bpf import packets
from tests.bpf.gate import Gate
from tests.bpf.node import CLIENT, FRONTEND, REMOTE, SERVER, Endpoint, Node
from tests.bpf.test_masquerade import out

pytestmark = pytest.mark.kernel("bpf_redirect_peer")

SERVICE_PORT, BACKEND_PORT = 80, 8080


def ask(node: Node, protocol: int) -> str:
    """CLIENT:1000 -> FRONTEND:80; where it went."""
    segment = packets.udp(1000, 80) if protocol == packets.UDP else packets.tcp(1000, 80, packets.ACK)
    return packets.read(node.send(CLIENT, node.frame(CLIENT, FRONTEND, segment, protocol)).packet).dest


def purge(node: Node) -> int:
    """What an agent does after the rows of services have changed; how many entries went."""
    tables = {name: node.maps[name].dump() for name in ("services", "backends", "ipcache")}
    departed = orphans.departed_flows(node.maps["conntrack"].dump().items(), orphans.backends_of(tables.__getitem__))
    node.maps["conntrack"].delete(departed)
    return len(departed)


@pytest.mark.parametrize("first", [SERVER, CLIENT], ids=["another", "itself"])
def test_datagrams_leave_a_backend_that_left(node: Node, first: Endpoint) -> None:
    """They stick to it until its entries are removed, of the usual kind and of a hairpin; then they go to the next."""
    node.service([(first, BACKEND_PORT)], packets.UDP)
    ask(node, packets.UDP)
    assert purge(node) == 0
    node.service([(REMOTE, BACKEND_PORT)], packets.UDP)
    assert ask(node, packets.UDP) == first.address(node.family)
    assert (purge(node), node.entries()) == (2, [])
    assert ask(node, packets.UDP) == REMOTE.address(node.family)


def test_connection_stays_with_an_endpoint_that_is_still_there(node: Node) -> None:
    """SERVER was only taken out of the service."""
    node.service([(SERVER, BACKEND_PORT)], packets.TCP)
    ask(node, packets.TCP)
    node.service([(REMOTE, BACKEND_PORT)], packets.TCP)
    assert (purge(node), ask(node, packets.TCP)) == (0, SERVER.address(node.family))


@pytest.mark.parametrize("kind", ["tcp", "udp", "echo"])
def test_ports_are_found_by_their_flow(gate: Gate, kind: str) -> None:
    """Both entries of a port stay while the flow does, and go once it has expired."""
    out(gate, kind, 1000)
    nat = gate.maps["nat"].dump().items()
    (entry,) = gate.entries()
    assert entry.row.flags & abi.CONNTRACK_MASQUERADED
    flows = gate.maps["conntrack"].dump()
    assert orphans.idle_ports(nat, flows, entry.row.expires_ns - 1) == []
    assert len(orphans.idle_ports(nat, flows, entry.row.expires_ns)) == 2
