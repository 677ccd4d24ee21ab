"""What a change can reach of a node's services: indexes over services and workloads by label, node and need.

Belongs here: the indexes, and from a change to the units that it reaches. Does not belong here: compiling
(services.py). Pure.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from controlplane.desired.backends import selects, zone_of
from controlplane.model import EndpointKey, NodeKey, ObjectKey, Service, Workload
from controlplane.projections.change import Change
from controlplane.projections.services import service_key
from controlplane.projections.state import State
from controlplane.projections.workloads import workload_key

LabelPlace = tuple[str, str, str, str]
"""Cluster, namespace, key, value."""
Units = dict[ObjectKey, None]


class ServiceIndex:
    """Of one node. `fill` it first, then let it `follow` every change."""

    def __init__(self, node: NodeKey) -> None:
        self._node = node
        self._selecting: dict[LabelPlace, Units] = {}
        """Services by the first label that their selector asks for."""
        self._labelled: dict[LabelPlace, Units] = {}
        """Workloads by each of their labels."""
        self._hosted: dict[NodeKey, Units] = {}
        """Workloads of a host's network, by their node."""
        self._distributed: Units = {}
        """Services for which the zones of nodes count."""
        self.with_host_ports: Units = {}
        """Workloads of the own cluster with host ports."""
        self.health_checks: dict[ObjectKey, int] = {}
        """Services of the own cluster whose local backends are asked for, and the port of the node for that."""

    def fill(self, state: State) -> None:
        """From a state."""
        for key, workload in state.workloads.items():
            self._put_workload(key, workload)
        for key, service in state.services.items():
            self._put_service(key, service)

    def selected(self, service: Service) -> list[ObjectKey]:
        """Workloads that a service's selector chooses."""
        return self.labelled(service.cluster, service.namespace, service.selector or {})

    def labelled(self, cluster: str, namespace: str, selector: Mapping[str, str]) -> list[ObjectKey]:
        """Workloads with all of these labels; none for no label."""
        if not selector:
            return []
        buckets = [self._labelled.get((cluster, namespace, name, value), {}) for name, value in selector.items()]
        return [key for key in min(buckets, key=len) if all(key in bucket for bucket in buckets)]

    def follow(self, state: State, changes: Sequence[Change]) -> Units:
        """The units that can have other frontends now."""
        units: Units = {}
        for change in changes:
            if change.kind == "service":
                self._reindex_service(change)
                self._name_service(state, change.key.namespace, change.key.name, units)
            elif change.kind == "backends":
                for held in (change.old, change.new):
                    if held is not None:
                        self._name_service(state, held.namespace, held.service, units)
            elif change.kind == "workload":
                self._reindex_workload(change)
            elif change.kind == "local_redirect":
                units[change.key] = None
        for change in changes:
            if change.kind == "workload":
                self._name_workload(state, change.key, change.old, units)
                self._name_workload(state, change.key, change.new, units)
            elif change.kind == "endpoint":
                held = change.new or change.old
                key = workload_key(held.cluster, held.namespace, held.workload)
                self._name_workload(state, key, state.workloads.get(key), units)
            elif change.kind == "node" and self._moves(change):
                units.update(self._distributed)
                for key in self._hosted.get(change.key, ()):
                    self._name_workload(state, key, state.workloads[key], units)
            elif change.kind == "backend_state":
                judged = change.new or change.old
                self._name_backend(state, change.key.cluster, judged.address, units)
        own = self._node.cluster
        return {unit: None for unit in units if unit.cluster == own}

    def _moves(self, change: Change) -> bool:
        """Whether backends can have moved with a node, to another address or zone."""
        old, new = change.old, change.new
        return old is None or new is None or (old.addresses, zone_of(old)) != (new.addresses, zone_of(new))

    def _name_service(self, state: State, namespace: str, name: str, units: Units) -> None:
        """The own cluster's service of that name, and the redirects from it."""
        key = service_key(self._node.cluster, namespace, name)
        units[key] = None
        for redirect, held in state.local_redirects.items():
            if (held.namespace, held.service) == (namespace, name):
                units[redirect] = None

    def _name_workload(self, state: State, key: ObjectKey, workload: Workload | None, units: Units) -> None:
        """Everything that a workload of these labels serves."""
        if workload is None:
            return
        if workload.host_ports:
            units[key] = None
        for label in workload.labels.items():
            for service in self._selecting.get((key.cluster, key.namespace, *label), ()):
                if selects(state.services[service].selector, workload.labels):
                    units[service_key(self._node.cluster, service.namespace, service.name)] = None
        for redirect, held in state.local_redirects.items():
            same = (held.cluster, held.namespace) == (key.cluster, key.namespace)
            if same and selects(held.selector, workload.labels):
                units[redirect] = None

    def _name_backend(self, state: State, cluster: str, address: str, units: Units) -> None:
        """Everything that leads to an address of a cluster."""
        holder = state.addresses.get(address)
        keys: Iterable[ObjectKey] = ()
        if isinstance(holder, EndpointKey):
            endpoint = state.endpoints[holder]
            keys = (workload_key(endpoint.cluster, endpoint.namespace, endpoint.workload),)
        elif holder is not None:
            keys = self._hosted.get(holder, ())
        for key in keys:
            self._name_workload(state, key, state.workloads.get(key), units)
        for held in state.backend_slices.values():
            if held.cluster == cluster and any(backend.address == address for backend in held.backends):
                self._name_service(state, held.namespace, held.service, units)

    def _put_workload(self, key: ObjectKey, workload: Workload) -> None:
        for label in workload.labels.items():
            self._labelled.setdefault((key.cluster, key.namespace, *label), {})[key] = None
        if workload.host_network:
            self._hosted.setdefault(NodeKey(key.cluster, workload.node), {})[key] = None
        if workload.host_ports and key.cluster == self._node.cluster:
            self.with_host_ports[key] = None

    def _drop_workload(self, key: ObjectKey, workload: Workload) -> None:
        for label in workload.labels.items():
            _discard(self._labelled, (key.cluster, key.namespace, *label), key)
        if workload.host_network:
            _discard(self._hosted, NodeKey(key.cluster, workload.node), key)
        self.with_host_ports.pop(key, None)

    def _reindex_workload(self, change: Change) -> None:
        if change.old is not None:
            self._drop_workload(change.key, change.old)
        if change.new is not None:
            self._put_workload(change.key, change.new)

    def _put_service(self, key: ObjectKey, service: Service) -> None:
        if service.selector:
            place = (key.cluster, key.namespace, *min(service.selector.items()))
            self._selecting.setdefault(place, {})[key] = None
        if service.exposure.distribution:
            self._distributed[key] = None
        if service.exposure.health_check_port and key.cluster == self._node.cluster:
            self.health_checks[key] = service.exposure.health_check_port

    def _reindex_service(self, change: Change) -> None:
        if change.old is not None:
            if change.old.selector:
                place = (change.key.cluster, change.key.namespace, *min(change.old.selector.items()))
                _discard(self._selecting, place, change.key)
            self._distributed.pop(change.key, None)
            self.health_checks.pop(change.key, None)
        if change.new is not None:
            self._put_service(change.key, change.new)


def _discard(index: dict[Any, Units], place: Any, key: ObjectKey) -> None:
    held = index[place]
    del held[key]
    if not held:
        del index[place]
