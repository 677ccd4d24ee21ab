"""The command line against a socket of the test's own."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from controlplane.cli import main as program
from tests.controlplane.cli.fake_agent import FakeAgent

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def agent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeAgent]:
    """The agent that every command asks."""
    fake = FakeAgent(tmp_path / "agent.sock")
    monkeypatch.setenv("MESHLOG_SOCKET", str(fake.path))
    try:
        yield fake
    finally:
        fake.close()


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run the program in this process: (exit status, output, errors)."""

    def call(*words: str) -> tuple[int, str, str]:
        try:
            status = program.main(list(words))
        except SystemExit as end:
            status = int(end.code or 0)
        out, err = capsys.readouterr()
        return status, out, err

    return call
