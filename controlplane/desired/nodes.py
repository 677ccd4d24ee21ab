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

from controlplane.desired.members import API_SERVER, REMOTE_NODE, RESERVED_LABELS
from controlplane.desired.policy_inputs import PolicyInputs
from controlplane.desired.policy_mesh import mesh_node
from controlplane.desired.prefixes import numbers_of
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


class NodeIdentities:
    """Of all nodes but the own. `replace` what an address's labels are, then read."""

    def __init__(self) -> None:
        self.numbers: dict[str, int] = {}
        """By address."""
        self.labels: dict[int, Labels] = {}
        """Of the numbers that are not reserved."""
        self._labels_of: dict[str, Labels] = {}
        self._users: dict[Labels, int] = {}
        self._numbers_of: dict[Labels, int] = dict(RESERVED)

    def replace(self, changed: Mapping[str, Labels | None]) -> tuple[list[str], list[int]]:
        """The addresses whose number changed or went, and the numbers whose labels did. None: no other node's."""
        before = {address: self.numbers.get(address) for address in changed}
        for address, labels in changed.items():
            self._put(address, labels)
        if self._users.keys() - RESERVED.keys() != self._numbers_of.keys() - RESERVED.keys():
            moved = self._renumber()
            before.update((address, self.numbers[address]) for address in moved if address not in before)
        for address in before:
            if address in self._labels_of:
                self.numbers[address] = self._numbers_of[self._labels_of[address]]
            else:
                self.numbers.pop(address, None)
        old, numbered = self.labels, self._numbers_of.items()
        self.labels = {number: labels for labels, number in numbered if labels not in RESERVED}
        return (
            [address for address in sorted(before) if before[address] != self.numbers.get(address)],
            [number for number in sorted({*old, *self.labels}) if old.get(number) != self.labels.get(number)],
        )

    def _put(self, address: str, labels: Labels | None) -> None:
        old = self._labels_of.pop(address, None)
        if old is not None:
            self._users[old] -= 1
            if not self._users[old]:
                del self._users[old]
        if labels is not None:
            self._labels_of[address] = labels
            self._users[labels] = self._users.get(labels, 0) + 1

    def _renumber(self) -> list[str]:
        """The addresses of label sets that stay and have another number now, as two hashes collide."""
        old, self._numbers_of = self._numbers_of, numbers_of(self._users, SCOPE, RESERVED)
        moved = {labels for labels, number in old.items() if self._numbers_of.get(labels, number) != number}
        return [address for address, labels in self._labels_of.items() if labels in moved] if moved else []


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


def node_identities(state: State, own: NodeKey, sight: Sight) -> NodeIdentities:
    """As the node `own` numbers the others; as all nodes are seen where it is none of the mesh."""
    found = NodeIdentities()
    found.replace(seen_nodes(state, own, sight, state.nodes))
    return found
