"""What applying a record answers with. Belongs here: the shape of a change and of a refusal; not what causes them."""

from typing import Any, Literal

import msgspec

Kind = Literal["cluster", "node", "namespace", "workload", "identity", "endpoint", "service", "backends", "policy",
    "cidr_group", "name", "settings", "local_redirect", "backend_state", "balancer_pool",]


class Change(msgspec.Struct, frozen=True, gc=False):
    """One thing of the state became another. `old` None: it is new; `new` None: it is gone.

    `key` is the key in the state's dict of that kind: a cluster's name, NodeKey, EndpointKey, an identity's number,
    ObjectKey for all the others (settings: the cluster's name).
    Where one key changes several times, each change stands on its own, in order.
    """

    kind: Kind
    key: Any
    old: Any
    new: Any


class RefusedEvent(msgspec.Struct, frozen=True, array_like=True):
    """An event that the state did not take. `event` is its name, "" where the whole batch was unreadable."""

    revision: int
    cluster: str
    writer: str
    event: str
    reason: str

    def __str__(self) -> str:
        what = self.event or "batch"
        return f"revision {self.revision}, {self.cluster}/{self.writer}: {what} refused: {self.reason}"
