"""Rows of endpoints whose bandwidth is limited: how fast they may send out of the node, and how fast they receive.

Belongs here: the table shapers, and the flags by which programs send packets through them. Does not belong here: what a
limit looks like in a manifest. Pure.
"""

from controlplane.model import Endpoint, Node, Workload
from controlplane.projections.state import State
from controlplane.projections.workloads import workload_key
from datapath import tables as t
from datapath.abi.types import DEVICE_SHAPED_EGRESS, DEVICE_SHAPED_INGRESS

ShaperRows = dict[t.ShaperKey, t.ShaperRow | None]
BITS = 8


def workload_of(state: State, endpoint: Endpoint) -> Workload | None:
    """What the platform declares of it."""
    return state.workloads.get(workload_key(endpoint.cluster, endpoint.namespace, endpoint.workload))


def shaped(state: State, endpoint: Endpoint) -> int:
    """Which of its directions are limited, as bits of the ABI's device_flag."""
    workload = workload_of(state, endpoint)
    if workload is None:
        return 0
    return DEVICE_SHAPED_EGRESS * bool(workload.egress_bits_s) | DEVICE_SHAPED_INGRESS * bool(workload.ingress_bits_s)


def shaper_rows(state: State, own: Node, endpoint: Endpoint) -> ShaperRows:
    """At the node's own device what the endpoint sends to others, at the endpoint's what it receives; None for what has
    no limit."""
    workload = workload_of(state, endpoint)
    limits = (workload.egress_bits_s, workload.ingress_bits_s) if workload else (0, 0)
    return {
        key: t.ShaperRow(max(1, bits // BITS)) if bits else None
        for key, bits in zip(shaper_keys(own, endpoint), limits, strict=True)
    }


def shaper_keys(own: Node, endpoint: Endpoint) -> tuple[t.ShaperKey, t.ShaperKey]:
    """Where rows of an endpoint can be."""
    return (
        t.ShaperKey(own.device.ifindex, endpoint.endpoint_id),
        t.ShaperKey(endpoint.device.ifindex, endpoint.endpoint_id),
    )
