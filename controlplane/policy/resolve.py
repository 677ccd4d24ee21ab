"""From rules to the rows of the policy tables, for one subject identity. Pure.

Belongs here: which rows a rule becomes, ports as prefixes, shapes. Does not belong here: which identities a selector
selects and which policies are about a subject (desired/policy.py keeps both).

A row never allows more than its rule. The programs see no request inside a connection, so what a rule allows for some
requests only becomes no row: it stays closed. A row by an identity holds for all its addresses: what a rule says about
the name of a port that its endpoints do not all give the same number becomes no such row. Where endpoints differ, their
facets have rows of their own (desired/facets.py). The port of an ICMP message is its type.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from controlplane.policy.clauses import SOURCE_TOUCHES, SOURCE_WITHIN
from controlplane.policy.rules import ANY_PROTOCOL, PORT_MAX, ParsedPolicy, PortRange, Rule
from controlplane.policy.selectors import Selector
from controlplane.policy.settings import DEFAULTS, NEVER, PolicySettings
from controlplane.policy.verdict import enforces
from datapath.abi.types import (
    POLICY_EGRESS,
    POLICY_INGRESS,
    POLICY_SHAPE_L3,
    POLICY_SHAPE_PORT_0,
    POLICY_SUBJECT_ASKS_FACETS,
    POLICY_SUBJECT_ASKS_LOCALHOST,
    POLICY_SUBJECT_AUDIT,
    POLICY_SUBJECT_HAS_FACETS,
    POLICY_VERDICT_ALLOW,
    POLICY_VERDICT_DENY,
)
from datapath.tables import PolicyKey, PolicyRow, PolicySubjectRow

ANY_REMOTE = 0
PORT_BITS = 16

ALLOW = PolicyRow(POLICY_VERDICT_ALLOW)
DENY = PolicyRow(POLICY_VERDICT_DENY)

PortPiece = tuple[int, int, int]
"""(protocol, port, prefix length of the port)."""
RowsByRemote = dict[int, dict[PolicyKey, PolicyRow]]
OF_BLOCKS = (f"{SOURCE_WITHIN}:", f"{SOURCE_TOUCHES}:")
EVERY_PORT: tuple[PortPiece, ...] = ((ANY_PROTOCOL, 0, 0),)


def port_pieces(ports: PortRange) -> Iterator[PortPiece]:
    """The range as the fewest prefixes, in order of port."""
    port = ports.first
    while port <= ports.last:
        size = (port & -port) or PORT_MAX + 1
        while port + size - 1 > ports.last:
            size >>= 1
        yield ports.protocol, port, PORT_BITS - (size.bit_length() - 1)
        port += size


PortNumbers = Mapping[tuple[int, str], int]
"""Of the named ports of an identity, by (protocol, name): what all its endpoints give."""
NO_PORTS: PortNumbers = {}


def pieces_of(rule: Rule) -> tuple[PortPiece, ...]:
    """Of the ports that the rule gives by number."""
    if rule.ports is None:
        return EVERY_PORT
    return tuple(dict.fromkeys(piece for ports in rule.ports for piece in port_pieces(ports)))


def named_pieces(rule: Rule, given: PortNumbers) -> tuple[PortPiece, ...]:
    """Of the ports that the rule gives by name, where the destination has these."""
    asked = ((named.protocol, named.name) for named in rule.named)
    return tuple((key[0], given[key], PORT_BITS) for key in asked if key in given)


def shape_of(piece: PortPiece) -> int:
    """The bit of the shape by which the programs look the row up."""
    protocol, _, prefix = piece
    return POLICY_SHAPE_L3 if protocol == ANY_PROTOCOL else POLICY_SHAPE_PORT_0 << prefix


def effective_rules(policies: Sequence[ParsedPolicy], settings: PolicySettings = DEFAULTS) -> tuple[Rule, ...]:
    """The rules that become rows: where a direction is not enforced, an allow rule says nothing."""
    if settings.enforcement == NEVER:
        return ()
    enforced = {direction: enforces(policies, direction, settings) for direction in (POLICY_INGRESS, POLICY_EGRESS)}
    return tuple(
        rule
        for policy in policies
        for rule in policy.rules
        if rule.deny or (enforced[rule.direction] and rule.requests is None)
    )


def subject_row(
    policies: Sequence[ParsedPolicy],
    settings: PolicySettings = DEFAULTS,
    is_host: bool = False,
    is_split: bool = False,
) -> PolicySubjectRow:
    """What is enforced, and the shapes of all its rules, whether or not a remote is known yet that they select.
    `is_split`: its endpoints have facets that are subjects themselves.

    So the row follows the policies alone, and a new identity writes only its own rows.
    """
    shapes = {POLICY_INGRESS: 0, POLICY_EGRESS: 0}
    rules = effective_rules(policies, settings)
    for rule in rules:
        for piece in pieces_of(rule):
            shapes[rule.direction] |= shape_of(piece)
        for named in rule.named:
            shapes[rule.direction] |= shape_of((named.protocol, 0, PORT_BITS))
    flags = POLICY_SUBJECT_AUDIT if settings.audit else 0
    if settings.allow_localhost == "policy" and not is_host:
        flags |= POLICY_SUBJECT_ASKS_LOCALHOST
    if any(map(asks_facets, rules)):
        flags |= POLICY_SUBJECT_ASKS_FACETS
    if is_split:
        flags |= POLICY_SUBJECT_HAS_FACETS
    return PolicySubjectRow(
        ingress_enforced=int(enforces(policies, POLICY_INGRESS, settings)),
        egress_enforced=int(enforces(policies, POLICY_EGRESS, settings)),
        ingress_shapes=shapes[POLICY_INGRESS],
        egress_shapes=shapes[POLICY_EGRESS],
        flags=flags,
    )


Facts = Callable[[int], PortNumbers]
"""The named ports of an identity."""


def no_facts(identity: int) -> PortNumbers:
    return NO_PORTS


def put_rows(
    by_remote: RowsByRemote, subject: int, remotes: Iterable[int], rule: Rule, facts: Facts = no_facts
) -> None:
    """The rule's rows for these remotes; a deny row takes the place of an allow row of the same key."""
    row = DENY if rule.deny else ALLOW
    pieces = pieces_of(rule)
    ingress = rule.direction == POLICY_INGRESS
    if rule.named and ingress:
        pieces = (*pieces, *named_pieces(rule, facts(subject)))
    for remote in remotes:
        own = pieces
        if rule.named and not ingress:
            # A rule about every remote has its numbered ports in rows of their own.
            numbered = pieces if rule.peers is not None or remote == ANY_REMOTE else ()
            own = (*numbered, *named_pieces(rule, facts(remote)))
        if not own:
            continue
        rows = by_remote.setdefault(remote, {})
        for protocol, port, prefix in own:
            key = PolicyKey(subject, remote, port, prefix, protocol, rule.direction)
            if rule.deny or key not in rows:
                rows[key] = row


