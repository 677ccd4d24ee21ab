"""What policies hold for one endpoint: the rules about it, and the rows that each became. Pure.

Belongs here: putting rules and rows side by side. Does not belong here: what either is (policy/, desired/policy.py).
"""

from collections.abc import Iterable, Sequence
from typing import Any

from controlplane.desired.policy import PolicyCompiler
from controlplane.model import Endpoint
from controlplane.policy.resolve import ANY_REMOTE, EVERY_PORT, effective_rules, pieces_of
from controlplane.policy.rules import ANY_PROTOCOL, ICMP, ICMPV6, PORT_MAX, PROTOCOLS, ParsedPolicy, PortRange, Rule
from controlplane.projections.state import State
from datapath.abi.types import POLICY_INGRESS, POLICY_VERDICT_DENY
from datapath.tables import PolicyKey, PolicyRow

PROTOCOL_NAMES = {number: name for name, number in (*PROTOCOLS.items(), ("ICMP", ICMP), ("ICMPv6", ICMPV6))}


def endpoint_policy(state: State, endpoint: Endpoint) -> dict[str, Any]:
    """Rules by policy, each with the rows that it is behind. Rules that became none say so by an empty list."""
    compiler = PolicyCompiler()
    _, rows = compiler.full(state, endpoint.cluster, endpoint.node)
    identity, *facets = compiler.subjects_of(endpoint)
    numbers = facets or [identity]
    own = sorted((key, row) for key, row in rows.items() if key.subject_identity in numbers)
    policies = compiler.policies_of(endpoint.identity)
    effective = effective_rules(policies, compiler.settings)
    rules = [_rule(policy, rule, rule in effective, own, compiler) for policy in policies for rule in policy.rules]
    return {"identity": endpoint.identity, "rules": rules, "rows": [_row(*each) for each in own]}


def _rule(
    policy: ParsedPolicy,
    rule: Rule,
    is_effective: bool,
    rows: Sequence[tuple[PolicyKey, PolicyRow]],
    compiler: PolicyCompiler,
) -> dict[str, Any]:
    found = [_row(key, row) for key, row in rows if is_effective and _is_behind(rule, key, row, compiler)]
    what = "deny" if rule.deny else "redirect" if rule.requests else "allow"
    ports = ["any"] if rule.ports is None else [_ports(each) for each in rule.ports]
    return {
        "policy": policy.name,
        "path": rule.origin,
        "direction": "ingress" if rule.direction == POLICY_INGRESS else "egress",
        "verdict": what,
        "peers": ["any"] if rule.peers is None else [str(selector) for selector in rule.peers],
        "ports": [*ports, *(f"{named.name}/{PROTOCOL_NAMES[named.protocol]}" for named in rule.named)],
        "rows": found,
    }


def _is_behind(rule: Rule, key: PolicyKey, row: PolicyRow, compiler: PolicyCompiler) -> bool:
    """Whether the row comes of the rule: same verdict, a remote that it means, ports that are its own."""
    if key.direction != rule.direction or (row.verdict == POLICY_VERDICT_DENY) != rule.deny:
        return False
    if rule.peers is None:
        meant = key.remote_identity == ANY_REMOTE or bool(rule.named)
    else:
        index = compiler.labels_of(key.remote_identity)
        meant = index is not None and any(selector.matches_index(index) for selector in rule.peers)
    piece = (key.protocol, key.port, key.port_prefix)
    named = any(each.protocol == key.protocol for each in rule.named) and piece not in EVERY_PORT
    return meant and (piece in pieces_of(rule) or named)


def _ports(ports: PortRange) -> str:
    name = PROTOCOL_NAMES.get(ports.protocol, str(ports.protocol))
    if (ports.first, ports.last) == (0, PORT_MAX):
        return f"any/{name}"
    return f"{ports.first}/{name}" if ports.first == ports.last else f"{ports.first}-{ports.last}/{name}"


def _row(key: PolicyKey, row: PolicyRow) -> str:
    """As `bpf policy list` words it: "Allow Ingress 65793 80/TCP", a range by its first port and prefix length."""
    verdict = "Deny" if row.verdict == POLICY_VERDICT_DENY else "Allow"
    way = "Ingress" if key.direction == POLICY_INGRESS else "Egress"
    remote = str(key.remote_identity) if key.remote_identity else "ANY"
    if key.protocol == ANY_PROTOCOL:
        return f"{verdict} {way} {remote} ANY"
    name = PROTOCOL_NAMES.get(key.protocol, str(key.protocol))
    return f"{verdict} {way} {remote} {key.port}{'' if key.port_prefix == 16 else f'&{key.port_prefix}'}/{name}"


def find_endpoints(endpoints: Iterable[Endpoint], text: str, own: tuple[str, str] | None) -> list[Endpoint]:
    """By number on the node that is asked, by "ns/workload", "cluster:ns/workload" or address."""
    found = []
    for each in endpoints:
        name = f"{each.namespace}/{each.workload}"
        is_own = own == (each.cluster, each.node) and text == str(each.endpoint_id)
        if is_own or text in (name, f"{each.cluster}:{name}", each.ipv4, each.ipv6):
            found.append(each)
    return found
