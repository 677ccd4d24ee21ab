"""Packets of real sockets in namespaces of the bench's own: CPU of both ends per operation, beside the kernel doing the
same by forwarding, iptables and nftables.

Client and server share one CPU, to whose running process the kernel books what its interrupts cost; hence the sum of
both ends' CPU time is that of the whole path, sockets included. The rounds of all paths are interleaved, and the least
of each counts: what else runs on the machine only adds.
"""

import itertools
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

from datapath import codec
from datapath.abi import types as abi
from datapath.tables import (
    NO_ADDRESS,
    AttachmentKey,
    AttachmentRow,
    BackendKey,
    BackendRow,
    DeviceKey,
    DeviceRow,
    EndpointKey,
    EndpointRow,
    IpcacheKey,
    IpcacheRow,
    PolicySubjectKey,
    PolicySubjectRow,
    ServiceKey,
    ServiceRow,
    SocketHookKey,
    SocketHookRow,
)
from tests.bench.report import Row
from tests.bpf.node import CLIENT, FRONTEND, REMOTE, SERVER
from tests.bpf.test_wire import BACKEND_PORT, GATEWAY, Wire, ifindex, mac_text
from tests.conftest import CGROUP, Namespace
from tests.contract.test_attach import Attached

BPF = Path(__file__).parents[2] / "bpf"
CPU = "1"
ROUNDS = 9
EXCHANGES = {"ask": 8000, "load": 1500, "connect": 1500}
SERVICES = 20_000
SERVICE_PORT = 80
NEAR_FRONTEND = "10.96.0.11"
"""Of a service whose backend is on the client's node; FRONTEND's is on the other machine."""
NEAR_SET = 50


class Way(NamedTuple):
    """Where a client in `wire` asks; `cgroup`: the one to be in, or None; `with_server`: its server too."""

    wire: "Place"
    address: str
    port: int
    cgroup: Path | None = None
    with_server: bool = False


class Cgroups(NamedTuple):
    """Those of a node, by what is done at the sockets in them."""

    cgroup: Path | None = None
    joining_cgroup: Path | None = None


class Place(Wire):
    """A client and SERVER on one node, and REMOTE on a machine of its own."""

    def __init__(self, made: list[Namespace]) -> None:
        def make() -> Namespace:
            made.append(Namespace())
            return made[-1]

        super().__init__(make)
        self.server = make()
        self.node.run("ip", "link", "add", "lxc2", "type", "veth", "peer", "name", "eth0", "netns", self.server.name)
        self.node.run("ip", "link", "set", "lxc2", "address", mac_text(SERVER.host_mac), "up")
        for command in (
            ("link", "set", "eth0", "address", mac_text(SERVER.mac), "up"),
            ("addr", "add", f"{SERVER.ipv4}/32", "dev", "eth0"),
            ("neigh", "add", GATEWAY[4], "lladdr", mac_text(SERVER.host_mac), "dev", "eth0", "nud", "permanent"),
            ("route", "add", "default", "via", GATEWAY[4], "dev", "eth0", "onlink"),
        ):
            self.server.run("ip", *command)
        for device, pod in (("lxc", CLIENT), ("lxc2", SERVER)):
            self.node.run("ip", "route", "add", f"{pod.ipv4}/32", "dev", device)
            self.node.run(
                "ip", "neigh", "add", pod.ipv4, "lladdr", mac_text(pod.mac), "dev", device, "nud", "permanent"
            )
        self.node.run("ip", "route", "add", f"{REMOTE.ipv4}/32", "via", "192.168.9.2")

    def forward(self) -> "Place":
        """By the kernel's own stack."""
        self.node.run("sysctl", "-q", "-w", "net.ipv4.ip_forward=1")
        return self


