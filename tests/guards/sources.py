"""What the guards look at: the project's files and their syntax trees.

Belongs here: finding and parsing. Does not belong here: any rule.
"""

import ast
import subprocess
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("kvstore", "datapath", "controlplane")
GENERATED = {"kvstore/rpc_pb2.py", "datapath/abi/types.py"}


@cache
def text_files() -> tuple[Path, ...]:
    """Every file of the project that is or may be committed, as git sees it."""
    listed = subprocess.run(
        ["git", "-c", "safe.directory=*", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, check=False,
    )
    if listed.returncode:  # an unpacked archive has no git
        return tuple(sorted(path for path in ROOT.glob("**/*.*") if ".venv" not in path.parts and path.is_file()))
    names = filter(None, listed.stdout.decode().split("\0"))
    return tuple(sorted(path for path in (ROOT / name for name in names) if path.is_file()))


def python_files(*folders: str) -> list[Path]:
    """Written by hand, below these folders."""
    return [
        path for path in text_files()
        if path.suffix == ".py" and name_of(path).split("/")[0] in folders and name_of(path) not in GENERATED
    ]


def name_of(path: Path) -> str:
    """Relative to the project."""
    return path.relative_to(ROOT).as_posix()


@cache
def tree_of(path: Path) -> ast.Module:
    """Its syntax tree."""
    return ast.parse(path.read_text(), str(path))


def functions_of(path: Path) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    """All of them, methods and inner ones too."""
    return [vertex for vertex in ast.walk(tree_of(path)) if isinstance(vertex, ast.FunctionDef | ast.AsyncFunctionDef)]
