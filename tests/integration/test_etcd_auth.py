"""The log over an etcd that asks for a user and a password, with the least roles."""

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from kvstore import embedded, keys
from kvstore import rpc_pb2 as rpc
from kvstore.append import encode_batch
from kvstore.embedded import EmbeddedEtcd
from kvstore.errors import LogUnavailable, NotAllowed
from kvstore.etcd import EtcdLog
from kvstore.etcd_client import PUT, RANGE, Client, Limits, Login
from kvstore.etcd_roles import apply_roles, enable
from kvstore.roles import agent_role, operator_role, reader_role
from kvstore.types import Bookmark, Claim, Position, Record, Want

FAST = Limits(transaction_s=1.0, call_s=5.0, quiet_s=0.05, keepalive_s=0.2, audit_s=0.1)
ROLES = (agent_role("east", "n1"), agent_role("east", "n2"), operator_role("east"), reader_role())
AGENT, OPERATOR, READER = (Login(ROLES[n].name, "secret") for n in (0, 2, 3))


@pytest.fixture(scope="module")
def prepared() -> Iterator[Path]:
    """The data of an etcd with our roles, open to nobody else: hashing passwords takes long, so it is done once."""
    with tempfile.TemporaryDirectory(prefix="mla-") as path:
        asyncio.run(prepare(Path(path) / "etcd"))
        yield Path(path) / "etcd" / "data"


async def prepare(folder: Path) -> None:
    """Applied twice: again is harmless."""
    child = await EmbeddedEtcd.start(folder)
    client = Client((child.endpoint,), None, Limits())
    await apply_roles(client, ROLES, "secret")
    await apply_roles(client, ROLES, "secret")
    await enable(client, "root's")
    await client.close()
    await child.stop()


@pytest.fixture
def folder(prepared: Path) -> Iterator[Path]:
    """An own copy of it."""
    with tempfile.TemporaryDirectory(prefix="mla-") as path:
        shutil.copytree(prepared, Path(path) / "etcd" / "data")
        yield Path(path) / "etcd"


@pytest.fixture
async def etcd(folder: Path) -> AsyncIterator[EmbeddedEtcd]:
    """It runs."""
    child = await EmbeddedEtcd.start(folder)
    yield child
    await child.stop()


async def connect(etcd: EmbeddedEtcd, login: Login | None) -> EtcdLog:
    """As this user."""
    return await EtcdLog.connect([etcd.endpoint], limits=FAST, login=login)


async def test_an_agent_does_its_work_with_the_least_role(etcd):
    """Sessions, appends with claims of each kind, reports, reading and following."""
    log = await connect(etcd, AGENT)
    session = await log.open_session("east", "node.n1")
    claim = Claim("identity/east/number/1")
    revision = await log.append(session, b"1", [claim])
    await log.append(session, b"2", [Claim(claim.key, Want.HELD)])
    await log.append(session, b"3", [Claim(claim.key, Want.FREED)])
    await log.put("report/east/n1", b"x", session)
    deliveries = log.follow(Position())
    async with asyncio.timeout(20):
        assert (await anext(deliveries)).revision == revision
    await deliveries.aclose()
    again = await log.open_session("east", "node.n1")
    await log.append(again, b"4")
    await log.close_session(again)
    await log.close()


async def test_an_agent_is_kept_from_what_is_anothers(etcd):
    """Another node's session and report, another cluster's log, a duty, and the beginning of history."""
    log = await connect(etcd, AGENT)
    session = await log.open_session("east", "node.n1")
    for attempt in (
        log.open_session("east", "node.n2"),
        log.open_session("west", "node.n1"),
        log.put("report/east/n2", b"x"),
        log.put("manifest/east", b"x"),
        log.acquire(session, "operator-east"),
    ):
        with pytest.raises(NotAllowed, match="permission denied"):
            await attempt
    await log.close()


async def plant(etcd: EmbeddedEtcd, writer: str, sequence: int, payload: bytes, segment: int = 1) -> None:
    """What a malicious agent can do: a record under another's name, with the token that everybody can read."""
    client = Client((etcd.endpoint,), None, FAST, AGENT)
    session = await client.call(RANGE, rpc.RangeRequest(key=keys.session_key("east", writer)))
    value = encode_batch(session.kvs[0].create_revision if session.kvs else 1, payload)
    await client.call(PUT, rpc.PutRequest(key=keys.log_key("east", segment, writer, sequence), value=value))
    await client.close()


