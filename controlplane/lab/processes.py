"""The lab's processes: started in a namespace and a cgroup, found again by pid and start time.

Belongs here: starting, finding, stopping one of them. Does not belong here: which processes the lab has.
A record on disk names the pid and its start time, so that a pid used again by a stranger is never taken for ours.
"""

import os
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path

import msgspec

from controlplane.lab import machine, topology


class LabProcess(msgspec.Struct, frozen=True):
    """`start_time` is in clock ticks after boot, as /proc/PID/stat has it."""

    name: str
    pid: int
    start_time: int


def start(name: str, argv: Sequence[str], netns: str, cgroup: str, env: dict[str, str] | None = None) -> LabProcess:
    """Start it in the background; it outlives the caller. Its output goes to the log file of its name."""
    command = machine.in_cgroup(machine.ensure_cgroup(cgroup), machine.in_netns(netns, *argv))
    with log_path(name).open("ab") as log:
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            cwd="/",
            env={**os.environ, **(env or {})},
        )
    return record(name, child.pid)


def record(name: str, pid: int) -> LabProcess:
    """Remember a running process under this name. Raises LabFailure if it is gone already."""
    started = start_time(pid)
    if started is None:
        raise machine.LabFailure(f"{name} ended at once; see {log_path(name)}{last_line(name)}")
    process = LabProcess(name, pid, started)
    path = _record_path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_bytes(msgspec.json.encode(process))
    partial.rename(path)
    return process


def find(name: str) -> LabProcess | None:
    """The process of this name, if it still runs."""
    try:
        process = msgspec.json.decode(_record_path(name).read_bytes(), type=LabProcess)
    except (OSError, msgspec.MsgspecError):
        return None
    return process if start_time(process.pid) == process.start_time else None


def recorded() -> list[str]:
    return sorted(path.stem for path in Path(topology.PROCESSES).glob("*.json"))


def stop(name: str, how: signal.Signals = signal.SIGTERM, seconds_max: float = 5.0) -> bool:
    """Signal it and wait for its end; after the time SIGKILL. True if it ran."""
    process = find(name)
    if process is None:
        forget(name)
        return False
    os.kill(process.pid, how)
    if not machine.wait_for(lambda: find(name) is None, seconds_max):
        os.kill(process.pid, signal.SIGKILL)
        machine.wait_for(lambda: find(name) is None, seconds_max)
    forget(name)
    return True


def forget(name: str) -> None:
    _record_path(name).unlink(missing_ok=True)


def start_time(pid: int) -> int | None:
    """None where there is no such process, or only its remains."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else int(fields[19])


def command_line(pid: int) -> str:
    """Its arguments with a blank between them; "" where there is no such process."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


def log_path(name: str) -> Path:
    path = Path(topology.LOGS)
    path.mkdir(parents=True, exist_ok=True)
    return path / f"{name}.log"


def last_line(name: str) -> str:
    """What it said last, for a message: " (last line: ...)", or "" if it said nothing."""
    try:
        lines = log_path(name).read_text(errors="replace").strip().splitlines()
    except OSError:
        return ""
    return f" (last line: {lines[-1][:300]})" if lines else ""


def _record_path(name: str) -> Path:
    return Path(topology.PROCESSES) / f"{name}.json"
