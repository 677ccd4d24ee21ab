"""Real sockets between an endpoint and a machine that knows nothing of the mesh, and between an endpoint and itself.

Belongs here: what test_masquerade.py and test_hairpin.py prove packet by packet, with the kernel's own stacks at both
ends, and devices that leave checksums to each other or do not.
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
from datapath.masquerade import node_constants
from datapath.tables import BackendKey, BackendRow, EndpointKey, EndpointRow, ServiceKey, ServiceRow
from tests.bpf import packets
from tests.bpf.node import CLIENT, REMOTE_NODE, WORLD
from tests.bpf.test_wire import (
    CHUNK_BYTES,
    FAMILIES,
    OWN_NODE,
    TIMEOUT_S,
    Wire,
    ifindex,
    open_socket,
    received,
)
from tests.conftest import Namespace

pytestmark = [pytest.mark.kernel("bpf_redirect_peer"), pytest.mark.kernel("TCX links")]

SELF = {4: "10.96.0.11", 6: "fd00:96::11"}
"""A frontend whose only backend is CLIENT."""
PORT, BACKEND_PORT = 443, 8080
PORTS = range(10000, 30000)


def lead_out(wire: Wire) -> None:
    """The node's routes lead to the other machine, which has WORLD's address and no route back to CLIENT."""
    wire.node.run("sysctl", "-qw", "net.ipv4.conf.all.forwarding=1", "net.ipv6.conf.all.forwarding=1")
    for family in FAMILIES:
        flag = f"-{family}"
        wire.remote.add_address(WORLD.address(family), "und")
        wire.remote.run("ip", flag, "route", "del", CLIENT.address(family))
        wire.node.run("ip", flag, "route", "add", "default", "via", REMOTE_NODE[family], "dev", "und")


def write_rows(objects: ObjectSet) -> None:
    """The node's own addresses, and the frontend that leads back."""
    tables: dict[str, dict[object, object]] = {"endpoints": {}, "services": {}, "backends": {}}
    for family in FAMILIES:
        own = EndpointKey(codec.address_bytes(OWN_NODE[family]))
        tables["endpoints"][own] = EndpointRow(0, abi.IDENTITY_HOST, 0, abi.ENDPOINT_HOST, bytes(6), bytes(6))
        backend = BackendRow(codec.address_bytes(CLIENT.address(family)), BACKEND_PORT, 0)
        tables["backends"][BackendKey(100 + family, 0)] = backend
        for protocol in (socket.IPPROTO_TCP, socket.IPPROTO_UDP):
            key = ServiceKey(codec.address_bytes(SELF[family]), 80, protocol)
            tables["services"][key] = ServiceRow(100 + family, 1, abi.SERVICE_CLUSTER_IP)
    for name, rows in tables.items():
        failures = objects.maps[name].put(list(codec.encode_rows(name, rows).items()))
        assert not failures, failures


@pytest.fixture
def wire(make_namespace: Callable[[], Namespace], objects_dir: Path, bpffs: Path) -> Iterator[Wire]:
    """The programs attached, masquerading, every row written."""
    made = Wire(make_namespace)
    lead_out(made)
    constants: dict[str, int | bytes] = {
        "config_underlay_ifindex": ifindex(made.node, "und"),
        **node_constants((OWN_NODE[4], OWN_NODE[6])),
        "config_masquerade_ipv4": codec.address_bytes(OWN_NODE[4]),
        "config_masquerade_ipv6": codec.address_bytes(OWN_NODE[6]),
        "config_masquerade_port_first": PORTS.start,
        "config_masquerade_port_count": len(PORTS),
    }
    objects = ObjectSet(bpffs / "node", objects_dir, constants)
    objects.open()
    made.rows(objects)
    write_rows(objects)
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


