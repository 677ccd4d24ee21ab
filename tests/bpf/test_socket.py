"""Services at the socket: real sockets of a node's cgroup ask for a frontend and reach a backend.

The programs of sockets have no test run; each test makes its calls. What the packets meet afterwards is not looked at.
"""

import errno
import select
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from datapath import codec
from datapath.abi import types as abi
from datapath.notifications import decode_records
from datapath.tables import AffinityBackendKey, AffinityBackendRow, ServiceKey
from tests.bpf.sockets import (
    BACKEND_PORT,
    BACKENDS,
    FRONTEND,
    NODE,
    PORT,
    ROUTER,
    TIMEOUT_S,
    Maker,
    SocketNode,
)
from tests.conftest import Namespace

pytestmark = [pytest.mark.kernel("bpf_redirect_peer"), pytest.mark.kernel("socket hooks of cgroups")]

STREAM, DATAGRAM = socket.SOCK_STREAM, socket.SOCK_DGRAM
KINDS = pytest.mark.parametrize("kind", [STREAM, DATAGRAM], ids=["tcp", "udp"])


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


def mapped(address: str, family: int) -> str:
    """As an IPv6 socket writes it."""
    return f"::ffff:{address}" if family == 4 else address


def ends(found: tuple[object, ...]) -> tuple[object, ...]:
    """An address and a port."""
    return found[:2]


def test_a_connection_reaches_a_backend_and_shows_the_frontend(place: SocketNode, maker: Maker, family: int) -> None:
    """TCP: the backend sees the connection, the client sees the frontend."""
    place.service(family, STREAM, BACKENDS[family][:1])
    with place.serve(family, STREAM, BACKENDS[family][0]) as serving, maker.socket(family, STREAM) as asking:
        asking.connect((FRONTEND[family], PORT))
        answering, source = serving.accept()
        with answering:
            assert ends(asking.getpeername()) == (FRONTEND[family], PORT)
            assert ends(source) == ends(asking.getsockname())
            asking.sendall(b"question")
            assert answering.recv(100) == b"question"


def test_datagrams_go_to_a_backend_and_come_from_the_frontend(place: SocketNode, maker: Maker, family: int) -> None:
    """UDP without a connection: sendto and recvfrom both speak of the frontend."""
    place.service(family, DATAGRAM, BACKENDS[family][:1])
    with place.serve(family, DATAGRAM, BACKENDS[family][0]) as serving, maker.socket(family, DATAGRAM) as asking:
        for question in (b"first", b"second"):
            asking.sendto(question, (FRONTEND[family], PORT))
            heard, source = serving.recvfrom(100)
            assert heard == question
            serving.sendto(b"answer", source)
            answer, source = asking.recvfrom(100)
            assert (answer, ends(source)) == (b"answer", (FRONTEND[family], PORT))


def test_a_connected_datagram_socket_sees_only_the_frontend(place: SocketNode, maker: Maker, family: int) -> None:
    """UDP with connect: getpeername and recvfrom show the frontend, send needs no translation."""
    place.service(family, DATAGRAM, BACKENDS[family][:1])
    with place.serve(family, DATAGRAM, BACKENDS[family][0]) as serving, maker.socket(family, DATAGRAM) as asking:
        asking.connect((FRONTEND[family], PORT))
        assert ends(asking.getpeername()) == (FRONTEND[family], PORT)
        asking.send(b"question")
        _, source = serving.recvfrom(100)
        serving.sendto(b"answer", source)
        answer, source = asking.recvfrom(100)
        assert (answer, ends(source)) == (b"answer", (FRONTEND[family], PORT))


@KINDS
def test_an_ipv6_socket_that_talks_ipv4(place: SocketNode, maker: Maker, kind: int) -> None:
    """::ffff:a.b.c.d finds the services of IPv4, connected or not."""
    place.service(4, kind, BACKENDS[4][:1])
    frontend = (mapped(FRONTEND[4], 4), PORT)
    with place.serve(4, kind, BACKENDS[4][0]) as serving, maker.socket(6, kind) as asking:
        asking.connect(frontend)
        assert ends(asking.getpeername()) == frontend
        asking.send(b"question")
        if kind == STREAM:
            serving.accept()[0].close()
            return
        assert serving.recvfrom(100)[0] == b"question"
    with place.serve(4, kind, BACKENDS[4][0]) as serving, maker.socket(6, kind) as asking:
        asking.sendto(b"question", frontend)
        _, source = serving.recvfrom(100)
        serving.sendto(b"answer", source)
        answer, source = asking.recvfrom(100)
        assert (answer, ends(source)) == (b"answer", frontend)


