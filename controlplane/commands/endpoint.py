"""Commands about endpoints: what one gets when it is created, when its labels change, and what is asked of it. Pure.

Belongs here: choosing the id, the addresses and the identity, from the state alone. Does not belong here: devices,
rows, or waiting until the kernel has them.
"""

import msgspec

from controlplane.addresses import block_of_family, next_free, offset_in
from controlplane.commands.identity import identity_for
from controlplane.commands.types import Author, Decision, Rejection
from controlplane.events import EndpointConfigured, EndpointCreated, EndpointDeleted, EndpointRelabelled
from controlplane.model import Device, EndpointKey, Labels, Node, NodeKey
from controlplane.policy.identity_labels import identity_labels
from controlplane.policy.settings import settings_in_force
from controlplane.projections.namespaces import namespace_key
from controlplane.projections.nodes import device_fault
from controlplane.projections.state import State
from controlplane.projections.workloads import workload_key

ENDPOINT_ID_MAX = 65_535


class CreateEndpoint(msgspec.Struct, frozen=True):
    """Attach a workload to the author's node through a device that exists already."""

    node: str
    namespace: str
    workload: str
    device: Device
    container_id: str
    interface: str
    netns: str = ""


class RelabelEndpoint(msgspec.Struct, frozen=True):
    """Give the endpoint the identity that its workload's and namespace's labels now ask for."""

    node: str
    endpoint_id: int


class ConfigureEndpoint(msgspec.Struct, frozen=True):
    """Whether what the endpoint's policies would deny passes. Anybody of the cluster may ask for it."""

    node: str
    endpoint_id: int
    is_audited: bool


class DeleteEndpoint(msgspec.Struct, frozen=True):
    """The attachment is gone."""

    node: str
    endpoint_id: int
    reason: str = ""


def create_endpoint(state: State, author: Author, command: CreateEndpoint) -> Decision | Rejection:
    """Addresses from the node's blocks, the lowest free id, the identity of the labels."""
    node = state.nodes.get(NodeKey(author.cluster, command.node))
    if node is None:
        return Rejection(f"node {command.node} has not joined cluster {author.cluster}", "node")
    if not node.blocks:
        return Rejection(f"node {command.node} has no address block yet; is the operator of {author.cluster} running?")
    if (author.cluster, command.node, command.container_id, command.interface) in state.attachments:
        return Decision()
    fault = device_fault(command.device)
    if fault:
        return Rejection(fault, "device")
    labels = wanted_labels(state, author.cluster, command.namespace, command.workload)
    if labels is None:
        return Rejection(
            f"no workload {command.namespace}/{command.workload} in cluster {author.cluster}; "
            f"apply its Pod manifest first",
            "workload",
        )
    found = identity_for(state, author, labels)
    if isinstance(found, Rejection):
        return found
    identity, decision = found
    addresses = _free_addresses(state, node)
    if isinstance(addresses, Rejection):
        return addresses
    endpoint_id = _free_id(state, node)
    if not endpoint_id:
        return Rejection(f"node {command.node} has {ENDPOINT_ID_MAX} endpoints; no id is left")
    created = EndpointCreated(
        command.node, endpoint_id, command.namespace, command.workload, labels, identity, *addresses, command.device,
        command.container_id, command.interface, command.netns,
    )  # fmt: skip
    return Decision((*decision.events, created), decision.claims)


def wanted_labels(state: State, cluster: str, namespace: str, workload: str) -> Labels | None:
    """The identity labels that workload and namespace ask for now, under the cluster's settings; None for an unknown
    workload."""
    declared = state.workloads.get(workload_key(cluster, namespace, workload))
    if declared is None:
        return None
    about = state.namespaces.get(namespace_key(cluster, namespace))
    of_namespace = about.labels if about else {}
    patterns = settings_in_force(state.policy_settings.get(cluster, "")).policy.labels
    return identity_labels(cluster, namespace, of_namespace, declared.labels, declared.service_account, patterns)


def _free_addresses(state: State, node: Node) -> tuple[str, str] | Rejection:
    last = dict(zip((4, 6), state.last_created.get(NodeKey(node.cluster, node.name), ("", "")), strict=True))
    chosen = {4: "", 6: ""}
    for family in (4, 6):
        block = block_of_family(node.blocks, family)
        if not block:
            continue
        after = offset_in(block, last[family]) if last[family] else 0
        chosen[family] = next_free(block, after, state.addresses.__contains__)
        if not chosen[family]:
            return Rejection(f"block {block} of node {node.name} has no free address")
    return chosen[4], chosen[6]


def _free_id(state: State, node: Node) -> int:
    taken = state.node_endpoints[NodeKey(node.cluster, node.name)]
    for endpoint_id in range(1, ENDPOINT_ID_MAX + 1):
        if EndpointKey(node.cluster, node.name, endpoint_id) not in taken:
            return endpoint_id
    return 0


def relabel_endpoint(state: State, author: Author, command: RelabelEndpoint) -> Decision | Rejection:
    """Nothing to do while the labels are those it has, or its workload is no longer declared."""
    endpoint = state.endpoints.get(EndpointKey(author.cluster, command.node, command.endpoint_id))
    if endpoint is None:
        return Decision()
    labels = wanted_labels(state, author.cluster, endpoint.namespace, endpoint.workload)
    if labels is None or labels == endpoint.labels:
        return Decision()
    found = identity_for(state, author, labels)
    if isinstance(found, Rejection):
        return found
    identity, decision = found
    relabelled = EndpointRelabelled(command.node, command.endpoint_id, labels, identity)
    return Decision((*decision.events, relabelled), decision.claims)


def configure_endpoint(state: State, author: Author, command: ConfigureEndpoint) -> Decision | Rejection:
    """Nothing to do where it is so already."""
    endpoint = state.endpoints.get(EndpointKey(author.cluster, command.node, command.endpoint_id))
    if endpoint is None:
        return Rejection(f"node {command.node} of {author.cluster} has no endpoint {command.endpoint_id}", "endpoint")
    if endpoint.is_audited == command.is_audited:
        return Decision()
    return Decision((EndpointConfigured(command.node, command.endpoint_id, command.is_audited),))


def delete_endpoint(state: State, author: Author, command: DeleteEndpoint) -> Decision | Rejection:
    """Deleting what is not there is done already."""
    if EndpointKey(author.cluster, command.node, command.endpoint_id) not in state.endpoints:
        return Decision()
    return Decision((EndpointDeleted(command.node, command.endpoint_id, command.reason),))
