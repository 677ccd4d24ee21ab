"""What policies say about addresses, as labels: the prefixes that they name, groups of prefixes, names. Pure.

Belongs here: which labels an address or a prefix has. Does not belong here: numbers and rows (desired/prefixes.py).

The design. A CIDR in a policy is a selector for a label such as "cidr:10.0.0.0/8". A prefix that some policy names has
the labels of every named prefix that covers it, its own among them, and "reserved:world"; so the longest match in the
ipcache finds all that holds for an address, and `except` is a label that must be absent. An address of the mesh has its
workload's labels instead, as in Cilium, where a CIDR does not select what has an identity of its own. An ipBlock of
a NetworkPolicy does, as in Kubernetes: see "within" and "touches" in clauses.py.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from typing import Any

import msgspec

from controlplane.labels import SOURCE_KUBERNETES, label
from controlplane.model import CidrGroup, Labels
from controlplane.policy.clauses import (
    ANY_GROUP,
    CIDR_GROUP_NAME,
    DERIVED_SOURCES,
    SOURCE_CIDR,
    SOURCE_CIDR_GROUP,
    SOURCE_NAME,
    SOURCE_NODE,
    SOURCE_TOUCHES,
    SOURCE_WITHIN,
)
from controlplane.policy.names import name_matches
from controlplane.policy.rules import ParsedPolicy
from controlplane.policy.selectors import ANY_SOURCE, EXISTS, IN, Selector

WORLD = "reserved:world"
API_SERVER_LABEL = "reserved:kube-apiserver"
EVERY_PREFIX = {4: "0.0.0.0/0", 6: "::/0"}
"""The world at large, by IP version: a packet is of one."""

Names = Mapping[str, Sequence[str]]
"""The addresses of each canonical name."""
Network = IPv4Network | IPv6Network


class AddressKeys(msgspec.Struct, frozen=True):
    """What some policies ask of addresses and of labels of nodes, and the ports (protocol, name) that they name; equal
    values ask the same."""

    cidrs: tuple[str, ...] = ()
    blocks: tuple[str, ...] = ()
    group_keys: tuple[str, ...] = ()
    patterns: tuple[str, ...] = ()
    node_keys: tuple[str, ...] = ()
    ports: tuple[tuple[int, str], ...] = ()


def address_keys(policies: Iterable[ParsedPolicy]) -> AddressKeys:
    """Of policies whose services have been resolved."""
    found: dict[str, dict[str, None]] = {}
    rules = [rule for policy in policies for part in policy.parts for rule in part.rules]
    for selector in dict.fromkeys(selector for rule in rules for selector in rule.peers or ()):
        _collect(selector, found)
    blocks = {**found.get(SOURCE_WITHIN, {}), **found.get(SOURCE_TOUCHES, {})}
    return AddressKeys(
        tuple(sorted(found.get(SOURCE_CIDR, ()))),
        tuple(sorted(blocks)),
        tuple(sorted(found.get(SOURCE_CIDR_GROUP, ()))),
        tuple(sorted(found.get(SOURCE_NAME, ()))),
        tuple(sorted(found.get(SOURCE_NODE, ()))),
        tuple(sorted({(named.protocol, named.name) for rule in rules for named in rule.named})),
    )


def merged(keys: Iterable[AddressKeys]) -> AddressKeys:
    """What all of them ask together."""
    found: tuple[set[Any], ...] = tuple(set() for _ in msgspec.structs.fields(AddressKeys))
    for each in keys:
        for held, more in zip(found, msgspec.structs.astuple(each), strict=True):
            held.update(more)
    return AddressKeys(*(tuple(sorted(held)) for held in found))


def _collect(selector: Selector, found: dict[str, dict[str, None]]) -> None:
    is_of_workloads = any(
        each.operator in (IN, EXISTS) and each.key.startswith(f"{SOURCE_KUBERNETES}:") for each in selector.requirements
    )
    for requirement in selector.requirements:
        source, _, key = requirement.key.partition(":")
        if source == ANY_SOURCE and not is_of_workloads:
            source = SOURCE_NODE
        if source in DERIVED_SOURCES:
            found.setdefault(source, {})[key] = None


class _Cover:
    """Labels by prefix; finds all that cover an address or a prefix."""

    def __init__(self) -> None:
        self._labels: dict[tuple[int, int], dict[int, tuple[str, ...]]] = {}

    def add(self, prefix: str, name: str) -> None:
        network = ip_network(prefix)
        held = self._labels.setdefault((network.version, network.prefixlen), {})
        number = int(network.network_address)
        held[number] = (*held.get(number, ()), name)

    def of(self, network: Network) -> list[str]:
        version, size, number = network.version, network.max_prefixlen, int(network.network_address)
        return self._covering(version, size, number, network.prefixlen)

    def of_address(self, text: str) -> list[str]:
        address = ip_address(text)
        return self._covering(address.version, address.max_prefixlen, int(address), address.max_prefixlen)

    def _covering(self, version: int, size: int, number: int, length: int) -> list[str]:
        found: list[str] = []
        for (family, shorter), held in self._labels.items():
            if family == version and shorter <= length:
                found += held.get(number >> (size - shorter) << (size - shorter), ())
        return found


class AddressLabels:
    """The labels of addresses under some policies, groups and names. `api_servers`: addresses of the cluster's own."""

    def __init__(
        self,
        keys: AddressKeys,
        groups: Iterable[CidrGroup] = (),
        names: Names | None = None,
        api_servers: Iterable[str] = (),
    ) -> None:
        self.keys = keys
        self.api_servers = frozenset(api_servers)
        self._world = _Cover()
        self._blocks = _Cover()
        self._prefixes: dict[str, None] = {}
        for prefix in keys.cidrs:
            self._add(prefix, f"{SOURCE_CIDR}:{prefix}")
        for group in groups:
            self._add_group(group)
        for pattern in keys.patterns:
            for address in addresses_of(pattern, names or {}):
                self._add(str(ip_network(address)), f"{SOURCE_NAME}:{pattern}")
        for address in sorted(self.api_servers):
            self._add(str(ip_network(address)), API_SERVER_LABEL)
        for prefix in keys.blocks:
            self._blocks.add(prefix, prefix)

    def _add(self, prefix: str, name: str) -> None:
        self._prefixes[prefix] = None
        self._world.add(prefix, name)

    def _add_group(self, group: CidrGroup) -> None:
        keys = self.keys.group_keys
        own_key = CIDR_GROUP_NAME + group.name
        if own_key not in keys and ANY_GROUP.partition(":")[2] not in keys:
            return
        labels = [f"{SOURCE_CIDR_GROUP}:{own_key}", ANY_GROUP]
        labels += [label(SOURCE_CIDR_GROUP, key, value) for key, value in group.labels.items()]
        for prefix in group.prefixes:
            for each in labels:
                self._add(prefix, each)

    def prefixes(self) -> Iterator[tuple[str, Labels]]:
        """Every prefix that is named, with its labels."""
        for prefix in sorted(self._prefixes):
            yield prefix, _world_labels(self._world.of(ip_network(prefix)))

    def of_world(self, address: str) -> Labels:
        """Of an address that nobody in the mesh has."""
        return _world_labels(self._world.of_address(address))

    def of_prefix(self, prefix: str) -> Labels:
        """What holds for all of its addresses."""
        return _world_labels(self._world.of(ip_network(prefix)))

    def cidrs_of(self, address: str) -> list[str]:
        """Only what comes from addresses: for nodes, where the settings let CIDRs select them."""
        return self._world.of_address(address)

    def of_node(self, addresses: Iterable[str]) -> list[str]:
        """What is said of a node beside whose it is, where it is reached under these addresses."""
        found = list(addresses)
        served = [API_SERVER_LABEL] if any(address in self.api_servers for address in found) else []
        return served + self.of_mesh(found)

    def of_mesh(self, addresses: Iterable[str]) -> list[str]:
        """What ipBlocks say of an end of the mesh that has these addresses."""
        found = [self._blocks.of_address(address) for address in addresses] if self.keys.blocks else []
        if not found:
            return []
        within = [block for block in found[0] if all(block in each for each in found)]
        touched = dict.fromkeys(block for each in found for block in each)
        return [f"{SOURCE_WITHIN}:{each}" for each in within] + [f"{SOURCE_TOUCHES}:{each}" for each in touched]


def _world_labels(labels: Iterable[str]) -> Labels:
    return tuple(sorted({WORLD, *labels}))


def addresses_of(pattern: str, names: Names) -> list[str]:
    """The addresses of all names that match."""
    return sorted({address for name in names if name_matches(pattern, name) for address in names[name]})
