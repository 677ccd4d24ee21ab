"""A stretch of the log into a state, for those who do not ask what changed. Pure.

Belongs here: what need not be applied event by event. Does not belong here: what an event changes (the other modules).

A workload is declared again and again as it comes and goes: only its last declaration is built. Whether policy rows can
change is asked of each, since that has a revision. No other projection reads workloads, so that they may wait until one
goes, or a cluster does.
"""

from collections.abc import Mapping, Sequence
from itertools import repeat
from typing import Any, Self

from msgspec.structs import astuple

from controlplane.codec import decode
from controlplane.events import ClusterLeft, WorkloadApplied, WorkloadRemoved
from controlplane.model import Workload
from controlplane.projections.names import are_names
from controlplane.projections.state import State
from controlplane.projections.workloads import NO_PORTS, are_right, workload_key
from kvstore.types import Record

ABOUT_WORKLOADS = (WorkloadApplied, WorkloadRemoved, ClusterLeft)

WAITING_BYTES_MAX = 64 * 1024 * 1024
"""Of records that are kept for what waits; beyond it all is built."""
Place = tuple[str, str, str]
"""Cluster, namespace and name of a workload."""
Ports = Mapping[str, Any]


class Folding:
    """`with Folding(state) as folding`: the state is whole again behind the block, and not within it."""

    def __init__(self, state: State) -> None:
        self.events = 0
        """How many were folded."""
        self._state = state
        self._waiting: dict[Place, Record] = {}
        """The record of each workload's last declaration. It is decoded again when it is built: what is decoded and not
        kept stays in the processor's caches, and that is most of what a replay costs."""
        self._waiting_bytes = 0
        self._ports: dict[Place, Ports] = {}
        """Of those that wait, as declared last; absent where there are none."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._settle()

    def apply(self, record: Record) -> None:
        """As State.apply."""
        batch = self._state.begin(record)
        if batch is None:
            return
        self.events += len(batch.events)
        kinds = set(map(type, batch.events))
        if kinds == {WorkloadApplied} and self._take(record, batch.events):
            return
        if self._waiting and not kinds.isdisjoint(ABOUT_WORKLOADS):
            self._settle()
        self._state.apply_batch(record, batch)

    def _take(self, record: Record, events: Sequence[Any]) -> bool:
        """Let them wait; False, and nothing has changed, where one by one has to tell what comes of them."""
        columns = list(zip(*map(astuple, events), strict=True))
        namespaces, names, _, _, _, ports, *_ = columns
        fresh = dict.fromkeys(zip(repeat(record.cluster), namespaces, names), record)
        if len(fresh) < len(events) or not are_names(WorkloadApplied, columns) or not are_right(columns):
            return False
        for place in [place for place in fresh if place not in self._waiting]:
            held = self._state.workloads.get(workload_key(*place))
            if held is not None and held.ports:
                self._ports[place] = held.ports
        if self._ports or any(ports):
            self._declare(record, dict(zip(fresh, ports, strict=True)))
        self._waiting.update(fresh)
        self._waiting_bytes += len(record.payload)
        if self._waiting_bytes > WAITING_BYTES_MAX:
            self._settle()
        return True

    def _declare(self, record: Record, ports: Mapping[Place, Ports]) -> None:
        if any(self._ports.get(place, NO_PORTS) != each for place, each in ports.items()):
            self._state.policy_epoch = record.revision
        for place, each in ports.items():
            if each:
                self._ports[place] = each
            else:
                self._ports.pop(place, None)

    def _settle(self) -> None:
        built, waiting = self._state.workloads, self._waiting
        for record in {each.revision: each for each in waiting.values()}.values():
            for event in decode(record.payload).events:
                assert isinstance(event, WorkloadApplied), "nothing else waits"
                place = (record.cluster, event.namespace, event.name)
                if waiting[place] is record:
                    built[workload_key(*place)] = Workload(record.cluster, *astuple(event))
        waiting.clear()
        self._ports.clear()
        self._waiting_bytes = 0
