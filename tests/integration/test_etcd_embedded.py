"""The embedded etcd: side by side, refused with a reason, private, and how it ends."""

import asyncio
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from kvstore.embedded import CLIENT_SOCKET, EmbeddedEtcd
from kvstore.errors import EmbeddedError
from kvstore.etcd import EtcdLog

DEADLINE_S = 60.0


@pytest.fixture
def folder() -> Iterator[Path]:
    """A short path, since a socket's path must fit into 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="mle-") as path:
        yield Path(path)


@pytest.fixture
async def etcd(folder: Path) -> AsyncIterator[EmbeddedEtcd]:
    """A running etcd."""
    child = await EmbeddedEtcd.start(folder / "etcd")
    yield child
    await child.stop()


async def wait_until(condition: Callable[[], bool]) -> None:
    """Wait for a condition, with a bound."""
    async with asyncio.timeout(DEADLINE_S):
        while not condition():
            await asyncio.sleep(0.01)


async def test_two_embedded_side_by_side(etcd, folder):
    """A second etcd on another directory does not collide with the first."""
    other = await EmbeddedEtcd.start(folder / "other")
    log = await EtcdLog.connect([other.endpoint])
    assert await log.head()
    await log.close()
    await other.stop()


async def test_a_data_directory_in_use_is_named(etcd):
    """A second etcd on the same directory is refused at once."""
    with pytest.raises(EmbeddedError, match="another etcd already listens"):
        await EmbeddedEtcd.start(etcd.data_dir)


async def test_a_missing_binary_names_the_package(folder, monkeypatch):
    """Without etcd the error says what to install."""
    monkeypatch.setenv("PATH", str(folder))
    with pytest.raises(EmbeddedError, match="etcd-server"):
        await EmbeddedEtcd.start(folder / "etcd")


async def test_an_unusable_data_directory_is_named(folder):
    """A file where the directory should be is said in words."""
    (folder / "file").write_bytes(b"")
    with pytest.raises(EmbeddedError, match=f"data directory {folder}/file/etcd"):
        await EmbeddedEtcd.start(folder / "file" / "etcd")


async def test_a_long_data_directory_is_named(folder):
    """A directory whose socket path would be too long is refused before anything is started."""
    with pytest.raises(EmbeddedError, match="at most 107"):
        await EmbeddedEtcd.start(folder / ("x" * 120))


async def test_an_etcd_that_ends_at_once_is_quoted(folder):
    """If etcd refuses to run, its own last words are in the error."""
    (folder / "etcd" / "data").mkdir(parents=True)
    (folder / "etcd" / "data" / "member").write_bytes(b"no directory")
    with pytest.raises(EmbeddedError, match=r"etcd ended at once with status 1: .*member"):
        await EmbeddedEtcd.start(folder / "etcd")


async def test_the_data_directory_is_private(etcd):
    """Nobody but the owner can enter it."""
    assert etcd.data_dir.stat().st_mode & 0o777 == 0o700


STARTER = """
import asyncio, sys
from pathlib import Path
from kvstore.embedded import EmbeddedEtcd

async def main():
    child = await EmbeddedEtcd.start(Path(sys.argv[1]), bound_to_parent=sys.argv[2] == "bound")
    print(child.pid, flush=True)
    sys.stdin.read()

asyncio.run(main())
"""


@pytest.mark.parametrize("kind", ["bound", "detached"])
async def test_the_end_of_the_starter(folder, kind):
    """Its starter killed, a bound etcd ends too and a detached one still takes writes."""
    starter = subprocess.Popen(  # noqa: ASYNC220 - a process whose end is the test
        [sys.executable, "-c", STARTER, str(folder / "etcd"), kind],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    pid = int(await asyncio.to_thread(starter.stdout.readline))
    starter.kill()
    starter.communicate()
    log = await EtcdLog.connect([f"unix:{folder / 'etcd' / CLIENT_SOCKET}"])
    try:
        if kind == "bound":
            await wait_until(lambda: _ended(pid))
        else:
            session = await log.open_session("east", "n1")
            assert await log.append(session, b"x")
    finally:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        await wait_until(lambda: _ended(pid))
        await log.close()


def _ended(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except FileNotFoundError:
        return True
