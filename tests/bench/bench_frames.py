"""What forwarding one small datagram costs, with no socket in the way: live frames (BPF_F_TEST_XDP_LIVE_FRAMES) into a
device of the node, through our programs, the kernel's forwarding, iptables or nftables, to a program that drops them.

One CPU does it all, the source included, whose own cost stands in a row of its own; what counts is its time per
datagram that arrived. The rounds of all paths are interleaved, and the least of each counts. A flow is established
unless a row says that each datagram begins one.
"""

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

from datapath import codec
from datapath.abi import types as abi
from datapath.kernel import libbpf
from datapath.kernel.programs import Loaded, load_private
from datapath.masquerade import masquerade_constants, node_constants
from datapath.tables import (
    AttachmentKey,
    AttachmentRow,
    BackendKey,
    BackendRow,
    EndpointKey,
    EndpointRow,
    ServiceKey,
    ServiceRow,
)
from tests.bench import charges
from tests.bench.bench_live import BPF, CPU, SERVICES, Place, bpf_folder, live_paths
from tests.bench.report import Row
from tests.bpf import packets
from tests.bpf.node import CLIENT, REMOTE, REMOTE_NODE, WORLD
from tests.bpf.test_wire import BACKEND_PORT, OWN_NODE, ifindex
from tests.conftest import Namespace
from tests.contract.test_attach import Attached

FRAME_BYTES = 64
FRAMES, NEW_FRAMES = 100_000, 6_000
ROUNDS = 7
FIRST_PORT = 1024
NODE_PORT = 30080
ARRIVE_MIN = 0.9
"""Of the datagrams that are sent; where more are lost, the figure would be of something else."""
SENT, ARRIVED = b"\0\0\0\0", b"\1\0\0\0"


class Feed(NamedTuple):
    """Where datagrams go in: the namespace and device of the source, and what they look like."""

    source: Namespace
    device: str
    frame: bytes


class Sender(NamedTuple):
    """A source that is loaded; one of `renews` begins a flow with each datagram."""

    loaded: Loaded
    feed: Feed
    frames: int


def _udp(source: str, dest: str, port: int, source_mac: bytes, dest_mac: bytes) -> bytes:
    datagram = packets.udp(FIRST_PORT, port, bytes(FRAME_BYTES - packets.ETHERNET_BYTES - 28))
    ends = {"source_mac": source_mac, "dest_mac": dest_mac}
    return packets.frame(source, dest, packets.UDP, datagram, **ends, checksum=False)


def _from_client(place: Place, address: str, port: int) -> Feed:
    frame = _udp(CLIENT.ipv4, address, port, CLIENT.mac, CLIENT.host_mac)
    return Feed(place.client, "eth0", frame)


def _from_outside(place: Place) -> Feed:
    frame = _udp(WORLD.ipv4, OWN_NODE[4], NODE_PORT, _mac(place.remote), _mac(place.node))
    return Feed(place.remote, "und", frame)


def _mac(machine: Namespace) -> bytes:
    """Of the device that joins the two machines."""
    link = json.loads(machine.run("ip", "-json", "link", "show", "und"))
    return bytes.fromhex(link[0]["address"].replace(":", ""))


class Sinks:
    """Programs that drop what has come through, pinned where any namespace finds them."""

    def __init__(self, loaded: Loaded, folder: Path) -> None:
        self._counted = loaded.maps["counted"]
        self._pins = {name: folder / name for name in ("sink", "sink_xdp")}
        for name, path in self._pins.items():
            libbpf.pin(loaded.programs[name].fd, path)

    def put(self, namespace: Namespace, device: str) -> None:
        """Behind the device."""
        namespace.run("tc", "qdisc", "add", "dev", device, "clsact")
        namespace.run("tc", "filter", "add", "dev", device, "ingress", "bpf", "da", "pinned", str(self._pins["sink"]))

    def put_xdp(self, namespace: Namespace, device: str) -> None:
        """In the device's driver, without which it takes nothing that another one's driver sends back."""
        namespace.run("ip", "link", "set", "dev", device, "xdpdrv", "pinned", str(self._pins["sink_xdp"]))

    def arrived(self) -> int:
        """Datagrams so far."""
        return int.from_bytes(self._counted.lookup(ARRIVED) or b"", sys.byteorder)


def _receives_frames(namespace: Namespace, device: str) -> None:
    """A veth takes another's live frames only where it polls."""
    namespace.run("ethtool", "-K", device, "gro", "on")


