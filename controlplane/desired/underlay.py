"""How nodes reach each other, as rows see it. Pure.

Belongs here: which underlay address stands for a node, and whether two nodes share a link. Does not belong here: rows.
"""

from typing import NamedTuple

from controlplane.addresses import router_address
from controlplane.model import Node
from datapath.codec import address_bytes
from datapath.tables import NO_ADDRESS


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
