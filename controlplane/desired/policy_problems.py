"""Policies in force that the kernel holds otherwise than they are written, in words for `status`. Pure.

Belongs here: what the programs cannot tell apart yet. Does not belong here: rows (policy.py), which stay closed there.
"""

from collections.abc import Callable

from controlplane.desired.policy_inputs import api_servers, policy_settings
from controlplane.policy.manifests import parse_text
from controlplane.policy.prefixes import API_SERVER_LABEL
from controlplane.policy.rules import Rule
from controlplane.projections.state import State

NAMED_MAX = 5
API_SERVER = "kube-apiserver"
NO_API_SERVER = (
    "name entity kube-apiserver, and no address is known as one: without effect there. Apply the EndpointSlice of "
    "service default/kubernetes, or set kube-apiserver-addresses"
)
HINTS = ('"rules"', '"serverNames"', '"nodeSelector"', API_SERVER)
"""Only manifests with one of these are parsed."""

PROBLEMS: tuple[tuple[str, Callable[[Rule], bool]], ...] = (
    (
        "need a proxy, and there is none yet: what they allow by request is dropped",
        lambda rule: rule.requests is not None,
    ),
)


def policy_problems(state: State) -> list[str]:
    """One line for each kind of problem, naming the policies."""
    found: dict[str, list[str]] = {}
    for key in sorted(state.policies):
        policy = state.policies[key]
        if not any(hint in policy.manifest for hint in HINTS):
            continue
        settings = policy_settings(state, policy.cluster)
        parsed = parse_text(policy.kind, policy.manifest, policy.cluster, policy.parser, settings)
        if isinstance(parsed, tuple):
            continue
        rules = [rule for part in parsed.parts for rule in part.rules]
        if any(map(_names_api_server, rules)) and not api_servers(state, policy.cluster, settings):
            found.setdefault(NO_API_SERVER, []).append(parsed.name)
        for text, concerns in PROBLEMS:
            if any(map(concerns, rules)):
                found.setdefault(text, []).append(parsed.name)
        if any(part.of_nodes for part in parsed.parts) and not settings.host_firewall:
            found.setdefault("select nodes, and enable-host-firewall is off: without effect", []).append(parsed.name)
    return [f"{len(names)} policies {text}: {_listed(names)}" for text, names in found.items()]


def _names_api_server(rule: Rule) -> bool:
    """By itself: entity cluster, which it is a part of, has an effect without it."""
    keys = [{requirement.key for requirement in selector.requirements} for selector in rule.peers or ()]
    alone = any(API_SERVER_LABEL in key for key in keys)
    return alone and not any("reserved:unmanaged" in key for key in keys)


def _listed(names: list[str]) -> str:
    return ", ".join(names[:NAMED_MAX]) + (", …" if len(names) > NAMED_MAX else "")