def stream(listening: Namespace, asking: Namespace, family: int, bound: tuple[str, int], to: tuple[str, int]) -> str:
    """Bytes both ways; the address that the listener saw."""
    sent = bytes(range(250)) * (CHUNK_BYTES // 250)
    with (
        listening.call(open_socket, family, socket.SOCK_STREAM, bound) as listener,
        asking.call(open_socket, family, socket.SOCK_STREAM, None) as client,
    ):
        client.connect(to)
        answering, seen = listener.accept()
        with answering:
            answering.settimeout(TIMEOUT_S)
            for sender, receiver in ((client, answering), (answering, client)):
                sender.sendall(sent)
                assert received(receiver, len(sent)) == sent
        assert client.getpeername()[:2] == to
    return str(seen[0])


@pytest.mark.parametrize("tx", ["on", "off"])
def test_stream_to_the_world(wire: Wire, family: int, tx: str) -> None:
    """TCP there and back; the world sees the node."""
    wire.set_offload(tx)
    there = (WORLD.address(family), PORT)
    assert stream(wire.remote, wire.client, family, there, there) == OWN_NODE[family]


@pytest.mark.parametrize("tx", ["on", "off"])
def test_datagram_to_the_world(wire: Wire, family: int, tx: str) -> None:
    """UDP; the node's port is one of those set apart."""
    wire.set_offload(tx)
    there = (WORLD.address(family), PORT)
    with (
        wire.remote.call(open_socket, family, socket.SOCK_DGRAM, there) as answering,
        wire.client.call(open_socket, family, socket.SOCK_DGRAM, None) as asking,
    ):
        asking.sendto(b"question", there)
        question, source = answering.recvfrom(100)
        assert (question, source[0], source[1] in PORTS) == (b"question", OWN_NODE[family], True)
        answering.sendto(b"answer", source)
        answer, source = asking.recvfrom(100)
        assert (answer, *source[:2]) == (b"answer", *there)


def test_refusal_reaches_the_asking_socket(wire: Wire, family: int) -> None:
    """Nobody listens: the ICMP error is translated well enough for the kernel to find the socket by its quote."""
    wire.set_offload("off")
    with wire.client.call(open_socket, family, socket.SOCK_DGRAM, None) as asking:
        asking.connect((WORLD.address(family), PORT))
        asking.send(b"question")
        with pytest.raises(ConnectionRefusedError):
            asking.recv(100)


def test_refusal_of_an_endpoint_reaches_the_world(wire: Wire, family: int) -> None:
    """The endpoint closes its socket; the answer is refused, and the world's socket is told."""
    wire.set_offload("off")
    there = (WORLD.address(family), PORT)
    with wire.remote.call(open_socket, family, socket.SOCK_DGRAM, there) as answering:
        with wire.client.call(open_socket, family, socket.SOCK_DGRAM, None) as asking:
            asking.sendto(b"question", there)
            _, source = answering.recvfrom(100)
        answering.connect(source)
        answering.send(b"answer")
        with pytest.raises(ConnectionRefusedError):
            answering.recv(100)


def test_echo_to_the_world(wire: Wire, family: int) -> None:
    """The id is translated there and back."""
    wire.set_offload("off")
    protocol, kind, reply = (packets.ICMP, 8, 0) if family == 4 else (packets.ICMPV6, 128, 129)
    ends = packets.packed(CLIENT.address(family)), packets.packed(WORLD.address(family))
    request = packets.with_checksum(packets.icmp(kind, echo_id=4711), protocol, *ends)
    with wire.client.call(socket.socket, FAMILIES[family], socket.SOCK_RAW, protocol) as asking:
        asking.settimeout(TIMEOUT_S)
        asking.bind((CLIENT.address(family), 0))
        asking.sendto(request, (WORLD.address(family), 0))
        told = b""
        while not told.endswith(bytes([reply, 0]) + told[-len(request) + 2 :]):
            told, source = asking.recvfrom(200)
        assert source[0] == WORLD.address(family)
        assert told[-len(request) + 4 :] == request[4:]


def test_node_reaches_the_world_itself(wire: Wire, family: int) -> None:
    """The node's own connections go past all this."""
    wire.set_offload("off")
    there = (WORLD.address(family), PORT)
    assert stream(wire.remote, wire.node, family, there, there) == OWN_NODE[family]


@pytest.mark.parametrize("tx", ["on", "off"])
def test_endpoint_reaches_itself(wire: Wire, family: int, tx: str) -> None:
    """TCP through a frontend whose only backend is the client; it sees neither its own nor the frontend's address."""
    wire.client.run("ethtool", "-K", "eth0", "tx", tx)
    wire.client.run("ip", "link", "set", "lo", "up")
    bound = (CLIENT.address(family), BACKEND_PORT)
    seen = stream(wire.client, wire.client, family, bound, (SELF[family], 80))
    assert seen == ("169.254.42.1" if family == 4 else "fd6d:6573:686c::1")
