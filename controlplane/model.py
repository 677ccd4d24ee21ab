"""The nouns of the mesh, on one page. Values that projections hold and decisions read; no behaviour, no I/O.

Belongs here: what a node, an endpoint, a service is. Does not belong here: how it came to be (events.py), what the
kernel makes of it (desired/). Addresses and prefixes are text in canonical form ("10.1.0.5", "fd00:1::/64"),
labels are sorted tuples of "source:key=value". Values are out of the garbage collector's sight (gc=False): none can be
part of a cycle, and a mesh holds hundreds of thousands.
"""

from typing import NamedTuple, NewType

import msgspec

ClusterName = NewType("ClusterName", str)
NodeName = NewType("NodeName", str)
IdentityNumber = NewType("IdentityNumber", int)
EndpointId = NewType("EndpointId", int)
"""Unique per node, 1..65535."""

Labels = tuple[str, ...]
"""Sorted "source:key=value"; a label without value is "source:key"."""

RESERVED_IDENTITIES = {
    "host": 1,
    "world": 2,
    "unmanaged": 3,
    "health": 4,
    "init": 5,
    "remote-node": 6,
    "kube-apiserver": 7,
    "ingress": 8,
}
"""Numbers that Cilium's users know; each carries the label "reserved:<name>"."""

API_SERVER_SERVICE = ("default", "kubernetes")
"""Namespace and name of the service whose backends are a cluster's API servers."""

CLUSTER_ID_MAX = 255
IDENTITY_BITS = 16
"""An identity's number is cluster_id << 16 | n, n in 256..65535 (below are reserved)."""
IDENTITY_N_MIN = 256
IDENTITY_N_MAX = 65535


class NodeKey(NamedTuple):
    cluster: str
    node: str


class EndpointKey(NamedTuple):
    cluster: str
    node: str
    endpoint_id: int


class ObjectKey(NamedTuple):
    """A named thing of a cluster: a namespace has namespace "", a clusterwide policy too."""

    cluster: str
    kind: str
    namespace: str
    name: str


