"""Real sockets over real devices: what a test run cannot show, as its packets carry no half-made checksum.

A client behind from_endpoint asks a frontend; the backend is on another machine, one without any program.
Between veths a wrong checksum goes unseen as long as the devices leave it to each other, hence both ways.
"""

import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from datapath import codec
from datapath.abi import types as abi
from datapath.kernel import libbpf, uapi
from datapath.kernel.programs import ObjectSet
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
from tests.bpf.node import CLIENT, FRONTEND, REMOTE, REMOTE_NODE
from tests.conftest import Namespace

pytestmark = [pytest.mark.kernel("bpf_redirect_peer"), pytest.mark.kernel("TCX links")]

OWN_NODE = {4: "192.168.9.1", 6: "fd00:9::1"}
GATEWAY = {4: "169.254.1.1", 6: "fe80::1"}
BACKEND_PORT, TIMEOUT_S, CHUNK_BYTES = 8080, 5, 20000
FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}


def mac_text(mac: bytes) -> str:
    """02:00:..."""
    return ":".join(f"{byte:02x}" for byte in mac)


def ifindex(namespace: Namespace, device: str) -> int:
    """The number of a device in its namespace."""
    return namespace.call(socket.if_nametoindex, device)


class Wire:
    """CLIENT in a namespace, its node with the programs, and REMOTE's machine, joined by the device `und`."""

    def __init__(self, make: Callable[[], Namespace]) -> None:
        self.client, self.node, self.remote = make(), make(), make()
        for near, near_name, far, far_name in (
            (self.node, "lxc", self.client, "eth0"),
            (self.node, "und", self.remote, "und"),
        ):
            self.node.run("ip", "link", "add", near_name, "type", "veth", "peer", "name", far_name, "netns", far.name)
            near.run("ip", "link", "set", near_name, "up")
            far.run("ip", "link", "set", far_name, "up")
        self.node.run("ip", "link", "set", "lxc", "address", mac_text(CLIENT.host_mac))
        self.client.run("ip", "link", "set", "eth0", "address", mac_text(CLIENT.mac))
        for family in FAMILIES:
            self._addresses(family)

    def _addresses(self, family: int) -> None:
        network = "24" if family == 4 else "64"
        self.client.add_address(CLIENT.address(family), "eth0")
        self.node.add_address(f"{OWN_NODE[family]}/{network}", "und")
        for address in (f"{REMOTE_NODE[family]}/{network}", REMOTE.address(family)):
            self.remote.add_address(address, "und")
        gateway = ("lladdr", mac_text(CLIENT.host_mac), "dev", "eth0", "nud", "permanent")
        self.client.run("ip", f"-{family}", "neigh", "add", GATEWAY[family], *gateway)
        onlink = ("via", GATEWAY[family], "dev", "eth0", "onlink")
        self.client.run("ip", f"-{family}", "route", "add", "default", *onlink)
        back = ("via", OWN_NODE[family], "dev", "und")
        self.remote.run("ip", f"-{family}", "route", "add", CLIENT.address(family), *back)

    def rows(self, objects: ObjectSet) -> None:
        """Everything the node knows."""
        own = ifindex(self.node, "lxc")
        tables: dict[str, dict[object, object]] = {
            "devices": {
                DeviceKey(own): DeviceRow(
                    codec.address_bytes(CLIENT.ipv4),
                    codec.address_bytes(CLIENT.ipv6),
                    CLIENT.identity,
                    1,
                    CLIENT.mac,
                )
            },
            "policy_subjects": {PolicySubjectKey(CLIENT.identity): PolicySubjectRow(0, 0, 0, 0)},
        }
        for family in FAMILIES:
            client, remote, node, frontend = map(
                codec.address_bytes,
                (
                    CLIENT.address(family),
                    REMOTE.address(family),
                    REMOTE_NODE[family],
                    FRONTEND.address(family),
                ),
            )
            row = EndpointRow(own, CLIENT.identity, 1, 0, CLIENT.mac, CLIENT.host_mac)
            tables.setdefault("endpoints", {})[EndpointKey(client)] = row
            tables.setdefault("ipcache", {})[IpcacheKey(128, client)] = IpcacheRow(NO_ADDRESS, CLIENT.identity, 0)
            away = IpcacheRow(node, REMOTE.identity, abi.IPCACHE_REMOTE_ENDPOINT)
            tables["ipcache"][IpcacheKey(128, remote)] = away
            tables.setdefault("backends", {})[BackendKey(family, 0)] = BackendRow(remote, BACKEND_PORT, 0)
            for protocol in (socket.IPPROTO_TCP, socket.IPPROTO_UDP):
                key = ServiceKey(frontend, 80, protocol)
                tables.setdefault("services", {})[key] = ServiceRow(family, 1, abi.SERVICE_CLUSTER_IP)
        for name, rows in tables.items():
            failures = objects.maps[name].put(list(codec.encode_rows(name, rows).items()))
            assert not failures, failures

    def set_offload(self, tx: str) -> None:
        """Whether the devices leave checksums to whoever comes after them."""
        for namespace, device in ((self.node, "und"), (self.remote, "und")):
            namespace.run("ethtool", "-K", device, "tx", tx)


