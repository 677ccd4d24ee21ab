"""Real sockets through the tunnel between two nodes, everything as an agent would set it up from the log's rows.

Belongs here: what no test run can show: wrapping, sizes, and who is believed. On the underlay checksums are computed and
large packets cut; endpoints leave both to the devices.
"""

import contextlib
import errno
import itertools
import os
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from controlplane import events as e
from controlplane.commands.endpoint import CreateEndpoint
from controlplane.commands.types import Author
from controlplane.commands.workload import ApplyWorkload
from controlplane.desired.derive import Deriver
from controlplane.desired.underlay import tunnel_mtu
from controlplane.model import Device, Endpoint, Tunnel
from datapath import codec, conntrack
from datapath.abi import types as abi
from datapath.codec import address_bytes
from datapath.delta import Pending
from datapath.kernel.endpoint_side import EndpointSide
from datapath.kernel.netlink import Netlink, device_name
from datapath.kernel.real import RealKernel
from datapath.kernel.tunnels import TunnelDevices
from datapath.masquerade import masquerade_constants, node_constants
from datapath.realization import Realization
from datapath.tables import BackendKey, BackendRow, IpcacheKey, IpcacheRow, ServiceKey, ServiceRow
from tests.bpf import packets
from tests.bpf.sockets import wait_for
from tests.bpf.test_wire import TIMEOUT_S, open_socket, received
from tests.conftest import Namespace
from tests.controlplane.random_mesh import Log
from tests.controlplane.small_mesh import accept

pytestmark = [pytest.mark.kernel("bpf_redirect_peer"), pytest.mark.kernel("TCX links")]

UNDERLAY_MTU, PORT, NODE_PORT, TUNNEL_PORT = 1500, 8080, 30080, 8472
TRANSFER_BYTES = 4_000_000
CLUSTER = "east"
MTU_DISCOVER = {4: (socket.IPPROTO_IP, 10), 6: (socket.IPPROTO_IPV6, 23)}
"""IP_MTU_DISCOVER and IPV6_MTU_DISCOVER."""
PMTUDISC_DONT, PMTUDISC_DO = 0, 2
NUMBERS = itertools.count()


def underlay_addresses(number: int, family: int) -> tuple[str, ...]:
    return (f"192.168.9.{number}",) if family == 4 else (f"fd00:9::{number}",)


class Machine:
    """One node with one endpoint, `pod`, behind it."""

    endpoint: Endpoint
    tunnel: Tunnel
    kernel: RealKernel

    def __init__(self, make: Callable[[], Namespace], number: int, underlay: int) -> None:
        self.name, self.number = f"n{number}", number
        self.node, self.pod = make(), make()
        self.addresses = underlay_addresses(number, underlay)


