"""Nodes and their address blocks. Belongs here: joining, blocks, leaving with all endpoints. Pure."""

from typing import TYPE_CHECKING

import msgspec

from controlplane.addresses import Span, is_mac, length_of, packed_address, router_address, span_of
from controlplane.events import AddressBlockAssigned, NodeJoined, NodeLeft
from controlplane.labels import label_fault
from controlplane.model import Device, Node, NodeKey, Tunnel
from controlplane.projections.change import Change
from controlplane.projections.endpoints import holder_text, remove_endpoint
from kvstore.types import Record

if TYPE_CHECKING:
    from controlplane.projections.state import State

OPERATOR = "operator"
IFINDEX_MAX = 2**31 - 1
DEVICE_NAME_MAX = 15
TUNNEL_PROTOCOLS = ("vxlan", "geneve")
PORT_MAX = 65535
CGROUP_MAX = 4095
ACCELERATIONS = ("", "native", "generic", "best-effort")
"""How an underlay device balances by itself; "" where it does not."""


def device_fault(device: Device) -> str:
    """What is wrong with a device; "" if nothing is."""
    if not 1 <= device.ifindex <= IFINDEX_MAX:
        return f"ifindex {device.ifindex} of {device.name!r}: right is 1 to {IFINDEX_MAX}"
    if not 1 <= len(device.name) <= DEVICE_NAME_MAX:
        return f"device {device.name!r}: right is a name of 1 to {DEVICE_NAME_MAX} characters"
    for mac in (device.mac, device.host_mac):
        if mac and not is_mac(mac):
            return f"mac {mac!r} of {device.name!r}: right is for example 02:00:00:00:00:01"
    return ""


def tunnel_fault(protocol: str, port: int) -> str:
    """What is wrong with a way to wrap packets; "" if nothing is."""
    if protocol not in TUNNEL_PROTOCOLS:
        return f"tunnel_protocol {protocol!r}: right is {' or '.join(TUNNEL_PROTOCOLS)}"
    return "" if 1 <= port <= PORT_MAX else f"tunnel_port {port}: right is 1 to {PORT_MAX}"


def node_joined(state: "State", record: Record, event: NodeJoined, changes: list[Change]) -> str:
    if record.writer != f"node.{event.node}":
        return f"only node.{event.node} may write it"
    key = NodeKey(record.cluster, event.node)
    fault = node_fault(state, key, event.addresses, event.device, event.tunnel)
    if fault:
        return fault
    old = state.nodes.get(key)
    fault = label_fault(event.labels) or cgroup_fault(event.cgroup) or cgroup_fault(event.joining_cgroup)
    fault = fault or acceleration_fault(event.acceleration)
    if fault:
        return fault
    blocks = old.blocks if old else ()
    new = Node(
        record.cluster,
        event.node,
        event.addresses,
        event.device,
        event.labels,
        blocks,
        tunnel=event.tunnel,
        cgroup=event.cgroup,
        acceleration=event.acceleration,
        joining_cgroup=event.joining_cgroup,
    )
    if old == new:
        return ""
    for address in old.addresses if old else ():
        del state.addresses[address]
    for address in new.addresses:
        state.addresses[address] = key
    state.nodes[key] = new
    if old is None:
        state.node_endpoints[key] = {}
        state.last_created[key] = ("", "")
    changes.append(Change("node", key, old, new))
    return ""


def node_fault(
    state: "State", key: NodeKey, addresses: tuple[str, ...], device: Device, tunnel: Tunnel | None = None
) -> str:
    """Why a node cannot have these addresses and these devices; "" if it can."""
    if not addresses:
        return "addresses: a node needs at least one"
    for address in addresses:
        packed = packed_address(address)
        if packed is None:
            return f"address {address!r}: right is for example 192.168.0.1 or fd00::1"
        if any(span.first <= packed <= span.last for spans in state.pod_spans.values() for span in spans):
            return f"address {address} is in a cluster's pod_cidrs; a node's own address is outside of them"
        holder = state.addresses.get(address)
        if holder is not None and holder != key:
            return f"address {address} is that of {holder_text(holder)}"
    if len(dict.fromkeys(addresses)) != len(addresses):
        return f"addresses {', '.join(addresses)}: each stands once"
    if tunnel is None:
        return device_fault(device)
    if tunnel.device.ifindex == device.ifindex:
        return f"ifindex {device.ifindex} is that of {device.name!r} and of the tunnel {tunnel.device.name!r}"
    return device_fault(device) or device_fault(tunnel.device) or tunnel_fault(tunnel.protocol, tunnel.port)


