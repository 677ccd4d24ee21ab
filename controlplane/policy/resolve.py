"""From rules to the rows of the policy tables, for one subject identity. Pure.

Belongs here: which rows a rule becomes, ports as prefixes, shapes. Does not belong here: which identities a selector
selects and which policies are about a subject (desired/policy.py keeps both).
"""

from collections.abc import Callable, Iterable, Iterator, Sequence

from controlplane.policy.rules import ANY_PROTOCOL, PORT_MAX, ParsedPolicy, PortRange, Rule
from controlplane.policy.selectors import Selector
from controlplane.policy.verdict import enforces
from datapath.abi.types import (
    POLICY_EGRESS,
    POLICY_INGRESS,
    POLICY_SHAPE_L3,
    POLICY_SHAPE_PORT_0,
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


def pieces_of(rule: Rule) -> tuple[PortPiece, ...]:
    if rule.ports is None:
        return EVERY_PORT
    return tuple(dict.fromkeys(piece for ports in rule.ports for piece in port_pieces(ports)))


def shape_of(piece: PortPiece) -> int:
    """The bit of the shape by which the programs look the row up."""
    protocol, _, prefix = piece
    return POLICY_SHAPE_L3 if protocol == ANY_PROTOCOL else POLICY_SHAPE_PORT_0 << prefix


def effective_rules(policies: Sequence[ParsedPolicy]) -> tuple[Rule, ...]:
    """The rules that can change a verdict: where a direction is not enforced, an allow rule says nothing."""
    enforced = {direction: enforces(policies, direction) for direction in (POLICY_INGRESS, POLICY_EGRESS)}
    return tuple(rule for policy in policies for rule in policy.rules if rule.deny or enforced[rule.direction])


def subject_row(policies: Sequence[ParsedPolicy]) -> PolicySubjectRow:
    """What is enforced, and the shapes of all its rules, whether or not a remote is known yet that they select.

    So the row follows the policies alone, and a new identity writes only its own rows.
    """
    shapes = {POLICY_INGRESS: 0, POLICY_EGRESS: 0}
    for rule in effective_rules(policies):
        for piece in pieces_of(rule):
            shapes[rule.direction] |= shape_of(piece)
    return PolicySubjectRow(
        ingress_enforced=int(enforces(policies, POLICY_INGRESS)),
        egress_enforced=int(enforces(policies, POLICY_EGRESS)),
        ingress_shapes=shapes[POLICY_INGRESS],
        egress_shapes=shapes[POLICY_EGRESS],
    )


def put_rows(by_remote: RowsByRemote, subject: int, remotes: Iterable[int], rule: Rule) -> None:
    """The rule's rows for these remotes; a deny row takes the place of an allow row of the same key."""
    row = DENY if rule.deny else ALLOW
    pieces = pieces_of(rule)
    for remote in remotes:
        rows = by_remote.setdefault(remote, {})
        for protocol, port, prefix in pieces:
            key = PolicyKey(subject, remote, port, prefix, protocol, rule.direction)
            if rule.deny or key not in rows:
                rows[key] = row


def remotes_of(rule: Rule, selected: Callable[[Selector], Sequence[int]]) -> Iterator[int]:
    """The remote identities of the rule; ANY_REMOTE stands for all."""
    if rule.peers is None:
        yield ANY_REMOTE
        return
    yield from dict.fromkeys(remote for selector in rule.peers for remote in selected(selector))


def resolve(
    subject: int, policies: Sequence[ParsedPolicy], selected: Callable[[Selector], Sequence[int]]
) -> tuple[PolicySubjectRow, dict[PolicyKey, PolicyRow]]:
    """All rows of a subject under the policies that are about it."""
    by_remote: RowsByRemote = {}
    for rule in effective_rules(policies):
        put_rows(by_remote, subject, remotes_of(rule, selected), rule)
    return subject_row(policies), {key: row for rows in by_remote.values() for key, row in rows.items()}
