"""The completion script: valid bash, and whole."""

import subprocess

from controlplane.cli.main import COMMANDS
from tests.controlplane.cli.conftest import Run


def completed(script: str, *words: str) -> list[str]:
    """What bash would offer for the last of these words."""
    line = " ".join(f"'{word}'" for word in words)
    program = f"{script}\nCOMP_WORDS=({line}); COMP_CWORD={len(words) - 1}; _meshlog; echo ${{COMPREPLY[@]}}"
    done = subprocess.run(["bash", "-eu", "-c", program], capture_output=True, text=True, check=True)
    return done.stdout.split()


def test_commands_are_offered(run: Run) -> None:
    """Every command is offered for the first word."""
    assert set(completed(run("completion", "bash")[1], "meshlog", "")) == set(COMMANDS)


def test_verbs_and_flags_are_offered(run: Run) -> None:
    """After a command its verbs and flags are offered, also those below a map of `bpf`."""
    script = run("completion", "bash")[1]
    assert {"list", "--no-headers", "--node"} <= set(completed(script, "meshlog", "bpf", ""))
