"""Masquerade's constants: ports that nobody else uses, addresses, prefixes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datapath import masquerade
from datapath.codec import address_bytes

USUAL = (32768, 60999)


def test_usual_range_leaves_the_ports_below_node_ports() -> None:
    """20,000 of them."""
    assert masquerade.spare_ports(USUAL) == (10000, 29999)


def test_large_range_leaves_what_is_above() -> None:
    """Where the node's own stack takes nearly all."""
    assert masquerade.spare_ports((1024, 60999)) == (61000, 65535)


@given(st.integers(1024, 65535), st.integers(1024, 65535))
def test_ports_overlap_with_nothing(one: int, other: int) -> None:
    """Whatever range the node has, short of all ports."""
    local = min(one, other), max(one, other)
    first, last = masquerade.spare_ports(local)
    for start, end in (local, masquerade.NODE_PORTS):
        assert last < start or first > end or first > last


def test_constants() -> None:
    """One address of each family, and prefixes as the ipcache has them."""
    constants = masquerade.masquerade_constants(("192.168.9.1", "fd00::1"), (10000, 29999), ("10.0.0.0/8",))
    assert constants == {
        "config_masquerade_ipv4": address_bytes("192.168.9.1"),
        "config_masquerade_ipv6": address_bytes("fd00::1"),
        "config_masquerade_port_first": 10000,
        "config_masquerade_port_count": 20000,
        "config_unmasqueraded_count": 1,
        "config_unmasqueraded": (104).to_bytes(4, "little") + address_bytes("10.0.0.0"),
    }


@pytest.mark.parametrize("excluded", [("10.0.0.1/8",), ("nowhere",), ("10.0.0.0/8",) * 33])
def test_wrong_prefixes_are_refused(excluded: tuple[str, ...]) -> None:
    """Bits beyond the length, no address, too many."""
    with pytest.raises(ValueError, match=r"prefix|address"):
        masquerade.masquerade_constants((), (10000, 29999), excluded)


def test_node_has_one_address_of_a_family() -> None:
    """The first; a family without one has no constant."""
    constants = masquerade.node_constants(("192.168.9.1", "192.168.9.7"))
    assert constants == {"config_node_ipv4": address_bytes("192.168.9.1")}
