"""Nanoseconds per packet of each program path, by BPF_PROG_TEST_RUN on private maps, beside Cilium's on a like machine.

Notifications are off, as for the figures beside. The figure of an empty program is taken off. "New" is a new connection
with every packet. Every figure is the least of the medians of several rounds in which all paths take turns. Beside a
path that misses its target stands what it cannot be without, at this machine's charges (charges.py).
"""

import socket
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from datapath.abi import types as abi
from datapath.kernel.programs import XDP_OBJECT
from datapath.masquerade import masquerade_constants, node_constants
from tests.bench import charges
from tests.bench.charges import median_ns
from tests.bench.report import Row
from tests.bpf import node as bpf_node
from tests.bpf import packets
from tests.bpf.gate import NODE, OWN_MAC
from tests.bpf.node import CLIENT, CLUSTER_IP, FRONTEND, REMOTE, SERVER, WORLD, Node
from tests.conftest import Namespace

ROUNDS = 8
RUNS = 4_000
NEW_RUNS = 900
"""Less than the entries of the test's conntrack map, so that none is evicted meanwhile."""
SOURCE_PORT_AT = packets.ETHERNET_BYTES + 20
"""Behind an IPv4 header without options."""
BPF = Path(__file__).parents[2] / "bpf"
CONSTANTS: dict[str, int | bytes] = {
    "config_notify_verdicts": 0,
    "config_notify_drops": 0,
    **node_constants((NODE.ipv4,)),
    **masquerade_constants((), (10000, 29999), ()),
}


class Way(NamedTuple):
    """A path of a packet: `run` gives nanoseconds with a test run's own; `needs`: what it cannot be without, by
    charges.SAID."""

    what: str
    object_name: str
    run: Callable[[Node, Namespace], int]
    cilium_ns: int
    limit_ns: int
    needs: Mapping[str, int]


def measure() -> list[Row]:
    """All rows of this file."""
    subprocess.run(["make", "-s", "-C", str(BPF)], check=True)
    least: dict[str, int] = {}
    with charges.place() as place:
        charged = charges.measure(place)
        for _ in range(ROUNDS):
            for path in PATHS:
                found = _measured(path, place)
                least[path.what] = min(least.get(path.what, found), found)
    paths = [_row(path, least[path.what], charged) for path in PATHS]
    return [*charges.rows(charged), *paths]


def _measured(path: Way, place: Namespace) -> int:
    constants = dict(CONSTANTS)
    if path.object_name == XDP_OBJECT:
        constants["config_underlay_ifindex"] = place.call(socket.if_nametoindex, "und")
    with bpf_node.load(BPF / path.object_name, **constants) as node:
        node.settle()
        return path.run(node, place)


def _row(path: Way, whole_ns: int, charged: charges.Charges) -> Row:
    empty = charges.EMPTY_XDP if path.object_name == XDP_OBJECT else charges.EMPTY
    ns = round(whole_ns - charged[empty])
    floor = sum(times * charged[name] for name, times in path.needs.items())
    parts = ", ".join(f"{times} x {charges.SAID[name]} ({charged[name]:.0f})" for name, times in path.needs.items())
    met = ns < path.limit_ns
    return Row(
        path.what,
        f"{ns} ns",
        f"Cilium 1.19.4: {path.cilium_ns} ns",
        f"{ns / path.cilium_ns:.2f}",
        f"< {path.limit_ns} ns",
        met,
        "" if met else f"here not below {floor:.0f} ns: {parts}",
    )


def _policies(node: Node) -> None:
    """Egress of the client and ingress of the server enforced, and port 80 allowed."""
    node.subject(CLIENT, egress=True, shapes=bpf_node.PORT_SHAPE)
    node.subject(SERVER, ingress=True, shapes=bpf_node.PORT_SHAPE)
    for subject, direction, remote in (
        (CLIENT, abi.POLICY_EGRESS, SERVER.identity),
        (SERVER, abi.POLICY_INGRESS, CLIENT.identity),
    ):
        node.policy(subject, direction, remote, port=80, prefix=16, protocol=packets.TCP)


def _established(node: Node, segment_to: bpf_node.Endpoint) -> int:
    node.send(CLIENT, node.frame(CLIENT, segment_to, packets.tcp(40000, 80)))
    raw = node.frame(CLIENT, segment_to, packets.tcp(40000, 80, packets.ACK))
    return median_ns(node.program_fd("from_endpoint"), raw, RUNS)


