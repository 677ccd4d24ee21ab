"""Services and the backends that are reported for them. Pure.

Belongs here: their events, their checks, and the indexes by name and by address. Does not belong here: which
endpoints a selector chooses (desired/services.py).
"""

from typing import TYPE_CHECKING

import msgspec

from controlplane.addresses import is_address
from controlplane.events import BackendsReported, BackendsWithdrawn, ServiceApplied, ServiceRemoved
from controlplane.model import BackendSlice, ObjectKey, Service, ServicePort
from controlplane.projections.change import Change
from controlplane.projections.exposures import exposure_fault, node_port_fault, node_ports
from controlplane.projections.workloads import PROTOCOLS, weight_fault
from kvstore.types import Record

if TYPE_CHECKING:
    from controlplane.projections.state import State

KIND = "Service"
SLICE_KIND = "EndpointSlice"
PORT_MAX = 65535


def service_key(cluster: str, namespace: str, name: str) -> ObjectKey:
    return ObjectKey(cluster, KIND, namespace, name)


def slice_key(cluster: str, namespace: str, name: str) -> ObjectKey:
    return ObjectKey(cluster, SLICE_KIND, namespace, name)


def ports_fault(ports: tuple[ServicePort, ...]) -> str:
    """What is wrong with ports; "" if nothing is."""
    for port in ports:
        target = port.target_port
        if not 1 <= port.port <= PORT_MAX or (isinstance(target, int) and not 1 <= target <= PORT_MAX):
            return f"port {port.name!r}, {port.port} to {target}: right is 1 to {PORT_MAX}"
        if port.protocol not in PROTOCOLS:
            return f"protocol {port.protocol!r}: right is {', '.join(PROTOCOLS)}"
        if not 0 <= port.node_port <= PORT_MAX:
            return f"node port {port.node_port}: right is 1 to {PORT_MAX}, 0 for none"
    return ""


def service_applied(state: "State", record: Record, event: ServiceApplied, changes: list[Change]) -> str:
    cluster = record.cluster
    key = ObjectKey(cluster, KIND, event.namespace, event.name)
    fault = ports_fault(event.ports)
    if fault:
        return fault
    for address in event.cluster_ips:
        if not is_address(address):
            return f"cluster address {address!r}: right is for example 172.20.0.10 or fd00:20::a"
        holder = state.service_addresses.get((cluster, address))
        if holder is not None and holder != key:
            return f"cluster address {address} is that of service {holder.namespace}/{holder.name}"
    old = state.services.get(key)
    new = Service(cluster, *msgspec.structs.astuple(msgspec.structs.replace(event, selector=event.selector or None)))
    if old == new:
        return ""
    fault = exposure_fault(new.exposure) or node_port_fault(state, key, new)
    if fault:
        return fault
    if old is not None:
        _forget_places(state, old)
    hold_service(state, key, new)
    changes.append(Change("service", key, old, new))
    return ""


def hold_service(state: "State", key: ObjectKey, service: Service) -> None:
    """Put it into every index."""
    state.services[key] = service
    for address in service.cluster_ips:
        state.service_addresses[key.cluster, address] = key
    for number, protocol in node_ports(service):
        state.node_ports[key.cluster, number, protocol] = key
    name = (key.namespace, key.name)
    twins = state.service_twins.get(name, ())
    if key not in twins:
        state.service_twins[name] = tuple(sorted((*twins, key)))


def _forget_places(state: "State", service: Service) -> None:
    for address in dict.fromkeys(service.cluster_ips):
        del state.service_addresses[service.cluster, address]
    for number, protocol in dict.fromkeys(node_ports(service)):
        del state.node_ports[service.cluster, number, protocol]


def service_removed(state: "State", record: Record, event: ServiceRemoved, changes: list[Change]) -> str:
    remove_service(state, service_key(record.cluster, event.namespace, event.name), changes)
    return ""


def remove_service(state: "State", key: ObjectKey, changes: list[Change]) -> None:
    """Out of every index, if it is there."""
    old = state.services.pop(key, None)
    if old is None:
        return
    _forget_places(state, old)
    name = (key.namespace, key.name)
    left = tuple(twin for twin in state.service_twins[name] if twin != key)
    if left:
        state.service_twins[name] = left
    else:
        del state.service_twins[name]
    changes.append(Change("service", key, old, None))


def backends_reported(state: "State", record: Record, event: BackendsReported, changes: list[Change]) -> str:
    fault = ports_fault(event.ports) or weight_fault(event.weight)
    if fault:
        return fault
    for backend in event.backends:
        if not is_address(backend.address):
            return f"backend address {backend.address!r}: right is for example 10.0.0.1 or fd00::1"
    key = ObjectKey(record.cluster, SLICE_KIND, event.namespace, event.name)
    old = state.backend_slices.get(key)
    new = BackendSlice(record.cluster, *msgspec.structs.astuple(event))
    if old == new:
        return ""
    if old is not None:
        _forget_slice(state, key, old)
    hold_slice(state, key, new)
    changes.append(Change("backends", key, old, new))
    return ""


def hold_slice(state: "State", key: ObjectKey, found: BackendSlice) -> None:
    """Put it into every index."""
    state.backend_slices[key] = found
    service = service_key(key.cluster, key.namespace, found.service)
    others = state.service_slices.get(service)
    state.service_slices[service] = (key,) if others is None else tuple(sorted((*others, key)))


def _forget_slice(state: "State", key: ObjectKey, found: BackendSlice) -> None:
    service = service_key(key.cluster, key.namespace, found.service)
    left = tuple(other for other in state.service_slices[service] if other != key)
    if left:
        state.service_slices[service] = left
    else:
        del state.service_slices[service]


def backends_withdrawn(state: "State", record: Record, event: BackendsWithdrawn, changes: list[Change]) -> str:
    remove_slice(state, slice_key(record.cluster, event.namespace, event.name), changes)
    return ""


def remove_slice(state: "State", key: ObjectKey, changes: list[Change]) -> None:
    """Out of every index, if it is there."""
    old = state.backend_slices.pop(key, None)
    if old is not None:
        _forget_slice(state, key, old)
        changes.append(Change("backends", key, old, None))
