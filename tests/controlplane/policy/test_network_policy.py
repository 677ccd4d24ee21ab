"""NetworkPolicy: its published meaning case by case, and every refusal.

Sources: [api] Kubernetes API reference, NetworkPolicy v1; [np] "Network Policies" in the Kubernetes concepts;
[cm] Cilium documentation, "Cluster Mesh: network policy" (policy-default-local-cluster).
"""

import pytest

from controlplane.policy.verdict import ALLOW, DENY_DEFAULT, DENY_EXPLICIT, judge_side, policies_of
from datapath.abi.types import POLICY_EGRESS, POLICY_INGRESS
from tests.controlplane.policy.worlds import (
    ICMP,
    SCTP,
    TCP,
    UDP,
    cilium_policy,
    network_policy,
    parsed,
    refused,
    reserved,
    workload_labels,
)

DB = workload_labels("db")
FRONT = workload_labels("front")
CART = workload_labels("cart")
GUEST = workload_labels("front", namespace="guest")
FAR = workload_labels("front", cluster="west")
WORLD = reserved("world")
GOLD = workload_labels("front", tier="gold")
OF_GUESTS = "namespaceSelector: {matchLabels: {team: guest-team}}"
OF_CARTS = "podSelector: {matchLabels: {app: cart}}"

INGRESS_CASES = [
    # spec, remote, protocol, port, verdict, source
    ("podSelector: {}", FRONT, TCP, 80, DENY_DEFAULT, "[np] default deny all ingress; [api] policyTypes default"),
    ("podSelector: {}\ningress: []", FRONT, TCP, 80, DENY_DEFAULT, "[api] ingress empty: isolates only"),
    ("podSelector: {}\ningress: [{}]", FRONT, TCP, 80, ALLOW, "[np] allow all ingress"),
    ("podSelector: {}\ningress: [{}]", WORLD, ICMP, 0, ALLOW, "[np] allow all ingress"),
    ("podSelector: {}\ningress: [{from: []}]", WORLD, UDP, 53, ALLOW, "[api] from empty: all sources"),
    ("podSelector: {}\ningress: [{from: null}]", WORLD, UDP, 53, ALLOW, "[api] from missing: all sources"),
    ("podSelector: {matchLabels: {app: db}}", FRONT, TCP, 80, DENY_DEFAULT, "[api] podSelector"),
    ("podSelector: {matchLabels: {app: cart}}", FRONT, TCP, 80, ALLOW, "[np] non-isolated by default"),
    ("policyTypes: [Ingress]", FRONT, TCP, 80, DENY_DEFAULT, "[api] podSelector absent: all pods of the namespace"),
    ("podSelector: {}\npolicyTypes: [Egress]", FRONT, TCP, 80, ALLOW, "[api] policyTypes names egress only"),
    ("podSelector: {}\npolicyTypes: []", FRONT, TCP, 80, DENY_DEFAULT, "[api] policyTypes empty is the default"),
    ("ingress: [{from: [{podSelector: {}}]}]", CART, TCP, 1, ALLOW, "[api] podSelector: pods of own namespace"),
    ("ingress: [{from: [{podSelector: {}}]}]", GUEST, TCP, 1, DENY_DEFAULT, "[api] podSelector: own namespace"),
    ("ingress: [{from: [{podSelector: {}}]}]", FAR, TCP, 1, DENY_DEFAULT, "[cm] own cluster by default"),
    ("ingress: [{from: [{podSelector: {}}]}]", WORLD, TCP, 1, DENY_DEFAULT, "[api] a selector selects pods"),
    ("ingress: [{from: [{namespaceSelector: {}}]}]", GUEST, TCP, 1, ALLOW, "[api] empty selects all namespaces"),
    ("ingress: [{from: [{namespaceSelector: {}}]}]", WORLD, TCP, 1, DENY_DEFAULT, "[api] all namespaces: pods"),
    ("ingress: [{from: [{namespaceSelector: {}}]}]", FAR, TCP, 1, DENY_DEFAULT, "[cm] own cluster by default"),
    ("ingress: [{from: [{namespaceSelector: {matchLabels: {team: guest-team}}}]}]", GUEST, TCP, 1, ALLOW, "[np]"),
    ("ingress: [{from: [{namespaceSelector: {matchLabels: {team: guest-team}}}]}]", FRONT, TCP, 1, DENY_DEFAULT, ""),
    (
        "ingress: [{from: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: guest}}}]}]",
        GUEST, TCP, 1, ALLOW, "[np] targeting a namespace by its name",
    ),
    (
        f"ingress: [{{from: [{{{OF_GUESTS}, {OF_CARTS}}}]}}]",
        GUEST, TCP, 1, DENY_DEFAULT, "[np] both in one entry: and",
    ),
    (
        f"ingress: [{{from: [{{{OF_GUESTS}}}, {{{OF_CARTS}}}]}}]",
        GUEST, TCP, 1, ALLOW, "[np] two entries: or",
    ),
    (
        "ingress: [{from: [{podSelector: {matchExpressions: [{key: tier, operator: Exists}]}}]}]",
        GOLD, TCP, 1, ALLOW, "[api] matchExpressions",
    ),
    (
        "ingress: [{from: [{podSelector: {matchExpressions: [{key: tier, operator: NotIn, values: [gold]}]}}]}]",
        FRONT, TCP, 1, ALLOW, "[api] NotIn holds where the key is absent",
    ),
    ("ingress: [{ports: [{port: 80}]}]", WORLD, TCP, 80, ALLOW, "[api] protocol defaults to TCP"),
    ("ingress: [{ports: [{port: 80}]}]", WORLD, UDP, 80, DENY_DEFAULT, "[api] protocol defaults to TCP"),
    ("ingress: [{ports: [{port: 80}]}]", WORLD, TCP, 81, DENY_DEFAULT, "[api] port"),
    ("ingress: [{ports: [{port: 80}]}]", WORLD, ICMP, 0, DENY_DEFAULT, "[api] a port is of a protocol"),
    ("ingress: [{ports: [{protocol: UDP}]}]", WORLD, UDP, 9, ALLOW, "[api] port absent: all ports"),
    ("ingress: [{ports: [{protocol: UDP}]}]", WORLD, TCP, 9, DENY_DEFAULT, "[api] port absent: of that protocol"),
    ("ingress: [{ports: [{protocol: SCTP, port: 7}]}]", WORLD, SCTP, 7, ALLOW, "[np] SCTP support"),
    ("ingress: [{ports: []}]", WORLD, ICMP, 0, ALLOW, "[api] ports empty: all ports"),
    ("ingress: [{ports: [{port: 80, endPort: 90}]}]", WORLD, TCP, 80, ALLOW, "[np] a range of ports"),
    ("ingress: [{ports: [{port: 80, endPort: 90}]}]", WORLD, TCP, 90, ALLOW, "[np] a range includes its end"),
    ("ingress: [{ports: [{port: 80, endPort: 90}]}]", WORLD, TCP, 91, DENY_DEFAULT, "[np] a range of ports"),
    ("policyTypes: [Egress]\ningress: [{}]", FRONT, TCP, 80, ALLOW, "[api] ingress is not enforced"),
]  # fmt: skip