@pytest.fixture
def wire(make_namespace: Callable[[], Namespace], objects_dir: Path, bpffs: Path) -> Iterator[Wire]:
    """The programs attached, every row written."""
    made = Wire(make_namespace)
    objects = ObjectSet(bpffs / "node", objects_dir, {"config_underlay_ifindex": ifindex(made.node, "und")})
    objects.open()
    made.rows(objects)
    links = [
        made.node.call(libbpf.link_create, objects.programs[program].fd, ifindex(made.node, device), hook)
        for program, device, hook in (
            ("from_endpoint", "lxc", uapi.TCX_INGRESS),
            ("to_endpoint", "lxc", uapi.TCX_EGRESS),
            ("from_network", "und", uapi.TCX_INGRESS),
        )
    ]
    yield made
    for link in links:
        libbpf.link_detach(link)
        os.close(link)
    objects.close()


def open_socket(family: int, kind: int, bound: tuple[str, int] | None) -> socket.socket:
    """A socket of the calling thread's namespace; a stream socket that is bound also listens."""
    opened = socket.socket(FAMILIES[family], kind)
    opened.settimeout(TIMEOUT_S)
    if bound:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        opened.bind(bound)
        if kind == socket.SOCK_STREAM:
            opened.listen()
    return opened


def received(connection: socket.socket, size: int) -> bytes:
    """Exactly so many bytes."""
    parts = bytearray()
    while len(parts) < size:
        part = connection.recv(size - len(parts))
        assert part, f"closed after {len(parts)} of {size} bytes"
        parts += part
    return bytes(parts)


@pytest.mark.parametrize("tx", ["on", "off"])
def test_stream_to_a_service(wire: Wire, family: int, tx: str) -> None:
    """TCP there and back through both translations, in segments as large as the kernel likes."""
    wire.set_offload(tx)
    bound = (REMOTE.address(family), BACKEND_PORT)
    sent = bytes(range(250)) * (CHUNK_BYTES // 250)
    with (
        wire.remote.call(open_socket, family, socket.SOCK_STREAM, bound) as listener,
        wire.client.call(open_socket, family, socket.SOCK_STREAM, None) as asking,
    ):
        asking.connect((FRONTEND.address(family), 80))
        assert asking.getpeername()[:2] == (FRONTEND.address(family), 80)
        answering, _ = listener.accept()
        with answering:
            answering.settimeout(TIMEOUT_S)
            for sender, receiver in ((asking, answering), (answering, asking)):
                sender.sendall(sent)
                assert received(receiver, len(sent)) == sent


@pytest.mark.parametrize("tx", ["on", "off"])
def test_datagram_to_a_service(wire: Wire, family: int, tx: str) -> None:
    """UDP: the answer comes from the frontend."""
    wire.set_offload(tx)
    bound = (REMOTE.address(family), BACKEND_PORT)
    with (
        wire.remote.call(open_socket, family, socket.SOCK_DGRAM, bound) as answering,
        wire.client.call(open_socket, family, socket.SOCK_DGRAM, None) as asking,
    ):
        asking.sendto(b"question", (FRONTEND.address(family), 80))
        question, source = answering.recvfrom(100)
        assert (question, source[0]) == (b"question", CLIENT.address(family))
        answering.sendto(b"answer", source)
        answer, source = asking.recvfrom(100)
        assert (answer, *source[:2]) == (b"answer", FRONTEND.address(family), 80)


def test_datagram_in_fragments_to_a_service(wire: Wire, family: int) -> None:
    """UDP beyond the MTU there and back: the kernels at both ends put the pieces together and find the sum right."""
    wire.set_offload("off")
    sent = bytes(range(250)) * 16
    bound = (REMOTE.address(family), BACKEND_PORT)
    with (
        wire.remote.call(open_socket, family, socket.SOCK_DGRAM, bound) as answering,
        wire.client.call(open_socket, family, socket.SOCK_DGRAM, None) as asking,
    ):
        asking.sendto(sent, (FRONTEND.address(family), 80))
        question, source = answering.recvfrom(len(sent))
        assert (question, source[0]) == (sent, CLIENT.address(family))
        answering.sendto(sent, source)
        answer, source = asking.recvfrom(len(sent))
        assert (answer, *source[:2]) == (sent, FRONTEND.address(family), 80)
