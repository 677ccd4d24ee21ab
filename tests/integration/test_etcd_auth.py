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
from kvstore.embedded import EmbeddedEtcd
from kvstore.errors import LogUnavailable, NotAllowed, SequenceGap
from kvstore.etcd import EtcdLog
from kvstore.etcd_client import DELETE_RANGE, PUT, RANGE, TXN, Client, Limits, Login
from kvstore.etcd_roles import apply_roles, enable
from kvstore.roles import agent_role, operator_role, reader_role
from kvstore.types import Claim, Position, Record, Revision, Want

FAST = Limits(transaction_s=1.0, call_s=5.0, quiet_s=0.05, keepalive_s=0.2, audit_s=0.1)
ROLES = (agent_role("east", "n1"), agent_role("east", "n2"), operator_role("east"), reader_role())
AGENT, VICTIM, OPERATOR, READER = (Login(role.name, "secret") for role in ROLES)


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


async def history(etcd: EmbeddedEtcd) -> list[Record]:
    """Of two agents: two sealed segments, some that is loose, a checkpoint, and what the operator publishes."""
    operator, victim = await connect(etcd, OPERATOR), await connect(etcd, VICTIM)
    agent = await connect(etcd, AGENT)
    own, other = await agent.open_session("east", "node.n1"), await victim.open_session("east", "node.n2")
    duty = await operator.open_session("east", "operator")
    for n in range(4):
        await agent.append(own, b"agent %d" % n)
        await victim.append(other, b"victim %d" % n, [Claim(f"identity/east/{n}")])
        await operator.append(duty, b"operator %d" % n)
        if n < 2:
            assert await operator.retention("east").seal(1)
    await operator.put("checkpoint/east/0000000000000001/0000", b"part")
    await operator.put("manifest/east", b"x", duty, lasting=True)
    await operator.put("retention/east", b"x")
    await victim.put("report/east/n2", b"x", other, lasting=True)
    await victim.put("flow/east/n2", b"x", other, lasting=True)
    await operator.acquire(duty, "operator-east")
    found = await operator.retention("east").segments()
    await operator.retention("east").truncate(found.packed[1], found.low_touched)
    records = [record async for record in victim.read(Position(Revision(found.packed[1].last_revision), learns=True))]
    for log in (operator, victim, agent):
        await log.close()
    return records


async def all_keys(etcd: EmbeddedEtcd) -> list[rpc.KeyValue]:
    """As the reader sees them."""
    client = Client((etcd.endpoint,), None, FAST, READER)
    first, end = keys.prefix_range(keys.PREFIX)
    found = await client.call(RANGE, rpc.RangeRequest(key=first, range_end=end))
    await client.close()
    return list(found.kvs)


def is_agents(key: bytes) -> bool:
    """Of node n1, by the layout of keys; or a claim, which are the cluster's."""
    own = (keys.log_key("east", "node.n1", 1)[:-16], keys.session_key("east", "node.n1"), keys.cursor_key("east", "node.n1"))
    return key.startswith((*own, keys.claim_key("x")[:-1]))


