"""Who is behind an identity: endpoints, and their addresses. Pure.

Belongs here: facts that policies need and labels do not tell. Does not belong here: what policies make of them.
Rows by an identity hold for all its endpoints: where these differ, a fact does not count, and facets.py tells them
apart.
"""

from collections.abc import Container, Iterable, Mapping

from controlplane.model import RESERVED_IDENTITIES, EndpointKey, Labels, NodeKey
from controlplane.policy.clauses import reserved_labels
from controlplane.projections.state import State

HOST = RESERVED_IDENTITIES["host"]
REMOTE_NODE = RESERVED_IDENTITIES["remote-node"]
API_SERVER = RESERVED_IDENTITIES["kube-apiserver"]
RESERVED_LABELS: Mapping[int, Labels] = {
    **{number: reserved_labels(name) for name, number in RESERVED_IDENTITIES.items()},
    API_SERVER: (*reserved_labels("kube-apiserver"), *reserved_labels("remote-node")),
}
"""Other nodes with an API server have a number of their own; what else is one is a prefix that has the label."""


class Members:
    """The endpoints of each identity."""

    def __init__(self) -> None:
        self._members: dict[int, dict[EndpointKey, None]] = {}

    def fill(self, state: State) -> None:
        """From nothing."""
        self._members = {}
        for key, endpoint in state.endpoints.items():
            self._members.setdefault(endpoint.identity, {})[key] = None

    def move(self, key: EndpointKey, identities: Iterable[int], identity: int | None) -> None:
        """The endpoint has this identity now (None: it is gone), and perhaps had one of those."""
        for old in identities:
            self._members.get(old, {}).pop(key, None)
        if identity is not None:
            self._members.setdefault(identity, {})[key] = None

    def of(self, identity: int) -> Iterable[EndpointKey]:
        """Its endpoints."""
        return self._members.get(identity, ())

    def addresses(self, state: State, identity: int, own: NodeKey, api_servers: Container[str] = ()) -> list[str]:
        """Of all its endpoints; of the host those of the own node, of remote-node and kube-apiserver the others'."""
        if identity == HOST:
            return list(state.nodes[own].addresses) if own in state.nodes else []
        if identity in (REMOTE_NODE, API_SERVER):
            others = [address for key in state.nodes if key != own for address in state.nodes[key].addresses]
            return [each for each in others if (each in api_servers) == (identity == API_SERVER)]
        found = (state.endpoints.get(key) for key in self._members.get(identity, ()))
        return [address for each in found if each for address in (each.ipv4, each.ipv6) if address]
