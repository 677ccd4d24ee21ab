"""UDP sockets whose backend has left: found in the node's namespaces and ended, as their packets would go nowhere."""

import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from datapath import orphans
from datapath.abi import types as abi
from tests.bpf.sockets import BACKEND_PORT, BACKENDS, FRONTEND, NODE, PORT, ROUTER, Maker, SocketNode
from tests.conftest import Namespace

pytestmark = [pytest.mark.kernel("bpf_redirect_peer"), pytest.mark.kernel("socket hooks of cgroups")]

DATAGRAM = socket.SOCK_DGRAM


@pytest.fixture
def place(
    namespace: Namespace, bpffs: Path, objects_dir: Path, make_cgroup: Callable[[str], Path]
) -> Iterator[SocketNode]:
    """A node with its hooks."""
    made = SocketNode(namespace, bpffs, objects_dir, make_cgroup("node"))
    made.hook()
    yield made
    made.close()


@pytest.fixture
def maker(place: SocketNode) -> Iterator[Maker]:
    """Of sockets that belong to the node."""
    with Maker(place.namespace, place.cgroup) as made:
        yield made


def departed(place: SocketNode) -> dict[bytes, int]:
    """As the agent finds them."""
    backends = orphans.backends_of(place.kernel.dump)
    return orphans.departed_sockets(place.kernel.dump_runtime("socket_flows"), backends)


def end(place: SocketNode) -> int:
    """As the agent does."""
    return place.kernel.end_sockets(frozenset(departed(place).values()))


def test_a_socket_to_a_backend_that_left_is_ended(place: SocketNode, maker: Maker, family: int) -> None:
    """Its next call fails, while a socket to the backend that stays goes on; a new one gets that too."""
    place.service(family, DATAGRAM, BACKENDS[family][:1])
    leaving, staying = maker.socket(family, DATAGRAM), maker.socket(family, DATAGRAM)
    leaving.connect((FRONTEND[family], PORT))
    place.service(family, DATAGRAM, BACKENDS[family][1:], name=98)
    staying.connect((FRONTEND[family], PORT))
    with leaving, staying, place.serve(family, DATAGRAM, BACKENDS[family][1]) as serving:
        assert end(place) == 1
        with pytest.raises(ConnectionAbortedError):
            leaving.recv(100)
        staying.send(b"still here")
        assert serving.recv(100) == b"still here"
        assert end(place) == 0


def test_an_ipv6_socket_that_talks_ipv4_is_ended(place: SocketNode, maker: Maker) -> None:
    """By the same cookie."""
    place.service(4, DATAGRAM, BACKENDS[4][:1])
    with maker.socket(6, DATAGRAM) as leaving:
        leaving.connect((f"::ffff:{FRONTEND[4]}", PORT))
        place.service(4, DATAGRAM, ())
        assert end(place) == 1
        with pytest.raises(ConnectionAbortedError):
            leaving.recv(100)


def test_sockets_of_endpoints_are_found_in_their_namespaces(
    place: SocketNode, make_namespace: Callable[[], Namespace], family: int
) -> None:
    """Not only in that of the node."""
    endpoint = make_namespace()
    endpoint.run("ip", "link", "set", "lo", "up")
    endpoint.add_address(BACKENDS[family][0], "lo")
    place.service(family, DATAGRAM, BACKENDS[family][:1])
    with Maker(endpoint, place.cgroup) as maker, maker.socket(family, DATAGRAM) as leaving:
        leaving.connect((FRONTEND[family], PORT))
        place.service(family, DATAGRAM, ())
        assert end(place) == 1
        with pytest.raises(ConnectionAbortedError):
            leaving.recv(100)


def test_a_node_port_asked_at_another_address_counts_as_served(place: SocketNode, maker: Maker, family: int) -> None:
    """Its rows stand under one address; the socket is ended when its backend leaves, and not before."""
    node_port = {"address": NODE[family], "flags": abi.SERVICE_NODE_PORT}
    place.service(family, DATAGRAM, BACKENDS[family][:1], **node_port)  # type: ignore[arg-type]
    place.own_address(ROUTER[family])
    with maker.socket(family, DATAGRAM) as asking:
        asking.connect((ROUTER[family], PORT))
        assert departed(place) == {}
        place.service(family, DATAGRAM, BACKENDS[family][1:], name=98, **node_port)  # type: ignore[arg-type]
        assert end(place) == 1


def test_a_socket_that_asked_for_the_backend_itself_lives(place: SocketNode, maker: Maker, family: int) -> None:
    """Only what was translated is ended."""
    place.service(family, DATAGRAM, BACKENDS[family][:1])
    with maker.socket(family, DATAGRAM) as plain:
        plain.connect((BACKENDS[family][0], BACKEND_PORT))
        place.service(family, DATAGRAM, ())
        assert end(place) == 0
        plain.send(b"on its way")
