"""Where a command finds its decision. Belongs here: the table; the decisions stand with their commands. Pure."""

from collections.abc import Callable, Mapping
from typing import Any

from controlplane.commands import (
    addresses,
    announcing,
    balancer_pools,
    cluster,
    endpoint,
    identity,
    namespace,
    node,
    policy,
    redirect,
    service,
    workload,
)
from controlplane.commands.types import Author, Decision, Rejection
from controlplane.projections.state import State

DECISIONS: Mapping[type[Any], Callable[[State, Author, Any], Decision | Rejection]] = {
    cluster.JoinCluster: cluster.join_cluster,
    cluster.LeaveCluster: cluster.leave_cluster,
    node.JoinNode: node.join_node,
    node.AssignAddressBlock: node.assign_address_block,
    node.RemoveNode: node.remove_node,
    namespace.ApplyNamespace: namespace.apply_namespace,
    namespace.RemoveNamespace: namespace.remove_namespace,
    workload.ApplyWorkload: workload.apply_workload,
    workload.RemoveWorkload: workload.remove_workload,
    endpoint.CreateEndpoint: endpoint.create_endpoint,
    endpoint.RelabelEndpoint: endpoint.relabel_endpoint,
    announcing.AnnounceEndpoint: announcing.announce_endpoint,
    endpoint.ConfigureEndpoint: endpoint.configure_endpoint,
    endpoint.DeleteEndpoint: endpoint.delete_endpoint,
    identity.ReleaseIdentity: identity.release_identity,
    redirect.ApplyLocalRedirect: redirect.apply_local_redirect,
    redirect.RemoveLocalRedirect: redirect.remove_local_redirect,
    redirect.SetBackendState: redirect.set_backend_state,
    balancer_pools.ApplyBalancerPool: balancer_pools.apply_balancer_pool,
    balancer_pools.RemoveBalancerPool: balancer_pools.remove_balancer_pool,
    balancer_pools.AssignBalancerAddresses: balancer_pools.assign_balancer_addresses,
    service.ApplyService: service.apply_service,
    service.RemoveService: service.remove_service,
    service.ReportBackends: service.report_backends,
    service.WithdrawBackends: service.withdraw_backends,
    policy.ApplyPolicy: policy.apply_policy,
    policy.RemovePolicy: policy.remove_policy,
    addresses.ApplyCidrGroup: addresses.apply_cidr_group,
    addresses.RemoveCidrGroup: addresses.remove_cidr_group,
    addresses.ResolveName: addresses.resolve_name,
    addresses.ExpireName: addresses.expire_name,
    addresses.ChangeSettings: addresses.change_settings,
}


OPERATOR = "operator"
OF_OPERATOR = (cluster.JoinCluster, cluster.LeaveCluster, node.AssignAddressBlock, identity.ReleaseIdentity)
OF_NODE = (node.JoinNode, endpoint.CreateEndpoint, endpoint.RelabelEndpoint, announcing.AnnounceEndpoint)
OF_BOTH = (node.RemoveNode, endpoint.DeleteEndpoint)
"""Whose commands they are: the cluster's operator's, those of the node they are about, or of either. All others are
anybody's. The projections refuse the events of anyone else."""


def _foreign(author: Author, command: Any) -> str:
    """Who would be right, if the author is not; else ""."""
    if isinstance(command, OF_OPERATOR):
        return "" if author.writer == OPERATOR else OPERATOR
    if isinstance(command, (*OF_NODE, *OF_BOTH)):
        own = f"node.{command.node}"
        if author.writer != own and not (author.writer == OPERATOR and isinstance(command, OF_BOTH)):
            return own
    return ""


def decide(state: State, author: Author, command: Any) -> Decision | Rejection:
    """The events that make the command true, none if it is true already, or why not.

    Pure: the same state, author and command give the same answer. KeyError for a value that is no command.
    """
    right = _foreign(author, command)
    if right:
        return Rejection(f"{type(command).__name__} is not for {author.writer} to ask; {right} may")
    return DECISIONS[type(command)](state, author, command)
