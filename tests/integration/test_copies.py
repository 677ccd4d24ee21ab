"""Copies of the history on other machines: each answers for any point by itself, and history waits for them."""

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from controlplane.agent import build_archivist
from controlplane.cli.main import main
from controlplane.commands.workload import ApplyWorkload
from controlplane.history.at import Past
from controlplane.projections.state import State
from controlplane.runtime.archives import copies_of, reaching, whereabouts
from controlplane.runtime.archivist import ArchiveReport, Archivist, Holding, behind
from controlplane.runtime.checkpoints import Checkpoints, fold
from controlplane.runtime.clock import SystemClock
from controlplane.runtime.follower import Follower
from controlplane.runtime.reports import NodeReport, report_key
from controlplane.runtime.telemetry import Counters
from controlplane.runtime.warden import Warden
from controlplane.settings import AgentSettings
from kvstore.archive import Archive
from kvstore.embedded import EmbeddedEtcd
from kvstore.etcd import EtcdLog
from kvstore.etcd_retention import Segments
from kvstore.types import Position
from tests.integration.test_etcd_restored import Store
from tests.integration.test_retention import folder, operating, wait_until, write

__all__ = ["folder"]


@asynccontextmanager
async def copying(folder: Path, endpoint: str) -> AsyncIterator[tuple[EtcdLog, Archivist]]:
    """An agent's copy, with its log; the copy itself runs when the test says so."""
    settings = AgentSettings(cluster="east", node="n1", state_dir=str(folder / "n1"), archive_keep="on", retry_s=0.05)
    log = await EtcdLog.connect([endpoint], archive=folder / "n1" / "archive")
    checkpoints, clock, counters = Checkpoints(folder), SystemClock(), Counters()
    follower = Follower(log, State(), clock, settings, counters, lambda error: checkpoints.refold(log, error))
    task = asyncio.create_task(follower.run())
    try:
        await follower.wait_in_sync(30.0)
        archivist = build_archivist(settings, log, follower, clock, counters)
        assert archivist is not None
        yield log, archivist
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await log.close()


async def put_report(log: EtcdLog, copy: ArchiveReport, session: Any) -> None:
    """As the agent's reporter does."""
    report = NodeReport("east", "n1", 1, True, 0, 0, {}, archive=copy)
    await log.put(report_key("east", "n1"), msgspec.json.encode(report), session)


async def test_history_waits_for_a_live_copy_which_then_answers_by_itself(folder: Path, capsys: Any) -> None:
    """What is due stays in etcd while a node's copy lacks it, which `status` says; with the copy the node folds the
    whole history, though etcd has none of it and the operator's directory is not there."""
    etcd = await EmbeddedEtcd.start(folder / "etcd")
    try:
        async with operating(folder, etcd.endpoint, retention_s=0.001) as warden, copying(folder, etcd.endpoint) as mine:
            log, archivist = mine
            session = await log.open_session("east", "node.n1")
            await put_report(log, archivist.report, session)
            await write(warden, 40)

            async def waits() -> bool:
                return any("node east/n1 has the segments of east up to 0" in each for each in warden.status().problems)

            await wait_until(waits)
            assert (await log.retention("east").segments()).low == 0

            async def is_copied() -> bool:
                await archivist.round()
                await put_report(log, archivist.report, session)
                return (await log.retention("east").segments()).low > 0 and not warden._retention.problems()

            await wait_until(is_copied)
            whole = [record async for record in warden.log.read(Position())]
            (folder / "archive").rename(folder / "elsewhere")
            assert [record async for record in log.read(Position())] == whole
            past = Past(log, lambda: int(whole[-1].revision), old_log=reaching(log), whereabouts=lambda: whereabouts(log))
            assert (await past.moment(int(whole[3].revision))).revision == whole[3].revision
            assert str(folder / "n1" / "archive") in await whereabouts(log)
            status = await asyncio.to_thread(main, ["log", "retention", "--etcd", etcd.endpoint])
            shown = capsys.readouterr().out
            assert "copy of node east/n1" in shown and str(folder / "n1" / "archive") in shown, (status, shown)
    finally:
        await etcd.stop()


