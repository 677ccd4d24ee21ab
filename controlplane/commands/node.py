"""Commands about nodes: joining with recorded facts, address blocks, leaving. Pure."""

from collections.abc import Container

import msgspec

from controlplane.addresses import blocks_of
from controlplane.commands.cluster import cluster_claim
from controlplane.commands.types import Author, Decision, Rejection
from controlplane.events import AddressBlockAssigned, NodeJoined, NodeLeft
from controlplane.labels import SOURCE_KUBERNETES, label_fault
from controlplane.model import Cluster, Device, Labels, Node, NodeKey, Tunnel
from controlplane.projections.nodes import acceleration_fault, blocks_fault, cgroup_fault, node_fault
from controlplane.projections.state import State
from kvstore.types import Claim, Want


class JoinNode(msgspec.Struct, frozen=True):
    """The node's facts as its agent sees them now; decided to nothing while they are those recorded.

    A label without a source ("zone=a") is Kubernetes' ("k8s:zone=a"). `cgroup`: whose sockets are translated, "" for
    none. `acceleration`: one of ACCELERATIONS. `joining_cgroup`: whose sockets are joined, "" for none.
    """

    node: str
    addresses: tuple[str, ...]
    device: Device
    labels: Labels = ()
    tunnel: Tunnel | None = None
    cgroup: str = ""
    acceleration: str = ""
    joining_cgroup: str = ""


class AssignAddressBlock(msgspec.Struct, frozen=True):
    """Cut the node's pod CIDRs, one of each range of the cluster.

    `wanted`: what the node's endpoints live in already; `avoid`: what those of other nodes do, though the log does not
    say so any more.
    """

    node: str
    wanted: tuple[str, ...] = ()
    avoid: tuple[str, ...] = ()


class RemoveNode(msgspec.Struct, frozen=True):
    """The node is gone with everything on it."""

    node: str
    reason: str


def join_node(state: State, author: Author, command: JoinNode) -> Decision | Rejection:
    """Record the facts if they are new. Its underlay addresses must be no other node's."""
    key = NodeKey(author.cluster, command.node)
    known = state.nodes.get(key)
    labels = sourced_labels(command.labels)
    joined = NodeJoined(
        command.node,
        command.addresses,
        command.device,
        labels,
        command.tunnel,
        command.cgroup,
        command.acceleration,
        command.joining_cgroup,
    )
    if known is not None and joined == _as_recorded(known):
        return Decision()
    fault = node_fault(state, key, command.addresses, command.device, command.tunnel) or label_fault(labels)
    fault = fault or cgroup_fault(command.cgroup) or cgroup_fault(command.joining_cgroup)
    fault = fault or acceleration_fault(command.acceleration)
    if fault:
        return Rejection(f"node {command.node}: {fault}")
    claims = [Claim(node_claim(*key), Want.TAKEN if known is None else Want.HELD)]
    cluster = state.clusters.get(author.cluster)
    if known is None and cluster is not None:
        claims.append(Claim(cluster_claim(cluster.cluster_id), Want.HELD))
    return Decision((joined,), tuple(claims))


def _as_recorded(node: Node) -> NodeJoined:
    facts = node.addresses, node.device, node.labels, node.tunnel, node.cgroup, node.acceleration
    return NodeJoined(node.name, *facts, node.joining_cgroup)


def sourced_labels(labels: Labels) -> Labels:
    """As the log has them. A person writes "zone=a"; without a source, a node's label is Kubernetes'."""
    sourced = (each if ":" in each.partition("=")[0] else f"{SOURCE_KUBERNETES}:{each}" for each in labels)
    return tuple(sorted(dict.fromkeys(sourced)))


def assign_address_block(state: State, author: Author, command: AssignAddressBlock) -> Decision | Rejection:
    """What it wants if that is free, else the lowest free block of each of the cluster's ranges; what it has it keeps.
    """
    cluster = state.clusters.get(author.cluster)
    node = state.nodes.get(NodeKey(author.cluster, command.node))
    if cluster is None:
        return Rejection(f"cluster {author.cluster} has not joined the mesh; its operator must come first")
    if node is None:
        return Rejection(f"no node {command.node!r} in cluster {author.cluster}", "node")
    if node.blocks:
        return Decision()
    blocks: tuple[str, ...] | Rejection = command.wanted
    if not command.wanted or blocks_fault(state, cluster.name, command.wanted):
        blocks = free_blocks(cluster, {*state.blocks, *command.avoid})
    if isinstance(blocks, Rejection):
        return blocks
    held = Claim(node_claim(author.cluster, command.node), Want.HELD)
    claims = (held, *(Claim(block_claim(author.cluster, block)) for block in blocks))
    return Decision((AddressBlockAssigned(command.node, blocks),), claims)


def free_blocks(cluster: Cluster, taken: Container[str]) -> tuple[str, ...] | Rejection:
    """One free block of each range."""
    blocks = []
    for cidr, prefix_length in zip(cluster.pod_cidrs, cluster.block_prefixes, strict=True):
        block = next((each for each in blocks_of(cidr, prefix_length) if each not in taken), None)
        if block is None:
            return Rejection(f"no free /{prefix_length} is left in {cidr} of cluster {cluster.name}", "pod_cidrs")
        blocks.append(block)
    return tuple(blocks)


def remove_node(state: State, author: Author, command: RemoveNode) -> Decision | Rejection:
    """Its endpoints go with it, and its blocks are free again."""
    node = state.nodes.get(NodeKey(author.cluster, command.node))
    if node is None:
        return Decision()
    own = Claim(node_claim(author.cluster, command.node), Want.FREED, untouched_since=state.revision)
    claims = (own, *(Claim(block_claim(author.cluster, block), Want.FREED) for block in node.blocks))
    return Decision((NodeLeft(command.node, command.reason),), claims)


def node_claim(cluster: str, node: str) -> str:
    """The claim's key of a node: taken when it joins, held by what gives it something, freed when it leaves."""
    return f"node/{cluster}/{node}"


def block_claim(cluster: str, block: str) -> str:
    """The claim's key of an address block."""
    return f"block/{cluster}/{block.replace('/', '_')}"