def _outside(made: list[Namespace], sinks: Sinks, by_driver: bool) -> Place:
    """A node that a machine on the network asks, which is the backend's too."""
    place = Place(made).forward()
    place.node.run("ip", "route", "add", f"{WORLD.ipv4}/32", "via", REMOTE_NODE[4])
    known = ("lladdr", _mac(place.remote).hex(":"), "dev", "und", "nud", "permanent")
    place.node.run("ip", "neigh", "replace", REMOTE_NODE[4], *known)
    if by_driver:
        sinks.put_xdp(place.remote, "und")
    else:
        sinks.put(place.remote, "und")
        _receives_frames(place.node, "und")
    return place


def _node_port(place: Place, pins: Path, xdp: bool) -> Attached:
    """The node held by our programs, with a node port that takes its address on the way to the backend."""
    attached = Attached(place, pins, BPF)
    constants = {**node_constants((OWN_NODE[4],)), **masquerade_constants((), (10000, 29999), ())}
    attached.open("tcx", notify_verdicts=False, xdp=xdp, constants=constants)
    kernel = attached.kernel
    place.rows(kernel.objects)
    own, und = codec.address_bytes(OWN_NODE[4]), ifindex(place.node, "und")
    tables: dict[str, dict[object, object]] = {
        "endpoints": {EndpointKey(own): EndpointRow(0, abi.IDENTITY_HOST, 0, abi.ENDPOINT_HOST, bytes(6), bytes(6))},
        "backends": {BackendKey(99, 0): BackendRow(codec.address_bytes(REMOTE.ipv4), BACKEND_PORT, 0)},
        "services": {
            ServiceKey(own, NODE_PORT, packets.UDP, abi.SERVICE_SCOPE_EXTERNAL): ServiceRow(
                99, 1, abi.SERVICE_NODE_PORT
            )
        },
        "attachments": {AttachmentKey(und, "xdp"): AttachmentRow("xdp_from_network")} if xdp else {},
    }
    for table, rows in tables.items():
        failures = place.node.call(kernel.put, table, list(codec.encode_rows(table, rows).items()))
        assert not failures, failures
    attached.put(attached.rows)
    return attached


def _iptables_node_port(place: Place) -> None:
    rule = ("-d", OWN_NODE[4], "-p", "udp", "--dport", str(NODE_PORT))
    target = ("-j", "DNAT", "--to-destination", f"{REMOTE.ipv4}:{BACKEND_PORT}")
    place.node.run("iptables", "-t", "nat", "-A", "PREROUTING", *rule, *target)
    place.node.run("iptables", "-t", "nat", "-A", "POSTROUTING", "-o", "und", "-j", "MASQUERADE")


@contextmanager
def _feeds(sinks: Sinks, folder: Path) -> Iterator[dict[str, Feed]]:
    """Every path that this machine can offer, by name."""
    made: list[Namespace] = []
    with ExitStack() as stack:
        stack.callback(lambda: [each.close() for each in made])
        paths = stack.enter_context(live_paths("udp"))
        for place in {path.wire for path in paths.values()}:
            _receives_frames(place.node, "lxc")
            sinks.put(place.server, "eth0")
            sinks.put(place.remote, "und")
        feeds = {
            name: _from_client(path.wire, path.address, path.port)
            for name, path in paths.items()
            if path.cgroup is None
        }
        empty = Place(made)
        _receives_frames(empty.node, "lxc")
        sinks.put(empty.node, "lxc")
        feeds["source alone"] = _from_client(empty, REMOTE.ipv4, BACKEND_PORT)
        for name, xdp in (("node port, tc", False), ("node port, XDP", True)):
            place = _outside(made, sinks, xdp)
            attached = _node_port(place, folder / f"node-port-{int(xdp)}", xdp)
            stack.callback(attached.close)
            feeds[name] = _from_outside(place)
        if shutil.which("iptables"):
            place = _outside(made, sinks, False)
            _iptables_node_port(place)
            feeds["node port, iptables"] = _from_outside(place)
        yield feeds


def _senders(stack: ExitStack, source: Path, name: str, feed: Feed) -> dict[tuple[str, bool], Sender]:
    """Of one flow, and of a new one each time."""
    found = {}
    for renews in (False, True):
        constants = {"frames_ifindex": ifindex(feed.source, feed.device), "frames_renew": int(renews)}
        loaded = stack.enter_context(load_private(source, constants))
        assert not loaded.maps["frame"].put([(SENT, feed.frame)])
        found[name, renews] = Sender(loaded, feed, NEW_FRAMES if renews else FRAMES)
    return found


