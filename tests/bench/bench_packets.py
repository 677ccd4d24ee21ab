"""Nanoseconds per packet of each program path, by BPF_PROG_TEST_RUN on private maps, beside Cilium's on a like machine.

Notifications are off, as for the figures beside. The figure of an empty program is taken off. "New" is a new connection
with every packet: conntrack is emptied before.
"""

import statistics
import subprocess
import sysconfig
import tempfile
from collections.abc import Callable
from pathlib import Path

from datapath.abi import types as abi
from datapath.kernel.programs import load_private
from tests.bench.report import Row
from tests.bpf import node as bpf_node
from tests.bpf import packets
from tests.bpf.node import CLIENT, FRONTEND, REMOTE, SERVER, Node

REPEAT = 2000
NEW_ROUNDS = 400
BPF = Path(__file__).parents[2] / "bpf"


def measure() -> list[Row]:
    """All rows of this file."""
    subprocess.run(["make", "-s", "-C", str(BPF)], check=True)
    wrapper_ns = _wrapper_ns()
    rows = []
    for what, run, cilium_ns, limit_ns in CASES:
        with bpf_node.load(BPF / "endpoint.bpf.o", config_notify_verdicts=0, config_notify_drops=0) as node:
            node.settle()
            ns = run(node) - wrapper_ns
        rows.append(
            Row(
                what,
                f"{ns} ns",
                f"Cilium 1.19.4: {cilium_ns} ns",
                f"{ns / cilium_ns:.2f}",
                f"< {limit_ns} ns",
                ns < limit_ns,
            )
        )
    return rows


def _wrapper_ns() -> int:
    """What the test run of one packet costs around the program."""
    with tempfile.TemporaryDirectory() as folder:
        compiled = Path(folder) / "empty.bpf.o"
        headers = f"-I/usr/include/{sysconfig.get_config_var('MULTIARCH')}"
        source = Path(__file__).with_name("empty.bpf.c")
        subprocess.run(["clang", "-O2", "-g", "-target", "bpf", headers, "-c", source, "-o", compiled], check=True)
        with load_private(compiled, {}) as loaded:
            raw = packets.frame(
                "10.0.0.1", "10.0.0.2", packets.TCP, packets.tcp(1, 2), source_mac=bytes(6), dest_mac=bytes(6)
            )
            return _median(lambda: loaded.test_run("empty", raw).duration_ns, REPEAT)


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
    opening = node.frame(CLIENT, segment_to, packets.tcp(40000, 80))
    node.send(CLIENT, opening)
    acknowledgement = node.frame(CLIENT, segment_to, packets.tcp(40000, 80, packets.ACK), ttl=255)
    return _median(lambda: node.nanoseconds("from_endpoint", acknowledgement, 1), REPEAT)


def _new(node: Node, to: bpf_node.Endpoint) -> int:
    node.device(CLIENT)
    port = iter(range(10000, 10000 + NEW_ROUNDS))
    return _median(
        lambda: node.nanoseconds("from_endpoint", node.frame(CLIENT, to, packets.tcp(next(port), 80)), 1), NEW_ROUNDS
    )


def _median(sample: Callable[[], int], count: int) -> int:
    return round(statistics.median(sample() for _ in range(count)))


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


def _policy_drop(node: Node) -> int:
    node.subject(CLIENT, egress=True)
    node.device(CLIENT)
    refused = node.frame(CLIENT, SERVER, packets.tcp(40000, 80))
    return _median(lambda: node.nanoseconds("from_endpoint", refused, 1), REPEAT)


CASES = (
    ("pod to pod, both policies, established", _pod_established, 939, 450),
    ("pod to pod, both policies, new", _pod_new, 3159, 1200),
    ("ClusterIP to remote backend, established", _service_established, 836, 400),
    ("ClusterIP to remote backend, new", _service_new, 2699, 1000),
    ("policy drop", _policy_drop, 341, 200),
)