async def test_history_does_not_wait_for_ever(folder: Path) -> None:
    """A copy that does not go on is left behind when it has had its time, and one whose session ended is not asked."""
    etcd = await EmbeddedEtcd.start(folder / "etcd")
    try:
        async with operating(folder, etcd.endpoint, retention_s=0.001, archive_wait_s=0.5) as warden:
            log = await EtcdLog.connect([etcd.endpoint])
            session = await log.open_session("east", "node.n1")
            await put_report(log, ArchiveReport("far", "/srv/archive", error="No space left on device"), session)
            await write(warden, 40)

            async def has_left() -> bool:
                return (await log.retention("east").segments()).low > 0

            await wait_until(has_left)
            await log.close_session(session)
            assert [name for name, _ in await copies_of(log)] in ([], ["operator east"])
            await log.close()
    finally:
        await etcd.stop()


async def test_what_a_lost_log_had_sealed_is_archived_anew(folder: Path) -> None:
    """etcd is put back behind segments that are in the archive already: those of the log that there is take their
    place, and a reader of the whole history meets no record of the other one."""
    store = Store(folder)
    await store.start()
    try:
        async with operating(folder, store.etcd.endpoint, retention_s=3600.0) as warden:
            await write(warden, 25)
            await store.keep()
            lost = await _written(warden, "lost", lambda found, archived: archived >= 3)
        await store.put_back()
        async with operating(folder, store.etcd.endpoint, retention_s=0.001) as warden:
            await warden.follower.wait_in_sync(30.0)
            await _written(warden, "other", lambda found, archived: found.low_segment >= lost)
            state = await fold(warden.log, State())
            assert state.digest() == warden.follower.state.digest()
            assert {key.name for key in state.workloads} >= {"other-0", "web-24"}
            assert list((folder / "archive").glob("*/east/*.lost"))
    finally:
        await store.etcd.stop()


async def _written(warden: Warden, name: str, is_enough: Callable[[Segments, int], bool]) -> int:
    """Record after record until what etcd and the archive have is enough; how many segments the archive has then."""
    async with asyncio.timeout(60.0):
        for n in itertools.count():
            found = await warden.log.retention("east").segments()
            archived = len(Archive(Path(warden.settings.state_dir) / "archive").manifests(found.store_id))
            if is_enough(found, archived):
                return archived
            await warden.writer.submit(ApplyWorkload("shop", f"{name}-{n}", {"app": name}))


def test_who_is_behind_is_told_in_words() -> None:
    """With how far it is, where it is, and why it does not go on."""
    whole = ArchiveReport("a", "/x", (Holding("east", 4, 4, 100, 1, 90),))
    behind_by_one = ArchiveReport("b", "/y", (Holding("east", 3, 3, 80, 1, 70),), "disk full")
    copies = {"node east/n1": whole, "node east/n2": behind_by_one, "node west/n1": ArchiveReport("c", "/z")}
    assert behind(copies, "east", [3, 4]) == [
        "node east/n2 has the segments of east up to 3 of 4 in b:/y (disk full)",
        "node west/n1 has the segments of east up to 0 of 4 in c:/z",
    ]
    assert behind(copies, "east", []) == []


@pytest.mark.parametrize(("keep", "given", "made"), [("off", "", False), ("on", "", True), ("on", "/srv/a", True)])
async def test_an_agent_keeps_a_copy_only_if_it_is_told(tmp_path: Path, keep: str, given: str, made: bool) -> None:
    """In the directory given, or in its state directory."""
    settings = AgentSettings(cluster="east", node="n1", state_dir=str(tmp_path), archive_keep=keep, archive_dir=given)
    log = await EtcdLog.connect(["unix:/none"])
    follower = Follower(log, State(), SystemClock(), settings, Counters(), None)  # type: ignore[arg-type]
    archivist = build_archivist(settings, log, follower, SystemClock(), Counters())
    assert (archivist is not None) is made
    if archivist is not None:
        assert archivist.report.directory == (given or str(tmp_path / "archive"))
    await log.close()
