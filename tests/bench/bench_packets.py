"""Nanoseconds per packet of each program path, by BPF_PROG_TEST_RUN on private maps, beside Cilium's on a like machine.

Notifications are off, as for the figures beside. The figure of an empty program is taken off. "New" is a new connection
with every packet.
"""

import atexit
import functools
import shutil
import socket
import subprocess
import sysconfig
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from datapath.abi import types as abi
from datapath.kernel.programs import XDP_OBJECT, load_private
from datapath.masquerade import masquerade_constants, node_constants
from tests.bench.report import Row
from tests.bpf import node as bpf_node
from tests.bpf import packets
from tests.bpf.gate import NODE, OWN_MAC, resolve, routed
from tests.bpf.node import CLIENT, CLUSTER_IP, FRONTEND, REMOTE, SERVER, WORLD, Node
from tests.conftest import Namespace

RUNS = 20_000
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


def measure() -> list[Row]:
    """All rows of this file."""
    subprocess.run(["make", "-s", "-C", str(BPF)], check=True)
    wrapper_ns, wrapper_xdp_ns = _wrapper_ns("empty"), _wrapper_ns("empty_xdp")
    rows = []
    for what, name, run, cilium_ns, limit_ns in CASES:
        with bpf_node.load(BPF / name, **CONSTANTS) as node:
            node.settle()
            rows.append(_row(what, run(node) - wrapper_ns, cilium_ns, limit_ns))
    with _place() as place:
        for what, run_xdp, cilium_ns, limit_ns in XDP_CASES:
            underlay = place.call(socket.if_nametoindex, "und")
            with bpf_node.load(BPF / XDP_OBJECT, **{**CONSTANTS, "config_underlay_ifindex": underlay}) as node:
                node.settle()
                rows.append(_row(what, run_xdp(node, place) - wrapper_xdp_ns, cilium_ns, limit_ns))
    return rows


def _row(what: str, ns: int, cilium_ns: int, limit_ns: int) -> Row:
    cilium = f"Cilium 1.19.4: {cilium_ns} ns"
    return Row(what, f"{ns} ns", cilium, f"{ns / cilium_ns:.2f}", f"< {limit_ns} ns", ns < limit_ns)


@contextmanager
def _place() -> Iterator[Namespace]:
    """Where the routes are that an XDP program asks, and the next hops known."""
    made: list[Namespace] = []

    def make() -> Namespace:
        made.append(Namespace())
        return made[-1]

    try:
        place = routed(make)
        resolve(place, 4)
        yield place
    finally:
        for each in made:
            each.close()


@functools.cache
def _runner() -> Path:
    """The compiled run_packet.c."""
    program = Path(tempfile.mkdtemp(prefix="meshlog-bench-")) / "run_packet"
    subprocess.run(["clang", "-O2", "-o", program, Path(__file__).with_name("run_packet.c")], check=True)
    atexit.register(shutil.rmtree, program.parent)
    return program


def _median_ns(
    program_fd: int, raw: bytes, runs: int, port_offset: int = 0, place: Namespace | None = None
) -> int:
    """Of one packet through a program; with `port_offset` every run has another source port. `place`: whose routes it
    asks."""
    entered = ["nsenter", f"--net={place.path}"] if place else []
    command = [*entered, _runner(), str(program_fd), str(runs), str(port_offset)]
    return int(subprocess.run(command, input=raw, capture_output=True, check=True, pass_fds=(program_fd,)).stdout)


def _wrapper_ns(program: str) -> int:
    """What the test run of one packet costs around the program."""
    with tempfile.TemporaryDirectory() as folder:
        compiled = Path(folder) / "empty.bpf.o"
        headers = f"-I/usr/include/{sysconfig.get_config_var('MULTIARCH')}"
        source = Path(__file__).with_name("empty.bpf.c")
        subprocess.run(["clang", "-O2", "-g", "-target", "bpf", headers, "-c", source, "-o", compiled], check=True)
        with load_private(compiled, {}) as loaded:
            ends = {"source_mac": bytes(6), "dest_mac": bytes(6)}
            raw = packets.frame("10.0.0.1", "10.0.0.2", packets.TCP, packets.tcp(1, 2), **ends)
            return _median_ns(loaded.programs[program].fd, raw, RUNS)


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
    return _median_ns(node.program_fd("from_endpoint"), raw, RUNS)


