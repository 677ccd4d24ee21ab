"""Random histories of a small mesh: wishes that are decided, as an agent or an operator would have them, and forgeries.

Belongs here: making histories. Does not belong here: what any test proves about them.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import msgspec
from hypothesis import strategies as st

from controlplane import events as e
from controlplane.codec import encode
from controlplane.commands.addresses import ChangeSettings
from controlplane.commands.cluster import JoinCluster
from controlplane.commands.decide import Author, decide
from controlplane.commands.endpoint import ConfigureEndpoint, CreateEndpoint, DeleteEndpoint, RelabelEndpoint
from controlplane.commands.identity import ReleaseIdentity
from controlplane.commands.namespace import ApplyNamespace, RemoveNamespace
from controlplane.commands.node import AssignAddressBlock, JoinNode, RemoveNode
from controlplane.commands.policy import ApplyPolicy, RemovePolicy
from controlplane.commands.redirect import ApplyLocalRedirect, RemoveLocalRedirect, SetBackendState
from controlplane.commands.service import ApplyService, RemoveService, ReportBackends, WithdrawBackends
from controlplane.commands.types import Decision
from controlplane.commands.workload import ApplyWorkload, RemoveWorkload
from controlplane.events import Batch, Event
from controlplane.model import Backend, Device, Exposure, HostPort, ServicePort, Tunnel
from controlplane.projections.state import State
from kvstore.types import Record, Revision

CLUSTERS = ("east", "west")
NODES = ("n1", "n2", "n3")
NAMESPACES = ("shop", "bank")
APPS = ("web", "db")

LEAVE = 22
"""The wish that takes a cluster out of the mesh."""
LAST = 35
ZONE = "topology.kubernetes.io/zone"

Step = tuple[int, int, int, int]
"""Which wish, and three numbers that choose its particulars."""
Written = tuple[str, str, tuple[Event, ...]]
"""Cluster, writer, events."""


def steps(largest: int = 40) -> st.SearchStrategy[list[Step]]:
    """Numbers from which `history` makes wishes."""
    return st.lists(
        st.tuples(st.integers(0, LAST), st.integers(0, 5), st.integers(0, 3), st.integers(0, 3)),
        min_size=largest // 4,
        max_size=largest,
    )


def device(number: int) -> Device:
    return Device(f"ml{number}", number, f"02:00:00:00:00:{number:02x}", f"02:00:01:00:00:{number:02x}")


def joined() -> list[tuple[Author, Any]]:
    """Wishes that every history begins with: two clusters of three nodes with blocks, and declared workloads."""
    wishes: list[tuple[Author, Any]] = []
    for number, cluster in enumerate(CLUSTERS, 1):
        operator = Author(cluster, "operator")
        pods = (f"10.{number}.0.0/16", f"fd00:{number}::/48")
        services = (f"172.{number}.0.0/24", f"fd01:{number}::/112")
        wishes.append((operator, JoinCluster(number, pods, (28, 64), services)))
        for node in NODES:
            wishes.append((Author(cluster, f"node.{node}"), _join(number - 1, node, 0)))
            wishes.append((operator, AssignAddressBlock(node)))
        for namespace in NAMESPACES:
            for app in APPS:
                ports = {"web": (8000, "TCP")}
                wishes += [
                    (operator, ApplyWorkload(namespace, f"{app}-{n}", {"app": app}, True, "", ports)) for n in range(3)
                ]
    return wishes


def _join(cluster: int, node: str, variant: int) -> JoinNode:
    place = cluster * 50 + int(node[1:]) * 10 + variant
    ipv4, ipv6 = f"192.168.0.{place}", f"fd02::{place}"
    addresses = ((ipv4, ipv6), (ipv6,), (ipv4,), (ipv6, ipv4))[variant]
    tunnel = (None, Tunnel("vxlan", 8472, device(4)), Tunnel("vxlan", 8472, device(4)), None)[(variant + cluster) % 4]
    return JoinNode(node, addresses, device(2 if variant < 2 else 3), (), tunnel)


def wish(step: Step) -> tuple[Author, Any]:
    """One command and who has it."""
    kind, a, b, c = step
    cluster = a % 2
    name = CLUSTERS[cluster]
    node = NODES[b % 3]
    namespace, app = NAMESPACES[c % 2], APPS[b % 2]
    operator, agent = Author(name, "operator"), Author(name, f"node.{node}")
    workload = f"{app}-{a // 2}"
    port = ServicePort("http", 80, "TCP", ("web", 8080, 9090, "web")[c])
    ports = {"web": (8000 + a, "TCP")} if b else {}
    create = CreateEndpoint(node, namespace, workload, device(10 + a + b), f"c{a}{b}{c}", "eth0")
    wishes: dict[int, tuple[Author, Any]] = {
        0: (operator, ApplyNamespace(namespace, {"team": f"t{b}"})),
        1: (operator, RemoveNamespace(namespace)),
        2: (operator, ApplyWorkload(namespace, workload, {"app": app, "v": str(c)}, b != 3, "", ports, node)),
        3: (operator, ApplyWorkload(namespace, workload, {"app": app}, True, "", ports, node)),
        4: (operator, RemoveWorkload(namespace, workload)) if b == 0 else (agent, create),
        9: (agent, DeleteEndpoint(node, a + 1, "asked for")),
        10: (agent, RelabelEndpoint(node, a + 1)),
        11: (operator, ReleaseIdentity(((cluster + 1) << 16) + 256 + a)),
        12: (operator, ApplyService(namespace, app, (), (port,), {"app": app}, False, b > 0, b != 2)),
        13: (operator, ApplyService(namespace, app, (), (port,), {"app": app, "v": str(c)}, b == 3, True)),
        14: (operator, RemoveService(namespace, app)),
        15: (operator, ReportBackends(namespace, f"s{a}", app, (Backend(f"10.9.0.{b}", c > 0),), (port,))),
        16: (operator, WithdrawBackends(namespace, f"s{a}")),
        17: (operator, ApplyPolicy("NetworkPolicy", namespace, f"p{a // 2}", _manifest(namespace, f"p{a // 2}", b, c))),
        18: (operator, RemovePolicy("NetworkPolicy", namespace, f"p{a // 2}")),
        19: (operator, RemoveNode(node, "dead")) if c == 0 else (agent, create),
        20: (agent, _join(cluster, node, c)),
        21: (operator, AssignAddressBlock(node)),
        LEAVE: (operator, e.ClusterLeft()) if (b, c) == (0, 0) else (operator, ApplyNamespace(namespace, {})),
        **_exposed(operator, namespace, app, workload, node, b, c),
        32: (operator, ConfigureEndpoint(node, a + 1, b > 1)),
        **_about_nodes(operator, b, c),
        30: (agent, msgspec.structs.replace(_join(cluster, node, 0), labels=(f"{ZONE}={'ab'[c % 2]}",))),
    }  # fmt: skip
    return wishes.get(kind, (agent, create))


def _exposed(
    operator: Author, namespace: str, app: str, workload: str, node: str, b: int, c: int
) -> dict[int, tuple[Author, Any]]:
    """Wishes about what the network reaches, and about which backends are chosen."""
    kinds = ("NodePort", "LoadBalancer")
    exposure = Exposure(
        kinds[b % 2],
        (f"198.51.100.{c}",),
        ("203.0.113.1",) if b % 2 else (),
        source_ranges=("192.0.2.0/24",) if c else (),
        external_policy=("Cluster", "Local")[c % 2],
        internal_policy=("Cluster", "Local")[b // 2],
        affinity_s=60 * (c // 2),
        publishes_not_ready=c == 3,
        distribution=("", "PreferSameZone", "PreferSameNode", "")[b],
    )
    port = ServicePort("http", 80, "TCP", 8080)
    annotations = {"service.cilium.io/affinity": ("local", "remote")[c % 2], "service.cilium.io/forwarding-mode": "dsr"}
    hinted = Backend(f"10.9.0.{b}", c > 1, "n1", c > 0, c < 3, "a", ("a",) if b else (), ("n1",) if c else ())
    host_ports = (HostPort(30000 + b, 8080, "TCP"),)
    redirect = ApplyLocalRedirect(namespace, "lrp", "", app, (port,), {"app": app}, True)
    address = ApplyLocalRedirect(namespace, "lrp", "198.51.100.1", "", (port,), {"app": app})
    limits = 10**6 * (b % 2), 10**7 * (c % 2)
    applied = ApplyWorkload(
        namespace, workload, {"app": app}, b != 1, "", {}, node, host_ports, b == 2, c == 1, c, *limits
    )
    settings = ('{"bpf-lb-algorithm":"maglev","bpf-lb-maglev-table-size":251}', '{"bpf-lb-mode":"hybrid"}')[c % 2]
    return {
        23: (operator, ApplyService(namespace, app, (), (port,), {"app": app}, False, b > 0, True, {}, {}, exposure)),
        24: (
            operator,
            ApplyService(namespace, app, (), (port,), {"app": app}, False, True, True, {}, annotations, exposure),
        ),
        25: (operator, applied),
        26: (operator, ReportBackends(namespace, f"s{c}", app, (hinted,), (port,), b)),
        27: (operator, (redirect, address, redirect, RemoveLocalRedirect(namespace, "lrp"))[c]),
        28: (operator, SetBackendState(f"10.9.0.{b}", 80, "TCP", ("active", "quarantined", "maintenance", "active")[c])),
        29: (operator, ChangeSettings(settings)),
    }


def _about_nodes(operator: Author, b: int, c: int) -> dict[int, tuple[Author, Any]]:
    """Wishes by which policies tell nodes apart, by the label that wish 30 gives them or by CIDR, and no longer."""
    settings = (
        "{}", '{"enable-node-selector-labels":true}', '{"policy-cidr-match-mode":"nodes"}',
        '{"enable-node-selector-labels":true,"policy-cidr-match-mode":"nodes"}',
    )  # fmt: skip
    peers = (
        f'"fromNodes":[{{"matchLabels":{{"{ZONE}":"a"}}}}]', '"fromCIDR":["192.168.0.0/24"]',
        '"fromEntities":["remote-node"]', '"fromCIDR":["192.168.0.10/32","192.168.0.50/31"]',
    )  # fmt: skip
    manifest = (
        '{"apiVersion":"cilium.io/v2","kind":"CiliumNetworkPolicy","metadata":{"name":"nodes","namespace":"shop"},'
        f'"spec":{{"endpointSelector":{{}},"ingress":[{{{peers[b % 4]}}}]}}}}'
    )
    return {
        33: (operator, ChangeSettings(settings[c])),
        34: (operator, ApplyPolicy("CiliumNetworkPolicy", "shop", "nodes", manifest)),
    }


def _manifest(namespace: str, name: str, b: int, c: int) -> str:
    peer = ('{"podSelector":{"matchLabels":{"app":"web"}}}', '{"namespaceSelector":{}}', "", "")[b]
    selector = (
        '{"matchLabels":{"app":"db"}}',
        "{}",
        '{"matchLabels":{"v":"1"}}',
        '{"matchLabels":{"app":"web"}}',
    )[c]
    rule = f'{{"from":[{peer}]}}' if peer else "{}"
    return (
        '{"apiVersion":"networking.k8s.io/v1","kind":"NetworkPolicy",'
        f'"metadata":{{"name":"{name}","namespace":"{namespace}"}},'
        f'"spec":{{"ingress":[{rule}],"podSelector":{selector},"policyTypes":["Ingress"]}}}}'
    )


class Log:
    """Records of a log in the making, and the state they lead to."""

    def __init__(self) -> None:
        self.state = State()
        self.records: list[Record] = []
        self.changes: list[tuple[Any, ...]] = []

    def write(self, cluster: str, writer: str, *events: Event) -> tuple[Any, ...]:
        """Append a batch as the log would, and apply it; what changed."""
        record = record_of(self.records, cluster, writer, events)
        self.records.append(record)
        self.changes.append(self.state.apply(record))
        return self.changes[-1]

    def wish(self, author: Author, command: Any) -> Any:
        """Decide, and append what was decided. An event is appended as it is."""
        if isinstance(command, Event):
            self.write(*author, command)
            return Decision()
        decision = decide(self.state, author, command)
        if isinstance(decision, Decision) and decision.events:
            self.write(*author, *decision.events)
        return decision


def record_of(before: Sequence[Record], cluster: str, writer: str, events: Iterable[Any]) -> Record:
    """The next record."""
    sequence = 1 + sum((record.cluster, record.writer) == (cluster, writer) for record in before)
    payload = encode(Batch(1, len(before), 0, tuple(events)))
    return Record(Revision(len(before) * 3 + 2), cluster, writer, sequence, 1, payload)


def history(script: Iterable[Step]) -> Log:
    """The log of a mesh in which these wishes were decided one after the other."""
    log = Log()
    for author, command in [*joined(), *map(wish, script)]:
        log.wish(author, command)
    return log


def forgery(step: Step) -> Written:
    """An event by a writer that must not write it, or that no decision would give."""
    kind, a, b, c = step
    cluster, node, other = CLUSTERS[a % 2], NODES[b % 3], NODES[(b + 1) % 3]
    labels = ("k8s:app=web", f"k8s:io.cilium.k8s.policy.cluster={cluster}")
    identity, address = 65536 * (a % 2 + 1) + 999, f"10.{a % 2 + 1}.0.{a}"
    made = e.EndpointCreated(
        node, 60 + c, "shop", "web-0", labels, identity, address, "", device(9), "x", "eth0"
    )  # fmt: skip
    found: dict[int, Written] = {
        0: (cluster, f"node.{other}", (made,)),
        1: (cluster, f"node.{node}", (made,)),
        2: (cluster, f"node.{other}", (e.NodeLeft(node, "gone"),)),
        3: (cluster, f"node.{node}", (e.AddressBlockAssigned(node, ("10.1.0.0/28",)),)),
        4: (cluster, f"node.{node}", (e.ClusterLeft(),)),
        5: (cluster, f"node.{other}", (e.NodeJoined(node, ("192.168.9.9",), device(2)),)),
        6: (cluster, f"node.{node}", (e.NodeJoined(node, (f"10.{a % 2 + 1}.0.1",), device(2)),)),
        7: (cluster, "operator", (e.ClusterJoined(7, ("10.0.0.0/8",), (24,), ()),)),
        8: (cluster, f"node.{node}", (e.IdentityAllocated(300, labels),)),
        9: (cluster, f"node.{node}", (e.IdentityAllocated(65536 * (a % 2 + 1) + 300, ("reserved:host",)),)),
        10: (cluster, f"node.{node}", (e.EndpointRelabelled(node, 77, labels, 1),)),
        11: (cluster, "operator", (e.ServiceApplied("shop", "bad", ("nonsense",), (), None),)),
        12: (cluster, f"node.{node}", (e.IdentityReleased(65536 * (a % 2 + 1) + 256),)),
    }  # fmt: skip
    return found[kind % len(found)]
