"""Checkpoints beside the log, over memory and a real etcd."""

import itertools

import pytest

from kvstore import checkpoint_parts
from kvstore.errors import CheckpointDamaged, Fenced
from kvstore.packed import PART_BYTES
from kvstore.types import Position, Revision

_numbers = itertools.count()


@pytest.fixture
def cluster() -> str:
    """A name that no other test of this module uses."""
    return f"p{next(_numbers)}"


def saved(size: int) -> bytes:
    """Bytes that do not compress to nothing."""
    return b"".join(n.to_bytes(4, "big") for n in range(size // 4))


async def put(log, cluster, revision, content):
    """One checkpoint, by the cluster's operator."""
    session = await log.open_session(cluster, "operator")
    position = Position(Revision(revision), {f"{cluster}/n1": 3}, 7)
    return await checkpoint_parts.save(log, session, cluster, position, 1, content, 5)


async def test_a_checkpoint_of_many_parts_comes_back(bed, cluster):
    """Position, schema and every byte."""
    log = await bed.log()
    content = saved(6 * PART_BYTES)
    manifest = await put(log, cluster, 10, content)
    assert manifest.parts > 1
    found = (await checkpoint_parts.manifests(log))[cluster]
    assert found == manifest
    loaded = await checkpoint_parts.load(log, cluster, found)
    assert (loaded.position, loaded.schema_version, loaded.saved) == (manifest.position, 1, content)


async def test_the_newest_above_a_revision_comes_first(bed, cluster):
    """Of all clusters; those not above it are left out."""
    log = await bed.log()
    await put(log, f"{cluster}a", 10, b"a")
    await put(log, f"{cluster}b", 20, b"b")
    await put(log, f"{cluster}c", 5, b"c")
    found = {name: each for name, each in (await checkpoint_parts.manifests(log)).items() if name.startswith(cluster)}
    assert [name for name, _ in checkpoint_parts.newest(found, 5)] == [f"{cluster}b", f"{cluster}a"]


@pytest.mark.parametrize("damage", [b"", b"other bytes", b"x" * 100])
async def test_damaged_parts_are_refused(bed, cluster, damage):
    """A part that is another one's, or empty, is noticed by the digest."""
    log = await bed.log()
    manifest = await put(log, cluster, 10, saved(1000))
    await log.put(f"checkpoint/{cluster}/{10:016x}/0000", damage)
    with pytest.raises(CheckpointDamaged, match="revision 10"):
        await checkpoint_parts.load(log, cluster, manifest)


async def test_a_manifest_that_cannot_be_read_hides_no_other(bed, cluster):
    """It counts as none."""
    log = await bed.log()
    await put(log, cluster, 10, b"x")
    await log.put(f"manifest/{cluster}x", b"nonsense")
    found = await checkpoint_parts.manifests(log)
    assert cluster in found and f"{cluster}x" not in found


async def test_a_fenced_session_shows_no_checkpoint(bed, cluster):
    """A process that lost its place cannot put an older checkpoint over a newer one."""
    log = await bed.log()
    zombie = await log.open_session(cluster, "operator")
    newer = await put(log, cluster, 20, b"newer")
    with pytest.raises(Fenced):
        await checkpoint_parts.save(log, zombie, cluster, Position(Revision(10)), 1, b"older", 5)
    assert (await checkpoint_parts.manifests(log))[cluster] == newer
