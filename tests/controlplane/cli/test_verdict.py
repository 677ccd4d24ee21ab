"""`meshlog verdict` offline: tables of cases from the published semantics, and what it refuses.

Sources: "Network Policies" and the API reference of Kubernetes; "Layer 3 Policy", "Layer 4 Policy", "Layer 7 Policies",
"Deny Policies" and "Policy Enforcement Modes" of Cilium's documentation.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from controlplane.cli.main import main

PODS = {
    "shop/front": ("10.1.0.5", "n1", 8080),
    "shop/cart": ("10.1.0.6", "n1", 8080),
    "shop/db": ("10.2.0.7", "n2", 5432),
    "guest/front": ("10.1.0.8", "n1", 9090),
}


def pod(place: str) -> dict[str, Any]:
    namespace, name = place.split("/")
    address, node, port = PODS[place]
    ports = [{"name": "web", "containerPort": port}]
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace, "labels": {"app": name}},
        "spec": {"nodeName": node, "containers": [{"name": "main", "ports": ports}]},
        "status": {"podIP": address},
    }


def node(name: str, address: str) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": name, "labels": {"zone": name}},
        "status": {"addresses": [{"type": "InternalIP", "address": address}, {"type": "Hostname", "address": name}]},
    }


def service(name: str, selector: dict[str, str] | None) -> dict[str, Any]:
    spec = {"ports": [{"port": 80}], **({"selector": selector} if selector else {})}
    return {"apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": "shop"}, "spec": spec}


BASE = [
    *map(pod, PODS),
    node("n1", "172.16.0.1"),
    node("n2", "172.16.0.2"),
    {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "guest", "labels": {"team": "guest"}}},
    service("database", {"app": "db"}),
    service("outside", None),
    {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {"name": "outside-1", "namespace": "shop", "labels": {"kubernetes.io/service-name": "outside"}},
        "addressType": "IPv4",
        "endpoints": [{"addresses": ["198.51.100.1"]}],
    },
    {
        "apiVersion": "cilium.io/v2",
        "kind": "CiliumCIDRGroup",
        "metadata": {"name": "partners", "labels": {"trust": "high"}},
        "spec": {"externalCIDRs": ["198.51.100.0/24"]},
    },
]


class Bench:
    """A directory of manifests, and the answers to flows."""

    def __init__(self, directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.directory = directory
        self.capsys = capsys

    def ask(self, policies: list[dict[str, Any]], flows: list[Any], **files: Any) -> list[dict[str, Any]]:
        status, text = self.run(policies, flows, **files)
        assert status == 0, text
        answers: list[dict[str, Any]] = json.loads(text)
        return answers

    def run(self, policies: list[dict[str, Any]], flows: list[Any], **files: Any) -> tuple[int, str]:
        manifests = self.directory / "manifests"
        manifests.mkdir(exist_ok=True)
        (manifests / "all.yaml").write_text(yaml.safe_dump_all([*BASE, *policies]))
        words = ["verdict", "-f", self.write("flows", flows), "--manifests", str(manifests), "-o", "json"]
        for name, content in files.items():
            words += [f"--{name.replace('_', '-')}", self.write(name, content)]
        status = main(words)
        seen = self.capsys.readouterr()
        return status, seen.out + seen.err

    def write(self, name: str, content: Any) -> str:
        path = self.directory / f"{name}.json"
        path.write_text(json.dumps(content))
        return str(path)


@pytest.fixture
def bench(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Bench:
    return Bench(tmp_path, capsys)


def policy(kind: str, spec: str, name: str = "p") -> dict[str, Any]:
    version = "networking.k8s.io/v1" if kind == "NetworkPolicy" else "cilium.io/v2"
    metadata = {"name": name} | ({} if "Clusterwide" in kind else {"namespace": "shop"})
    return {"apiVersion": version, "kind": kind, "metadata": metadata, "spec": yaml.safe_load(spec)}


NP, CNP, CCNP = "NetworkPolicy", "CiliumNetworkPolicy", "CiliumClusterwideNetworkPolicy"
DB = "endpointSelector: {matchLabels: {app: db}}"
ANY = "endpointSelector: {}"
FRONT_DB, WORLD = ("shop/front", "shop/db", "TCP/80"), ("shop/front", "ip:203.0.113.1", "TCP/443")
CASES: list[tuple[str, str, tuple[str, str, str], str]] = [
    # kind, spec, (from, to, l4), verdict
    (NP, "{podSelector: {}}", FRONT_DB, "deny"),
    (NP, "{podSelector: {}}", WORLD, "allow"),
    (NP, "{podSelector: {}, ingress: [{}]}", FRONT_DB, "allow"),
    (NP, "{podSelector: {}, policyTypes: [Egress]}", WORLD, "deny"),
    (NP, "{podSelector: {}, ingress: [{from: []}]}", FRONT_DB, "allow"),
    (NP, "{podSelector: {}, ingress: [{from: [{podSelector: {}}]}]}", ("guest/front", "shop/db", "TCP/80"), "deny"),
    (
        NP,
        "{podSelector: {}, ingress: [{from: [{namespaceSelector: {}}]}]}",
        ("guest/front", "shop/db", "TCP/80"),
        "allow",
    ),
    (
        NP,
        "{podSelector: {}, ingress: [{from: [{namespaceSelector: {matchLabels: {team: guest}}}]}]}",
        ("guest/front", "shop/db", "TCP/80"),
        "allow",
    ),
    (
        NP,
        "{podSelector: {}, ingress: [{from: [{namespaceSelector: {}}]}]}",
        ("entity:world", "shop/db", "TCP/80"),
        "deny",
    ),
    (NP, "{podSelector: {}, ingress: [{ports: [{port: web}]}]}", ("shop/front", "shop/db", "TCP/5432"), "allow"),
    (NP, "{podSelector: {}, ingress: [{ports: [{port: web}]}]}", ("shop/front", "shop/db", "TCP/8080"), "deny"),
    (
        NP,
        "{podSelector: {}, ingress: [{ports: [{port: web, protocol: UDP}]}]}",
        ("shop/front", "shop/db", "UDP/5432"),
        "deny",
    ),
    (NP, "{podSelector: {}, egress: [{ports: [{port: web}]}]}", ("shop/cart", "guest/front", "TCP/9090"), "allow"),
    (
        NP,
        "{podSelector: {}, ingress: [{ports: [{port: 80, endPort: 90}]}]}",
        ("shop/front", "shop/db", "TCP/90"),
        "allow",
    ),
    (
        NP,
        "{podSelector: {}, ingress: [{ports: [{port: 80, endPort: 90}]}]}",
        ("shop/front", "shop/db", "TCP/91"),
        "deny",
    ),
    (
        NP,
        "{podSelector: {}, ingress: [{ports: [{port: 7, protocol: SCTP}]}]}",
        ("shop/front", "shop/db", "SCTP/7"),
        "allow",
    ),
    (NP, "{podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 10.1.0.0/16}}]}]}", FRONT_DB, "allow"),
    (
        NP,
        "{podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/8, except: [10.1.0.0/16]}}]}]}",
        FRONT_DB,
        "deny",
    ),
    (NP, "{podSelector: {}, egress: [{to: [{ipBlock: {cidr: 0.0.0.0/0, except: [203.0.113.0/24]}}]}]}", WORLD, "deny"),
    (CNP, f"{{{ANY}, ingress: [{{}}]}}", FRONT_DB, "deny"),
    (CNP, f"{{{ANY}, ingress: []}}", FRONT_DB, "allow"),
    (CNP, f"{{{ANY}, ingress: [{{fromEndpoints: [{{}}]}}]}}", FRONT_DB, "allow"),
    (CNP, f"{{{ANY}, ingress: [{{fromEndpoints: []}}]}}", FRONT_DB, "deny"),
    (CNP, f"{{{ANY}, ingress: [{{fromEndpoints: [{{}}]}}]}}", ("guest/front", "shop/db", "TCP/80"), "deny"),
    (CNP, f"{{{ANY}, ingress: [{{fromCIDR: [10.1.0.0/16]}}]}}", FRONT_DB, "deny"),
    (CNP, f"{{{ANY}, egress: [{{toCIDR: [203.0.113.1]}}]}}", WORLD, "allow"),
    (CNP, f"{{{ANY}, egress: [{{toCIDRSet: [{{cidr: 203.0.113.0/24, except: [203.0.113.0/28]}}]}}]}}", WORLD, "deny"),
    (
        CNP,
        f"{{{ANY}, egress: [{{toCIDRSet: [{{cidrGroupRef: partners}}]}}]}}",
        ("shop/front", "ip:198.51.100.9", "TCP/1"),
        "allow",
    ),
    (
        CNP,
        f"{{{ANY}, egress: [{{toCIDRSet: [{{cidrGroupSelector: {{matchLabels: {{trust: high}}}}}}]}}]}}",
        ("shop/front", "ip:198.51.100.9", "TCP/1"),
        "allow",
    ),
    (CNP, f"{{{ANY}, egress: [{{toCIDRSet: [{{cidrGroupRef: nobody}}]}}]}}", WORLD, "deny"),
    (CNP, f"{{{ANY}, egress: [{{toEntities: [world]}}]}}", WORLD, "allow"),
    (CNP, f"{{{ANY}, egress: [{{toEntities: [world-ipv6]}}]}}", WORLD, "deny"),
    (CNP, f"{{{ANY}, egress: [{{toEntities: [world]}}]}}", FRONT_DB, "deny"),
    (CNP, f"{{{ANY}, egress: [{{toEntities: [cluster]}}], ingress: [{{fromEntities: [cluster]}}]}}", FRONT_DB, "allow"),
    (
        CNP,
        f"{{{ANY}, egress: [{{toEntities: [kube-apiserver]}}]}}",
        ("shop/front", "ip:192.0.2.10", "TCP/6443"),
        "allow",
    ),
    (
        CNP,
        f"{{{ANY}, egress: [{{toServices: [{{k8sService: {{serviceName: database, namespace: shop}}}}]}}]}}",
        FRONT_DB,
        "allow",
    ),
    (
        CNP,
        f"{{{ANY}, egress: [{{toServices: [{{k8sService: {{serviceName: outside, namespace: shop}}}}]}}]}}",
        ("shop/front", "ip:198.51.100.1", "TCP/1"),
        "allow",
    ),
    (
        CNP,
        f"{{{ANY}, egress: [{{toServices: [{{k8sService: {{serviceName: outside, namespace: shop}}}}]}}]}}",
        WORLD,
        "deny",
    ),
    (CNP, f"{{{ANY}, egress: [{{toFQDNs: [{{matchName: www.example.com}}]}}]}}", WORLD, "allow"),
    (CNP, f"{{{ANY}, egress: [{{toFQDNs: [{{matchPattern: '*.com'}}]}}]}}", WORLD, "deny"),
    (CNP, f"{{{ANY}, egress: [{{toFQDNs: [{{matchPattern: '**.com'}}]}}]}}", WORLD, "allow"),
    (
        CNP,
        f"{{{ANY}, egress: [{{icmps: [{{fields: [{{type: 8}}]}}]}}]}}",
        ("shop/front", "ip:203.0.113.1", "ICMP/8"),
        "allow",
    ),
    (
        CNP,
        f"{{{ANY}, egress: [{{icmps: [{{fields: [{{type: 8}}]}}]}}]}}",
        ("shop/front", "ip:203.0.113.1", "ICMP/0"),
        "deny",
    ),
    (
        CNP,
        f"{{{ANY}, ingress: [{{toPorts: [{{ports: [{{port: '80'}}]}}]}}]}}",
        ("entity:world", "shop/db", "UDP/80"),
        "allow",
    ),
    (CNP, f"{{{ANY}, ingress: [{{toPorts: [{{ports: [{{port: '0', protocol: TCP}}]}}]}}]}}", FRONT_DB, "allow"),
    (CNP, f"{{{ANY}, ingressDeny: [{{fromEndpoints: [{{}}]}}], ingress: [{{fromEntities: [all]}}]}}", FRONT_DB, "deny"),
    (
        CNP,
        f"{{{ANY}, ingressDeny: [{{fromEntities: [world]}}], enableDefaultDeny: {{ingress: false}}}}",
        FRONT_DB,
        "allow",
    ),
    (CNP, f"{{{ANY}, ingress: [{{}}], enableDefaultDeny: {{ingress: false}}}}", FRONT_DB, "allow"),
    (CNP, f"{{{DB}, ingress: [{{}}]}}", ("node:n2", "shop/db", "TCP/80"), "allow"),
    (CNP, f"{{{DB}, ingress: [{{}}]}}", ("node:n1", "shop/db", "TCP/80"), "deny"),
    (CNP, f"{{{DB}, ingress: [{{fromEntities: [remote-node]}}]}}", ("ip:172.16.0.1", "shop/db", "TCP/80"), "allow"),
    (CCNP, f"{{{ANY}, ingress: [{{fromEndpoints: [{{}}]}}]}}", ("guest/front", "shop/db", "TCP/80"), "allow"),
    (CCNP, f"{{{ANY}, ingress: [{{fromEndpoints: [{{}}]}}]}}", ("entity:world", "shop/db", "TCP/80"), "deny"),
    (CCNP, "{nodeSelector: {}, ingress: [{}]}", ("shop/front", "node:n2", "TCP/22"), "allow"),
]
NAMES = {"www.Example.com.": ["203.0.113.1"]}
API_SERVER = {"192.0.2.10": ["reserved:kube-apiserver"]}


def flow(ends: tuple[str, str, str], **request: Any) -> dict[str, Any]:
    return {"from": ends[0], "to": ends[1], "l4": ends[2], **request}


@pytest.mark.parametrize(("kind", "spec", "ends", "verdict"), CASES)
def test_published_semantics(bench: Bench, kind: str, spec: str, ends: tuple[str, str, str], verdict: str) -> None:
    """One policy, one flow, as the documentation of the kind says it."""
    (answer,) = bench.ask([policy(kind, spec)], [flow(ends)], names=NAMES, ip_labels=API_SERVER)
    assert answer["verdict"] == verdict, answer


HTTP_SPEC = f"""{{{DB}, ingress: [{{toPorts: [{{ports: [{{port: '80', protocol: TCP}}], rules: {{http: [
  {{method: GET, path: '/public/.*', headers: ['X-Token: good'], headerMatches: [{{name: X-Log, value: a, mismatch: LOG}}]}}
]}}}}]}}]}}"""
REQUESTS = [
    ({"method": "GET", "path": "/public/a", "headers": {"x-token": "good"}}, "allow"),
    ({"method": "POST", "path": "/public/a", "headers": {"x-token": "good"}}, "deny"),
    ({"method": "GET", "path": "/private", "headers": {"x-token": "good"}}, "deny"),
    ({"method": "GET", "path": "/public/a", "headers": {"x-token": "bad"}}, "deny"),
    ({"method": "GET", "path": "/public/a"}, "deny"),
]


@pytest.mark.parametrize(("http", "answer"), REQUESTS)
def test_http_requests_are_answered(bench: Bench, http: dict[str, Any], answer: str) -> None:
    """A redirect on layer 4, and allow or deny for the request."""
    (found,) = bench.ask([policy(CNP, HTTP_SPEC)], [flow(FRONT_DB, http=http)])
    assert (found["verdict"], found["ingress"], found["l7"]) == ("redirect", "redirect", answer)


def test_a_rule_without_requests_opens_all_of_them(bench: Bench) -> None:
    """Layer 4 allowed by another policy for the same peer: the proxy lets everything through."""
    plain = policy(CNP, f"{{{DB}, ingress: [{{fromEndpoints: [{{}}]}}]}}", "plain")
    (found,) = bench.ask([policy(CNP, HTTP_SPEC), plain], [flow(FRONT_DB, http={"path": "/x"})])
    assert (found["verdict"], found["l7"]) == ("redirect", "allow")


def test_names_and_server_names_are_answered(bench: Bench) -> None:
    """DNS questions by pattern, TLS connections by server name."""
    spec = f"""{{{ANY}, egress: [
      {{toPorts: [{{ports: [{{port: '53', protocol: UDP}}], rules: {{dns: [{{matchPattern: '*.example.com'}}]}}}}]}},
      {{toPorts: [{{ports: [{{port: '443', protocol: TCP}}], serverNames: ['*.example.com']}}]}}]}}"""
    dns, tls = ("shop/front", "entity:world", "UDP/53"), ("shop/front", "entity:world", "TCP/443")
    asked = [
        flow(dns, dns="a.example.com"),
        flow(dns, dns="example.com"),
        flow(tls, sni="a.example.com"),
        flow(tls, sni="b"),
    ]
    found = bench.ask([policy(CNP, spec)], asked)
    assert [answer["l7"] for answer in found] == ["allow", "deny", "allow", "deny"]


def test_an_answer_names_sides_policies_and_reason(bench: Bench) -> None:
    """The whole form: a denial by rule, a denial by default, and an end that is no endpoint."""
    deny = policy(CNP, f"{{{DB}, ingressDeny: [{{fromEntities: [world]}}]}}", "deny")
    found = bench.ask([deny], [flow(("entity:world", "shop/db", "TCP/1")), flow(FRONT_DB)])
    assert found == [
        {
            "verdict": "deny",
            "ingress": "deny-explicit",
            "by": ["CiliumNetworkPolicy/shop/deny"],
            "reason": {"code": 181, "name": "POLICY_DENY"},
        },
        {
            "verdict": "deny",
            "egress": "allow",
            "ingress": "deny-default",
            "by": ["CiliumNetworkPolicy/shop/deny"],
            "reason": {"code": 133, "name": "POLICY_DENIED"},
        },
    ]


SETTINGS = [
    ({"enable-policy": "always"}, [], FRONT_DB, "deny"),
    ({"enable-policy": "never"}, [policy(CNP, f"{{{ANY}, ingress: [{{}}]}}")], FRONT_DB, "allow"),
    ({"policyEnforcementMode": "always"}, [], FRONT_DB, "deny"),
    ({"policy-audit-mode": "true"}, [policy(CNP, f"{{{ANY}, ingress: [{{}}]}}")], FRONT_DB, "allow"),
    ({"labels": "k8s:!app"}, [policy(CNP, f"{{{DB}, ingress: [{{}}]}}")], FRONT_DB, "allow"),
    ({"labels": "k8s:app"}, [policy(CNP, f"{{{DB}, ingress: [{{}}]}}")], FRONT_DB, "deny"),
    (
        {"allow-localhost": "policy"},
        [policy(CNP, f"{{{DB}, ingress: [{{}}]}}")],
        ("node:n2", "shop/db", "TCP/1"),
        "deny",
    ),
    (
        {"policy-cidr-match-mode": "nodes"},
        [policy(CNP, f"{{{DB}, ingress: [{{fromCIDR: [172.16.0.0/16]}}]}}")],
        ("node:n1", "shop/db", "TCP/1"),
        "allow",
    ),
    (
        {"enable-node-selector-labels": True},
        [policy(CNP, f"{{{DB}, ingress: [{{fromNodes: [{{matchLabels: {{zone: n1}}}}]}}]}}")],
        ("node:n1", "shop/db", "TCP/1"),
        "allow",
    ),
    (
        {"enable-host-firewall": True},
        [policy(CCNP, "{nodeSelector: {matchLabels: {zone: n2}}, ingress: [{fromEntities: [world]}]}")],
        ("shop/front", "node:n2", "TCP/22"),
        "deny",
    ),
]


@pytest.mark.parametrize(("given", "policies", "ends", "verdict"), SETTINGS)
def test_settings_change_the_meaning(bench: Bench, given: Any, policies: Any, ends: Any, verdict: str) -> None:
    """By the names that Cilium's users know, of the ConfigMap and of the Helm chart."""
    (answer,) = bench.ask(policies, [flow(ends)], settings=given)
    assert answer["verdict"] == verdict, answer


