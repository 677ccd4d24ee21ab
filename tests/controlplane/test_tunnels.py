"""How nodes reach each other's endpoints: the routing mode of a cluster, the tunnels of nodes, and the rows of both."""

import pytest

from controlplane import events as e
from controlplane.commands.cluster import JoinCluster
from controlplane.commands.node import JoinNode
from controlplane.commands.types import Author, Rejection
from controlplane.desired.underlay import natively_reached, tunnel_mtu, tunnel_wish
from controlplane.model import Device, NodeKey, Tunnel
from datapath import tables as t
from datapath.abi import types as abi
from datapath.codec import address_bytes, prefix_bytes
from tests.controlplane.random_mesh import Log
from tests.controlplane.small_mesh import UNDERLAY, accept, add_endpoint, mesh, table, underlay_device

TUNNEL = Device("mesh_vxlan", 9, "02:00:00:00:00:09")
VXLAN = Tunnel("vxlan", 8472, TUNNEL)
OPERATOR = Author("east", "operator")
RANGES = (("10.1.0.0/16", "fd00:1::/48"), (24, 64), ("172.1.0.0/24", "fd01:1::/112"))


def wrapping(*nodes: tuple[str, str], tunnel: Tunnel = VXLAN) -> Log:
    """The small mesh with an endpoint on each node; these nodes have a tunnel."""
    log = mesh()
    for key in UNDERLAY:
        add_endpoint(log, *key, "-".join(key), 7)
    for key in nodes:
        wrap(log, key, tunnel)
    return log


def wrap(log: Log, node: tuple[str, str], tunnel: Tunnel | None) -> None:
    cluster, name = node
    author = Author(cluster, f"node.{name}")
    accept(log, author, JoinNode(name, UNDERLAY[node], underlay_device(cluster, name), (), tunnel))


def row_of(log: Log, address: str) -> t.IpcacheRow:
    """As node n1 of east has it."""
    found: t.IpcacheRow = table(log, "ipcache")[t.IpcacheKey(128, address_bytes(address))]
    return found


def addresses(log: Log, node: tuple[str, str]) -> tuple[str, str]:
    (endpoint,) = log.state.endpoints_of(NodeKey(*node))
    return endpoint.ipv4, endpoint.ipv6


def test_two_nodes_with_tunnels_wrap_for_each_other() -> None:
    """Both families go inside IPv4, to the other's endpoints and to the other node itself."""
    log = wrapping(*UNDERLAY)
    there = address_bytes(UNDERLAY["west", "n1"][0])
    for address in addresses(log, ("west", "n1")):
        row = row_of(log, address)
        assert (row.node, row.flags) == (there, abi.IPCACHE_REMOTE_ENDPOINT | abi.IPCACHE_TUNNEL)
    for address in (*UNDERLAY["west", "n1"], "10.2.1.1"):
        assert row_of(log, address) == t.IpcacheRow(there, abi.IDENTITY_REMOTE_NODE, abi.IPCACHE_TUNNEL)


def test_host_stack_and_programs_use_the_device() -> None:
    """Routes to others' blocks lead into it, of both families though n2 has one; programs run on it."""
    log = wrapping(*UNDERLAY)
    routes = table(log, "routes")
    for block in ("10.1.2.0/24", "fd00:1:0:2::/64", "10.2.1.0/24", "fd00:2:0:1::/64"):
        assert routes[t.RouteKey(*prefix_bytes(block))] == t.RouteRow(TUNNEL.ifindex, t.NO_ADDRESS)
    attachments = table(log, "attachments")
    programs = [attachments[t.AttachmentKey(TUNNEL.ifindex, hook)].program for hook in ("ingress", "egress")]
    assert programs == ["from_overlay", "to_overlay"]
    assert table(log, "tunnel") == {t.TunnelKey(0): t.TunnelRow(TUNNEL.ifindex)}


@pytest.mark.parametrize("other", [None, Tunnel("geneve", 6081, TUNNEL), Tunnel("vxlan", 4789, TUNNEL)])
def test_a_mixed_mesh_routes_natively_where_tunnels_differ(other: Tunnel | None) -> None:
    """Both ends of a pair decide alike, by what both recorded; the others go on wrapping."""
    log = wrapping(*UNDERLAY)
    wrap(log, ("east", "n2"), other)
    ipv4, _ = addresses(log, ("east", "n2"))
    assert row_of(log, ipv4) == t.IpcacheRow(
        address_bytes("192.168.0.2"), row_of(log, ipv4).identity, abi.IPCACHE_REMOTE_ENDPOINT
    )
    back = table(log, "ipcache", "east", "n2")[t.IpcacheKey(128, address_bytes(addresses(log, ("east", "n1"))[0]))]
    assert back.flags == abi.IPCACHE_REMOTE_ENDPOINT
    assert row_of(log, addresses(log, ("west", "n1"))[0]).flags & abi.IPCACHE_TUNNEL
    assert natively_reached(log.state, NodeKey("east", "n1")) == [NodeKey("east", "n2")]


def test_without_tunnels_nothing_is_different() -> None:
    """A node that had one and has none again has the rows of one that never did."""
    log = wrapping()
    before = {name: table(log, name) for name in ("ipcache", "routes", "attachments", "tunnel")}
    for change in (VXLAN, None):
        for node in UNDERLAY:
            wrap(log, node, change)
    assert {name: table(log, name) for name in before} == before


def test_the_mode_may_change_and_must_be_one() -> None:
    """An operator started with other flags records it; what is no mode, protocol or port is refused by name."""
    log = mesh()
    assert tunnel_wish(log.state, "east") is None
    accept(log, OPERATOR, JoinCluster(1, *RANGES, "tunnel", "geneve", 6081))
    assert tunnel_wish(log.state, "east") == ("geneve", 6081)
    assert tunnel_wish(log.state, "west") is None
    for fields, field in ((("bridge",), "routing_mode"), (("tunnel", "gre"), "tunnel_protocol"),
                          (("tunnel", "vxlan", 0), "tunnel_port")):  # fmt: skip
        refused = log.wish(OPERATOR, JoinCluster(1, *RANGES, *fields))
        assert isinstance(refused, Rejection)
        assert field in refused.reason


def test_a_tunnel_must_be_a_device_of_its_own() -> None:
    """A forged record that names the underlay as the tunnel changes nothing."""
    log = mesh()
    underlay = underlay_device("east", "n1")
    for tunnel, reason in (
        (Tunnel("vxlan", 8472, underlay), "is that of"),
        (Tunnel("gre", 8472, TUNNEL), "tunnel_protocol 'gre'"),
        (Tunnel("vxlan", 8472, Device("x", 0, "")), "ifindex 0"),
    ):
        log.write("east", "node.n1", e.NodeJoined("n1", UNDERLAY["east", "n1"], underlay, (), tunnel))
        assert reason in log.state.refused_events[-1].reason
    assert log.state.nodes[NodeKey("east", "n1")].tunnel is None


def test_what_is_left_of_the_mtu() -> None:
    """50 bytes less over IPv4, which a node uses that has both, and 70 less over IPv6."""
    assert tunnel_mtu(1500, ("192.0.2.1", "fd00::1")) == 1450
    assert tunnel_mtu(1500, ("fd00::1",)) == 1430
