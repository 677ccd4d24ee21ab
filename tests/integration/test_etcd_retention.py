"""History in a real etcd that is repacked, archived, taken out, and one that runs out of space."""

import asyncio
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kvstore import keys, packed
from kvstore import rpc_pb2 as rpc
from kvstore.archive import Archive
from kvstore.embedded import EmbeddedEtcd
from kvstore.errors import ArchiveDamaged, HistoryTruncated, LogFull, LogUnavailable
from kvstore.etcd import EtcdLog
from kvstore.etcd_client import RANGE, Client, Limits
from kvstore.types import Bookmark, Position, Record
from tests.contract.conftest import LossyClient

DEADLINE_S = 60.0
FAST = Limits(transaction_s=1.0, call_s=5.0, quiet_s=0.05, keepalive_s=0.2, audit_s=0.1)


@pytest.fixture
def folder() -> Iterator[Path]:
    """A short path, since a socket's path must fit into 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="mlr-") as path:
        yield Path(path)


@pytest.fixture
async def etcd(folder: Path) -> AsyncIterator[EmbeddedEtcd]:
    """A running etcd."""
    child = await EmbeddedEtcd.start(folder / "etcd")
    yield child
    await child.stop()


@pytest.fixture
async def log(etcd: EmbeddedEtcd, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[EtcdLog]:
    """A log whose segments are full after ten records."""
    monkeypatch.setattr(packed, "SEGMENT_RECORDS_MAX", 10)
    made = await EtcdLog.connect([etcd.endpoint], limits=FAST)
    yield made
    await made.close()


async def fill(log: EtcdLog, cluster: str = "east", writers: int = 2, count: int = 40) -> None:
    """Records of several writers in turn."""
    sessions = [await log.open_session(cluster, f"n{n}") for n in range(writers)]
    for n in range(count):
        await log.append(sessions[n % writers], b"%d" % n)


async def read_all(log: EtcdLog, after: Position | None = None) -> list[Record]:
    """Everything behind a position."""
    return [record async for record in log.read(after or Position())]


async def pack_all(log: EtcdLog, cluster: str, archive: Archive | None = None) -> int:
    """Seal what fills segments, and archive it; the number of segments."""
    keep, count = log.retention(cluster), 0
    while (found := await keep.segments()).is_full:
        done = await keep.seal(1, 4, rest=False)
        assert done
        count += len(done)
        for each in done if archive is not None else ():
            archive.keep(found.store_id, *each)
    return count


async def truncate(log: EtcdLog, cluster: str, count: int) -> int:
    """Take the oldest out; the revision behind which history begins."""
    keep = log.retention(cluster)
    found = await keep.segments()
    last, touched = 0, found.low_touched
    for number in sorted(found.packed)[:count]:
        touched = await keep.truncate(found.packed[number], touched)
        last = found.packed[number].last_revision
    return last


async def wait_until(condition: Callable[[], bool]) -> None:
    """Wait for a condition, with a bound."""
    async with asyncio.timeout(DEADLINE_S):
        while not condition():
            await asyncio.sleep(0.01)


async def test_repacked_segments_read_as_before(log):
    """From the start, from the middle, and by a follower: the same records, in the same order."""
    await fill(log)
    await fill(log, "west")
    before = await read_all(log)
    assert await pack_all(log, "east") >= 3
    assert await read_all(log) == before
    middle = before[len(before) // 2].revision
    assert await read_all(log, Position(middle, learns=True)) == [each for each in before if each.revision > middle]
    seen = []
    async for delivery in log.follow(Position()):
        if isinstance(delivery, Bookmark):
            break
        seen.append(delivery)
    assert seen == before


async def test_repacking_leaves_only_last_batches_loose(log, etcd):
    """The records' keys go, but for those by which a writer may settle an append in doubt; and these with the next."""
    await fill(log)
    client = Client((etcd.endpoint,), None, Limits())
    first, end = keys.log_cluster("east")
    for loose in (1, 2):
        await log.retention("east").seal(1)
        await log.append(await log.open_session("east", f"late{loose}"), b"x")
    while await log.retention("east").seal(1):
        pass
    left = (await client.call(RANGE, rpc.RangeRequest(key=first, range_end=end, keys_only=True))).kvs
    assert [keys.parse_log_key(kv.key).writer for kv in left] == ["late1", "late2", "n0", "n1"]
    await fill(log, count=2)
    await log.retention("east").seal(1)
    assert (await client.call(RANGE, rpc.RangeRequest(key=first, range_end=end, count_only=True))).count == 4
    await client.close()


async def test_two_packers_do_not_disturb_each_other(log, monkeypatch):
    """One of them makes each segment, the other is told that there is nothing to do, also if it saw fewer records."""
    await fill(log)
    before = await read_all(log)
    keep, other = log.retention("east"), log.retention("east")
    while (await keep.segments()).is_full:
        done = await asyncio.gather(*(each.seal(1) for each in (keep, other)))
        assert sorted(len(one) for one in done) == [0, 1]
    assert await read_all(log) == before

    async def show_late(*given: Any) -> int:
        await log.append(await log.open_session("east", "late"), b"late")
        assert await keep.seal(1)
        return await real(*given)

    await fill(log, count=3)
    before, real = await read_all(log), other._show
    monkeypatch.setattr(other, "_show", show_late)
    assert not await other.seal(1)
    assert (await read_all(log))[: len(before)] == before