class Mesh:
    """Two machines joined by `und`, with tunnels, their rows as derived from a log."""

    def __init__(
        self, make: Callable[[], Namespace], objects_dir: Path, pins: Path, underlay: int, pod_mtu: int
    ) -> None:
        self.machines = [Machine(make, number, underlay) for number in (1, 2)]
        self._join(underlay)
        log = Log()
        log.write(CLUSTER, "operator", e.ClusterJoined(1, ("10.1.0.0/16", "fd00:1::/48"), (24, 64), ()))
        for machine in self.machines:
            self._node(log, machine)
        for machine in self.machines:
            self._pod(log, machine, pod_mtu)
        for machine in self.machines:
            pending = Pending()
            pending.merge(Deriver(CLUSTER, machine.name).full(log.state))
            ifindex = machine.node.call(socket.if_nametoindex, "und")
            constants = {
                **node_constants(machine.addresses), **masquerade_constants(machine.addresses, (10000, 29999), ()),
            }  # fmt: skip
            pinned = pins / f"{machine.name}-{next(NUMBERS)}"
            machine.kernel = RealKernel(pinned, objects_dir, ifindex, constants=constants)
            realization = Realization(machine.kernel)
            machine.node.call(realization.open)
            report = machine.node.call(realization.converge, pending, 0.0)
            assert report.not_done == ()

    def _join(self, underlay: int) -> None:
        first, second = self.machines
        first.node.run("ip", "link", "add", "und", "type", "veth", "peer", "name", "und", "netns", second.node.name)
        for machine in self.machines:
            run = machine.node.run
            run("ip", "link", "set", "lo", "up")
            run("ip", "link", "set", "und", "up", "mtu", str(UNDERLAY_MTU))
            run("ethtool", "-K", "und", "tx", "off")
            for address in machine.addresses:
                machine.node.add_address(f"{address}/{24 if underlay == 4 else 64}", "und")
            run("sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1")

    def _node(self, log: Log, machine: Machine) -> None:
        def ensure() -> Device:
            with TunnelDevices() as tunnels:
                mtu = tunnel_mtu(UNDERLAY_MTU, machine.addresses)
                return Device(*tunnels.ensure("vxlan", TUNNEL_PORT, mtu, machine.name))

        machine.tunnel = Tunnel("vxlan", TUNNEL_PORT, machine.node.call(ensure))
        ifindex = machine.node.call(socket.if_nametoindex, "und")
        joined = e.NodeJoined(machine.name, machine.addresses, Device("und", ifindex, ""), (), machine.tunnel)
        log.write(CLUSTER, f"node.{machine.name}", joined)
        blocks = (f"10.1.{machine.number}.0/24", f"fd00:1:0:{machine.number}::/64")
        log.write(CLUSTER, "operator", e.AddressBlockAssigned(machine.name, blocks))
        assert log.state.refused_events == []

    def _pod(self, log: Log, machine: Machine, mtu: int) -> None:
        with contextlib.closing(machine.node.call(Netlink, machine.node.path)) as netlink:
            facts = netlink.create_endpoint_device(
                device_name(machine.name), machine.pod.path, "eth0", mtu, machine.name
            )
        device = Device(facts.ifname, facts.ifindex, facts.mac.hex(":"), facts.host_mac.hex(":"))
        accept(log, Author(CLUSTER, "operator"), ApplyWorkload("shop", machine.name, {"app": machine.name}))
        create = CreateEndpoint(machine.name, "shop", machine.name, device, f"c-{machine.name}", "eth0")
        accept(log, Author(CLUSTER, f"node.{machine.name}"), create)
        found = log.state.endpoint_of(CLUSTER, machine.name, f"c-{machine.name}", "eth0")
        assert found is not None
        machine.endpoint = found
        with EndpointSide(machine.pod.path, "eth0") as side:
            side.configure([address_bytes(address) for address in (found.ipv4, found.ipv6)], facts.host_mac)

    def close(self) -> None:
        for machine in self.machines:
            machine.node.call(machine.kernel.close)

    def fragments_made(self) -> int:
        """By the nodes' own stacks, of both families, since they exist."""
        return sum(_fragments_made(machine.node) for machine in self.machines)

    def dropped(self, machine: Machine) -> dict[int, int]:
        """Packets that a node's programs have dropped, by reason."""
        found: dict[int, int] = {}
        for key, value in machine.kernel.dump_runtime("metrics"):
            reason = int.from_bytes(key, sys.byteorder) >> 2
            if reason not in (abi.FORWARDED, abi.NOTIFICATIONS_LOST):
                count = sum(packets for packets, _ in struct.iter_unpack("=QQ", value))
                found[reason] = found.get(reason, 0) + count
        return found


def _fragments_made(node: Namespace) -> int:
    ipv4 = [line.split() for line in node.run("cat", "/proc/net/snmp").splitlines() if line.startswith("Ip:")]
    found = int(dict(zip(*ipv4, strict=True))["FragCreates"])
    ipv6 = dict(line.split() for line in node.run("cat", "/proc/net/snmp6").splitlines())
    return found + int(ipv6["Ip6FragCreates"])


def address_of(machine: Machine, family: int) -> str:
    return machine.endpoint.ipv4 if family == 4 else machine.endpoint.ipv6


MakeMesh = Callable[..., Mesh]


@pytest.fixture
def make_mesh(make_namespace: Callable[[], Namespace], objects_dir: Path, bpffs: Path) -> Iterator[MakeMesh]:
    """Makes the mesh over an underlay of a family."""
    made: list[Mesh] = []

    def make(underlay: int = 4, pod_mtu: int = 0) -> Mesh:
        fitting = tunnel_mtu(UNDERLAY_MTU, underlay_addresses(1, underlay))
        made.append(Mesh(make_namespace, objects_dir, bpffs, underlay, pod_mtu or fitting))
        return made[-1]

    yield make
    for each in made:
        each.close()


