"""A node port under native XDP: one connection with real sockets, taken over and given back while it lives."""

import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from datapath.kernel import libbpf, uapi
from datapath.kernel.programs import OBJECTS, XDP_OBJECT
from datapath.kernel.xdp_links import XdpLinks
from datapath.tables import AttachmentKey
from tests.bpf.node import SERVER
from tests.bpf.test_wire import TIMEOUT_S, ifindex, open_socket, received
from tests.bpf.test_wire_nodeport import BACKEND_PORT, NODES, SNAT_PORT, Attached, Machines, attached
from tests.conftest import Namespace

pytestmark = [
    pytest.mark.kernel("bpf_redirect_peer"),
    pytest.mark.kernel("TCX links"),
    pytest.mark.kernel("XDP links"),
]

XDP_PASS = 2
CHUNK = bytes(range(250)) * 80


@pytest.fixture
def place(make_namespace: Callable[[], Namespace], objects_dir: Path, bpffs: Path) -> Iterator[Attached]:
    """A client, the node that it asks and the backend's; what the former sends back needs an XDP program at the other
    end of its cable."""
    machines = Machines(make_namespace)
    machines.set_offload("off")
    body = libbpf.instruction(libbpf.MOVE_IMMEDIATE, 0, XDP_PASS) + libbpf.instruction(libbpf.EXIT)
    program, code = libbpf.program_load(uapi.PROG_TYPE_XDP, body, uapi.XDP)
    assert not code
    end = machines.switch.call(
        libbpf.link_create, program, ifindex(machines.switch, "port1"), uapi.XDP, uapi.XDP_NATIVE
    )
    with attached(machines, objects_dir, bpffs, (*OBJECTS, XDP_OBJECT)) as made:
        yield made
    libbpf.link_detach(end)
    os.close(end)
    os.close(program)


def exchange(asking: socket.socket, answering: socket.socket) -> None:
    """Bytes there and back."""
    for sender, receiver in ((asking, answering), (answering, asking)):
        sender.sendall(CHUNK)
        assert received(receiver, len(CHUNK)) == CHUNK


def test_connection_is_taken_over_by_the_device_and_given_back(place: Attached, family: int, bpffs: Path) -> None:
    """Begun by the programs behind, it goes on while only the device's is there; then the other way round; and one that
    begins at the device goes on behind."""
    machines, asked = place.machines, place.machines.asked
    key = AttachmentKey(ifindex(asked, "und"), "xdp")
    links = XdpLinks(bpffs / "xdp")
    with (
        machines.server.call(
            open_socket, family, socket.SOCK_STREAM, (SERVER.address(family), BACKEND_PORT)
        ) as listener,
        machines.outside.call(open_socket, family, socket.SOCK_STREAM, None) as first,
        machines.outside.call(open_socket, family, socket.SOCK_STREAM, None) as second,
    ):
        to = NODES[0][family], SNAT_PORT
        first.connect(to)
        answering, client = listener.accept()
        answering.settimeout(TIMEOUT_S)
        assert client[0] == NODES[0][family]
        exchange(first, answering)
        asked.call(links.put, key, place.sets[0].programs["xdp_from_network"])
        exchange(first, answering)
        place.detach(0, "from_network")
        exchange(first, answering)
        second.connect(to)
        answering_second, _ = listener.accept()
        answering_second.settimeout(TIMEOUT_S)
        exchange(second, answering_second)
        place.attach(0, "from_network", "und", uapi.TCX_INGRESS)
        asked.call(links.delete, key)
        for connection, other in ((first, answering), (second, answering_second)):
            exchange(connection, other)
            other.close()
