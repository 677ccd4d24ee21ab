"""The frontends of one service, host port or local redirect on one node, and what each leads to.

Belongs here: addresses, ports, scopes and flags. Does not belong here: which backends (backends.py), what becomes of a
frontend that several ask for (services.py). Pure.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

from controlplane.balancing import DSR, HYBRID, MAGLEV, BalancingSettings, ServiceOptions, options_of
from controlplane.desired.backends import PROTOCOL_NUMBERS, Candidates, Here, choose
from controlplane.desired.sets import Choice, Maglev, Member, choice_of
from controlplane.model import HostPort, Node, Service, ServicePort
from controlplane.projections.exposures import EXTERNAL_NAME, LOCAL
from datapath.abi import types as abi
from datapath.codec import address_bytes
from datapath.tables import ServiceKey

INTERNAL, EXTERNAL = abi.SERVICE_SCOPE_INTERNAL, abi.SERVICE_SCOPE_EXTERNAL
RANKS = {
    abi.SERVICE_LOCAL_REDIRECT: 0,
    abi.SERVICE_CLUSTER_IP: 1,
    abi.SERVICE_LOAD_BALANCER: 2,
    abi.SERVICE_EXTERNAL_IP: 3,
    abi.SERVICE_NODE_PORT: 4,
    abi.SERVICE_HOST_PORT: 5,
}
"""Whose frontend it is where several claim one."""
TYPE_NAMES = {
    abi.SERVICE_CLUSTER_IP: "ClusterIP",
    abi.SERVICE_LOAD_BALANCER: "LoadBalancer",
    abi.SERVICE_EXTERNAL_IP: "ExternalIPs",
    abi.SERVICE_NODE_PORT: "NodePort",
    abi.SERVICE_HOST_PORT: "HostPort",
    abi.SERVICE_LOCAL_REDIRECT: "LocalRedirect",
}


class Frontend(NamedTuple):
    """What a key of table services leads to."""

    rank: int
    choice: Choice
    flags: int
    affinity_s: int = 0
    ranges: tuple[str, ...] = ()


Frontends = dict[ServiceKey, Frontend]
CandidatesOf = Callable[[ServicePort, bool], Candidates]
"""Of a service's port, IPv4 or IPv6."""


class ServiceFrontends:
    """Of one service on one node; `own` None where the node is not known."""

    def __init__(
        self, service: Service, here: Here, own: Node | None, settings: BalancingSettings, maglev: Maglev
    ) -> None:
        self._service = service
        self._here = here
        self._own = own
        self._settings = settings
        self._options: ServiceOptions = options_of(service.annotations)
        algorithm = self._options.algorithm or settings.algorithm
        self._maglev = maglev if algorithm == MAGLEV else None

    def build(self, candidates_of: CandidatesOf) -> Frontends:
        """The first of two that are the same counts."""
        service = self._service
        found: Frontends = {}
        if service.headless or service.exposure.type == EXTERNAL_NAME:
            return found
        is_exposed = self._is_selected(self._own) if self._own is not None else not self._here.node
        for port in service.ports:
            choices = _Choices(candidates_of, port, self._choose)
            for key, frontend in self._of_port(port, choices, is_exposed):
                found.setdefault(key, frontend)
        return found

    def _of_port(
        self, port: ServicePort, choices: "_Choices", is_exposed: bool
    ) -> Iterator[tuple[ServiceKey, Frontend]]:
        exposure = self._service.exposure
        protocol = PROTOCOL_NUMBERS[port.protocol]
        kind = abi.SERVICE_CLUSTER_IP
        if self._has(kind):
            scopes = (INTERNAL, EXTERNAL) if self._settings.external_cluster_ip else (INTERNAL,)
            for address in self._service.cluster_ips:
                packed = address_bytes(address)
                for scope in scopes:
                    local = exposure.internal_policy == LOCAL
                    choice = choices.of(":" in address, local, self._settings.external_cluster_ip)
                    yield ServiceKey(packed, port.port, protocol, scope), self._frontend(kind, choice, local)
        if not is_exposed:
            return
        for kind, address, number in self._reached_at(port):
            packed, ipv6 = address_bytes(address), ":" in address
            inside = self._frontend(kind, choices.of(ipv6, False, True), False)
            yield ServiceKey(packed, number, protocol, INTERNAL), inside
            local = exposure.external_policy == LOCAL
            outside = self._frontend(kind, choices.of(ipv6, local, True), local)
            yield ServiceKey(packed, number, protocol, EXTERNAL), self._from_network(outside, port.protocol)

    def _reached_at(self, port: ServicePort) -> Iterator[tuple[int, str, int]]:
        """(flag of the type, address, port) of what the network reaches."""
        exposure = self._service.exposure
        kind = abi.SERVICE_LOAD_BALANCER
        if self._has(kind):
            yield from ((kind, address, port.port) for address in exposure.load_balancer_ips)
        kind = abi.SERVICE_EXTERNAL_IP
        if self._has(kind):
            yield from ((kind, address, port.port) for address in exposure.external_ips)
        kind = abi.SERVICE_NODE_PORT
        if self._has(kind) and port.node_port and self._own is not None:
            families = {":" in each for each in self._service.cluster_ips}
            addresses = [each for each in self._own.addresses if not families or (":" in each) in families]
            yield from ((kind, address, port.node_port) for address in addresses)

    def _frontend(self, kind: int, choice: Choice, local: bool) -> Frontend:
        flags = kind | (abi.SERVICE_LOCAL_BACKENDS if local else 0)
        return Frontend(RANKS[kind], choice, flags, self._service.exposure.affinity_s)

    def _from_network(self, frontend: Frontend, protocol: str) -> Frontend:
        """With what holds only for clients outside."""
        flags, ranges = frontend.flags, self._service.exposure.source_ranges
        mode = self._options.mode or self._settings.mode
        is_local = flags & abi.SERVICE_LOCAL_BACKENDS
        if not is_local and (mode == DSR or (mode == HYBRID and protocol == "TCP")):
            flags |= abi.SERVICE_DSR
        if not (flags & abi.SERVICE_LOAD_BALANCER or self._settings.range_all_types):
            ranges = ()
        if ranges and self._options.ranges_deny:
            flags |= abi.SERVICE_SOURCE_RANGES_DENY
        return frontend._replace(flags=flags, ranges=ranges)

    def _choose(self, candidates: Candidates, local: bool, has_maglev: bool) -> Choice:
        maglev = self._maglev if has_maglev else None
        return choose(candidates.values(), self._here, self._service, self._options.affinity, local, maglev)

    def _has(self, kind: int) -> bool:
        return not self._options.types or TYPE_NAMES[kind] in self._options.types

    def _is_selected(self, node: Node) -> bool:
        if not self._options.node_labels:
            return True
        labels = dict((*each.partition(":")[2].partition("=")[::2],) for each in node.labels)
        return all(
            key in labels and value in (None, labels[key]) for key, value in self._options.node_labels
        )


