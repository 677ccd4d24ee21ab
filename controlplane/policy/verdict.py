"""The one place that says what a verdict is: a flow, the policies, and what becomes of it. Pure.

Belongs here: the model of a policy verdict, with the policies that led to it. The rows in the kernel are compiled
from the same rules (resolve.py); tests hold the two together. Does not belong here: routes and services.
"""

from collections.abc import Callable, Sequence

import msgspec

from controlplane.model import Labels
from controlplane.policy.resolve import enforces
from controlplane.policy.rules import ParsedPolicy, Rule
from controlplane.policy.selectors import LabelIndex, index_labels
from datapath.abi.types import POLICY_EGRESS, POLICY_INGRESS

ALLOW = "allow"
DENY = "deny"
DENY_DEFAULT = "deny-default"
DENY_EXPLICIT = "deny-explicit"
HOST_LABEL = "reserved:host"


class Flow(msgspec.Struct, frozen=True):
    """The first packet of a connection: labels of both ends, protocol number, destination port (0 for ICMP).

    An end that is not a workload endpoint of the mesh (`reserved:...`) has no policy side of its own.
    """

    source: Labels
    dest: Labels
    protocol: int
    port: int


class Side(msgspec.Struct, frozen=True):
    """What one end says. `by` names the policies that allowed or denied; `enforced_by` those that enforce there."""

    verdict: str
    by: tuple[str, ...] = ()
    enforced_by: tuple[str, ...] = ()


class Verdict(msgspec.Struct, frozen=True):
    """`egress` is what the source's policies say, `ingress` the destination's; None where an end has no policy."""

    verdict: str
    egress: Side | None
    ingress: Side | None

    @property
    def by(self) -> tuple[str, ...]:
        """The policies behind the verdict: of the side that denied, or of both."""
        sides = [side for side in (self.egress, self.ingress) if side]
        if self.verdict == DENY:
            sides = [side for side in sides if side.verdict != ALLOW][:1]
        return tuple(dict.fromkeys(name for side in sides for name in side.by))


def policies_of(labels: Labels, policies: Sequence[ParsedPolicy]) -> list[ParsedPolicy]:
    """The policies that are about an endpoint with these labels, by name."""
    index = index_labels(labels)
    about = [policy for policy in policies if policy.subject.matches_index(index)]
    return sorted(about, key=lambda policy: policy.key)


def rule_matches(rule: Rule, remote: LabelIndex, protocol: int, port: int) -> bool:
    if rule.peers is not None and not any(selector.matches_index(remote) for selector in rule.peers):
        return False
    return rule.ports is None or any(ports.contains(protocol, port) for ports in rule.ports)


def judge_side(direction: int, policies: Sequence[ParsedPolicy], remote: Labels, protocol: int, port: int) -> Side:
    """What the policies of one end (as `policies_of` gives them) say about the other end and the port.

    A deny rule wins over every allow rule; then an allow rule; then default deny where a policy enforces. Only the
    node's own host comes in whatever the policies say: probes and the node's agents live there, and the programs
    let it in without a lookup.
    """
    index = index_labels(remote)

    def with_rule(deny: bool) -> tuple[str, ...]:
        return tuple(
            policy.name
            for policy in policies
            if any(
                rule.direction == direction and rule.deny == deny and rule_matches(rule, index, protocol, port)
                for rule in policy.rules
            )
        )

    enforced_by = tuple(policy.name for policy in policies if enforces((policy,), direction))
    if direction == POLICY_INGRESS and HOST_LABEL in remote:
        return Side(ALLOW, (), enforced_by)
    if denied_by := with_rule(True):
        return Side(DENY_EXPLICIT, denied_by, enforced_by)
    if not enforced_by:
        return Side(ALLOW)
    if allowed_by := with_rule(False):
        return Side(ALLOW, allowed_by, enforced_by)
    return Side(DENY_DEFAULT, enforced_by, enforced_by)


def judge(flow: Flow, policies: Sequence[ParsedPolicy], is_endpoint: Callable[[Labels], bool] | None = None) -> Verdict:
    """The verdict of a flow under all policies of the mesh."""
    has_policy = is_endpoint or _is_workload

    def side(direction: int, own: Labels, remote: Labels) -> Side | None:
        if not has_policy(own):
            return None
        return judge_side(direction, policies_of(own, policies), remote, flow.protocol, flow.port)

    egress = side(POLICY_EGRESS, flow.source, flow.dest)
    ingress = side(POLICY_INGRESS, flow.dest, flow.source)
    denied = any(found is not None and found.verdict != ALLOW for found in (egress, ingress))
    return Verdict(DENY if denied else ALLOW, egress, ingress)


def _is_workload(labels: Labels) -> bool:
    return bool(labels) and not any(label.startswith("reserved:") for label in labels)