def test_connections_spread_and_datagrams_stay(place: SocketNode, maker: Maker, family: int) -> None:
    """Each TCP connection chooses anew; all datagrams of one socket go to one backend."""
    for kind in (STREAM, DATAGRAM):
        place.service(family, kind, BACKENDS[family])
    with (
        place.serve(family, STREAM, BACKENDS[family][0]) as first,
        place.serve(family, STREAM, BACKENDS[family][1]) as second,
    ):
        asking = [maker.socket(family, STREAM) for _ in range(40)]
        for each in asking:
            each.connect((FRONTEND[family], PORT))
        for serving in (first, second):
            serving.accept()[0].close()
        for each in asking:
            each.close()
    with (
        place.serve(family, DATAGRAM, BACKENDS[family][0]) as first,
        place.serve(family, DATAGRAM, BACKENDS[family][1]) as second,
        maker.socket(family, DATAGRAM) as sending,
    ):
        for _ in range(20):
            sending.sendto(b"again", (FRONTEND[family], PORT))
        counts = sorted(drained(each) for each in (first, second))
        assert counts == [0, 20]


def drained(receiving: socket.socket) -> int:
    """How many datagrams wait."""
    receiving.setblocking(False)
    count = 0
    try:
        while receiving.recv(100):
            count += 1
    except BlockingIOError:
        pass
    return count


@KINDS
def test_a_frontend_without_backends_refuses_at_once(place: SocketNode, maker: Maker, family: int, kind: int) -> None:
    """ECONNREFUSED from connect, and from sendto; each is notified and counted as SERVICE_BACKEND_NOT_FOUND."""
    place.service(family, kind, ())
    frontend = (FRONTEND[family], PORT)
    with maker.socket(family, kind) as asking, pytest.raises(ConnectionRefusedError):
        asking.connect(frontend)
    calls = 1
    if kind == DATAGRAM:
        calls += 1
        with maker.socket(family, kind) as asking, pytest.raises(ConnectionRefusedError):
            asking.sendto(b"question", frontend)
    ring = place.kernel.read_notifications()
    told = decode_records(ring.read().tobytes())
    ring.close()
    assert [(each.drop_reason, each.dest_port, each.file) for each in told] == [
        (abi.SERVICE_BACKEND_NOT_FOUND, PORT, abi.FILE_SOCKET)
    ] * calls
    assert told[0].dest == codec.address_bytes(FRONTEND[family])


def test_a_kernel_that_knows_no_errors_refuses_too(place: SocketNode, maker: Maker, family: int) -> None:
    """Before Linux 6.1 the caller sees EPERM."""
    place.reopen(config_socket_errno=0)
    place.hook()
    place.service(family, STREAM, ())
    with maker.socket(family, STREAM) as asking, pytest.raises(PermissionError):
        asking.connect((FRONTEND[family], PORT))


def test_what_is_no_frontend_is_left_alone(place: SocketNode, maker: Maker, family: int) -> None:
    """A backend asked for by its own address, and another port of the frontend."""
    place.service(family, STREAM, BACKENDS[family][:1])
    with place.serve(family, STREAM, BACKENDS[family][1]) as serving, maker.socket(family, STREAM) as asking:
        asking.connect((BACKENDS[family][1], BACKEND_PORT))
        assert ends(asking.getpeername()) == (BACKENDS[family][1], BACKEND_PORT)
        serving.accept()[0].close()
    with maker.socket(family, STREAM) as asking, pytest.raises(OSError, match="unreachable"):
        asking.connect((FRONTEND[family], PORT + 1))


