"""The fourth step of the story: an agent is killed while streams run through its node, and comes back.

Belongs here: the streams, the kill, the figures. Does not belong here: what is printed (story.py).
"""

import json
import os
import signal
import subprocess
import time
from typing import Any, Self

import msgspec

from controlplane.lab import flows, machine, nodes, processes
from controlplane.lab.topology import LabNode, LabPod
from controlplane.lab.up import ask

BEFORE_S = 1.0
AWAY_S = 1.0
AFTER_S = 1.0
"""How long the streams run before the kill, without an agent, and after it is ready again: the length of a
demonstration, not a wait for a condition."""
FLOW_S_MAX = 10.0


class Restart(msgspec.Struct, frozen=True):
    """`ready_s`: from the start of the new process until its kernel holds the whole desired state."""

    node: str
    stream: dict[str, Any]
    datagrams: dict[str, Any]
    new_connection_while_away: bool
    map_writes: int
    ready_s: float
    ready_after_s: float

    @property
    def stream_is_whole(self) -> bool:
        """The connection lived and no byte was lost, doubled or swapped."""
        return not self.stream["broken"] and not self.stream["bytes_lost"]

    @property
    def datagrams_are_whole(self) -> bool:
        """Every datagram came back."""
        return not self.datagrams["lost"] and not self.datagrams["refused"]


def kill_and_return(node: LabNode, source: LabPod, stream_to: str, datagrams_to: str, new_to: str) -> Restart:
    """Addresses are those of pods whose flows pass the node. Raises LabFailure."""
    port = str(flows.POD_PORT)
    with _Running(flows.client(source, "stream", stream_to, port)) as stream:
        with _Running(flows.client(source, "datagrams", datagrams_to, port)) as datagrams:
            time.sleep(BEFORE_S)
            _kill(node)
            time.sleep(AWAY_S)
            new = flows.request(source, new_to, flows.POD_PORT)
            started = time.monotonic()
            nodes.ensure_agent(node)
            status = nodes.wait_ready(nodes.agent_name(node), node.socket)
            ready_s = time.monotonic() - started
            time.sleep(AFTER_S)
            datagram_count = datagrams.finish()
        stream_count = stream.finish()
    written = ask(node.socket, "GET", "/v1/status")["kernel"]["writes_at_start"]
    return Restart(
        node.name, stream_count, datagram_count, bool(new["ok"]), sum(written.values()), round(ready_s, 3),
        round(float(str(status["ready_after_s"])), 3),
    )


def _kill(node: LabNode) -> None:
    name = nodes.agent_name(node)
    process = processes.find(name)
    if process is None:
        raise machine.LabFailure(f"{name} does not run; see {processes.log_path(name)}")
    os.kill(process.pid, signal.SIGKILL)
    machine.wait_for(lambda: processes.find(name) is None, FLOW_S_MAX)


class _Running:
    """A client that runs until it is finished; entered once its data flows."""

    def __init__(self, argv: list[str]) -> None:
        self._argv = argv

    def __enter__(self) -> Self:
        self._program = subprocess.Popen(
            self._argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert self._program.stdout
        timer = _kill_later(self._program)
        line = self._program.stdout.readline()
        timer.cancel()
        if "flowing" not in line:
            raise machine.LabFailure(f"no data from {' '.join(self._argv[-3:])}: {self._said(line)}")
        return self

    def finish(self) -> dict[str, Any]:
        """End it and return its count."""
        out, said = self._program.communicate(timeout=FLOW_S_MAX)
        try:
            count: dict[str, Any] = json.loads(out.strip().splitlines()[-1])
        except (ValueError, IndexError):
            raise machine.LabFailure(f"no count from {' '.join(self._argv[-3:])}: {said.strip()[-300:]}") from None
        return count

    def _said(self, line: str) -> str:
        self._program.kill()
        said = self._program.communicate()[1]
        return (said.strip().splitlines() or [line.strip() or "silence"])[-1]

    def __exit__(self, *_: object) -> None:
        if self._program.poll() is None:
            self._program.kill()
        self._program.wait()


def _kill_later(program: "subprocess.Popen[str]") -> Any:
    import threading

    timer = threading.Timer(FLOW_S_MAX, program.kill)
    timer.daemon = True
    timer.start()
    return timer
