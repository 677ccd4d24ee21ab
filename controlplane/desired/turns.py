"""Which records a node may not realize together. Pure.

Belongs here: what moves an end from one policy to another, and what gives policies another meaning. Does not belong
here: deriving (derive.py), the order of writes (datapath/plan.py).

Within one update rows of the new policies stand before ends move to new identities, and those of the old ones go after.
That is the order of the log where a policy changed first. Where an end moved first, an update with both would let its
old identity meet the new policy, which the log never did: a packet might be lost that every state of the log allows, or
pass that every one denies. So what moved is realized in a turn of its own. And so is a policy before the ports of a
workload change, since what endpoints give is read from the state when policies come to ask for it.
"""

from collections.abc import Iterable

from controlplane import events as e
from controlplane.projections.change import Change
from controlplane.projections.state import State
from controlplane.projections.workloads import workload_key

MOVES = (
    e.EndpointRelabelled,
    e.EndpointConfigured,
    e.CIDRGroupApplied,
    e.CIDRGroupRemoved,
    e.NameResolved,
    e.NameExpired,
)
"""Groups and names move addresses from prefix to prefix."""
MEANINGS = (
    e.PolicyApplied,
    e.PolicyRemoved,
    e.SettingsChanged,
    e.ServiceApplied,
    e.ServiceRemoved,
    e.BackendsReported,
    e.BackendsWithdrawn,
)
"""Services are what policies about services select."""
MOVED, MEANT = "moved", "meant"
MEANING_KINDS = ("policy", "settings", "service", "backends")
ADDRESS_KINDS = ("cidr_group", "name")


def moves(events: Iterable[e.Event | e.Unknown]) -> bool:
    """Whether an end may be under another policy after these."""
    return any(isinstance(event, MOVES) for event in events)


def gives_meaning(events: Iterable[e.Event | e.Unknown]) -> bool:
    """Whether a policy may mean something else after these."""
    return any(isinstance(event, MEANINGS) for event in events)


def changes_ports(events: Iterable[e.Event | e.Unknown], state: State, cluster: str) -> bool:
    """Whether a workload of the cluster gives names of ports other numbers by these than it does in the state."""
    for event in events:
        if isinstance(event, e.WorkloadApplied):
            held = state.workloads.get(workload_key(cluster, event.namespace, event.name))
            if held is not None and held.ports != event.ports:
                return True
    return False


def turn_of(changes: Iterable[Change]) -> str:
    """Whether ends moved by these changes, or policies came to mean something else; "" for neither."""
    found = ""
    for change in changes:
        if change.kind in MEANING_KINDS:
            return MEANT
        if _is_move(change):
            found = MOVED
    return found


def _is_move(change: Change) -> bool:
    if change.kind in ADDRESS_KINDS:
        return True
    if change.old is None or change.new is None:
        return False
    if change.kind == "node":
        return bool(change.old.labels != change.new.labels)
    return change.kind == "endpoint" or (change.kind == "workload" and change.old.ports != change.new.ports)