def with_programs(place: Place, folder: Path, cgroups: Cgroups, services: int) -> Attached:
    """The node held by our programs, with so many services; the last one is asked."""
    attached = Attached(place, folder, BPF)
    named = {name: str(cgroup) for name, cgroup in cgroups._asdict().items() if cgroup}
    attached.open("tcx", notify_verdicts=False, **named)
    kernel = attached.kernel
    place.rows(kernel.objects)
    lxc2 = ifindex(place.node, "lxc2")
    server = codec.address_bytes(SERVER.ipv4)
    tables: dict[str, dict[object, object]] = {
        "endpoints": {EndpointKey(server): EndpointRow(lxc2, SERVER.identity, 2, 0, SERVER.mac, SERVER.host_mac)},
        "devices": {DeviceKey(lxc2): DeviceRow(server, NO_ADDRESS, SERVER.identity, 2, SERVER.mac)},
        "ipcache": {IpcacheKey(128, server): IpcacheRow(NO_ADDRESS, SERVER.identity, 0)},
        "policy_subjects": {PolicySubjectKey(SERVER.identity): PolicySubjectRow(0, 0, 0, 0)},
        "services": {
            ServiceKey(codec.address_bytes(f"10.97.{n >> 8}.{n & 255}"), SERVICE_PORT, 6): ServiceRow(
                1000 + n, 1, abi.SERVICE_CLUSTER_IP
            )
            for n in range(services - 1)
        }
        | {
            ServiceKey(codec.address_bytes(NEAR_FRONTEND), SERVICE_PORT, protocol): ServiceRow(
                NEAR_SET, 1, abi.SERVICE_CLUSTER_IP
            )
            for protocol in (socket.IPPROTO_TCP, socket.IPPROTO_UDP)
        },
        "backends": {
            BackendKey(1000 + n, 0): BackendRow(codec.address_bytes(REMOTE.ipv4), BACKEND_PORT, 0)
            for n in range(services - 1)
        }
        | {BackendKey(NEAR_SET, 0): BackendRow(server, BACKEND_PORT, 0)},
        "attachments": {
            AttachmentKey(lxc2, "ingress"): AttachmentRow("from_endpoint"),
            AttachmentKey(lxc2, "egress"): AttachmentRow("to_endpoint"),
        },
    }
    hooks = {"cgroup": ("connect4", "socket_connect4"), "joining_cgroup": ("sockops", "socket_life")}
    tables["socket_hooks"] = {
        SocketHookKey(hooks[name][0]): SocketHookRow(hooks[name][1], cgroup) for name, cgroup in named.items()
    }
    if cgroups.joining_cgroup:
        joined = {DeviceKey(ifindex(place.node, "lxc")): CLIENT, DeviceKey(lxc2): SERVER}
        tables["endpoints"] = {
            EndpointKey(codec.address_bytes(each.ipv4)): EndpointRow(
                key.ifindex, each.identity, number, abi.ENDPOINT_JOINED, each.mac, each.host_mac
            )
            for number, (key, each) in enumerate(joined.items(), 1)
        }
    for table, rows in tables.items():
        failures = place.node.call(kernel.put, table, list(codec.encode_rows(table, rows).items()))
        assert not failures, failures
    attached.put(attached.rows)
    return attached


def _iptables(place: Place, protocol: str) -> None:
    """As kube-proxy does for one service of one backend."""
    for frontend, backend in ((FRONTEND.ipv4, REMOTE.ipv4), (NEAR_FRONTEND, SERVER.ipv4)):
        rule = ("-d", frontend, "-p", protocol, "--dport", str(SERVICE_PORT))
        target = ("-j", "DNAT", "--to-destination", f"{backend}:{BACKEND_PORT}")
        place.node.run("iptables", "-t", "nat", "-A", "PREROUTING", *rule, *target)


def _nft(place: Place, protocol: str) -> None:
    """By a map, as kube-proxy's newer mode does."""
    place.node.run(
        "nft",
        "table ip bench { map services { type ipv4_addr . inet_service : ipv4_addr . inet_service; "
        f"elements = {{ {FRONTEND.ipv4} . {SERVICE_PORT} : {REMOTE.ipv4} . {BACKEND_PORT}, "
        f"{NEAR_FRONTEND} . {SERVICE_PORT} : {SERVER.ipv4} . {BACKEND_PORT} }}; }}; "
        "chain prerouting { type nat hook prerouting priority dstnat; "
        f"dnat ip to ip daddr . {protocol} dport map @services; }}; }}",
    )