def test_sockets_of_another_node_are_left_alone(
    place: SocketNode, make_cgroup: Callable[[str], Path], family: int
) -> None:
    """A sibling of the node's cgroup, in the same namespace, finds no frontend."""
    place.service(family, STREAM, BACKENDS[family][:1])
    with (
        Maker(place.namespace, make_cgroup("sibling")) as other,
        other.socket(family, STREAM) as asking,
        pytest.raises(OSError, match="unreachable") as refused,
    ):
        asking.connect((FRONTEND[family], PORT))
    assert refused.value.errno in (errno.ENETUNREACH, errno.EHOSTUNREACH)


def test_a_restart_goes_unnoticed(place: SocketNode, maker: Maker, family: int) -> None:
    """While no agent runs, sockets are translated; the next one finds nothing to write, and what was connected before
    it shows its frontend still."""
    place.service(family, STREAM, BACKENDS[family][:1])
    rows = place.kernel.dump("socket_hooks")
    with (
        place.serve(family, STREAM, BACKENDS[family][0]) as serving,
        maker.socket(family, STREAM) as before,
        maker.socket(family, STREAM) as between,
    ):
        before.connect((FRONTEND[family], PORT))
        place.kernel.close()
        between.connect((FRONTEND[family], PORT))
        place.open()
        assert not place.kernel.objects.loaded
        assert place.kernel.dump("socket_hooks") == rows
        for each in (before, between):
            assert ends(each.getpeername()) == (FRONTEND[family], PORT)
            serving.accept()[0].close()


def test_other_programs_replace_those_that_run(place: SocketNode, maker: Maker, family: int) -> None:
    """Loaded anew with other constants, every hook differs; once put, the old programs are gone and the new ones run."""
    place.service(family, STREAM, BACKENDS[family][:1])
    rows = dict(place.kernel.dump("socket_hooks"))
    place.reopen(config_notify_drops=0)
    assert not place.kernel.dump("socket_hooks").items() & rows.items()
    place.hook()
    assert place.kernel.dump("socket_hooks") == rows
    assert not place.kernel.objects.has_unused
    with place.serve(family, STREAM, BACKENDS[family][0]) as serving, maker.socket(family, STREAM) as asking:
        asking.connect((FRONTEND[family], PORT))
        serving.accept()[0].close()


def test_a_cgroup_made_anew_is_hooked_anew(
    namespace: Namespace, bpffs: Path, objects_dir: Path, make_cgroup: Callable[[str], Path]
) -> None:
    """The links to the one that is gone are not taken for right, whether the kernel has ended them yet or not."""
    place = SocketNode(namespace, bpffs, objects_dir, make_cgroup("again"))
    place.hook()
    rows = dict(place.kernel.dump("socket_hooks"))
    place.cgroup.rmdir()
    place.cgroup.mkdir()
    assert not place.kernel.dump("socket_hooks").items() & rows.items()
    place.hook()
    assert place.kernel.dump("socket_hooks") == rows
    place.close()


@KINDS
def test_a_node_port_answers_at_every_address_of_the_node(
    place: SocketNode, maker: Maker, family: int, kind: int
) -> None:
    """Its row stands under one address; loopback and the node's others lead there too, addresses of others do not."""
    place.service(family, kind, BACKENDS[family][:1], address=NODE[family], flags=abi.SERVICE_NODE_PORT)
    place.own_address(ROUTER[family])
    loopback = "127.0.0.1" if family == 4 else "::1"
    with place.serve(family, kind, BACKENDS[family][0]) as serving:
        for address in (NODE[family], ROUTER[family], loopback):
            with maker.socket(family, kind) as asking:
                asking.connect((address, PORT))
                assert ends(asking.getpeername()) == (address, PORT)
                asking.send(b"question")
                if kind == STREAM:
                    serving.accept()[0].close()
                else:
                    assert serving.recv(100) == b"question"
    with maker.socket(family, STREAM) as asking, pytest.raises(ConnectionRefusedError):
        asking.connect((BACKENDS[family][1], PORT))
    assert count_of(place, abi.SERVICE_BACKEND_NOT_FOUND) == 0


