"""How nodes reach each other, as rows see it. Pure.

Belongs here: which underlay address stands for a node, and whether two nodes share a link. Does not belong here: rows.
"""

from collections.abc import Sequence
from typing import NamedTuple

from controlplane.addresses import router_address
from controlplane.model import Node, NodeKey
from controlplane.projections.state import State
from datapath.codec import address_bytes
from datapath.tables import NO_ADDRESS

TUNNEL = "tunnel"
TUNNEL_OVERHEAD_IPV4, TUNNEL_OVERHEAD_IPV6 = 50, 70


def address_of_family(node: Node, ipv6: bool) -> bytes:
    """The node's first underlay address of the family; NO_ADDRESS if it has none."""
    for address in node.addresses:
        if (":" in address) == ipv6:
            return address_bytes(address)
    return NO_ADDRESS


def node_addresses(node: Node) -> tuple[str, ...]:
    """All addresses that are the node's own: of the underlay, and its router's in each block."""
    return (*node.addresses, *map(router_address, node.blocks))


def next_hops(node: Node) -> tuple[bytes, bytes]:
    """Where to send IPv4 and where to send IPv6 for this node: the same family if it has one, else the other."""
    ipv4, ipv6 = address_of_family(node, False), address_of_family(node, True)
    return (ipv6 if ipv4 == NO_ADDRESS else ipv4), (ipv4 if ipv6 == NO_ADDRESS else ipv6)


def tunnel_address(node: Node, other: Node) -> bytes:
    """Where `node` sends what it wraps for `other`; NO_ADDRESS: it does not.

    Both wrap or neither: two nodes whose tunnels are not of one kind route each other's endpoints natively, as two
    without any do. Of two families that both nodes have, IPv4 carries the tunnel.
    """
    if node.tunnel is None or other.tunnel is None:
        return NO_ADDRESS
    if (node.tunnel.protocol, node.tunnel.port) != (other.tunnel.protocol, other.tunnel.port):
        return NO_ADDRESS
    for ipv6 in (False, True):
        if NO_ADDRESS not in (address_of_family(node, ipv6), address_of_family(other, ipv6)):
            return address_of_family(other, ipv6)
    return NO_ADDRESS


def tunnel_wish(state: State, cluster: str) -> tuple[str, int] | None:
    """The protocol and UDP port by which a cluster's nodes are to wrap packets; None: they are not to."""
    found = state.clusters.get(cluster)
    if found is None or found.routing_mode != TUNNEL:
        return None
    return found.tunnel_protocol, found.tunnel_port


def natively_reached(state: State, where: NodeKey) -> list[NodeKey]:
    """The nodes that a node with a tunnel does not reach by it."""
    own = state.nodes.get(where)
    if own is None or own.tunnel is None:
        return []
    return [
        key for key in sorted(state.nodes) if key != where and tunnel_address(own, state.nodes[key]) == NO_ADDRESS
    ]


def tunnel_mtu(underlay_mtu_bytes: int, addresses: Sequence[str]) -> int:
    """What fits a packet of the underlay once it is wrapped, in VXLAN or in Geneve without options: each adds an
    Ethernet header of 14 bytes, its own of 8, UDP's of 8, and an IP header. IPv4 carries it where the node has it."""
    has_ipv4 = any(":" not in address for address in addresses)
    return underlay_mtu_bytes - (TUNNEL_OVERHEAD_IPV4 if has_ipv4 else TUNNEL_OVERHEAD_IPV6)


class Way(NamedTuple):
    """From one node to another: the next hop of IPv4 and of IPv6 packets for its endpoints, and whether they are
    wrapped."""

    hops: tuple[bytes, bytes]
    is_tunnel: bool


def way_to(node: Node | None, other: Node) -> Way:
    """`node` is None until it has joined."""
    wrapped = NO_ADDRESS if node is None else tunnel_address(node, other)
    return Way(next_hops(other), False) if wrapped == NO_ADDRESS else Way((wrapped, wrapped), True)


def share_link(node: Node, other: Node) -> bool:
    """Whether `node` reaches `other` without a router, so that the neighbour entry is known.

    All underlay devices are taken to be on one link: a mesh over routers needs what the log does not hold yet.
    """
    return node is not other


def mac_bytes(mac: str) -> bytes:
    """Six bytes of "02:00:00:00:00:01"; zeros for ""."""
    return bytes.fromhex(mac.replace(":", "")) if mac else bytes(6)
