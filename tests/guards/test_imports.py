"""The import contracts of pyproject.toml."""

import os
import subprocess
import sys
from pathlib import Path

from tests.guards.sources import ROOT


def test_import_contracts_are_kept() -> None:
    """Rooms import only what their layer may; a new module that names no layer fails here too."""
    program = Path(sys.executable).parent / "lint-imports"
    done = subprocess.run(
        [str(program), "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False,
        env={**os.environ, "NO_COLOR": "1"},
    )
    assert done.returncode == 0, done.stdout[-4000:]


def test_the_plugin_imports_nothing_heavy() -> None:
    """The CNI plugin, which a kubelet waits for, loads no third party and no event loop."""
    program = "import sys, controlplane.cni; print(' '.join(sys.modules))"
    done = subprocess.run([sys.executable, "-I", "-c", program], capture_output=True, text=True, check=True)
    assert not {"msgspec", "aiohttp", "yaml", "asyncio", "structlog", "numpy"} & set(done.stdout.split())


def test_the_agent_starts_without_numpy() -> None:
    """Its import takes some 80 ms of a restart; the reader of notifications brings it when all is ready."""
    program = "import sys, controlplane.agent; print(' '.join(sys.modules))"
    done = subprocess.run([sys.executable, "-I", "-c", program], capture_output=True, text=True, check=True)
    assert "numpy" not in done.stdout.split()


def test_help_imports_no_command() -> None:
    """`meshlog --help` loads no command and no third party, so that it answers at once."""
    program = "import sys, controlplane.cli.main as m; m.main(['--help']); print('MODULES', *sys.modules)"
    done = subprocess.run([sys.executable, "-I", "-c", program], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.partition("MODULES")[2].split())
    ours = {name for name in loaded if name.startswith("controlplane.cli.")}
    assert ours <= {"controlplane.cli.main", "controlplane.cli.errors"}
    assert not {"msgspec", "aiohttp", "yaml", "asyncio"} & loaded
