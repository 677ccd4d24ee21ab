"""For a flow that no rule allows: the rule that would allow it with the fewest changes, and what differs. Pure.

Belongs here: comparing a flow with a rule field by field. Does not belong here: the verdict (policy/verdict.py).
"""

from collections.abc import Sequence

import msgspec

from controlplane.policy.clauses import (
    CIDR_GROUP_NAME,
    SOURCE_CIDR,
    SOURCE_CIDR_GROUP,
    SOURCE_NAME,
    SOURCE_TOUCHES,
    SOURCE_WITHIN,
)
from controlplane.policy.rules import NamedPorts, ParsedPolicy, PortRange, Rule
from controlplane.policy.selectors import DOES_NOT_EXIST, NOT_IN, LabelIndex, Requirement, Selector
from controlplane.policy.verdict import NO_PORTS, rule_matches
from datapath.abi.types import POLICY_INGRESS
from datapath.addressing import protocol_name

ADDRESS_TEXTS = {
    SOURCE_CIDR: "in {}",
    SOURCE_WITHIN: "in {}",
    SOURCE_TOUCHES: "in {}",
    SOURCE_CIDR_GROUP: "in a prefix of group {}",
    SOURCE_NAME: "of a resolved name that matches {}",
}
"""Labels that stand for what policies say of addresses, as a person says it."""


class Nearest(msgspec.Struct, frozen=True):
    """`differs`: one line for each field that stands in the way; never empty, as the rule does not match."""

    policy: str
    rule: Rule
    differs: tuple[str, ...]

    @property
    def name(self) -> str:
        """The rule's path and its policy."""
        return f"{self.rule.origin} of {self.policy}"


def nearest_rule(
    direction: int, policies: Sequence[ParsedPolicy], remote: LabelIndex, protocol: int, port: int,
    named_ports: NamedPorts = NO_PORTS,
) -> Nearest | None:  # fmt: skip
    """Of the allow rules of this direction; None where there is none at all."""
    found = [
        Nearest(policy.name, rule, differences(rule, remote, protocol, port, named_ports))
        for policy in policies
        for rule in policy.rules
        if rule.direction == direction and not rule.deny
    ]
    return min(found, key=lambda each: (len(each.differs), each.policy, each.rule.origin), default=None)


def differences(
    rule: Rule, remote: LabelIndex, protocol: int, port: int, named_ports: NamedPorts = NO_PORTS
) -> tuple[str, ...]:
    """What would have to be other for the rule to match; () where it matches."""
    found = []
    if not _ports_match(rule, protocol, port, named_ports):
        found.append(f"port: the flow has {port_text(protocol, port)}, the rule has {_ports_text(rule)}")
    if rule.peers is not None and not any(selector.matches_index(remote) for selector in rule.peers):
        found += _peer_differences(rule, remote)
    return tuple(found)


def _ports_match(rule: Rule, protocol: int, port: int, named_ports: NamedPorts) -> bool:
    """As `rule_matches` has it, whoever the peer is."""
    return rule_matches(msgspec.structs.replace(rule, peers=None), {}, protocol, port, named_ports)


def _peer_differences(rule: Rule, remote: LabelIndex) -> list[str]:
    who = "source" if rule.direction == POLICY_INGRESS else "target"
    if not rule.peers:
        return [f"{who}: the rule names nobody that is there"]
    best = min(rule.peers, key=lambda selector: (len(_failing(selector, remote)), selector))
    return [_requirement_text(who, requirement, remote) for requirement in _failing(best, remote)]


def _failing(selector: Selector, remote: LabelIndex) -> list[Requirement]:
    return [requirement for requirement in selector.requirements if not requirement.holds(remote)]


def _requirement_text(who: str, requirement: Requirement, remote: LabelIndex) -> str:
    source, _, key = requirement.key.partition(":")
    if source in ADDRESS_TEXTS:
        inside = requirement.operator in (DOES_NOT_EXIST, NOT_IN)
        what = ADDRESS_TEXTS[source].format(key.removeprefix(CIDR_GROUP_NAME))
        return f"{who}'s address is {what}, which the rule excepts" if inside else f"{who}'s address is not {what}"
    has = remote.get(requirement.key)
    held = f"is {' and '.join(has) or 'present'}" if has is not None else "is absent"
    return f"{who}'s label {requirement.key} {held}, the rule wants {Selector((requirement,))}"


def port_text(protocol: int, port: int) -> str:
    """ "80/TCP"."""
    return f"{port}/{protocol_name(protocol)}"


def _ports_text(rule: Rule) -> str:
    names = [f"{named.name}/{protocol_name(named.protocol)}" for named in rule.named]
    return ", ".join([*map(_range_text, rule.ports or ()), *names]) or "none"


def _range_text(ports: PortRange) -> str:
    width = f"{ports.first}" if ports.first == ports.last else f"{ports.first}-{ports.last}"
    return f"{width}/{protocol_name(ports.protocol)}"
