"""Which backends a frontend has on one node: who serves a service, and for whom.

Belongs here: candidates from workloads and slices, and choosing among them by state, place and policy. Does not belong
here: frontends (frontends.py), indexes (services.py). Pure.

Of a frontend's backends those that are ready take new flows. Where none is, those that are about to go and still serve
do. The others that are about to go, and those that somebody took out, only keep the flows that they have.
"""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from controlplane.balancing import LOCAL_CLUSTER, REMOTE_CLUSTER
from controlplane.desired.sets import Choice, Maglev, Member, choice_of
from controlplane.model import BackendSlice, EndpointKey, Node, NodeKey, ObjectKey, Service, ServicePort, Workload
from controlplane.projections.exposures import SAME_NODE
from controlplane.projections.redirects import QUARANTINED, backend_key
from controlplane.projections.state import State
from datapath.abi.types import BACKEND_MAINTENANCE, BACKEND_QUARANTINED, BACKEND_TERMINATING
from datapath.codec import address_bytes

ZONE_LABEL = "topology.kubernetes.io/zone="
PROTOCOL_NUMBERS = {"TCP": 6, "UDP": 17, "SCTP": 132}

Place = tuple[bytes, int]
"""Address and port."""


class Candidate(NamedTuple):
    """A backend that may be chosen. `flags` 0: it is active; `serves`: it can be the last resort."""

    place: Place
    cluster: str
    node: str
    zone: str
    flags: int
    serves: bool
    weight: int
    for_zones: tuple[str, ...] = ()
    for_nodes: tuple[str, ...] = ()
    from_slice: bool = False


Candidates = dict[Place, Candidate]


class Here(NamedTuple):
    """Where the rows are for. `node` "": nowhere, so nothing is local."""

    cluster: str
    node: str
    zone: str


def zone_of(node: Node | None) -> str:
    """By the node's label; "" where it has none."""
    labels = node.labels if node else ()
    found = (each.partition(":")[2] for each in labels)
    return next((each.removeprefix(ZONE_LABEL) for each in found if each.startswith(ZONE_LABEL)), "")


def put_workload(
    state: State, key: ObjectKey, port: ServicePort, ipv6: bool, not_ready_too: bool, found: Candidates
) -> None:
    """The addresses of one workload, if it serves."""
    workload = state.workloads[key]
    number = target_port(workload, port)
    if not number or not (workload.ready or workload.terminating or not_ready_too):
        return
    is_active = not_ready_too or not workload.terminating
    flags = 0 if is_active else BACKEND_TERMINATING
    for node, address in workload_addresses(state, key, workload, ipv6):
        place = (address_bytes(address), number)
        zone = zone_of(state.nodes.get(NodeKey(key.cluster, node)))
        flags_here = flags or _judged(state, key.cluster, address, number, port.protocol, workload.weight)
        found[place] = Candidate(place, key.cluster, node, zone, flags_here, workload.ready, workload.weight)


def workload_addresses(
    state: State, key: ObjectKey, workload: Workload, ipv6: bool
) -> Iterable[tuple[str, str]]:
    """(node, address): of its endpoints, or of its node where it uses the host's network."""
    if workload.host_network:
        node = state.nodes.get(NodeKey(key.cluster, workload.node))
        first = next((each for each in node.addresses if (":" in each) == ipv6), "") if node else ""
        return ((workload.node, first),) if first else ()
    keys: Iterable[EndpointKey] = state.workload_endpoints.get((key.cluster, key.namespace, key.name), ())
    endpoints = (state.endpoints[each] for each in keys)
    found = ((each.node, each.ipv6 if ipv6 else each.ipv4) for each in endpoints)
    return [each for each in found if each[1]]


def target_port(workload: Workload, port: ServicePort) -> int:
    """The number that a service's port means for a workload; 0 if the workload has no port of that name."""
    if isinstance(port.target_port, int):
        return port.target_port
    number, protocol = workload.ports.get(port.target_port, (0, ""))
    return number if protocol == port.protocol else 0


