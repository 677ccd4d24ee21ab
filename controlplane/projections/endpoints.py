"""Endpoints: what is attached where, under which address and identity. Pure.

Belongs here: their events and every index over endpoints. Does not belong here: choosing (commands/endpoint.py).
"""

import re
from collections.abc import Sequence
from itertools import repeat
from sys import intern
from typing import TYPE_CHECKING, Any

from msgspec.structs import astuple, replace

from controlplane.addresses import packed_address
from controlplane.events import EndpointConfigured, EndpointCreated, EndpointDeleted, EndpointRelabelled
from controlplane.model import Device, Endpoint, EndpointKey, Identity, Labels, NodeKey
from controlplane.projections.change import Change
from controlplane.projections.identities import drop_identity, use_identity
from kvstore.types import Record

if TYPE_CHECKING:
    from controlplane.projections.state import State

OPERATOR = "operator"
ENDPOINT_ID_MAX = 65535
IFINDEX_MAX = 2**31 - 1
MAC_CHARS = 17
MACS = re.compile(r"(?:[0-9a-f]{2}(?::[0-9a-f]{2}){5}){2}")
"""The endpoint's and the host side's, one behind the other."""
HEX_DIGITS = b"0123456789abcdef"
OCTETS = frozenset(map(str, range(256)))
"""What may follow the last dot of an IPv4 address."""


def endpoint_created(state: "State", record: Record, event: EndpointCreated, changes: list[Change]) -> str:
    cluster, node = record.cluster, event.node
    if record.writer != "node." + node:
        return f"only node.{node} may write it"
    key = EndpointKey(cluster, node, event.endpoint_id)
    new = Endpoint(
        cluster, node, event.endpoint_id, event.namespace, event.workload, event.labels, event.identity, event.ipv4,
        event.ipv6, event.device, event.container_id, event.interface, event.netns,
    )  # fmt: skip
    old = state.endpoints.get(key)
    if old is not None:
        is_same = replace(old, is_audited=False) == new
        return "" if is_same else f"endpoint {event.endpoint_id} of {node} exists already"
    held = state.node_endpoints.get((cluster, node))  # type: ignore[call-overload]
    if held is None:
        return f"node {node} has not joined"
    fault = attachment_fault(state, new) or _identity_fault(state, cluster, new.identity, new.labels)
    if fault:
        return fault
    held[key] = None
    state.last_created[cluster, node] = (new.ipv4, new.ipv6)  # type: ignore[index]
    hold_endpoint(state, key, new)
    changes.append(Change("endpoint", key, None, new))
    return ""


def endpoints_created(
    state: "State", record: Record, columns: Sequence[Sequence[Any]], changes: list[Change]
) -> bool | None:
    """What `endpoint_created` does for each of several, all at once; None, and nothing has changed, where one by one
    has to tell what comes of them. A node that joins with its endpoints, and every replay, is of such runs."""
    nodes, ids, namespaces, names, labels, numbers, ipv4s, ipv6s, devices, containers, interfaces, netns = columns
    cluster, node = record.cluster, nodes[0]
    held = state.node_endpoints.get((cluster, node))  # type: ignore[call-overload]
    if held is None or record.writer != "node." + node:
        return None
    found = _identities(state, cluster, numbers, labels)
    if nodes.count(node) != len(nodes) or not found:
        return None
    # What many have in common stands in memory once: replay is as fast as memory is.
    here, there = repeat(cluster), repeat(node)
    namespaces, interfaces = tuple(map(intern, namespaces)), tuple(map(intern, interfaces))
    labels = tuple([identity.labels for identity in found])
    keys = list(map(tuple.__new__, repeat(EndpointKey), zip(here, there, ids)))  # noqa: B905 - `here` has no end
    attached = dict(zip(zip(here, there, containers, interfaces), keys))  # noqa: B905 - nor here
    taken = dict(zip(ipv4s, keys, strict=True)) | dict(zip(ipv6s, keys, strict=True))
    taken.pop("", None)
    if not (
        len(attached) == len(set(ids)) == len(keys)
        and len(taken) == len(ipv4s) + len(ipv6s) - ipv4s.count("") - ipv6s.count("")
        and held.keys().isdisjoint(keys)
        and state.attachments.keys().isdisjoint(attached)
        and state.addresses.keys().isdisjoint(taken)
        and min(ids) >= 1
        and max(ids) <= ENDPOINT_ID_MAX
        and _are_devices(devices)
    ):
        return None
    facts = (ids, namespaces, names, labels, numbers, ipv4s, ipv6s, devices, containers, interfaces, netns)
    new = list(map(Endpoint, here, there, *facts))
    if not _have_own_addresses(state, (cluster, node), ipv4s, ipv6s, new):
        return None
    held.update(dict.fromkeys(keys))
    state.last_created[cluster, node] = (ipv4s[-1], ipv6s[-1])  # type: ignore[index]
    state.endpoints.update(zip(keys, new, strict=True))
    state.addresses.update(taken)
    state.attachments.update(attached)
    workloads = dict(zip(zip(here, namespaces, names), zip(keys)))  # noqa: B905 - nor here
    if len(workloads) == len(keys) and state.workload_endpoints.keys().isdisjoint(workloads):
        state.workload_endpoints.update(workloads)
    else:
        for workload, key in zip(zip(here, namespaces, names), keys):  # noqa: B905 - nor here
            _hold_workload(state, workload, key)
    for number in numbers:
        use_identity(state, number)
    changes.extend(map(Change, repeat("endpoint"), keys, repeat(None), new))  # type: ignore[arg-type]
    return True


