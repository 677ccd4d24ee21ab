"""`toServices`: the peers that a policy means by services, as the state knows them. Pure.

Belongs here: services and their backends into selectors. Does not belong here: where services come from.
A service with a selector stands for the endpoints that it selects, one without for the addresses of its slices.
"""

from collections.abc import Iterable

import msgspec

from controlplane.labels import SOURCE_KUBERNETES
from controlplane.model import Backend, BackendSlice, Service
from controlplane.policy.clauses import cidr_selector, in_cluster, in_namespace
from controlplane.policy.rules import ParsedPolicy, Rule, ServiceReference
from controlplane.policy.selectors import Selector, equals, selector_of


class ServiceView(msgspec.Struct, frozen=True):
    """What policies need to know of one service. `addresses`: of its slices, where it has no selector."""

    cluster: str
    namespace: str
    name: str
    labels: tuple[str, ...]
    selector: tuple[tuple[str, str], ...]
    addresses: tuple[str, ...] = ()


def view_of(service: Service, slices: Iterable[BackendSlice]) -> ServiceView:
    backends: list[Backend] = [backend for found in slices for backend in found.backends]
    return ServiceView(
        service.cluster,
        service.namespace,
        service.name,
        tuple(sorted(f"{SOURCE_KUBERNETES}:{key}={value}" for key, value in service.labels.items())),
        tuple(sorted((service.selector or {}).items())),
        () if service.selector else tuple(sorted({backend.address for backend in backends})),
    )


def needs_services(policy: ParsedPolicy) -> bool:
    return any(rule.services for part in policy.parts for rule in part.rules)


def with_services(policy: ParsedPolicy, services: Iterable[ServiceView]) -> ParsedPolicy:
    """The policy with the peers that its services are now; the same value if it names none."""
    if not needs_services(policy):
        return policy
    own = [service for service in services if service.cluster == policy.key.cluster]
    first, *more = (
        msgspec.structs.replace(part, rules=tuple(_resolved(rule, own) for rule in part.rules), more=())
        for part in policy.parts
    )
    return msgspec.structs.replace(first, more=tuple(more))


def _resolved(rule: Rule, services: list[ServiceView]) -> Rule:
    if not rule.services:
        return rule
    found = {
        selector
        for reference in rule.services
        for service in services
        if _is_meant(reference, service)
        for selector in _selectors(service)
    }
    return msgspec.structs.replace(rule, peers=tuple(sorted({*(rule.peers or ()), *found})))


def _is_meant(reference: ServiceReference, service: ServiceView) -> bool:
    if reference.namespace not in ("", service.namespace):
        return False
    if reference.labels is not None:
        return reference.labels.matches(service.labels)
    return reference.name == service.name


def _selectors(service: ServiceView) -> list[Selector]:
    if service.selector:
        wanted = [equals(f"{SOURCE_KUBERNETES}:{key}", value) for key, value in service.selector]
        return [selector_of((*wanted, in_namespace(service.namespace), in_cluster(service.cluster)))]
    return [cidr_selector(f"{each}/{128 if ':' in each else 32}") for each in service.addresses]
