"""CiliumNetworkPolicy: its published meaning case by case, and every refusal.

Sources, in Cilium's documentation 1.19: [l3] "Layer 3 Policies", [l4] "Layer 4 Policies", [deny] "Deny Policies",
[intro] "Policy Enforcement Modes" and "Rule Basics", [k8s] "Using Kubernetes Constructs In Policy",
[cm] "Cluster Mesh: network policy". In its sources: [parse] pkg/policy/utils/parse.go (an empty list of peers),
[repo] pkg/policy/repository.go (who enforces), [valid] pkg/policy/api/rule_validation.go.
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
FAR_GUEST = workload_labels("front", namespace="guest", cluster="west")
WORLD = reserved("world")
REMOTE_NODE = reserved("remote-node")
IN_GUEST = "{matchLabels: {'k8s:io.kubernetes.pod.namespace': guest}}"
ANY_NAMESPACE = "{matchExpressions: [{key: 'k8s:io.kubernetes.pod.namespace', operator: Exists}]}"
IN_WEST = "{matchLabels: {io.cilium.k8s.policy.cluster: west}}"
OF_TEAM = "{matchLabels: {'k8s:io.cilium.k8s.namespace.labels.team': guest-team}}"

INGRESS_CASES = [
    # spec without endpointSelector, remote, protocol, port, verdict, source
    ("", FRONT, TCP, 80, ALLOW, "[intro] no section: no effect"),
    ("ingress: []", FRONT, TCP, 80, ALLOW, "[intro] a section without a rule does not enforce"),
    ("ingress: [{}]", FRONT, TCP, 80, DENY_DEFAULT, "[l3] ingress default deny by an empty rule"),
    ("ingress: [{fromEndpoints: []}]", FRONT, TCP, 80, DENY_DEFAULT, "[l3] an empty list selects no endpoint"),
    (
        "ingress: [{fromEndpoints: [], toPorts: [{ports: [{port: '80'}]}]}]",
        FRONT, TCP, 80, DENY_DEFAULT, "[l3] an empty list selects no endpoint",
    ),
    ("ingress: [{fromEndpoints: [{}]}]", CART, ICMP, 0, ALLOW, "[l3] {} is every endpoint of the namespace"),
    ("ingress: [{fromEndpoints: [{}]}]", GUEST, TCP, 80, DENY_DEFAULT, "[k8s] without namespace: the policy's"),
    ("ingress: [{fromEndpoints: [{}]}]", WORLD, TCP, 80, DENY_DEFAULT, "[l3] endpoints, not the world"),
    ("ingress: [{fromEndpoints: [{}]}]", FAR, TCP, 80, DENY_DEFAULT, "[cm] own cluster by default"),
    (f"ingress: [{{fromEndpoints: [{IN_GUEST}]}}]", GUEST, TCP, 80, ALLOW, "[k8s] another namespace by its label"),
    (f"ingress: [{{fromEndpoints: [{IN_GUEST}]}}]", FRONT, TCP, 80, DENY_DEFAULT, "[k8s] that namespace only"),
    (f"ingress: [{{fromEndpoints: [{ANY_NAMESPACE}]}}]", GUEST, TCP, 80, ALLOW, "[k8s] every namespace"),
    (f"ingress: [{{fromEndpoints: [{ANY_NAMESPACE}]}}]", WORLD, TCP, 80, DENY_DEFAULT, "[k8s] pods only"),
    (f"ingress: [{{fromEndpoints: [{OF_TEAM}]}}]", GUEST, TCP, 80, ALLOW, "[k8s] namespaces by their labels"),
    (f"ingress: [{{fromEndpoints: [{OF_TEAM}]}}]", FRONT, TCP, 80, DENY_DEFAULT, "[k8s] namespaces by labels"),
    (f"ingress: [{{fromEndpoints: [{IN_WEST}]}}]", FAR, TCP, 80, ALLOW, "[cm] another cluster by its label"),
    (f"ingress: [{{fromEndpoints: [{IN_WEST}]}}]", FRONT, TCP, 80, DENY_DEFAULT, "[cm] that cluster only"),
    (f"ingress: [{{fromEndpoints: [{IN_WEST}]}}]", FAR_GUEST, TCP, 80, DENY_DEFAULT, "[k8s] the policy's namespace"),
    ("ingress: [{fromEndpoints: [{matchLabels: {'k8s:app': front}}]}]", FRONT, TCP, 80, ALLOW, "[l3] with source"),
    ("ingress: [{fromEndpoints: [{matchLabels: {'any:app': front}}]}]", FRONT, TCP, 80, ALLOW, "[l3] any source"),
    ("ingress: [{fromEndpoints: [{matchLabels: {app: front}}]}]", FRONT, TCP, 80, ALLOW, "[l3] plain: any source"),
    (
        "ingress: [{fromEndpoints: [{matchLabels: {'container:app': front}}]}]",
        FRONT, TCP, 80, DENY_DEFAULT, "[l3] another source",
    ),
    (
        "ingress: [{fromEndpoints: [{matchLabels: {'reserved:remote-node': ''}}]}]",
        REMOTE_NODE, TCP, 80, ALLOW, "[l3] reserved labels take no namespace",
    ),
    ("ingress: [{fromEntities: [all]}]", WORLD, ICMP, 0, ALLOW, "[l3] entity all"),
    ("ingress: [{fromEntities: [world]}]", WORLD, TCP, 80, ALLOW, "[l3] entity world"),
    ("ingress: [{fromEntities: [world]}]", FRONT, TCP, 80, DENY_DEFAULT, "[l3] entity world is outside"),
    ("ingress: [{fromEntities: [remote-node]}]", REMOTE_NODE, TCP, 80, ALLOW, "[l3] entity remote-node"),
    ("ingress: [{fromEntities: [cluster]}]", GUEST, TCP, 80, ALLOW, "[l3] entity cluster: all its endpoints"),
    ("ingress: [{fromEntities: [cluster]}]", REMOTE_NODE, TCP, 80, ALLOW, "[l3] entity cluster: nodes too"),
    ("ingress: [{fromEntities: [cluster]}]", reserved("health"), TCP, 80, ALLOW, "[l3] entity cluster: health"),
    ("ingress: [{fromEntities: [cluster]}]", WORLD, TCP, 80, DENY_DEFAULT, "[l3] entity cluster: not the world"),
    ("ingress: [{fromEntities: [cluster]}]", FAR, TCP, 80, DENY_DEFAULT, "[l3] entity cluster: the local one"),
    ("ingress: [{fromEntities: [world, cluster]}]", GUEST, TCP, 80, ALLOW, "[l3] a list is a union"),
    ("ingress: [{toPorts: [{ports: [{port: '80'}]}]}]", WORLD, TCP, 80, ALLOW, "[l4] ports without peers: any"),
    ("ingress: [{toPorts: [{ports: [{port: '80'}]}]}]", WORLD, UDP, 80, ALLOW, "[l4] protocol defaults to ANY"),
    ("ingress: [{toPorts: [{ports: [{port: '80'}]}]}]", WORLD, SCTP, 80, ALLOW, "[l4] ANY: TCP, UDP and SCTP"),
    ("ingress: [{toPorts: [{ports: [{port: '80'}]}]}]", WORLD, ICMP, 0, DENY_DEFAULT, "[l4] ANY is not ICMP"),
    (
        "ingress: [{toPorts: [{ports: [{port: '80', protocol: TCP}]}]}]",
        WORLD, UDP, 80, DENY_DEFAULT, "[l4] protocol",
    ),
    (
        "ingress: [{toPorts: [{ports: [{port: '0', protocol: TCP}]}]}]",
        WORLD, TCP, 9999, ALLOW, "[l4] port 0 is every port of the protocol",
    ),
    (
        "ingress: [{toPorts: [{ports: [{port: '80', endPort: 90, protocol: TCP}]}]}]",
        WORLD, TCP, 85, ALLOW, "[l4] endPort",
    ),
    (
        "ingress: [{fromEndpoints: [{matchLabels: {app: front}}], toPorts: [{ports: [{port: '80'}]}]}]",
        CART, TCP, 80, DENY_DEFAULT, "[l4] peers and ports of a rule: and",
    ),
    (
        "ingress: [{fromEndpoints: [{matchLabels: {app: front}}]}, {toPorts: [{ports: [{port: '80'}]}]}]",
        CART, TCP, 80, ALLOW, "[intro] rules: or",
    ),
    (
        "ingress: [{fromEntities: [all]}]\ningressDeny: [{fromEndpoints: [{matchLabels: {app: front}}]}]",
        FRONT, TCP, 80, DENY_EXPLICIT, "[deny] deny wins over allow",
    ),
    (
        "ingress: [{fromEntities: [all]}]\ningressDeny: [{fromEndpoints: [{matchLabels: {app: front}}]}]",
        CART, TCP, 80, ALLOW, "[deny] what is not denied",
    ),
    ("ingressDeny: [{fromEntities: [world]}]", FRONT, TCP, 80, DENY_DEFAULT, "[deny] a deny section enforces too"),
    ("ingressDeny: [{}]", FRONT, TCP, 80, DENY_DEFAULT, "[deny] an empty deny rule enforces and denies none"),
    (
        "ingress: [{fromEntities: [all]}]\ningressDeny: [{toPorts: [{ports: [{port: '80'}]}]}]",
        FRONT, UDP, 80, DENY_EXPLICIT, "[deny] deny by port from anywhere",
    ),
    (
        "ingressDeny: [{fromEntities: [world]}]\nenableDefaultDeny: {ingress: false}",
        FRONT, TCP, 80, ALLOW, "[intro] enableDefaultDeny false",
    ),
    (
        "ingressDeny: [{fromEntities: [world]}]\nenableDefaultDeny: {ingress: false}",
        WORLD, TCP, 80, DENY_EXPLICIT, "[intro] enableDefaultDeny false: deny rules hold",
    ),
    (
        "enableDefaultDeny: {ingress: true}",
        FRONT, TCP, 80, ALLOW, "[repo] enableDefaultDeny counts where the direction has a rule",
    ),
    (
        "ingress: [{fromEndpoints: [], fromEntities: [all]}]",
        WORLD, TCP, 80, DENY_DEFAULT, "[parse] one empty list of peers: nobody",
    ),
    ("egress: [{}]", FRONT, TCP, 80, ALLOW, "[intro] directions are independent"),
    ("ingress: [{fromEntities: [host]}]", reserved("host"), TCP, 80, ALLOW, "[l3] entity host"),
    ("ingress: [{}]", reserved("host"), TCP, 80, ALLOW, "[intro] the local host is always let in"),
]  # fmt: skip


@pytest.mark.parametrize(("spec", "remote", "protocol", "port", "verdict", "source"), INGRESS_CASES)
def test_ingress(spec: str, remote: tuple[str, ...], protocol: int, port: int, verdict: str, source: str) -> None:
    """What the source says, for a flow to endpoint db of the policy's namespace."""
    policies = policies_of(DB, [parsed(cilium_policy(f"endpointSelector: {{}}\n{spec}"))])
    assert judge_side(POLICY_INGRESS, policies, remote, protocol, port).verdict == verdict, source