def transfer(
    listening: Namespace, asking: Namespace, family: int, to: str, frontend: tuple[str, int] | None = None
) -> str:
    """Many bytes each way over TCP, to an address, by way of a frontend; the address that the listener saw."""
    sent = os.urandom(TRANSFER_BYTES)
    with (
        listening.call(open_socket, family, socket.SOCK_STREAM, (to, PORT)) as listener,
        asking.call(open_socket, family, socket.SOCK_STREAM, None) as client,
    ):
        client.connect(frontend or (to, PORT))
        answering, seen = listener.accept()
        with answering:
            answering.settimeout(TIMEOUT_S)
            for sender, receiver in ((client, answering), (answering, client)):
                sending = threading.Thread(target=sender.sendall, args=(sent,))
                sending.start()
                assert received(receiver, len(sent)) == sent
                sending.join()
    return str(seen[0])


@pytest.mark.parametrize("underlay", [4, 6])
def test_large_transfer_in_whole_packets(make_mesh: MakeMesh, family: int, underlay: int) -> None:
    """TCP between endpoints of either family, wrapped in either: nothing is cut, nothing is lost."""
    mesh = make_mesh(underlay)
    first, second = mesh.machines
    there = address_of(second, family)
    assert transfer(second.pod, first.pod, family, there) == address_of(first, family)
    assert mesh.fragments_made() == 0
    assert mesh.dropped(first) == mesh.dropped(second) == {}


def test_endpoint_learns_what_fits(make_mesh: MakeMesh, family: int) -> None:
    """An endpoint with the underlay's MTU is told by ICMP: its streams go through in smaller packets, and a datagram
    that may not be cut is refused to its socket."""
    mesh = make_mesh(4, UNDERLAY_MTU)
    first, second = mesh.machines
    there = address_of(second, family)
    with first.pod.call(open_socket, family, socket.SOCK_DGRAM, None) as asking:
        asking.setsockopt(*MTU_DISCOVER[family], PMTUDISC_DO)
        asking.connect((there, PORT))
        with pytest.raises(OSError) as refused:
            for _ in range(100):
                asking.send(bytes(UNDERLAY_MTU - 48))
                time.sleep(0.02)
        assert refused.value.errno == errno.EMSGSIZE
    transfer(second.pod, first.pod, family, there)
    assert mesh.fragments_made() == 0


def test_datagram_in_fragments_is_wrapped_piece_by_piece(make_mesh: MakeMesh, family: int) -> None:
    """Beyond the MTU there and back; an endpoint whose pieces are too large has them cut once more by the host."""
    sent = bytes(range(250)) * 16
    for pod_mtu in (0, UNDERLAY_MTU) if family == 4 else (0,):
        first, second = make_mesh(4, pod_mtu).machines
        there = address_of(second, family), PORT
        with (
            second.pod.call(open_socket, family, socket.SOCK_DGRAM, there) as answering,
            first.pod.call(open_socket, family, socket.SOCK_DGRAM, None) as asking,
        ):
            asking.setsockopt(*MTU_DISCOVER[family], PMTUDISC_DONT)
            asking.sendto(sent, there)
            question, source = answering.recvfrom(len(sent))
            answering.setsockopt(*MTU_DISCOVER[family], PMTUDISC_DONT)
            answering.sendto(question, source)
            assert asking.recv(len(sent)) == sent


def test_nodes_and_endpoints_of_others(make_mesh: MakeMesh, family: int) -> None:
    """A node reaches another's endpoint, as a remote node; an endpoint reaches another node, under its own address."""
    mesh = make_mesh(family)
    first, second = mesh.machines
    there = address_of(second, family)
    assert transfer(second.pod, first.node, family, there) == first.addresses[0]
    entries = [conntrack.decode_entry(*each) for each in second.kernel.dump_runtime("conntrack")]
    assert {entry.row.source_identity for entry in entries} == {abi.IDENTITY_REMOTE_NODE}
    assert transfer(second.node, first.pod, family, second.addresses[0]) == address_of(first, family)
    assert mesh.dropped(first) == mesh.dropped(second) == {}


