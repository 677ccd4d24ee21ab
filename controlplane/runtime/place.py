"""The directories of one process: made, owned and locked, so that two never run in one place.

Belongs here: paths and the lock. Does not belong here: what is kept in them.
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

RUNTIME_ROOT = Path("/run/meshlog")
STATE_ROOT = Path("/var/lib/meshlog")
LOCK_FILE = "lock"
OBJECTS_DIR = Path(__file__).resolve().parents[2] / "bpf"


class PlaceTaken(Exception):
    """Another process runs here, or the directory cannot be used."""


def runtime_dir(given: str, name: str) -> Path:
    """Sockets and the lock; gone after a reboot."""
    return Path(given) if given else RUNTIME_ROOT / name


def state_dir(given: str, name: str) -> Path:
    """Checkpoints; they outlive a reboot."""
    return Path(given) if given else STATE_ROOT / name


def objects_dir(given: str) -> Path:
    """The compiled BPF objects."""
    return Path(given) if given else OBJECTS_DIR


def made(directory: Path) -> Path:
    """The directory, made if absent, mode 0750. Raises PlaceTaken."""
    try:
        directory.mkdir(mode=0o750, parents=True, exist_ok=True)
    except OSError as error:
        raise PlaceTaken(f"{directory}: {error.strerror}; give a directory that can be written") from None
    return directory


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Hold the directory (made if absent, mode 0750) for this process. Raises PlaceTaken."""
    try:
        descriptor = os.open(made(directory) / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
    except OSError as error:
        raise PlaceTaken(f"{directory}: {error.strerror}; give a directory that can be written") from None
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            owner = os.pread(descriptor, 32, 0).decode(errors="replace").strip()
            raise PlaceTaken(
                f"{directory} is in use by process {owner or 'unknown'}; stop it first"
            ) from None
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, str(os.getpid()).encode(), 0)
        yield
    finally:
        os.close(descriptor)
