"""The one place that says what a verdict is: a flow, the policies, and what becomes of it. Pure.

Belongs here: the model of a policy verdict, with the policies that led to it. The rows in the kernel are compiled
from the same rules (resolve.py); tests hold the two together. Does not belong here: routes and services, and which
labels an end has (ends.py).
"""

from collections.abc import Callable, Sequence

import msgspec

from controlplane.labels import SOURCE_RESERVED
from controlplane.model import Labels
from controlplane.policy.requests import NO_REQUEST, Request, permits
from controlplane.policy.rules import PROTOCOLS, NamedPorts, ParsedPolicy, Rule
from controlplane.policy.selectors import LabelIndex, index_labels
from controlplane.policy.settings import ALWAYS, DEFAULTS, NEVER, PolicySettings
from datapath.abi.types import POLICY_EGRESS, POLICY_INGRESS

ALLOW = "allow"
DENY = "deny"
REDIRECT = "redirect"
AUDIT = "audit"
DENY_DEFAULT = "deny-default"
DENY_EXPLICIT = "deny-explicit"
HOST_LABEL = "reserved:host"
NO_PORTS: NamedPorts = {}


class Flow(msgspec.Struct, frozen=True):
    """The first packet of a connection: labels of both ends, protocol number, destination port (ICMP: the type).

    An end that is not a workload endpoint of the mesh (`reserved:...`) has no policy side of its own. `named_ports`
    are the destination's.
    """

    source: Labels
    dest: Labels
    protocol: int
    port: int
    named_ports: NamedPorts = {}
    request: Request = NO_REQUEST


class Side(msgspec.Struct, frozen=True):
    """What one end says. `by` names the policies that allowed or denied; `enforced_by` those that enforce there.

    `requests`: of a redirect, allow or deny for the request that is asked about, "" if none is.
    """

    verdict: str
    by: tuple[str, ...] = ()
    enforced_by: tuple[str, ...] = ()
    requests: str = ""

    @property
    def denies(self) -> bool:
        return self.verdict in (DENY_DEFAULT, DENY_EXPLICIT)


class Verdict(msgspec.Struct, frozen=True):
    """`egress` is what the source's policies say, `ingress` the destination's; None where an end has no policy."""

    verdict: str
    egress: Side | None
    ingress: Side | None

    @property
    def sides(self) -> list[Side]:
        return [side for side in (self.egress, self.ingress) if side]

    @property
    def by(self) -> tuple[str, ...]:
        """The policies behind the verdict: of the side that denied, or of both."""
        sides = [side for side in self.sides if side.denies][:1] if self.verdict == DENY else self.sides
        return tuple(dict.fromkeys(name for side in sides for name in side.by))

    @property
    def requests(self) -> str:
        """allow or deny for the request; "" if none is asked about or no proxy looks at it."""
        answers = [side.requests for side in self.sides if side.requests]
        return (DENY if DENY in answers else ALLOW) if answers and self.verdict == REDIRECT else ""


def policies_of(labels: Labels, policies: Sequence[ParsedPolicy], of_nodes: bool = False) -> list[ParsedPolicy]:
    """The policies that are about an endpoint (or a node) with these labels, one for each spec, by name."""
    index = index_labels(labels)
    about = [
        part
        for policy in policies
        for part in policy.parts
        if part.of_nodes == of_nodes and part.subject.matches_index(index)
    ]
    return sorted(about, key=lambda policy: policy.key)


def enforces(policies: Sequence[ParsedPolicy], direction: int, settings: PolicySettings = DEFAULTS) -> bool:
    """Whether what no rule allows is denied there."""
    if settings.enforcement != DEFAULTS.enforcement:
        return settings.enforcement == ALWAYS
    if direction == POLICY_INGRESS:
        return any(policy.enforce_ingress for policy in policies)
    return any(policy.enforce_egress for policy in policies)


def rule_matches(rule: Rule, remote: LabelIndex, protocol: int, port: int, named_ports: NamedPorts = NO_PORTS) -> bool:
    if rule.peers is not None and not any(selector.matches_index(remote) for selector in rule.peers):
        return False
    if rule.ports is None or any(ports.contains(protocol, port) for ports in rule.ports):
        return True
    return any(_is_named(named.name, named.protocol, protocol, port, named_ports) for named in rule.named)


