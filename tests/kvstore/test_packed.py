"""Sealed segments in one piece: what they hold, when they are due, and that damage shows."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvstore.packed import (
    PART_BYTES,
    Ended,
    Manifest,
    PackDamaged,
    Sealed,
    covers,
    decode_manifest,
    decode_sealed,
    due,
    encode_manifest,
    encode_sealed,
    pack,
    parts,
    sealed_after,
    unpack,
)
from kvstore.types import Record, Revision

DAY_NS = 86_400 * 10**9


def records(cluster: str = "east", first: int = 100, count: int = 5) -> list[Record]:
    """A segment's, of two writers in turn."""
    return [
        Record(Revision(first + n), cluster, f"n{n % 2}", 10 + n // 2, 7, b"payload %d" % n)
        for n in range(count)
    ]


def manifest(segment: int, first: int, last: int, *, age_ns: int = 0, size: int = 10) -> Manifest:
    """One that holds these revisions, packed so long before DAY_NS * 10."""
    packed_ns = 10 * DAY_NS - age_ns
    return Manifest(1, "east", segment, first, first, last, 1, 1, size, packed_ns, b"", {})


def test_what_is_packed_comes_back():
    """Every field of every record, in the order of the revisions, whatever order they were given in."""
    about, packed = pack(records()[::-1], 2, 99, 5)
    assert list(unpack(about, packed)) == records()
    assert (about.opened, about.first_revision, about.last_revision, about.records) == (99, 100, 104, 5)
    assert about.sequences == {"n0": 12, "n1": 11}


def test_the_same_records_pack_to_the_same_bytes():
    """Two packers that race put the same parts."""
    assert pack(records(), 2, 99, 5) == pack(records()[::-1], 2, 99, 5)


@pytest.mark.parametrize("wrong", [[], [*records("east"), *records("west")]])
def test_only_one_clusters_records_are_packed(wrong):
    """Nothing, or records of two, is the caller's mistake."""
    with pytest.raises(ValueError, match="all of one cluster"):
        pack(wrong, 1, 1, 1)


@given(st.lists(st.tuples(st.sampled_from(["n1", "n2"]), st.binary(max_size=9)), min_size=1, max_size=30), st.data())
def test_what_is_sealed_adds_up(written, data):
    """However records are cut into segments: where each writer ended, and the bytes of all it wrote, are the same."""
    rows, sequences = [], {}
    for revision, (writer, payload) in enumerate(written, start=1):
        sequences[writer] = sequences.get(writer, 0) + 1
        rows.append(Record(Revision(revision), "east", writer, sequences[writer], 7, payload))
    sealed = Sealed()
    while rows:
        cut = data.draw(st.integers(1, len(rows)))
        about, _ = pack(rows[:cut], sealed.segment + 1, sealed.through + 1, 1)
        sealed = decode_sealed(encode_sealed(sealed_after(sealed, about, rows[:cut])))
        rows = rows[cut:]
    assert sealed.through == len(written)
    for writer, last in sequences.items():
        size = sum(len(payload) for name, payload in written if name == writer)
        assert sealed.ended(writer) == Ended(last, size)
    assert sealed.ended("other") == Ended(0, 0)


def test_nothing_is_sealed_where_nothing_is_said():
    """An absent key; what cannot be read is told."""
    assert decode_sealed(b"") == Sealed()
    with pytest.raises(PackDamaged, match="how far"):
        decode_sealed(b"\xc1")


def test_any_changed_byte_is_noticed():
    """Of the packed records, wherever it is."""
    about, packed = pack(records(), 2, 99, 5)
    for place in range(len(packed)):
        damaged = packed[:place] + bytes([packed[place] ^ 1]) + packed[place + 1 :]
        with pytest.raises(PackDamaged):
            unpack(about, damaged)


def test_a_manifest_of_another_format_is_refused():
    """It says which format this version reads."""
    about, _ = pack(records(), 2, 99, 5)
    assert decode_manifest(encode_manifest(about)) == about
    with pytest.raises(PackDamaged, match="format is 2"):
        decode_manifest(encode_manifest(msgspec.structs.replace(about, format=2)))
    with pytest.raises(PackDamaged, match="cannot be read"):
        decode_manifest(b"nonsense")


def test_parts_fit_a_key_and_join_again():
    """No byte is lost at the cuts."""
    packed = bytes(range(256)) * 5000
    cut = parts(packed)
    assert b"".join(cut) == packed
    assert max(map(len, cut)) <= PART_BYTES


@pytest.mark.parametrize(
    ("archived", "after", "low", "whole"),
    [
        ([], 0, 0, True),
        ([], 0, 10, False),
        ([manifest(1, 5, 10)], 0, 10, True),
        ([manifest(1, 5, 10)], 0, 11, False),
        ([manifest(1, 5, 10), manifest(3, 21, 30)], 0, 30, False),
        ([manifest(1, 5, 10), manifest(3, 21, 30)], 22, 30, True),
        ([manifest(2, 11, 20)], 0, 20, False),
        ([manifest(2, 11, 20)], 11, 20, True),
        ([manifest(1, 5, 10), manifest(2, 15, 20)], 12, 20, True),
        ([manifest(2, 15, 20)], 12, 20, False),
    ],
)
def test_a_hole_in_the_archive_is_no_history(archived, after, low, whole):
    """Records are taken from it only where all of them are there."""
    assert covers(archived, after, low) is whole


def test_old_segments_are_due_oldest_first():
    """Those older than asked, up to the first that is not."""
    kept = [manifest(3, 21, 30), manifest(1, 1, 10, age_ns=2 * DAY_NS), manifest(2, 11, 20, age_ns=2 * DAY_NS)]
    found = due(kept, through=100, now_ns=10 * DAY_NS, age_s=86_400, bytes_max=1000)
    assert [each.segment for each in found] == [1, 2]


def test_segments_leave_while_they_are_too_many():
    """The oldest, until the rest fits the budget."""
    kept = [manifest(n, n * 10, n * 10 + 9) for n in range(1, 6)]
    found = due(kept, through=100, now_ns=10 * DAY_NS, age_s=86_400, bytes_max=25)
    assert [each.segment for each in found] == [1, 2, 3]


def test_nothing_beyond_the_checkpoint_is_due():
    """However old it is: without a state behind it, a reader could not start."""
    kept = [manifest(1, 1, 10, age_ns=5 * DAY_NS), manifest(2, 11, 20, age_ns=5 * DAY_NS)]
    found = due(kept, through=19, now_ns=10 * DAY_NS, age_s=86_400, bytes_max=0)
    assert [each.segment for each in found] == [1]