def measure() -> list[Row]:
    """All rows of this file."""
    subprocess.run(["make", "-s", "-C", str(BPF)], check=True)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="meshlog-bench-")))
        program = folder / "send_frames"
        subprocess.run(["clang", "-O2", "-o", program, Path(__file__).with_name("send_frames.c")], check=True)
        source = charges.compiled("frames.bpf.c", folder)
        pins = stack.enter_context(bpf_folder())
        sinks = Sinks(stack.enter_context(load_private(source)), pins)
        feeds = stack.enter_context(_feeds(sinks, pins))
        senders: dict[tuple[str, bool], Sender] = {}
        for name, feed in feeds.items():
            senders |= _senders(stack, source, name, feed)
        costs = _costs(program, senders, sinks)
    return list(_rows(costs))


Costs = dict[tuple[str, bool], float]
"""Nanoseconds of a datagram, by the name of its path and whether it begins a flow."""


def _costs(program: Path, senders: dict[tuple[str, bool], Sender], sinks: Sinks) -> Costs:
    least: Costs = {}
    for number in range(ROUNDS + 1):
        for key, sender in senders.items():
            cost = _cost(program, sender, sinks, sender.frames if number else sender.frames // 10)
            if cost is not None and number:  # the first fills caches and neighbour tables
                least[key] = min(least.get(key, cost), cost)
    for name, renews in senders.keys() - least.keys():
        print(f"left out: {name}, new flows: {renews}; nothing came through", file=sys.stderr, flush=True)
    return least


def _cost(program: Path, sender: Sender, sinks: Sinks, frames: int) -> float | None:
    """Of one datagram; None: too few have arrived for a figure."""
    fd = sender.loaded.programs["source"].fd
    command = ["nsenter", f"--net={sender.feed.source.path}", "taskset", "-c", CPU, program, str(fd), str(frames)]
    before, softly = sinks.arrived(), _softirq_ns()
    done = subprocess.run(command, capture_output=True, check=True, pass_fds=(fd,))
    arrived = sinks.arrived() - before
    if arrived < frames * ARRIVE_MIN:
        return None
    return (int(done.stdout) + _softirq_ns() - softly) / arrived


def _softirq_ns() -> int:
    """CPU time of the kernel's thread that takes over on this CPU where there is too much to do."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if (process / "comm").read_text().strip() == f"ksoftirqd/{CPU}":
                return int((process / "schedstat").read_text().split()[0])
        except OSError:
            continue
    return 0


COMPARED = (
    ("pod to pod on one node", "one node, ours", "kernel forwarding", "one node, kernel", 1.0),
    ("pod to pod on two nodes", "two nodes, ours", "kernel forwarding", "two nodes, kernel", 1.0),
    ("service on one node by tc", "near service, tc", "iptables DNAT", "near, iptables DNAT", 0.55),
    ("service on one node by tc", "near service, tc", "nftables map DNAT", "near, nftables map DNAT", 0.55),
    ("service on two nodes by tc", "service, tc", "iptables DNAT", "iptables DNAT", 0.55),
    ("service on two nodes by tc", "service, tc", "nftables map DNAT", "nftables map DNAT", None),
    (f"one of {SERVICES:,} services by tc", "service of many, tc", "the same with one", "service, tc", 1.1),
    ("node port by tc", "node port, tc", "iptables DNAT and masquerade", "node port, iptables", None),
    ("node port by XDP", "node port, XDP", "iptables DNAT and masquerade", "node port, iptables", 0.55),
)
FORWARDED = "kernel forwarding"
"""Without conntrack: a new flow costs it nothing, and is none to compare."""


def _rows(costs: Costs) -> Iterator[Row]:
    floor = costs.get(("source alone", False))
    if floor is not None:
        yield Row(
            "one datagram: its source, a veth pair and its drop alone", f"{floor:.0f} ns", "nothing", "", "", None
        )
    for renews in (False, True):
        said = "a datagram of a new flow" if renews else "a datagram of a known flow"
        for what, ours, against, other, limit in COMPARED:
            mine, theirs = costs.get((ours, renews)), costs.get((other, renews))
            if mine is None or theirs is None or (renews and against == FORWARDED):
                continue
            met = None if limit is None or renews else mine / theirs <= limit
            yield Row(
                f"{what}, {said}",
                f"{mine:.0f} ns",
                f"{against}: {theirs:.0f} ns",
                f"{mine / theirs:.2f}",
                "" if met is None else f"<= {limit}",
                met,
                "" if met is not False or floor is None else _reason(mine, theirs, floor),
            )


def _reason(mine: float, theirs: float, floor: float) -> str:
    """Source and drop are on both sides of a ratio."""
    without = (mine - floor) / (theirs - floor)
    return f"{floor:.0f} ns of both are the source, a veth pair and the drop; without them {without:.2f}"
