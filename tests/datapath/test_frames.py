"""Frames that programs are tried with: well formed in both families, and read back as they were meant."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datapath.codec import address_bytes
from datapath.frames import ICMP, ICMPV6, SCTP, TCP, UDP, FrameFault, ends_of, first_packet
from tests.bpf import packets

ADDRESSES = {
    4: st.ip_addresses(v=4).map(lambda each: address_bytes(str(each))),
    6: st.ip_addresses(v=6).map(lambda each: each.packed).filter(lambda each: each[:12] != bytes(10) + b"\xff\xff"),
}
PORTS = st.integers(0, 65535)


@st.composite
def flows(draw: st.DrawFn) -> tuple[bytes, bytes, int, int]:
    family = draw(st.sampled_from((4, 6)))
    protocol = draw(st.sampled_from((TCP, UDP, SCTP, ICMP if family == 4 else ICMPV6)))
    port = draw(st.integers(0, 255) if protocol in (ICMP, ICMPV6) else PORTS)
    return draw(ADDRESSES[family]), draw(ADDRESSES[family]), protocol, port


@given(flows())
def test_checksums_are_right(flow: tuple[bytes, bytes, int, int]) -> None:
    """Of the header and of the transport: what the programs correct must have been correct."""
    found = packets.read(first_packet(*flow))
    assert (found.l3_sum, found.l4_sum, found.protocol) == (0, 0, flow[2])


@given(flows())
def test_a_frame_names_its_ends(flow: tuple[bytes, bytes, int, int]) -> None:
    """Addresses, protocol and destination port come back; ICMP has no ports."""
    source, dest, protocol, port = flow
    found = ends_of(first_packet(*flow))
    assert found[:3] == (source, dest, protocol)
    assert found.dest_port == (0 if protocol in (ICMP, ICMPV6) else port)


def test_ends_of_two_families_make_no_packet() -> None:
    """It is said, and nothing is sent."""
    with pytest.raises(FrameFault, match="different families"):
        first_packet(address_bytes("10.0.0.1"), address_bytes("fd00::1"), TCP, 80)


@pytest.mark.parametrize("frame", [b"", bytes(14), first_packet(bytes(16), bytes(15) + b"\1", TCP, 80)[:30]])
def test_what_is_no_frame_is_refused(frame: bytes) -> None:
    """A frame that ends early, and one of another protocol."""
    with pytest.raises(FrameFault):
        ends_of(frame)


def test_options_for_the_destination_are_passed_over() -> None:
    """As a node puts them before what is behind them, to say which frontend was asked for."""
    source, dest = address_bytes("2001:db8::1"), address_bytes("2001:db8::2")
    frame = first_packet(source, dest, TCP, 80)
    options = bytes((TCP, 2)) + bytes(22)
    put = frame[:20] + bytes((60,)) + frame[21:54] + options + frame[54:]
    assert ends_of(put) == ends_of(frame)