def count_of(place: SocketNode, reason: int) -> int:
    """Sockets' calls refused for a reason."""
    index = (reason << 2 | abi.TRAFFIC_EGRESS).to_bytes(4, "little")
    rows = dict(place.kernel.dump_runtime("metrics"))
    value = rows.get(index, bytes(16))
    return sum(int.from_bytes(value[at : at + 8], "little") for at in range(0, len(value), 16))


def test_only_the_node_reaches_node_ports_at_loopback(
    place: SocketNode, make_namespace: Callable[[], Namespace], family: int
) -> None:
    """An endpoint's loopback is its own, though its processes are in the node's cgroup."""
    place.service(family, STREAM, BACKENDS[family][:1], address=NODE[family], flags=abi.SERVICE_NODE_PORT)
    endpoint = make_namespace()
    endpoint.run("ip", "link", "set", "lo", "up")
    with (
        Maker(endpoint, place.cgroup) as maker,
        maker.socket(family, STREAM) as asking,
        pytest.raises(ConnectionRefusedError),
    ):
        asking.connect(("127.0.0.1" if family == 4 else "::1", PORT))


def test_sockets_of_endpoints_may_be_left_to_their_devices(
    place: SocketNode, maker: Maker, make_namespace: Callable[[], Namespace], family: int
) -> None:
    """With config_socket_node_only the node's own sockets are translated, and those in other namespaces are not."""
    place.reopen(config_socket_node_only=1)
    place.hook()
    place.service(family, STREAM, BACKENDS[family][:1])
    with place.serve(family, STREAM, BACKENDS[family][0]) as serving, maker.socket(family, STREAM) as asking:
        asking.connect((FRONTEND[family], PORT))
        serving.accept()[0].close()
    with (
        Maker(make_namespace(), place.cgroup) as other,
        other.socket(family, STREAM) as asking,
        pytest.raises(OSError, match=r"unreachable|Cannot assign"),
    ):
        asking.connect((FRONTEND[family], PORT))


def test_a_namespace_keeps_its_backend(place: SocketNode, maker: Maker, family: int) -> None:
    """With session affinity all connections go to one backend, until the set has it for new flows no more."""
    place.service(family, STREAM, BACKENDS[family], affinity_s=1000)
    keys = [AffinityBackendKey(99, codec.address_bytes(each), BACKEND_PORT) for each in BACKENDS[family]]
    place.put("affinity_backends", {key: AffinityBackendRow(slot) for slot, key in enumerate(keys)})
    serving = [place.serve(family, STREAM, each) for each in BACKENDS[family]]
    first = [connect_to(place, maker, family, serving) for _ in range(20)]
    assert len({*first}) == 1
    gone = first[0]
    assert place.kernel.delete("affinity_backends", [codec.encode_key("affinity_backends", keys[gone])]) == []
    place.service(family, STREAM, [BACKENDS[family][1 - gone]], name=98, affinity_s=1000)
    place.put("affinity_backends", {keys[1 - gone]._replace(backend_set=98): AffinityBackendRow(0)})
    assert {connect_to(place, maker, family, serving) for _ in range(3)} == {1 - gone}
    for each in serving:
        each.close()


def connect_to(place: SocketNode, maker: Maker, family: int, serving: list[socket.socket]) -> int:
    """Which of the backends a connection reaches."""
    with maker.socket(family, STREAM) as asking:
        asking.connect((FRONTEND[family], PORT))
        ready, _, _ = select.select(serving, [], [], TIMEOUT_S)
        ready[0].accept()[0].close()
        return serving.index(ready[0])


def test_a_frontend_with_source_ranges_is_left_to_the_device(place: SocketNode, maker: Maker, family: int) -> None:
    """A socket without an address yet cannot be asked where it comes from."""
    place.service(family, STREAM, BACKENDS[family][:1])
    key = codec.encode_key("services", ServiceKey(codec.address_bytes(FRONTEND[family]), PORT, socket.IPPROTO_TCP))
    row = codec.decode_row("services", dict(place.kernel.dump("services"))[key])
    assert place.kernel.put("services", [(key, codec.encode_row("services", row._replace(source_range_set=7)))]) == []
    with maker.socket(family, STREAM) as asking, pytest.raises(OSError, match="unreachable"):
        asking.connect((FRONTEND[family], PORT))