EGRESS_CASES = [
    ("egress: [{}]", FRONT, TCP, 80, DENY_DEFAULT, "[l3] egress default deny by an empty rule"),
    ("egress: [{toEndpoints: [{}]}]", FRONT, TCP, 80, ALLOW, "[l3] {} is every endpoint of the namespace"),
    ("egress: [{toEndpoints: [{}]}]", GUEST, TCP, 80, DENY_DEFAULT, "[k8s] the policy's namespace"),
    (f"egress: [{{toEndpoints: [{IN_WEST}]}}]", FAR, TCP, 80, ALLOW, "[cm] another cluster by its label"),
    ("egress: [{toEntities: [world]}]", WORLD, TCP, 443, ALLOW, "[l3] entity world"),
    ("egress: [{toEntities: [host]}]", reserved("host"), TCP, 443, ALLOW, "[l3] entity host"),
    (
        "egress: [{toEndpoints: [{}]}]",
        reserved("host"),
        TCP,
        443,
        DENY_DEFAULT,
        "[l3] the host is no exception here",
    ),
    ("egress: [{toPorts: [{ports: [{port: '53', protocol: UDP}]}]}]", WORLD, UDP, 53, ALLOW, "[l4]"),
    (
        "egressDeny: [{toEntities: [world]}]\negress: [{toEntities: [all]}]",
        WORLD,
        TCP,
        1,
        DENY_EXPLICIT,
        "[deny]",
    ),
    ("egressDeny: [{toEntities: [world]}]\negress: [{toEntities: [all]}]", FRONT, TCP, 1, ALLOW, "[deny]"),
    ("enableDefaultDeny: {egress: false}\negress: [{}]", FRONT, TCP, 1, ALLOW, "[intro] enableDefaultDeny"),
    ("ingress: [{}]", FRONT, TCP, 1, ALLOW, "[intro] directions are independent"),
]


