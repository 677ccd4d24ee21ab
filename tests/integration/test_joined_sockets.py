"""Joined sockets of a node that has an agent: settings, restarts and a kill, with streams between two of its pods."""

import shutil
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.bpf.sockets import Maker
from tests.bpf.test_joined import Stream, exchange
from tests.conftest import Namespace
from tests.integration.test_agent import POD, Machine, made_machine, wait_for

pytestmark = [
    pytest.mark.kernel("TCX links"),
    pytest.mark.kernel("joined sockets"),
    pytest.mark.skipif(shutil.which("etcd") is None, reason="needs etcd (Debian: etcd-server)"),
]
PORT, TIMEOUT_S = 8080, 5


@pytest.fixture
def machine(bpffs: Path, objects_dir: Path, make_namespace: Callable[[], Namespace]) -> Iterator[Machine]:
    """A node and its operator."""
    with made_machine(bpffs, objects_dir, make_namespace()) as made:
        yield made


def create(machine: Machine, name: str, place: Namespace) -> str:
    """A pod; its IPv4 address."""
    document = {**POD, "metadata": {**POD["metadata"], "name": name}}  # type: ignore[dict-item]
    machine.ask("POST", "/v1/apply", {"documents": [{"document": document}]})
    body = {"container_id": name, "interface": "eth0", "netns": place.path, "namespace": "shop", "workload": name}
    made = machine.ask("POST", "/v1/endpoints", body)
    return str(made["addresses"][0]["address"]).partition("/")[0]


def connect(stack: ExitStack, client: Maker, server: Maker, address: str) -> tuple[socket.socket, socket.socket]:
    """Both ends of a new connection."""
    with server.socket(4, socket.SOCK_STREAM) as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((address, PORT))
        listening.listen()
        asking = stack.enter_context(client.socket(4, socket.SOCK_STREAM))
        asking.connect((address, PORT))
        answering = stack.enter_context(listening.accept()[0])
    answering.settimeout(TIMEOUT_S)
    return asking, answering


def joined(machine: Machine) -> int:
    """Messages that went from socket to socket, as `bpf metrics list` has them."""
    rows = machine.ask("GET", "/v1/bpf/metrics")["rows"]
    return sum(row["packets"] for row in rows if row["reason"] == "forwarded at socket")


def test_streams_outlive_every_change(
    machine: Machine, make_namespace: Callable[[], Namespace], make_cgroup: Callable[[str], Path]
) -> None:
    """Killed under traffic the agent is not missed, and back it writes nothing; with the setting off the same
    connection goes on in packets, and nothing of it is left to join others."""
    cgroup, flags = make_cgroup("node"), list(machine.agent_flags)
    on = [*flags, "--sockops-enable", "on", "--cgroup-root", str(cgroup)]
    machine.agent_flags = on
    machine.start_agent()
    wait_for("it in the status", lambda: machine.status()["joined_sockets"] == f"sockets in {cgroup}")
    places = make_namespace(), make_namespace()
    addresses = [create(machine, name, place) for name, place in zip(("web", "db"), places, strict=True)]
    wait_for("every row realized", lambda: machine.status()["kernel"]["in_sync"])
    with ExitStack() as stack:
        client, server = (stack.enter_context(Maker(place, cgroup)) for place in places)
        asking, answering = connect(stack, client, server, addresses[1])
        stream = Stream(asking, answering)
        stream.wait_more()
        before = joined(machine)
        assert before
        machine.end("agent", signal.SIGKILL)
        stream.wait_more()
        status = machine.start_agent()
        assert sum(status["kernel"]["writes_at_start"].values()) == 0
        stream.wait_more()
        answering.sendall(b"back")
        assert asking.recv(100) == b"back"
        assert joined(machine) > before
        assert machine.ask("GET", "/v1/verify")["equal"]

        machine.end("agent", signal.SIGTERM)
        machine.agent_flags = flags
        machine.start_agent()
        wait_for("it gone from the status", lambda: machine.status()["joined_sockets"] == "off")
        wait_for("every row realized", lambda: machine.status()["kernel"]["in_sync"])
        assert machine.ask("GET", "/v1/verify")["equal"]
        stream.wait_more()
        stream.end()
        before = joined(machine)
        answering.sendall(b"back")
        assert asking.recv(100) == b"back"
        exchange(*connect(stack, client, server, addresses[1]))
        assert joined(machine) == before
