"""What the endpoints behind an identity have in common: addresses and named ports. Pure.

Belongs here: facts that policies need and labels do not tell. Does not belong here: what policies make of them.
Rows are by identity, so where its endpoints differ a fact holds for all of them or it does not count as allowed.
"""

from collections.abc import Container, Iterable, Mapping

from controlplane.model import RESERVED_IDENTITIES, EndpointKey, Labels, NodeKey
from controlplane.policy.clauses import reserved_labels
from controlplane.policy.resolve import PortFacts
from controlplane.policy.rules import PROTOCOLS
from controlplane.projections.state import State
from controlplane.projections.workloads import workload_key

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

    def addresses(self, state: State, identity: int, own: NodeKey, api_servers: Container[str] = ()) -> list[str]:
        """Of all its endpoints; of the host those of the own node, of remote-node and kube-apiserver the others'."""
        if identity == HOST:
            return list(state.nodes[own].addresses) if own in state.nodes else []
        if identity in (REMOTE_NODE, API_SERVER):
            others = [address for key in state.nodes if key != own for address in state.nodes[key].addresses]
            return [each for each in others if (each in api_servers) == (identity == API_SERVER)]
        found = (state.endpoints.get(key) for key in self._members.get(identity, ()))
        return [address for each in found if each for address in (each.ipv4, each.ipv6) if address]

    def ports(self, state: State, identity: int) -> PortFacts:
        """Named ports: what all agree on, and all that any one says."""
        agreed: dict[tuple[int, str], int] | None = None
        known: dict[tuple[int, str], dict[int, None]] = {}
        for key in self._members.get(identity, ()):
            endpoint = state.endpoints.get(key)
            if endpoint is None:
                continue
            workload = state.workloads.get(workload_key(endpoint.cluster, endpoint.namespace, endpoint.workload))
            ports = workload.ports if workload else {}
            own = {
                (PROTOCOLS[name_of], name): number for name, (number, name_of) in ports.items() if name_of in PROTOCOLS
            }
            agreed = own if agreed is None else {each: agreed[each] for each in agreed if own.get(each) == agreed[each]}
            for each, number in own.items():
                known.setdefault(each, {})[number] = None
        return PortFacts(agreed or {}, {each: tuple(sorted(found)) for each, found in known.items()})
