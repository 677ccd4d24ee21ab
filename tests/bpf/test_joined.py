"""Joined sockets: two endpoints of a node talk, and what they write needs no packet.

Every test makes real connections; the programs have no test run.
"""

import errno
import os
import select
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from datapath import conntrack
from datapath.abi import types as abi
from tests.bpf.neighbours import Neighbours
from tests.bpf.node import CLIENT, FRONTEND, SERVER
from tests.bpf.sockets import BACKEND_PORT, PORT, wait_for
from tests.bpf.test_wire import received
from tests.conftest import CGROUP, Namespace, mounted_bpffs

pytestmark = [
    pytest.mark.kernel("bpf_redirect_peer"),
    pytest.mark.kernel("joined sockets"),
]
NUMBERS_AHEAD = 5000


@pytest.fixture(scope="module")
def neighbours(objects_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Neighbours]:
    """A node that joins the sockets of its endpoints; its objects are loaded once."""
    with ExitStack() as stack:

        def make() -> Namespace:
            made = Namespace()
            stack.callback(made.close)
            return made

        bpffs = stack.enter_context(mounted_bpffs(tmp_path_factory.mktemp("joined") / "bpffs"))
        cgroup = CGROUP / "joined"
        cgroup.mkdir(parents=True)
        stack.callback(CGROUP.rmdir)
        stack.callback(cgroup.rmdir)
        held = Neighbours(make, bpffs, objects_dir, cgroup, stack)
        stack.callback(held.close)
        yield held


@pytest.fixture
def place(neighbours: Neighbours) -> Iterator[Neighbours]:
    """That node as new: its rows, no connection and nothing counted."""
    with ExitStack() as stack:
        neighbours.begin(stack)
        yield neighbours


def exchange(one: socket.socket, other: socket.socket, text: bytes = b"some text") -> None:
    """There and back."""
    one.sendall(text)
    assert received(other, len(text)) == text
    other.sendall(text)
    assert received(one, len(text)) == text


@contextmanager
def later(writing: socket.socket, text: bytes) -> Iterator[None]:
    """Writes when the reader has had time to fall asleep."""
    timer = threading.Timer(0.05, writing.sendall, (text,))
    timer.start()
    try:
        yield
    finally:
        timer.join()


def test_bytes_go_from_socket_to_socket(place: Neighbours, family: int) -> None:
    """Both directions from the first byte on; counted in metrics and in the flow's entry."""
    asking, answering = place.connect(family)
    (before,) = place.entries()
    exchange(asking, answering, b"x" * 1000)
    (after,) = place.entries()
    assert place.joined == (2, 2000)
    assert after.row.forward_bytes - before.row.forward_bytes == 1000
    assert after.row.reply_bytes - before.row.reply_bytes == 1000


def test_a_frontend_that_packets_translate(place: Neighbours, family: int) -> None:
    """The client's socket knows the frontend, the server's the client; both entries of the flow live on."""
    asking, answering = place.connect(family, asked=FRONTEND.address(family), port=PORT)
    entries = place.entries()
    assert len(entries) == 2
    for entry in entries:
        short = entry.row._replace(expires_ns=entry.row.expires_ns - 6000 * 1_000_000_000)
        place.kernel.objects.maps["conntrack"].put([conntrack.encode_entry(entry._replace(row=short))])
    asking.sendall(b"question")
    assert answering.recv(100) == b"question"
    assert place.joined == (1, 8)
    after = {entry.key: entry.row.expires_ns for entry in place.entries()}
    assert all(after[entry.key] >= entry.row.expires_ns for entry in entries)
    exchange(asking, answering)


def test_an_ipv6_socket_that_talks_ipv4(place: Neighbours) -> None:
    """::ffff:a.b.c.d is the same tuple."""
    asking, answering = place.connect(4, asked=f"::ffff:{SERVER.ipv4}", kind=6)
    exchange(asking, answering)
    assert place.joined[0] == 2


