"""Every table that a node's kernel is made to hold, and the rows in it. A table is one BPF map or one kind of kernel
object.

Belongs here: the row types and the list of tables. Does not belong here: bytes (codec.py), order of writing (plan.py).
Row fields carry the names of bpf/abi.h to the letter; `address` fields are 16 bytes, IPv4 as ::ffff:a.b.c.d.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

IPV4_PREFIX = bytes(10) + b"\xff\xff"
"""First 12 of the 16 bytes of an IPv4 address in its 128-bit form (RFC 4291, section 2.5.5.2)."""

NO_ADDRESS = bytes(16)


class EndpointKey(NamedTuple):
    address: bytes


class EndpointRow(NamedTuple):
    """Where a local address lives. With flag ENDPOINT_HOST it is the node's own, and ifindex is 0."""

    ifindex: int
    identity: int
    endpoint_id: int
    flags: int
    mac: bytes
    host_mac: bytes


class DeviceKey(NamedTuple):
    ifindex: int


class DeviceRow(NamedTuple):
    """Whose device it is; the only source addresses that may come from it."""

    ipv4: bytes
    ipv6: bytes
    identity: int
    endpoint_id: int
    mac: bytes
    flags: int = 0


class IpcacheKey(NamedTuple):
    prefix_length: int
    address: bytes


class IpcacheRow(NamedTuple):
    node: bytes
    identity: int
    flags: int


class FacetKey(NamedTuple):
    address: bytes
    identity: int


class FacetRow(NamedTuple):
    """The number by which policies know this address of the identity."""

    facet: int


class PolicySubjectKey(NamedTuple):
    """An identity, or a facet of one."""

    identity: int


class PolicySubjectRow(NamedTuple):
    ingress_enforced: int
    egress_enforced: int
    ingress_shapes: int
    egress_shapes: int
    flags: int = 0


class PolicyKey(NamedTuple):
    subject_identity: int
    remote_identity: int
    port: int
    port_prefix: int
    protocol: int
    direction: int


class PolicyRow(NamedTuple):
    verdict: int


class ServiceKey(NamedTuple):
    """`scope`: who asks, a service_scope of the ABI."""

    address: bytes
    port: int
    protocol: int
    scope: int = 0


class ServiceRow(NamedTuple):
    backend_set: int
    count: int  # type: ignore[assignment]  # the ABI's name; it hides tuple.count, which nobody needs
    flags: int
    affinity_s: int = 0
    maglev_slots: int = 0
    source_range_set: int = 0


class BackendKey(NamedTuple):
    backend_set: int
    slot: int


class BackendRow(NamedTuple):
    address: bytes
    port: int
    flags: int


class MaglevKey(NamedTuple):
    backend_set: int
    chunk: int


class MaglevRow(NamedTuple):
    """MAGLEV_CHUNK numbers of 16 bits, in the order of the host's bytes."""

    slots: bytes


class SourceRangeKey(NamedTuple):
    """`prefix_length` covers the set's 64 bits and the address's 128-bit form."""

    prefix_length: int
    source_range_set: int
    address: bytes


class SourceRangeRow(NamedTuple):
    contained: int


class AffinityBackendKey(NamedTuple):
    backend_set: int
    address: bytes
    port: int


class AffinityBackendRow(NamedTuple):
    slot: int


class NodeStateKey(NamedTuple):
    index: int  # type: ignore[assignment]  # the ABI's name; it hides tuple.index, which nobody needs


class NodeStateRow(NamedTuple):
    policy_epoch: int


class TunnelKey(NamedTuple):
    index: int  # type: ignore[assignment]  # the ABI's name; it hides tuple.index, which nobody needs


class TunnelRow(NamedTuple):
    """The node's device that wraps packets for other nodes."""

    ifindex: int


XDP_HOOKS = ("xdp", "xdp-generic", "xdp-best-effort")
"""In the device's driver; before the host stack; in the driver where it can, else before the stack."""


class AttachmentKey(NamedTuple):
    """A hook of a device: "ingress" or "egress", or one of XDP_HOOKS, of which it has one at a time: a row that is put
    ends those at the others."""

    ifindex: int
    hook: str


class AttachmentRow(NamedTuple):
    """The program that runs there, by its name in the object file."""

    program: str


class SocketHookKey(NamedTuple):
    """A hook of the calls of sockets: "connect4", "sendmsg6" and so on."""

    hook: str


class SocketHookRow(NamedTuple):
    """The program that runs there, by its name in the object file, for the sockets made in a cgroup or below it; the
    cgroup by its path."""

    program: str
    cgroup: str


class RouteKey(NamedTuple):
    """A route of the main table; `prefix_length` of the 128-bit form."""

    prefix_length: int
    address: bytes


class RouteRow(NamedTuple):
    """Through which device, and by which next hop (NO_ADDRESS: on link)."""

    ifindex: int
    gateway: bytes


class ShaperKey(NamedTuple):
    """An endpoint's class at a device: the node's for what it sends to others, its own for what it receives."""

    ifindex: int
    endpoint_id: int


class ShaperRow(NamedTuple):
    """How much passes."""

    rate_bytes_s: int


class NeighbourKey(NamedTuple):
    ifindex: int
    address: bytes


class NeighbourRow(NamedTuple):
    """A permanent neighbour entry."""

    mac: bytes


class Table(NamedTuple):
    """`map` is the BPF map's name, or "" for a kind that is reached by netlink or links."""

    name: str
    key: type[Any]
    row: type[Any]
    map: str


TABLES: Mapping[str, Table] = {
    table.name: table
    for table in (
        Table("endpoints", EndpointKey, EndpointRow, "endpoints"),
        Table("devices", DeviceKey, DeviceRow, "devices"),
        Table("ipcache", IpcacheKey, IpcacheRow, "ipcache"),
        Table("facets", FacetKey, FacetRow, "facets"),
        Table("policy_subjects", PolicySubjectKey, PolicySubjectRow, "policy_subjects"),
        Table("policy", PolicyKey, PolicyRow, "policy"),
        Table("services", ServiceKey, ServiceRow, "services"),
        Table("backends", BackendKey, BackendRow, "backends"),
        Table("maglev", MaglevKey, MaglevRow, "maglev"),
        Table("source_ranges", SourceRangeKey, SourceRangeRow, "source_ranges"),
        Table("affinity_backends", AffinityBackendKey, AffinityBackendRow, "affinity_backends"),
        Table("node_state", NodeStateKey, NodeStateRow, "node_state"),
        Table("tunnel", TunnelKey, TunnelRow, "tunnel"),
        Table("attachments", AttachmentKey, AttachmentRow, ""),
        Table("socket_hooks", SocketHookKey, SocketHookRow, ""),
        Table("routes", RouteKey, RouteRow, ""),
        Table("shapers", ShaperKey, ShaperRow, ""),
        Table("neighbours", NeighbourKey, NeighbourRow, ""),
    )
}
"""Derived from the log, so compared, digested and verified."""

RUNTIME_MAPS = ("conntrack", "nat", "fragments", "affinity", "socket_flows", "metrics", "notifications")
"""Written by the programs themselves: not derived from the log and in no digest."""


class Desired(NamedTuple):
    """What the kernel should hold at `generation`.

    Complete: `tables` holds every row of every table, and what is not in it goes. Otherwise `tables` holds only
    what changed since the generation before; a row that is None goes.
    """

    generation: int
    complete: bool
    tables: Mapping[str, Mapping[Any, Any]]
