"""The events: every fact that the log can hold, in the past tense, with one line of why each.

Belongs here: the event types and the envelope. Does not belong here: what they change (projections/), who decides
them (commands/), bytes (codec.py). A field is only ever added at the end, with a default: the stored form is an array.
Decisions are recorded here, never recomputed: numbers, addresses and blocks stand in the event that took them.
The cluster of an event is its record's cluster; who may write what is checked by projections/state.py.
"""

import msgspec

from controlplane.model import Backend, Device, Exposure, HostPort, Labels, ServicePort, Tunnel

SCHEMA_VERSION = 1


class Event(msgspec.Struct, frozen=True, array_like=True, tag=True, gc=False):
    """Base of all events; the tag is the class name."""


class ClusterJoined(Event, frozen=True):
    """A cluster takes part in the mesh under a number that no other has; its operator says so once."""

    cluster_id: int
    pod_cidrs: tuple[str, ...]
    block_prefixes: tuple[int, ...]
    service_cidrs: tuple[str, ...]
    routing_mode: str = "native"
    tunnel_protocol: str = "vxlan"
    tunnel_port: int = 8472


class ClusterLeft(Event, frozen=True):
    """A cluster is gone for good; nothing of it stays."""


class NodeJoined(Event, frozen=True):
    """A node's agent came up for the first time, or with other facts than those recorded."""

    node: str
    addresses: tuple[str, ...]
    device: Device
    labels: Labels = ()
    tunnel: Tunnel | None = None
    cgroup: str = ""
    acceleration: str = ""
    joining_cgroup: str = ""


class AddressBlockAssigned(Event, frozen=True):
    """The operator cut the node's pod CIDRs out of the cluster's."""

    node: str
    blocks: tuple[str, ...]


class NodeLeft(Event, frozen=True):
    """A node is gone, with everything that was on it: by its own word or by the operator's finding."""

    node: str
    reason: str


class NamespaceLabelled(Event, frozen=True):
    """A namespace exists with exactly these labels."""

    namespace: str
    labels: dict[str, str]


class NamespaceRemoved(Event, frozen=True):
    namespace: str


class WorkloadApplied(Event, frozen=True):
    """The platform declares a workload: its labels decide the identity of its endpoint, readiness that it serves."""

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


class WorkloadRemoved(Event, frozen=True):
    namespace: str
    name: str


class IdentityAllocated(Event, frozen=True):
    """A set of labels got its number; unique across writers by a claim in the same transaction."""

    number: int
    labels: Labels


class IdentityReleased(Event, frozen=True):
    """The number has no user left and every node has reported a revision beyond its last one."""

    number: int


class EndpointCreated(Event, frozen=True):
    """A workload is attached to a node: address, identity and device are decided."""

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


class EndpointRelabelled(Event, frozen=True):
    """The workload's or the namespace's labels changed, so the endpoint's identity did."""

    node: str
    endpoint_id: int
    labels: Labels
    identity: int


class EndpointConfigured(Event, frozen=True):
    """Somebody said of one endpoint whether what its policies would deny passes and is told (audit)."""

    node: str
    endpoint_id: int
    is_audited: bool


class EndpointDeleted(Event, frozen=True):
    """The attachment is gone; its address may be given out again."""

    node: str
    endpoint_id: int
    reason: str = ""


class ServiceApplied(Event, frozen=True):
    """A service exists in exactly this form, its cluster addresses and node ports decided."""

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


class ServiceRemoved(Event, frozen=True):
    namespace: str
    name: str


class BackendsReported(Event, frozen=True):
    """An EndpointSlice: backends that do not come from a selector."""

    namespace: str
    name: str
    service: str
    backends: tuple[Backend, ...]
    ports: tuple[ServicePort, ...]
    weight: int = 1


class BackendsWithdrawn(Event, frozen=True):
    namespace: str
    name: str


class BackendStateSet(Event, frozen=True):
    """Somebody judged a backend: "active", "quarantined" or "maintenance"; it keeps its flows and gets no new ones."""

    address: str
    port: int
    protocol: str
    state: str


class LocalRedirectApplied(Event, frozen=True):
    """What leads to a frontend goes to workloads of the asking node; in exactly this form."""

    namespace: str
    name: str
    address: str
    service: str
    ports: tuple[ServicePort, ...]
    selector: dict[str, str]
    all_ports: bool = False


class LocalRedirectRemoved(Event, frozen=True):
    namespace: str
    name: str


class BalancerPoolApplied(Event, frozen=True):
    """Services of type LoadBalancer may have these addresses; which one has which is told with the service."""

    name: str
    blocks: tuple[str, ...]
    selector: dict[str, str] = {}
    disabled: bool = False
    edges: bool = True


class BalancerPoolRemoved(Event, frozen=True):
    name: str


class PolicyApplied(Event, frozen=True):
    """A policy holds as its author wrote it (canonical JSON), understood by this version of the parser."""

    kind: str
    namespace: str
    name: str
    manifest: str
    parser: int = 1


class PolicyRemoved(Event, frozen=True):
    kind: str
    namespace: str
    name: str


class CIDRGroupApplied(Event, frozen=True):
    """A group of prefixes exists in exactly this form; policies name it, or its labels."""

    name: str
    prefixes: tuple[str, ...]
    labels: dict[str, str] = {}


class CIDRGroupRemoved(Event, frozen=True):
    name: str


class NameResolved(Event, frozen=True):
    """A DNS name was seen to have these addresses, beside those known already; policies by name count on it."""

    name: str
    addresses: tuple[str, ...]


class NameExpired(Event, frozen=True):
    """A DNS name has these addresses no longer; (): none at all."""

    name: str
    addresses: tuple[str, ...] = ()


class SettingsChanged(Event, frozen=True):
    """The settings that give policies their meaning are exactly these: canonical JSON by Cilium's names."""

    document: str


class Unknown(msgspec.Struct, frozen=True):
    """An event of a newer version: kept, counted, skipped. `raw` is its msgpack array as stored."""

    tag: str
    raw: bytes


EVENTS: tuple[type[Event], ...] = (
    ClusterJoined,
    ClusterLeft,
    NodeJoined,
    AddressBlockAssigned,
    NodeLeft,
    NamespaceLabelled,
    NamespaceRemoved,
    WorkloadApplied,
    WorkloadRemoved,
    IdentityAllocated,
    IdentityReleased,
    EndpointCreated,
    EndpointRelabelled,
    EndpointConfigured,
    EndpointDeleted,
    ServiceApplied,
    ServiceRemoved,
    BackendsReported,
    BackendsWithdrawn,
    BackendStateSet,
    LocalRedirectApplied,
    LocalRedirectRemoved,
    BalancerPoolApplied,
    BalancerPoolRemoved,
    PolicyApplied,
    PolicyRemoved,
    CIDRGroupApplied,
    CIDRGroupRemoved,
    NameResolved,
    NameExpired,
    SettingsChanged,
)


class Batch(msgspec.Struct, frozen=True):
    """What one record's payload means: its events, and the envelope around them.

    `time_ns` is the writer's wall clock: information, never order. `cause` is the revision that led to this, 0: none.
    """

    schema_version: int
    time_ns: int
    cause: int
    events: tuple[Event | Unknown, ...]
