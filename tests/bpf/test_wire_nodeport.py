"""Real sockets from outside the mesh to a node's port, over real devices: half-made checksums, options, resets.

Three machines on one link: a client without any program, and two nodes; SERVER lives on the second.
"""

import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from datapath import codec
from datapath.abi import types as abi
from datapath.kernel import libbpf, uapi
from datapath.kernel.programs import OBJECTS, ObjectSet
from datapath.masquerade import masquerade_constants, node_constants
from datapath.tables import (
    NO_ADDRESS,
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
)
from tests.bpf.node import SERVER
from tests.bpf.test_wire import FAMILIES, GATEWAY, TIMEOUT_S, ifindex, mac_text, open_socket, received
from tests.conftest import Namespace

pytestmark = [pytest.mark.kernel("bpf_redirect_peer"), pytest.mark.kernel("TCX links")]

OUTSIDE = {4: "192.168.9.9", 6: "fd00:9::9"}
NODES = ({4: "192.168.9.1", 6: "fd00:9::1"}, {4: "192.168.9.2", 6: "fd00:9::2"})
BACKEND_PORT, CHUNK_BYTES = 8080, 20000
SNAT_PORT, DSR_PORT, EMPTY_PORT = 30080, 30081, 30082


class Machines:
    """The client, the two nodes and the second one's endpoint; `und` leads each machine to the switch between."""

    def __init__(self, make: Callable[[], Namespace]) -> None:
        self.outside, self.asked, self.home, self.server, switch = make(), make(), make(), make(), make()
        self.switch = switch
        switch.run("ip", "link", "add", "name", "switch", "type", "bridge")
        switch.run("ip", "link", "set", "dev", "switch", "up")
        for number, (machine, own) in enumerate(
            ((self.outside, OUTSIDE), (self.asked, NODES[0]), (self.home, NODES[1]))
        ):
            port = f"port{number}"
            machine.run("ip", "link", "add", "und", "type", "veth", "peer", "name", port, "netns", switch.name)
            switch.run("ip", "link", "set", port, "master", "switch", "up")
            machine.run("ip", "link", "set", "lo", "up")
            machine.run("ip", "link", "set", "und", "up")
            machine.run("sysctl", "-qw", "net.ipv4.conf.all.forwarding=1", "net.ipv6.conf.all.forwarding=1")
            for family, length in ((4, 24), (6, 64)):
                machine.add_address(f"{own[family]}/{length}", "und")
        self._endpoint()

    def _endpoint(self) -> None:
        self.home.run("ip", "link", "add", "lxc", "type", "veth", "peer", "name", "eth0", "netns", self.server.name)
        self.home.run("ip", "link", "set", "lxc", "address", mac_text(SERVER.host_mac), "up")
        self.server.run("ip", "link", "set", "eth0", "address", mac_text(SERVER.mac), "up")
        for family in FAMILIES:
            self.server.add_address(SERVER.address(family), "eth0")
            near = ("lladdr", mac_text(SERVER.host_mac), "dev", "eth0", "nud", "permanent")
            self.server.run("ip", f"-{family}", "neigh", "add", GATEWAY[family], *near)
            way = ("via", GATEWAY[family], "dev", "eth0", "onlink")
            self.server.run("ip", f"-{family}", "route", "add", "default", *way)

    def rows(self, number: int) -> dict[str, dict[Any, Any]]:
        """What a node knows; both know the same of services."""
        tables: dict[str, dict[Any, Any]] = {name: {} for name in ("endpoints", "ipcache", "services", "backends")}
        for family in FAMILIES:
            server, own, other = (
                codec.address_bytes(each)
                for each in (SERVER.address(family), NODES[number][family], NODES[1 - number][family])
            )
            tables["endpoints"][EndpointKey(own)] = EndpointRow(
                0, abi.IDENTITY_HOST, 0, abi.ENDPOINT_HOST, bytes(6), bytes(6)
            )
            tables["ipcache"][IpcacheKey(128, other)] = IpcacheRow(NO_ADDRESS, abi.IDENTITY_REMOTE_NODE, 0)
            at_home = IpcacheRow(NO_ADDRESS, SERVER.identity, 0)
            away = IpcacheRow(other, SERVER.identity, abi.IPCACHE_REMOTE_ENDPOINT)
            tables["ipcache"][IpcacheKey(128, server)] = at_home if number else away
            tables["backends"][BackendKey(family, 0)] = BackendRow(server, BACKEND_PORT, 0)
            for node in NODES:
                for port, count, flags in (
                    (SNAT_PORT, 1, 0), (DSR_PORT, 1, abi.SERVICE_DSR), (EMPTY_PORT, 0, 0),
                ):  # fmt: skip
                    for protocol in (socket.IPPROTO_TCP, socket.IPPROTO_UDP):
                        key = ServiceKey(
                            codec.address_bytes(node[family]), port, protocol, abi.SERVICE_SCOPE_EXTERNAL
                        )
                        tables["services"][key] = ServiceRow(family, count, abi.SERVICE_NODE_PORT | flags)
            if number:
                row = EndpointRow(ifindex(self.home, "lxc"), SERVER.identity, 1, 0, SERVER.mac, SERVER.host_mac)
                tables["endpoints"][EndpointKey(server)] = row
        if number:
            ends = codec.address_bytes(SERVER.ipv4), codec.address_bytes(SERVER.ipv6)
            device = DeviceKey(ifindex(self.home, "lxc"))
            tables["devices"] = {device: DeviceRow(*ends, SERVER.identity, 1, SERVER.mac)}
            tables["policy_subjects"] = {PolicySubjectKey(SERVER.identity): PolicySubjectRow(0, 0, 0, 0)}
        return tables

    def set_offload(self, tx: str) -> None:
        """Whether the devices leave checksums to whoever comes after them."""
        for machine, device in (
            (self.outside, "und"), (self.asked, "und"), (self.home, "und"), (self.server, "eth0"),
        ):  # fmt: skip
            machine.run("ethtool", "-K", device, "tx", tx)