def test_a_permission_that_holds(place: Neighbours, family: int) -> None:
    """The policy epoch moves: both directions are judged again, and go on from socket to socket."""
    asking, answering = place.connect(family)
    exchange(asking, answering)
    place.move_epoch()
    exchange(asking, answering)
    assert place.joined[0] == 4
    assert {entry.row.policy_epoch for entry in place.entries()} == {place.epoch}


@pytest.mark.parametrize("is_reply", [False, True], ids=["request", "reply"])
def test_a_permission_that_is_revoked(place: Neighbours, family: int, is_reply: bool) -> None:
    """The next message of either direction does not arrive; it is dropped as a packet, and that is told. Neither may open
    a flow any more, as an answer without one would."""
    asking, answering = place.connect(family)
    exchange(asking, answering)
    place.notifications()
    for endpoint in (CLIENT, SERVER):
        place.subject(endpoint, ingress=True)
    place.move_epoch()
    writing, reading = (answering, asking) if is_reply else (asking, answering)
    writing.sendall(b"late")
    reading.settimeout(0.3)
    with pytest.raises(TimeoutError):
        reading.recv(100)
    assert place.joined[0] == 2
    drops = [each for each in place.notifications() if each.type == abi.NOTIFICATION_DROP]
    assert drops and {each.drop_reason for each in drops} == {abi.POLICY_DENIED}


def test_audit_is_left_to_packets(place: Neighbours, family: int) -> None:
    """What passes only because of audit is not joined, from the start or once it is so."""
    asking, answering = place.connect(family)
    place.subject(SERVER, ingress=True, flags=abi.POLICY_SUBJECT_AUDIT)
    place.move_epoch()
    exchange(asking, answering)
    later = place.connect(family)
    exchange(*later)
    assert place.joined == (0, 0)


def test_a_limited_reader_is_left_to_packets(place: Neighbours, family: int) -> None:
    """What an endpoint with a bandwidth receives passes its queue; what it sends to one without may be joined."""
    asking, answering = place.connect(family)
    place.endpoint(SERVER, abi.ENDPOINT_JOINED | abi.ENDPOINT_SHAPED)
    exchange(asking, answering)
    assert place.joined[0] == 1


@pytest.mark.parametrize("left_out", [CLIENT, SERVER], ids=["client", "server"])
def test_both_ends_must_be_for_it(place: Neighbours, family: int, left_out: object) -> None:
    """An endpoint without the flag keeps both directions in packets, from the start or later."""
    asking, answering = place.connect(family)
    place.endpoint(CLIENT if left_out == CLIENT else SERVER, 0)
    exchange(asking, answering)
    exchange(*place.connect(family))
    assert place.joined == (0, 0)


class Stream:
    """Numbers written by a thread of its own until it is told to stop, and read back. The writer stays so near its reader
    that no buffer fills."""

    def __init__(self, writing: socket.socket, reading: socket.socket) -> None:
        self._writing, self._reading = writing, reading
        self._ends = threading.Event()
        self.faults: list[str] = []
        self.read = 0
        """Numbers so far."""
        self._threads = [threading.Thread(target=self._write), threading.Thread(target=self._read)]
        for thread in self._threads:
            thread.start()

    def _write(self) -> None:
        number = 0
        while not self._ends.is_set():
            size = number % 400 + 1
            self._writing.sendall(struct.pack(f"={size}I", *range(number, number + size)))
            number += size
            while number - self.read > NUMBERS_AHEAD and not self._ends.is_set():
                select.select([], [], [], 0.0002)
        self._writing.shutdown(socket.SHUT_WR)

    def _read(self) -> None:
        held = b""
        while part := self._reading.recv(3000):
            held += part
            count = len(held) // 4
            numbers = struct.unpack_from(f"={count}I", held)
            if numbers != tuple(range(self.read, self.read + count)):
                self.faults.append(f"after {self.read}: {numbers[:3]}")
            self.read += count
            held = held[4 * count :]

    def wait_more(self, count: int = 2000) -> None:
        """Until so many numbers more were read."""
        wanted = self.read + count
        while self.read < wanted and not self.faults:
            assert all(thread.is_alive() for thread in self._threads), "a thread has died"
            select.select([], [], [], 0.005)

    def end(self) -> None:
        self._ends.set()
        for thread in self._threads:
            thread.join(10)
        assert not any(thread.is_alive() for thread in self._threads)
        assert self.faults == []


