"""What the lab takes from the machine: commands, namespaces, the cgroup v2 tree, mounts.

Belongs here: making, finding and removing one such object, each call safe to repeat. Does not belong here: which of
them the lab has (topology.py), and processes (processes.py).
"""

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

NETNS_DIR = Path("/run/netns")
REQUIRED_TOOLS = ("ip", "nsenter", "ethtool", "mount", "umount", "sysctl", "etcd")


class LabFailure(Exception):
    """The lab cannot go on; the message says what happened and what to look at."""


def run(*argv: str, check: bool = True) -> str:
    """Run a short command and return its output. Raises LabFailure with what the command said."""
    done = subprocess.run(argv, check=False, capture_output=True, text=True, timeout=60)
    if check and done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines()
        raise LabFailure(f"`{' '.join(argv)}` failed ({done.returncode}): {said[-1] if said else 'no message'}")
    return done.stdout


def in_netns(netns: str, *argv: str) -> list[str]:
    """The command line that runs `argv` in that network namespace, and leaves every other namespace as it is."""
    return ["nsenter", f"--net={NETNS_DIR / netns}", "--", *argv]


def in_cgroup(cgroup: Path, command: Sequence[str]) -> list[str]:
    """The command line that runs `command` in that cgroup from its first moment: a socket keeps that of its making."""
    return ["sh", "-c", 'echo 0 > "$1/cgroup.procs" && shift && exec "$@"', "sh", str(cgroup), *command]


def wait_for(condition: Callable[[], bool], seconds_max: float, pause_s: float = 0.02) -> bool:
    """Wait until the condition holds; False when the time is over first."""
    deadline = time.monotonic() + seconds_max
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(pause_s)
    return True


# --- network namespaces -----------------------------------------------------------------------------------------


def netns_names(prefix: str) -> list[str]:
    return sorted(path.name for path in NETNS_DIR.glob(prefix + "*"))


def netns_usable(name: str) -> bool:
    """A crash between making the file and mounting the namespace on it leaves a plain file."""
    return os.path.ismount(NETNS_DIR / name) or _is_nsfs(NETNS_DIR / name)


def _is_nsfs(path: Path) -> bool:
    try:
        return path.stat().st_dev != path.parent.stat().st_dev
    except OSError:
        return False


def ensure_netns(name: str) -> bool:
    """True if it was made now."""
    if netns_usable(name):
        return False
    (NETNS_DIR / name).unlink(missing_ok=True)
    run("ip", "netns", "add", name)
    run("ip", "-n", name, "link", "set", "lo", "up")
    return True


def remove_netns(name: str) -> None:
    """Also half-made ones. Never raises for one that is gone."""
    path = NETNS_DIR / name
    if _is_nsfs(path):
        run("umount", "--lazy", str(path), check=False)
    path.unlink(missing_ok=True)


def sysctl_in(netns: str, values: dict[str, str]) -> None:
    run(*in_netns(netns, "sysctl", "-qw", *(f"{key}={value}" for key, value in values.items())))


# --- cgroups ----------------------------------------------------------------------------------------------------


def cgroup_root() -> Path:
    """The mount point of cgroup v2. Raises LabFailure."""
    for _, kind, target in mounts():
        if kind == "cgroup2":
            return Path(target)
    raise LabFailure("cgroup v2 is not mounted; mount it with `mount -t cgroup2 none /sys/fs/cgroup/unified`")


def ensure_cgroup(name: str) -> Path:
    path = cgroup_root() / name
    path.mkdir(parents=True, exist_ok=True)
    return path


def cgroup_pids(path: Path) -> list[int]:
    """All processes in it and below."""
    found: list[int] = []
    for procs in path.glob("**/cgroup.procs"):
        try:
            found += [int(line) for line in procs.read_text().split()]
        except OSError:
            continue
    return sorted(found)


def kill_cgroup(path: Path, seconds_max: float = 10.0) -> bool:
    """Kill everything in it and below; True when nothing is left."""
    if not path.is_dir():
        return True
    deadline = time.monotonic() + seconds_max
    while cgroup_pids(path):
        _kill_once(path)
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def _kill_once(path: Path) -> None:
    try:
        (path / "cgroup.kill").write_text("1")
    except OSError:  # before kernel 5.14
        for pid in cgroup_pids(path):
            with suppress(ProcessLookupError):
                os.kill(pid, 9)


def remove_cgroup(path: Path) -> None:
    """It and all below; they must hold no process. Never raises."""
    if not path.is_dir():
        return
    below = sorted((child for child in path.glob("**/") if child.is_dir()), key=lambda p: len(p.parts))
    for child in reversed(below):
        with suppress(OSError):
            child.rmdir()


# --- mounts -----------------------------------------------------------------------------------------------------


def mounts() -> list[tuple[str, str, str]]:
    """(source, kind, target) of every mount."""
    found = []
    for line in Path("/proc/self/mounts").read_text().splitlines():
        source, target, kind = line.split()[:3]
        found.append((source, kind, target.encode().decode("unicode_escape")))
    return found


def mounts_below(root: str) -> list[str]:
    """Targets at or below `root`, innermost first."""
    below = [t for _, _, t in mounts() if t == root or t.startswith(root + "/")]
    return sorted(below, key=len, reverse=True)


def ensure_bpffs(target: str) -> bool:
    """True if it was mounted now."""
    if any(kind == "bpf" and where == target for _, kind, where in mounts()):
        return False
    Path(target).mkdir(parents=True, exist_ok=True)
    run("mount", "-t", "bpf", "-o", "mode=0700", "meshlog-lab", target)
    return True


def missing_tools(tools: Sequence[str] = REQUIRED_TOOLS) -> list[str]:
    """Those that are not on the PATH."""
    return [tool for tool in tools if shutil.which(tool) is None]
