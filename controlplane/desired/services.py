"""Rows of services and backends: what each frontend of this cluster leads to.

Belongs here: which backends a service has, sets of them, and the indexes that keep the cost of a change with the
change. Does not belong here: cluster addresses (commands/service.py). A set is named by the hash of its content, so
equal sets are one. Pure.
"""

from collections.abc import Iterable, Mapping
from hashlib import blake2b

from controlplane.model import BackendSlice, ObjectKey, Service, ServicePort, Workload
from controlplane.projections.change import Change
from controlplane.projections.services import service_key
from controlplane.projections.state import State
from controlplane.projections.workloads import workload_key
from datapath.abi.types import SERVICE_CLUSTER_IP
from datapath.codec import address_bytes
from datapath.tables import BackendKey, BackendRow, ServiceKey, ServiceRow

PROTOCOL_NUMBERS = {"TCP": 6, "UDP": 17}

Members = tuple[tuple[bytes, int], ...]
"""Addresses and ports of a set's backends, sorted."""
Frontends = dict[ServiceKey, Members]
LabelPlace = tuple[str, str, str, str]
"""Cluster, namespace, key, value."""
ServiceChanges = dict[ServiceKey, ServiceRow | None]
BackendChanges = dict[BackendKey, BackendRow | None]


def set_name(members: Members) -> int:
    """64 bits; 0 for the empty set."""
    if not members:
        return 0
    content = b"".join(address + port.to_bytes(2, "big") for address, port in members)
    return int.from_bytes(blake2b(content, digest_size=8).digest(), "little") or 1


class ServiceCompiler:
    """Compiles for one cluster. Call `full` first, then `update` after every change of the state."""

    def __init__(self, cluster: str) -> None:
        self._cluster = cluster
        self._clear()

    def _clear(self) -> None:
        self._frontends: dict[ObjectKey, Frontends] = {}
        self._sets: dict[int, tuple[Members, int]] = {}
        """By name: the members, and how many frontends lead to them."""
        self._selecting: dict[LabelPlace, dict[ObjectKey, None]] = {}
        """Services by the first label that their selector asks for."""
        self._labelled: dict[LabelPlace, dict[ObjectKey, None]] = {}
        """Workloads by each of their labels."""

    def full(self, state: State) -> tuple[dict[ServiceKey, ServiceRow], dict[BackendKey, BackendRow]]:
        """All rows, from nothing."""
        self._clear()
        for key, workload in state.workloads.items():
            self._index_workload(key, workload)
        for key, service in state.services.items():
            self._index_service(key, service)
        services: dict[ServiceKey, ServiceRow] = {}
        for key in state.services:
            if key.cluster == self._cluster:
                frontends = self._compile(state, key)
                self._frontends[key] = frontends
                for frontend, members in frontends.items():
                    services[frontend] = self._take(members)
        backends: dict[BackendKey, BackendRow] = {}
        for name, (members, _) in self._sets.items():
            backends.update(_backend_rows(name, members))
        return services, backends

    def update(self, state: State, changes: Iterable[Change]) -> tuple[ServiceChanges, BackendChanges]:
        """What becomes of the rows; None for those that go."""
        names: dict[tuple[str, str], None] = {}
        for change in changes:
            if change.kind == "service":
                self._reindex_service(change)
                names[change.key.namespace, change.key.name] = None
            elif change.kind == "backends":
                for held in (change.old, change.new):
                    if held is not None:
                        names[held.namespace, held.service] = None
            elif change.kind == "workload":
                self._reindex_workload(change)
        for change in changes:
            if change.kind == "workload":
                self._name_selecting(state, change.key, change.old, names)
                self._name_selecting(state, change.key, change.new, names)
            elif change.kind == "endpoint":
                held = change.new or change.old
                key = workload_key(held.cluster, held.namespace, held.workload)
                self._name_selecting(state, key, state.workloads.get(key), names)
        return self._recompile(state, names)

    def _recompile(self, state: State, names: Iterable[tuple[str, str]]) -> tuple[ServiceChanges, BackendChanges]:
        services: ServiceChanges = {}
        touched: dict[int, Members] = {}
        for namespace, name in names:
            key = service_key(self._cluster, namespace, name)
            old = self._frontends.pop(key, {})
            new = self._compile(state, key) if key in state.services else {}
            if new:
                self._frontends[key] = new
            for frontend, members in new.items():
                row = self._take(members)
                touched[row.backend_set] = members
                services[frontend] = row
            for frontend, members in old.items():
                touched[self._drop(members)] = members
                if frontend not in new:
                    services.setdefault(frontend, None)
        backends: BackendChanges = {}
        for set_number, members in touched.items():
            rows = _backend_rows(set_number, members)
            backends.update(rows if set_number in self._sets else dict.fromkeys(rows))
        return services, backends

    def _take(self, members: Members) -> ServiceRow:
        name = set_name(members)
        if name:
            self._sets[name] = (members, self._sets.get(name, (members, 0))[1] + 1)
        return ServiceRow(name, len(members), SERVICE_CLUSTER_IP)

    def _drop(self, members: Members) -> int:
        name = set_name(members)
        if name:
            count = self._sets[name][1] - 1
            if count:
                self._sets[name] = (members, count)
            else:
                del self._sets[name]
        return name

    def _compile(self, state: State, key: ObjectKey) -> Frontends:
        service = state.services[key]
        frontends: Frontends = {}
        if service.headless:
            return frontends
        sources = [service, *_shared_twins(state, service)]
        for port in service.ports:
            for address in service.cluster_ips:
                frontend = ServiceKey(address_bytes(address), port.port, PROTOCOL_NUMBERS[port.protocol])
                if frontend not in frontends:
                    frontends[frontend] = self._members(state, sources, port, ":" in address)
        return frontends

    def _members(self, state: State, sources: list[Service], port: ServicePort, ipv6: bool) -> Members:
        found: dict[tuple[bytes, int], None] = {}
        for source in sources:
            twin = next((p for p in source.ports if (p.name, p.protocol) == (port.name, port.protocol)), None)
            if twin is None:
                continue
            for workload_key_ in self._selected(state, source):
                self._put_workload(state, workload_key_, twin, ipv6, found)
            for key in state.service_slices.get(service_key(source.cluster, source.namespace, source.name), ()):
                _put_slice(state.backend_slices[key], twin, ipv6, found)
        return tuple(sorted(found))

    def _put_workload(
        self,
        state: State,
        key: ObjectKey,
        port: ServicePort,
        ipv6: bool,
        found: dict[tuple[bytes, int], None],
    ) -> None:
        workload = state.workloads[key]
        number = _target_port(workload, port)
        if not workload.ready or not number:
            return
        for endpoint_key in state.workload_endpoints.get((key.cluster, key.namespace, key.name), ()):
            endpoint = state.endpoints[endpoint_key]
            address = endpoint.ipv6 if ipv6 else endpoint.ipv4
            if address:
                found[address_bytes(address), number] = None

    def _selected(self, state: State, service: Service) -> list[ObjectKey]:
        """Workloads that a service's selector chooses."""
        if not service.selector:
            return []
        buckets = [
            self._labelled.get((service.cluster, service.namespace, name, value), {})
            for name, value in service.selector.items()
        ]
        return [key for key in min(buckets, key=len) if all(key in bucket for bucket in buckets)]

    def _name_selecting(
        self, state: State, key: ObjectKey, workload: Workload | None, names: dict[tuple[str, str], None]
    ) -> None:
        """Adds the names of services that select a workload of these labels."""
        if workload is None:
            return
        for label in workload.labels.items():
            for service in self._selecting.get((key.cluster, key.namespace, *label), ()):
                if _selects(state.services[service], workload.labels):
                    names[service.namespace, service.name] = None

    def _index_workload(self, key: ObjectKey, workload: Workload) -> None:
        for label in workload.labels.items():
            self._labelled.setdefault((key.cluster, key.namespace, *label), {})[key] = None

    def _reindex_workload(self, change: Change) -> None:
        if change.old is not None and change.new is not None and change.old.labels == change.new.labels:
            return
        if change.old is not None:
            for label in change.old.labels.items():
                _discard(self._labelled, (change.key.cluster, change.key.namespace, *label), change.key)
        if change.new is not None:
            self._index_workload(change.key, change.new)

    def _index_service(self, key: ObjectKey, service: Service) -> None:
        if service.selector:
            place = (key.cluster, key.namespace, *min(service.selector.items()))
            self._selecting.setdefault(place, {})[key] = None

    def _reindex_service(self, change: Change) -> None:
        if change.old is not None and change.old.selector:
            place = (change.key.cluster, change.key.namespace, *min(change.old.selector.items()))
            _discard(self._selecting, place, change.key)
        if change.new is not None:
            self._index_service(change.key, change.new)