def test_audit_says_what_would_be_denied(bench: Bench) -> None:
    """The flow passes, and the side that would deny says audit."""
    (answer,) = bench.ask(
        [policy(CNP, f"{{{ANY}, ingress: [{{}}]}}")], [flow(FRONT_DB)], settings={"policyAuditMode": True}
    )
    assert (answer["verdict"], answer["ingress"], answer["by"]) == ("allow", "audit", ["CiliumNetworkPolicy/shop/p"])


FAULTS = [
    (policy(CNP, f"{{{ANY}, ingres: []}}"), {}, "spec.ingres: []: unknown field; did you mean"),
    (policy(CNP, f"{{{ANY}}}"), {"settings": {"enable-polici": "always"}}, "did you mean enable-policy"),
    (policy(CNP, f"{{{ANY}}}"), {"names": {"a b": []}}, "must be a DNS name"),
    (policy(CNP, f"{{{ANY}}}"), {"ip_labels": {"10.0.0.300": ["reserved:host"]}}, "must be an address"),
]


@pytest.mark.parametrize(("manifest", "files", "reason"), FAULTS)
def test_no_verdict_on_half_of_the_policies(bench: Bench, manifest: Any, files: Any, reason: str) -> None:
    """A manifest or file that is not understood ends the command, with place, field and reason."""
    status, text = bench.run([manifest], [flow(FRONT_DB)], **files)
    assert (status, reason in text) == (1, True), text


