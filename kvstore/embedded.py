"""An etcd of our own: Debian's binary as a child, with its data directory and a unix socket, and no TCP port.

Belongs here: starting it, waiting until it takes writes, stopping it, and clear errors when that fails. Does
not belong here: any use of it (etcd.py).
"""

import asyncio
import os
import platform
import shutil
import signal
import socket
import subprocess
from pathlib import Path

import msgspec

from kvstore import rpc_pb2 as rpc
from kvstore.errors import EmbeddedError, LogFull, LogUnavailable, NotAllowed
from kvstore.etcd_client import PUT, Client, Limits

QUOTA_BYTES = 2 * 1024**3
START_S = 20.0
STOP_S = 5.0
# etcd takes host:port as the address of a unix socket; the number is a part of the file's name and no port.
CLIENT_SOCKET = "127.0.0.1:40033"
PEER_SOCKET = "127.0.0.1:40034"
SOCKET_PATH_BYTES_MAX = 107
HEALTH_KEY = b"/meshlog/embedded/health"
LOG_FILE = "etcd.log"


class _LogLine(msgspec.Struct):
    msg: str
    error: str = ""


class EmbeddedEtcd:
    """A running child. Make one with `start`."""

    def __init__(self, process: "subprocess.Popen[bytes]", data_dir: Path) -> None:
        """Use `start`."""
        self._process = process
        self.data_dir = data_dir

    @property
    def endpoint(self) -> str:
        """What EtcdLog.connect takes."""
        return f"unix:{self.data_dir / CLIENT_SOCKET}"

    @property
    def pid(self) -> int:
        """The child's process id."""
        return self._process.pid

    @classmethod
    async def start(
        cls, data_dir: Path, *, bound_to_parent: bool = True, quota_bytes: int = QUOTA_BYTES
    ) -> "EmbeddedEtcd":
        """Start etcd on `data_dir` (made if absent, mode 0700) and wait until it takes writes.

        `bound_to_parent`: it ends when the thread that started it ends, however that happens; else it runs
        on. Raises EmbeddedError.
        """
        data_dir = Path(data_dir).absolute()
        command = _command(bound_to_parent, quota_bytes)
        _prepare(data_dir)
        with (data_dir / LOG_FILE).open("ab") as log:
            # Forked by this very thread: the signal at its parent's end follows the thread, not the process.
            process = subprocess.Popen(  # noqa: ASYNC220
                command,
                cwd=data_dir,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=not bound_to_parent,
                env=_environment(),
            )
        child = cls(process, data_dir)
        try:
            await child._wait_writable()
        except BaseException:
            await child.stop()
            raise
        return child

    async def stop(self) -> None:
        """End the child: SIGTERM, and SIGKILL if it is still there after 5 s. Harmless if it has ended."""
        if not await self._ended(signal.SIGTERM):
            await self._ended(signal.SIGKILL)

    async def _ended(self, number: signal.Signals) -> bool:
        if self._process.poll() is None:
            self._process.send_signal(number)
        deadline = asyncio.get_running_loop().time() + STOP_S
        while self._process.poll() is None and asyncio.get_running_loop().time() < deadline:
            await asyncio.sleep(0.01)
        return self._process.poll() is not None

    async def _wait_writable(self) -> None:
        client = Client((self.endpoint,), None, Limits(transaction_s=1.0))
        deadline = asyncio.get_running_loop().time() + START_S
        try:
            while True:
                if self._process.poll() is not None:
                    raise EmbeddedError(
                        f"etcd ended at once with status {self._process.returncode}: {self._last_words()}"
                    )
                try:
                    if (self.data_dir / CLIENT_SOCKET).is_socket():
                        await client.send(PUT, rpc.PutRequest(key=HEALTH_KEY), 1.0)
                        return
                except (LogFull, NotAllowed):
                    # Out of space it still serves reads, and deletes make room. One that asks for a login is up.
                    return
                except LogUnavailable as error:
                    if asyncio.get_running_loop().time() > deadline:
                        raise EmbeddedError(f"etcd takes no writes after {START_S} s: {error}") from None
                await asyncio.sleep(0.01)
        finally:
            await client.close()

    def _last_words(self) -> str:
        lines = (self.data_dir / LOG_FILE).read_bytes().strip().splitlines()
        try:
            said = msgspec.json.decode(lines[-1], type=_LogLine)
        except (IndexError, ValueError, msgspec.MsgspecError):
            return f"see {self.data_dir / LOG_FILE}"
        return f"{said.msg}: {said.error}" if said.error else said.msg


def _command(bound_to_parent: bool, quota_bytes: int) -> list[str]:
    etcd = shutil.which("etcd")
    if etcd is None:
        raise EmbeddedError(
            "etcd is not installed: install the package etcd-server, or give endpoints of one that runs"
        )
    own_end: list[str] = []
    if bound_to_parent:
        setpriv = shutil.which("setpriv")
        if setpriv is None:
            raise EmbeddedError("setpriv is not installed: install the package util-linux")
        own_end = [setpriv, "--pdeathsig", "TERM", "--"]
    return [
        *own_end,
        etcd,
        "--name",
        "meshlog",
        "--data-dir",
        "data",
        "--listen-client-urls",
        f"unix://{CLIENT_SOCKET}",
        "--advertise-client-urls",
        f"unix://{CLIENT_SOCKET}",
        "--listen-peer-urls",
        f"unix://{PEER_SOCKET}",
        "--initial-advertise-peer-urls",
        f"unix://{PEER_SOCKET}",
        "--initial-cluster",
        f"meshlog=unix://{PEER_SOCKET}",
        "--heartbeat-interval",
        "10",
        "--election-timeout",
        "100",
        "--quota-backend-bytes",
        str(quota_bytes),
        "--snapshot-count",
        "10000",
        "--auto-compaction-mode",
        "revision",
        "--auto-compaction-retention",
        "1000",
        "--max-request-bytes",
        "1572864",
        "--logger",
        "zap",
        "--log-outputs",
        "stderr",
    ]


def _environment() -> dict[str, str]:
    # A system-wide etcd's settings (ETCD_*) are not for this one. On arm64 etcd 3.4 asks for a word first.
    arm = {"ETCD_UNSUPPORTED_ARCH": "arm64"} if platform.machine() == "aarch64" else {}
    return {"PATH": os.environ.get("PATH", os.defpath), **arm}


def _prepare(data_dir: Path) -> None:
    path = data_dir / CLIENT_SOCKET
    if len(os.fsencode(path)) > SOCKET_PATH_BYTES_MAX:
        raise EmbeddedError(
            f"data directory {data_dir}: the socket's path would have {len(os.fsencode(path))} bytes, "
            f"at most {SOCKET_PATH_BYTES_MAX} are possible; use a shorter directory"
        )
    try:
        data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        data_dir.chmod(0o700)
    except OSError as error:
        raise EmbeddedError(
            f"data directory {data_dir}: {error.strerror}; give a directory that can be written"
        ) from None
    if not os.access(data_dir, os.W_OK | os.X_OK):
        raise EmbeddedError(f"data directory {data_dir}: not writable by this user")
    for stale in (path, data_dir / PEER_SOCKET):
        if stale.is_socket():
            if _answers(stale):
                raise EmbeddedError(f"data directory {data_dir}: another etcd already listens on {stale}")
            # A killed etcd leaves its sockets behind, and the next one does not bind over them.
            stale.unlink()


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        return probe.connect_ex(str(path)) == 0
