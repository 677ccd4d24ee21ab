"""Flows between two pods of one node, numbered packet by packet, while the mesh changes under them.

Belongs here: sending, fencing, and the record of which number arrived. Does not belong here: which should have, and
what changes (test_policy_live.py).

A round sends to each port one datagram through a flow that lasts and one through a new flow, and one back through the
flow that lasts; those of port KEPT last, and it ends when these have arrived. So at most one packet of a flow is under
way at a time: no buffer overflows, and what did not arrive was dropped.
"""

import socket
import threading
from contextlib import ExitStack
from typing import NamedTuple

from tests.bpf.test_wire import FAMILIES, open_socket
from tests.conftest import Namespace

KEPT, CLOSED, REVOKED, GRANTED = 7001, 7002, 7003, 7004
"""Ports, by what becomes of their flows: allowed before and after, never, only before, only after."""
ROLES = {CLOSED: "closed", REVOKED: "revoked", GRANTED: "granted", KEPT: "kept"}
"""In the order of sending."""
NEW_PORTS = 10_000
"""From here on every round has a source port of its own: one that was used before would have an entry."""
ARRIVES_S, PAUSE_S, ROUNDS_MAX = 5.0, 0.0005, 50_000
TCP_INFO_BYTES = 160
SEGS_OUT, SEGS_IN = 136, 140
"""Offsets in struct tcp_info (include/uapi/linux/tcp.h), each 32 bits."""


class Way(NamedTuple):
    """One direction of flows. `asking`: from the client, which begins them; `is_new`: each packet is a flow of its own,
    which is judged, where that of another is only under a new policy."""

    family: int
    port: int
    asking: bool
    is_new: bool = False

    def __str__(self) -> str:
        which = "of new flows" if self.is_new else "of one flow"
        return (
            f"IPv{self.family}, {ROLES[self.port]} port, {'to the server' if self.asking else 'to the client'}, {which}"
        )


class Pod(NamedTuple):
    """A namespace and its addresses by family."""

    namespace: Namespace
    addresses: dict[int, str]


class Datagrams:
    """Runs rounds in a thread of its own from `start` to `stop`; a context manager."""

    def __init__(self, client: Pod, server: Pod) -> None:
        self.arrived: dict[Way, list[int]] = {}
        self.rounds = 0
        """Of those that are complete."""
        self._sockets: dict[Way, socket.socket] = {}
        """That receives."""
        self._targets: dict[Way, tuple[str, int]] = {}
        self._open = ExitStack()
        self._ends = threading.Event()
        self._moved = threading.Condition()
        self._failure: BaseException | None = None
        # Where the client is, so that new flows cost little.
        self._thread = threading.Thread(target=client.namespace.call, args=(self._run,), name="datagrams")
        for port in ROLES:
            for family in FAMILIES:
                for asking, pod in ((True, server), (False, client)):
                    way = Way(family, port, asking)
                    bound = (pod.addresses[family], port)
                    opened = pod.namespace.call(open_socket, family, socket.SOCK_DGRAM, bound)
                    opened.settimeout(ARRIVES_S if port == KEPT else 0)
                    self._sockets[way] = self._open.enter_context(opened)
                    self._targets[way] = bound
                    self.arrived[way] = []
                self.arrived[Way(family, port, True, True)] = []

    def start(self) -> None:
        """Returns after the first rounds."""
        self._thread.start()
        self.pass_rounds(5)

    def pass_rounds(self, count: int) -> None:
        """Until so many more have begun and ended; raises what ended them."""
        with self._moved:
            goal = self.rounds + count + 1
            self._moved.wait_for(lambda: self._failure or self.rounds >= goal, ARRIVES_S * 2)
            if self._failure:
                raise self._failure
            assert self.rounds >= goal, f"round {self.rounds} has not ended"

    def stop(self) -> None:
        """After the round that is under way."""
        self._ends.set()
        self._thread.join()
        self._open.close()
        if self._failure:
            raise self._failure

    def _run(self) -> None:
        try:
            while not self._ends.wait(PAUSE_S):
                assert self.rounds < ROUNDS_MAX
                self._round(self.rounds)
                with self._moved:
                    self.rounds += 1
                    self._moved.notify_all()
        except BaseException as error:
            with self._moved:
                self._failure = error
                self._moved.notify_all()

    def _round(self, number: int) -> None:
        for asking in (True, False):
            ways = [way for way in self._sockets if way.asking is asking]
            for way in ways:
                self._sockets[way._replace(asking=not asking)].sendto(b"0 %d" % number, self._targets[way])
                if asking:
                    bound = (self._targets[way._replace(asking=False)][0], NEW_PORTS + number)
                    with open_socket(way.family, socket.SOCK_DGRAM, bound) as sending:
                        sending.sendto(b"1 %d" % number, self._targets[way])
            for way in ways:
                if way.port == KEPT:
                    for is_new in (False, True)[: asking + 1]:
                        self._await(way._replace(is_new=is_new), number)
            for way in ways:
                if way.port != KEPT:
                    self._drain(way)

    def _await(self, way: Way, number: int) -> None:
        try:
            found = self._receive(way._replace(is_new=False))
        except TimeoutError:
            raise AssertionError(f"{way}: packet {number} was dropped") from None
        assert found == (way, number), f"{way}: packet {number} was dropped; packet {found[1]} came, {found[0]}"

    def _drain(self, way: Way) -> None:
        try:
            while True:
                self._receive(way)
        except BlockingIOError:
            pass

    def _receive(self, way: Way) -> tuple[Way, int]:
        is_new, number = map(int, self._sockets[way].recv(100).split())
        found = way._replace(is_new=bool(is_new))
        self.arrived[found].append(number)
        return found, number


class Stream:
    """A TCP connection between the pods, of which every segment is counted."""

    def __init__(self, client: Pod, server: Pod, family: int, port: int) -> None:
        self.family, self.port = family, port
        bound = (server.addresses[family], port)
        with server.namespace.call(open_socket, family, socket.SOCK_STREAM, bound) as listener:
            self.client = client.namespace.call(open_socket, family, socket.SOCK_STREAM, None)
            self.client.connect(bound)
            self.server, _ = listener.accept()
        self.server.settimeout(ARRIVES_S)
        for end in (self.client, self.server):
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def __str__(self) -> str:
        return f"TCP, IPv{self.family}, {ROLES[self.port]} port"

    def exchange(self) -> None:
        """A byte there and one back."""
        for sender, receiver, where in (
            (self.client, self.server, "to the server"), (self.server, self.client, "to the client"),
        ):  # fmt: skip
            sender.sendall(b"x")
            try:
                assert receiver.recv(1) == b"x", f"{self}: closed"
            except TimeoutError:
                raise AssertionError(f"{self}: a byte {where} did not arrive") from None

    def received(self) -> tuple[int, int]:
        """Segments that came to the client's and to the server's socket."""
        return _counter(self.client, SEGS_IN), _counter(self.server, SEGS_IN)

    def sent(self) -> tuple[int, int]:
        """Segments that the client's and the server's socket sent."""
        return _counter(self.client, SEGS_OUT), _counter(self.server, SEGS_OUT)

    def close(self) -> None:
        """Both ends, without a word: what is denied cannot say goodbye."""
        for end in (self.client, self.server):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            end.close()


def _counter(end: socket.socket, offset: int) -> int:
    info = end.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, TCP_INFO_BYTES)
    return int.from_bytes(info[offset : offset + 4], "little")
