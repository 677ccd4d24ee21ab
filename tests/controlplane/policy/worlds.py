"""Small meshes for policy tests: labels, random manifests, and the look-up that the programs do, written once more.

Belongs here: what several policy tests build on. Does not belong here: tests.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import yaml
from hypothesis import strategies as st

from controlplane.fields import Refusal
from controlplane.model import RESERVED_IDENTITIES, Labels
from controlplane.policy.manifests import parse
from controlplane.policy.rules import ParsedPolicy
from controlplane.policy.selection import Selection
from datapath.abi.types import (
    POLICY_INGRESS,
    POLICY_SHAPES,
    POLICY_SUBJECT_ASKS_FACETS,
    POLICY_SUBJECT_ASKS_LOCALHOST,
    POLICY_SUBJECT_AUDIT,
    POLICY_SUBJECT_HAS_FACETS,
    POLICY_VERDICT_ALLOW,
    POLICY_VERDICT_DENY,
)
from datapath.tables import FacetKey, FacetRow, PolicyKey, PolicyRow, PolicySubjectKey, PolicySubjectRow

CLUSTER = "east"
NAMESPACE = "shop"
CLUSTERS = ("east", "west")
NAMESPACES = ("shop", "guest")
APPS = ("front", "cart", "db")
TIERS = ("", "gold", "tin")
ICMP, TCP, UDP, SCTP = 1, 6, 17, 132


def workload_labels(app: str, namespace: str = NAMESPACE, cluster: str = CLUSTER, tier: str = "") -> Labels:
    """The labels of a workload's identity, as an endpoint carries them."""
    labels = [
        f"k8s:app={app}",
        f"k8s:io.kubernetes.pod.namespace={namespace}",
        f"k8s:io.cilium.k8s.policy.cluster={cluster}",
        f"k8s:io.cilium.k8s.namespace.labels.kubernetes.io/metadata.name={namespace}",
        f"k8s:io.cilium.k8s.namespace.labels.team={namespace}-team",
    ]
    return tuple(sorted([*labels, f"k8s:tier={tier}"] if tier else labels))


def reserved(name: str) -> Labels:
    return (f"reserved:{name}",)


MESH: dict[int, Labels] = {number: reserved(name) for name, number in RESERVED_IDENTITIES.items()} | {
    65536 * (1 + CLUSTERS.index(cluster)) + 256 + position: workload_labels(app, namespace, cluster, tier)
    for position, (cluster, namespace, app, tier) in enumerate(
        (cluster, namespace, app, tier)
        for cluster in CLUSTERS
        for namespace in NAMESPACES
        for app in APPS
        for tier in TIERS
    )
}
"""Every identity that these names make, by number."""
WORKLOADS = sorted(number for number in MESH if number >= 256)


def network_policy(spec: str | Mapping[str, Any], name: str = "policy") -> dict[str, Any]:
    content = yaml.safe_load(spec) if isinstance(spec, str) else spec
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": content,
    }


def cilium_policy(spec: str | Mapping[str, Any], name: str = "policy") -> dict[str, Any]:
    content = yaml.safe_load(spec) if isinstance(spec, str) else spec
    return {
        "apiVersion": "cilium.io/v2",
        "kind": "CiliumNetworkPolicy",
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": content,
    }


def parsed(manifest: Mapping[str, Any], cluster: str = CLUSTER) -> ParsedPolicy:
    found = parse(manifest["kind"], dict(manifest), cluster)
    assert isinstance(found, ParsedPolicy), [str(refusal) for refusal in found]
    return found


def refused(manifest: Mapping[str, Any]) -> tuple[Refusal, ...]:
    found = parse(manifest["kind"], dict(manifest), CLUSTER)
    assert isinstance(found, tuple), found
    return found


def selection_of(mesh: Mapping[int, Labels], policies: Sequence[ParsedPolicy]) -> Selection:
    """All identities, and all selectors of the policies' rules."""
    selection = Selection()
    for number, labels in mesh.items():
        selection.put(number, labels)
    for policy in policies:
        for rule in policy.rules:
            for selector in rule.peers or ():
                selection.add(selector)
    return selection


