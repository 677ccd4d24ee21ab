"""Clusters of the mesh. Belongs here: joining under a number of one's own, and leaving with everything. Pure."""

from typing import TYPE_CHECKING

from controlplane.addresses import Span, is_ipv6, length_of, span_of
from controlplane.events import ClusterJoined, ClusterLeft
from controlplane.model import CLUSTER_ID_MAX, Cluster
from controlplane.projections.change import Change
from controlplane.projections.nodes import remove_node, tunnel_fault
from datapath.codec import address_bytes
from kvstore.types import Record

if TYPE_CHECKING:
    from controlplane.projections.state import State

OPERATOR = "operator"
ROUTING_MODES = ("native", "tunnel")
BLOCK_LENGTH_MAX = {False: 30, True: 126}
"""By "is IPv6": a block needs a network address, a router and at least one endpoint."""


def cluster_joined(state: "State", record: Record, event: ClusterJoined, changes: list[Change]) -> str:
    if record.writer != OPERATOR:
        return f"only {OPERATOR} may write it"
    new = Cluster(
        record.cluster, event.cluster_id, event.pod_cidrs, event.block_prefixes, event.service_cidrs,
        event.routing_mode, event.tunnel_protocol, event.tunnel_port,
    )  # fmt: skip
    fault = cluster_fault(state, new)
    if fault:
        return fault
    old = state.clusters.get(new.name)
    if old != new:
        state.clusters[new.name] = new
        state.pod_spans[new.name] = tuple(_spans(new.pod_cidrs))
        changes.append(Change("cluster", new.name, old, new))
    return ""


def cluster_fault(state: "State", new: Cluster) -> str:
    """Why the mesh cannot take a cluster of this form; "" if it can."""
    if not 1 <= new.cluster_id <= CLUSTER_ID_MAX:
        return f"cluster_id {new.cluster_id}: right is 1 to {CLUSTER_ID_MAX}"
    for prefix in (*new.pod_cidrs, *new.service_cidrs):
        if span_of(prefix) is None:
            return f"prefix {prefix!r}: right is for example 10.1.0.0/16, without bits beyond the length"
    fault = _block_fault(new) or _routing_fault(new)
    if fault:
        return fault
    spans = [*_spans(new.pod_cidrs), *_spans(new.service_cidrs)]
    for number, span in enumerate(spans):
        if any(span.meets(other) for other in spans[:number]):
            return f"the prefixes {', '.join((*new.pod_cidrs, *new.service_cidrs))} overlap"
    return _others_fault(state, new) or _nodes_fault(state, new)


def _routing_fault(new: Cluster) -> str:
    if new.routing_mode not in ROUTING_MODES:
        return f"routing_mode {new.routing_mode!r}: right is {' or '.join(ROUTING_MODES)}"
    return tunnel_fault(new.tunnel_protocol, new.tunnel_port)


def _nodes_fault(state: "State", new: Cluster) -> str:
    pods = _spans(new.pod_cidrs)
    for key in sorted(state.nodes):
        for address in state.nodes[key].addresses:
            packed = address_bytes(address)
            if any(span.first <= packed <= span.last for span in pods):
                return f"pod_cidrs {', '.join(new.pod_cidrs)} hold {address}, which is node {key.cluster}/{key.node}'s"
    return ""


def _block_fault(new: Cluster) -> str:
    for cidrs in (new.pod_cidrs, new.service_cidrs):
        if len(cidrs) != len({is_ipv6(prefix) for prefix in cidrs}):
            return f"{', '.join(cidrs)}: right is at most one prefix of each family"
    if len(new.block_prefixes) != len(new.pod_cidrs):
        return f"{len(new.block_prefixes)} block_prefixes for {len(new.pod_cidrs)} pod_cidrs; right is one for each"
    for prefix, length in zip(new.pod_cidrs, new.block_prefixes, strict=True):
        shortest, longest = length_of(prefix), BLOCK_LENGTH_MAX[is_ipv6(prefix)]
        if not shortest <= length <= longest:
            return f"block prefix {length} in {prefix}: right is {shortest} to {longest}"
    return ""


def _others_fault(state: "State", new: Cluster) -> str:
    for name in sorted(state.clusters):
        other = state.clusters[name]
        if name == new.name:
            if other.cluster_id != new.cluster_id:
                return f"cluster_id {new.cluster_id}: {name} has joined as {other.cluster_id}, which stays"
            blocks_stand = any(node.blocks for node in state.nodes.values() if node.cluster == name)
            same = (other.pod_cidrs, other.block_prefixes) == (new.pod_cidrs, new.block_prefixes)
            if blocks_stand and not same:
                return f"pod_cidrs {', '.join(new.pod_cidrs)}: nodes have blocks of {', '.join(other.pod_cidrs)}"
            continue
        if other.cluster_id == new.cluster_id:
            return f"cluster_id {new.cluster_id} is {name}'s; choose another"
        for prefix, span in zip(new.pod_cidrs, _spans(new.pod_cidrs), strict=True):
            if any(span.meets(taken) for taken in state.pod_spans[name]):
                return f"pod_cidrs {prefix} overlaps {name}'s {', '.join(other.pod_cidrs)}; a mesh needs distinct ones"
    return ""


def _spans(prefixes: tuple[str, ...]) -> list[Span]:
    return [span for span in map(span_of, prefixes) if span is not None]


def cluster_left(state: "State", record: Record, event: ClusterLeft, changes: list[Change]) -> str:
    if record.writer != OPERATOR:
        return f"only {OPERATOR} may write it"
    name = record.cluster
    old = state.clusters.pop(name, None)
    state.pod_spans.pop(name, None)
    for key in sorted(key for key in state.nodes if key.cluster == name):
        remove_node(state, record, key, changes)
    _forget_identities(state, name, changes)
    state.forget_objects(name, changes)
    if old is not None:
        changes.append(Change("cluster", name, old, None))
    return ""


def _forget_identities(state: "State", cluster: str, changes: list[Change]) -> None:
    for number in sorted(n for n, identity in state.identities.items() if identity.cluster == cluster):
        identity = state.identities.pop(number)
        del state.identity_numbers[cluster, identity.labels]
        state.identity_users.pop(number, None)
        state.identity_unused_since.pop(number, None)
        changes.append(Change("identity", number, identity, None))
    state.last_identity.pop(cluster, None)
