"""What the documents tell people to type exists."""

import re
import shlex

import pytest

from controlplane.cli.main import COMMANDS, module_of, parser_of
from tests.guards.sources import ROOT

DOCUMENTS = [ROOT / "README.md", ROOT / "ARCHITECTURE.md", *sorted((ROOT / "docs").glob("*.md"))]


def shell_lines() -> list[tuple[str, str]]:
    """(document, line) of every command in a ```sh block."""
    found = []
    for document in DOCUMENTS:
        for block in re.findall(r"```sh\n(.*?)```", document.read_text(), re.DOTALL):
            lines = [line.partition(" #")[0].strip() for line in block.splitlines()]
            commands = [line.removeprefix("sudo ") for line in lines if line and not line.startswith("#")]
            found += [(document.name, command) for command in commands]
    return found


@pytest.mark.parametrize(("document", "line"), [pair for pair in shell_lines() if "meshlog" in pair[1].split()[0]])
def test_commands_of_the_documents_parse(document: str, line: str) -> None:
    """Each `meshlog` command that a document shows is accepted by the program's own parser."""
    words = shlex.split(line.partition(" | ")[0].partition(" < ")[0])[1:]
    if words[0].startswith("-"):
        return
    module = module_of(words[0])
    if not hasattr(module, "run_words") and "--help" not in words:
        assert hasattr(parser_of(words[0], module).parse_args(words[1:]), "run"), f"{document}: {line}"


@pytest.mark.parametrize(("document", "line"), [pair for pair in shell_lines() if pair[1].startswith("make ")])
def test_make_targets_of_the_documents_exist(document: str, line: str) -> None:
    """Each `make` target that a document shows is in the Makefile."""
    makefile = (ROOT / "Makefile").read_text()
    for target in line.split()[1:]:
        assert re.search(rf"^{re.escape(target)}:", makefile, re.MULTILINE), f"{document}: {line}"


def test_every_command_is_documented() -> None:
    """docs/commands.md names every command of the program."""
    text = (ROOT / "docs" / "commands.md").read_text()
    assert [command for command in COMMANDS if f"meshlog {command}" not in text] == []
