"""The archive directory: what is kept comes back; what is damaged is named, and costs its own segment only."""

import os
from pathlib import Path

import pytest

from kvstore.archive import SCRUB_S, Archive
from kvstore.archives import Archives
from kvstore.errors import ArchiveDamaged
from kvstore.packed import pack
from kvstore.types import Record, Revision

STORE = 0xABC


def segment(number: int) -> list[Record]:
    """Ten records."""
    first = number * 10
    return [Record(Revision(first + n), "east", "n1", first + n, 5, b"x%d" % n) for n in range(10)]


@pytest.fixture
def archive(tmp_path: Path) -> Archive:
    """Three segments of one cluster."""
    made = Archive(tmp_path / "archive")
    for number in (1, 2, 3):
        made.keep(STORE, *pack(segment(number), number, number * 10, number))
    return made


def test_what_is_kept_is_read_by_another_process(archive):
    """Nothing but the directory is needed."""
    other = Archive(archive.directory)
    assert [each.segment for each in other.manifests(STORE)] == [1, 2, 3]
    assert list(other.records(STORE, "east", 2)) == segment(2)
    assert other.verify(STORE) == []


def test_what_is_not_there_is_none(archive):
    """Another segment, another cluster, another store."""
    assert archive.records(STORE, "east", 4) is None
    assert archive.records(STORE, "west", 1) is None
    assert archive.records(STORE + 1, "east", 1) is None
    assert archive.manifests(STORE + 1) == []


def test_keeping_again_changes_no_file(archive):
    """A segment is written once."""
    path = archive.path(STORE, "east", 2)
    before = path.stat()
    archive.keep(STORE, *pack(segment(2), 2, 20, 999))
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_a_segment_of_another_history_gives_way(archive):
    """The log was put back to a backup: its second segment is another one now, and the first one's file stays beside."""
    other = [*segment(2)[:5], *(Record(each.revision, "east", "n2", each.sequence, 6, b"y") for each in segment(2)[5:])]
    archive.keep(STORE, *pack(other, 2, 20, 2))
    assert list(archive.records(STORE, "east", 2)) == other
    assert [each.segment for each in archive.held(STORE)] == [1, 2, 3] and archive.verify(STORE) == []
    (lost,) = archive.path(STORE, "east", 2).parent.glob("*.lost")
    assert lost.stat().st_size > 0


def test_what_a_lost_log_has_sealed_is_no_history(archive):
    """Of the archive counts what ends before the store's own history begins, of the clusters that are asked for."""
    archives = Archives(archive.directory)
    assert [each.segment for each in archives.manifests(STORE, {"east": 29})] == [1, 2]
    assert archives.manifests(STORE, {"west": 99}) == []


def test_no_changed_byte_goes_unnoticed(archive):
    """Wherever it is in the file, reading it names the file."""
    path = archive.path(STORE, "east", 2)
    whole = path.read_bytes()
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(ArchiveDamaged, match="00000002"):
            archive.records(STORE, "east", 2)


@pytest.mark.parametrize("keep", [0, 5, 40, 200, -1])
def test_a_file_cut_short_is_noticed(archive, keep):
    """As after a disk that was full."""
    path = archive.path(STORE, "east", 2)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ArchiveDamaged):
        archive.records(STORE, "east", 2)


def test_damage_is_contained(archive):
    """The other segments are read, and listed; the damaged one is listed with a reason."""
    archive.path(STORE, "east", 2).write_bytes(b"nonsense")
    other = Archive(archive.directory)
    assert [each.segment for each in other.manifests(STORE)] == [1, 3]
    assert [bool(each.reason) for each in other.held(STORE)] == [False, True, False]
    assert [Path(damage.path).name for damage in other.verify(STORE)] == ["00000002.segment"]
    assert list(other.records(STORE, "east", 3)) == segment(3)


def test_a_file_that_is_gone_is_named(archive):
    """Between others it must have been; a reader who begins behind it does not need it."""
    archive.path(STORE, "east", 2).unlink()
    assert [each.reason for each in archive.held(STORE)] == ["", "the file is not there", ""]
    assert archive.fault(STORE, "east", 5).path.endswith("00000002.segment")
    assert archive.fault(STORE, "east", 39) is None


def test_scrubbing_finds_what_no_reader_has_met(archive):
    """One file at a time, each once a day: damage behind a whole header is told, and mended by who has the segment."""
    path = archive.path(STORE, "east", 2)
    content = path.read_bytes()
    other = Archive(archive.directory)
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert [each.reason for each in other.held(STORE)] == ["", "", ""]
    for turn in range(3):
        other.scrub(STORE, 100.0 + turn)
    assert [bool(each.reason) for each in other.held(STORE)] == [False, True, False]
    assert [each.segment for each in other.manifests(STORE)] == [1, 3]
    other.keep(STORE, *pack(segment(2), 2, 20, 2))
    assert [each.segment for each in other.manifests(STORE)] == [1, 2, 3]


def test_a_file_is_scrubbed_again_after_a_day(archive):
    """What was whole yesterday may be damaged today, without a change that the file system tells."""
    for turn in range(3):
        archive.scrub(STORE, 100.0 + turn)
    path = archive.path(STORE, "east", 1)
    about, content = path.stat(), path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns))
    archive.scrub(STORE, 200.0)
    assert not any(each.reason for each in archive.held(STORE))
    archive.scrub(STORE, 200.0 + SCRUB_S)
    assert [bool(each.reason) for each in archive.held(STORE)] == [True, False, False]


def test_a_damaged_file_is_written_anew_and_kept_aside(archive):
    """Whoever has the segment still mends the archive; what was there is not thrown away."""
    path = archive.path(STORE, "east", 2)
    path.write_bytes(b"nonsense")
    archive.keep(STORE, *pack(segment(2), 2, 20, 2))
    assert list(archive.records(STORE, "east", 2)) == segment(2)
    assert path.with_suffix(".damaged").read_bytes() == b"nonsense"


def test_a_file_in_another_ones_place_is_noticed(archive):
    """Its header says which segment it is."""
    archive.path(STORE, "east", 1).rename(archive.path(STORE, "east", 4))
    with pytest.raises(ArchiveDamaged, match="it holds segment 00000001"):
        archive.records(STORE, "east", 4)
