"""Identities of nodes as one node of a cluster sees them: whom its policies can tell apart. Pure.

Belongs here: the labels behind each address of another node, their numbers, and the labels of the own host. Does not
belong here: what policies see of a node (policy/nodes.py), rows (ipcache.py).

Where no setting lets policies look at nodes one by one, all others are remote-node, or kube-apiserver where an address
is known as one. Else every address of another node has the labels that policies of the cluster ask about, and a number
made from them as that of a prefix is, in a scope of its own (prefixes.py): nodes that no policy tells apart share one,
and a node about which none asks anything stays what it was. So there are as many numbers as policies make differences,
however many nodes there are; a number comes with the first node and goes with the last, without a record, and is the
same on every node of the cluster and after every replay. The own node is its host under every number of its own.
"""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from controlplane.desired.address_identities import AddressIdentities
from controlplane.desired.members import API_SERVER, REMOTE_NODE, RESERVED_LABELS
from controlplane.desired.policy_inputs import PolicyInputs
from controlplane.desired.policy_mesh import mesh_node
from controlplane.desired.underlay import node_addresses
from controlplane.model import RESERVED_IDENTITIES, Labels, Node, NodeKey
from controlplane.policy import nodes
from controlplane.policy.prefixes import AddressKeys, AddressLabels
from controlplane.policy.settings import DEFAULTS, PolicySettings
from controlplane.projections.state import State
from datapath.abi.types import IDENTITY_SCOPE_NODE, IDENTITY_SCOPE_SHIFT

SCOPE = IDENTITY_SCOPE_NODE << IDENTITY_SCOPE_SHIFT
HOST = RESERVED_IDENTITIES["host"]
RESERVED: Mapping[Labels, int] = {RESERVED_LABELS[number]: number for number in (REMOTE_NODE, API_SERVER)}


class Sight(NamedTuple):
    """By what the policies of a cluster know nodes."""

    settings: PolicySettings = DEFAULTS
    addresses: AddressLabels = AddressLabels(AddressKeys())

    @property
    def tells_apart(self) -> bool:
        """Whether nodes have identities of their own."""
        return self.settings.node_labels or self.settings.cidr_match_nodes

    def is_like(self, other: "Sight") -> bool:
        """Whether every node surely looks the same in both."""
        old, new = self.addresses, other.addresses
        if old is new and self.settings == other.settings:
            return True
        flags = [(each.settings.node_labels, each.settings.cidr_match_nodes) for each in (self, other)]
        if flags[0] != flags[1] or self.settings.cidr_match_nodes or old.api_servers != new.api_servers:
            return False
        asked = [(each.keys.blocks, each.keys.node_keys) for each in (old, new)]
        return not self.tells_apart or asked[0] == asked[1]

    def of_other(self, node: Node, address: str) -> Labels:
        """Of one address of another node."""
        number = API_SERVER if address in self.addresses.api_servers else REMOTE_NODE
        if not self.tells_apart:
            return RESERVED_LABELS[number]
        said = self.addresses.of_mesh((address,)) + nodes.cidr_labels(self.settings, self.addresses, (address,))
        return tuple(sorted({*RESERVED_LABELS[number], *self._own_labels(node), *said}))

    def of_host(self, node: Node | None) -> Labels:
        """Of the node itself, as its endpoints see it: what is said of any of its addresses."""
        if node is None:
            return RESERVED_LABELS[HOST]
        said = self.addresses.of_node(node.addresses)
        said += nodes.cidr_labels(self.settings, self.addresses, node.addresses)
        return tuple(sorted({*RESERVED_LABELS[HOST], *self._own_labels(node), *said}))

    def _own_labels(self, node: Node) -> list[str]:
        """Those that some policy asks about."""
        if not self.settings.node_labels:
            return []
        return nodes.own_labels(node.cluster, mesh_node(node).labels, self.addresses.keys.node_keys)


def numbered_nodes() -> AddressIdentities:
    """Numbers for the addresses of all nodes but the own."""
    return AddressIdentities(SCOPE, RESERVED)


def seen_nodes(state: State, own: NodeKey, sight: Sight, keys: Iterable[NodeKey]) -> dict[str, Labels]:
    """The labels of every address of these nodes, but of the own."""
    return {
        address: sight.of_other(state.nodes[key], address)
        for key in keys
        if key != own and key in state.nodes
        for address in node_addresses(state.nodes[key])
    }


def sight_of(state: State, cluster: str) -> Sight:
    """Of the policies of a cluster."""
    inputs = PolicyInputs(cluster)
    inputs.fill(state)
    return Sight(inputs.settings, inputs.address_labels(state))


def node_identities(state: State, own: NodeKey, sight: Sight) -> AddressIdentities:
    """As the node `own` numbers the others; as all nodes are seen where it is none of the mesh."""
    found = numbered_nodes()
    found.replace(seen_nodes(state, own, sight, state.nodes))
    return found
