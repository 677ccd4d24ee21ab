"""How the answers of backends on other nodes find their clients, in words. Pure.

Belongs here: what becomes of setting bpf-lb-mode where packets between nodes are wrapped. Does not belong here: rows
(frontends.py). An option for direct return is not put into a wrapped packet (bpf/lib/nodeport.h), so such flows are
answered through the node that was asked, as in mode snat.
"""

from controlplane.balancing import SNAT
from controlplane.desired.policy_inputs import settings_of
from controlplane.model import NodeKey
from controlplane.projections.state import State


def balancing_text(state: State, where: NodeKey) -> str:
    """Of one node: "snat, random"; "dsr, maglev; snat through the tunnel"."""
    balancing = settings_of(state, where.cluster).balancing
    own = state.nodes.get(where)
    wrapped = "; snat through the tunnel" if own is not None and own.tunnel and balancing.mode != SNAT else ""
    return f"{balancing.mode}, {balancing.algorithm}{wrapped}"


def settings_notes(state: State, cluster: str) -> list[str]:
    """What the cluster's settings do not do as they are."""
    mode = settings_of(state, cluster).balancing.mode
    nodes = [node for key, node in state.nodes.items() if key.cluster == cluster]
    wrapping = sum(node.tunnel is not None for node in nodes)
    if mode == SNAT or not wrapping:
        return []
    which = f"{wrapping} of {len(nodes)} nodes have a tunnel"
    return [f"bpf-lb-mode {mode}: {which}, and backends reached through it are asked with the node's address (snat)"]