def asks_remotes(rule: Rule) -> bool:
    """Whether it is about every remote, and what that means depends on the remote's named ports."""
    return rule.peers is None and bool(rule.named) and rule.direction == POLICY_EGRESS


def asks_facets(rule: Rule) -> bool:
    """Whether it can be about some addresses of an identity only: by a block, or by the number of a named port."""
    if rule.named and rule.direction == POLICY_EGRESS:
        return True
    asked = (requirement.key for selector in rule.peers or () for requirement in selector.requirements)
    return any(key.startswith(OF_BLOCKS) for key in asked)


def remotes_of(
    rule: Rule, selected: Callable[[Selector], Sequence[int]], everyone: Callable[[], Sequence[int]] = tuple
) -> Iterator[int]:
    """The remote identities of the rule; ANY_REMOTE stands for all."""
    if rule.peers is None:
        yield ANY_REMOTE
        if asks_remotes(rule):
            yield from everyone()
        return
    yield from dict.fromkeys(remote for selector in rule.peers for remote in selected(selector))


def resolve(
    subject: int,
    policies: Sequence[ParsedPolicy],
    selected: Callable[[Selector], Sequence[int]],
    everyone: Callable[[], Sequence[int]] = tuple,
    facts: Facts = no_facts,
) -> tuple[PolicySubjectRow, dict[PolicyKey, PolicyRow]]:
    """All rows of a subject under the policies that are about it."""
    by_remote: RowsByRemote = {}
    for rule in effective_rules(policies):
        put_rows(by_remote, subject, remotes_of(rule, selected, everyone), rule, facts)
    return subject_row(policies), {key: row for rows in by_remote.values() for key, row in rows.items()}