@pytest.mark.parametrize(("spec", "remote", "protocol", "port", "verdict", "source"), INGRESS_CASES)
def test_ingress(spec: str, remote: tuple[str, ...], protocol: int, port: int, verdict: str, source: str) -> None:
    """What the source says, for a flow to pod db of the policy's namespace."""
    policies = policies_of(DB, [parsed(network_policy(spec))])
    assert judge_side(POLICY_INGRESS, policies, remote, protocol, port).verdict == verdict, source


EGRESS_CASES = [
    (
        "podSelector: {}",
        FRONT,
        TCP,
        80,
        ALLOW,
        "[api] policyTypes default: no egress rule, no egress isolation",
    ),
    ("podSelector: {}\negress: []", FRONT, TCP, 80, ALLOW, "[api] an empty egress list does not add Egress"),
    ("podSelector: {}\negress: [{}]", WORLD, TCP, 80, ALLOW, "[np] allow all egress"),
    ("podSelector: {}\npolicyTypes: [Egress]", WORLD, TCP, 80, DENY_DEFAULT, "[np] default deny all egress"),
    ("podSelector: {}\npolicyTypes: [Ingress, Egress]", FRONT, UDP, 53, DENY_DEFAULT, "[np] deny all"),
    ("egress: [{to: [{podSelector: {matchLabels: {app: front}}}]}]", FRONT, TCP, 80, ALLOW, "[np]"),
    (
        "egress: [{to: [{podSelector: {matchLabels: {app: front}}}]}]",
        CART,
        TCP,
        80,
        DENY_DEFAULT,
        "[api] egress",
    ),
    ("egress: [{to: [{podSelector: {matchLabels: {app: front}}}]}]", WORLD, TCP, 80, DENY_DEFAULT, "[api]"),
    ("egress: [{ports: [{port: 53, protocol: UDP}]}]", WORLD, UDP, 53, ALLOW, "[api] to missing: everywhere"),
    ("policyTypes: [Ingress]\negress: [{ports: [{port: 53}]}]", WORLD, TCP, 80, ALLOW, "[api] not enforced"),
]


