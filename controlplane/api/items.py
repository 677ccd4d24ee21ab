"""The items of /v1/list, one type for each kind, and those of /v1/monitor.

Belongs here: values, and nothing else. Does not belong here: the other shapes of the API (schema.py), how an item is
made (views.py).
"""

import msgspec


class NodeItem(msgspec.Struct, frozen=True):
    """`pod_cidrs` are the node's address blocks; `local` is true of the node that answers."""

    cluster: str
    name: str
    ipv4: str
    ipv6: str
    pod_cidrs: list[str]
    device: str
    labels: list[str]
    endpoints: int
    local: bool


class EndpointItem(msgspec.Struct, frozen=True):
    """`state`: "ready", "pending" or "error" on this node, "remote" elsewhere; "recorded" on this node in the past.
    Enforcement is of the identity. `audited`: what policies would deny passes, by the endpoint's own configuration
    (`configured_audit`) or by the cluster's settings."""

    cluster: str
    node: str
    endpoint_id: int
    namespace: str
    workload: str
    ingress_enforced: bool
    egress_enforced: bool
    identity: int
    labels: list[str]
    ipv4: str
    ipv6: str
    device: str
    container_id: str
    interface: str
    state: str
    audited: bool = False
    configured_audit: bool = False


class IdentityItem(msgspec.Struct, frozen=True):
    """`cluster` is "" for a reserved identity; `endpoints`: how many use the number, 0 for prefixes of policies."""

    number: int
    cluster: str
    labels: list[str]
    endpoints: int


class BackendItem(msgspec.Struct, frozen=True):
    """`state`: active, terminating, quarantined or maintenance. `selected`: new flows may go there."""

    address: str
    port: int
    cluster: str
    state: str
    node: str = ""
    weight: int = 1
    selected: bool = True


class ServiceItem(msgspec.Struct, frozen=True):
    """One frontend. `type`: the frontend's, or "Headless" (`address` is then "") or "ExternalName" (it is then that
    name). `scope`: internal or external where both sides get other backends. `kind` of the object that asks for it.
    """

    cluster: str
    namespace: str
    name: str
    type: str
    address: str
    port: int
    port_name: str
    protocol: str
    is_global: bool
    backends: list[BackendItem]
    scope: str = ""
    flags: list[str] = []
    affinity_s: int = 0
    source_ranges: list[str] = []
    kind: str = "Service"


class PolicyItem(msgspec.Struct, frozen=True):
    """`selected`: how many endpoints the policy is about, `endpoints` which ("shop/cart"). Enforced: whether it makes
    them deny what no rule allows. `revision`: of the record that last changed it, 0 where that is not known."""

    cluster: str
    kind: str
    namespace: str
    name: str
    selected: int
    endpoints: list[str] = []
    ingress_enforced: bool = False
    egress_enforced: bool = False
    revision: int = 0


class IpItem(msgspec.Struct, frozen=True):
    """A prefix and whose it is. `source`: "endpoint", "node", "reserved", "policy" (one that policies name)."""

    prefix: str
    identity: int
    source: str
    cluster: str
    node: str
    name: str


class Notification(msgspec.Struct, frozen=True, omit_defaults=True):
    """One message of the datapath. `type`: "drop", "verdict", "trace", "lost" (only `lost` counts) or "now" (behind it
    comes what is told from now on; only where recent ones were asked for).

    `source_name`/`target_name` are "namespace/workload" where the address is an endpoint's, and `source_cluster` and
    `target_cluster` its cluster. `time_ns` counts from the start of the machine, `wall_time_ns` from the epoch.
    """

    type: str
    time_ns: int = 0
    cluster: str = ""
    node: str = ""
    reason: str = ""
    reason_code: int = 0
    verdict: str = ""
    direction: str = ""
    match: str = ""
    protocol: str = ""
    source: str = ""
    source_port: int = 0
    source_identity: int = 0
    source_name: str = ""
    target: str = ""
    target_port: int = 0
    target_identity: int = 0
    target_name: str = ""
    endpoint_id: int = 0
    ifindex: int = 0
    length: int = 0
    tcp_flags: str = ""
    file: str = ""
    line: int = 0
    lost: int = 0
    policy_epoch: int = 0
    wall_time_ns: int = 0
    source_cluster: str = ""
    source_labels: tuple[str, ...] = ()
    target_cluster: str = ""
    target_labels: tuple[str, ...] = ()
    reason_name: str = ""
