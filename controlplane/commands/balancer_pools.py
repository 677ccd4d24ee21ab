"""Addresses of services of type LoadBalancer out of the cluster's pools: kept, asked for or chosen, and recorded. Pure.

Belongs here: pools, and which addresses a service gets. Does not belong here: what else a service is (service.py), when
to look whether pools have changed (upkeep.py).

A service that brings its addresses (status.loadBalancer, spec.loadBalancerIP), or names a class of another balancer, is
left alone. Of each family that it has, any other gets one address, of the first pool by name that is for it. It keeps
what it has while a pool for it has that address; a disabled pool gives nothing new out and takes nothing back.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice

import msgspec

from controlplane.addresses import family_of, is_address, span_of
from controlplane.commands.types import Author, Decision, Rejection
from controlplane.events import BalancerPoolApplied, BalancerPoolRemoved, ServiceApplied
from controlplane.model import BalancerPool, Exposure, ObjectKey, Service
from controlplane.projections.balancer_pools import (
    addresses_in,
    holds_address,
    pool_fault,
    pool_key,
    selects_service,
)
from controlplane.projections.exposures import LOAD_BALANCER
from controlplane.projections.services import service_key
from controlplane.projections.state import State
from kvstore.types import Claim, Want

CLASSES = ("", "io.cilium/bgp-control-plane", "io.cilium/l2-announcer")
"""Classes of balancers that take their addresses from pools."""
ASKED_ANNOTATIONS = ("lbipam.cilium.io/ips", "io.cilium/lb-ipam-ips")
"""Which addresses a service wants, with commas between them."""
DUE_MAX = 100
"""Services that get addresses in one round of duties."""


class ApplyBalancerPool(msgspec.Struct, frozen=True):
    """`blocks`: prefixes. `selector` {}: for every service. `edges`: the first and the last address of a prefix are
    given out too."""

    name: str
    blocks: tuple[str, ...]
    selector: dict[str, str] = {}
    disabled: bool = False
    edges: bool = True


class RemoveBalancerPool(msgspec.Struct, frozen=True):
    name: str


class AssignBalancerAddresses(msgspec.Struct, frozen=True):
    """A service gets what the pools of now have for it."""

    namespace: str
    name: str


def apply_balancer_pool(state: State, author: Author, command: ApplyBalancerPool) -> Decision | Rejection:
    """Its blocks must be nobody else's: neither another pool's, nor of the cluster's endpoints and services."""
    event = BalancerPoolApplied(*msgspec.structs.astuple(command))
    fault = pool_fault(event)
    if fault:
        return Rejection(fault, "spec.blocks")
    key = pool_key(author.cluster, command.name)
    for place, block in _foreign_blocks(state, author.cluster, key):
        for number, own in enumerate(command.blocks):
            one, other = span_of(own), span_of(block)
            if one is not None and other is not None and one.meets(other):
                return Rejection(f"{own} shares addresses with {block} of {place}", f"spec.blocks[{number}]")
    if state.balancer_pools.get(key) == BalancerPool(author.cluster, *msgspec.structs.astuple(event)):
        return Decision()
    return Decision((event,))


def _foreign_blocks(state: State, cluster: str, own: ObjectKey) -> Iterator[tuple[str, str]]:
    for name in sorted(state.clusters):
        found = state.clusters[name]
        yield from ((f"cluster {name}", cidr) for cidr in (*found.pod_cidrs, *found.service_cidrs) if span_of(cidr))
    for key in sorted(state.balancer_pools):
        if key != own and key.cluster == cluster:
            yield from ((f"pool {key.name}", block) for block in state.balancer_pools[key].blocks)


def remove_balancer_pool(state: State, author: Author, command: RemoveBalancerPool) -> Decision | Rejection:
    """Removing what is not there is done already."""
    if pool_key(author.cluster, command.name) not in state.balancer_pools:
        return Decision()
    return Decision((BalancerPoolRemoved(command.name),))


def assign_balancer_addresses(
    state: State, author: Author, command: AssignBalancerAddresses
) -> Decision | Rejection:
    """Nothing to do where it has them, or is gone."""
    known = state.services.get(service_key(author.cluster, command.namespace, command.name))
    if known is None:
        return Decision()
    new = msgspec.structs.replace(known, exposure=with_balancer_addresses(state, known))
    if new == known:
        return Decision()
    claims = tuple(balancer_claims(author.cluster, known, new))
    return Decision((ServiceApplied(*msgspec.structs.astuple(new)[1:]),), claims)