def _discard(index: dict[LabelPlace, dict[ObjectKey, None]], place: LabelPlace, key: ObjectKey) -> None:
    held = index[place]
    del held[key]
    if not held:
        del index[place]


def _selects(service: Service, labels: Mapping[str, str]) -> bool:
    return all(labels.get(name) == value for name, value in (service.selector or {}).items())


def _shared_twins(state: State, service: Service) -> list[Service]:
    """The services of other clusters whose backends serve too: same name and namespace, both global, theirs shared."""
    if not service.is_global:
        return []
    twins = (state.services[key] for key in state.service_twins[service.namespace, service.name])
    return [twin for twin in twins if twin.cluster != service.cluster and twin.is_global and twin.shared]


def _target_port(workload: Workload, port: ServicePort) -> int:
    """The number that a service's port means for a workload; 0 if the workload has no port of that name."""
    if isinstance(port.target_port, int):
        return port.target_port
    number, protocol = workload.ports.get(port.target_port, (0, ""))
    return number if protocol == port.protocol else 0


def _put_slice(found: BackendSlice, port: ServicePort, ipv6: bool, members: dict[tuple[bytes, int], None]) -> None:
    numbers = [each.port for each in found.ports if (each.name, each.protocol) == (port.name, port.protocol)]
    for backend in found.backends:
        if backend.ready and (":" in backend.address) == ipv6:
            for number in numbers:
                members[address_bytes(backend.address), number] = None


def _backend_rows(name: int, members: Members) -> dict[BackendKey, BackendRow]:
    if not name:
        return {}
    return {BackendKey(name, slot): BackendRow(address, port, 0) for slot, (address, port) in enumerate(members)}
