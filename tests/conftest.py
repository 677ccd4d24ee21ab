"""What tests share that need the kernel: compiled objects, network namespaces, a BPF filesystem, and the
skip that says why.

Belongs here: fixtures that make and remove such things. Does not belong here: what any test proves.
"""

import itertools
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import ParamSpec, TypeVar

import pytest

ROOT = Path(__file__).parent.parent
REQUIRE = "MESHLOG_REQUIRE_KERNEL"
TAKEN_WITHIN_S = 10.0
_numbers = itertools.count()

P = ParamSpec("P")
R = TypeVar("R")


def _missing(feature: str) -> str:
    """Why this machine cannot run a test that needs `feature`; empty if it can."""
    from datapath.errors import NotRoot
    from datapath.kernel import features

    try:
        known = features.probe()
    except NotRoot:
        return "needs root (CAP_BPF and CAP_NET_ADMIN)"
    if feature not in known:
        raise pytest.UsageError(f"kernel({feature!r}): no such feature; there are {', '.join(known)}")
    return "" if known[feature].is_supported else f"needs {feature} (Linux {known[feature].minimum})"


def pytest_runtest_setup(item: pytest.Item) -> None:
    for marker in item.iter_markers("kernel"):
        reason = _missing(marker.args[0])
        if reason and os.environ.get(REQUIRE) == "1":
            pytest.fail(f"{reason}, and {REQUIRE}=1", pytrace=False)
        if reason:
            pytest.skip(reason)


@pytest.fixture(scope="session")
def objects_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with every *.bpf.o, compiled just now by the Makefile from a copy of bpf/."""
    built = tmp_path_factory.mktemp("objects") / "bpf"
    shutil.copytree(ROOT / "bpf", built, ignore=shutil.ignore_patterns("*.o"))
    outcome = subprocess.run(["make", "-C", str(built)], capture_output=True, text=True, check=False)
    assert outcome.returncode == 0, outcome.stderr
    return built


@contextmanager
def mounted_bpffs(path: Path) -> Iterator[Path]:
    """A BPF filesystem at this new directory, unmounted afterwards."""
    path.mkdir()
    subprocess.run(["mount", "-t", "bpf", "bpf", str(path)], check=True)
    try:
        yield path
    finally:
        subprocess.run(["umount", str(path)], check=True)


@pytest.fixture
def bpffs(tmp_path: Path) -> Iterator[Path]:
    """A BPF filesystem of the test's own."""
    with mounted_bpffs(tmp_path / "bpffs") as path:
        yield path


def _cgroup2() -> Path:
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, target, kind = line.split()[:3]
        if kind == "cgroup2":
            return Path(target)
    return Path("/sys/fs/cgroup")


CGROUP = _cgroup2() / f"mlt-{os.getpid()}"
"""Of this run of the tests; there only while a test has asked for one below it."""


@pytest.fixture
def make_cgroup() -> Iterator[Callable[[str], Path]]:
    """Makes cgroups of the test's own by name, and removes them afterwards."""
    made: list[Path] = []

    def make(name: str) -> Path:
        path = CGROUP / name
        path.mkdir(parents=True)
        made.append(path)
        return path

    try:
        yield make
    finally:
        for path in reversed(made):
            path.rmdir()
        if made:
            CGROUP.rmdir()


class Namespace:
    """A network namespace, empty but for its loopback device, and a thread that lives in it."""

    def __init__(self) -> None:
        self.name = f"mlt-{os.getpid()}-{next(_numbers)}"
        self.path = f"/run/netns/{self.name}"
        subprocess.run(["ip", "netns", "add", self.name], check=True)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=self.name, initializer=self._enter)

    def _enter(self) -> None:
        from pyroute2 import netns

        netns.setns(self.path, flags=os.O_RDONLY)

    def call(self, function: Callable[P, R], *arguments: P.args, **named: P.kwargs) -> R:
        """Calls in the namespace's thread; the caller's own stays where it is."""
        return self._thread.submit(function, *arguments, **named).result()

    def run(self, *command: str) -> str:
        """A program in the namespace; what it printed."""
        entered = ["nsenter", f"--net={self.path}", *command]
        return subprocess.run(entered, check=True, capture_output=True, text=True).stdout

    def add_address(self, address: str, device: str) -> None:
        """Alone, or with the length of its prefix. Returns when packets to it are taken: the kernel makes an IPv6
        address's own route later than the address."""
        is_ipv6 = ":" in address
        self.run("ip", "address", "add", address, "dev", device, *["nodad"] * is_ipv6)
        own, deadline = address.partition("/")[0], time.monotonic() + TAKEN_WITHIN_S
        while is_ipv6 and not self.run("ip", "-6", "route", "show", "table", "local", own):
            assert time.monotonic() < deadline, f"no route to {own} itself"

    def close(self) -> None:
        self._thread.shutdown()
        subprocess.run(["ip", "netns", "del", self.name], check=True)


@pytest.fixture
def make_namespace() -> Iterator[Callable[[], Namespace]]:
    """Makes network namespaces, and removes them afterwards."""
    made: list[Namespace] = []

    def make() -> Namespace:
        made.append(Namespace())
        return made[-1]

    yield make
    for namespace in made:
        namespace.close()


@pytest.fixture
def namespace(make_namespace: Callable[[], Namespace]) -> Namespace:
    """One network namespace."""
    return make_namespace()