async def test_an_agent_can_neither_change_nor_delete_nor_add_what_is_anothers(etcd):
    """Every key that there is, and every key that another's next record, session or segment would have: etcd refuses an
    agent's put, delete and range of deletes, alone and in a transaction; all is as it was, and is read."""
    records = await history(etcd)
    before = await all_keys(etcd)
    tables = {kv.key.removeprefix(keys.PREFIX).split(b"/")[0].decode() for kv in before}
    assert tables == {
        "log", "cursor", "session", "sealed", "segment", "pack", "low", "claim",
        "checkpoint", "manifest", "retention", "report", "flow", "duty",
    }  # fmt: skip
    others = [kv.key for kv in before if not is_agents(kv.key)]
    others += [
        keys.log_key("east", "node.n2", 5), keys.log_key("east", "node.n3", 1), keys.log_key("east", "node.n1x", 1),
        keys.log_key("east", "operator", 9), keys.log_key("west", "node.n1", 1), keys.cursor_key("east", "node.n3"),
        keys.session_key("east", "node.n2"), keys.session_key("east", "operator"), keys.duty_key("operator-east"),
        keys.segment_key("east", 9, 1, 2), keys.pack_part_key("east", 2, b"digest", 0), keys.low_key("west"),
    ]  # fmt: skip
    client = Client((etcd.endpoint,), None, FAST, AGENT)
    for key in others:
        put = rpc.PutRequest(key=key, value=b"forged")
        drop = rpc.DeleteRangeRequest(key=key)
        for method, request in (
            (PUT, put),
            (DELETE_RANGE, drop),
            (TXN, rpc.TxnRequest(success=[rpc.RequestOp(request_put=put)])),
            (TXN, rpc.TxnRequest(failure=[rpc.RequestOp(request_delete_range=drop)])),
        ):
            with pytest.raises(NotAllowed, match="permission denied"):
                await client.call(method, request)
    for start, end in (keys.log_cluster("east"), (keys.log_writer("east", "node.n1")[0], keys.log_writer("east", "node.n2")[1])):
        with pytest.raises(NotAllowed, match="permission denied"):
            await client.call(DELETE_RANGE, rpc.DeleteRangeRequest(key=start, range_end=end))
    await client.close()
    assert [kv for kv in await all_keys(etcd) if not kv.lease] == [kv for kv in before if not kv.lease]
    reader = await connect(etcd, READER)
    assert [record async for record in reader.read(Position(Revision(records[0].revision - 1), learns=True))] == records
    await reader.close()


async def test_what_an_agent_destroys_of_its_own_is_named(etcd):
    """It deletes one of its records: who catches up through it is told which writer's, and from where on."""
    await history(etcd)
    client = Client((etcd.endpoint,), None, FAST, AGENT)
    await client.call(DELETE_RANGE, rpc.DeleteRangeRequest(key=keys.log_key("east", "node.n1", 3)))
    await client.close()
    reader = await connect(etcd, READER)
    low = (await reader.retention("east").segments()).low
    with pytest.raises(SequenceGap) as gap:
        [record async for record in reader.read(Position(Revision(low), learns=True))]
    assert (gap.value.writer, gap.value.expected) == ("east/node.n1", 3)
    await reader.close()


async def test_a_spoilt_cursor_harms_its_own_writer_only(etcd):
    """An agent writes rubbish where its cursor and a record are: readers go on with the others."""
    agent, victim = await connect(etcd, AGENT), await connect(etcd, VICTIM)
    await agent.append(await agent.open_session("east", "node.n1"), b"agent's")
    await victim.append(await victim.open_session("east", "node.n2"), b"victim's")
    client = Client((etcd.endpoint,), None, FAST, AGENT)
    for key in (keys.cursor_key("east", "node.n1"), keys.log_writer("east", "node.n1")[0] + b"rubbish"):
        await client.call(PUT, rpc.PutRequest(key=key, value=b"\xc1"))
    reader = await connect(etcd, READER)
    assert [record.payload async for record in reader.read(Position())] == [b"victim's"]
    for each in (client, agent, victim, reader):
        await each.close()


async def test_an_operator_keeps_the_history_with_the_least_role(etcd):
    """Duty, sealing others' records, truncation, checkpoints."""
    agent, log = await connect(etcd, AGENT), await connect(etcd, OPERATOR)
    await agent.append(await agent.open_session("east", "node.n1"), b"agent's")
    session = await log.open_session("east", "operator")
    assert await log.acquire(session, "operator-east")
    await log.append(session, b"operator's")
    keep = log.retention("east")
    sealed = await keep.seal(1)
    assert sealed[0][0].records == 2
    await keep.truncate(sealed[0][0], (await keep.segments()).low_touched)
    await log.put("checkpoint/east/1/0000", b"x")
    await log.put("manifest/east", b"x", session, lasting=True)
    await keep.drop_checkpoint(2)
    await log.put("retention/east", b"x")
    assert not (await keep.space()).is_full
    await agent.close()
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