def cgroup_fault(cgroup: str) -> str:
    """What is wrong with the path of a cgroup; "" if nothing is."""
    if cgroup and not (cgroup.startswith("/") and len(cgroup) <= CGROUP_MAX):
        return f"cgroup {cgroup!r}: right is an absolute path of up to {CGROUP_MAX} characters"
    return ""


def acceleration_fault(acceleration: str) -> str:
    """What is wrong with the name of a way to balance at the device; "" if nothing is."""
    if acceleration not in ACCELERATIONS:
        return f"acceleration {acceleration!r}: right is one of {', '.join(map(repr, ACCELERATIONS))}"
    return ""


def address_block_assigned(state: "State", record: Record, event: AddressBlockAssigned, changes: list[Change]) -> str:
    if record.writer != OPERATOR:
        return f"only {OPERATOR} may write it"
    key = NodeKey(record.cluster, event.node)
    old = state.nodes.get(key)
    if old is None:
        return f"node {event.node} has not joined"
    if old.blocks == event.blocks:
        return ""
    if old.blocks:
        return f"node {event.node} has the blocks {', '.join(old.blocks)}, which stay until it leaves"
    fault = blocks_fault(state, record.cluster, event.blocks)
    if fault:
        return fault
    new = msgspec.structs.replace(old, blocks=event.blocks)
    state.nodes[key] = new
    hold_blocks(state, key, new)
    changes.append(Change("node", key, old, new))
    return ""


def hold_blocks(state: "State", key: NodeKey, node: Node) -> None:
    """Index the blocks of a node and its own addresses in them."""
    if not node.blocks:
        return
    state.block_spans[key] = tuple(span for span in map(span_of, node.blocks) if span is not None)
    for block in node.blocks:
        state.blocks[block] = key
        state.addresses[router_address(block)] = key


def blocks_fault(state: "State", cluster_name: str, blocks: tuple[str, ...]) -> str:
    """A block lies in the cluster's prefix and has the length of all its blocks, so two that differ do not overlap."""
    cluster = state.clusters.get(cluster_name)
    if cluster is None:
        return f"cluster {cluster_name} has not joined"
    if len(blocks) != len(cluster.pod_cidrs):
        return f"{len(blocks)} blocks; right is one for each of {', '.join(cluster.pod_cidrs)}"
    for block, pods, length in zip(blocks, state.pod_spans[cluster_name], cluster.block_prefixes, strict=True):
        span: Span | None = span_of(block)
        if span is None or not pods.holds(span) or length_of(block) != length:
            return f"block {block!r}: right is a /{length} of {', '.join(cluster.pod_cidrs)}"
        if block in state.blocks:
            return f"block {block} is that of {holder_text(state.blocks[block])}"
        router = router_address(block)
        if router in state.addresses:
            return f"block {block}: its router address {router} is that of {holder_text(state.addresses[router])}"
    return ""


def node_left(state: "State", record: Record, event: NodeLeft, changes: list[Change]) -> str:
    if record.writer not in (f"node.{event.node}", OPERATOR):
        return f"only node.{event.node} or {OPERATOR} may write it"
    key = NodeKey(record.cluster, event.node)
    if key in state.nodes:
        remove_node(state, record, key, changes)
    return ""


def remove_node(state: "State", record: Record, key: NodeKey, changes: list[Change]) -> None:
    """A node with its endpoints, addresses and blocks."""
    for endpoint_key in sorted(state.node_endpoints[key]):
        remove_endpoint(state, record, endpoint_key, changes)
    node = state.nodes.pop(key)
    del state.node_endpoints[key]
    del state.last_created[key]
    state.block_spans.pop(key, None)
    state.block_heads.clear()
    for block in node.blocks:
        del state.blocks[block]
        del state.addresses[router_address(block)]
    for address in node.addresses:
        del state.addresses[address]
    changes.append(Change("node", key, node, None))
