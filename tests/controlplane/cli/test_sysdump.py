"""One file with everything, also where half of it does not answer."""

import json
import tarfile
from pathlib import Path

import pytest

from controlplane.cli import sysdump, target
from tests.controlplane.cli.conftest import Run
from tests.controlplane.cli.fake_agent import FakeAgent


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory of sockets, without any lab."""
    monkeypatch.setattr(target, "RUNTIME_ROOT", str(tmp_path / "run"))
    monkeypatch.setattr(target, "LAB_ROOT", str(tmp_path / "lab"))
    monkeypatch.delenv("MESHLOG_SOCKET", raising=False)
    for place in ("run/n1", "run/n2", "lab/logs"):
        (tmp_path / place).mkdir(parents=True)
    return tmp_path


def test_a_dead_agent_is_named_and_the_living_one_is_whole(machine: Path, run: Run) -> None:
    """Every answer of the living one and the log files are in the file; the dead one and a refusal are told, with why."""
    (machine / "run/n2/agent.sock").touch()
    (machine / "lab/logs/agent-n2.log").write_text("killed")
    alive = FakeAgent(machine / "run/n1/agent.sock")
    try:
        for path in [*sysdump.OF_ALL.values(), *sysdump.OF_AGENTS.values(), "/v1/capsule"]:
            alive.answers["GET", path.partition("?")[0]] = (200, path.encode())
        alive.answers["GET", "/v1/bpf/nat"] = (503, {"error": "no map"})
        status, out, err = run("sysdump", str(machine / "x.tar.gz"))
    finally:
        alive.close()
    assert status == 1
    with tarfile.open(machine / "x.tar.gz") as archive:
        names = {entry.name.removeprefix("meshlog-sysdump/") for entry in archive}
        manifest = json.load(archive.extractfile("meshlog-sysdump/manifest.json"))  # type: ignore[arg-type]
    wanted = {f"n1/{name}" for name in [*sysdump.OF_ALL, *sysdump.OF_AGENTS]} - {"n1/bpf/nat.json"}
    assert names == wanted | {"incident.capsule", "logs/agent-n2.log", "manifest.json"}
    assert set(manifest["missing"]) == {"n2", "n1/bpf/nat.json"}
    assert "missing: n2: no answer on" in err and "no map" in err
    assert (machine / "x.tar.gz").stat().st_mode & 0o077 == 0
    assert "not redacted" in out


def test_a_file_that_cannot_be_written_is_one_line_and_leaves_nothing(machine: Path, run: Run) -> None:
    """The place is named, and no half of a file stays."""
    status, _, err = run("sysdump", str(machine / "none" / "x.tar.gz"))
    assert (status, err.splitlines()[-1]) == (1, f"meshlog: {machine}/none/x.tar.gz: No such file or directory")
    assert list(machine.glob("**/*x.tar.gz*")) == []