class Device(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A network device as its node saw it: facts of that node, recorded, never derived."""

    name: str
    ifindex: int
    mac: str
    host_mac: str = ""


class Tunnel(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A node's device that wraps packets for other nodes: "vxlan" or "geneve", and its UDP port."""

    protocol: str
    port: int
    device: Device


class Cluster(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """`pod_cidrs`: what nodes' blocks are cut from; `block_prefixes`: the prefix length of a block, per family.

    `routing_mode` "native": nodes route each other's endpoints; "tunnel": they wrap them, by `tunnel_protocol`.
    """

    name: str
    cluster_id: int
    pod_cidrs: tuple[str, ...]
    block_prefixes: tuple[int, ...]
    service_cidrs: tuple[str, ...]
    routing_mode: str = "native"
    tunnel_protocol: str = "vxlan"
    tunnel_port: int = 8472


class Node(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A cluster machine. `addresses` are its underlay addresses, `blocks` its pod CIDRs ("" family absent).

    `tunnel` is None where packets for it are not wrapped. `cgroup` is the path of that whose sockets are translated,
    "" for none. `acceleration`: how its underlay device balances by itself, "native", "generic" or "best-effort"; ""
    where it does not. `joining_cgroup`: that whose sockets are joined, "" for none.
    """

    cluster: str
    name: str
    addresses: tuple[str, ...]
    device: Device
    labels: Labels = ()
    blocks: tuple[str, ...] = ()
    session: str = ""
    tunnel: Tunnel | None = None
    cgroup: str = ""
    acceleration: str = ""
    joining_cgroup: str = ""


class Endpoint(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One workload attachment on one node. `ipv4` or `ipv6` is "" where the endpoint has none. `is_audited`: what its
    policies would deny passes."""

    cluster: str
    node: str
    endpoint_id: int
    namespace: str
    workload: str
    labels: Labels
    identity: int
    ipv4: str
    ipv6: str
    device: Device
    container_id: str
    interface: str
    netns: str = ""
    is_audited: bool = False


class Identity(msgspec.Struct, frozen=True, array_like=True, gc=False):
    number: int
    labels: Labels
    cluster: str


class Namespace(msgspec.Struct, frozen=True, array_like=True, gc=False):
    cluster: str
    name: str
    labels: dict[str, str]


class HostPort(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A port of the workload's node that leads to the workload; `address` "": of all the node's addresses."""

    host_port: int
    port: int
    protocol: str
    address: str = ""


class Workload(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What the platform declares of a workload before and while it runs (a Pod's metadata and readiness).

    `ports`: named container ports, name -> (number, protocol). `service_account` is "" where none is named.
    `host_network`: it has no endpoint and is reached at its node's addresses. `terminating`: it is about to go.
    `weight`: its share of new flows where Maglev chooses; 0: no new flows at all. `egress_bits_s`, `ingress_bits_s`:
    how fast it may send out of its node, and receive; 0: no limit. `joins_sockets`: its sockets may be joined, where
    its node does that.
    """

    cluster: str
    namespace: str
    name: str
    labels: dict[str, str]
    ready: bool = True
    service_account: str = ""
    ports: dict[str, tuple[int, str]] = {}
    node: str = ""
    host_ports: tuple[HostPort, ...] = ()
    host_network: bool = False
    terminating: bool = False
    weight: int = 1
    egress_bits_s: int = 0
    ingress_bits_s: int = 0
    joins_sockets: bool = True


class ServicePort(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """`target_port` is a number or the name of a container port; `node_port` 0: none."""

    name: str
    port: int
    protocol: str
    target_port: int | str
    node_port: int = 0


class Exposure(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """How a service is reached beside its cluster addresses, by whom, and which backends are chosen for whom.

    `external_policy`, `internal_policy`: "Cluster" or "Local", for what comes from the network and for what comes from
    the mesh. `affinity_s`: for how long a client keeps its backend; 0: not at all. `distribution`: which backends are
    preferred, "PreferSameZone" or "PreferSameNode"; "": none. `health_check_port`: of each node, where its local ready
    backends are asked for. `load_balancer_chosen`: its addresses came from a pool.
    """

    type: str = "ClusterIP"
    external_ips: tuple[str, ...] = ()
    load_balancer_ips: tuple[str, ...] = ()
    load_balancer_class: str = ""
    allocates_node_ports: bool = True
    source_ranges: tuple[str, ...] = ()
    external_policy: str = "Cluster"
    internal_policy: str = "Cluster"
    affinity_s: int = 0
    publishes_not_ready: bool = False
    distribution: str = ""
    health_check_port: int = 0
    external_name: str = ""
    load_balancer_chosen: bool = False


class Service(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """`cluster_ips` is () for a headless service. `shared`: a global service lets other clusters use its backends."""

    cluster: str
    namespace: str
    name: str
    cluster_ips: tuple[str, ...]
    ports: tuple[ServicePort, ...]
    selector: dict[str, str] | None
    headless: bool = False
    is_global: bool = False
    shared: bool = True
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}
    exposure: Exposure = Exposure()


class Backend(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One address that serves, as an EndpointSlice reports it. `serving` counts of one that is `terminating`.

    `for_zones`, `for_nodes`: where its reporter wants it to be used.
    """

    address: str
    ready: bool = True
    node: str = ""
    serving: bool = True
    terminating: bool = False
    zone: str = ""
    for_zones: tuple[str, ...] = ()
    for_nodes: tuple[str, ...] = ()


class BackendSlice(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Backends of a service that come from an EndpointSlice and not from its selector."""

    cluster: str
    namespace: str
    name: str
    service: str
    backends: tuple[Backend, ...]
    ports: tuple[ServicePort, ...]
    weight: int = 1


class BackendState(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What somebody judged a backend to be: "quarantined" or "maintenance"; without one it is "active"."""

    cluster: str
    address: str
    port: int
    protocol: str
    state: str


class LocalRedirect(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What leads to a frontend goes to workloads of the asking node, while it has any.

    The frontend: `address`, or the cluster addresses of `service` in the same namespace. `selector`: labels of the
    workloads. `target_port` of a port is that of the workload. `all_ports`: the service's, found by their names or by
    the only one that there is; `port` says nothing then.
    """

    cluster: str
    namespace: str
    name: str
    address: str
    service: str
    ports: tuple[ServicePort, ...]
    selector: dict[str, str]
    all_ports: bool = False


class Policy(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A policy as its author wrote it: `manifest` is canonical JSON; `parser` the version of its meaning."""

    cluster: str
    kind: str
    namespace: str
    name: str
    manifest: str
    parser: int = 1


class BalancerPool(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Prefixes of addresses for services of type LoadBalancer. `selector`: labels of the services that it is for, {}:
    all. `edges`: the first and the last address of a prefix are given out too."""

    cluster: str
    name: str
    blocks: tuple[str, ...]
    selector: dict[str, str] = {}
    disabled: bool = False
    edges: bool = True


class CidrGroup(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Prefixes that policies name together, by the group's name or its labels."""

    cluster: str
    name: str
    prefixes: tuple[str, ...]
    labels: dict[str, str] = {}


class ResolvedName(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The addresses that a DNS name is known to have, sorted; the name in lower case, without the dot at its end."""

    cluster: str
    name: str
    addresses: tuple[str, ...]