@pytest.mark.parametrize(("spec", "remote", "protocol", "port", "verdict", "source"), EGRESS_CASES)
def test_egress(spec: str, remote: tuple[str, ...], protocol: int, port: int, verdict: str, source: str) -> None:
    """What the source says, for a flow from pod db of the policy's namespace."""
    policies = policies_of(DB, [parsed(network_policy(spec))])
    assert judge_side(POLICY_EGRESS, policies, remote, protocol, port).verdict == verdict, source


def test_a_policy_is_about_its_own_namespace_and_cluster() -> None:
    """The empty podSelector selects no pod of another namespace, nor of the namespace's twin in another cluster."""
    policy = parsed(network_policy("podSelector: {}"))
    assert policies_of(DB, [policy]) == [policy]
    assert policies_of(workload_labels("db", namespace="guest"), [policy]) == []
    assert policies_of(workload_labels("db", cluster="west"), [policy]) == []


def test_rules_of_several_policies_add_up() -> None:
    """[np] policies do not conflict, they are additive."""
    first = parsed(network_policy("ingress: [{ports: [{port: 80}]}]", "a"))
    second = parsed(network_policy("ingress: [{ports: [{port: 81}]}]", "b"))
    for port, verdict in ((80, ALLOW), (81, ALLOW), (82, DENY_DEFAULT)):
        assert judge_side(POLICY_INGRESS, [first, second], WORLD, TCP, port).verdict == verdict


def test_the_own_host_comes_in() -> None:
    """[np] traffic from the node where a pod runs is always allowed; to another node's host it is not special."""
    policy = parsed(network_policy("podSelector: {}"))
    assert judge_side(POLICY_INGRESS, [policy], reserved("host"), TCP, 80).verdict == ALLOW
    assert judge_side(POLICY_INGRESS, [policy], reserved("remote-node"), TCP, 80).verdict == DENY_DEFAULT


@pytest.mark.parametrize(
    ("rule", "verdict"),
    [
        ("{fromEntities: [host]}", DENY_EXPLICIT),
        ("{fromEntities: [all]}", DENY_EXPLICIT),
        ("{toPorts: [{ports: [{port: '80'}]}]}", DENY_EXPLICIT),
        ("{fromEntities: [host], toPorts: [{ports: [{port: '81'}]}]}", ALLOW),
        ("{fromEntities: [world]}", ALLOW),
    ],
)
def test_a_deny_rule_keeps_the_own_host_out(rule: str, verdict: str) -> None:
    """[l3] the host comes in by default; an explicit deny wins over that as over every allow rule."""
    policy = parsed(cilium_policy(f"endpointSelector: {{}}\ningressDeny: [{rule}]"))
    assert judge_side(POLICY_INGRESS, [policy], reserved("host"), TCP, 80).verdict == verdict