def test_node_with_an_identity_of_its_own(make_mesh: MakeMesh, family: int) -> None:
    """Is known by it behind the tunnel, which says only that it is a node; it is reached as any, and its packets are
    believed as those of any."""
    mesh = make_mesh(family)
    first, second = mesh.machines
    number = abi.IDENTITY_SCOPE_NODE << abi.IDENTITY_SCOPE_SHIFT | 5
    for machine, other in ((first, second), (second, first)):
        key = IpcacheKey(128, address_bytes(other.addresses[0]))
        row = IpcacheRow(key.address, number, abi.IPCACHE_TUNNEL)
        assert list(machine.kernel.put("ipcache", list(codec.encode_rows("ipcache", {key: row}).items()))) == []
    transfer(second.pod, first.node, family, address_of(second, family))
    entries = [conntrack.decode_entry(*each) for each in second.kernel.dump_runtime("conntrack")]
    assert {entry.row.source_identity for entry in entries} == {number}
    assert transfer(second.node, first.pod, family, second.addresses[0]) == address_of(first, family)
    assert mesh.dropped(first) == mesh.dropped(second) == {}


def test_frontend_of_a_node_with_its_backend_on_another(make_mesh: MakeMesh, family: int) -> None:
    """Asked by another endpoint through the tunnel, and by a machine on the underlay: there and back through the node
    that was asked, whose address the backend sees."""
    mesh = make_mesh(family)
    first, second = mesh.machines
    there, node = address_of(second, family), first.addresses[0]
    rows = {
        "backends": {BackendKey(5, 0): BackendRow(address_bytes(there), PORT, 0)},
        "services": {ServiceKey(address_bytes(node), NODE_PORT, socket.IPPROTO_TCP, abi.SERVICE_SCOPE_EXTERNAL):
                     ServiceRow(5, 1, abi.SERVICE_NODE_PORT)},
    }  # fmt: skip
    for table, each in rows.items():
        assert list(first.kernel.put(table, list(codec.encode_rows(table, each).items()))) == []
    for asking in (second.node, second.pod):
        assert transfer(second.pod, asking, family, there, (node, NODE_PORT)) == node
    assert mesh.dropped(first) == mesh.dropped(second) == {}


def test_only_nodes_of_the_mesh_are_believed(make_mesh: MakeMesh) -> None:
    """A packet is dropped that comes from an unknown machine, that claims to be from the receiving node's host or from
    nobody, or whose sender has an address that is not that node's; the same from the right node arrives."""
    mesh = make_mesh()
    first, second = mesh.machines
    own, stranger = underlay_addresses(1, 4)[0], underlay_addresses(7, 4)[0]
    first.node.add_address(f"{stranger}/24", "und")
    identity, node_address = first.endpoint.identity, second.addresses[0]
    cases = (
        (own, identity, first.endpoint.ipv4, abi.FORWARDED),
        (stranger, identity, first.endpoint.ipv4, abi.UNKNOWN_SENDER),
        (own, abi.IDENTITY_HOST, first.endpoint.ipv4, abi.INVALID_IDENTITY),
        (own, abi.IDENTITY_UNKNOWN, first.endpoint.ipv4, abi.INVALID_IDENTITY),
        (own, abi.IDENTITY_REMOTE_NODE, node_address, abi.INVALID_SOURCE_IP),
    )
    expected: dict[int, int] = {}
    with second.pod.call(open_socket, 4, socket.SOCK_DGRAM, (second.endpoint.ipv4, PORT)) as listening:
        for outer, vni, inner, reason in cases:
            raw = packets.frame(
                inner, second.endpoint.ipv4, packets.UDP, packets.udp(1000, PORT, str(reason).encode()),
                source_mac=bytes(6), dest_mac=bytes(6),
            )  # fmt: skip
            with first.node.call(open_socket, 4, socket.SOCK_DGRAM, (outer, 0)) as sending:
                sending.sendto(struct.pack(">II", 0x08000000, vni << 8) + raw, (node_address, TUNNEL_PORT))
            if reason == abi.FORWARDED:
                assert listening.recv(100) == b"0"
            else:
                expected[reason] = expected.get(reason, 0) + 1
                assert wait_for(lambda: mesh.dropped(second) == expected)