async def test_no_reader_believes_a_record_that_another_planted(etcd, monkeypatch):
    """Neither by watch nor by range, nor when it is repacked; it is counted, and its supposed writer goes on, unharmed."""
    monkeypatch.setattr("kvstore.append.SEGMENT_RECORDS_MAX", 5)
    monkeypatch.setattr("kvstore.append.PROBE_RECORDS", 1)
    reader = await connect(etcd, READER)
    victim = await connect(etcd, Login(ROLES[1].name, "secret"))
    session = await victim.open_session("east", "node.n2")
    deliveries = reader.follow(Position())
    await victim.append(session, b"1")
    async with asyncio.timeout(20):
        while not isinstance(await anext(deliveries), Bookmark):
            pass
        await plant(etcd, "node.n2", 2, b"planted")
        await plant(etcd, "node.n9", 1, b"planted too")
        assert [record.payload async for record in reader.read(Position())] == [b"1"]
        written = [b"%d" % n for n in range(2, 12)]
        for payload in written:
            await victim.append(session, payload)
        heard: list[bytes] = []
        while len(heard) < len(written):
            delivery = await anext(deliveries)
            heard += [delivery.payload] if isinstance(delivery, Record) else []
    assert heard == written and reader.refused >= 2
    assert reader.last_refused.endswith("its writer's cursor does not vouch for it")
    await deliveries.aclose()
    operator = await connect(etcd, OPERATOR)
    keep = operator.retention("east")
    await plant(etcd, "node.n9", 1, b"planted into what is sealed")
    found = await keep.segments()
    for number in found.unpacked:
        await keep.pack(number, found.opened[number], 1)
    assert [record.payload async for record in reader.read(Position())] == [b"1", *written]
    for log in (reader, victim, operator):
        await log.close()


async def test_a_spoilt_cursor_harms_its_own_writer_only(etcd):
    """An agent writes rubbish where its cursor and a segment's marker are: readers go on with the others."""
    agent, victim = await connect(etcd, AGENT), await connect(etcd, Login(ROLES[1].name, "secret"))
    await agent.append(await agent.open_session("east", "node.n1"), b"agent's")
    await victim.append(await victim.open_session("east", "node.n2"), b"victim's")
    client = Client((etcd.endpoint,), None, FAST, AGENT)
    for key in (keys.cursor_key("east", "node.n1"), keys.SEGMENT + b"east/rubbish"):
        await client.call(PUT, rpc.PutRequest(key=key, value=b"\xc1"))
    reader = await connect(etcd, READER)
    assert [record.payload async for record in reader.read(Position())] == [b"victim's"]
    for each in (client, agent, victim, reader):
        await each.close()


async def test_an_operator_keeps_the_history_with_the_least_role(etcd, monkeypatch):
    """Duty, packing, truncation, checkpoints."""
    monkeypatch.setattr("kvstore.append.SEGMENT_RECORDS_MAX", 5)
    monkeypatch.setattr("kvstore.append.PROBE_RECORDS", 1)
    log = await connect(etcd, OPERATOR)
    session = await log.open_session("east", "operator")
    assert await log.acquire(session, "operator-east")
    for n in range(20):
        await log.append(session, b"%d" % n)
    keep = log.retention("east")
    found = await keep.segments()
    for number in found.unpacked:
        assert await keep.pack(number, found.opened[number], 1)
    found = await keep.segments()
    await keep.truncate(found.packed[1], found.low_touched)
    await keep.sweep(2)
    await log.put("checkpoint/east/1/0000", b"x")
    await log.put("manifest/east", b"x", session, lasting=True)
    await keep.drop_checkpoint(2)
    await log.put("retention/east", b"x")
    assert not (await keep.space()).is_full
    await log.close()


async def test_a_reader_changes_nothing(etcd):
    """It reads and lists; an append is refused."""
    agent, log = await connect(etcd, AGENT), await connect(etcd, READER)
    session = await agent.open_session("east", "node.n1")
    await agent.append(session, b"1")
    assert [record.payload async for record in log.read(Position())] == [b"1"]
    with pytest.raises(NotAllowed, match="permission denied"):
        await log.open_session("east", "node.n1")
    await agent.close()
    await log.close()


