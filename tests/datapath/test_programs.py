"""Objects with private maps: loading, load-time configuration, test runs, and what is said when loading
fails."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from datapath.errors import KernelError, LayoutMismatch
from datapath.kernel.programs import Loaded, load_private

pytestmark = pytest.mark.kernel("bpf_redirect_peer")

SMALL = {"conntrack": 64}
PACKET = bytes(range(64))

PROBE = """
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
const volatile __u32 config_number = 0;
const volatile __u8 config_byte = 0;
SEC("tc") int answer(struct __sk_buff *skb)
{
	skb->cb[0] = config_number;
	skb->cb[1] = skb->ifindex;
	skb->mark = skb->mark + 1;
	return config_byte;
}
%s
char _license[] SEC("license") = "Dual BSD/GPL";
"""
REJECTED = 'SEC("tc") int rejected(struct __sk_buff *skb) { return *(volatile int *)(long)skb->data; }'


def compile_probe(directory: Path, more: str = "") -> Path:
    """The probe program as an object file."""
    source, target = directory / "probe.bpf.c", directory / "probe.bpf.o"
    source.write_text(PROBE % more)
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
        str(source),
        "-o",
        str(target),
    ]
    subprocess.run(command, check=True)
    return target


@pytest.fixture
def probe(tmp_path: Path) -> Iterator[Loaded]:
    """The probe with both constants set."""
    with load_private(compile_probe(tmp_path), {"config_number": 0xDEADBEEF, "config_byte": 2}) as loaded:
        yield loaded


def test_a_test_run_gives_verdict_and_packet(probe: Loaded) -> None:
    """The constant decides the verdict; the packet comes back as it went in."""
    retval, packet, duration_ns = probe.test_run("answer", PACKET)
    assert (retval, packet) == (2, PACKET)
    assert duration_ns >= 0


def test_constants_reach_the_program(probe: Loaded) -> None:
    """All 32 bits of load-time configuration, seen by the program itself; mark and ifindex go in and out."""
    context = probe.test_run_with_context("answer", PACKET, mark=41).context
    assert int.from_bytes(context[48:52], "little") == 0xDEADBEEF
    assert int.from_bytes(context[52:56], "little") == 1
    assert int.from_bytes(context[8:12], "little") == 42


def test_an_unknown_constant_is_refused(tmp_path: Path) -> None:
    """A name that the object has not is an error, not a setting without effect."""
    with pytest.raises(LayoutMismatch, match="has no constant config_nothing"):
        load_private(compile_probe(tmp_path), {"config_nothing": 1})


def test_a_constant_out_of_range_is_refused(tmp_path: Path) -> None:
    """A value that does not fit its type is named."""
    with pytest.raises(LayoutMismatch, match=r"config_byte is 256, which does not fit 1 byte\(s\)"):
        load_private(compile_probe(tmp_path), {"config_byte": 256})


def test_a_rejected_program_shows_the_verifiers_log(tmp_path: Path) -> None:
    """The error holds the program's name and the verifier's own words."""
    with pytest.raises(
        KernelError, match=r"(?s)probe cannot be loaded.*'rejected'.*invalid access to packet"
    ):
        load_private(compile_probe(tmp_path, REJECTED))


def test_a_file_that_is_no_object_is_refused(tmp_path: Path) -> None:
    """The error names the file."""
    (tmp_path / "text.bpf.o").write_text("no object")
    with pytest.raises(KernelError, match="text cannot be opened"):
        load_private(tmp_path / "text.bpf.o")


@pytest.mark.parametrize("name", ["endpoint.bpf.o", "host.bpf.o"])
def test_private_copies_share_nothing(objects_dir: Path, name: str) -> None:
    """What is written to one copy's map is not in the other's."""
    with (
        load_private(objects_dir / name, max_entries=SMALL) as one,
        load_private(objects_dir / name, max_entries=SMALL) as two,
    ):
        info = one.maps["services"].info
        assert one.maps["services"].put([(bytes(info.key_size), b"\1" * info.value_size)]) == []
        assert two.maps["services"].dump() == {}


def test_a_map_can_be_made_smaller(objects_dir: Path) -> None:
    """A test need not pay for a table of production size."""
    with load_private(objects_dir / "endpoint.bpf.o", max_entries=SMALL) as loaded:
        assert loaded.maps["conntrack"].info.max_entries == 64


def test_resizing_an_unknown_map_is_refused(objects_dir: Path) -> None:
    """The error lists the maps that there are."""
    with pytest.raises(KernelError, match=r"has no map nothing; it has .*services"):
        load_private(objects_dir / "endpoint.bpf.o", max_entries={"nothing": 1})
