"""What holds for every command: help, exit statuses, one message per failure, the choice of an agent."""

import argparse
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from controlplane.api.quickclient import ApiUnavailable
from controlplane.cli import target
from controlplane.cli.errors import CommandFailed
from controlplane.cli.main import COMMANDS, joined, module_of, parser_of
from controlplane.cli.parsing import with_verbs
from tests.controlplane.cli.conftest import Run
from tests.controlplane.cli.fake_agent import FakeAgent

OWN_PARSER = ("agent", "operator")


def test_help_names_every_command(run: Run) -> None:
    """The overview is whole."""
    status, out, _ = run("--help")
    assert status == 0
    assert [name for name in COMMANDS if f"  {name} " not in out] == []


@pytest.mark.parametrize("command", [name for name in COMMANDS if name not in OWN_PARSER])
def test_every_command_has_help_with_its_purpose(run: Run, command: str) -> None:
    """--help of each command exits 0 and says what the command does."""
    status, out, _ = run(command, "--help")
    assert status == 0
    assert out.startswith(f"usage: meshlog {command}")
    assert len(out.split("\n\n")[1]) > 20


@pytest.mark.parametrize("command", [name for name in COMMANDS if name not in OWN_PARSER])
def test_every_verb_says_what_it_does_and_shows_an_example_that_parses(command: str) -> None:
    """Each verb has a description, an example that its own parser takes, and a word about every flag."""
    parser = parser_of(command, module_of(command))
    for each in with_verbs(parser):
        assert each.description, each.prog
        actions = [action for action in each._actions if not isinstance(action, argparse._SubParsersAction)]
        assert [action.dest for action in actions if not action.help] == [], each.prog
        if len(actions) < len(each._actions):
            continue  # it has verbs, and those have the examples
        assert "xample" in (each.epilog or ""), each.prog
        for example in re.findall(r"meshlog [^|<#&)\n]*", (each.epilog or "").partition("xample")[2]):
            words = shlex.split(example.partition("'")[0] if example.count("'") % 2 else example)
            assert hasattr(parser_of(words[1], module_of(words[1])).parse_args(joined(words[2:])), "run"), example


@pytest.mark.parametrize(("words", "told"), [
    (["status", "--wiat"], "--wiat: unknown; did you mean --wait?"),
    (["endpoint", "lst"], "VERB 'lst': right is one of get, config, list, ls; did you mean list?"),
    (["status", "-o", "jsno"], "-o/--output 'jsno': right is one of table, wide, json, yaml; did you mean json?"),
    (["log", "show"], "missing: REVISION"),
    (["log", "show", "x"], "'x': right is a whole number, such as 42"),
])
def test_wrong_usage_is_one_line_that_says_what_is_right(run: Run, words: list[str], told: str) -> None:
    """What is wrong, the value, what would be right, and where more is said."""
    status, out, err = run(*words)
    assert (status, out, len(err.splitlines())) == (2, "", 1)
    assert told in err and f"`meshlog {words[0]}" in err


def test_sockets_that_only_root_may_see_are_not_taken_for_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A directory of sockets that cannot be read is named, instead of saying that no agent runs."""
    monkeypatch.setattr(target, "RUNTIME_ROOT", str(tmp_path / "none"))
    monkeypatch.setattr(target, "LAB_ROOT", str(tmp_path))
    monkeypatch.setattr(target.os, "access", lambda path, mode: False)
    monkeypatch.delenv("MESHLOG_SOCKET", raising=False)
    with pytest.raises(CommandFailed, match="permission denied; run it as root"):
        target.socket_of(argparse.Namespace(socket=None, node=None))


@pytest.mark.parametrize("words", [["edpoint"], ["endpoint"], ["endpoint", "list", "--no-such"], ["get"], ["apply"]])
def test_wrong_usage_exits_2(run: Run, words: list[str]) -> None:
    """A command that cannot be meant ends with 2 and says so on standard error."""
    status, out, err = run(*words)
    assert (status, out) == (2, "")
    assert err


def test_a_mistyped_command_is_suggested(run: Run) -> None:
    """The nearest command is named."""
    assert "did you mean `endpoint`?" in run("endpiont")[2]


def test_an_absent_agent_is_one_line(run: Run, tmp_path: Path) -> None:
    """Nobody on the socket: exit 1, one line that names the socket, no traceback."""
    status, _, err = run("status", "--socket", str(tmp_path / "none.sock"))
    assert status == 1
    assert len(err.splitlines()) == 1
    assert "none.sock" in err


@pytest.mark.parametrize(("reason", "hint"), [
    ("Connection refused", "what is pinned in the kernel"), ("Permission denied", "run it as root"),
    ("timed out", "does not answer"), ("No such file or directory", "is the agent running?"),
])
def test_nobody_answers_for_a_reason_and_something_can_be_done(reason: str, hint: str) -> None:
    """An agent that has ended, one that hangs and a socket of root's are told apart."""
    assert hint in str(target.unanswered(ApiUnavailable(f"no answer on /run/x.sock: {reason}")))


