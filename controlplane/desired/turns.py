"""Which records a node may not realize together. Pure.

Belongs here: which events move an end from one policy to another, and which give policies another meaning. Does not
belong here: deriving (derive.py), the order of writes (datapath/plan.py).

Within one update rows of the new policies stand before ends move to new identities, and those of the old ones go after.
That is the order of the log where a policy changed first. Where an end moved first, an update with both would let its
old identity meet the new policy, which the log never did: a packet might be lost that every state of the log allows, or
pass that every one denies. So what moved is realized in a turn of its own.
"""

from collections.abc import Iterable

from controlplane import events as e

MOVES = (e.EndpointRelabelled, e.EndpointConfigured)
MEANINGS = (
    e.PolicyApplied,
    e.PolicyRemoved,
    e.CIDRGroupApplied,
    e.CIDRGroupRemoved,
    e.NameResolved,
    e.NameExpired,
    e.SettingsChanged,
    e.ServiceApplied,
    e.ServiceRemoved,
    e.BackendsReported,
    e.BackendsWithdrawn,
)
"""Services are what policies about services select. Workloads are not here though they give names to ports: each move
follows upon one, and would be realized alone."""


def moves(events: Iterable[e.Event | e.Unknown]) -> bool:
    """Whether an end may be under another policy after these."""
    return any(isinstance(event, MOVES) for event in events)


def gives_meaning(events: Iterable[e.Event | e.Unknown]) -> bool:
    """Whether a policy may mean something else after these."""
    return any(isinstance(event, MEANINGS) for event in events)
