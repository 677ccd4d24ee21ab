"""Which record changed each thing of the mesh last, kept while a state is folded. Pure.

Belongs here: the index from a thing to its record. Does not belong here: what follows from it (why.py). Nothing of it
is stored: it can be made again from the log.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from controlplane.codec import decode
from controlplane.events import Batch
from controlplane.projections.change import Change
from kvstore.types import Record

GONE_MAX = 4096
"""Things that are gone and still remembered, so that "it was deleted at" can be said."""

Thing = tuple[str, Any]
"""A kind of projections.change.Kind, and the key in the state's dict of that kind."""

EVENT_PREFIXES: Mapping[str, tuple[str, ...]] = {
    "cluster": ("Cluster",),
    "node": ("Node", "AddressBlock"),
    "namespace": ("Namespace",),
    "workload": ("Workload",),
    "identity": ("Identity",),
    "endpoint": ("Endpoint",),
    "service": ("Service",),
    "backends": ("Backends",),
    "backend_state": ("BackendStateSet",),
    "local_redirect": ("LocalRedirect",),
    "balancer_pool": ("BalancerPool",),
    "policy": ("Policy",),
    "cidr_group": ("CIDRGroup",),
    "name": ("NameResolved", "NameExpired"),
    "settings": ("Settings",),
}


class Origin(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The record that changed a thing last: who wrote it, and the event. `time_ns` is the writer's clock."""

    revision: int
    cluster: str
    writer: str
    time_ns: int
    cause: int
    event: str


class Origins:
    """The last record of each thing. `since`: things unchanged since that revision have no origin here; 0: all have."""

    def __init__(self, since: int = 0) -> None:
        self.since = since
        self.held: dict[Thing, Origin] = {}
        self.gone: dict[Thing, Origin] = {}
        self.gone_names: dict[Thing, tuple[str, str]] = {}
        """Namespace and workload of endpoints that are gone."""

    def of(self, kind: str, key: Any) -> Origin | None:
        """Of a thing that is there."""
        return self.held.get((kind, key))

    def put(self, record: Record, changes: Sequence[Change]) -> None:
        """What `State.apply` answered for the record."""
        if not changes:
            return
        batch = decode(record.payload)
        origins: dict[str, Origin] = {}
        for change in changes:
            thing, origin = (change.kind, change.key), origins.get(change.kind)
            if origin is None:
                origin = origins[change.kind] = _origin(record, batch, change.kind)
            if change.new is not None:
                self.held[thing] = origin
                if thing in self.gone:
                    del self.gone[thing]
            else:
                self.held.pop(thing, None)
                self._forget(thing, origin, change.old)

    def _forget(self, thing: Thing, origin: Origin, old: Any) -> None:
        self.gone[thing] = origin
        if thing[0] == "endpoint":
            self.gone_names[thing] = (old.namespace, old.workload)
        if len(self.gone) > GONE_MAX:
            oldest = next(iter(self.gone))
            del self.gone[oldest]
            self.gone_names.pop(oldest, None)

    def copy(self) -> "Origins":
        """Another that can be changed without this one."""
        new = Origins(self.since)
        new.held, new.gone = self.held.copy(), self.gone.copy()
        new.gone_names = self.gone_names.copy()
        return new


def _origin(record: Record, batch: Batch, kind: str) -> Origin:
    """What a record is for a change of this kind: its last event that fits, or its last one."""
    names = [type(event).__name__ for event in batch.events]
    prefixes = EVENT_PREFIXES[kind]
    fitting = names if len(names) == 1 else [name for name in names if name.startswith(prefixes)] or names
    name = fitting[-1]
    return Origin(record.revision, record.cluster, record.writer, batch.time_ns, batch.cause, name)
