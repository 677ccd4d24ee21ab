"""The log over an etcd that asks for client certificates."""

import asyncio
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from kvstore.errors import LogUnavailable, NotAllowed
from kvstore.etcd import TLS, EtcdLog, Limits
from kvstore.etcd_client import Client
from kvstore.etcd_roles import apply_roles, enable
from kvstore.roles import agent_role
from kvstore.types import Position

SOCKET = "127.0.0.1:40035"

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl to make certificates")


def _openssl(folder: Path, *arguments: str) -> None:
    subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)


def _certificate(folder: Path, name: str) -> None:
    (folder / f"{name}.ext").write_text(
        "subjectAltName=DNS:localhost\nextendedKeyUsage=serverAuth,clientAuth\n"
    )
    _openssl(folder, "ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", f"{name}.key")
    _openssl(folder, "req", "-new", "-key", f"{name}.key", "-subj", f"/CN={name}", "-out", f"{name}.csr")
    _openssl(
        folder, "x509", "-req", "-in", f"{name}.csr", "-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial",
        "-days", "2", "-extfile", f"{name}.ext", "-out", f"{name}.crt",
    )  # fmt: skip


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """Certificates, and an etcd behind them on a unix socket."""
    with tempfile.TemporaryDirectory(prefix="mlt-") as path:
        made = Path(path)
        _openssl(made, "ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", "ca.key")
        _openssl(
            made, "req", "-x509", "-new", "-key", "ca.key", "-subj", "/CN=ca", "-days", "2", "-out", "ca.crt"
        )
        _certificate(made, "server")
        _certificate(made, "client")
        with _etcd(made, SOCKET, "127.0.0.1:40036"):
            yield made


@contextmanager
def _etcd(folder: Path, socket: str, peer: str) -> Iterator[None]:
    with (folder / "log").open("ab") as log:
        etcd = subprocess.Popen(
            [
                "etcd", "--data-dir", f"data-{peer}", "--name", "n", "--initial-cluster", f"n=unix://{peer}",
                "--listen-peer-urls", f"unix://{peer}", "--initial-advertise-peer-urls", f"unix://{peer}",
                "--listen-client-urls", f"unixs://{socket}", "--advertise-client-urls", f"unixs://{socket}",
                "--cert-file", "server.crt", "--key-file", "server.key",
                "--trusted-ca-file", "ca.crt", "--client-cert-auth",
                "--heartbeat-interval", "10", "--election-timeout", "100",
            ],
            cwd=folder, stdout=log, stderr=log,
        )  # fmt: skip
    try:
        yield
    finally:
        etcd.kill()
        etcd.wait()


async def test_a_client_certificate_opens_the_log(folder):
    """With the right files records are appended, read and followed."""
    tls = TLS(folder / "ca.crt", folder / "client.crt", folder / "client.key")
    log = await EtcdLog.connect([f"unix:{folder / SOCKET}"], tls=tls)
    session = await log.open_session("east", "n1")
    await log.append(session, b"x")
    assert [record.payload async for record in log.read(Position())] == [b"x"]
    deliveries = log.follow(Position())
    async with asyncio.timeout(20):
        assert (await anext(deliveries)).payload == b"x"
    await deliveries.aclose()
    await log.close()


@pytest.mark.parametrize("tls", [None, TLS()])
async def test_without_a_certificate_nothing_is_reached(folder, tls):
    """No TLS, or no certificate of ours: LogUnavailable, with a reason."""
    log = await EtcdLog.connect([f"unix:{folder / SOCKET}"], tls=tls, limits=Limits(call_s=0.5))
    with pytest.raises(LogUnavailable, match="etcd at unix:"):
        await log.head()
    await log.close()


async def test_a_certificate_without_its_key_is_refused(folder):
    """Half of a pair is a mistake of the caller, and is said before anything is sent."""
    with pytest.raises(ValueError, match="together"):
        await EtcdLog.connect(["localhost:2379"], tls=TLS(folder / "ca.crt", folder / "client.crt"))


async def test_the_name_in_a_certificate_is_the_user(folder):
    """Without any password: the agent's certificate opens what the agent's role allows, and no more; one whose name is
    no user's opens nothing."""
    socket = "127.0.0.1:40037"
    role = agent_role("east", "n1")
    _certificate(folder, role.name)
    _certificate(folder, "root")
    endpoint = f"unix:{folder / socket}"

    def files(name: str) -> TLS:
        return TLS(folder / "ca.crt", folder / f"{name}.crt", folder / f"{name}.key")

    with _etcd(folder, socket, "127.0.0.1:40038"):
        root = Client((endpoint,), files("root"), Limits())
        await apply_roles(root, [role])
        await enable(root, "root's")
        await root.close()
        agent = await EtcdLog.connect([endpoint], tls=files(role.name))
        session = await agent.open_session("east", "node.n1")
        await agent.append(session, b"x")
        assert [record.payload async for record in agent.read(Position())] == [b"x"]
        with pytest.raises(NotAllowed, match="permission denied"):
            await agent.open_session("east", "node.n2")
        await agent.close()
        nobody = await EtcdLog.connect([endpoint], tls=files("client"), limits=Limits(call_s=0.5))
        with pytest.raises(NotAllowed):
            await nobody.head()
        await nobody.close()