class _Choices:
    """The choices of one port, each made once."""

    def __init__(
        self, candidates_of: CandidatesOf, port: ServicePort, choose_: Callable[[Candidates, bool, bool], Choice]
    ) -> None:
        self._candidates_of = candidates_of
        self._port = port
        self._choose = choose_
        self._candidates: dict[bool, Candidates] = {}
        self._made: dict[tuple[bool, bool, bool], Choice] = {}

    def of(self, ipv6: bool, local: bool, has_maglev: bool) -> Choice:
        made = self._made.get((ipv6, local, has_maglev))
        if made is None:
            if ipv6 not in self._candidates:
                self._candidates[ipv6] = self._candidates_of(self._port, ipv6)
            made = self._choose(self._candidates[ipv6], local, has_maglev)
            self._made[ipv6, local, has_maglev] = made
        return made


def host_port_frontends(own: Node, addresses: dict[bool, str], ports: tuple[HostPort, ...]) -> Frontends:
    """Of a workload's host ports; `addresses`: the workload's, by "is IPv6". It is reached while it is there."""
    found: Frontends = {}
    for port in ports:
        for address in own.addresses:
            target = addresses.get(":" in address, "")
            if not target or port.address not in ("", address):
                continue
            choice = choice_of((Member(address_bytes(target), port.port),), 1, None)
            kind = abi.SERVICE_HOST_PORT
            frontend = Frontend(RANKS[kind], choice, kind | abi.SERVICE_LOCAL_BACKENDS)
            for scope in (INTERNAL, EXTERNAL):
                key = ServiceKey(address_bytes(address), port.host_port, PROTOCOL_NUMBERS[port.protocol], scope)
                found.setdefault(key, frontend)
    return found


def redirect_frontend(
    address: str, port: int, protocol: str, members: tuple[Member, ...]
) -> tuple[ServiceKey, Frontend]:
    """Of a local redirect: asked by the node's own endpoints and sockets only."""
    kind = abi.SERVICE_LOCAL_REDIRECT
    key = ServiceKey(address_bytes(address), port, PROTOCOL_NUMBERS[protocol], INTERNAL)
    choice = choice_of(members, len(members), None)
    return key, Frontend(RANKS[kind], choice, kind | abi.SERVICE_LOCAL_BACKENDS)