@pytest.mark.parametrize(("spec", "remote", "protocol", "port", "verdict", "source"), EGRESS_CASES)
def test_egress(spec: str, remote: tuple[str, ...], protocol: int, port: int, verdict: str, source: str) -> None:
    """What the source says, for a flow from endpoint db of the policy's namespace."""
    policies = policies_of(DB, [parsed(cilium_policy(f"endpointSelector: {{}}\n{spec}"))])
    assert judge_side(POLICY_EGRESS, policies, remote, protocol, port).verdict == verdict, source


def test_a_policy_is_about_its_own_namespace_and_cluster() -> None:
    """[k8s] endpointSelector selects in the policy's namespace only."""
    policy = parsed(cilium_policy("{endpointSelector: {}, ingress: [{}]}"))
    assert policies_of(DB, [policy]) == [policy]
    assert policies_of(workload_labels("db", namespace="guest"), [policy]) == []
    assert policies_of(workload_labels("db", cluster="west"), [policy]) == []


def test_notes_of_the_author_are_accepted() -> None:
    """description, labels and log say nothing about packets."""
    notes = "description: why, labels: [{key: a}], log: {value: b}"
    noted = cilium_policy(f"{{endpointSelector: {{}}, {notes}, ingress: [{{}}]}}")
    assert parsed(noted) == parsed(cilium_policy("{endpointSelector: {}, ingress: [{}]}"))


