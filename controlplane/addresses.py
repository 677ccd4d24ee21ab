"""Address arithmetic: prefixes cut into blocks, the next free address of a block.

Belongs here: pure functions over text forms of addresses and prefixes. Does not belong here: who has which (State).
"""

import re
from collections.abc import Callable, Iterator
from functools import lru_cache
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from typing import NamedTuple

from datapath.codec import address_bytes, address_text

ROUTER_OFFSET = 1
"""The first address of a block is the node's own, on the endpoints' side."""
ENDPOINT_OFFSET_MIN = 2
ENDPOINTS_PER_BLOCK_MAX = 65_536
"""Addresses tried in an IPv6 block, which has more than any node can use."""


_MAC = re.compile(r"[0-9a-f]{2}(?::[0-9a-f]{2}){5}")


class Span(NamedTuple):
    """The first and last address of a prefix, as 16 bytes."""

    first: bytes
    last: bytes

    def meets(self, other: "Span") -> bool:
        """Whether they share an address."""
        return self.first <= other.last and other.first <= self.last

    def holds(self, other: "Span") -> bool:
        """Whether the other lies inside."""
        return self.first <= other.first and other.last <= self.last


@lru_cache(maxsize=4096)
def span_of(prefix: str) -> Span | None:
    """The span of a prefix in canonical form; None for any other text."""
    try:
        network = ip_network(prefix)
    except ValueError:
        return None
    if str(network) != prefix:
        return None
    return Span(address_bytes(str(network[0])), address_bytes(str(network[-1])))


def length_of(prefix: str) -> int:
    """The prefix length, as written."""
    return int(prefix.rpartition("/")[2])


def is_ipv6(text: str) -> bool:
    """Of an address or a prefix."""
    return ":" in text


def packed_address(address: str) -> bytes | None:
    """16 bytes of an address in canonical form; None for any other text."""
    try:
        packed = address_bytes(address)
    except ValueError:
        return None
    return packed if address_text(packed) == address else None


def is_address(address: str) -> bool:
    """Whether it is an address in canonical form."""
    return packed_address(address) is not None


def is_mac(text: str) -> bool:
    """Whether it is a MAC address in lower case."""
    return _MAC.fullmatch(text) is not None


def family_of(text: str) -> int:
    """4 or 6, of an address or a prefix."""
    return 6 if ":" in text else 4


def block_of_family(blocks: tuple[str, ...], family: int) -> str:
    """The first block of a family, or ""."""
    return next((block for block in blocks if family_of(block) == family), "")


@lru_cache(maxsize=4096)
def router_address(block: str) -> str:
    """The node's own address in its block."""
    return str(_network(block)[ROUTER_OFFSET])


def offset_in(block: str, address: str) -> int:
    """Place of an address in a block."""
    return int(ip_address(address)) - int(_network(block).network_address)


def is_within(inner: str, outer: str) -> bool:
    """Whether a prefix or an address lies in a prefix; never across families."""
    if family_of(inner) != family_of(outer):
        return False
    return ip_network(inner).subnet_of(ip_network(outer))  # type: ignore[arg-type]


def next_free(block: str, after: int, is_taken: Callable[[str], bool]) -> str:
    """The first free address behind offset `after`, going round once; "" if the block is full.

    Going round keeps an address that was just freed unused for as long as possible.
    """
    network = _network(block)
    last = min(network.num_addresses, ENDPOINTS_PER_BLOCK_MAX) - 1 - (network.version == 4)
    count = last - ENDPOINT_OFFSET_MIN + 1
    base = int(network.network_address)
    make = type(network.network_address)
    for step in range(count):
        offset = ENDPOINT_OFFSET_MIN + (max(after, ENDPOINT_OFFSET_MIN - 1) - ENDPOINT_OFFSET_MIN + 1 + step) % count
        address = str(make(base + offset))
        if not is_taken(address):
            return address
    return ""


def blocks_of(cidr: str, prefix_length: int) -> Iterator[str]:
    """The blocks of a range, in order."""
    return (str(block) for block in _network(cidr).subnets(new_prefix=prefix_length))


def service_addresses(cidr: str) -> Iterator[str]:
    """The usable addresses of a service range, in order; the network's and the broadcast address are left out."""
    network = _network(cidr)
    for offset in range(1, network.num_addresses - (network.version == 4)):
        yield str(network[offset])


def _network(text: str) -> IPv4Network | IPv6Network:
    return ip_network(text)
