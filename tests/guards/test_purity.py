"""Pure modules decide; they do not wait, read clocks, roll dice or talk to the world."""

import ast
import sys
from pathlib import Path

import pytest

from tests.guards.sources import ROOMS, ROOT, name_of, python_files, tree_of

PURE = (
    "kvstore/keys.py", "kvstore/types.py", "kvstore/watch.py", "kvstore/append.py", "kvstore/backoff.py",
    "datapath/tables.py", "datapath/codec.py", "datapath/delta.py", "datapath/plan.py", "datapath/digest.py",
    "datapath/status.py", "datapath/frames.py",
    "controlplane/model.py", "controlplane/events.py", "controlplane/codec.py", "controlplane/labels.py",
    "controlplane/fields.py", "controlplane/addresses.py", "controlplane/commands", "controlplane/projections",
    "controlplane/desired", "controlplane/policy", "controlplane/history/replay.py",
    "controlplane/history/capsule.py",
    "controlplane/history/changes.py",
    "controlplane/history/ends.py",
    "controlplane/history/filters.py",
    "controlplane/history/flows.py",
    "controlplane/history/nearest.py",
    "controlplane/history/pairs.py",
    "controlplane/history/packets.py",
    "controlplane/history/points.py",
    "controlplane/history/provenance.py",
    "controlplane/history/pseudonyms.py",
    "controlplane/history/recent.py",
    "controlplane/history/records.py",
    "controlplane/history/redaction.py",
    "controlplane/history/rows.py",
    "controlplane/history/told.py",
    "controlplane/history/what_if.py",
    "controlplane/history/why.py",
    "controlplane/history/why_row.py",
)
FORBIDDEN = {"asyncio", "time", "random", "secrets", "os", "socket", "logging", "ctypes", "subprocess", "threading"}
THIRD_PARTY = {"msgspec"}
REASONED_EXCEPTIONS = {
    # A fold over records that arrive asynchronously; it waits for nothing else.
    "controlplane/history/replay.py": "async",
}


def pure_files() -> list[Path]:
    """The files that the list names."""
    return [path for path in python_files(*ROOMS) if any(_below(name_of(path), pure) for pure in PURE)]


def _below(name: str, pure: str) -> bool:
    return name == pure or name.startswith(pure + "/")


def imported(tree: ast.Module) -> set[str]:
    """Top-level packages that a file imports, wherever in it."""
    found = set()
    for vertex in ast.walk(tree):
        if isinstance(vertex, ast.Import):
            found |= {alias.name.split(".")[0] for alias in vertex.names}
        elif isinstance(vertex, ast.ImportFrom) and vertex.module:
            found.add(vertex.module.split(".")[0])
    return found


@pytest.mark.parametrize("pure", PURE)
def test_the_list_of_pure_modules_is_true(pure: str) -> None:
    """Every entry of the list exists, so that a renamed module cannot slip out of it."""
    assert (ROOT / pure).exists()


def test_pure_modules_import_nothing_of_the_world() -> None:
    """No pure module imports a clock, chance, the network or the system, nor third parties but msgspec."""
    wrong = []
    for path in pure_files():
        names = imported(tree_of(path))
        outside = {name for name in names if name not in sys.stdlib_module_names and name not in ROOMS}
        wrong += [f"{name_of(path)}: {name}" for name in sorted((names & FORBIDDEN) | (outside - THIRD_PARTY))]
    assert wrong == []


def test_pure_modules_do_not_wait() -> None:
    """No pure module has an async function: it returns, and its caller waits."""
    wrong = [
        f"{name_of(path)}: {vertex.name}"
        for path in pure_files()
        for vertex in ast.walk(tree_of(path))
        if isinstance(vertex, ast.AsyncFunctionDef) and name_of(path) not in REASONED_EXCEPTIONS
    ]
    assert wrong == []


@pytest.mark.parametrize(
    ("package", "allowed"),
    [
        ("pyroute2", ("datapath/kernel/netlink.py", "controlplane/runtime/")),
        ("ctypes", ("datapath/kernel/",)),
        ("grpc", ("kvstore/",)),
        ("aiohttp", ("controlplane/api/", "controlplane/agent.py", "controlplane/operator.py")),
    ],
)
def test_a_heavy_package_stays_in_its_shell(package: str, allowed: tuple[str, ...]) -> None:
    """Each package that reaches outside is imported only in the shell that owns it."""
    users = [name_of(path) for path in python_files(*ROOMS) if package in imported(tree_of(path))]
    assert [name for name in users if not name.startswith(allowed)] == []