@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        (flow(("shop/nobody", "shop/db", "TCP/1")), "shop/nobody: no such endpoint"),
        (flow(("shop/front", "shop/db", "TCP")), "right is for example TCP/80"),
        (flow(("shop/front", "entity:all", "TCP/1")), "no end of a flow"),
        ({"from": "shop/front", "to": "shop/db", "l4": "TCP/1", "grpc": {}}, "unknown field"),
    ],
)
def test_a_flow_that_cannot_be_judged_says_why(bench: Bench, asked: Any, reason: str) -> None:
    """The others are judged all the same, and the exit status is 1."""
    status, text = bench.run([], [asked, flow(FRONT_DB)])
    first, second = json.loads(text)
    assert (status, second["verdict"]) == (1, "allow")
    assert reason in first["error"]


def test_two_clusters(bench: Bench, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each judges with its own policies; a selector is about the own cluster unless it names another."""
    words = ["verdict", "-o", "json", "-f", bench.write("flows", [flow(("east:shop/front", "west:shop/db", "TCP/1"))])]
    named = "{matchLabels: {io.cilium.k8s.policy.cluster: east}}"
    for name, peer, verdict in (("own", "{}", "deny"), ("named", named, "allow")):
        for cluster in ("east", "west"):
            directory = tmp_path / name / cluster
            directory.mkdir(parents=True)
            guard = [policy(CNP, f"{{{DB}, ingress: [{{fromEndpoints: [{peer}]}}]}}")] if cluster == "west" else []
            (directory / "all.yaml").write_text(yaml.safe_dump_all([*BASE, *guard]))
        places = [f"--manifests={each}={tmp_path / name / each}" for each in ("east", "west")]
        assert main([*words, *places]) == 0
        (answer,) = json.loads(capsys.readouterr().out)
        assert answer["verdict"] == verdict