def _is_named(name: str, wanted: int, protocol: int, port: int, named_ports: NamedPorts) -> bool:
    number, protocol_name = named_ports.get(name, (-1, ""))
    return number == port and protocol == wanted and PROTOCOLS.get(protocol_name) == protocol


def judge_side(
    direction: int,
    policies: Sequence[ParsedPolicy],
    remote: Labels,
    protocol: int,
    port: int,
    named_ports: NamedPorts = NO_PORTS,
    request: Request = NO_REQUEST,
    settings: PolicySettings = DEFAULTS,
) -> Side:
    """What the policies of one end (as `policies_of` gives them) say about the other end and the port.

    A deny rule wins over every allow rule; then an allow rule; then default deny where a policy enforces. Only the
    node's own host comes in unless a deny rule says otherwise: probes and the node's agents live there (unless the
    settings say that it needs to be allowed like everyone). Under audit nothing is denied.
    """
    enforced_by = tuple(dict.fromkeys(policy.name for policy in policies if enforces((policy,), direction)))
    if settings.enforcement == NEVER:
        return Side(ALLOW, (), ())
    side = _judge(direction, policies, index_labels(remote), protocol, port, named_ports, request, settings)
    is_localhost = direction == POLICY_INGRESS and HOST_LABEL in remote and settings.allow_localhost != "policy"
    if is_localhost and side.verdict == REDIRECT:
        return Side(REDIRECT, side.by, enforced_by, ALLOW if side.requests else "")
    if is_localhost and side.verdict != DENY_EXPLICIT:
        return Side(ALLOW, (), enforced_by)
    verdict = AUDIT if side.denies and settings.audit else side.verdict
    by = enforced_by if side.verdict == DENY_DEFAULT else side.by
    return Side(verdict, by, enforced_by, side.requests)


def _judge(
    direction: int,
    policies: Sequence[ParsedPolicy],
    index: LabelIndex,
    protocol: int,
    port: int,
    named_ports: NamedPorts,
    request: Request,
    settings: PolicySettings,
) -> Side:
    allowed: dict[str, None] = {}
    denied: dict[str, None] = {}
    rules: list[Rule] = []
    for policy in policies:
        for rule in policy.rules:
            if rule.direction == direction and rule_matches(rule, index, protocol, port, named_ports):
                (denied if rule.deny else allowed)[policy.name] = None
                if not rule.deny:
                    rules.append(rule)
    if denied:
        return Side(DENY_EXPLICIT, tuple(denied))
    enforced = enforces(policies, direction, settings)
    if not any(rule.requests for rule in rules):
        if not enforced:
            return Side(ALLOW)
        return Side(ALLOW, tuple(allowed)) if rules else Side(DENY_DEFAULT)
    answer = (_judge_request(rules, request) if enforced else ALLOW) if request.is_known else ""
    return Side(REDIRECT, tuple(allowed), requests=answer)


def _judge_request(rules: Sequence[Rule], request: Request) -> str:
    """A rule that does not look at requests allows them all."""
    return ALLOW if any(rule.requests is None or permits(rule.requests, request) for rule in rules) else DENY


def judge(
    flow: Flow,
    policies: Sequence[ParsedPolicy],
    is_endpoint: Callable[[Labels], bool] | None = None,
) -> Verdict:
    """The verdict of a flow under all policies of the mesh."""
    has_policy = is_endpoint or _is_workload

    def side(direction: int, own: Labels, remote: Labels) -> Side | None:
        if not has_policy(own):
            return None
        about = policies_of(own, policies)
        return judge_side(direction, about, remote, flow.protocol, flow.port, flow.named_ports, flow.request)

    return joined(side(POLICY_EGRESS, flow.source, flow.dest), side(POLICY_INGRESS, flow.dest, flow.source))


def joined(egress: Side | None, ingress: Side | None) -> Verdict:
    """What the sides come to together."""
    sides = [side for side in (egress, ingress) if side]
    verdict = DENY if any(side.denies for side in sides) else ALLOW
    if verdict == ALLOW and any(side.verdict == REDIRECT for side in sides):
        verdict = REDIRECT
    return Verdict(verdict, egress, ingress)


def _is_workload(labels: Labels) -> bool:
    return bool(labels) and not any(label.startswith(f"{SOURCE_RESERVED}:") for label in labels)
