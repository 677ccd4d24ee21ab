"""The key layout: both directions, order, and what is refused."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvstore import keys

names = st.from_regex(re.compile(r"[a-z0-9]([-a-z0-9.]{0,20}[a-z0-9])?"), fullmatch=True)
segments = st.integers(1, 2**32 - 1)
sequences = st.integers(1, 2**64 - 1)


@given(names, names, sequences)
def test_a_log_key_reads_back(cluster, writer, sequence):
    """What builds a record's key is what parsing it gives."""
    assert keys.parse_log_key(keys.log_key(cluster, writer, sequence)) == keys.LogKey(cluster, writer, sequence)


@given(names, segments, sequences, sequences)
def test_a_segment_key_reads_back(cluster, number, opened, through):
    """What builds a segment's key is what parsing it gives."""
    key = keys.segment_key(cluster, number, opened, through)
    assert keys.parse_segment_key(key) == keys.SegmentKey(cluster, number, opened, through)


@given(names, names)
def test_a_cursor_key_reads_back(cluster, writer):
    """What builds a cursor's key is what parsing it gives."""
    assert keys.parse_cursor_key(keys.cursor_key(cluster, writer)) == f"{cluster}/{writer}"


@given(names, names, st.tuples(names, names, sequences))
def test_a_writers_range_holds_its_own_records_only(cluster, writer, other):
    """A record lies in a writer's range exactly if it is of that cluster and writer: so a role can keep others out."""
    first, end = keys.log_writer(cluster, writer)
    assert first <= keys.log_key(cluster, writer, 1) < end
    assert (first <= keys.log_key(*other) < end) == (other[:2] == (cluster, writer))


@given(st.integers(1, 2**63), st.integers(0, 100), sequences)
def test_a_range_of_sequences_holds_these(first, more, sequence):
    """Both ends included."""
    start, end = keys.log_sequences("east", "n1", first, first + more)
    assert (start <= keys.log_key("east", "n1", sequence) < end) == (first <= sequence <= first + more)


@given(st.binary(max_size=60))
def test_any_other_key_is_refused(tail):
    """Bytes that are no record's key raise ValueError and nothing else."""
    for parse in (keys.parse_log_key, keys.parse_segment_key, keys.parse_cursor_key):
        try:
            parse(keys.LOG + tail)
        except ValueError:
            continue


@pytest.mark.parametrize(
    "key", [b"", b"/meshlog/1/log/east/n1", b"/meshlog/1/log/east/n1/1", b"/other/1/log/east/n1/0000000000000001"]
)
def test_a_key_of_another_shape_is_named(key):
    """The error holds the key and the shape that would be right."""
    with pytest.raises(ValueError, match=r"is not /meshlog/1/log/<cluster>"):
        keys.parse_log_key(key)


@given(names)
def test_good_names_pass(name):
    """A name like a DNS name is given back as it is."""
    assert keys.checked_name("writer", name) == name


@pytest.mark.parametrize("name", ["", "A", "a/b", "-a", "a-", ".", "a b", "ä", "a" * 129, "a\n"])
def test_bad_names_are_refused(name):
    """The error says whose name it is and which characters are right."""
    with pytest.raises(ValueError, match=r"writer name .* lower-case letters"):
        keys.checked_name("writer", name)


@pytest.mark.parametrize("path", ["", "/a", "a/", "a//b", "a b", "a\x00", "x" * 513])
def test_bad_claims_are_refused(path):
    """A claim's key is printable parts joined by single slashes."""
    with pytest.raises(ValueError, match="claim key"):
        keys.claim_key(path)


@pytest.mark.parametrize(
    "path", ["identity/east/number/65537", "prefix/10.1.0.0/24", "address/fd00::1", "k8s:a=b"]
)
def test_claims_hold_numbers_addresses_and_labels(path):
    """Whatever a decision is about fits into a claim's key."""
    assert keys.claim_key(path) == b"/meshlog/1/claim/" + path.encode()


@pytest.mark.parametrize(
    ("prefix", "first"),
    [("duty", b"duty/"), ("duty/", b"duty/"), ("report/east/", b"report/east/"), ("report/ea", b"report/ea")],
)
def test_a_listed_prefix(prefix, first):
    """A table's name stands for the whole table; any other prefix is taken to the letter."""
    assert keys.list_range(prefix)[0] == keys.PREFIX + first


@pytest.mark.parametrize("prefix", ["", "log/", "nothing/", "cursor/"])
def test_an_unknown_table_is_not_listed(prefix):
    """The log itself is read, not listed."""
    with pytest.raises(ValueError, match="begin with one of"):
        keys.list_range(prefix)
