"""Policies that do not do what they seem to: found without a flow. Pure.

Belongs here: what is surely of no effect, or surely not meant. Does not belong here: refusals (the parsers).
"""

from collections.abc import Sequence

import msgspec

from controlplane.labels import CLUSTER_KEY, SOURCE_KUBERNETES
from controlplane.policy.clauses import CIDR_GROUP_NAME, DERIVED_SOURCES, SOURCE_CIDR_GROUP, SOURCE_NODE
from controlplane.policy.identity_labels import label_filter
from controlplane.policy.mesh import Mesh, MeshCluster
from controlplane.policy.nodes import own_labels
from controlplane.policy.rules import ParsedPolicy, Rule
from controlplane.policy.selectors import ANY_SOURCE, IN, LabelIndex, Selector, index_labels, selector_of
from controlplane.policy.services import with_services

OF_CLUSTER = f"{SOURCE_KUBERNETES}:{CLUSTER_KEY}"
NO_EFFECT = "has no effect; `ingress: [{}]` denies what no other rule allows, and an empty list is no rule"


class Finding(msgspec.Struct, frozen=True):
    """`where` is the path in the manifest."""

    policy: str
    where: str
    reason: str


def findings(mesh: Mesh) -> list[Finding]:
    """By policy, in the order of their rules."""
    found: list[Finding] = []
    indexes = [index_labels(endpoint.labels) for endpoint in mesh.endpoints]
    nodes = [index_labels(tuple(own_labels(node.cluster, node.labels))) for node in mesh.nodes]
    known = {key for index in indexes for key in index}
    ports = {name for endpoint in mesh.endpoints for name in endpoint.ports}
    for cluster in mesh.clusters.values():
        groups = {group.name for group in cluster.groups}
        for policy in cluster.policies:
            for part in with_services(policy, cluster.services).parts:
                if not part.of_nodes and not any(part.subject.matches_index(index) for index in indexes):
                    found.append(Finding(part.name, "spec", f"selects no endpoint: {part.subject}"))
                if not part.of_nodes:
                    found += _unknown_keys(mesh, part, "spec", part.subject, known)
                if part.is_idle:
                    found.append(Finding(part.name, "spec", NO_EFFECT))
                for rule in part.rules:
                    found += _of_rule(part, rule, indexes, ports, groups)
                    for selector in rule.peers or ():
                        if _is_of_endpoints(selector):
                            found += _unknown_keys(mesh, part, rule.origin, selector, known)
                        found += _of_nodes(part.name, rule.origin, selector, nodes)
                found += _shadowed(part, cluster)
    return list(dict.fromkeys(found))


def _of_rule(policy: ParsedPolicy, rule: Rule, indexes: list, ports: set[str], groups: set[str]) -> list[Finding]:  # type: ignore[type-arg]
    found = []
    for selector in rule.peers or ():
        group = _group_of(selector)
        if group and group not in groups:
            found.append(Finding(policy.name, rule.origin, f"no CiliumCIDRGroup is called {group}"))
        if _is_of_endpoints(selector) and not any(selector.matches_index(index) for index in indexes):
            found.append(Finding(policy.name, rule.origin, f"selects no endpoint: {selector}"))
    if rule.services and not rule.peers:
        found.append(Finding(policy.name, rule.origin, "no such service, or it has no backends"))
    for named in rule.named:
        if named.name not in ports:
            found.append(Finding(policy.name, rule.origin, f"no workload names a port {named.name}"))
    return found


def _unknown_keys(
    mesh: Mesh, policy: ParsedPolicy, where: str, selector: Selector, known: set[str]
) -> list[Finding]:
    """Labels that no endpoint has: misspelt, it may be, which no condition with "not" shows by selecting nothing; or
    left out of identities. Without any endpoint there is nothing to compare with, but for the latter."""
    found = []
    for key in dict.fromkeys(requirement.key for requirement in selector.requirements):
        if key not in known and not _is_identity_label(mesh, policy, selector, key):
            reason = f"no identity has a label {key}: setting labels leaves it out, or does so by default"
            found.append(Finding(policy.name, where, reason))
        elif known and key not in known:
            found.append(Finding(policy.name, where, f"no endpoint has a label {key}"))
    return found


def _is_identity_label(mesh: Mesh, policy: ParsedPolicy, selector: Selector, key: str) -> bool:
    """Under the settings of the cluster that the selector is about."""
    named = (each.values for each in selector.requirements if each.key == OF_CLUSTER and each.operator == IN)
    clusters = next(named, (policy.key.cluster,))
    held = [mesh.clusters[name].settings.labels for name in clusters if name in mesh.clusters]
    source, _, bare = key.partition(":")
    source = SOURCE_KUBERNETES if source == ANY_SOURCE else source
    return not held or any(label_filter(patterns).takes(bare, source) for patterns in held)


def _of_nodes(policy: str, where: str, selector: Selector, nodes: Sequence[LabelIndex]) -> list[Finding]:
    """What a selector by labels of nodes misses; once for its two forms, about the own node and about others."""
    asked = selector_of(each for each in selector.requirements if each.key.startswith(f"{SOURCE_NODE}:"))
    if not asked.requirements or not nodes:
        return []
    keys = [each.key for each in asked.requirements if not any(each.key in index for index in nodes)]
    found = [Finding(policy, where, f"no node has a label {key}") for key in keys]
    if not any(asked.matches_index(index) for index in nodes):
        found.append(Finding(policy, where, f"selects no node: {asked}"))
    return found


def _group_of(selector: Selector) -> str:
    start = f"{SOURCE_CIDR_GROUP}:{CIDR_GROUP_NAME}"
    return next((each.key.removeprefix(start) for each in selector.requirements if each.key.startswith(start)), "")


def _is_of_endpoints(selector: Selector) -> bool:
    sources = {requirement.key.partition(":")[0] for requirement in selector.requirements}
    return not sources & {*DERIVED_SOURCES, "reserved"}


def _shadowed(policy: ParsedPolicy, cluster: MeshCluster) -> list[Finding]:
    """Allow rules for which a deny rule about the same subject and the same peers or all leaves nothing."""
    denies = [
        (part.name, rule)
        for other in cluster.policies
        for part in other.parts
        if part.of_nodes == policy.of_nodes and set(part.subject.requirements) <= set(policy.subject.requirements)
        for rule in part.rules
        if rule.deny
    ]
    return [
        Finding(policy.name, rule.origin, f"allows nothing: {name} denies all of it at {deny.origin}")
        for rule in policy.rules
        if not rule.deny
        for name, deny in denies
        if deny.direction == rule.direction and _covers(deny, rule)
    ]


def _covers(deny: Rule, rule: Rule) -> bool:
    if deny.peers is not None and (rule.peers is None or rule.services or not set(rule.peers) <= set(deny.peers)):
        return False
    if deny.ports is None:
        return True
    if rule.ports is None or rule.named:
        return False
    return all(
        any(one.protocol == each.protocol and one.first <= each.first and each.last <= one.last for one in deny.ports)
        for each in rule.ports
    )