RULES: dict[str, tuple[str, Callable[[Place, str], None]]] = {
    "iptables DNAT": ("iptables", _iptables),
    "nftables map DNAT": ("nft", _nft),
}


@contextmanager
def bpf_folder() -> Iterator[Path]:
    """A BPF filesystem of one's own."""
    with tempfile.TemporaryDirectory(prefix="meshlog-bench-") as folder:
        subprocess.run(["mount", "-t", "bpf", "bpf", folder], check=True)
        try:
            yield Path(folder)
        finally:
            subprocess.run(["umount", folder], check=True)


@contextmanager
def live_paths(protocol: str = "tcp") -> Iterator[dict[str, Way]]:
    """Every path that this machine can offer, by name; `protocol`: of what is sent to services."""
    made: list[Namespace] = []
    with ExitStack() as stack:
        folder = stack.enter_context(bpf_folder())
        stack.callback(lambda: [each.close() for each in made])
        kernel = Place(made).forward()
        ours = _ours(stack, made, folder / "one", Cgroups(), 1)
        many = _ours(stack, made, folder / "many", Cgroups(), SERVICES)
        translated, joined = CGROUP / "translated", CGROUP / "joined"
        stack.callback(CGROUP.rmdir)
        for cgroup in (translated, joined):
            cgroup.mkdir(parents=True)
            stack.callback(cgroup.rmdir)
        sockets = _ours(stack, made, folder / "sockets", Cgroups(translated), 1)
        joining = _ours(stack, made, folder / "joined", Cgroups(joining_cgroup=joined), 1)
        paths = {
            "one node, kernel": Way(kernel, SERVER.ipv4, BACKEND_PORT),
            "one node, ours": Way(ours, SERVER.ipv4, BACKEND_PORT),
            "two nodes, kernel": Way(kernel, REMOTE.ipv4, BACKEND_PORT),
            "two nodes, ours": Way(ours, REMOTE.ipv4, BACKEND_PORT),
            "service, tc": Way(ours, FRONTEND.ipv4, SERVICE_PORT),
            "near service, tc": Way(ours, NEAR_FRONTEND, SERVICE_PORT),
            "service of many, tc": Way(many, FRONTEND.ipv4, SERVICE_PORT),
            "service, socket": Way(sockets, FRONTEND.ipv4, SERVICE_PORT, translated),
            "one node, joined": Way(joining, SERVER.ipv4, BACKEND_PORT, joined, with_server=True),
        }
        for name, (tool, rule) in RULES.items():
            if shutil.which(tool):
                place = Place(made).forward()
                rule(place, protocol)
                paths[name] = Way(place, FRONTEND.ipv4, SERVICE_PORT)
                paths[f"near, {name}"] = Way(place, NEAR_FRONTEND, SERVICE_PORT)
            else:
                print(f"left out: {name}, as there is no {tool}", file=sys.stderr, flush=True)
        yield paths


def _ours(stack: ExitStack, made: list[Namespace], pins: Path, cgroups: Cgroups, services: int) -> Place:
    place = Place(made)
    attached = with_programs(place, pins, cgroups, services)
    stack.callback(attached.close)
    return place


class Cost(NamedTuple):
    """Of one operation: CPU of both ends, and how many there were in a second of the best round."""

    cpu_us: float
    rate_s: float


def measure() -> list[Row]:
    """All rows of this file."""
    subprocess.run(["make", "-s", "-C", str(BPF)], check=True)
    with tempfile.TemporaryDirectory(prefix="meshlog-bench-") as folder, live_paths() as paths:
        program = Path(folder) / "exchange"
        subprocess.run(["clang", "-O2", "-o", program, Path(__file__).with_name("exchange.c")], check=True)
        with ExitStack() as stack:
            cgroups = {path.wire: path.cgroup if path.with_server else None for path in paths.values()}
            ends = {place: _servers(stack, program, place, cgroup) for place, cgroup in cgroups.items()}
            costs = _costs(program, paths, ends)
    return [row for kind in EXCHANGES for row in _rows(kind, costs)]