def test_an_older_agent_is_told_from_a_wrong_question(agent: FakeAgent, run: Run) -> None:
    """A route that the server has not is no refusal of its own words."""
    agent.answers["GET", "/v1/mesh"] = (404, {"error": "GET /v1/mesh: Not Found"})
    assert "it is of another version" in run("mesh", "status")[2]


def test_a_refusal_is_the_agents_own_word(agent: FakeAgent, run: Run) -> None:
    """What the agent answers as an error is what a person reads, with the field."""
    agent.answers["GET", "/v1/list/ip"] = (400, {"error": "not today", "field": "kind"})
    assert run("ip", "list") == (1, "", "meshlog: kind: not today\n")


def test_an_answer_that_is_not_http_is_one_line(run: Run, tmp_path: Path) -> None:
    """A wrong socket ends with 1 and one line."""
    fake = FakeAgent(tmp_path / "x.sock")
    fake.answers["GET", "/v1/list/ip"] = (200, b"no json")
    try:
        status, _, err = run("ip", "list", "--socket", str(fake.path))
    finally:
        fake.close()
    assert (status, len(err.splitlines())) == (1, 1)


def test_leading_flags_are_the_commands_flags(agent: FakeAgent, run: Run) -> None:
    """`meshlog -o json ip list` is `meshlog ip list -o json`."""
    agent.answers["GET", "/v1/list/ip"] = (200, {"kind": "ip", "revision": 1, "items": []})
    assert run("-o", "json", "ip", "list")[1].strip() == "[]"


def sockets_below(root: Path, *nodes: str) -> None:
    """Files where agents would listen."""
    for node in nodes:
        (root / node).mkdir(parents=True)
        (root / node / "agent.sock").touch()


@pytest.fixture
def roots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """The machine's and the lab's runtime directories, empty."""
    monkeypatch.delenv("MESHLOG_SOCKET", raising=False)
    monkeypatch.setattr(target, "RUNTIME_ROOT", str(tmp_path / "machine"))
    monkeypatch.setattr(target, "LAB_ROOT", str(tmp_path / "lab"))
    return tmp_path / "machine", tmp_path / "lab"


def test_the_only_agent_is_asked(roots: tuple[Path, Path], run: Run) -> None:
    """One socket on the machine needs no flag."""
    sockets_below(roots[0], "n1")
    assert "n1/agent.sock" in run("status")[2]


def test_several_agents_need_a_choice(roots: tuple[Path, Path], run: Run) -> None:
    """Two sockets: exit 2, and the message names both."""
    sockets_below(roots[0], "n1", "n2")
    status, _, err = run("status")
    assert status == 2
    assert "n1, n2" in err


def test_the_lab_is_asked_last_and_named(roots: tuple[Path, Path], run: Run) -> None:
    """Without an agent on the machine the lab's first node is asked, and a note says so."""
    sockets_below(roots[1], "east-2", "east-1")
    assert run("status")[2].splitlines()[0] == "asking the lab's node east-1 (--node chooses another)"


def test_a_node_is_chosen_by_name(roots: tuple[Path, Path], run: Run) -> None:
    """--node finds the socket of that node."""
    sockets_below(roots[1], "east-1", "west-1")
    assert "west-1/agent.sock" in run("status", "--node", "west-1")[2]


def test_an_unknown_node_names_the_known(roots: tuple[Path, Path], run: Run) -> None:
    """--node with a wrong name: exit 2 and what there is."""
    sockets_below(roots[1], "east-1")
    status, _, err = run("status", "--node", "north")
    assert status == 2
    assert "east-1" in err


def test_a_reader_that_leaves_is_no_failure(agent: FakeAgent) -> None:
    """`meshlog ... | head` prints no traceback."""
    items = [{"prefix": f"10.0.0.{n}/32", "identity": n, "source": "endpoint", "cluster": "", "node": "", "name": ""}
             for n in range(256)] * 40
    agent.answers["GET", "/v1/list/ip"] = (200, {"kind": "ip", "revision": 1, "items": items})
    program = Path(sys.executable).parent / "meshlog"
    done = subprocess.run(
        ["bash", "-c", f'set -o pipefail; "{program}" ip list --socket "{agent.path}" | head -1'],
        capture_output=True, text=True, check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
