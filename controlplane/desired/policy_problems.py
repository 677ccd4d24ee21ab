"""Policies in force that the kernel holds otherwise than they are written, in words for `status`. Pure.

Belongs here: what the programs cannot tell apart yet. Does not belong here: rows (policy.py), which stay closed there.
"""

from collections.abc import Callable

from controlplane.desired.policy_inputs import policy_settings
from controlplane.policy.manifests import parse_text
from controlplane.policy.online import API_SERVER, refused_online
from controlplane.policy.rules import Rule
from controlplane.projections.state import State

NAMED_MAX = 5
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
        if refused_online(policy.manifest):
            found.setdefault("deny entity kube-apiserver, which no address has: without effect", []).append(parsed.name)
        rules = [rule for part in parsed.parts for rule in part.rules]
        for text, concerns in PROBLEMS:
            if any(map(concerns, rules)):
                found.setdefault(text, []).append(parsed.name)
        if any(part.of_nodes for part in parsed.parts):
            found.setdefault("select nodes, whose own traffic is not judged yet: without effect", []).append(
                parsed.name
            )
    return [f"{len(names)} policies {text}: {_listed(names)}" for text, names in found.items()]


def _listed(names: list[str]) -> str:
    return ", ".join(names[:NAMED_MAX]) + (", …" if len(names) > NAMED_MAX else "")