def test_switched_under_traffic(place: Neighbours, family: int) -> None:
    """Off, on and off again: the streams of both directions lose no byte and change no order."""
    asking, answering = place.connect(family)
    streams = [Stream(asking, answering), Stream(answering, asking)]
    for _ in range(3):
        for step in (place.unhook, place.hook):
            for stream in streams:
                stream.wait_more()
            step()
    for stream in streams:
        stream.end()
    before = place.joined[0]
    assert before
    exchange(*place.connect(family))
    assert place.joined[0] == before + 2


def test_an_agent_that_comes_back(place: Neighbours, family: int) -> None:
    """With the same programs its sockets stay joined, while there is no agent too."""
    asking, answering = place.connect(family)
    place.kernel.close()
    exchange(asking, answering)
    place.open()
    place.hook()
    assert place.joined[0] == 2
    exchange(asking, answering)
    assert place.joined[0] == 4


def test_an_agent_of_another_version(place: Neighbours, family: int) -> None:
    """Its programs do not reach sockets that are joined: those go over to packets, streams survive, new ones are joined."""
    ends = place.connect(family)
    stream = Stream(*place.connect(family, bound=40001))
    exchange(*ends)
    place.reopen(config_conntrack_other_s=60 + family)
    place.hook()
    stream.wait_more()
    before = place.joined[0]
    exchange(*ends)
    stream.wait_more()
    assert place.joined[0] == before
    stream.end()
    exchange(*place.connect(family))
    assert place.joined[0] == before + 2


