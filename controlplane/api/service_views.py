"""Frontends and their backends as a node has them, for lists and for `render`. Pure.

Belongs here: what was compiled, with names for numbers. Does not belong here: compiling (desired/), what the kernel
holds (kernel_views.py).
"""

from collections.abc import Iterator
from typing import NamedTuple

from controlplane.api import items
from controlplane.api.kernel_views import constant_name, flag_names
from controlplane.desired.frontends import TYPE_NAMES, Frontend
from controlplane.desired.services import ServiceCompiler
from controlplane.desired.sets import Member
from controlplane.model import NodeKey, ObjectKey, Service
from controlplane.projections.exposures import CLUSTER_IP, EXTERNAL_NAME
from controlplane.projections.services import KIND as SERVICE
from controlplane.projections.state import State
from datapath.abi import types as abi
from datapath.addressing import protocol_name
from datapath.codec import address_text
from datapath.tables import ServiceKey

STATES = {
    abi.BACKEND_QUARANTINED: "quarantined",
    abi.BACKEND_MAINTENANCE: "maintenance",
    abi.BACKEND_TERMINATING: "terminating",
}
ACTIVE = "active"
BOTH = ""
"""The scope of a frontend that is the same for both sides."""


class FrontendView(NamedTuple):
    """A frontend, and the unit that it belongs to."""

    unit: ObjectKey
    key: ServiceKey
    frontend: Frontend

    @property
    def type(self) -> str:
        """As Cilium calls it."""
        return next(name for flag, name in TYPE_NAMES.items() if self.frontend.flags & flag)

    @property
    def scope(self) -> str:
        """Who asks: internal or external."""
        return constant_name("service_scope", self.key.scope, "SERVICE_SCOPE_")

    @property
    def flags(self) -> list[str]:
        """Those that do not say the type."""
        types = {name.lower() for name in ("CLUSTER_IP", "NODE_PORT", "LOAD_BALANCER", "EXTERNAL_IP", "HOST_PORT")}
        return [name for name in flag_names("service_flag", self.frontend.flags, "SERVICE_") if name not in types]


def frontend_views(compiler: ServiceCompiler) -> Iterator[FrontendView]:
    """Those of each unit, in the order of units, addresses and ports."""
    for unit in compiler.units():
        for key, frontend in sorted(compiler.frontends(unit).items()):
            yield FrontendView(unit, key, frontend)


def member_state(member: Member) -> str:
    """As Cilium calls it."""
    return next((name for flag, name in STATES.items() if member.flags & flag), ACTIVE)


def service_items(state: State, where: NodeKey | None) -> list[items.ServiceItem]:
    """Every frontend of the mesh: of the own cluster as the node `where` has them, of the others as no node has."""
    found: dict[ObjectKey, list[items.ServiceItem]] = {}
    for cluster in sorted(state.clusters.keys() | {key.cluster for key in state.services}):
        compiler = ServiceCompiler(cluster, where.node if where and where.cluster == cluster else "")
        compiler.full(state)
        by_unit: dict[ObjectKey, dict[ServiceKey, FrontendView]] = {}
        for view in frontend_views(compiler):
            by_unit.setdefault(view.unit, {})[view.key] = view
        for unit, views in by_unit.items():
            found[unit] = [_item(state, view, scope) for view, scope in _merged(views)]
    for key, service in state.services.items():
        if key not in found:
            found[key] = _without_frontend(key, service)
    return [item for unit in sorted(found) for item in found[unit]]


def _merged(views: dict[ServiceKey, FrontendView]) -> Iterator[tuple[FrontendView, str]]:
    """One for both scopes where they lead to the same backends."""
    for key, view in views.items():
        twin = views.get(key._replace(scope=1 - key.scope))
        if twin is None or twin.frontend.choice != view.frontend.choice:
            yield view, view.scope if twin else BOTH
        elif key.scope == abi.SERVICE_SCOPE_EXTERNAL:
            yield view, BOTH


def _item(state: State, view: FrontendView, scope: str) -> items.ServiceItem:
    service = state.services.get(view.unit)
    key, frontend = view.key, view.frontend
    ports = service.ports if service else ()
    names = [port.name for port in ports if key.port in (port.port, port.node_port)]
    return items.ServiceItem(
        cluster=view.unit.cluster,
        namespace=view.unit.namespace,
        name=view.unit.name,
        type=view.type,
        address=address_text(key.address),
        port=key.port,
        port_name=names[0] if names else "",
        protocol=protocol_name(key.protocol),
        is_global=bool(service and service.is_global),
        backends=[
            backend_item(state, view.unit.cluster, member, slot < frontend.choice.count)
            for slot, member in enumerate(frontend.choice.members)
        ],
        scope=scope,
        flags=view.flags,
        affinity_s=frontend.affinity_s,
        source_ranges=list(frontend.ranges),
        kind=view.unit.kind,
    )


def backend_item(state: State, cluster: str, member: Member, selected: bool) -> items.BackendItem:
    """`cluster`: whose backend it is where nobody in the mesh has its address."""
    address = address_text(member.address)
    holder = state.addresses.get(address)
    return items.BackendItem(
        address=address,
        port=member.port,
        cluster=holder.cluster if holder else "",
        state=member_state(member),
        node=holder.node if holder else _reported_node(state, cluster, address),
        weight=member.weight,
        selected=selected,
    )


def _reported_node(state: State, cluster: str, address: str) -> str:
    """What a slice says of an address that nobody in the mesh has."""
    for found in state.backend_slices.values():
        if found.cluster == cluster:
            for backend in found.backends:
                if backend.address == address and backend.node:
                    return backend.node
    return ""


def _without_frontend(key: ObjectKey, service: Service) -> list[items.ServiceItem]:
    """A headless service, or one that is only a name for another: one item for each port."""
    kind = service.exposure.type
    shown = "Headless" if service.headless and kind == CLUSTER_IP else kind
    address = service.exposure.external_name if kind == EXTERNAL_NAME else ""
    return [
        items.ServiceItem(
            key.cluster, key.namespace, key.name, shown, address, port.port, port.name, port.protocol,
            service.is_global, [], kind=SERVICE,
        )
        for port in service.ports
    ]  # fmt: skip
