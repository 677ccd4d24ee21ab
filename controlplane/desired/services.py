"""Rows of services on one node: what each frontend leads to, kept while the state changes.

Belongs here: who claims which frontend, and the indexes that keep the cost of a change with the change. Does not belong
here: frontends (frontends.py), backends (backends.py), the contents that rows name (sets.py). Pure.

A unit is what brings frontends about: a service of the own cluster, a workload with host ports on the own node, a local
redirect. Where units claim one frontend, the lowest rank has it, then the lowest key.
"""

from collections.abc import Iterable
from typing import Any

from controlplane.balancing import DEFAULTS, BalancingSettings, seed_bytes
from controlplane.desired.backends import (
    Candidates,
    Here,
    put_slice,
    put_workload,
    target_port,
    workload_addresses,
    zone_of,
)
from controlplane.desired.frontends import (
    Frontend,
    Frontends,
    ServiceFrontends,
    host_port_frontends,
    redirect_frontend,
)
from controlplane.desired.policy_inputs import settings_of
from controlplane.desired.service_index import ServiceIndex
from controlplane.desired.sets import Contents, Maglev, Member, range_set_name
from controlplane.desired.underlay import node_addresses
from controlplane.model import LocalRedirect, Node, NodeKey, ObjectKey, Service, ServicePort, Workload
from controlplane.projections.change import Change
from controlplane.projections.redirects import KIND as REDIRECT
from controlplane.projections.services import KIND as SERVICE
from controlplane.projections.services import service_key
from controlplane.projections.state import State
from datapath.abi.types import SERVICE_LOCAL_BACKENDS, SERVICE_SCOPE_EXTERNAL
from datapath.codec import address_bytes
from datapath.tables import IPV4_PREFIX, ServiceKey, ServiceRow

Rows = dict[Any, Any]
TABLES = ("services", "backends", "maglev", "source_ranges", "affinity_backends")


