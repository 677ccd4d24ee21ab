"""Checkpoint files: what is saved is loaded, whatever else is on the disk is refused."""

import os

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kvstore import checkpoint
from kvstore.errors import CheckpointDamaged
from kvstore.types import Position, Revision

POSITION = Position(Revision(42), {"east/n1": 7, "west/n2": 1}, 2**63 + 5)


@pytest.fixture
def path(tmp_path):
    """Where the checkpoint goes."""
    return tmp_path / "checkpoint"


@given(
    st.binary(max_size=2000),
    st.integers(0, 2**31),
    st.dictionaries(st.text(max_size=9), st.integers(1, 2**62)),
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_checkpoint_reads_back(path, saved, schema_version, sequences):
    """Position, schema version and bytes come back as they were."""
    position = Position(Revision(9), sequences, 3)
    checkpoint.save(path, position, schema_version, saved)
    assert checkpoint.load(path) == checkpoint.Checkpoint(position, schema_version, saved)


@given(st.data())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=300)
def test_any_changed_byte_is_noticed(path, data):
    """One byte changed anywhere, or the end cut off, raises CheckpointDamaged with file and reason."""
    checkpoint.save(path, POSITION, 1, b"state" * 10)
    content = bytearray(path.read_bytes())
    at = data.draw(st.integers(0, len(content) - 1))
    if data.draw(st.booleans()):
        content[at] ^= data.draw(st.integers(1, 255))
    else:
        del content[at:]
    path.write_bytes(content)
    with pytest.raises(CheckpointDamaged) as damaged:
        checkpoint.load(path)
    assert damaged.value.path == str(path) and damaged.value.reason


def test_the_order_of_sequences_does_not_matter(path):
    """The digest is of the values: a dict that was filled in another order is the same position."""
    checkpoint.save(path, POSITION, 1, b"x")
    first = path.read_bytes()[-70:]
    checkpoint.save(
        path, Position(Revision(42), dict(reversed(POSITION.sequences.items())), 2**63 + 5), 1, b"x"
    )
    assert path.read_bytes()[-35:] == first[-35:]


def test_a_missing_file_is_no_damage(path):
    """No checkpoint is an ordinary state: FileNotFoundError."""
    with pytest.raises(FileNotFoundError):
        checkpoint.load(path)


def test_a_failed_save_keeps_the_old_file(path, monkeypatch):
    """If the new file cannot be made durable, the old one stands and no leftover remains."""
    checkpoint.save(path, POSITION, 1, b"old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        checkpoint.save(path, POSITION, 1, b"new")
    assert checkpoint.load(path).saved == b"old"
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_the_file_is_private(path):
    """Nobody but the owner can read it."""
    checkpoint.save(path, POSITION, 1, b"x")
    assert path.stat().st_mode & 0o777 == 0o600
