"""Names, sizes and docstrings, as the project's habits want them."""

import ast
import re
from pathlib import Path

import pytest

from tests.guards.sources import ROOMS, ROOT, functions_of, name_of, python_files, text_files, tree_of

FILE_LINES_MAX = 500
FUNCTION_LINES_MAX = 70
# The lists below may only shrink.
LONG_FILES = {"tests/contract/test_event_log.py"}
LONG_FUNCTIONS: set[str] = set()

BANNED_MODULES = {"utils", "util", "common", "helpers", "helper", "misc", "manager", "base", "core"}
BANNED_WORDS = {
    "seclabel": "identity", "secctx": "identity", "lxc": "endpoint", "vip": "frontend", "snapshot": "checkpoint",
    "helper": "the noun it owns", "util": "the noun it owns", "utils": "the noun it owns", "misc": "the noun it owns",
    "manager": "the noun it owns", "whitelist": "allow list", "blacklist": "deny list", "master": "leader",
    "slave": "follower",
}
BANNED_TEXT = (r"\bTODO\b", r"\bFIXME\b", r"\bXXX\b", r"must be in sync with", r"/work/main", r"/work/shared")
# The kernel's own word for the functions it offers to programs.
REASONED_WORDS = {("datapath/kernel/features.py", "helper")}
HERE = "tests/guards/test_tidy.py"


def words_of(identifier: str) -> list[str]:
    """`EndpointKey_max` -> endpoint, key, max."""
    return [word.lower() for word in re.findall(r"[A-Z]?[a-z0-9]+|[A-Z]+(?![a-z])", identifier)]


def identifiers(tree: ast.Module) -> set[str]:
    """Names that the file itself gives."""
    found = set()
    for vertex in ast.walk(tree):
        if isinstance(vertex, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.add(vertex.name)
        elif isinstance(vertex, ast.arg):
            found.add(vertex.arg)
        elif isinstance(vertex, ast.Name) and isinstance(vertex.ctx, ast.Store):
            found.add(vertex.id)
    return found


def test_names_use_the_glossary() -> None:
    """No identifier of the product contains a word that the glossary replaces by another."""
    wrong = [
        f"{name_of(path)}: {identifier}: say {BANNED_WORDS[word]}"
        for path in python_files(*ROOMS)
        for identifier in sorted(identifiers(tree_of(path)))
        for word in words_of(identifier)
        if word in BANNED_WORDS and (name_of(path), word) not in REASONED_WORDS
    ]
    assert wrong == []


def test_no_module_without_an_owner() -> None:
    """No module is called utils or the like: such a file owns nothing and collects everything."""
    assert [name_of(path) for path in python_files(*ROOMS) if path.stem in BANNED_MODULES] == []


def test_files_stay_short() -> None:
    """A file has at most 500 lines; those that have more are named here and the list only shrinks."""
    files = python_files(*ROOMS, "tests")
    long = {name_of(path) for path in files if len(path.read_text().splitlines()) > FILE_LINES_MAX}
    assert long == LONG_FILES


def test_functions_stay_short() -> None:
    """A function has at most 70 lines; those that have more are named here and the list only shrinks."""
    long = {
        f"{name_of(path)}:{function.name}"
        for path in python_files(*ROOMS, "tests")
        for function in functions_of(path)
        if (function.end_lineno or 0) - function.lineno + 1 > FUNCTION_LINES_MAX
    }
    assert long == LONG_FUNCTIONS


def test_every_module_says_what_belongs_in_it() -> None:
    """Each module opens with a docstring; a package's is its room card."""
    missing = [name_of(path) for path in python_files(*ROOMS, "tests") if not ast.get_docstring(tree_of(path))]
    assert [name for name in missing if name != "tests/__init__.py"] == []


def test_every_test_says_what_it_proves() -> None:
    """Each test function has a docstring."""
    missing = [
        f"{name_of(path)}:{function.name}"
        for path in python_files("tests")
        for function in functions_of(path)
        if function.name.startswith("test_") and path.name.startswith("test_") and not ast.get_docstring(function)
    ]
    assert missing == []


def test_nothing_is_left_for_later() -> None:
    """No file holds a mark of unfinished work, nor a path of the machine it was written on."""
    wrong = []
    for path in _readable_files():
        text = path.read_text(errors="ignore")
        wrong += [f"{name_of(path)}: {pattern}" for pattern in BANNED_TEXT if re.search(pattern, text)]
    assert wrong == []


def _readable_files() -> list[Path]:
    kinds = {".py", ".md", ".toml", ".h", ".c", ".yaml", ".txt", ".proto", ""}
    return [path for path in text_files() if path.suffix in kinds and name_of(path) not in (HERE, "LICENSE")]


@pytest.mark.parametrize("document", ["README.md", "ARCHITECTURE.md"])
def test_named_paths_exist(document: str) -> None:
    """Every file or folder that the document names in backticks exists."""
    named = re.findall(r"`([\w.\-]+(?:/[\w.\-*]*)+)`", (ROOT / document).read_text())
    rooms = {*ROOMS, "bpf", "tests", "deploy", "docs"}
    missing = [name for name in named if name.split("/")[0] in rooms and not list(ROOT.glob(name.rstrip("/")))]
    assert missing == []