def _identities(
    state: "State", cluster: str, numbers: Sequence[int], labels: Sequence[Labels]
) -> Sequence[Identity]:
    """The identities of these numbers, if all are given out by the cluster for these very labels; else none."""
    known = state.identities
    try:
        found = [known[number] for number in numbers]
    except KeyError:
        return ()
    fits = [each.labels for each in found] == list(labels) and {each.cluster for each in found} == {cluster}
    return found if fits else ()


def _are_devices(devices: Sequence[Device]) -> bool:
    _, indexes, macs, host_macs = zip(*map(astuple, devices), strict=True)
    count = 2 * len(devices)
    joined = "".join(macs + host_macs)
    return (
        min(indexes) >= 1
        and max(indexes) <= IFINDEX_MAX
        and set(map(len, macs + host_macs)) == {MAC_CHARS}
        and all(joined[place::MAC_CHARS] == ":" * count for place in range(2, MAC_CHARS, 3))
        and joined.encode().translate(None, HEX_DIGITS) == b":" * (5 * count)
    )


def _have_own_addresses(
    state: "State", node: tuple[str, str], ipv4s: Sequence[str], ipv6s: Sequence[str], new: Sequence[Endpoint]
) -> bool:
    if not any(ipv6s):
        cut = [address.rpartition(".") for address in ipv4s]
        heads = state.block_heads
        for head, place in {head: place for place, (head, _, _) in enumerate(cut)}.items():
            if heads.get(head) != node and _addresses_fault(state, new[place]):
                return False
        if all(heads.get(head) == node for head in {head for head, _, _ in cut}) and OCTETS.issuperset(
            [tail for _, _, tail in cut]
        ):
            return True
    return not any(_addresses_fault(state, each) for each in new)


def hold_endpoint(state: "State", key: EndpointKey, new: Endpoint) -> None:
    """Put it into every index but the node's."""
    state.endpoints[key] = new
    if new.ipv4:
        state.addresses[new.ipv4] = key
    if new.ipv6:
        state.addresses[new.ipv6] = key
    state.attachments[new.cluster, new.node, new.container_id, new.interface] = key
    _hold_workload(state, (new.cluster, new.namespace, new.workload), key)
    use_identity(state, new.identity)


def _hold_workload(state: "State", workload: tuple[str, str, str], key: EndpointKey) -> None:
    others = state.workload_endpoints.get(workload)
    state.workload_endpoints[workload] = (key,) if others is None else tuple(sorted((*others, key)))


def attachment_fault(state: "State", new: Endpoint) -> str:
    """Why a node cannot have this attachment with this number, device and these addresses; "" if it can."""
    return _endpoint_fault(state, new) or _addresses_fault(state, new)


def _endpoint_fault(state: "State", new: Endpoint) -> str:
    if not 1 <= new.endpoint_id <= ENDPOINT_ID_MAX:
        return f"endpoint_id {new.endpoint_id}: right is 1 to {ENDPOINT_ID_MAX}"
    if (new.cluster, new.node, new.container_id, new.interface) in state.attachments:
        return f"container {new.container_id!r}, interface {new.interface!r} has an endpoint already"
    device = new.device
    macs = device.mac + device.host_mac
    if not 1 <= device.ifindex <= IFINDEX_MAX or len(device.mac) != MAC_CHARS or MACS.fullmatch(macs) is None:
        return f"device {device.name!r}: right is an ifindex above 0 and MACs like 02:00:00:00:00:01"
    return ""


