"""Facets: the addresses of one identity that the policies of a cluster tell apart, and their numbers. Pure.

Belongs here: what policies see of an address beside its identity's labels, and the table facets. Does not belong here:
rows of the policy (policy.py), prefixes outside the mesh (prefixes.py), nodes (nodes.py).

Policy rows are by identity. But an ipBlock is about addresses, and those of one identity can be inside and outside,
IPv4 and IPv6 at the latest; and endpoints of one identity can give one port name different numbers, as they do while a
new version is rolled out. Where all addresses of an identity look alike, it has no facets. Else every look has a number
made from its labels as that of a prefix is, and each address a row that leads from its identity to the number. Subjects
whose rules ask for such a difference have rows by these numbers too, and flags that make the programs look; and where
endpoints disagree on named ports, each look is a subject of its own. Rows by the identity stay, for what has no facet
yet: they allow what holds for all of its addresses only.
"""

from collections.abc import Iterable, Mapping

from controlplane.desired.address_identities import AddressIdentities
from controlplane.desired.members import Members
from controlplane.model import Endpoint, EndpointKey, Labels
from controlplane.policy.prefixes import AddressLabels
from controlplane.policy.resolve import NO_PORTS, PortNumbers
from controlplane.policy.rules import PROTOCOLS
from controlplane.projections.state import State
from controlplane.projections.workloads import workload_key
from datapath.abi.types import IDENTITY_SCOPE_FACET, IDENTITY_SCOPE_SHIFT
from datapath.codec import address_bytes
from datapath.tables import FacetKey, FacetRow

SCOPE = IDENTITY_SCOPE_FACET << IDENTITY_SCOPE_SHIFT
"""The least number: every facet's is above those of all identities, prefixes and nodes."""
SOURCE_PORT = "port"

FacetRows = dict[FacetKey, FacetRow]
FacetChanges = dict[FacetKey, FacetRow | None]
Looks = Mapping[str, Labels]
"""By address."""


class Facets:
    """Of all identities of the mesh. `replace` how their addresses look, then read."""

    def __init__(self) -> None:
        self._numbered = AddressIdentities(SCOPE, {})
        self._looks: dict[int, Looks] = {}
        self._apart: frozenset[int] = frozenset()
        self._shown: dict[int, Looks] = {}
        self._identity_of: dict[str, int] = {}
        self._rows: dict[str, tuple[FacetKey, FacetRow]] = {}
        self.split: dict[int, None] = {}
        """Identities whose endpoints disagree on named ports that policies ask for, and those that are kept apart."""

    @property
    def labels(self) -> Mapping[int, Labels]:
        """What each number stands for: the labels of the identity, the blocks, the ports."""
        return self._numbered.labels

    @property
    def rows(self) -> FacetRows:
        """The whole table."""
        return dict(self._rows.values())

    def number_of(self, address: str) -> int:
        """Of an address; 0: it has no facet."""
        return self._numbered.numbers.get(address, 0)

    def identity_of(self, number: int) -> int:
        """Whose facet it is; 0: it is none."""
        holders = (address for address, held in self._numbered.numbers.items() if held == number)
        return self._identity_of.get(next(holders, ""), 0)

    def ports(self, number: int) -> PortNumbers:
        """The named ports of a facet, or those that all endpoints of an identity give alike, of those asked for."""
        looks = [self.labels[number]] if number in self.labels else self._looks.get(number, {}).values()
        given = [frozenset(_ports_of(look)) for look in dict.fromkeys(looks)]
        return dict(map(_read_port, sorted(frozenset.intersection(*given)))) if given else NO_PORTS

    def turning(self, changed: Mapping[int, Looks]) -> frozenset[int]:
        """Those whose endpoints begin to disagree on named ports, or cease to, where their addresses look so now."""
        return frozenset(number for number, looks in changed.items() if _disagree(looks) != (number in self.split))

    def replace(
        self, changed: Mapping[int, Looks], apart: frozenset[int] = frozenset()
    ) -> tuple[FacetChanges, list[int]]:
        """By identity how its addresses look now. Those `apart` have facets, and are split, though all look alike.
        Returns the rows that changed, and the numbers that came or went."""
        for identity, found in changed.items():
            self._looks[identity] = found
            if not found:
                del self._looks[identity]
        numbers: dict[str, Labels | None] = {}
        concerned = sorted({*changed, *(self._apart ^ apart)})
        self._apart = apart
        for identity in concerned:
            numbers.update(dict.fromkeys(self._shown.pop(identity, ())))
            self.split.pop(identity, None)
        for address in numbers:
            self._identity_of.pop(address, None)
        for identity in concerned:
            looks = self._looks.get(identity, {})
            if identity in apart or _disagree(looks):
                self.split[identity] = None
            if identity in apart or len(set(looks.values())) > 1:
                numbers.update(looks)
                self._shown[identity] = looks
                self._identity_of.update(dict.fromkeys(looks, identity))
        moved, fresh = self._numbered.replace(numbers)
        return self._rows_of(dict.fromkeys((*numbers, *moved))), fresh

    def _rows_of(self, addresses: Iterable[str]) -> FacetChanges:
        """What their rows must become."""
        gone: FacetChanges = {}
        fresh: FacetChanges = {}
        for address in addresses:
            old, number = self._rows.pop(address, None), self.number_of(address)
            new = None
            if number:
                new = FacetKey(address_bytes(address), self._identity_of[address]), FacetRow(number)
                self._rows[address] = new
            if old == new:
                continue
            if old is not None:
                gone[old[0]] = None
            if new is not None:
                fresh[new[0]] = new[1]
        return gone | fresh


def all_facets(state: State, members: Members, addresses: AddressLabels) -> Facets:
    """Under what some policies say of addresses."""
    found = Facets()
    found.replace({number: looks_of(state, number, members.of(number), addresses) for number in state.identities})
    return found


def looks_of(state: State, identity: int, endpoints: Iterable[EndpointKey], addresses: AddressLabels) -> Looks:
    """How the addresses of an identity's endpoints look to policies; nothing where policies ask for nothing."""
    names = addresses.keys.ports
    known = state.identities.get(identity)
    if known is None or not (names or addresses.keys.blocks):
        return {}
    found: dict[str, Labels] = {}
    for key in endpoints:
        endpoint = state.endpoints.get(key)
        if endpoint is None:
            continue
        ports = _given(state, endpoint, names) if names else []
        for address in (endpoint.ipv4, endpoint.ipv6):
            if address:
                found[address] = (*known.labels, *sorted((*addresses.of_mesh((address,)), *ports)))
    return found


def _given(state: State, endpoint: Endpoint, names: Iterable[tuple[int, str]]) -> list[str]:
    """The ports of its workload that have these protocols and names."""
    workload = state.workloads.get(workload_key(endpoint.cluster, endpoint.namespace, endpoint.workload))
    held = workload.ports if workload else {}
    given = ((protocol, name, *held[name]) for protocol, name in names if name in held)
    return [
        f"{SOURCE_PORT}:{of}/{name}={number}" for protocol, name, number, of in given if PROTOCOLS.get(of) == protocol
    ]


def _ports_of(look: Labels) -> Labels:
    return tuple(each for each in look if each.startswith(f"{SOURCE_PORT}:"))


def _disagree(looks: Looks) -> bool:
    return len({_ports_of(each) for each in looks.values()}) > 1


def _read_port(text: str) -> tuple[tuple[int, str], int]:
    name, _, number = text.removeprefix(f"{SOURCE_PORT}:").partition("=")
    protocol, _, name = name.partition("/")
    return (PROTOCOLS[protocol], name), int(number)
