"""A small mesh by hand: east with nodes n1 and n2, west with n1, and short ways to let things happen in it.

Belongs here: what several tests need to say "there is an endpoint". Does not belong here: what they prove.
"""

from controlplane import events as e
from controlplane.commands.endpoint import CreateEndpoint
from controlplane.commands.types import Author, Decision
from controlplane.commands.workload import ApplyWorkload
from controlplane.desired.derive import Deriver
from controlplane.model import Device, Endpoint, NodeKey
from datapath.codec import address_bytes
from tests.controlplane.random_mesh import Log

UNDERLAY = {
    ("east", "n1"): ("192.168.0.1", "fd02::1"),
    ("east", "n2"): ("192.168.0.2",),
    ("west", "n1"): ("192.168.1.1", "fd02::11"),
}
CLUSTER_IDS = {"east": 1, "west": 2}
UNDERLAY_IFINDEX = 2


def device(number: int) -> Device:
    return Device(f"ml{number}", number, f"02:00:00:00:00:{number:02x}", f"02:00:01:00:00:{number:02x}")


def underlay_device(cluster: str, node: str) -> Device:
    return Device("eth0", UNDERLAY_IFINDEX, f"06:00:00:00:0{CLUSTER_IDS[cluster]}:0{node[1:]}")


def mesh() -> Log:
    """Both clusters and all three nodes, with blocks 10.<cluster>.<node>.0/24 and fd00:<cluster>:0:<node>::/64."""
    log = Log()
    for cluster, number in CLUSTER_IDS.items():
        pods = (f"10.{number}.0.0/16", f"fd00:{number}::/48")
        services = (f"172.{number}.0.0/24", f"fd01:{number}::/112")
        log.write(cluster, "operator", e.ClusterJoined(number, pods, (24, 64), services))
    for (cluster, node), addresses in UNDERLAY.items():
        number, place = CLUSTER_IDS[cluster], node[1:]
        log.write(cluster, f"node.{node}", e.NodeJoined(node, addresses, underlay_device(cluster, node)))
        blocks = (f"10.{number}.{place}.0/24", f"fd00:{number}:0:{place}::/64")
        log.write(cluster, "operator", e.AddressBlockAssigned(node, blocks))
    return log


def add_endpoint(
    log: Log, cluster: str, node: str, name: str, ifindex: int, namespace: str = "shop", **labels: str
) -> Endpoint:
    """A workload with these labels (or app=<name>) and named port "web" 8080, and its endpoint."""
    declared = ApplyWorkload(namespace, name, labels or {"app": name}, True, "", {"web": (8080, "TCP")}, node)
    accept(log, Author(cluster, "operator"), declared)
    create = CreateEndpoint(node, namespace, name, device(ifindex), f"c-{name}", "eth0")
    accept(log, Author(cluster, f"node.{node}"), create)
    endpoint = log.state.endpoint_of(cluster, node, f"c-{name}", "eth0")
    assert endpoint is not None
    return endpoint


def accept(log: Log, author: Author, command: object) -> Decision:
    """Decide and append; it must not be rejected nor refused."""
    decision = log.wish(author, command)
    assert isinstance(decision, Decision), decision
    assert log.state.refused_events == []
    return decision


def table(log: Log, name: str, cluster: str = "east", node: str = "n1") -> dict:  # type: ignore[type-arg]
    """One table of a node, in full."""
    return dict(Deriver(cluster, node).full(log.state).tables[name])


def endpoints_of(log: Log, cluster: str, node: str) -> tuple[Endpoint, ...]:
    return log.state.endpoints_of(NodeKey(cluster, node))


def packed(address: str) -> bytes:
    return address_bytes(address)
