"""Which pairs of ends would meet another verdict under other policies: one representative for each identity. Pure.

Belongs here: the pairs and ports that are looked at, and judging them in two meshes. Does not belong here: recorded
flows (what_if.py).

An identity's endpoints share one representative: policies see labels. Only pairs are judged of which an end has other
policies in the two meshes. Ports are one of each class that the policies of both ends tell apart, and one that none of
them names. The world is represented by itself and by the first address of each prefix that a policy names.
"""

from collections.abc import Iterator, Sequence
from ipaddress import ip_network
from typing import NamedTuple

import msgspec

from controlplane.history.nearest import port_text
from controlplane.model import Labels
from controlplane.policy.mesh import End, Judge, Mesh, MeshEndpoint
from controlplane.policy.prefixes import address_keys
from controlplane.policy.rules import ICMP, ICMPV6, PORT_MAX, PROTOCOLS, TCP, NamedPort, ParsedPolicy, PortRange
from controlplane.policy.verdict import DENY, Verdict
from datapath.abi.types import POLICY_EGRESS, POLICY_INGRESS
from datapath.addressing import protocol_name

JUDGED_MAX = 100_000
"""Pairs and ports that are judged: some seconds. What is more is counted."""
PLACES_MAX = 64
TYPE_MAX = 255
ANY, ANY_OTHER = "any", "other"
WORLD = "entity:world"


class PairChange(msgspec.Struct, frozen=True):
    """Two ends between which a port gets another verdict. "other/TCP": any port that no policy of either end names;
    "any": their policies name no port at all.

    `sources` and `targets`: how many endpoints an end stands for; 0 of what is no endpoint.
    """

    source: str
    target: str
    port: str
    before: str
    after: str
    by: list[str]
    sources: int
    targets: int


class Pairs(msgspec.Struct):
    """What was compared."""

    changes: list[PairChange] = []
    compared: int = 0
    not_compared: int = 0


class _Representative(NamedTuple):
    name: str
    end: End
    stands_for: int
    about: tuple[list[ParsedPolicy], list[ParsedPolicy]]
    changed: bool


Meshes = tuple[Mesh, Mesh]
Judges = tuple[Judge, Judge]


def compare_pairs(meshes: Meshes, judges: Judges) -> Pairs:
    """Every pair of which one end's policies, or what they say of addresses, are other."""
    found = Pairs()
    groups = _groups(meshes, judges)
    others = [*groups, *_places(meshes, judges)]
    for source, target in _pairs(groups, others):
        for protocol, port, text in _ports(source, target):
            if found.compared == JUDGED_MAX:
                found.not_compared += 1
                continue
            found.compared += 1
            change = _compared(judges, source, target, protocol, port, text)
            if change is not None:
                found.changes.append(change)
    found.changes.sort(key=lambda each: (each.after != DENY, each.source, each.target, each.port))
    return found


def _pairs(
    groups: Sequence[_Representative], others: Sequence[_Representative]
) -> Iterator[tuple[_Representative, _Representative]]:
    """Each once, in both directions."""
    for group in groups:
        for other in others:
            if group.changed or other.changed:
                yield group, other
                if not isinstance(other.end, MeshEndpoint):
                    yield other, group


def _groups(meshes: Meshes, judges: Judges) -> list[_Representative]:
    members: dict[tuple[str, Labels], list[MeshEndpoint]] = {}
    for endpoint in meshes[0].endpoints:
        members.setdefault((endpoint.cluster, endpoint.labels), []).append(endpoint)
    found = []
    for (cluster, _), endpoints in sorted(members.items()):
        first = endpoints[0]
        about = judges[0].about(first), judges[1].about(first)
        name = f"{cluster}:{first.namespace}/{first.name}"
        changed = about[0] != about[1] or meshes[0].clusters[cluster].groups != meshes[1].clusters[cluster].groups
        found.append(_Representative(name, first, len(endpoints), about, changed))
    return found


def _places(meshes: Meshes, judges: Judges) -> list[_Representative]:
    """The world, an address of each prefix that policies name, and the nodes."""
    prefixes: dict[str, None] = {}
    held = {address for endpoint in meshes[0].endpoints for address in endpoint.addresses}
    held |= {address for node in meshes[0].nodes for address in node.addresses}
    for mesh in meshes:
        for cluster in mesh.clusters.values():
            for prefix in address_keys(cluster.policies).cidrs:
                prefixes[prefix] = None
            for group in cluster.groups:
                prefixes.update(dict.fromkeys(group.prefixes))
    addresses = [str(ip_network(prefix).network_address) for prefix in prefixes]
    names = [WORLD, *(f"ip:{each}" for each in addresses[:PLACES_MAX] if each not in held)]
    names += [f"node:{node.cluster}:{node.name}" for node in meshes[0].nodes[:2]]
    none: tuple[list[ParsedPolicy], list[ParsedPolicy]] = ([], [])
    return [_Representative(name, judges[0].end(name), 0, none, False) for name in dict.fromkeys(names)]


def _ports(source: _Representative, target: _Representative) -> list[tuple[int, int, str]]:
    """(protocol, port, text): one port of each class that the rules of both ends tell apart."""
    ranges: dict[PortRange, None] = {}
    for direction, one in ((POLICY_EGRESS, source), (POLICY_INGRESS, target)):
        for policy in (*one.about[0], *one.about[1]):
            for rule in policy.rules:
                if rule.direction == direction:
                    ranges.update(dict.fromkeys(rule.ports or ()))
                    ranges.update(dict.fromkeys(_named(rule.named, target.end)))
    found = []
    for protocol in sorted({TCP, *(each.protocol for each in ranges)}):
        own = [each for each in ranges if each.protocol == protocol]
        points = sorted({0, *(each.first for each in own), *(each.last + 1 for each in own)})
        named = [point for point in points if any(each.contains(protocol, point) for each in own)]
        found += [(protocol, point, port_text(protocol, point)) for point in named]
        last = TYPE_MAX if protocol in (ICMP, ICMPV6) else PORT_MAX
        other = next((point for point in points if point <= last and point not in named), None)
        if other is not None:
            found.append((protocol, other, f"{ANY_OTHER}/{protocol_name(protocol)}"))
    return found if ranges else [(TCP, 0, ANY)]


def _named(named: Sequence[NamedPort], target: End) -> Iterator[PortRange]:
    if isinstance(target, MeshEndpoint):
        for each in named:
            number, protocol = target.ports.get(each.name, (0, ""))
            if number:
                yield PortRange(PROTOCOLS.get(protocol, TCP), number, number)


def _compared(
    judges: Judges, source: _Representative, target: _Representative, protocol: int, port: int, text: str
) -> PairChange | None:
    before, after = (judge.between(source.end, target.end, protocol, port) for judge in judges)
    if before.verdict == after.verdict:
        return None
    counts = source.stands_for, target.stands_for
    by = deciding(before, after)
    return PairChange(source.name, target.name, text, before.verdict, after.verdict, by, *counts)


def deciding(before: Verdict, after: Verdict) -> list[str]:
    """Whose doing a change is: the policies that deny after it, or that denied before; else those that allow."""
    return list(after.by) if after.verdict == DENY or not before.by else list(before.by)