def _new(node: Node, to: bpf_node.Endpoint) -> int:
    node.device(CLIENT)
    raw = node.frame(CLIENT, to, packets.tcp(10000, 80))
    return median_ns(node.program_fd("from_endpoint"), raw, NEW_RUNS, SOURCE_PORT_AT)


def _pod_established(node: Node, _: Namespace) -> int:
    _policies(node)
    return _established(node, SERVER)


def _pod_new(node: Node, _: Namespace) -> int:
    _policies(node)
    return _new(node, SERVER)


def _service_established(node: Node, _: Namespace) -> int:
    node.service([(REMOTE, 8080)], packets.TCP)
    return _established(node, FRONTEND)


def _service_new(node: Node, _: Namespace) -> int:
    node.service([(REMOTE, 8080)], packets.TCP)
    return _new(node, FRONTEND)


def _node_port(node: Node, mac: bytes = bpf_node.LOOPBACK_MAC) -> bytes:
    """WORLD asks the node's address for a service whose backend is on another node; the frame."""
    row = CLUSTER_IP._replace(flags=abi.SERVICE_NODE_PORT)
    node.service([(REMOTE, 8080)], packets.TCP, frontend=NODE, row=row, scope=abi.SERVICE_SCOPE_EXTERNAL)
    ends = {"source_mac": bpf_node.GATEWAY_MAC, "dest_mac": mac}
    return node.frame(WORLD, NODE, packets.tcp(10000, 80, packets.ACK), **ends)


def _node_port_established(node: Node, _: Namespace) -> int:
    raw = _node_port(node)
    node.receive(raw)
    return median_ns(node.program_fd("from_network"), raw, RUNS)


def _node_port_new(node: Node, _: Namespace) -> int:
    return median_ns(node.program_fd("from_network"), _node_port(node), NEW_RUNS // 2, SOURCE_PORT_AT)


def _xdp_established(node: Node, place: Namespace) -> int:
    raw = _node_port(node, OWN_MAC)
    return median_ns(node.program_fd("xdp_from_network"), raw, RUNS, where=place)


def _xdp_new(node: Node, place: Namespace) -> int:
    raw = _node_port(node, OWN_MAC)
    return median_ns(node.program_fd("xdp_from_network"), raw, NEW_RUNS // 2, SOURCE_PORT_AT, place)


def _policy_drop(node: Node, _: Namespace) -> int:
    node.subject(CLIENT, egress=True)
    node.device(CLIENT)
    raw = node.frame(CLIENT, SERVER, packets.tcp(40000, 80))
    return median_ns(node.program_fd("from_endpoint"), raw, RUNS)


ENDPOINT, HOST = "endpoint.bpf.o", "host.bpf.o"
PATHS = (
    Way("pod to pod, both policies, established", ENDPOINT, _pod_established, 939, 450, {"flow_lookup": 1}),
    Way(
        "pod to pod, both policies, new", ENDPOINT, _pod_new, 3159, 1200,
        {"flow_missed": 1, "flow_new": 1, "hash_lookup": 2},
    ),
    Way(
        "ClusterIP to remote backend, established", ENDPOINT, _service_established, 836, 400,
        {"flow_lookup": 1, "checksum_correction": 2, "redirect": 1},
    ),
    Way(
        "ClusterIP to remote backend, new", ENDPOINT, _service_new, 2699, 1000,
        {"flow_missed": 1, "flow_new": 2, "hash_lookup": 2, "checksum_correction": 2, "redirect": 1},
    ),
    Way(
        "tc NodePort by SNAT to remote backend, established", HOST, _node_port_established, 821, 821,
        {"flow_lookup": 2, "checksum_correction": 4, "redirect": 1},
    ),
    Way(
        "tc NodePort by SNAT to remote backend, new", HOST, _node_port_new, 2366, 2366,
        {"flow_missed": 2, "flow_new": 4, "hash_lookup": 2, "checksum_correction": 4, "redirect": 1},
    ),
    Way("policy drop", ENDPOINT, _policy_drop, 341, 200, {"flow_missed": 1}),
    Way(
        "XDP NodePort by SNAT to remote backend, established", XDP_OBJECT, _xdp_established, 711, 250,
        {"flow_lookup": 2},
    ),
    Way(
        "XDP NodePort by SNAT to remote backend, new", XDP_OBJECT, _xdp_new, 1779, 700,
        {"flow_missed": 2, "flow_new": 4, "hash_lookup": 2},
    ),
)  # fmt: skip