def asked_for(
    subjects: Mapping[PolicySubjectKey, PolicySubjectRow],
    facets: Mapping[FacetKey, FacetRow],
    subject: tuple[int, bytes],
    remote: tuple[int, bytes],
) -> tuple[int, int]:
    """The numbers by which the programs look up rows about two ends, each an identity and an address."""
    numbers = [subject[0], remote[0]]
    found = subjects.get(PolicySubjectKey(subject[0]))
    for place, end, flag in ((0, subject, POLICY_SUBJECT_HAS_FACETS), (1, remote, POLICY_SUBJECT_ASKS_FACETS)):
        if found is not None and found.flags & flag and FacetKey(end[1], end[0]) in facets:
            numbers[place] = facets[FacetKey(end[1], end[0])].facet
    return numbers[0], numbers[1]


def look_up(
    subjects: Mapping[PolicySubjectKey, PolicySubjectRow],
    rows: Mapping[PolicyKey, PolicyRow],
    subject: int,
    remote: int,
    direction: int,
    protocol: int,
    port: int,
) -> bool:
    """What the programs do with the two maps, by the words of abi.h. True: the packet goes on."""
    ingress = direction == POLICY_INGRESS
    is_host = subject == RESERVED_IDENTITIES["host"]
    is_localhost = ingress and not is_host and remote == RESERVED_IDENTITIES["host"]
    found = subjects.get(PolicySubjectKey(subject))
    if found is None:
        return is_localhost or is_host
    if found.flags & POLICY_SUBJECT_AUDIT:
        return True
    is_localhost &= not found.flags & POLICY_SUBJECT_ASKS_LOCALHOST
    enforced = found.ingress_enforced if ingress else found.egress_enforced
    shapes = found.ingress_shapes if ingress else found.egress_shapes
    verdicts = []
    for shape in range(POLICY_SHAPES):
        if shapes & (1 << shape):
            prefix = max(shape - 1, 0)
            masked = (port >> (16 - prefix) << (16 - prefix)) if shape else 0
            for identity in (remote, 0):
                key = PolicyKey(subject, identity, masked, prefix, protocol if shape else 0, direction)
                if key in rows:
                    verdicts.append(rows[key].verdict)
    if POLICY_VERDICT_DENY in verdicts:
        return False
    return is_localhost or POLICY_VERDICT_ALLOW in verdicts or not enforced


# --- random manifests -------------------------------------------------------------------------------------------

_ICMP_TYPES = (0, 8, 9)
_PORTS = st.sampled_from((1, 53, 79, 80, 81, 443, 8080, 8090, 65535))


def _expressions(keys: Mapping[str, Sequence[str]]) -> st.SearchStrategy[dict[str, Any]]:
    def with_values(key: str) -> st.SearchStrategy[dict[str, Any]]:
        listed = st.lists(st.sampled_from(keys[key]), min_size=1, max_size=2)
        valued = st.builds(
            lambda operator, values: {"key": key, "operator": operator, "values": values},
            st.sampled_from(("In", "NotIn")),
            listed,
        )
        bare = st.sampled_from(("Exists", "DoesNotExist")).map(lambda operator: {"key": key, "operator": operator})
        return valued | bare

    return st.sampled_from(sorted(keys)).flatmap(with_values)


def _selectors(keys: Mapping[str, Sequence[str]]) -> st.SearchStrategy[dict[str, Any]]:
    one = st.sampled_from([(key, value) for key in sorted(keys) for value in keys[key]])
    labels = st.lists(one, max_size=2).map(dict)
    return st.fixed_dictionaries(
        {}, optional={"matchLabels": labels, "matchExpressions": st.lists(_expressions(keys), max_size=1)}
    )


_POD_KEYS = {"app": APPS, "tier": ("gold", "tin")}
_NAMESPACE_KEYS = {"team": ("shop-team", "guest-team"), "kubernetes.io/metadata.name": NAMESPACES}
_CILIUM_KEYS = {
    "app": APPS,
    "k8s:app": APPS,
    "any:tier": ("gold", "tin"),
    "k8s:io.kubernetes.pod.namespace": NAMESPACES,
    "io.cilium.k8s.policy.cluster": CLUSTERS,
}


@st.composite
def _kubernetes_ports(draw: st.DrawFn) -> dict[str, Any]:
    port: dict[str, Any] = {}
    if draw(st.booleans()):
        port["protocol"] = draw(st.sampled_from(("TCP", "UDP", "SCTP")))
    if draw(st.booleans()):
        port["port"] = draw(_PORTS)
        if draw(st.booleans()):
            port["endPort"] = draw(st.integers(port["port"], 65535))
    return port


