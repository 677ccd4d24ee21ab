"""The lab on one page: its clusters, nodes, addresses and names. Values only.

Belongs here: every name and number of the lab. Does not belong here: how any of it is made.
MESHLOG_LAB names another lab beside the usual one: the tests have theirs, so that they never touch a person's.
"""

import os
import re

import msgspec

USUAL = "mlab"
NAME = os.environ.get("MESHLOG_LAB") or USUAL
if not re.fullmatch("[a-z][a-z0-9]{1,7}", NAME):
    raise ValueError(f"MESHLOG_LAB is {NAME!r}; right are 2 to 8 small letters and digits")

PREFIX = f"{NAME}-"
CGROUP = NAME
ROOT = "/run/meshlog-lab" if NAME == USUAL else f"/run/meshlog-lab-{NAME}"
WIRE = PREFIX + "wire"
"""The namespace that holds the bridge; processes that need no network run in it too."""
BRIDGE = "wire"
UNDERLAY_IPV4 = "172.31.77.{}/24"
UNDERLAY_IPV6 = "fd77::{}/64"
UPLINK = "eth0"


class LabCluster(msgspec.Struct, frozen=True):
    name: str
    cluster_id: int
    pod_cidrs: tuple[str, ...]
    block_prefixes: tuple[int, ...]
    service_cidrs: tuple[str, ...]


class LabHost(msgspec.Struct, frozen=True):
    """What is joined to the wire. `host` is its number there: the last part of its addresses and of its MAC."""

    name: str
    host: int

    @property
    def netns(self) -> str:
        return PREFIX + self.name

    @property
    def ipv4(self) -> str:
        return UNDERLAY_IPV4.format(self.host)

    @property
    def ipv6(self) -> str:
        return UNDERLAY_IPV6.format(self.host)

    @property
    def mac(self) -> str:
        return f"02:6d:6c:00:00:{self.host:02x}"


class LabNode(LabHost, frozen=True):
    """A machine of a cluster."""

    cluster: str

    def address(self, family: str) -> str:
        """On the underlay, of "ipv4" or "ipv6"."""
        return (self.ipv4 if family == "ipv4" else self.ipv6).partition("/")[0]

    @property
    def run_dir(self) -> str:
        return f"{ROOT}/{self.name}"

    @property
    def socket(self) -> str:
        return f"{self.run_dir}/agent.sock"

    @property
    def cgroup(self) -> str:
        """Below the cgroup v2 mount."""
        return f"{CGROUP}/{self.name}"


class LabPod(msgspec.Struct, frozen=True):
    """A Pod of the manifests, on the node that its `spec.nodeName` says."""

    cluster: str
    node: str
    namespace: str
    name: str
    labels: dict[str, str] = {}

    @property
    def netns(self) -> str:
        return f"{PREFIX}pod-{self.cluster}-{self.namespace}-{self.name}"

    @property
    def title(self) -> str:
        return f"{self.cluster}/{self.namespace}/{self.name}"

    @property
    def cgroup(self) -> str:
        """In that of its node, whose services its sockets are to find."""
        return f"{CGROUP}/{self.node}/pods/{self.namespace}-{self.name}"


CLUSTERS = (
    LabCluster(
        "east", 1, ("10.1.0.0/16", "fd00:1::/48"), (24, 64), ("10.96.0.0/20", "fd00:96::/112")
    ),
    LabCluster(
        "west", 2, ("10.2.0.0/16", "fd00:2::/48"), (24, 64), ("10.96.16.0/20", "fd00:97::/112")
    ),
)
NODES = (
    LabNode("east-1", 11, "east"),
    LabNode("east-2", 12, "east"),
    LabNode("west-1", 21, "west"),
    LabNode("west-2", 22, "west"),
)
OUTSIDE = LabHost("outside", 99)
"""A client on the underlay that is no part of the mesh."""
BPFFS = f"{ROOT}/bpf"
LOGS = f"{ROOT}/logs"
PROCESSES = f"{ROOT}/processes"
ETCD_DIR = f"{ROOT}/etcd"


def node_named(name: str) -> LabNode:
    """Raises KeyError."""
    return {node.name: node for node in NODES}[name]


def operator_socket(cluster: str) -> str:
    return f"{ROOT}/operator-{cluster}/operator.sock"
