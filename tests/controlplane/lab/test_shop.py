"""The shop's client counts what is really lost: each of its verdicts can fail."""

import json
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from controlplane.lab import flows
from controlplane.lab.restart import Restart
from tests.conftest import Namespace

pytestmark = pytest.mark.kernel("TCX links")
PORT = 8080
SERVER = str(Path(flows.CLIENT).with_name("shop_server.py"))
BAD_STREAM = """
import socket
server = socket.create_server(("127.0.0.1", 8080))
connection = server.accept()[0]
connection.recv(4096)
numbers = [n for n in range(4000) if n != 1000]
connection.sendall(b"HTTP/1.1 200 OK\\r\\n\\r\\n" + b"".join(n.to_bytes(8, "big") for n in numbers))
connection.recv(1)
"""
BAD_ECHO = """
import socket
server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
server.bind(("127.0.0.1", 8080))
count = 0
while True:
    data, sender = server.recvfrom(64)
    count += 1
    if count != 5:
        server.sendto(data, sender)
"""
PATTERN = f":{PORT:04X}"


class Shop:
    """Programs in one namespace: a server, and clients that ask it."""

    def __init__(self, namespace: Namespace) -> None:
        self._enter = ["nsenter", f"--net={namespace.path}", sys.executable, "-I", "-S"]
        namespace.run("ip", "link", "set", "lo", "up")
        self._servers: list[subprocess.Popen[bytes]] = []

    def serve(self, *words: str) -> None:
        """Start a server and wait until it listens."""
        self._servers.append(subprocess.Popen([*self._enter, *words]))
        seen = threading.Event()
        for _ in range(500):
            if self._listens():
                return
            seen.wait(0.02)
        raise AssertionError("the server does not listen")

    def _listens(self) -> bool:
        watch = "import sys; t=''.join(open(f'/proc/net/{k}').read() for k in ('tcp','tcp6','udp','udp6'));"
        done = subprocess.run([*self._enter, "-c", f"{watch} sys.exit({PATTERN!r} not in t)"], check=False)
        return done.returncode == 0

    def client(self, mode: str, address: str, finish: bool = True) -> dict[str, Any]:
        """The client's last line; its standard input is closed once data flows."""
        program = subprocess.Popen(
            [*self._enter, flows.CLIENT, mode, address, str(PORT)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            text=True,
        )
        assert program.stdout
        first = program.stdout.readline()
        if finish and mode == "datagrams":
            threading.Event().wait(0.2)  # so that a number of datagrams is under way
        out, _ = program.communicate(timeout=30)
        last: dict[str, Any] = json.loads((first + out).strip().splitlines()[-1])
        return last

    def close(self) -> None:
        """End the servers."""
        for server in self._servers:
            server.kill()
            server.wait()


@pytest.fixture
def shop(make_namespace: Callable[[], Namespace]) -> Any:
    """A namespace with a loopback, and nothing that listens yet."""
    built = Shop(make_namespace())
    yield built
    built.close()


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_http_says_who_answered(shop: Shop, address: str) -> None:
    """The answer names the server's pod, over both families."""
    shop.serve(SERVER)
    verdict = shop.client("http", address)
    assert verdict["ok"]
    assert set(verdict["answer"]) == {"name", "namespace", "cluster", "node", "client"}


def test_http_without_a_server_is_no_answer(shop: Shop) -> None:
    """A refused connection is not ok, and says why."""
    verdict = shop.client("http", "127.0.0.1")
    assert not verdict["ok"]
    assert "refused" in verdict["error"]


def test_a_whole_stream_has_no_loss(shop: Shop) -> None:
    """The real server's numbers arrive in order."""
    shop.serve(SERVER)
    count = shop.client("stream", "::1")
    assert count["bytes"] > 0
    assert (count["bytes_lost"], count["broken"]) == (0, "")


def test_a_hole_in_a_stream_is_counted(shop: Shop) -> None:
    """A number that is missing is loss."""
    shop.serve("-c", BAD_STREAM)
    assert shop.client("stream", "127.0.0.1")["bytes_lost"] > 0


def test_echoed_datagrams_are_no_loss(shop: Shop) -> None:
    """The real server sends all of them back."""
    shop.serve(SERVER)
    count = shop.client("datagrams", "127.0.0.1")
    assert count["sent"] > 5
    assert (count["lost"], count["repeated"], count["refused"]) == (0, 0, 0)


def test_a_datagram_that_does_not_come_back_is_counted(shop: Shop) -> None:
    """One in many is missing: the count says one."""
    shop.serve("-c", BAD_ECHO)
    assert shop.client("datagrams", "127.0.0.1")["lost"] == 1


SOUND: dict[str, Any] = {
    "node": "n", "stream": {"bytes": 9, "bytes_lost": 0, "broken": ""},
    "datagrams": {"sent": 9, "lost": 0, "refused": 0}, "new_connection_while_away": True, "map_writes": 0,
    "ready_s": 0.1, "ready_after_s": 0.1,
}


@pytest.mark.parametrize("change", [{"bytes_lost": 8}, {"broken": "reset"}])
def test_a_stream_that_lost_anything_is_not_whole(change: dict[str, Any]) -> None:
    """Lost bytes and a broken connection each fail the verdict."""
    assert Restart(**SOUND).stream_is_whole
    assert not Restart(**{**SOUND, "stream": SOUND["stream"] | change}).stream_is_whole


@pytest.mark.parametrize("change", [{"lost": 1}, {"refused": 1}])
def test_datagrams_that_lost_anything_are_not_whole(change: dict[str, Any]) -> None:
    """A datagram that is missing or that could not be sent fails the verdict."""
    assert Restart(**SOUND).datagrams_are_whole
    assert not Restart(**{**SOUND, "datagrams": SOUND["datagrams"] | change}).datagrams_are_whole


def test_policies_that_enforce_are_found_by_their_selectors() -> None:
    """A policy of either kind counts if it selects the labels; an empty selector selects all."""
    documents = [
        {"kind": "NetworkPolicy", "metadata": {"name": "a"}, "spec": {"podSelector": {"matchLabels": {"app": "x"}}}},
        {"kind": "CiliumNetworkPolicy", "metadata": {"name": "b"},
         "spec": {"endpointSelector": {"matchLabels": {"k8s:app": "x"}}}},
        {"kind": "NetworkPolicy", "metadata": {"name": "c"}, "spec": {"podSelector": {}}},
        {"kind": "NetworkPolicy", "metadata": {"name": "d"}, "spec": {"podSelector": {"matchLabels": {"app": "y"}}}},
    ]
    expected = ["NetworkPolicy a", "CiliumNetworkPolicy b", "NetworkPolicy c"]
    assert flows.enforcing_policies(documents, {"app": "x"}) == expected