@st.composite
def network_policies(draw: st.DrawFn, name: str = "policy") -> dict[str, Any]:
    """A NetworkPolicy in namespace shop of any accepted form."""
    peers = st.fixed_dictionaries({"podSelector": _selectors(_POD_KEYS)}) | st.fixed_dictionaries(
        {"namespaceSelector": _selectors(_NAMESPACE_KEYS)}, optional={"podSelector": _selectors(_POD_KEYS)}
    )

    def rules(field: str) -> st.SearchStrategy[list[dict[str, Any]]]:
        listed = {field: st.lists(peers, max_size=2), "ports": st.lists(_kubernetes_ports(), max_size=2)}
        return st.lists(st.fixed_dictionaries({}, optional=listed), max_size=2)

    spec = draw(
        st.fixed_dictionaries(
            {"podSelector": _selectors(_POD_KEYS)},
            optional={
                "ingress": rules("from"),
                "egress": rules("to"),
                "policyTypes": st.lists(st.sampled_from(("Ingress", "Egress")), max_size=2, unique=True),
            },
        )
    )
    return network_policy(spec, name)


@st.composite
def _cilium_ports(draw: st.DrawFn) -> dict[str, Any]:
    number = draw(_PORTS | st.just(0))
    port: dict[str, Any] = {"port": str(number)}
    if draw(st.booleans()):
        port["protocol"] = draw(st.sampled_from(("TCP", "UDP", "SCTP", "ANY")))
    if number and draw(st.booleans()):
        port["endPort"] = draw(st.integers(number, 65535))
    return {"ports": [port]}


@st.composite
def cilium_policies(draw: st.DrawFn, name: str = "policy") -> dict[str, Any]:
    """A CiliumNetworkPolicy in namespace shop of any accepted form."""
    entities = st.lists(st.sampled_from(("world", "host", "remote-node", "cluster", "all")), max_size=2)

    def rules(direction: str) -> st.SearchStrategy[list[dict[str, Any]]]:
        ports = {"toPorts": st.lists(_cilium_ports(), max_size=2)}
        endpoints = {f"{direction}Endpoints": st.lists(_selectors(_CILIUM_KEYS), max_size=2)}
        types = st.fixed_dictionaries({"type": st.sampled_from(_ICMP_TYPES)})
        icmps = {"icmps": st.lists(types, min_size=1, max_size=2).map(lambda listed: [{"fields": listed}])}
        by_type = st.fixed_dictionaries(icmps, optional=endpoints)
        by_endpoints = st.fixed_dictionaries({}, optional={**endpoints, **ports})
        by_entities = st.fixed_dictionaries({}, optional={f"{direction}Entities": entities, **ports})
        return st.lists(by_endpoints | by_entities | by_type, max_size=2)

    sections = {
        "ingress": rules("from"),
        "ingressDeny": rules("from"),
        "egress": rules("to"),
        "egressDeny": rules("to"),
        "enableDefaultDeny": st.fixed_dictionaries({}, optional={"ingress": st.booleans(), "egress": st.booleans()}),
    }
    subject = {"endpointSelector": _selectors(_POD_KEYS)}
    return cilium_policy(draw(st.fixed_dictionaries(subject, optional=sections)), name)


@st.composite
def policy_sets(draw: st.DrawFn, most: int = 3) -> list[ParsedPolicy]:
    """Up to `most` policies of both kinds, each of its own name."""
    count = draw(st.integers(0, most))
    return [parsed(draw(network_policies(f"p{n}") | cilium_policies(f"p{n}"))) for n in range(count)]


def flows() -> st.SearchStrategy[tuple[int, int, int, int]]:
    """(subject, remote, protocol, port)."""
    subjects = st.sampled_from([number for number in WORKLOADS if MESH[number] and number < 2 * 65536])
    transports = st.tuples(st.sampled_from((TCP, UDP, SCTP)), _PORTS | st.integers(0, 65535))
    transports |= st.tuples(st.just(ICMP), st.sampled_from(_ICMP_TYPES))
    return st.builds(
        lambda subject, remote, transport: (subject, remote, *transport),
        subjects,
        st.sampled_from(sorted(MESH)),
        transports,
    )