@pytest.mark.parametrize("login", [None, Login(AGENT.user, "wrong"), Login("nobody", "secret")])
async def test_nobody_else_is_let_in(etcd, login):
    """No login, a wrong password, an unknown user: an error with a reason."""
    log = await connect(etcd, login)
    with pytest.raises(NotAllowed, match=r"user name is empty|authentication failed|permission denied"):
        await log.head()
    await log.close()


async def test_a_token_that_is_gone_is_asked_for_again(etcd):
    """etcd forgets its tokens when it is killed: the writer and a follower go on, in the same session, unasked."""
    log, reading = await connect(etcd, AGENT), await connect(etcd, READER)
    session = await log.open_session("east", "node.n1")
    revisions = [await log.append(session, b"1")]
    seen: list[int] = []

    async def follow() -> None:
        async for delivery in reading.follow(Position()):
            if isinstance(delivery, Record):
                seen.append(delivery.revision)

    following = asyncio.create_task(follow())
    os.kill(etcd.pid, signal.SIGKILL)
    await etcd.stop()
    again = await EmbeddedEtcd.start(etcd.data_dir)
    try:
        while len(revisions) < 10:
            try:
                revisions.append(await log.append(session, b"%d" % len(revisions)))
            except LogUnavailable:
                continue
        async with asyncio.timeout(30):
            while seen != revisions:
                assert not following.done(), following.exception()
                await asyncio.sleep(0.02)
    finally:
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
        await log.close()
        await reading.close()
        await again.stop()


async def test_a_token_that_runs_out_is_asked_for_again(folder, monkeypatch):
    """Tokens of one second: a writer, its lease and a follower go on beyond several of them, in the same session."""
    for words in (
        ("genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048", "-out", "jwt.key"),
        ("rsa", "-in", "jwt.key", "-pubout", "-out", "jwt.pub"),
    ):
        subprocess.run(["openssl", *words], cwd=folder, check=True, capture_output=True)  # noqa: ASYNC221 - some ms
    plain = embedded._command
    token = f"jwt,pub-key={folder}/jwt.pub,priv-key={folder}/jwt.key,sign-method=RS256,ttl=1s"
    monkeypatch.setattr(embedded, "_command", lambda *given: [*plain(*given), "--auth-token", token])
    etcd = await EmbeddedEtcd.start(folder)
    log, reading = await connect(etcd, AGENT), await connect(etcd, READER)
    try:
        session = await log.open_session("east", "node.n1")
        deliveries = reading.follow(Position())
        began_with = log._client._token
        async with asyncio.timeout(20):
            for number in range(12):
                await log.append(session, b"%d" % number)
                while not isinstance(delivery := await anext(deliveries), Record):
                    pass
                assert delivery.payload == b"%d" % number
                await asyncio.sleep(0.25)
        assert [record.payload async for record in reading.read(Position())] == [b"%d" % n for n in range(12)]
        assert log._client._token != began_with
        await deliveries.aclose()
    finally:
        await log.close()
        await reading.close()
        await etcd.stop()


async def test_the_command_makes_roles_that_work(etcd, tmp_path):
    """`meshlog etcd roles --apply`, as root: the new agent appends; without a login the command says so."""
    (tmp_path / "root").write_text("root's\n")
    (tmp_path / "password").write_text("other\n")
    words = ["etcd", "roles", "--cluster", "west", "--node", "n7", "--apply", "--etcd", etcd.endpoint]
    refused = await run(*words)
    assert refused.returncode == 1 and b"user name is empty" in refused.stderr, refused
    login = ("--etcd-user", "root", "--etcd-password-file", str(tmp_path / "root"))
    made = await run(*words, *login, "--password-file", str(tmp_path / "password"))
    assert made.returncode == 0, made
    log = await connect(etcd, Login("meshlog-agent.west.n7", "other"))
    assert await log.append(await log.open_session("west", "node.n7"), b"x")
    await log.close()


async def run(*words: str) -> "subprocess.CompletedProcess[bytes]":
    """The program, in a process of its own."""
    code = "import sys; from controlplane.cli.main import main; sys.exit(main(sys.argv[1:]))"
    return await asyncio.to_thread(
        subprocess.run, [sys.executable, "-c", code, *words], capture_output=True, timeout=60, check=False
    )