def holder_text(holder: NodeKey | EndpointKey) -> str:
    """Who has an address, for messages."""
    if isinstance(holder, NodeKey):
        return f"node {holder.cluster}/{holder.node}"
    return f"endpoint {holder.endpoint_id} of node {holder.cluster}/{holder.node}"


def _addresses_fault(state: "State", new: Endpoint) -> str:
    ipv4, ipv6 = new.ipv4, new.ipv6
    if not (ipv4 or ipv6):
        return "an endpoint needs an address"
    if ipv4 in state.addresses or ipv6 in state.addresses:
        taken = ipv4 if ipv4 in state.addresses else ipv6
        return f"address {taken} is that of {holder_text(state.addresses[taken])}"
    if ipv4:
        head, _, tail = ipv4.rpartition(".")
        if tail not in OCTETS or state.block_heads.get(head) != (new.cluster, new.node):
            fault = _address_fault(state, new, ipv4, False)
            if fault:
                return fault
    return _address_fault(state, new, ipv6, True) if ipv6 else ""


def _address_fault(state: "State", new: Endpoint, address: str, is_ipv6: bool) -> str:
    packed = packed_address(address)
    if packed is None or (":" in address) != is_ipv6:
        return f"address {address!r}: right is for example 10.1.0.5 as ipv4, fd00:1::5 as ipv6"
    key = NodeKey(new.cluster, new.node)
    for span in state.block_spans.get(key, ()):
        if span.first <= packed <= span.last:
            if not is_ipv6 and span.first <= packed[:15] + b"\x00" and packed[:15] + b"\xff" <= span.last:
                state.block_heads[address.rpartition(".")[0]] = key
            return ""
    return f"address {address} is in no block of node {new.node}"


def _identity_fault(state: "State", cluster: str, number: int, labels: Labels) -> str:
    """The number must be given out, by the endpoint's own cluster, for these very labels."""
    identity = state.identities.get(number)
    if identity is None:
        return f"identity {number} is not given out"
    if identity.cluster != cluster:
        return f"identity {number} is cluster {identity.cluster}'s"
    if identity.labels != labels:
        return f"identity {number} stands for other labels"
    return ""


def endpoint_relabelled(state: "State", record: Record, event: EndpointRelabelled, changes: list[Change]) -> str:
    if record.writer != "node." + event.node:
        return f"only node.{event.node} may write it"
    key = EndpointKey(record.cluster, event.node, event.endpoint_id)
    old = state.endpoints.get(key)
    if old is None:
        return f"endpoint {event.endpoint_id} of {event.node} does not exist"
    fault = _identity_fault(state, record.cluster, event.identity, event.labels)
    if fault:
        return fault
    if old.identity == event.identity:
        return ""
    new = replace(old, labels=event.labels, identity=event.identity)
    state.endpoints[key] = new
    drop_identity(state, record, old.identity)
    use_identity(state, new.identity)
    changes.append(Change("endpoint", key, old, new))
    return ""


def endpoint_configured(state: "State", record: Record, event: EndpointConfigured, changes: list[Change]) -> str:
    key = EndpointKey(record.cluster, event.node, event.endpoint_id)
    old = state.endpoints.get(key)
    if old is None:
        return f"endpoint {event.endpoint_id} of {event.node} does not exist"
    if old.is_audited != event.is_audited:
        new = state.endpoints[key] = replace(old, is_audited=event.is_audited)
        changes.append(Change("endpoint", key, old, new))
    return ""


def endpoint_deleted(state: "State", record: Record, event: EndpointDeleted, changes: list[Change]) -> str:
    if record.writer not in (f"node.{event.node}", OPERATOR):
        return f"only node.{event.node} or {OPERATOR} may write it"
    key = EndpointKey(record.cluster, event.node, event.endpoint_id)
    if key in state.endpoints:
        remove_endpoint(state, record, key, changes)
    return ""


def remove_endpoint(state: "State", record: Record, key: EndpointKey, changes: list[Change]) -> None:
    """Out of every index."""
    old = state.endpoints.pop(key)
    del state.node_endpoints[NodeKey(key.cluster, key.node)][key]
    del state.attachments[key.cluster, key.node, old.container_id, old.interface]
    for address in (old.ipv4, old.ipv6):
        if address:
            del state.addresses[address]
    workload = (key.cluster, old.namespace, old.workload)
    left = tuple(other for other in state.workload_endpoints[workload] if other != key)
    if left:
        state.workload_endpoints[workload] = left
    else:
        del state.workload_endpoints[workload]
    drop_identity(state, record, old.identity)
    changes.append(Change("endpoint", key, old, None))