def test_a_reader_that_lags(place: Neighbours, family: int) -> None:
    """What waits for it is bounded by its buffer: then packets take over, whose window makes the writer wait."""
    asking, answering = place.connect(family)
    asking.setblocking(False)
    chunk, sent = bytes(range(256)) * 16, 0
    with pytest.raises(BlockingIOError):
        while sent < 64_000_000:
            sent += asking.send(chunk[sent % 256 :])
    at_socket = place.joined[1]
    assert at_socket <= answering.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
    got = received(answering, sent)
    assert got == (bytes(range(256)) * (sent // 256 + 1))[:sent]
    exchange(answering, asking)
    assert place.joined[1] == at_socket + len(b"some text")


def test_what_was_written_before_the_end(place: Neighbours, family: int) -> None:
    """Unread bytes outlive the writer's close, and the reader's own half close before it; then the end is seen."""
    asking, answering = place.connect(family)
    exchange(asking, answering)
    answering.sendall(b"last words")
    asking.shutdown(socket.SHUT_WR)
    assert answering.recv(100) == b""
    answering.close()
    assert (asking.recv(100), asking.recv(100)) == (b"last words", b"")


def test_a_reset(place: Neighbours, family: int) -> None:
    """The writer resets right behind its bytes: they are read, and then the reset."""
    asking, answering = place.connect(family)
    asking.sendall(b"last words")
    asking.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    asking.close()
    assert answering.recv(100) == b"last words"
    with pytest.raises(ConnectionResetError):
        answering.recv(100)


def test_a_reader_that_is_gone(place: Neighbours, family: int) -> None:
    """The writer hears what it would hear of packets, and not that it is forbidden."""
    asking, answering = place.connect(family)
    asking.sendall(b"unread")
    answering.close()
    with pytest.raises(OSError) as caught:
        for _ in range(50):
            asking.send(b"more")
            select.select([], [], [], 0.01)
    assert caught.value.errno in (errno.EPIPE, errno.ECONNRESET)


def test_ways_to_read_and_write(place: Neighbours, family: int) -> None:
    """Peeking, edges of epoll, how much there is to read, and files that are sent."""
    asking, answering = place.connect(family)
    with select.epoll() as waiting:
        waiting.register(answering.fileno(), select.EPOLLIN | select.EPOLLET)
        assert waiting.poll(0) == []
        asking.sendall(b"question")
        assert waiting.poll(1) == [(answering.fileno(), select.EPOLLIN)]
    assert answering.recv(4, socket.MSG_PEEK) == b"ques"
    assert received(answering, 8) == b"question"
    text = Path(__file__).read_bytes()
    with open(__file__, "rb") as file:
        asking.sendfile(file)
    assert received(answering, len(text)) == text
    assert place.joined[1] == 8 + len(text)


def test_a_reader_that_waits_for_more(place: Neighbours, family: int) -> None:
    """SO_RCVLOWAT holds only for packets, so such a reader gets them."""
    asking, answering = place.connect(family)
    answering.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 8)
    asking.sendall(b"ques")
    with later(asking, b"tion"):
        assert answering.recv(100) == b"question"
    assert place.joined == (0, 0)


@pytest.mark.xfail(reason="the kernel's queue of joined sockets does not know MSG_WAITALL", strict=False)
def test_a_reader_that_waits_for_all(place: Neighbours, family: int) -> None:
    """MSG_WAITALL: a limit of the kernel's, named in docs/joined-sockets.md."""
    asking, answering = place.connect(family)
    asking.sendall(b"ques")
    with later(asking, b"tion"):
        assert answering.recv(8, socket.MSG_WAITALL) == b"question"


@pytest.mark.xfail(reason="the kernel's splice(2) does not see what joined sockets hold", strict=False)
def test_a_reader_that_splices(place: Neighbours, family: int) -> None:
    """splice(2): a limit of the kernel's, named in docs/joined-sockets.md."""
    asking, answering = place.connect(family)
    asking.sendall(b"question")
    answering.setblocking(False)
    readable, writable = os.pipe()
    try:
        assert os.splice(answering.fileno(), writable, 100) == 8
    finally:
        os.close(readable)
        os.close(writable)


def test_an_impostor(place: Neighbours, make_namespace: Callable[[], Namespace], family: int) -> None:
    """Sockets elsewhere with the very tuple of a connection neither get its bytes nor stop it."""
    asking, answering = place.connect(family, bound=40000)
    exchange(asking, answering)
    maker = place.impostor(make_namespace, family)
    with maker.socket(family, socket.SOCK_STREAM) as listening, maker.socket(family, socket.SOCK_STREAM) as false:
        listening.bind((SERVER.address(family), BACKEND_PORT))
        listening.listen()
        false.bind((CLIENT.address(family), 40000))
        false.connect((SERVER.address(family), BACKEND_PORT))
        answer, _ = listening.accept()
        with answer:
            exchange(false, answer)
            exchange(asking, answering)
    exchange(asking, answering)
    assert place.joined[0] == 6


def test_a_map_that_is_full(place: Neighbours, family: int) -> None:
    """The connection uses packets, which is counted."""
    key = abi.STRUCTS["socket_end_key"].size
    ends = place.kernel.objects.maps["socket_ends"]
    row = bytes(abi.STRUCTS["socket_end_row"].size)
    assert not ends.put([(number.to_bytes(key, "big"), row) for number in range(abi.SOCKET_ENDS_MAX)])
    exchange(*place.connect(family))
    assert place.joined == (0, 0)
    assert place.counted(abi.SOCKETS_FULL)[0] == 2


def test_nothing_is_left_behind(place: Neighbours, family: int) -> None:
    """A connection that has ended has no row, whoever ended it."""
    for first in (0, 1):
        ends = place.connect(family)
        exchange(*ends)
        assert len(place.kernel.objects.maps["socket_ends"].dump()) == 2
        ends[first].close()
        assert ends[1 - first].recv(100) == b""
        ends[1 - first].close()
        assert wait_for(lambda: place.kernel.objects.maps["socket_ends"].dump() == {})