def _servers(stack: ExitStack, program: Path, place: Place, cgroup: Path | None) -> dict[str, int]:
    """Starts them; process ids by address."""
    found = {}
    for namespace, address in ((place.server, SERVER.ipv4), (place.remote, REMOTE.ipv4)):
        served = [program, "serve", address, str(BACKEND_PORT)]
        command = ["nsenter", f"--net={namespace.path}", "taskset", "-c", CPU, *map(str, served)]
        process = stack.enter_context(subprocess.Popen(command, stdout=subprocess.PIPE, preexec_fn=_entering(cgroup)))
        stack.callback(process.kill)
        assert process.stdout is not None and process.stdout.readline() == b"ready\n"
        found[address] = process.pid
    return found


def _costs(program: Path, paths: dict[str, Way], ends: dict[Place, dict[str, int]]) -> dict[tuple[str, str], Cost]:
    best: dict[tuple[str, str], Cost] = {}
    for number, kind in itertools.product(range(ROUNDS + 1), EXCHANGES):
        for name, path in paths.items():
            server = ends[path.wire][SERVER.ipv4 if path.address in (SERVER.ipv4, NEAR_FRONTEND) else REMOTE.ipv4]
            found = _run(program, path, kind, server)
            if number:  # the first fills caches and neighbour tables
                known = best.get((name, kind), found)
                best[name, kind] = Cost(min(known.cpu_us, found.cpu_us), max(known.rate_s, found.rate_s))
    return best


def _run(program: Path, path: Way, kind: str, server: int) -> Cost:
    rounds = EXCHANGES[kind]
    asked = [program, kind, path.address, str(path.port), str(rounds)]
    command = ["nsenter", f"--net={path.wire.client.path}", "taskset", "-c", CPU, *map(str, asked)]
    before = _scheduled_s(server)
    done = subprocess.run(command, capture_output=True, check=True, preexec_fn=_entering(path.cgroup))
    used = json.loads(done.stdout)
    cpu_s = used["cpu_s"] + _scheduled_s(server) - before
    return Cost(cpu_s / rounds * 1e6, rounds / used["passed_s"])


def _entering(cgroup: Path | None) -> Callable[[], None]:
    """What a child does before it becomes a program."""

    def enter() -> None:
        if cgroup is not None:
            (cgroup / "cgroup.procs").write_text(str(os.getpid()))

    return enter


def _scheduled_s(process: int) -> float:
    """CPU time of a process."""
    return int(Path(f"/proc/{process}/schedstat").read_text().split()[0]) / 1e9


COMPARED = (
    ("pod to pod on one node", "one node, ours", "kernel forwarding", "one node, kernel", 1.0),
    ("joined sockets on one node", "one node, joined", "the same by packets", "one node, ours", 1.0),
    ("pod to pod on two nodes", "two nodes, ours", "kernel forwarding", "two nodes, kernel", 1.0),
    ("service by tc", "service, tc", "iptables DNAT", "iptables DNAT", 1.0),
    ("service by tc", "service, tc", "nftables map DNAT", "nftables map DNAT", 1.0),
    ("service by socket", "service, socket", "iptables DNAT", "iptables DNAT", 1.0),
    ("service by socket", "service, socket", "service by tc", "service, tc", None),
    (f"one of {SERVICES:,} services by tc", "service of many, tc", "the same with one", "service, tc", 1.1),
)
SAID = {"ask": "a request and its answer", "load": "64 KiB there and back", "connect": "a new connection with one"}


def _rows(kind: str, costs: dict[tuple[str, str], Cost]) -> Iterator[Row]:
    for what, ours, against, other, limit in COMPARED:
        if (other, kind) not in costs:
            continue
        mine, theirs = costs[ours, kind], costs[other, kind]
        ratio = mine.cpu_us / theirs.cpu_us
        yield Row(
            f"{what}, {SAID[kind]}",
            f"{mine.cpu_us:.1f} us CPU, {mine.rate_s:,.0f} /s",
            f"{against}: {theirs.cpu_us:.1f} us CPU, {theirs.rate_s:,.0f} /s",
            f"{ratio:.2f}",
            "" if limit is None else f"<= {limit}",
            None if limit is None else ratio <= limit,
        )
