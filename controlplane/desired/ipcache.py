"""Rows of the ipcache: the identity behind every address of the mesh and every prefix that policies name.

Belongs here: that one table. Does not belong here: who has an address (projections/), the numbers of prefixes
(prefixes.py) and of nodes (nodes.py). Each row is a function of the state and its address or prefix. Pure.
"""

from collections.abc import Mapping
from typing import NamedTuple

from controlplane.desired.underlay import Way, way_to
from controlplane.model import EndpointKey, NodeKey
from controlplane.projections.state import State
from datapath.abi.types import (
    IDENTITY_HOST,
    IDENTITY_WORLD,
    IPCACHE_REMOTE_ENDPOINT,
    IPCACHE_TUNNEL,
)
from datapath.codec import address_bytes, prefix_bytes
from datapath.tables import NO_ADDRESS, IpcacheKey, IpcacheRow

IpcacheRows = dict[IpcacheKey, IpcacheRow]

WORLD_ROWS: IpcacheRows = {
    IpcacheKey(*prefix_bytes(prefix)): IpcacheRow(NO_ADDRESS, IDENTITY_WORLD, 0) for prefix in ("0.0.0.0/0", "::/0")
}
OWN_NODE = IpcacheRow(NO_ADDRESS, IDENTITY_HOST, 0)


class Numbers(NamedTuple):
    """Of what has no identity in the log: prefixes that policies name, and every address of the other nodes."""

    prefixes: Mapping[str, int]
    nodes: Mapping[str, int]


def ipcache_key(address: str) -> IpcacheKey:
    return IpcacheKey(128, address_bytes(address))


def ipcache_row(state: State, node: NodeKey, address: str, numbers: Numbers) -> IpcacheRow | None:
    """Of one address, as `node` needs it; None if nobody has it: then it is the world's."""
    holder = state.addresses.get(address)
    if holder is None:
        return None
    if isinstance(holder, NodeKey):
        way = way_to(state.nodes.get(node), state.nodes[holder])
        return OWN_NODE if holder == node else _node_row(way, numbers.nodes[address])
    identity = state.endpoints[holder].identity
    if (holder.cluster, holder.node) == node:
        return IpcacheRow(NO_ADDRESS, identity, 0)
    way = way_to(state.nodes.get(node), state.nodes[NodeKey(holder.cluster, holder.node)])
    return IpcacheRow(way.hops[":" in address], identity, _remote_flags(way))


def _remote_flags(way: Way) -> int:
    return IPCACHE_REMOTE_ENDPOINT | (IPCACHE_TUNNEL if way.is_tunnel else 0)


def _node_row(way: Way, identity: int) -> IpcacheRow:
    return IpcacheRow(way.hops[0] if way.is_tunnel else NO_ADDRESS, identity, IPCACHE_TUNNEL if way.is_tunnel else 0)


def prefix_key(prefix: str) -> IpcacheKey:
    return IpcacheKey(*prefix_bytes(prefix))


def prefix_row(state: State, node: NodeKey, prefix: str, numbers: Numbers) -> IpcacheRow | None:
    """Of one prefix, "192.0.2.1/32" too: whoever in the mesh has the address comes before what policies say of it."""
    address, _, length = prefix.partition("/")
    is_host = length == ("128" if ":" in address else "32")
    row = ipcache_row(state, node, address, numbers) if is_host else None
    if row is None and prefix in numbers.prefixes:
        return IpcacheRow(NO_ADDRESS, numbers.prefixes[prefix], 0)
    return row or WORLD_ROWS.get(prefix_key(prefix))


def host_prefix(address: str) -> str:
    return f"{address}/{128 if ':' in address else 32}"


def all_rows(state: State, node: NodeKey, numbers: Numbers) -> IpcacheRows:
    """The whole table."""
    rows = dict(WORLD_ROWS)
    for prefix, number in numbers.prefixes.items():
        rows[prefix_key(prefix)] = IpcacheRow(NO_ADDRESS, number, 0)
    own = state.nodes.get(node)
    ways = {key: way_to(own, state.nodes[key]) for key in state.nodes}
    remote = {key: (way.hops, _remote_flags(way)) for key, way in ways.items()}
    endpoints, packed, made = state.endpoints, address_bytes, tuple.__new__
    for address, holder in state.addresses.items():
        key = made(IpcacheKey, (128, packed(address)))
        if type(holder) is EndpointKey:
            identity, place = endpoints[holder].identity, holder[:2]
            if place == node:
                rows[key] = IpcacheRow(NO_ADDRESS, identity, 0)
            else:
                hops, flags = remote[place]  # type: ignore[index]
                rows[key] = made(IpcacheRow, (hops[":" in address], identity, flags))
        else:
            rows[key] = OWN_NODE if holder == node else _node_row(ways[holder], numbers.nodes[address])  # type: ignore[index]
    return rows
