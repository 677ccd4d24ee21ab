"""CiliumLoadBalancerIPPool manifests as commands, and the annotations by which services ask pools. Pure.

Belongs here: their fields. Does not belong here: who gets which address (commands/balancer_pools.py).
"""

from collections.abc import Mapping
from ipaddress import ip_address, ip_network, summarize_address_range
from typing import Any

from controlplane.addresses import family_of, is_address, is_within, packed_address
from controlplane.commands.balancer_pools import ASKED_ANNOTATIONS, ApplyBalancerPool
from controlplane.fields import Reading
from controlplane.kubernetes_slices import Named, read_address

API_VERSIONS = ("cilium.io/v2", "cilium.io/v2alpha1")
TOP_FIELDS = ("apiVersion", "kind", "metadata", "spec", "status")
SPEC_FIELDS = ("blocks", "cidrs", "serviceSelector", "disabled", "allowFirstLastIPs")
"""`cidrs` is the older name of `blocks`."""
BLOCK_FIELDS = ("cidr", "start", "stop")
EXPRESSIONS = {"matchExpressions": "is not supported; write matchLabels"}
ANNOTATIONS = "lbipam.cilium.io/"
PAIRED_MAX = 1024


def read_pool(reading: Reading, metadata: Named, document: Mapping[str, Any]) -> ApplyBalancerPool:
    spec = reading.mapping(reading.mapping(document, "", TOP_FIELDS).get("spec"), "spec", SPEC_FIELDS)
    edges = reading.one_of(spec.get("allowFirstLastIPs"), "spec.allowFirstLastIPs", ("Yes", "No"), "Yes") != "No"
    blocks: list[str] = []
    for field in ("blocks", "cidrs"):
        for number, item in enumerate(reading.sequence(spec.get(field), f"spec.{field}")):
            path = f"spec.{field}[{number}]"
            for block in _blocks(reading, item, path, edges):
                shared = next((each for each in blocks if is_within(block, each) or is_within(each, block)), "")
                if shared:
                    reading.refuse(path, item, f"shares addresses with {shared}")
                blocks.append(block)
    if not spec.get("blocks") and not spec.get("cidrs"):
        reading.refuse("spec.blocks", spec.get("blocks"), "needs at least one block")
    selector = reading.mapping(spec.get("serviceSelector"), "spec.serviceSelector", ("matchLabels",), EXPRESSIONS)
    return ApplyBalancerPool(
        metadata.name,
        tuple(blocks),
        reading.labels(selector.get("matchLabels"), "spec.serviceSelector.matchLabels"),
        reading.flag(spec.get("disabled"), "spec.disabled", False),
        edges,
    )


def _blocks(reading: Reading, item: Any, path: str, edges: bool) -> list[str]:
    """The prefixes of a block; [] after a refusal."""
    fields = reading.mapping(item, path, BLOCK_FIELDS)
    if "cidr" in fields:
        if "start" in fields or "stop" in fields:
            reading.refuse(path, item, "has cidr, or start and stop, and not both")
        try:
            return [str(ip_network(str(fields["cidr"]), strict=False))]
        except ValueError:
            reading.refuse(f"{path}.cidr", fields["cidr"], "must be a prefix such as 192.0.2.0/24")
            return []
    first = read_address(reading, fields.get("start"), f"{path}.start")
    last = read_address(reading, fields.get("stop"), f"{path}.stop") if "stop" in fields else first
    if not first or not last:
        return []
    if family_of(first) != family_of(last) or packed_address(first) > packed_address(last):  # type: ignore[operator]
        reading.refuse(path, item, "must begin with the lower address, and be of one family")
        return []
    found = [ip_network(str(each)) for each in summarize_address_range(ip_address(first), ip_address(last))]
    if edges:
        return [str(each) for each in found]
    # What is written by its ends has no edges that could be the network's own: pairs have none.
    if sum(each.num_addresses for each in found) > PAIRED_MAX:
        reason = f"has at most {PAIRED_MAX} addresses beside allowFirstLastIPs No; write cidr"
        reading.refuse(path, item, reason)
        return []
    lengths = [max(each.prefixlen, each.max_prefixlen - 1) for each in found]
    return [str(pair) for each, length in zip(found, lengths, strict=True) for pair in each.subnets(new_prefix=length)]


def pool_annotation_fault(name: str, value: str) -> str | None:
    """What is wrong with an annotation of a service by which it asks pools; "" if nothing is, None of any other."""
    if name in ASKED_ANNOTATIONS:
        listed = [each.strip() for each in value.split(",") if each.strip()]
        return "" if listed and all(map(is_address, listed)) else "must be addresses such as 192.0.2.5,2001:db8::5"
    return "is not supported; remove it" if name.startswith(ANNOTATIONS) else None
