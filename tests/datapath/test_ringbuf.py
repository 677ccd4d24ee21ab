"""The ring buffer's reader, fed by a program in test runs."""

import os
import select
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from datapath.abi.layout import Field, Struct
from datapath.errors import LayoutMismatch
from datapath.kernel import libbpf, uapi
from datapath.kernel.programs import Loaded, load_private
from datapath.kernel.ringbuf import RingReader

pytestmark = pytest.mark.kernel("ring buffers")

LAYOUT = Struct(
    "record", 16, (Field("length", 0, 4, "u32"), Field("port", 4, 2, "be16"), Field("rest", 6, 10, "bytes"))
)
RING_BYTES = 4096
RECORD_BYTES = 24

SOURCE = """
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_endian.h>
struct { __uint(type, BPF_MAP_TYPE_RINGBUF); __uint(max_entries, 4096); } ring SEC(".maps");
struct record { __u32 length; __be16 port; __u8 rest[10]; };
SEC("tc") int submit(struct __sk_buff *skb)
{
	struct record *record = bpf_ringbuf_reserve(&ring, sizeof(*record), 0);
	if (!record)
		return 1;
	__builtin_memset(record, 0, sizeof(*record));
	record->length = skb->len;
	record->port = bpf_htons(0x1234);
	record->rest[9] = 7;
	bpf_ringbuf_submit(record, 0);
	return 0;
}
SEC("tc") int discard(struct __sk_buff *skb)
{
	struct record *record = bpf_ringbuf_reserve(&ring, sizeof(*record), 0);
	if (record)
		bpf_ringbuf_discard(record, 0);
	return 0;
}
SEC("tc") int oversize(struct __sk_buff *skb)
{
	__u8 raw[40] = {};
	bpf_ringbuf_output(&ring, raw, sizeof(raw), 0);
	return 0;
}
char _license[] SEC("license") = "Dual BSD/GPL";
"""


@pytest.fixture
def loaded(tmp_path: Path) -> Iterator[Loaded]:
    """A ring of one page and its writers."""
    (tmp_path / "ring.bpf.c").write_text(SOURCE)
    machine = subprocess.run(
        ["clang", "-dumpmachine"], capture_output=True, text=True, check=True
    ).stdout.strip()
    headers = "/usr/include/" + machine.replace("-pc-", "-").replace("-unknown-", "-")
    command = [
        "clang",
        "-O2",
        "-g",
        "-target",
        "bpf",
        "-idirafter",
        headers,
        "-c",
        str(tmp_path / "ring.bpf.c"),
    ]
    subprocess.run([*command, "-o", str(tmp_path / "ring.bpf.o")], check=True)
    with load_private(tmp_path / "ring.bpf.o") as loaded:
        yield loaded


@pytest.fixture
def reader(loaded: Loaded) -> Iterator[RingReader]:
    """The ring's consumer."""
    reader = RingReader(os.dup(loaded.maps["ring"].fd), LAYOUT)
    yield reader
    reader.close()


def submit(loaded: Loaded, *lengths: int) -> None:
    """One record per packet length."""
    for length in lengths:
        loaded.test_run("submit", bytes(length))


def test_records_come_in_order_with_their_fields(loaded: Loaded, reader: RingReader) -> None:
    """Host and network order, and trailing bytes, as the struct says."""
    submit(loaded, 60, 61, 62)
    records = reader.read()
    assert records["length"].tolist() == [60, 61, 62]
    assert records["port"].tolist() == [0x1234] * 3
    assert bytes(records["rest"][0]) == bytes(9) + b"\x07"


def test_an_empty_ring_reads_as_no_records(reader: RingReader) -> None:
    """Nothing there is not an error, and nothing blocks."""
    assert len(reader.read()) == 0


def test_each_record_is_read_once(loaded: Loaded, reader: RingReader) -> None:
    """A second read begins behind the first."""
    submit(loaded, 60)
    reader.read()
    submit(loaded, 61)
    assert reader.read()["length"].tolist() == [61]


def test_discarded_records_are_passed_over(loaded: Loaded, reader: RingReader) -> None:
    """What the program took back is not shown."""
    submit(loaded, 60)
    loaded.test_run("discard", bytes(64))
    submit(loaded, 61)
    assert reader.read()["length"].tolist() == [60, 61]


def test_records_across_the_end_of_the_ring_are_whole(loaded: Loaded, reader: RingReader) -> None:
    """The ring holds no whole number of records, so that several passes cut one in every way."""
    seen = []
    for start in range(0, 1000, 100):
        submit(loaded, *range(100 + start, 200 + start))
        seen += reader.read()["length"].tolist()
    assert RING_BYTES % RECORD_BYTES != 0
    assert seen == list(range(100, 1100))


def test_records_stay_valid_when_the_ring_moves_on(loaded: Loaded, reader: RingReader) -> None:
    """What was read is a copy: the kernel writing over the ring does not change it."""
    submit(loaded, 60)
    records = reader.read()
    submit(loaded, *range(100, 100 + 2 * RING_BYTES // RECORD_BYTES))
    assert records["length"].tolist() == [60]


def test_a_full_ring_refuses_and_recovers(loaded: Loaded, reader: RingReader) -> None:
    """The program is told that there is no room; after a read there is."""
    fits = RING_BYTES // RECORD_BYTES
    submit(loaded, *[60] * fits)
    assert loaded.test_run("submit", bytes(64)).retval == 1
    assert len(reader.read()) == fits
    assert loaded.test_run("submit", bytes(64)).retval == 0


def test_the_descriptor_is_readable_while_records_wait(loaded: Loaded, reader: RingReader) -> None:
    """An event loop can wait for it."""
    assert select.select([reader], [], [], 0)[0] == []
    submit(loaded, 60)
    assert select.select([reader], [], [], 5)[0] == [reader]
    reader.read()
    assert select.select([reader], [], [], 0)[0] == []


def test_a_record_of_another_size_is_a_layout_mismatch(loaded: Loaded, reader: RingReader) -> None:
    """Records of another version's program are refused, not read as nonsense."""
    loaded.test_run("oversize", bytes(64))
    with pytest.raises(LayoutMismatch, match="a record of 40 bytes in the ring buffer; they have 16"):
        reader.read()


def test_another_kind_of_map_is_refused() -> None:
    """The error says which type it has."""
    fd = libbpf.map_create(uapi.MAP_TYPE_HASH, 4, 4, 1)
    try:
        with pytest.raises(LayoutMismatch, match="has type 1; a ring buffer has 27"):
            RingReader(fd, LAYOUT)
    finally:
        os.close(fd)