class ServiceCompiler:
    """Compiles for one node. Call `full` first, then `update` after every change of the state.

    `node` "": for no node of the cluster, as lists show services where no node answers.
    """

    def __init__(self, cluster: str, node: str = "") -> None:
        self._key = NodeKey(cluster, node)
        self._clear(DEFAULTS)

    def _clear(self, settings: BalancingSettings) -> None:
        self._settings = settings
        self._maglev = Maglev(settings.table_size, seed_bytes(settings.seed) or b"")
        self._index = ServiceIndex(self._key)
        self._here = Here(*self._key, "")
        self._own: Node | None = None
        self._units: dict[ObjectKey, Frontends] = {}
        self._claims: dict[ServiceKey, tuple[ObjectKey, ...]] = {}
        self._won: dict[ServiceKey, Frontend] = {}
        self._contents = Contents()
        self._own_addresses: frozenset[bytes] = frozenset()
        self._answering: Rows = {}
        """Frontends for the network with a backend at one of these addresses."""

    @property
    def is_answering(self) -> bool:
        """Whether the network is answered out of the node's own network for some frontend."""
        return bool(self._answering)

    def full(self, state: State) -> dict[str, Rows]:
        """All rows by table, from nothing."""
        self._clear(settings_of(state, self._key.cluster).balancing)
        self._place(state)
        self._index.fill(state)
        changes = self._recompile(state, self._all_units(state))
        return {name: {key: row for key, row in rows.items() if row is not None} for name, rows in changes.items()}

    def update(self, state: State, changes: Iterable[Change]) -> dict[str, Rows]:
        """What becomes of the rows; None for those that go."""
        changes = tuple(changes)
        units = self._index.follow(state, changes)
        before = (self._own, self._here)
        if any(change.kind == "node" and change.key == self._key for change in changes):
            self._place(state)
        is_set = any(change.kind == "settings" and change.key == self._key.cluster for change in changes)
        if is_set:
            self._settings = settings_of(state, self._key.cluster).balancing
            self._maglev = Maglev(self._settings.table_size, seed_bytes(self._settings.seed) or b"")
        if is_set or before != (self._own, self._here):
            units.update(self._everything(state))
        return self._recompile(state, units)

    def frontends(self, unit: ObjectKey) -> Frontends:
        """Those that a unit has, as compiled last."""
        return {key: each for key, each in self._units.get(unit, {}).items() if self._holder(key) == unit}

    def units(self) -> Iterable[ObjectKey]:
        """Those that have frontends."""
        return sorted(self._units)

    def unit_of(self, key: ServiceKey) -> ObjectKey | None:
        """Whose frontend a key is."""
        return self._holder(key)

    def has_backends(self, key: ServiceKey) -> bool:
        """Whether there is such a frontend, and new flows may go somewhere."""
        frontend = self._won.get(key)
        return frontend is not None and bool(frontend.choice.count)

    def health_checks(self) -> list[tuple[ObjectKey, int]]:
        """Services of the own cluster whose local backends are asked for, and the port of the node for that."""
        return sorted(self._index.health_checks.items())

    def local_backends(self, service: ObjectKey) -> int:
        """How many backends of this node are ready for what comes from the network: those of the family with more."""
        found: dict[bool, set[bytes]] = {}
        for key, frontend in self.frontends(service).items():
            if key.scope == SERVICE_SCOPE_EXTERNAL and frontend.flags & SERVICE_LOCAL_BACKENDS:
                ready = (member for member in frontend.choice.members[: frontend.choice.count] if not member.flags)
                addresses = found.setdefault(key.address.startswith(IPV4_PREFIX), set())
                addresses.update(member.address for member in ready)
        return max(map(len, found.values()), default=0)

    def _place(self, state: State) -> None:
        self._own = state.nodes.get(self._key)
        self._here = Here(*self._key, zone_of(self._own))
        addresses = frozenset(map(address_bytes, node_addresses(self._own))) if self._own else frozenset()
        if addresses != self._own_addresses:
            self._own_addresses = addresses
            self._answering = {key: None for key, each in self._won.items() if self._is_answered_here(key, each)}

    def _is_answered_here(self, key: ServiceKey, frontend: Frontend) -> bool:
        members = frontend.choice.members
        return key.scope == SERVICE_SCOPE_EXTERNAL and any(each.address in self._own_addresses for each in members)

    def _all_units(self, state: State) -> dict[ObjectKey, None]:
        units = dict.fromkeys(key for key in state.services if key.cluster == self._key.cluster)
        units.update(dict.fromkeys(key for key in state.local_redirects if key.cluster == self._key.cluster))
        units.update(self._index.with_host_ports)
        return units

    def _everything(self, state: State) -> dict[ObjectKey, None]:
        """All units, also those that are gone."""
        return {**self._all_units(state), **dict.fromkeys(self._units)}

    def _recompile(self, state: State, units: Iterable[ObjectKey]) -> dict[str, Rows]:
        touched: dict[ServiceKey, None] = {}
        for unit in units:
            old = self._units.pop(unit, {})
            new = self._compile(state, unit)
            if new:
                self._units[unit] = new
            for key in old:
                if key not in new:
                    self._unclaim(key, unit)
            for key in new:
                if key not in old:
                    self._claims[key] = (*self._claims.get(key, ()), unit)
            touched.update(dict.fromkeys(old))
            touched.update(dict.fromkeys(new))
        services: Rows = {}
        for key in touched:
            self._settle(key, services)
        return {"services": services, **self._contents.changes()}

    def _unclaim(self, key: ServiceKey, unit: ObjectKey) -> None:
        left = tuple(each for each in self._claims[key] if each != unit)
        if left:
            self._claims[key] = left
        else:
            del self._claims[key]

    def _holder(self, key: ServiceKey) -> ObjectKey | None:
        """Whose frontend it is."""
        claims = self._claims.get(key, ())
        if len(claims) < 2:
            return claims[0] if claims else None
        return min(claims, key=lambda unit: (self._units[unit][key].rank, unit))

    def _settle(self, key: ServiceKey, services: Rows) -> None:
        """Write the row of the unit that has the frontend, if it is another than before."""
        holder, before = self._holder(key), self._won.get(key)
        now = self._units[holder][key] if holder else None
        if now == before:
            return
        if now is not None:
            self._won[key] = now
            self._contents.take(now.choice, bool(now.affinity_s), now.ranges)
            services[key] = _row(now)
            is_answered_here = self._is_answered_here(key, now)
        else:
            del self._won[key]
            services[key] = None
            is_answered_here = False
        if is_answered_here:
            self._answering[key] = None
        else:
            self._answering.pop(key, None)
        if before is not None:
            self._contents.drop(before.choice, bool(before.affinity_s), before.ranges)

    def _compile(self, state: State, unit: ObjectKey) -> Frontends:
        if unit.kind == SERVICE:
            return self._of_service(state, state.services[unit]) if unit in state.services else {}
        if unit.kind == REDIRECT:
            return self._of_redirect(state, state.local_redirects[unit]) if unit in state.local_redirects else {}
        return self._of_workload(state, unit, state.workloads[unit]) if unit in state.workloads else {}

    def _of_service(self, state: State, service: Service) -> Frontends:
        sources = [service, *_shared_twins(state, service)]

        def candidates_of(port: ServicePort, ipv6: bool) -> Candidates:
            return self._candidates(state, sources, port, ipv6)

        return ServiceFrontends(service, self._here, self._own, self._settings, self._maglev).build(candidates_of)

    def _candidates(self, state: State, sources: list[Service], port: ServicePort, ipv6: bool) -> Candidates:
        found: Candidates = {}
        for source in sources:
            twin = next((p for p in source.ports if (p.name, p.protocol) == (port.name, port.protocol)), None)
            if twin is None:
                continue
            not_ready_too = source.exposure.publishes_not_ready
            for key in self._index.selected(source):
                put_workload(state, key, twin, ipv6, not_ready_too, found)
            for key in state.service_slices.get(service_key(source.cluster, source.namespace, source.name), ()):
                put_slice(state, state.backend_slices[key], twin, ipv6, not_ready_too, found)
        return found

    def _of_workload(self, state: State, key: ObjectKey, workload: Workload) -> Frontends:
        """Its host ports, while it has an endpoint on this node."""
        if self._own is None:
            return {}
        addresses: dict[bool, str] = {}
        for ipv6 in (False, True):
            for node, address in workload_addresses(state, key, workload, ipv6):
                if node == self._key.node:
                    addresses[ipv6] = address
        return host_port_frontends(self._own, addresses, workload.host_ports)

    def _of_redirect(self, state: State, redirect: LocalRedirect) -> Frontends:
        """Nothing while no workload here is ready: the frontend is then what it is without the redirect."""
        found: Frontends = {}
        for address, port in self._redirected(state, redirect):
            members = self._local_members(state, redirect, port, ":" in address)
            if members:
                key, frontend = redirect_frontend(address, port.port, port.protocol, members)
                found.setdefault(key, frontend)
        return found

    def _redirected(self, state: State, redirect: LocalRedirect) -> Iterable[tuple[str, ServicePort]]:
        """(address, port) of the frontends; the port's target is that of the workloads."""
        if redirect.address:
            yield from ((redirect.address, port) for port in redirect.ports)
            return
        service = state.services.get(service_key(redirect.cluster, redirect.namespace, redirect.service))
        for port in service.ports if service else ():
            for target in redirect.ports:
                named = len(redirect.ports) == 1 or target.name == port.name
                is_meant = named if redirect.all_ports else target.port == port.port
                if is_meant and target.protocol == port.protocol:
                    meant = ServicePort(port.name, port.port, port.protocol, target.target_port)
                    yield from ((address, meant) for address in (service.cluster_ips if service else ()))

    def _local_members(
        self, state: State, redirect: LocalRedirect, port: ServicePort, ipv6: bool
    ) -> tuple[Member, ...]:
        found: dict[Member, None] = {}
        for key in self._index.labelled(redirect.cluster, redirect.namespace, redirect.selector):
            workload = state.workloads[key]
            number = target_port(workload, port)
            if workload.ready and not workload.terminating and number:
                for node, address in workload_addresses(state, key, workload, ipv6):
                    if node == self._key.node:
                        found[Member(address_bytes(address), number)] = None
        return tuple(sorted(found))


def _row(frontend: Frontend) -> ServiceRow:
    choice = frontend.choice
    return ServiceRow(
        choice.name, choice.count, frontend.flags, frontend.affinity_s, choice.maglev.size if choice.maglev else 0,
        range_set_name(frontend.ranges),
    )  # fmt: skip


def _shared_twins(state: State, service: Service) -> list[Service]:
    """The services of other clusters whose backends serve too: same name and namespace, both global, theirs shared."""
    if not service.is_global:
        return []
    twins = (state.services[key] for key in state.service_twins[service.namespace, service.name])
    return [twin for twin in twins if twin.cluster != service.cluster and twin.is_global and twin.shared]
