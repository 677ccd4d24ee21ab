"""The past beyond etcd: archives that operators have recorded are found without a flag, or a person is told where to go."""

import asyncio
import json
import os
import shutil
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from controlplane.cli.main import main
from controlplane.history.at import BeforeHistory, Past
from controlplane.history.points import Point
from controlplane.runtime.archives import reaching, whereabouts
from kvstore.archive import Archive
from kvstore.embedded import EmbeddedEtcd
from kvstore.errors import HistoryTruncated
from kvstore.etcd import EtcdLog
from kvstore.types import Position, Record, Revision
from tests.integration.test_retention import folder, operating, wait_until, write

__all__ = ["folder"]
pytestmark = pytest.mark.skipif(shutil.which("etcd") is None, reason="needs etcd (Debian: etcd-server)")
RECORDS = 40


@pytest.fixture
async def emptied(folder: Path) -> AsyncIterator[tuple[EtcdLog, list[Record], str]]:
    """A log without --archive-dir whose history has left etcd; all of its records; etcd's endpoint."""
    etcd = await EmbeddedEtcd.start(folder / "etcd")
    log = await EtcdLog.connect([etcd.endpoint])
    try:
        async with operating(folder, etcd.endpoint, retention_s=0.001) as warden:
            await write(warden, RECORDS)

            async def has_left() -> bool:
                found = await log.retention("east").segments()
                kept = await log.list("retention/")
                return found.low > 0 and not found.is_full and not found.packed and bool(kept) and bool(
                    await whereabouts(log)
                )

            await wait_until(has_left)
            whole = [record async for record in warden.log.read(Position())]
        yield log, whole, etcd.endpoint
    finally:
        await log.close()
        await etcd.stop()


def past_of(log: EtcdLog, through: int) -> Past:
    return Past(log, lambda: through, old_log=reaching(log), whereabouts=lambda: whereabouts(log))


async def test_any_point_is_answered_from_the_recorded_archive(folder: Path, emptied: Any) -> None:
    """Without a flag: states, records and times before what etcd holds are those of a reader with the archive."""
    log, whole, _ = emptied
    with pytest.raises(HistoryTruncated):
        [record async for record in log.read(Position())]
    past = past_of(log, int(whole[-1].revision))
    early = whole[5]
    moment = await past.moment(int(early.revision))
    assert len(moment.state.workloads) == sum(1 for each in whole[:6] if b"WorkloadApplied" in each.payload)
    read = [record async for record in past.records(0, int(whole[-1].revision))]
    assert read == whole
    assert await past.resolve(Point(time_ns=moment.time_ns)) == early.revision
    with pytest.raises(BeforeHistory):
        await past.resolve(Point(time_ns=1))


async def test_an_archive_that_is_elsewhere_is_named(folder: Path, emptied: Any) -> None:
    """Where the directory is not on this machine, the refusal says whose it is, where it is, and which flags read it."""
    log, whole, _ = emptied
    os.rename(folder / "archive", folder / "moved")
    past = past_of(log, int(whole[-1].revision))
    with pytest.raises(HistoryTruncated):
        await past.moment(int(whole[5].revision))
    said = await past.elsewhere()
    for part in ("cluster east", str(folder / "archive"), os.uname().nodename, "--archive-dir", "--socket"):
        assert part in said


async def test_a_directory_counts_for_the_cluster_that_recorded_it(folder: Path, emptied: Any) -> None:
    """What west's operator names is no history of east's, whatever stands in it."""
    log, whole, _ = emptied

    async def find() -> list[tuple[str, Path]]:
        return [("west", folder / "archive")]

    with pytest.raises(HistoryTruncated):
        [record async for record in log.reaching(find).read(Position(), Revision(int(whole[-1].revision)))]


async def test_a_second_directory_stands_in_for_a_damaged_file(folder: Path, emptied: Any) -> None:
    """Of a segment that is damaged in the directory given and whole in the one recorded, the whole one is read."""
    log, whole, endpoint = emptied
    copy = folder / "copy"
    shutil.copytree(folder / "archive", copy)
    damaged = Path(Archive(copy).held(log.cluster_id)[0].path)
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"?")

    async def find() -> list[tuple[str, Path]]:
        return [("east", folder / "archive")]

    given = await EtcdLog.connect([endpoint], archive=copy)
    reader = given.reaching(find)
    assert await reader._archive.widened()
    assert [record async for record in reader.read(Position())] == whole
    await given.close()


def test_replay_and_retention_take_the_flags_of_an_agent(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A login without its password, and a certificate that is not there, are refused with the flag's name."""
    for verb in ("replay", "retention"):
        words = ["log", verb, "--etcd", "localhost:1"]
        assert main([*words, "--etcd-user", "root"]) == 2
        assert "--etcd-password-file" in capsys.readouterr().err
        assert main([*words, "--etcd-ca", str(tmp_path / "none.pem")]) == 2
        assert "none.pem" in capsys.readouterr().err


async def test_replay_reaches_the_recorded_archive(folder: Path, emptied: Any) -> None:
    """`log replay` folds from the first record though etcd has not got it, in a process of its own."""
    _, whole, endpoint = emptied
    code = "from controlplane.cli.main import main; raise SystemExit(main())"
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-c", code, "log", "replay", "--etcd", endpoint, "-o", "json", stdout=asyncio.subprocess.PIPE
    )
    out, _ = await child.communicate()
    assert child.returncode == 0
    assert json.loads(out)["records"] == len(whole)