PORT = "spec.ingress[0].toPorts[0].ports[0]"
REFUSALS = [
    ("ingress: [{}]", "spec.endpointSelector", "is required"),
    ("nodeSelector: {}", "spec.nodeSelector", "host policy is clusterwide"),
    ("endpointSelector: {}\nlog: {level: a}", "spec.log.level", "unknown field"),
    ("endpointSelector: {}\ningres: []", "spec.ingres", "did you mean ingress?"),
    ("endpointSelector: {}\ndescription: 1", "spec.description", "must be text"),
    ("endpointSelector: {}\ningress: [{toPort: 1}]", "spec.ingress[0].toPort", "did you mean toPorts?"),
    (
        "endpointSelector: {}\ningress: [{toEndpoints: [{}]}]",
        "spec.ingress[0].toEndpoints",
        "mean fromEndpoints?",
    ),
    (
        "endpointSelector: {matchLabels: {'k8s:io.kubernetes.pod.namespace': guest}}",
        "spec.endpointSelector",
        "its own namespace only: shop",
    ),
    (
        "endpointSelector: {matchLabels: {'reserved:host': ''}}",
        "spec.endpointSelector",
        "no reserved identity",
    ),
    (
        "endpointSelector: {matchLabels: {':app': a}}",
        "spec.endpointSelector.matchLabels[:app]",
        "must name the label's source",
    ),
    (
        "endpointSelector: {}\nenableDefaultDeny: {ingress: 'yes'}",
        "spec.enableDefaultDeny.ingress",
        "true or false",
    ),
    ("endpointSelector: {}\nenableDefaultDeny: {all: true}", "spec.enableDefaultDeny.all", "unknown field"),
    (
        "endpointSelector: {}\ningress: [{fromEntities: [moon]}]",
        "spec.ingress[0].fromEntities[0]",
        "one of all, world",
    ),
    (
        "endpointSelector: {}\ningress: [{fromEntities: [world], fromEndpoints: [{}]}]",
        "spec.ingress[0].fromEntities",
        "cannot be combined with fromEndpoints",
    ),
    (
        "endpointSelector: {}\ningress: [{fromEndpoints: [null]}]",
        "spec.ingress[0].fromEndpoints[0]",
        "a selector",
    ),
    (
        "endpointSelector: {}\ningress: [{toPorts: [{}]}]",
        "spec.ingress[0].toPorts[0].ports",
        "at least one port",
    ),
    ("endpointSelector: {}\ningress: [{toPorts: [{ports: [{port: 80}]}]}]", f"{PORT}.port", "in quotes"),
    ("endpointSelector: {}\ningress: [{toPorts: [{ports: [{port: h_t}]}]}]", f"{PORT}.port", "a name of a-z"),
    (
        "endpointSelector: {}\ningress: [{toPorts: [{ports: [{port: '70000'}]}]}]",
        f"{PORT}.port",
        "0 to 65535",
    ),
    (
        "endpointSelector: {}\ningress: [{toPorts: [{ports: [{protocol: TCP}]}]}]",
        f"{PORT}.port",
        "is required",
    ),
    (
        "endpointSelector: {}\ningress: [{toPorts: [{ports: [{port: '9', protocol: ICMP}]}]}]",
        f"{PORT}.protocol",
        "must be TCP, UDP, SCTP or ANY; for ICMP use icmps",
    ),
    (
        "endpointSelector: {}\ningress: [{toPorts: [{ports: [{port: '90', endPort: 80}]}]}]",
        f"{PORT}.endPort",
        "must not be below the port 90",
    ),
    (
        "endpointSelector: {}\ningressDeny: [{toPorts: [{ports: [{port: '1'}], rules: {}}]}]",
        "spec.ingressDeny[0].toPorts[0].rules",
        "unknown field",
    ),
]
CIDR = "must be a prefix such as 10.0.0.0/8"
REFUSED_PEERS = [
    ("ingress: [{fromCIDR: [a]}]", "ingress[0].fromCIDR[0]", CIDR),
    ("ingress: [{fromCIDR: [10.0.0.0/33]}]", "ingress[0].fromCIDR[0]", CIDR),
    ("ingress: [{fromCIDRSet: [{cidr: 10.0.0.1}]}]", "ingress[0].fromCIDRSet[0].cidr", CIDR),
    ("ingress: [{fromCIDRSet: [{}]}]", "ingress[0].fromCIDRSet[0]", "needs exactly one of cidr, cidrGroupRef"),
    ("ingress: [{fromCIDRSet: [{cidr: 10.0.0.0/8, cidrGroupRef: a}]}]", "ingress[0].fromCIDRSet[0]", "exactly one"),
    (
        "ingress: [{fromCIDRSet: [{cidr: 10.0.0.0/8, except: [11.0.0.0/8]}]}]",
        "ingress[0].fromCIDRSet[0].except[0]",
        "must be inside 10.0.0.0/8",
    ),
    ("ingress: [{fromRequires: [{}]}]", "ingress[0].fromRequires", "no longer part of Cilium"),
    ("egress: [{toRequires: [{}]}]", "egress[0].toRequires", "no longer part of Cilium"),
    ("ingress: [{fromGroups: [{}]}]", "ingress[0].fromGroups", "cloud provider"),
    ("ingressDeny: [{fromGroups: [{}]}]", "ingressDeny[0].fromGroups", "cloud provider"),
    ("ingress: [{fromNodes: [{}]}]", "ingress[0].fromNodes[0]", "enable-node-selector-labels"),
    ("egress: [{toFQDNs: [{matchName: a b}]}]", "egress[0].toFQDNs[0].matchName", "must be a DNS name"),
    ("egress: [{toFQDNs: [{}]}]", "egress[0].toFQDNs[0]", "exactly one of matchName, matchPattern"),
    ("egressDeny: [{toFQDNs: [{matchName: a}]}]", "egressDeny[0].toFQDNs", "a deny rule cannot name DNS names"),
    ("ingress: [{toFQDNs: [{matchName: a}]}]", "ingress[0].toFQDNs", "unknown field"),
    ("egress: [{toServices: [{}]}]", "egress[0].toServices[0]", "exactly one of k8sService"),
    ("egress: [{toServices: [{k8sService: {}}]}]", "egress[0].toServices[0].k8sService.serviceName", "is required"),
    ("egress: [{toCIDR: [10.0.0.0/8], toEntities: [world]}]", "egress[0].toCIDR", "cannot be combined with toEntities"),
    ("ingress: [{icmps: [{}]}]", "ingress[0].icmps[0].fields", "needs 1 to 40 types"),
    ("ingress: [{icmps: [{fields: [{type: 256}]}]}]", "ingress[0].icmps[0].fields[0].type", "from 0 to 255"),
    ("ingress: [{icmps: [{fields: [{type: Ping}]}]}]", "ingress[0].icmps[0].fields[0].type", "must be one of EchoReply"),
    ("ingress: [{authentication: {mode: required}}]", "ingress[0].authentication.mode", "is not supported"),
]
HTTP = "toPorts: [{{ports: [{{port: '80', protocol: TCP}}], {}}}]"
REFUSED_PORTS = [
    (HTTP.format("listener: {}"), "toPorts[0].listener", "not supported"),
    (HTTP.format("terminatingTLS: {}"), "toPorts[0].terminatingTLS", "not supported"),
    (HTTP.format("originatingTLS: {}"), "toPorts[0].originatingTLS", "not supported"),
    (HTTP.format("rules: {l7proto: a}"), "toPorts[0].rules.l7proto", "not supported"),
    (HTTP.format("rules: {http: [{path: '('}]}"), "toPorts[0].rules.http[0].path", "regular expression"),
    (HTTP.format("rules: {http: [{verb: GET}]}"), "toPorts[0].rules.http[0].verb", "unknown field"),
    (HTTP.format("rules: {http: [{}], kafka: [{}]}"), "toPorts[0].rules.kafka", "cannot stand beside http"),
    (HTTP.format("rules: {kafka: [{role: read}]}"), "toPorts[0].rules.kafka[0].role", "produce, consume"),
    (HTTP.format("rules: {dns: [{matchName: a}]}"), "toPorts[0].rules.dns", "for egress only"),
    (HTTP.format("serverNames: ['a b']"), "toPorts[0].serverNames[0]", "must be a DNS name"),
    (HTTP.format("rules: {http: [{}]}, serverNames: [a]"), "toPorts[0].serverNames", "without TLS termination"),
    ("toPorts: [{ports: [{port: '80'}], rules: {http: [{}]}}]", "toPorts[0]", "need protocol TCP"),
    (HTTP.replace("80", "0").format("rules: {http: [{}]}"), "toPorts[0].rules", "with port 0"),
]
REFUSALS += [(f"endpointSelector: {{}}\n{spec}", f"spec.{field}", reason) for spec, field, reason in REFUSED_PEERS]
REFUSALS += [
    (f"endpointSelector: {{}}\ningress: [{{{spec}}}]", f"spec.ingress[0].{field}", reason)
    for spec, field, reason in REFUSED_PORTS
]


