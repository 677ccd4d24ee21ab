"""A lab of the tests' own, beside one that a person may run, used through the program as a person would.

Belongs here: calling the program, finding traces. Does not belong here: what a test proves.
"""

import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

NAME = "mlabt"
ROOT = Path(f"/run/meshlog-lab-{NAME}")
PROGRAM = str(Path(sys.executable).parent / "meshlog")
ENVIRONMENT = {**os.environ, "MESHLOG_LAB": NAME}
SECONDS_MAX = 180


def meshlog(*words: str) -> "subprocess.CompletedProcess[str]":
    """Run the program against the tests' lab."""
    return subprocess.run(
        [PROGRAM, *words], env=ENVIRONMENT, capture_output=True, text=True, check=False, timeout=SECONDS_MAX
    )


def well(*words: str) -> str:
    """What the program prints; fails the test with its errors if it does not exit 0."""
    done = meshlog(*words)
    assert done.returncode == 0, f"meshlog {' '.join(words)}: {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def begun(*words: str) -> None:
    """Run the program until it has printed a line; then end it. Fails the test if it ends by itself."""
    with subprocess.Popen(
        [PROGRAM, *words], env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as program:
        assert program.stdout
        guard = threading.Timer(SECONDS_MAX, program.kill)
        guard.start()
        line = program.stdout.readline()
        is_running = program.poll() is None
        program.terminate()
        guard.cancel()
    assert line and is_running, f"meshlog {' '.join(words)} ended: {line}"


def answer(*words: str) -> Any:
    """What the program prints with -o json, whatever its exit status."""
    done = meshlog(*words, "-o", "json")
    assert done.stdout, done.stderr
    return json.loads(done.stdout)


def socket_of(node: str) -> str:
    """Of the node's agent."""
    return f"{ROOT}/{node}/agent.sock"


def operator_of(cluster: str) -> str:
    """The socket of the cluster's operator."""
    return f"{ROOT}/operator-{cluster}/operator.sock"


def recorded_pid(process: str) -> int:
    """Of a process of the lab ("etcd", "agent-east-1")."""
    return int(json.loads((ROOT / "processes" / f"{process}.json").read_text())["pid"])


def traces() -> list[str]:
    """What of the tests' lab exists, looked for by other means than the program's own."""
    netns = Path("/run/netns")
    found = [str(path) for path in netns.glob(f"{NAME}-*")]
    found += [str(ROOT)] if ROOT.exists() else []
    found += [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines() if f"lab-{NAME}" in line]
    found += [line for line in Path("/proc/mounts").read_text().splitlines() if f"/{NAME}-" in line]
    for kind, where in ((line.split()[2], line.split()[1]) for line in Path("/proc/mounts").read_text().splitlines()):
        if kind == "cgroup2" and (Path(where) / NAME).exists():
            found.append(f"{where}/{NAME}")
    own = f"/run/meshlog-lab-{NAME}/".encode()
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if own in (process / "cmdline").read_bytes():
                found.append(f"process {process.name}")
        except OSError:
            continue
    return found
