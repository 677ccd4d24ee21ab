"""Rows of routes and neighbours: how the host stack reaches the node's endpoints and the other nodes.

Belongs here: those two tables. Does not belong here: packets that the programs forward themselves. Pure.
"""

from controlplane.desired.underlay import address_of_family, mac_bytes, share_link, tunnel_address
from controlplane.model import Endpoint, Node
from datapath import tables as t
from datapath.codec import address_bytes, prefix_bytes

RouteRows = dict[t.RouteKey, t.RouteRow]
NeighbourRows = dict[t.NeighbourKey, t.NeighbourRow]


def endpoint_routes(endpoint: Endpoint) -> RouteRows:
    """One route for each address, through the endpoint's device."""
    row = t.RouteRow(endpoint.device.ifindex, t.NO_ADDRESS)
    return {t.RouteKey(128, address_bytes(address)): row for address in (endpoint.ipv4, endpoint.ipv6) if address}


def endpoint_neighbours(endpoint: Endpoint) -> NeighbourRows:
    """The endpoint's MAC for each of its addresses, so that the host never has to ask."""
    row = t.NeighbourRow(mac_bytes(endpoint.device.mac))
    return {
        t.NeighbourKey(endpoint.device.ifindex, address_bytes(address)): row
        for address in (endpoint.ipv4, endpoint.ipv6)
        if address
    }


def node_routes(node: Node, other: Node) -> RouteRows:
    """From `node` to the blocks of another. A block of a family in which the other has no address gets no route, unless
    what goes there is wrapped."""
    if node.tunnel is not None and tunnel_address(node, other) != t.NO_ADDRESS:
        row = t.RouteRow(node.tunnel.device.ifindex, t.NO_ADDRESS)
        return {t.RouteKey(*prefix_bytes(block)): row for block in other.blocks}
    rows = {}
    for block in other.blocks:
        gateway = address_of_family(other, ":" in block)
        if gateway != t.NO_ADDRESS:
            rows[t.RouteKey(*prefix_bytes(block))] = t.RouteRow(node.device.ifindex, gateway)
    return rows


def node_neighbours(node: Node, other: Node) -> NeighbourRows:
    """From `node` to the addresses of another on the same link."""
    if not other.device.mac or not share_link(node, other):
        return {}
    row = t.NeighbourRow(mac_bytes(other.device.mac))
    return {t.NeighbourKey(node.device.ifindex, address_bytes(address)): row for address in other.addresses}
