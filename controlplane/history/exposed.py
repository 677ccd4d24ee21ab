"""Frontends that the network reaches: which one a flow asks for at which node, and in whose name that asks a backend.
Pure.

Belongs here: finding the frontend of a node port, or of an address of a balancer or outside. Does not belong here:
cluster addresses (projections/), verdicts (why.py).
"""

from collections.abc import Iterator
from ipaddress import ip_address, ip_network
from typing import NamedTuple

from controlplane.desired.backends import PROTOCOL_NUMBERS
from controlplane.desired.frontends import Frontend
from controlplane.desired.services import ServiceCompiler
from controlplane.desired.underlay import tunnel_address
from controlplane.history.ends import NODE, End
from controlplane.model import EndpointKey, NodeKey, ObjectKey
from controlplane.projections.services import KIND
from controlplane.projections.state import State
from datapath.abi.types import SERVICE_DSR, SERVICE_SCOPE_EXTERNAL, SERVICE_SCOPE_INTERNAL, SERVICE_SOURCE_RANGES_DENY
from datapath.addressing import protocol_name
from datapath.codec import address_bytes, address_text
from datapath.tables import NO_ADDRESS, ServiceKey


class Exposed(NamedTuple):
    """A frontend as one node has it; `is_inside`: an endpoint of that node asks."""

    service: ObjectKey
    node: NodeKey
    frontend: Frontend
    is_inside: bool

    @property
    def backends(self) -> list[tuple[str, int]]:
        """Address and port of those that new flows may go to."""
        choice = self.frontend.choice
        return [(address_text(member.address), member.port) for member in choice.members[: choice.count]]

    def refuses(self, client: str) -> bool:
        """Whether its source ranges keep an address out."""
        if not self.frontend.ranges:
            return False
        inside = any(ip_address(client) in ip_network(prefix) for prefix in self.frontend.ranges)
        return inside == bool(self.frontend.flags & SERVICE_SOURCE_RANGES_DENY)

    def keeps_client(self, state: State, source: End, backend: str) -> bool:
        """Whether the backend is asked under the client's own address, not under the node's (bpf/lib/nodeport.h)."""
        holder = state.addresses.get(backend)
        there = NodeKey(holder.cluster, holder.node) if holder is not None else None
        if self.is_inside or there == self.node:
            return True
        is_direct = self.frontend.flags & SERVICE_DSR and isinstance(holder, EndpointKey) and source.what != NODE
        if not is_direct or there is None:
            return False
        return tunnel_address(state.nodes[self.node], state.nodes[there]) == NO_ADDRESS


def exposed_frontend(state: State, cluster: str, source: End, address: str, protocol: int, port: int) -> Exposed | None:
    """At the node whose address it is; of an address that no node has, at the own node of an endpoint that asks, or
    else at the first node that answers, of the cluster and with a backend if there is one."""
    if protocol not in PROTOCOL_NUMBERS.values() or not address:
        return None
    own = NodeKey(*source.key[:2]) if isinstance(source.key, EndpointKey) else None
    found = []
    for node in _candidates(state, cluster, own, address, protocol, port):
        compiler = ServiceCompiler(*node)
        compiler.full(state)
        scope = SERVICE_SCOPE_INTERNAL if node == own else SERVICE_SCOPE_EXTERNAL
        key = ServiceKey(address_bytes(address), port, protocol, scope)
        unit = compiler.unit_of(key)
        if unit is None or unit.kind != KIND:
            continue
        exposed = Exposed(unit, node, compiler.frontends(unit)[key], node == own)
        if exposed.frontend.choice.count:
            return exposed
        found.append(exposed)
    return found[0] if found else None


def _candidates(
    state: State, cluster: str, own: NodeKey | None, address: str, protocol: int, port: int
) -> Iterator[NodeKey]:
    holder = state.addresses.get(address)
    if isinstance(holder, NodeKey):
        if (holder.cluster, port, protocol_name(protocol)) in state.node_ports:
            yield holder
        return
    named = {
        key.cluster
        for key, service in state.services.items()
        if address in (*service.exposure.load_balancer_ips, *service.exposure.external_ips, *service.cluster_ips)
    }
    if own is not None:
        yield from (own,) * (own.cluster in named)
        return
    answering = (key for key in state.nodes if key.cluster in named)
    yield from sorted(answering, key=lambda key: (key.cluster != cluster, key))
