"""Node ports of services: kept, asked for or chosen; decided once and recorded. Pure.

Belongs here: which ports a service gets. Does not belong here: cluster addresses (service.py).
"""

from collections.abc import Iterator
from itertools import chain

import msgspec

from controlplane.commands.types import Rejection
from controlplane.model import Exposure, ObjectKey, Service, ServicePort
from controlplane.projections.exposures import (
    CLUSTER_IP,
    HEALTH_CHECK_PROTOCOL,
    LOAD_BALANCER,
    LOCAL,
    NODE_PORT,
    node_ports,
)
from controlplane.projections.state import State
from kvstore.types import Claim, Want

NODE_PORT_MIN, NODE_PORT_MAX = 30000, 32767
"""The range that ports are chosen from; one that is asked for may lie outside."""

Place = tuple[int, str]


def decide_node_ports(
    state: State, key: ObjectKey, ports: tuple[ServicePort, ...], exposure: Exposure, known: Service | None
) -> tuple[tuple[ServicePort, ...], Exposure] | Rejection:
    """The service's ports and exposure with every port of the nodes that they need."""
    chooser = _Chooser(state, key, known)
    wants = exposure.type == NODE_PORT or (exposure.type == LOAD_BALANCER and exposure.allocates_node_ports)
    decided = []
    for number, port in enumerate(ports):
        field = f"spec.ports[{number}].nodePort"
        if exposure.type == CLUSTER_IP and port.node_port:
            return Rejection(f"{port.node_port}: a service of type {CLUSTER_IP} has no node port", field)
        chosen: int | Rejection = 0
        if port.node_port:
            chosen = chooser.take(port.node_port, port.protocol, field)
        elif wants:
            chosen = chooser.choose(port.protocol, _known_port(known, port), field)
        if isinstance(chosen, Rejection):
            return chosen
        decided.append(msgspec.structs.replace(port, node_port=chosen))
    checked = _health_check(chooser, exposure, known)
    if isinstance(checked, Rejection):
        return checked
    return tuple(decided), msgspec.structs.replace(exposure, health_check_port=checked)


def _health_check(chooser: "_Chooser", exposure: Exposure, known: Service | None) -> int | Rejection:
    field = "spec.healthCheckNodePort"
    asked = exposure.health_check_port
    if exposure.type != LOAD_BALANCER or exposure.external_policy != LOCAL:
        needs = "belongs to a LoadBalancer service with externalTrafficPolicy Local"
        return Rejection(f"{asked}: {needs}", field) if asked else 0
    if asked:
        return chooser.take(asked, HEALTH_CHECK_PROTOCOL, field)
    return chooser.choose(HEALTH_CHECK_PROTOCOL, known.exposure.health_check_port if known else 0, field)


def _known_port(known: Service | None, port: ServicePort) -> int:
    """What the service's port of that name has now."""
    same = (each for each in known.ports if (each.name, each.protocol) == (port.name, port.protocol)) if known else ()
    return next((each.node_port for each in same), 0)


class _Chooser:
    """Ports that are taken while one service is decided."""

    def __init__(self, state: State, key: ObjectKey, known: Service | None) -> None:
        self._state = state
        self._key = key
        self._own = dict.fromkeys(node_ports(known)) if known else {}
        self._taken: dict[Place, None] = {}

    def take(self, number: int, protocol: str, field: str) -> int | Rejection:
        """A port that is asked for."""
        holder = self._state.node_ports.get((self._key.cluster, number, protocol))
        if holder is not None and holder != self._key:
            return Rejection(f"{number}/{protocol} is a node port of {holder.namespace}/{holder.name}", field)
        if (number, protocol) in self._taken:
            return Rejection(f"{number}/{protocol} stands twice", field)
        self._taken[number, protocol] = None
        return number

    def choose(self, protocol: str, kept: int, field: str) -> int | Rejection:
        """The port that it has, or the lowest that nobody has."""
        for number in chain((kept,), range(NODE_PORT_MIN, NODE_PORT_MAX + 1)):
            place = (number, protocol)
            is_free = place in self._own or (self._key.cluster, *place) not in self._state.node_ports
            if number and is_free and place not in self._taken:
                self._taken[place] = None
                return number
        return Rejection(f"no node port from {NODE_PORT_MIN} to {NODE_PORT_MAX} is left for {protocol}", field)


def port_claims(cluster: str, had: Service | None, service: Service) -> Iterator[Claim]:
    """Of the ports that are new, and those that it gives back."""
    old = dict.fromkeys(node_ports(had)) if had else {}
    new = dict.fromkeys(node_ports(service))
    for place in new:
        if place not in old:
            yield Claim(port_claim(cluster, *place))
    yield from freed_port_claims(cluster, (place for place in old if place not in new))


def freed_port_claims(cluster: str, places: Iterator[Place]) -> Iterator[Claim]:
    """They are free again."""
    for place in dict.fromkeys(places):
        yield Claim(port_claim(cluster, *place), Want.FREED)


def port_claim(cluster: str, number: int, protocol: str) -> str:
    """The claim's key of a node port."""
    return f"node-port/{cluster}/{number}/{protocol}"