@pytest.mark.parametrize(("spec", "field", "reason"), REFUSALS)
def test_refusal(spec: str, field: str, reason: str) -> None:
    """What is not understood is refused: the field, and what would be right."""
    (refusal,) = refused(cilium_policy(spec))
    assert refusal.field == field
    assert reason in refusal.reason


def test_every_spec_selects_and_enforces_for_itself() -> None:
    """`specs` stands beside `spec`: each is a policy of its own, under one name."""
    manifest = cilium_policy("{endpointSelector: {matchLabels: {app: db}}, ingress: [{}]}")
    manifest["specs"] = [{"endpointSelector": {"matchLabels": {"app": "cart"}}, "egress": [{}]}]
    policy = parsed(manifest)
    (database,), (cart,) = (policies_of(workload_labels(app), [policy]) for app in ("db", "cart"))
    assert (database.name, cart.name) == (policy.name, policy.name)
    assert (database.enforce_ingress, database.enforce_egress) == (True, False)
    assert (cart.enforce_ingress, cart.enforce_egress) == (False, True)


def test_a_refusal_in_a_later_spec_names_it() -> None:
    """All or nothing, with the place."""
    manifest = cilium_policy("{endpointSelector: {}, ingress: [{}]}")
    manifest["specs"] = [{"endpointSelector": {}, "egress": [{}]}, {"endpointSelectors": {}}]
    assert "specs[1].endpointSelectors" in [refusal.field for refusal in refused(manifest)]