class Attached:
    """Both nodes' programs, and where they are attached by TCX links."""

    def __init__(self, machines: Machines) -> None:
        self.machines = machines
        self.sets: list[ObjectSet] = []
        self._links: dict[tuple[int, str], int] = {}

    def attach(self, number: int, program: str, device: str, hook: int) -> None:
        """At a device of that node."""
        machine = (self.machines.asked, self.machines.home)[number]
        fd = self.sets[number].programs[program].fd
        self._links[number, program] = machine.call(libbpf.link_create, fd, ifindex(machine, device), hook)

    def detach(self, number: int, program: str) -> None:
        """At return its hook is free."""
        fd = self._links.pop((number, program))
        libbpf.link_detach(fd)
        os.close(fd)

    def close(self) -> None:
        for number, program in list(self._links):
            self.detach(number, program)
        for objects in self.sets:
            objects.close()


@contextmanager
def attached(
    machines: Machines, objects_dir: Path, bpffs: Path, names: tuple[str, ...] = OBJECTS
) -> Iterator[Attached]:
    """These objects loaded, the programs behind the devices attached, every row written."""
    made = Attached(machines)
    for number, machine in enumerate((machines.asked, machines.home)):
        own = tuple(NODES[number].values())
        constants = {
            "config_underlay_ifindex": ifindex(machine, "und"),
            **node_constants(own),
            **masquerade_constants((), (10000, 29999), ()),
        }
        objects = ObjectSet(bpffs / f"node{number}", objects_dir, constants, names)
        objects.open()
        made.sets.append(objects)
        for name, rows in machines.rows(number).items():
            failures = objects.maps[name].put(list(codec.encode_rows(name, rows).items()))
            assert not failures, failures
        hooks = [("from_network", "und", uapi.TCX_INGRESS)]
        if number:
            hooks += [("from_endpoint", "lxc", uapi.TCX_INGRESS), ("to_endpoint", "lxc", uapi.TCX_EGRESS)]
        for program, device, hook in hooks:
            made.attach(number, program, device, hook)
    yield made
    made.close()


@pytest.fixture
def machines(make_namespace: Callable[[], Namespace], objects_dir: Path, bpffs: Path) -> Iterator[Machines]:
    """The programs attached, every row written."""
    made = Machines(make_namespace)
    with attached(made, objects_dir, bpffs):
        yield made


@pytest.mark.parametrize(
    ("node", "port", "sees_client"),
    [(0, SNAT_PORT, False), (0, DSR_PORT, True), (1, SNAT_PORT, True)],
    ids=["SNAT", "DSR", "local"],
)
def test_client_outside_reaches_the_backend(
    machines: Machines, family: int, node: int, port: int, sees_client: bool
) -> None:
    """A stream both ways and a datagram; the backend sees the client unless it was asked with the node's address."""
    to, bound = (NODES[node][family], port), (SERVER.address(family), BACKEND_PORT)
    whom = OUTSIDE[family] if sees_client else NODES[0][family]
    with (
        machines.server.call(open_socket, family, socket.SOCK_STREAM, bound) as listener,
        machines.server.call(open_socket, family, socket.SOCK_DGRAM, bound) as datagrams,
    ):
        for tx in ("on", "off"):
            machines.set_offload(tx)
            with machines.outside.call(open_socket, family, socket.SOCK_STREAM, None) as asking:
                asking.connect(to)
                assert stream_both_ways(asking, listener) == whom
            with machines.outside.call(open_socket, family, socket.SOCK_DGRAM, None) as asking:
                asking.connect(to)
                asking.send(b"question")
                question, client = datagrams.recvfrom(100)
                assert (question, client[0]) == (b"question", whom)
                datagrams.sendto(b"answer", client)
                assert asking.recv(100) == b"answer"


def stream_both_ways(asking: socket.socket, listener: socket.socket) -> str:
    """Bytes there and back; the address that the listener saw."""
    sent = bytes(range(250)) * (CHUNK_BYTES // 250)
    answering, client = listener.accept()
    with answering:
        answering.settimeout(TIMEOUT_S)
        for sender, receiver in ((asking, answering), (answering, asking)):
            sender.sendall(sent)
            assert received(receiver, len(sent)) == sent
    return str(client[0])


def test_refusal_reaches_the_client(machines: Machines, family: int) -> None:
    """A frontend without backends, whoever computes the checksums: no waiting."""
    for tx in ("on", "off"):
        machines.set_offload(tx)
        with (
            machines.outside.call(open_socket, family, socket.SOCK_STREAM, None) as asking,
            pytest.raises(ConnectionRefusedError),
        ):
            asking.connect((NODES[0][family], EMPTY_PORT))
        with machines.outside.call(open_socket, family, socket.SOCK_DGRAM, None) as asking:
            asking.connect((NODES[0][family], EMPTY_PORT))
            asking.send(b"question")
            with pytest.raises(ConnectionRefusedError):
                asking.recv(100)