def due_assignments(state: State, cluster: str) -> list[AssignBalancerAddresses]:
    """Services whose addresses are not what the pools have for them, in order, at most DUE_MAX."""
    holders = _holders(state, cluster)
    found = (
        AssignBalancerAddresses(key.namespace, key.name)
        for key, service in sorted(state.services.items())
        if key.cluster == cluster and _balancer_exposure(state, service, service.exposure, holders) != service.exposure
    )
    return list(islice(found, DUE_MAX))


def with_balancer_addresses(state: State, service: Service, had: Exposure | None = None) -> Exposure:
    """The service's exposure with the addresses that it is to have; `had`: as it was before, None: the same."""
    before = service.exposure if had is None else had
    return _balancer_exposure(state, service, before, None)


def _balancer_exposure(state: State, service: Service, before: Exposure, holders: "Holders | None") -> Exposure:
    """`holders` None: to be found out where they are needed."""
    exposure = service.exposure
    kept = before.load_balancer_ips if before.load_balancer_chosen else ()
    given = exposure.load_balancer_ips if not exposure.load_balancer_chosen else ()
    if given == kept and kept:
        given = ()
    if exposure.type != LOAD_BALANCER or exposure.load_balancer_class not in CLASSES or given:
        return exposure
    chosen = tuple(_chosen(state, service, kept, holders))
    return msgspec.structs.replace(exposure, load_balancer_ips=chosen, load_balancer_chosen=bool(chosen))


def _chosen(state: State, service: Service, kept: tuple[str, ...], holders: "Holders | None") -> Iterator[str]:
    names = service.namespace, service.name, service.labels
    pools = [pool for pool in _pools(state, service.cluster) if selects_service(pool, *names)]
    if not pools:
        return
    own = service_key(service.cluster, service.namespace, service.name)
    held = _holders(state, service.cluster) if holders is None else holders
    asked = asked_addresses(service.annotations)

    def is_free(address: str) -> bool:
        return all(key == own for key in held.get(address, ()))

    for family in dict.fromkeys(map(family_of, service.cluster_ips)):
        mine = [each for each in kept if family_of(each) == family and _is_in(pools, each) and is_free(each)]
        wanted = [each for each in asked if family_of(each) == family]
        if asked:
            open_pools = [pool for pool in pools if not pool.disabled]
            yield from (each for each in wanted if is_free(each) and (each in mine or _is_in(open_pools, each)))
        else:
            found = mine[0] if mine else next(filter(is_free, _offered(pools, family)), "")
            yield from (found,) if found else ()


def _pools(state: State, cluster: str) -> list[BalancerPool]:
    return [state.balancer_pools[key] for key in sorted(state.balancer_pools) if key.cluster == cluster]


def _is_in(pools: Iterable[BalancerPool], address: str) -> bool:
    return any(holds_address(pool, address) for pool in pools)


def _offered(pools: Iterable[BalancerPool], family: int) -> Iterator[str]:
    for pool in pools:
        if not pool.disabled:
            yield from addresses_in(pool, family)


Holders = Mapping[str, Sequence[ObjectKey]]
"""Which services have an address, given or chosen."""


def _holders(state: State, cluster: str) -> Holders:
    found: dict[str, list[ObjectKey]] = {}
    for key, service in state.services.items():
        if key.cluster == cluster:
            for address in (*service.exposure.load_balancer_ips, *service.exposure.external_ips):
                found.setdefault(address, []).append(key)
    return found


def asked_addresses(annotations: Mapping[str, str]) -> tuple[str, ...]:
    """What a service's annotation asks for; what is no address counts as absent."""
    text = next((annotations[name] for name in ASKED_ANNOTATIONS if name in annotations), "")
    return tuple(dict.fromkeys(each.strip() for each in text.split(",") if is_address(each.strip())))


def chosen_addresses(service: Service | None) -> tuple[str, ...]:
    """Those that pools gave it."""
    return service.exposure.load_balancer_ips if service and service.exposure.load_balancer_chosen else ()


def balancer_claims(cluster: str, had: Service | None, service: Service | None) -> Iterator[Claim]:
    """Of the addresses that are new, and those that it gives back."""
    old, new = chosen_addresses(had), chosen_addresses(service)
    yield from (Claim(balancer_claim(cluster, each)) for each in new if each not in old)
    yield from (Claim(balancer_claim(cluster, each), Want.FREED) for each in old if each not in new)


def balancer_claim(cluster: str, address: str) -> str:
    """The claim's key of a balancer's address."""
    return f"balancer-ip/{cluster}/{address.replace(':', '_')}"
