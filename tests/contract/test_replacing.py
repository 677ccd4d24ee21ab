"""Programs replaced again and again under real traffic of both directions: nothing is lost, nothing passes a denial.

IPv4 only: of IPv6 the kernel counts neighbour discovery among what was received, and no count would be exact.
"""

import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from datapath import codec
from datapath.kernel.attachments import Form
from datapath.kernel.clsact import Filters
from datapath.kernel.links import Links
from datapath.kernel.netlink import Netlink
from datapath.kernel.programs import ObjectSet
from datapath.tables import AttachmentKey, NodeStateKey, NodeStateRow, PolicySubjectKey, PolicySubjectRow
from tests.bpf.node import CLIENT, REMOTE
from tests.bpf.test_wire import Wire, ifindex, open_socket
from tests.conftest import Namespace
from tests.contract.test_attach import ask_service

pytestmark = [
    pytest.mark.kernel("bpf_redirect_peer"),
    pytest.mark.kernel("TCX links"),
    pytest.mark.kernel("clsact filters"),
]
ROUNDS = {"tcx": 1000, "clsact": 60}
"""Of three replacements each. A link is replaced in some us, a filter in about 1 ms."""
FIRST_PORT, SECOND_PORT, SENDER_PORT = 8081, 8082, 4000
SENDER = """
import select, socket, sys
own, other, port, sender_port = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
sending = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sending.bind((own, sender_port))
sending.connect((other, port))
sent = 0
print("ready", flush=True)
sys.stdin.readline()
while not select.select([sys.stdin], [], [], 0)[0]:
    for _ in range(64):
        sending.send(b"x" * 64)
    sent += 64
print(sent, flush=True)
"""


class Stream:
    """Datagrams from one machine to the other, as fast as they go."""

    def __init__(self, at: Namespace, own: str, other: str, port: int) -> None:
        command = ["nsenter", f"--net={at.path}", sys.executable, "-c", SENDER, own, other, str(port), str(SENDER_PORT)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None and self._process.stdout.readline() == "ready\n"

    def go(self) -> None:
        """The first datagram leaves."""
        assert self._process.stdin is not None
        self._process.stdin.write("go\n")
        self._process.stdin.flush()

    def end(self) -> int:
        """How many were sent."""
        return int(self._process.communicate("end\n")[0])


class Replaced:
    """A node whose hooks are held in one form by either of two contents on the same maps."""

    def __init__(self, wire: Wire, form: Form, contents: list[ObjectSet]) -> None:
        self.wire, self._form, self._contents = wire, form, contents
        self._hooks = {
            AttachmentKey(ifindex(wire.node, device), hook): program
            for program, device, hook in (
                ("from_endpoint", "lxc", "ingress"), ("to_endpoint", "lxc", "egress"), ("from_network", "und", "ingress"),
            )
        }  # fmt: skip

    def put(self, rounds: int) -> None:
        """Every hook once per round, with the other content each time."""
        for number in range(rounds):
            programs = self._contents[number % len(self._contents)].programs
            for key, name in self._hooks.items():
                self._form.put(key, programs[name])

    def enforce(self, epoch: int, enforced: int) -> None:
        """Whether the client may neither send nor be sent anything."""
        maps = self._contents[0].maps
        subject = {PolicySubjectKey(CLIENT.identity): PolicySubjectRow(enforced, enforced, 0, 0)}
        for table, rows in (("policy_subjects", subject), ("node_state", {NodeStateKey(0): NodeStateRow(epoch)})):
            assert not maps[table].put(list(codec.encode_rows(table, rows).items()))

    def under_load(self, rounds: int) -> tuple[list[int], list[int]]:
        """Replaces with datagrams on the way in both directions: how many were sent, and how many came."""
        ends = ((self.wire.client, CLIENT, self.wire.remote, REMOTE, FIRST_PORT),
                (self.wire.remote, REMOTE, self.wire.client, CLIENT, SECOND_PORT))  # fmt: skip
        streams = [Stream(near, own.ipv4, other.ipv4, port) for near, own, _, other, port in ends]
        bound = [
            far.call(open_socket, 4, socket.SOCK_DGRAM, (other.ipv4, port)) for _, _, far, other, port in ends
        ]
        before = [received_packets(far) for _, _, far, _, _ in ends]
        for stream in streams:
            stream.go()
        self.wire.node.call(self.put, rounds)
        sent = [stream.end() for stream in streams]
        came = [received_packets(far) - count for (_, _, far, _, _), count in zip(ends, before, strict=True)]
        for each in bound:
            each.close()
        return sent, came


def received_packets(namespace: Namespace) -> int:
    """IPv4 packets that its stack was given, whatever became of them."""
    names, values, *_ = [
        line.split() for line in namespace.run("cat", "/proc/net/snmp").splitlines() if line.startswith("Ip: ")
    ]
    return int(values[names.index("InReceives")])


@contextmanager
def opened_form(form: str, node: Namespace, links: Path) -> Iterator[Form]:
    """Of the node's namespace."""
    if form == "tcx":
        yield Links(links)
        return
    netlink = node.call(Netlink)
    try:
        yield Filters(netlink)
    finally:
        netlink.close()


@pytest.mark.parametrize("form", ROUNDS)
def test_nothing_is_lost_and_nothing_leaks(
    make_namespace: Callable[[], Namespace], bpffs: Path, objects_dir: Path, form: str
) -> None:
    """Of what was sent while programs were replaced every datagram came as long as policy allows all, and none when it
    denies all."""
    wire = Wire(make_namespace)
    underlay = ifindex(wire.node, "und")
    contents = [
        ObjectSet(bpffs / "node", objects_dir, {"config_underlay_ifindex": underlay, "config_notify_drops": told})
        for told in (0, 1)
    ]
    with opened_form(form, wire.node, bpffs / "node" / "links") as chosen:
        for content in contents:
            content.open()
        replaced = Replaced(wire, chosen, contents)
        wire.rows(contents[0])
        wire.node.call(replaced.put, 1)
        ask_service(wire, 4, b"the first, which finds the neighbours")
        replaced.enforce(1, 0)
        sent, came = replaced.under_load(ROUNDS[form])
        assert min(sent) > 0
        assert came == sent
        replaced.enforce(2, 1)
        sent, came = replaced.under_load(ROUNDS[form])
        assert min(sent) > 0
        assert came == [0, 0]
    for content in contents:
        content.close()
