"""Checkpoints: saved, loaded, and refused when damaged."""

from controlplane.runtime.checkpoints import CHECKPOINT_FILE, Checkpoints, fold
from controlplane.runtime.shared_checkpoint import share_state, shared_state
from kvstore.memory import MemoryLog, MemoryStore
from tests.controlplane.runtime.mesh import JOIN_EAST, Part, running


async def test_checkpoint_gives_the_state_back(tmp_path):
    """What was saved is loaded, with its revision, and following goes on from there."""
    operator = Part(MemoryStore(), "operator")
    async with running(operator):
        await operator.writer.submit(JOIN_EAST)
        await Checkpoints(tmp_path).save_if_trusted(operator.follower)
        loaded = Checkpoints(tmp_path).load()
        assert loaded is not None
        assert loaded.save() == operator.follower.state.save()
        assert (await fold(operator.log, loaded)).digest() == operator.follower.state.digest()


async def test_damaged_checkpoint_is_not_used(tmp_path):
    """One flipped byte: there is no checkpoint, and the log is folded from its start."""
    operator = Part(MemoryStore(), "operator")
    async with running(operator):
        await operator.writer.submit(JOIN_EAST)
        await Checkpoints(tmp_path).save(operator.follower.state)
    path = tmp_path / CHECKPOINT_FILE
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert Checkpoints(tmp_path).load() is None


async def test_nothing_is_saved_while_repairing(tmp_path):
    """A state that the log contradicts never becomes a checkpoint."""
    operator = Part(MemoryStore(), "operator")
    async with running(operator):
        await operator.writer.submit(JOIN_EAST)
        operator.follower.repairing = "gap"
        await Checkpoints(tmp_path).save_if_trusted(operator.follower)
    assert Checkpoints(tmp_path).load() is None


async def test_a_shared_checkpoint_is_of_the_store_it_is_found_in():
    """An etcd restored from a backup has another id than the one that the checkpoint in it was saved under; where history
    begins behind the checkpoint, there is nothing else to start from."""
    operator = Part(MemoryStore(), "operator")
    async with running(operator):
        await operator.writer.submit(JOIN_EAST)
        state = operator.follower.state
        await share_state(operator.log, await operator.writer.session(), state, 0)
        digest, revision = state.digest(), state.revision
    store = operator.log.store
    store.truncate(revision)
    store.restore(store.revision, cluster_id=2)
    shared = await shared_state(MemoryLog(store), 0)
    assert (await fold(MemoryLog(store), shared)).digest() == digest
