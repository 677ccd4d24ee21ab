"""The lab's processes: a pid is ours only with its start time."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from controlplane.lab import machine, processes, topology


@pytest.fixture(autouse=True)
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Records and logs of the test's own."""
    monkeypatch.setattr(topology, "PROCESSES", str(tmp_path / "processes"))
    monkeypatch.setattr(topology, "LOGS", str(tmp_path / "logs"))


@pytest.fixture
def sleeper() -> Iterator["subprocess.Popen[bytes]"]:
    """A process that runs until the test ends."""
    child = subprocess.Popen([sys.executable, "-I", "-S", "-c", "import signal; signal.pause()"])
    yield child
    child.kill()
    child.wait()


def test_a_recorded_process_is_found(sleeper: "subprocess.Popen[bytes]") -> None:
    """As long as it runs."""
    processes.record("x", sleeper.pid)
    found = processes.find("x")
    assert found is not None
    assert found.pid == sleeper.pid


def test_a_pid_used_again_is_not_ours(sleeper: "subprocess.Popen[bytes]") -> None:
    """The same pid with another start time is a stranger: it is neither found nor killed."""
    processes.record("x", sleeper.pid)
    record = Path(topology.PROCESSES) / "x.json"
    record.write_text(record.read_text().replace('"start_time":', '"start_time":1'))
    assert processes.find("x") is None
    assert processes.stop("x") is False
    assert sleeper.poll() is None


def test_stop_ends_it_and_forgets_it(sleeper: "subprocess.Popen[bytes]") -> None:
    """Afterwards no record is left."""
    processes.record("x", sleeper.pid)
    assert processes.stop("x")
    assert processes.recorded() == []


def test_a_dead_process_whose_parent_lingers_is_dead() -> None:
    """What is left of a child that nobody has waited for does not count as running."""
    child = subprocess.Popen([sys.executable, "-I", "-S", "-c", "pass"])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert processes.start_time(child.pid) is None
    child.wait()


def test_a_process_that_ended_at_once_says_why() -> None:
    """The failure names the process and quotes its last line."""
    child = subprocess.Popen([sys.executable, "-I", "-S", "-c", "pass"])
    child.wait()
    processes.log_path("x").write_text("first\nno such device\n")
    with pytest.raises(machine.LabFailure, match="no such device"):
        processes.record("x", child.pid)


def test_a_broken_record_is_no_process(tmp_path: Path) -> None:
    """A record cut short by a crash is passed over."""
    folder = Path(topology.PROCESSES)
    folder.mkdir()
    (folder / "x.json").write_text('{"name":"x","pi')
    assert processes.find("x") is None
