"""Commands about a cluster's part in the mesh. Pure: a state in, a decision out."""

import msgspec

from controlplane.commands.types import Author, Decision, Rejection
from controlplane.events import ClusterJoined, ClusterLeft
from controlplane.model import Cluster
from controlplane.projections.clusters import cluster_fault
from controlplane.projections.state import State
from kvstore.types import Claim, Want


class JoinCluster(msgspec.Struct, frozen=True):
    """`block_prefixes`: the prefix length of a node's block, one for each of `pod_cidrs`."""

    cluster_id: int
    pod_cidrs: tuple[str, ...]
    block_prefixes: tuple[int, ...]
    service_cidrs: tuple[str, ...]
    routing_mode: str = "native"
    tunnel_protocol: str = "vxlan"
    tunnel_port: int = 8472


class LeaveCluster(msgspec.Struct, frozen=True):
    """The author's cluster leaves the mesh for good. It must be empty: its claims go with what holds them."""


def join_cluster(state: State, author: Author, command: JoinCluster) -> Decision | Rejection:
    """Once per cluster; its number and address ranges stay what they are. How its nodes route may change."""
    facts = (
        command.cluster_id, command.pod_cidrs, command.block_prefixes, command.service_cidrs,
        command.routing_mode, command.tunnel_protocol, command.tunnel_port,
    )  # fmt: skip
    wanted = Cluster(author.cluster, *facts)
    fault = cluster_fault(state, wanted)
    if fault:
        return Rejection(fault)
    event = ClusterJoined(*facts)
    own = state.clusters.get(author.cluster)
    if own is None:
        return Decision((event,), (Claim(cluster_claim(command.cluster_id)),))
    return Decision() if own == wanted else Decision((event,))


def leave_cluster(state: State, author: Author, command: LeaveCluster) -> Decision | Rejection:
    """A claim is released by the command that removes its holder, a few in each transaction; so nothing may be left."""
    own = state.clusters.get(author.cluster)
    if own is None:
        return Decision()
    for what, held in (
        ("nodes", [key for key in state.nodes if key.cluster == author.cluster]),
        ("services", [key for key in state.services if key.cluster == author.cluster]),
        ("identities", [number for number, each in state.identities.items() if each.cluster == author.cluster]),
    ):
        if held:
            return Rejection(f"cluster {author.cluster} has {len(held)} {what}; remove them first")
    claim = Claim(cluster_claim(own.cluster_id), Want.FREED, untouched_since=state.revision)
    return Decision((ClusterLeft(),), (claim,))


def cluster_claim(cluster_id: int) -> str:
    """The claim's key of a cluster's number. Whoever adds something to a cluster holds it."""
    return f"cluster/{cluster_id}"
