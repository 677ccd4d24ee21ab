"""What a node announces again when the log was put back to a backup: its endpoints as they live, and what they need.

Belongs here: what a node knows of itself, what of it the log lacks, and deciding it. Does not belong here: keeping that
in a file, or noticing (runtime/recovery.py); what an operator has applied, which nobody repeats by themselves
(history/loss.py). Pure.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from controlplane.commands.endpoint import DeleteEndpoint
from controlplane.commands.identity import identity_for
from controlplane.commands.namespace import ApplyNamespace
from controlplane.commands.types import Author, Decision, Rejection
from controlplane.commands.workload import ApplyWorkload
from controlplane.events import EndpointConfigured, EndpointCreated
from controlplane.model import Endpoint, EndpointKey, Namespace, NodeKey, Workload
from controlplane.projections.endpoints import attachment_fault
from controlplane.projections.namespaces import namespace_key
from controlplane.projections.state import State
from controlplane.projections.workloads import workload_key


class Announced(msgspec.Struct, frozen=True):
    """What the log said of one node as of the `sequence` of the node's own writer, 0: nothing is known.

    `is_lost`: the log was seen to hold less than that, and not all has been announced again.
    """

    sequence: int = 0
    blocks: tuple[str, ...] = ()
    endpoints: tuple[Endpoint, ...] = ()
    workloads: tuple[Workload, ...] = ()
    namespaces: tuple[Namespace, ...] = ()
    is_lost: bool = False


class AnnounceEndpoint(msgspec.Struct, frozen=True):
    """The endpoint lives on the author's node exactly so, whatever became of the record that said it."""

    node: str
    endpoint: Endpoint


def announced_of(state: State, where: NodeKey) -> Announced:
    """What a state says of a node."""
    own, node = state.endpoints_of(where), state.nodes.get(where)
    workloads = dict.fromkeys(workload_key(each.cluster, each.namespace, each.workload) for each in own)
    namespaces = dict.fromkeys(namespace_key(each.cluster, each.namespace) for each in own)
    return Announced(
        sequence=state.sequences.get(f"{where.cluster}/node.{where.node}", 0),
        blocks=node.blocks if node else (),
        endpoints=own,
        workloads=tuple(state.workloads[key] for key in workloads if key in state.workloads),
        namespaces=tuple(state.namespaces[key] for key in namespaces if key in state.namespaces),
    )


def living(known: Announced, devices: Mapping[str, int]) -> Sequence[Endpoint]:
    """Those whose device is there still, by its name and ifindex."""
    return [each for each in known.endpoints if devices.get(each.device.name) == each.device.ifindex]


def stale_endpoints(state: State, where: NodeKey, devices: Mapping[str, int]) -> Sequence[DeleteEndpoint]:
    """The node's endpoints in the log whose device is gone."""
    gone = [each for each in state.endpoints_of(where) if devices.get(each.device.name) != each.device.ifindex]
    return [DeleteEndpoint(where.node, each.endpoint_id, "its device is gone") for each in gone]


def announcements(known: Announced, state: State, where: NodeKey, devices: Mapping[str, int]) -> Sequence[Any]:
    """What makes the log say again what lives here, in order: what came back though it is gone makes room first.

    Declarations of the platform that an endpoint needs are repeated where they are absent; where the log has an older
    one it stands, since whoever put the log back may have applied it since.
    """
    alive = living(known, devices)
    of_names = {(each.namespace, each.workload) for each in alive}
    of_namespaces = {each.namespace for each in alive}
    commands: list[Any] = list(stale_endpoints(state, where, devices))
    for namespace in known.namespaces:
        if namespace.name in of_namespaces and namespace_key(where.cluster, namespace.name) not in state.namespaces:
            commands.append(ApplyNamespace(namespace.name, namespace.labels))
    for workload in known.workloads:
        name = (workload.namespace, workload.name)
        if name in of_names and workload_key(where.cluster, *name) not in state.workloads:
            commands.append(ApplyWorkload(*msgspec.structs.astuple(workload)[1:]))
    return [*commands, *(AnnounceEndpoint(where.node, each) for each in alive)]


def announce_endpoint(state: State, author: Author, command: AnnounceEndpoint) -> Decision | Rejection:
    """With the number, the addresses and the labels that it has; its identity too, unless others got that meanwhile:
    then the one that its labels have now. Nothing to do where the log has the attachment with these."""
    lived = command.endpoint
    key = EndpointKey(author.cluster, command.node, lived.endpoint_id)
    known = state.endpoints.get(key)
    if known is not None:
        if _is_same(known, lived):
            return Decision()
        return Rejection(f"number {lived.endpoint_id} is that of {known.namespace}/{known.workload}", "endpoint_id")
    node = state.nodes.get(NodeKey(author.cluster, command.node))
    if node is None:
        return Rejection(f"node {command.node} has not joined cluster {author.cluster}", "node")
    fault = attachment_fault(state, lived)
    if fault:
        return Rejection(fault, "endpoint")
    found = identity_for(state, author, lived.labels, lived.identity)
    if isinstance(found, Rejection):
        return found
    identity, decision = found
    created = EndpointCreated(
        command.node, lived.endpoint_id, lived.namespace, lived.workload, lived.labels, identity, lived.ipv4,
        lived.ipv6, lived.device, lived.container_id, lived.interface, lived.netns,
    )  # fmt: skip
    configured = (EndpointConfigured(command.node, lived.endpoint_id, True),) if lived.is_audited else ()
    return Decision((*decision.events, created, *configured), decision.claims)


def _is_same(known: Endpoint, lived: Endpoint) -> bool:
    """One attachment at one place; labels may have moved on."""
    return (known.container_id, known.interface, known.device, known.ipv4, known.ipv6) == (
        lived.container_id, lived.interface, lived.device, lived.ipv4, lived.ipv6,
    )  # fmt: skip