def _new(node: Node, to: bpf_node.Endpoint) -> int:
    node.device(CLIENT)
    raw = node.frame(CLIENT, to, packets.tcp(10000, 80))
    return _median_ns(node.program_fd("from_endpoint"), raw, NEW_RUNS, SOURCE_PORT_AT)


def _pod_established(node: Node) -> int:
    _policies(node)
    return _established(node, SERVER)


def _pod_new(node: Node) -> int:
    _policies(node)
    return _new(node, SERVER)


def _service_established(node: Node) -> int:
    node.service([(REMOTE, 8080)], packets.TCP)
    return _established(node, FRONTEND)


def _service_new(node: Node) -> int:
    node.service([(REMOTE, 8080)], packets.TCP)
    return _new(node, FRONTEND)


def _node_port(node: Node, mac: bytes = bpf_node.LOOPBACK_MAC) -> bytes:
    """WORLD asks the node's address for a service whose backend is on another node; the frame."""
    row = CLUSTER_IP._replace(flags=abi.SERVICE_NODE_PORT)
    node.service([(REMOTE, 8080)], packets.TCP, frontend=NODE, row=row, scope=abi.SERVICE_SCOPE_EXTERNAL)
    ends = {"source_mac": bpf_node.GATEWAY_MAC, "dest_mac": mac}
    return node.frame(WORLD, NODE, packets.tcp(10000, 80, packets.ACK), **ends)


def _node_port_established(node: Node) -> int:
    raw = _node_port(node)
    node.receive(raw)
    return _median_ns(node.program_fd("from_network"), raw, RUNS)


def _node_port_new(node: Node) -> int:
    return _median_ns(node.program_fd("from_network"), _node_port(node), NEW_RUNS // 2, SOURCE_PORT_AT)


def _xdp_established(node: Node, place: Namespace) -> int:
    raw = _node_port(node, OWN_MAC)
    return _median_ns(node.program_fd("xdp_from_network"), raw, RUNS, place=place)


def _xdp_new(node: Node, place: Namespace) -> int:
    raw = _node_port(node, OWN_MAC)
    return _median_ns(node.program_fd("xdp_from_network"), raw, NEW_RUNS // 2, SOURCE_PORT_AT, place)


def _policy_drop(node: Node) -> int:
    node.subject(CLIENT, egress=True)
    node.device(CLIENT)
    raw = node.frame(CLIENT, SERVER, packets.tcp(40000, 80))
    return _median_ns(node.program_fd("from_endpoint"), raw, RUNS)


ENDPOINT, HOST = "endpoint.bpf.o", "host.bpf.o"
CASES = (
    ("pod to pod, both policies, established", ENDPOINT, _pod_established, 939, 450),
    ("pod to pod, both policies, new", ENDPOINT, _pod_new, 3159, 1200),
    ("ClusterIP to remote backend, established", ENDPOINT, _service_established, 836, 400),
    ("ClusterIP to remote backend, new", ENDPOINT, _service_new, 2699, 1000),
    ("tc NodePort by SNAT to remote backend, established", HOST, _node_port_established, 821, 821),
    ("tc NodePort by SNAT to remote backend, new", HOST, _node_port_new, 2366, 2366),
    ("policy drop", ENDPOINT, _policy_drop, 341, 200),
)
XDP_CASES = (
    ("XDP NodePort by SNAT to remote backend, established", _xdp_established, 711, 250),
    ("XDP NodePort by SNAT to remote backend, new", _xdp_new, 1779, 700),
)
