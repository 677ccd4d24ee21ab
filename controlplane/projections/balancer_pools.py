"""Pools of addresses for services of type LoadBalancer. Pure.

Belongs here: their events, their checks, and which addresses a pool has for which service. Does not belong here:
choosing one (commands/balancer_pools.py).
"""

from collections.abc import Iterator, Mapping
from ipaddress import ip_address, ip_network
from typing import TYPE_CHECKING

import msgspec

from controlplane.addresses import Span, family_of, packed_address, span_of
from controlplane.events import BalancerPoolApplied, BalancerPoolRemoved
from controlplane.model import BalancerPool, ObjectKey
from controlplane.projections.change import Change
from kvstore.types import Record

if TYPE_CHECKING:
    from controlplane.projections.state import State

KIND = "CiliumLoadBalancerIPPool"
NAMESPACE_LABEL, NAME_LABEL = "io.kubernetes.service.namespace", "io.kubernetes.service.name"
"""Keys by which a pool's selector may ask for a service beside its labels."""
WITH_EDGES_MIN = 4
"""Addresses of a prefix that has more than its edges."""


def pool_key(cluster: str, name: str) -> ObjectKey:
    return ObjectKey(cluster, KIND, "", name)


def pool_fault(event: BalancerPoolApplied) -> str:
    """What is wrong with a pool; "" if nothing is."""
    for block in event.blocks:
        if span_of(block) is None:
            return f"block {block!r}: right is for example 192.0.2.0/24, without bits beyond the length"
    return ""


def selects_service(pool: BalancerPool, namespace: str, name: str, labels: Mapping[str, str]) -> bool:
    """Whether the pool is for the service; a pool without a selector is for all."""
    known = {**labels, NAMESPACE_LABEL: namespace, NAME_LABEL: name}
    return all(known.get(key) == value for key, value in pool.selector.items())


def holds_address(pool: BalancerPool, address: str) -> bool:
    """Whether the pool may give the address out."""
    packed = packed_address(address)
    spans = [span for block in pool.blocks if (span := _usable(block, pool.edges)) is not None]
    return packed is not None and any(span.first <= packed <= span.last for span in spans)


def addresses_in(pool: BalancerPool, family: int) -> Iterator[str]:
    """What the pool may give out of a family, in order; a prefix of IPv6 has more than anybody ever takes."""
    for block in pool.blocks:
        span = _usable(block, pool.edges)
        if span is None or family_of(block) != family:
            continue
        packed = (span.first, span.last) if family == 6 else (span.first[12:], span.last[12:])
        for number in range(int.from_bytes(packed[0]), int.from_bytes(packed[1]) + 1):
            yield str(ip_address(number.to_bytes(len(packed[0]))))


def _usable(block: str, edges: bool) -> Span | None:
    """Without the first and the last address of a prefix where they may be those of the network itself."""
    span = span_of(block)
    if span is None or edges or ip_network(block).num_addresses < WITH_EDGES_MIN:
        return span
    first, last = int.from_bytes(span.first) + 1, int.from_bytes(span.last) - 1
    return Span(first.to_bytes(len(span.first)), last.to_bytes(len(span.last)))


def pool_applied(state: "State", record: Record, event: BalancerPoolApplied, changes: list[Change]) -> str:
    fault = pool_fault(event)
    if fault:
        return fault
    key = pool_key(record.cluster, event.name)
    old = state.balancer_pools.get(key)
    new = BalancerPool(record.cluster, *msgspec.structs.astuple(event))
    if old != new:
        state.balancer_pools[key] = new
        changes.append(Change("balancer_pool", key, old, new))
    return ""


def pool_removed(state: "State", record: Record, event: BalancerPoolRemoved, changes: list[Change]) -> str:
    key = pool_key(record.cluster, event.name)
    old = state.balancer_pools.pop(key, None)
    if old is not None:
        changes.append(Change("balancer_pool", key, old, None))
    return ""
