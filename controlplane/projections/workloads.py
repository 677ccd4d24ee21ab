"""Workloads as the platform declares them. Belongs here: their two events, and the checks on ports. Pure."""

from collections.abc import Mapping, Sequence
from itertools import repeat
from sys import intern
from typing import TYPE_CHECKING, Any

from msgspec.structs import astuple

from controlplane.addresses import is_address
from controlplane.events import WorkloadApplied, WorkloadRemoved
from controlplane.model import HostPort, ObjectKey, Workload
from controlplane.projections.change import Change
from kvstore.types import Record

if TYPE_CHECKING:
    from controlplane.projections.state import State

KIND = "Workload"
PORT_MAX = 65535
PROTOCOLS = ("TCP", "UDP", "SCTP")
"""Of ports that a service or a host port can have."""
WEIGHT_MAX = 65535
BITS_S_MIN, BITS_S_MAX = 10**3, 10**15
NO_PORTS: Mapping[str, Any] = {}


def workload_key(cluster: str, namespace: str, name: str) -> ObjectKey:
    return ObjectKey(cluster, KIND, namespace, name)


def ports_fault(ports: dict[str, tuple[int, str]]) -> str:
    """What is wrong with named ports; "" if nothing is."""
    for name, (port, _) in ports.items():
        if not 1 <= port <= PORT_MAX:
            return f"port {name!r}: {port}; right is 1 to {PORT_MAX}"
    return ""


def host_ports_fault(ports: tuple[HostPort, ...]) -> str:
    """What is wrong with ports of the node; "" if nothing is."""
    for each in ports:
        if not 1 <= each.host_port <= PORT_MAX or not 1 <= each.port <= PORT_MAX:
            return f"host port {each.host_port} to {each.port}: right is 1 to {PORT_MAX}"
        if each.protocol not in PROTOCOLS:
            return f"protocol {each.protocol!r} of host port {each.host_port}: right is {', '.join(PROTOCOLS)}"
        if each.address and not is_address(each.address):
            return f"address {each.address!r} of host port {each.host_port}: right is for example 192.0.2.1"
    return ""


def weight_fault(weight: int) -> str:
    """What is wrong with a backend's weight; "" if nothing is."""
    return "" if 0 <= weight <= WEIGHT_MAX else f"weight {weight}: right is 0 to {WEIGHT_MAX}"


def bandwidth_fault(bits_s: int) -> str:
    """What is wrong with a limit of bandwidth, of which 0 is none; "" if nothing is. Kubernetes' own bounds."""
    if bits_s == 0 or BITS_S_MIN <= bits_s <= BITS_S_MAX:
        return ""
    return f"bandwidth of {bits_s} bits per second: right is {BITS_S_MIN} (1k) to {BITS_S_MAX} (1P)"


def workload_applied(state: "State", record: Record, event: WorkloadApplied, changes: list[Change]) -> str:
    fault = ports_fault(event.ports) or host_ports_fault(event.host_ports) or weight_fault(event.weight)
    fault = fault or bandwidth_fault(event.egress_bits_s) or bandwidth_fault(event.ingress_bits_s)
    if fault:
        return fault
    cluster = record.cluster
    key = ObjectKey(cluster, KIND, event.namespace, event.name)
    old = state.workloads.get(key)
    new = Workload(cluster, *astuple(event))
    if old != new:
        state.workloads[key] = new
        changes.append(Change("workload", key, old, new))
    return ""


def are_right(columns: Sequence[Sequence[Any]]) -> bool:
    """Whether nothing is wrong with any of several declarations but perhaps a name, given field by field."""
    _, _, _, _, _, ports, _, host_ports, _, _, weights, egress, ingress, *_ = columns
    return not (
        (any(ports) and any(map(ports_fault, ports)))
        or (any(host_ports) and any(map(host_ports_fault, host_ports)))
        or any(map(weight_fault, set(weights)))
        or any(map(bandwidth_fault, {*egress, *ingress}))
    )


def workloads_applied(
    state: "State", record: Record, columns: Sequence[Sequence[Any]], changes: list[Change]
) -> bool | None:
    """What `workload_applied` does for each of several, all at once; None, and nothing has changed, where one by one
    has to tell what comes of them."""
    namespaces, names, _, _, _, ports, *_ = columns
    if not are_right(columns):
        return None
    here = repeat(record.cluster)
    namespaces = tuple(map(intern, namespaces))
    new = list(map(Workload, here, namespaces, *columns[1:]))
    places = zip(here, repeat(KIND), namespaces, names)
    fresh = dict(zip(map(tuple.__new__, repeat(ObjectKey), places), new, strict=False))
    if len(fresh) != len(new):
        return None
    old = list(map(state.workloads.get, fresh))
    state.workloads.update(fresh)
    if not any(old):
        changes.extend(map(Change, repeat("workload"), fresh, old, new))  # type: ignore[arg-type]
        return any(ports)
    each = zip(fresh, old, new, strict=True)
    changes += [Change("workload", key, was, now) for key, was, now in each if was != now]
    return [was.ports if was else NO_PORTS for was in old] != list(ports)


def workload_removed(state: "State", record: Record, event: WorkloadRemoved, changes: list[Change]) -> str:
    key = workload_key(record.cluster, event.namespace, event.name)
    old = state.workloads.pop(key, None)
    if old is not None:
        changes.append(Change("workload", key, old, None))
    return ""