async def test_an_append_in_doubt_is_settled_after_the_packing(log, etcd):
    """Its answer was lost, its segment was sealed and repacked: sent again, it is still stored once."""
    client = LossyClient((etcd.endpoint,), None, Limits(transaction_s=1.0, call_s=0.3))
    doubtful = EtcdLog(client)
    session = await doubtful.open_session("east", "doubt")
    client.losses = 10**6
    with pytest.raises(LogUnavailable):
        await doubtful.append(session, b"in doubt")
    client.losses = 0
    await fill(log)
    assert await pack_all(log, "east") >= 3
    revision = await doubtful.append(session, b"in doubt")
    stored = [each for each in await read_all(log) if each.payload == b"in doubt"]
    assert [each.revision for each in stored] == [revision]
    await doubtful.close()


async def test_history_that_left_is_read_from_the_archive(log, etcd, folder):
    """A reader with the archive does not notice; one without it is told where history begins; both clusters merge."""
    await fill(log)
    await fill(log, "west")
    before = await read_all(log)
    archive = Archive(folder / "archive")
    await pack_all(log, "east", archive)
    low = await truncate(log, "east", 2)
    with pytest.raises(HistoryTruncated) as truncated:
        await read_all(log)
    assert truncated.value.low == low
    reaching = await EtcdLog.connect([etcd.endpoint], limits=FAST, archive=archive.directory)
    assert await read_all(reaching) == before
    early = before[5].revision
    assert await read_all(reaching, Position(early, learns=True)) == before[6:]
    assert await read_all(log, Position(low, learns=True)) == [each for each in before if each.revision > low]
    await reaching.close()


def flip_a_byte(path: Path) -> None:
    """As a disk does."""
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))


def cut(path: Path) -> None:
    """As a full disk does."""
    path.write_bytes(path.read_bytes()[:100])


@pytest.mark.parametrize("damage", [flip_a_byte, cut, Path.unlink], ids=["a flipped byte", "cut short", "gone"])
async def test_a_damaged_archive_file_stops_only_those_who_need_it(log, etcd, folder, damage):
    """It is named; what lies behind it is read; a process that lives behind it starts from the checkpoint in etcd."""
    await fill(log)
    before = await read_all(log)
    archive = Archive(folder / "archive")
    await pack_all(log, "east", archive)
    await truncate(log, "east", 3)
    damage(archive.path(log.cluster_id, "east", 2))
    reaching = await EtcdLog.connect([etcd.endpoint], limits=FAST, archive=archive.directory)
    with pytest.raises(ArchiveDamaged, match=r"00000002\.segment"):
        await read_all(reaching)
    (last,) = (each.opened - 1 for each in archive.manifests(log.cluster_id) if each.segment == 3)
    assert await read_all(reaching, Position(last, learns=True)) == [each for each in before if each.revision > last]
    await reaching.close()


async def fill_up(log: EtcdLog) -> None:
    """Overwrite one key until etcd has no space."""
    with pytest.raises(LogFull):
        for n in range(1000):
            await log.put("report/east/ballast", bytes([n % 256]) * 1_000_000)


async def test_a_full_etcd_takes_writes_again_and_has_lost_nothing(folder, monkeypatch):
    """A quota that is really exhausted: writes are refused, reads go on, room is made, the same session goes on."""
    etcd = await EmbeddedEtcd.start(folder / "etcd", quota_bytes=24 * 1024 * 1024)
    try:
        log = await EtcdLog.connect([etcd.endpoint], limits=FAST)
        session = await log.open_session("east", "n1")
        acknowledged = [await log.append(session, b"%d" % n) for n in range(50)]
        await fill_up(log)
        assert log.full_since is not None
        with pytest.raises(LogFull):
            await log.append(session, b"refused")
        assert [record.revision for record in await read_all(log)] == acknowledged
        keep = log.retention("east")
        assert (await keep.space()).is_full
        after = await keep.make_room()
        assert not after.is_full
        acknowledged.append(await log.append(session, b"after"))
        assert log.full_since is None
        assert [record.revision for record in await read_all(log)] == acknowledged
        await log.close()
    finally:
        await etcd.stop()


async def test_a_dropped_segment_is_told_as_truncated_until_low_has_moved(log, etcd, folder):
    """A full etcd loses a segment first and says so later: in between, readers are told, or find the archive."""
    await fill(log)
    before = await read_all(log)
    archive = Archive(folder / "archive")
    await pack_all(log, "east", archive)
    await fill(log)
    keep = log.retention("east")
    found = await keep.segments()
    await keep.drop_packed(1)
    with pytest.raises(HistoryTruncated):
        await read_all(log)
    reaching = await EtcdLog.connect([etcd.endpoint], limits=FAST, archive=archive.directory)
    assert (await read_all(reaching))[: len(before)] == before
    await keep.truncate(found.packed[1], found.low_touched)
    assert (await read_all(reaching))[: len(before)] == before
    await reaching.close()
