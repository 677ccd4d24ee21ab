"""Commands that nobody asks for: what is due of a node for itself, and of an operator for its cluster.

Belongs here: what is due. Does not belong here: when to look, or submitting. Pure: the time is an argument.
"""

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from controlplane.commands.balancer_pools import AssignBalancerAddresses, due_assignments
from controlplane.commands.endpoint import RelabelEndpoint, wanted_labels
from controlplane.commands.identity import ReleaseIdentity
from controlplane.commands.node import AssignAddressBlock, RemoveNode
from controlplane.model import BalancerPool, Endpoint, EndpointKey, NodeKey, ObjectKey
from controlplane.projections.change import Change
from controlplane.projections.state import State

POOLS_ROUND_S = 10.0
"""Pause between two looks at all services for addresses, while no pool changes."""


def node_upkeep(state: State, key: NodeKey, changes: Iterable[Change] | None = None) -> tuple[RelabelEndpoint, ...]:
    """The node's endpoints for which workload, namespace or settings now ask for other labels; `changes` None: look at
    all."""
    own = state.endpoints_of(key) if changes is None else _touched(state, key, changes)
    due = []
    for endpoint in own:
        labels = wanted_labels(state, endpoint.cluster, endpoint.namespace, endpoint.workload)
        if labels is not None and labels != endpoint.labels:
            due.append(RelabelEndpoint(endpoint.node, endpoint.endpoint_id))
    return tuple(due)


def _touched(state: State, key: NodeKey, changes: Iterable[Change]) -> list[Endpoint]:
    """The node's endpoints whose labels the changes can be about."""
    found: dict[EndpointKey, Endpoint] = {}
    for change in changes:
        if change.kind == "workload" and change.key.cluster == key.cluster:
            held = state.workload_endpoints.get((key.cluster, change.key.namespace, change.key.name), ())
            found.update({each: state.endpoints[each] for each in held if each.node == key.node})
        elif change.kind == "namespace" and change.key.cluster == key.cluster:
            for endpoint in state.endpoints_of(key):
                if endpoint.namespace == change.key.name:
                    found[EndpointKey(key.cluster, key.node, endpoint.endpoint_id)] = endpoint
        elif change.kind == "settings" and change.key == key.cluster:
            return list(state.endpoints_of(key))
    return [found[each] for each in sorted(found)]


class Upkeep:
    """What an operator remembers between rounds: since when a node's writer has been without a session.

    `node_dead_s`: seconds without one until the node counts as gone. `identity_release_s`: seconds that a number must
    have been without a user, as this operator saw it.
    """

    def __init__(self, cluster: str, node_dead_s: float, identity_release_s: float) -> None:
        self.cluster = cluster
        self.node_dead_s = node_dead_s
        self.identity_release_s = identity_release_s
        self.absent_since: dict[str, float] = {}
        self.unused_since: dict[int, float] = {}
        self.blocks: dict[str, tuple[str, ...]] = {}
        """By node, the blocks that its endpoints live in, by its own word or by a log that was lost."""
        self.blocks_until_s = 0.0
        self.pools: dict[ObjectKey, BalancerPool] = {}
        """Those by which every service had what it is to have."""
        self.pools_due_s = 0.0

    def remember_blocks(self, lost: State, until_s: float) -> None:
        """What a log had assigned that was put back to a backup since; nobody else gets it before `until_s`."""
        self.blocks |= {key.node: node.blocks for key, node in lost.nodes.items() if key.cluster == self.cluster}
        self.blocks_until_s = until_s

    def hear_blocks(self, told: Mapping[str, tuple[str, ...]], now_s: float) -> None:
        """What nodes say of their own blocks."""
        kept = self.blocks if now_s < self.blocks_until_s else {}
        self.blocks = {**kept, **{node: blocks for node, blocks in told.items() if blocks}}


def due_commands(
    upkeep: Upkeep, state: State, alive: Collection[str], realized: Mapping[NodeKey, int], now_s: float
) -> tuple[Any, ...]:
    """Blocks for new nodes, dead nodes removed, identities released, addresses for balancers. `alive`: writers with a
    session; `realized`: by node, of every cluster, the revision that it last reported."""
    nodes = sorted(key.node for key in state.nodes if key.cluster == upkeep.cluster)
    blocks = [_assignment(upkeep, name) for name in nodes if not state.nodes[NodeKey(upkeep.cluster, name)].blocks]
    dead = _dead_nodes(upkeep, nodes, alive, now_s)
    removed = [RemoveNode(name, f"no session for {upkeep.node_dead_s:g} s") for name in dead]
    living = [key for key in state.nodes if key.cluster != upkeep.cluster or key.node not in dead]
    released = [ReleaseIdentity(number) for number in _unused(upkeep, state, living, realized, now_s)]
    return (*blocks, *removed, *released, *_assigned(upkeep, state, now_s))


def _assigned(upkeep: Upkeep, state: State, now_s: float) -> list[AssignBalancerAddresses]:
    """At once where pools have changed, since services that are applied later choose by themselves; now and then beside
    that, for services that wait for an address to become free."""
    pools = {key: pool for key, pool in state.balancer_pools.items() if key.cluster == upkeep.cluster}
    if pools == upkeep.pools and now_s < upkeep.pools_due_s:
        return []
    due = due_assignments(state, upkeep.cluster)
    if not due:
        upkeep.pools, upkeep.pools_due_s = pools, now_s + POOLS_ROUND_S
    return due


def _assignment(upkeep: Upkeep, node: str) -> AssignAddressBlock:
    """What the node had, and nothing that another had."""
    others = (block for other, blocks in sorted(upkeep.blocks.items()) if other != node for block in blocks)
    return AssignAddressBlock(node, upkeep.blocks.get(node, ()), tuple(others))


def _dead_nodes(upkeep: Upkeep, nodes: list[str], alive: Collection[str], now_s: float) -> list[str]:
    absent = [name for name in nodes if f"node.{name}" not in alive]
    upkeep.absent_since = {name: upkeep.absent_since.get(name, now_s) for name in absent}
    return [name for name, since in upkeep.absent_since.items() if now_s - since >= upkeep.node_dead_s]


def _unused(
    upkeep: Upkeep, state: State, nodes: Iterable[NodeKey], realized: Mapping[NodeKey, int], now_s: float
) -> list[int]:
    """Numbers without a user for long enough, that every node of the mesh has gone beyond: no packet can still carry
    them, and no node takes an address for one of them."""
    unused = [n for n in sorted(state.identity_unused_since) if state.identities[n].cluster == upkeep.cluster]
    upkeep.unused_since = {number: upkeep.unused_since.get(number, now_s) for number in unused}
    behind = min((realized.get(key, 0) for key in nodes), default=state.revision)
    return [
        number
        for number, since in upkeep.unused_since.items()
        if now_s - since >= upkeep.identity_release_s and state.identity_unused_since[number] <= behind
    ]