def put_slice(
    state: State, found: BackendSlice, port: ServicePort, ipv6: bool, not_ready_too: bool, candidates: Candidates
) -> None:
    """The backends of a slice; what it says of an address goes before what the workload says."""
    numbers = [each.port for each in found.ports if (each.name, each.protocol) == (port.name, port.protocol)]
    for backend in found.backends:
        if (":" in backend.address) != ipv6:
            continue
        for number in numbers:
            place = (address_bytes(backend.address), number)
            if not (backend.ready or backend.terminating or not_ready_too):
                candidates.pop(place, None)
                continue
            flags = 0 if backend.ready or not_ready_too else BACKEND_TERMINATING
            flags = flags or _judged(state, found.cluster, backend.address, number, port.protocol, found.weight)
            known = candidates.get(place)
            candidates[place] = Candidate(
                place, found.cluster, backend.node or (known.node if known else ""), backend.zone, flags,
                backend.serving, found.weight, backend.for_zones, backend.for_nodes, True,
            )  # fmt: skip


def _judged(state: State, cluster: str, address: str, port: int, protocol: str, weight: int) -> int:
    judged = state.backend_states.get(backend_key(cluster, address, port, protocol)) if state.backend_states else None
    if judged is not None:
        return BACKEND_QUARANTINED if judged.state == QUARANTINED else BACKEND_MAINTENANCE
    return 0 if weight else BACKEND_MAINTENANCE


def choose(
    candidates: Iterable[Candidate], here: Here, service: Service, affinity: str, local: bool, maglev: Maglev | None
) -> Choice:
    """`local`: only backends of this node count. `affinity`: whose cluster's backends are preferred."""
    found = [each for each in candidates if not local or _is_here(each, here)]
    active = [each for each in found if not each.flags]
    if active:
        active = _of_clusters(active, here, affinity)
        active = active if local else _near(active, here, service.exposure.distribution)
    else:
        active = [each for each in found if each.flags & BACKEND_TERMINATING and each.serves]
    lingering = [each for each in found if each.flags]
    if lingering:
        chosen = {each.place for each in active}
        lingering = [each for each in lingering if each.place not in chosen]
    members = (*sorted(map(_member, active)), *sorted(map(_member, lingering)))
    return choice_of(members, len(active), maglev)


def _member(found: Candidate) -> Member:
    return Member(*found.place, found.flags, max(found.weight, 1))


def _is_here(candidate: Candidate, here: Here) -> bool:
    return bool(here.node) and (candidate.cluster, candidate.node) == (here.cluster, here.node)


def _of_clusters(active: list[Candidate], here: Here, affinity: str) -> list[Candidate]:
    """Those of the preferred clusters while there are any."""
    if affinity not in (LOCAL_CLUSTER, REMOTE_CLUSTER):
        return active
    wants_own = affinity == LOCAL_CLUSTER
    return [each for each in active if (each.cluster == here.cluster) is wants_own] or active


def _near(active: list[Candidate], here: Here, distribution: str) -> list[Candidate]:
    """What hints or the service's distribution leave for this place; all where they leave none.

    Hints count only where every backend has them, and one is for this place. Of slices nothing else counts: their
    platform gives hints where the service asks for a distribution.
    """
    if here.node and all(each.for_nodes for each in active):
        hinted = [each for each in active if here.node in each.for_nodes]
        if hinted:
            return hinted
    if here.zone and all(each.for_zones for each in active):
        hinted = [each for each in active if here.zone in each.for_zones]
        if hinted:
            return hinted
    if not distribution or any(each.from_slice for each in active):
        return active
    same_node = [each for each in active if _is_here(each, here)] if distribution == SAME_NODE else []
    return same_node or [each for each in active if here.zone and each.zone == here.zone] or active


def selects(selector: Mapping[str, str] | None, labels: Mapping[str, str]) -> bool:
    """Whether every label of the selector is there; an empty selector selects nothing."""
    return bool(selector) and all(labels.get(name) == value for name, value in (selector or {}).items())
