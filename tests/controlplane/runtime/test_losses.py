"""The list of what a log that was put back has lost: kept over restarts, until it is mended or dismissed."""

from pathlib import Path

from controlplane.commands.namespace import ApplyNamespace
from controlplane.runtime.losses import LOSSES_FILE, Losses
from kvstore.memory import MemoryStore
from tests.controlplane.runtime.mesh import Part, joined, running


async def test_a_loss_is_told_until_it_is_mended(tmp_path: Path) -> None:
    """Also by the next process, which never saw the log as it was; then the file is gone."""
    store = MemoryStore()
    operator, agent = Part(store, "operator"), Part(store, "node.n1")
    losses = Losses(tmp_path, agent.follower)
    async with running(operator, agent):
        await joined(operator, agent)
        backup = store.revision
        await agent.writer.submit(ApplyNamespace("shop", {"team": "a"}))
        assert losses.problems() == []
        store.restore(backup, cluster_id=2)
        while not losses.open():
            await agent.follower.wait_moved()
        (problem,) = losses.problems()
        assert "Namespace shop (gone)" in problem and "meshlog log lost" in problem
        again = Losses(tmp_path, agent.follower)
        assert [each.text for each in again.open()] == ["Namespace shop"]
        await agent.writer.submit(ApplyNamespace("shop", {"team": "a"}))
        assert losses.problems() == [] and again.problems() == []
    assert not (tmp_path / LOSSES_FILE).exists()


async def test_a_loss_that_is_right_is_dismissed(tmp_path: Path) -> None:
    """By hand; a list that cannot be read counts as none, and does not keep a process from starting."""
    store = MemoryStore()
    part = Part(store, "operator")
    losses = Losses(tmp_path, part.follower)
    async with running(part):
        backup = store.revision
        await part.writer.submit(ApplyNamespace("shop", {"team": "a"}))
        store.restore(backup, cluster_id=2)
        while not losses.open():
            await part.follower.wait_moved()
    assert losses.dismiss() == 1 and losses.problems() == []
    (tmp_path / LOSSES_FILE).write_text("{")
    assert Losses(tmp_path, part.follower).open() == []