REFUSALS = [
    ("podSelecto: {}", "spec.podSelecto", "did you mean podSelector?"),
    ("podSelector: []", "spec.podSelector", "must be a mapping"),
    (
        "podSelector: {matchLabels: {app: 1}}",
        "spec.podSelector.matchLabels[app]",
        "must be text; write it in quotes",
    ),
    (
        "podSelector: {matchLabels: {'k8s:app': a}}",
        "spec.podSelector.matchLabels[k8s:app]",
        "must be a label key",
    ),
    (
        "podSelector: {matchLabels: {app: 'a b'}}",
        "spec.podSelector.matchLabels[app]",
        "must be a label value",
    ),
    (
        "podSelector: {matchExpressions: [{key: a, operator: Equals}]}",
        "spec.podSelector.matchExpressions[0].operator",
        "must be one of In, NotIn, Exists, DoesNotExist",
    ),
    (
        "podSelector: {matchExpressions: [{key: a}]}",
        "spec.podSelector.matchExpressions[0].operator",
        "is required",
    ),
    (
        "podSelector: {matchExpressions: [{operator: Exists}]}",
        "spec.podSelector.matchExpressions[0].key",
        "is required",
    ),
    (
        "podSelector: {matchExpressions: [{key: a, operator: In}]}",
        "spec.podSelector.matchExpressions[0].values",
        "needs at least one value",
    ),
    (
        "podSelector: {matchExpressions: [{key: a, operator: Exists, values: [b]}]}",
        "spec.podSelector.matchExpressions[0].values",
        "takes no values",
    ),
    ("policyTypes: [ingress]", "spec.policyTypes[0]", "must be one of Ingress, Egress"),
    ("policyTypes: Ingress", "spec.policyTypes", "must be a list"),
    ("ingress: {}", "spec.ingress", "must be a list"),
    ("ingress: [{to: []}]", "spec.ingress[0].to", "known here: from, ports"),
    ("ingress: [{from: [{}]}]", "spec.ingress[0].from[0]", "needs podSelector, namespaceSelector or both; or ipBlock"),
    ("ingress: [{from: [{ipBlock: {}}]}]", "spec.ingress[0].from[0].ipBlock.cidr", "is required"),
    ("egress: [{to: [{ipBlock: {cidr: 10.0.0.1}}]}]", "spec.egress[0].to[0].ipBlock.cidr", "must be a prefix"),
    (
        "egress: [{to: [{ipBlock: {cidr: 10.0.0.0/8, except: [11.0.0.0/8]}}]}]",
        "spec.egress[0].to[0].ipBlock.except[0]",
        "must be inside 10.0.0.0/8",
    ),
    (
        "egress: [{to: [{ipBlock: {cidr: 10.0.0.0/8}, podSelector: {}}]}]",
        "spec.egress[0].to[0].ipBlock",
        "cannot be combined with selectors",
    ),
    (
        "ingress: [{from: [{namespaceSelectors: {}}]}]",
        "spec.ingress[0].from[0].namespaceSelectors",
        "did you mean namespaceSelector?",
    ),
    (
        "ingress: [{ports: [{port: h_t}]}]",
        "spec.ingress[0].ports[0].port",
        "must be a number, or a name of a-z",
    ),
    ("ingress: [{ports: [{port: 0}]}]", "spec.ingress[0].ports[0].port", "from 1 to 65535"),
    ("ingress: [{ports: [{port: 70000}]}]", "spec.ingress[0].ports[0].port", "from 0 to 65535"),
    ("ingress: [{ports: [{port: true}]}]", "spec.ingress[0].ports[0].port", "must be a number"),
    ("ingress: [{ports: [{endPort: 90}]}]", "spec.ingress[0].ports[0].endPort", "needs a port"),
    (
        "ingress: [{ports: [{port: 90, endPort: 80}]}]",
        "spec.ingress[0].ports[0].endPort",
        "must not be below",
    ),
    ("ingress: [{ports: [{protocol: ICMP}]}]", "spec.ingress[0].ports[0].protocol", "one of TCP, UDP, SCTP"),
    (
        "ingress: [{ports: [{prot: TCP}]}]",
        "spec.ingress[0].ports[0].prot",
        "unknown field; did you mean port",
    ),
]


@pytest.mark.parametrize(("spec", "field", "reason"), REFUSALS)
def test_refusal(spec: str, field: str, reason: str) -> None:
    """What is not understood is refused: the field, and what would be right."""
    (refusal,) = refused(network_policy(spec))
    assert refusal.field == field
    assert reason in refusal.reason


def test_all_refusals_are_told_at_once() -> None:
    """One attempt shows everything that is wrong."""
    fields = [refusal.field for refusal in refused(network_policy("{a: 1, ingress: [{b: 1}, {from: 2}]}"))]
    assert fields == ["spec.a", "spec.ingress[0].b", "spec.ingress[1].from"]


def test_origin_names_the_rule() -> None:
    """A rule says where in its manifest it stands, for those who ask why."""
    policy = parsed(network_policy("{ingress: [{}, {}], egress: [{}]}"))
    assert [rule.origin for rule in policy.rules] == ["spec.ingress[0]", "spec.ingress[1]", "spec.egress[0]"]
    assert policy.name == "NetworkPolicy/shop/policy"
