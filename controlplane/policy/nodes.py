"""What policies see of nodes: their labels, and what is said of their addresses. Pure.

Belongs here: the labels of a node as the other end of a flow. Does not belong here: nodes as the subject of host
policies (mesh.py), numbers and rows (desired/nodes.py).

A node carries "node:<key>=<value>" for each of its labels where the settings say so (`enable-node-selector-labels`),
and the labels of every prefix that has its address where CIDRs select nodes (`policy-cidr-match-mode: nodes`).
"""

from collections.abc import Container, Iterable, Mapping

from controlplane.labels import CLUSTER_KEY, SOURCE_RESERVED, label
from controlplane.policy.clauses import SOURCE_NODE
from controlplane.policy.prefixes import AddressLabels
from controlplane.policy.settings import PolicySettings

HOST = f"{SOURCE_RESERVED}:host"
REMOTE_NODE = f"{SOURCE_RESERVED}:remote-node"


def own_labels(cluster: str, labels: Mapping[str, str], keys: Container[str] | None = None) -> list[str]:
    """Of the node itself; with `keys` only those."""
    given = {**labels, CLUSTER_KEY: cluster}
    return [label(SOURCE_NODE, key, value) for key, value in given.items() if keys is None or key in keys]


def cidr_labels(settings: PolicySettings, addresses: AddressLabels, held: Iterable[str]) -> list[str]:
    """Of prefixes, groups and names that have one of these addresses of a node."""
    return [each for address in held for each in addresses.cidrs_of(address)] if settings.cidr_match_nodes else []
