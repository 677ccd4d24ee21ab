"""Corners of the published semantics, each in a mesh of manifests: one policy or a few, one flow, what each side says.

Sources. Kubernetes: [k8s] "Network Policies" and the NetworkPolicy v1 reference. Cilium 1.19: [l3] "Layer 3 Policies",
[l4] "Layer 4 Policies", [l7] "Layer 7 Policies", [deny] "Deny Policies", [host] "Host Policies", [intro] "Policy
Enforcement Modes", [cm] "Cluster Mesh: network policy", [dns] "DNS Policy and IP Discovery"; in its source [parse]
pkg/policy/utils/parse.go, [repo] pkg/policy/repository.go, [map] pkg/policy/mapstate.go (precedence of entries),
[l4go] pkg/policy/l4.go (requests where nothing is denied by default), [node] pkg/node/manager (labels of nodes),
[svc] pkg/policy/k8s/service.go.
"""

from typing import Any

import pytest
import yaml

from controlplane.kubernetes_mesh import MeshReader, read_address_labels, read_names
from controlplane.policy.answers import answer
from controlplane.policy.mesh import Judge
from controlplane.policy.settings import PolicySettings, read_policy_settings

NP, CNP, CCNP = "NetworkPolicy", "CiliumNetworkPolicy", "CiliumClusterwideNetworkPolicy"
PODS = {
    # cluster, place: labels, address(es), node, named port
    ("east", "shop/front"): ({"app": "front", "tier": "web"}, ["10.1.0.5", "fd00::5"], "n1", 8080),
    ("east", "shop/cart"): ({"app": "cart"}, ["10.1.0.6"], "n1", 8081),
    ("east", "shop/db"): ({"app": "db", "example.com/role": "a.b-c_d"}, ["10.2.0.7", "fd00::7"], "n2", 5432),
    ("east", "shop/db2"): ({"app": "db"}, ["10.2.0.8"], "n2", 5433),
    ("east", "shop/dark"): ({"app": "dark", "flag": ""}, [], "n1", 80),
    ("east", "guest/front"): ({"app": "front"}, ["10.1.0.8"], "n1", 9090),
    ("west", "shop/front"): ({"app": "front"}, ["10.8.0.5"], "m1", 8080),
}


def pod(place: str, labels: dict[str, str], addresses: list[str], node: str, port: int) -> dict[str, Any]:
    namespace, _, name = place.partition("/")
    return {
        "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace, "labels": labels},
        "spec": {"nodeName": node, "containers": [{"ports": [{"name": "web", "containerPort": port}]}]},
        "status": {"podIPs": [{"ip": each} for each in addresses]},
    }


REST = """
{kind: Namespace, metadata: {name: shop, labels: {team: blue}}}
---
{kind: Namespace, metadata: {name: guest, labels: {team: red}}}
---
{kind: Node, metadata: {name: n1, labels: {zone: a}}, status: {addresses: [{type: InternalIP, address: 172.16.0.1}]}}
---
{kind: Node, metadata: {name: n2, labels: {zone: b}}, status: {addresses: [{type: InternalIP, address: 172.16.0.2}]}}
---
{kind: Service, metadata: {name: database, namespace: shop, labels: {kind: store}}, spec: {selector: {app: db}}}
---
{kind: Service, metadata: {name: outside, namespace: shop}, spec: {}}
---
kind: EndpointSlice
metadata: {name: outside-1, namespace: shop, labels: {kubernetes.io/service-name: outside}}
endpoints: [{addresses: [198.51.100.1]}]
---
kind: EndpointSlice
metadata: {name: kubernetes, namespace: default, labels: {kubernetes.io/service-name: kubernetes}}
endpoints: [{addresses: [192.0.2.6]}, {addresses: [172.16.0.2]}]
---
apiVersion: cilium.io/v2
kind: CiliumCIDRGroup
metadata: {name: partners, labels: {trust: high}}
spec: {externalCIDRs: [198.51.100.0/24]}
---
{kind: Pod, metadata: {name: agent, namespace: shop}, spec: {hostNetwork: true, nodeName: n2}}
---
{kind: Pod, metadata: {name: stray, namespace: shop}, spec: {hostNetwork: true}}
---
kind: Pod
metadata: {name: done, namespace: shop, labels: {app: done}}
spec: {nodeName: n1}
status: {phase: Succeeded, podIP: 10.1.0.6}
"""
WEST = "{kind: Node, metadata: {name: m1, labels: {zone: a}}, status: {addresses: [{type: InternalIP, address: 172.17.0.1}]}}"
NAMES = {"www.example.com": ["203.0.113.1"], "a.b.example.com": ["203.0.113.2"], "example.com": ["203.0.113.3"]}
ADDRESS_LABELS = {"203.0.113.66": ["reserved:kube-apiserver"], "172.16.0.1": ["reserved:kube-apiserver"]}


def policy(kind: str, spec: str, name: str = "p") -> dict[str, Any]:
    version = "networking.k8s.io/v1" if kind == NP else "cilium.io/v2"
    place = {} if kind == CCNP else {"namespace": "shop"}
    return {"apiVersion": version, "kind": kind, "metadata": {"name": name, **place}, "spec": yaml.safe_load(spec)}


def judged(policies: list[tuple[str, str]], flow: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    found = read_policy_settings(settings)
    assert isinstance(found[1], PolicySettings), found
    reader = MeshReader("east", found[1])
    for (cluster, place), facts in PODS.items():
        reader.take(pod(place, *facts), place, cluster)
    for document in yaml.safe_load_all(REST):
        reader.take(document, document["metadata"]["name"], "east")
    reader.take(yaml.safe_load(WEST), "m1", "west")
    for number, (kind, spec) in enumerate(policies):
        reader.take(policy(kind, spec, f"p{number}"), spec, "east")
    assert not reader.refused, [str(each) for refused in reader.refused for each in refused.refusals]
    names, labels = read_names(NAMES), read_address_labels(ADDRESS_LABELS)
    assert isinstance(names, dict) and isinstance(labels, dict)
    return answer(Judge(reader.mesh(names, labels)), flow, 0)


def said(found: dict[str, Any]) -> str:
    """The sides in short: "egress ingress l7", "-" where there is none."""
    return " ".join(str(found.get(each, "-")) for each in ("egress", "ingress", "l7")).removesuffix(" -")


ALL = "endpointSelector: {}"
DB = "endpointSelector: {matchLabels: {app: db}}"
FRONT = "endpointSelector: {matchLabels: {app: front}}"
ON, OFF, DEFAULT, EXPLICIT = "allow", "deny", "deny-default", "deny-explicit"
DB80 = "shop/front > shop/db TCP/80"

CASES: list[tuple[str, list[tuple[str, str]], str, str]] = [
    # source, policies, flow, sides
    # --- absent, [] and {} ---
    ("[k8s] podSelector {} alone isolates ingress", [(NP, "{podSelector: {}}")], DB80, "allow deny-default"),
    ("[k8s] ingress [] isolates too", [(NP, "{podSelector: {}, ingress: []}")], DB80, "allow deny-default"),
    ("[k8s] ingress [{}] is everything", [(NP, "{podSelector: {}, ingress: [{}]}")], DB80, "allow allow"),
    ("[k8s] egress [] does not isolate egress", [(NP, "{podSelector: {}, egress: []}")], DB80, "allow deny-default"),
    ("[k8s] egress [{}] adds type Egress", [(NP, "{podSelector: {}, egress: [{}]}")], DB80, "allow deny-default"),
    (
        "[k8s] policyTypes [Egress] leaves ingress rules without effect",
        [(NP, "{podSelector: {}, policyTypes: [Egress], ingress: [{from: [{podSelector: {}}]}]}")],
        "shop/front > ip:203.0.113.9 TCP/1", "deny-default -",
    ),
    ("[k8s] from [] is everyone", [(NP, "{podSelector: {}, ingress: [{from: []}]}")], DB80, "allow allow"),
    ("[k8s] ports [] is every port", [(NP, "{podSelector: {}, ingress: [{ports: []}]}")], DB80, "allow allow"),
    (
        "[k8s] podSelector {} is the namespace",
        [(NP, "{podSelector: {}, ingress: [{from: [{podSelector: {}}]}]}")], "guest/front > shop/db TCP/80",
        "allow deny-default",
    ),
    (
        "[k8s] namespaceSelector {} is every namespace, and not the world",
        [(NP, "{podSelector: {}, ingress: [{from: [{namespaceSelector: {}}]}]}")], "ip:203.0.113.9 > shop/db TCP/80",
        "- deny-default",
    ),
    (
        "[k8s] two peers: or; one peer with both selectors: and",
        [(NP, "{podSelector: {}, ingress: [{from: [{namespaceSelector: {matchLabels: {team: red}}, podSelector: {matchLabels: {app: cart}}}]}]}")],
        "guest/front > shop/db TCP/80", "allow deny-default",
    ),
    ("[l3] ingress [] enforces nothing", [(CNP, f"{{{ALL}, ingress: []}}")], DB80, "allow allow"),
    ("[l3] ingress [{}] denies by default", [(CNP, f"{{{ALL}, ingress: [{{}}]}}")], DB80, "allow deny-default"),
    ("[parse] fromEndpoints [] is nobody", [(CNP, f"{{{ALL}, ingress: [{{fromEndpoints: []}}]}}")], DB80,
     "allow deny-default"),
    ("[parse] fromEndpoints [] beside ports: nobody",
     [(CNP, f"{{{ALL}, ingress: [{{fromEndpoints: [], toPorts: [{{ports: [{{port: '80'}}]}}]}}]}}")], DB80,
     "allow deny-default"),
    ("[parse] an empty list of one kind empties the rule",
     [(CNP, f"{{{ALL}, ingress: [{{fromCIDR: [], fromEntities: [all]}}]}}")], DB80, "allow deny-default"),
    ("[parse] toFQDNs [] is as if absent", [(CNP, f"{{{FRONT}, egress: [{{toFQDNs: [], toPorts: [{{ports: [{{port: '80'}}]}}]}}]}}")], DB80, "allow allow"),
    ("[l3] toPorts [] is every port",
     [(CNP, f"{{{ALL}, ingress: [{{fromEndpoints: [{{}}], toPorts: []}}]}}")], DB80, "allow allow"),
    ("[l3] fromEndpoints [{}] is the namespace", [(CNP, f"{{{ALL}, ingress: [{{fromEndpoints: [{{}}]}}]}}")],
     "guest/front > shop/db TCP/80", "allow deny-default"),
    ("[l3] clusterwide: fromEndpoints [{}] is every pod", [(CCNP, f"{{{DB}, ingress: [{{fromEndpoints: [{{}}]}}]}}")],
     "guest/front > shop/db TCP/80", "allow allow"),
    ("[l7] rules {} and rules {http: []} ask for nothing",
     [(CNP, f"{{{DB}, ingress: [{{toPorts: [{{ports: [{{port: '80', protocol: TCP}}], rules: {{http: []}}}}]}}]}}")],
     DB80, "allow allow"),
    # --- who enforces ---
    ("[deny] an empty deny rule denies nobody and enforces", [(CNP, f"{{{ALL}, ingressDeny: [{{}}]}}")], DB80,
     "allow deny-default"),
    ("[repo] enableDefaultDeny false opens", [(CNP, f"{{{ALL}, ingress: [{{}}], enableDefaultDeny: {{ingress: false}}}}")],
     DB80, "allow allow"),
    ("[repo] any other policy that enforces is enough",
     [(CNP, f"{{{ALL}, ingress: [{{}}], enableDefaultDeny: {{ingress: false}}}}"), (NP, "{podSelector: {}}")], DB80,
     "allow deny-default"),
    ("[repo] enableDefaultDeny true needs a rule of the direction",
     [(CNP, f"{{{ALL}, egress: [{{toEntities: [all]}}], enableDefaultDeny: {{ingress: true}}}}")], DB80, "allow allow"),
    # --- ipBlock and CIDR ---
    ("[k8s] ipBlock holds pods", [(NP, "{podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 10.1.0.0/16}}]}]}")], DB80,
     "allow allow"),
    ("[k8s] except", [(NP, "{podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/8, except: [10.1.0.0/24]}}]}]}")],
     DB80, "allow deny-default"),
    ("[l3] CIDR is not about pods", [(CNP, f"{{{ALL}, ingress: [{{fromCIDR: [0.0.0.0/0]}}]}}")], DB80,
     "allow deny-default"),
    ("[l3] nor about nodes", [(CNP, f"{{{DB}, ingress: [{{fromCIDR: [172.16.0.0/16]}}]}}")],
     "node:n1 > shop/db TCP/80", "- deny-default"),
    ("[l3] an except holds in its own entry only",
     [(CNP, f"{{{ALL}, egress: [{{toCIDRSet: [{{cidr: 203.0.113.0/24, except: [203.0.113.9/32]}}, {{cidr: 203.0.113.8/30}}]}}]}}")],
     "shop/front > ip:203.0.113.9 TCP/1", "allow -"),
    ("[l3] a host's address without length", [(CNP, f"{{{ALL}, egress: [{{toCIDR: [203.0.113.9]}}]}}")],
     "shop/front > ip:203.0.113.9 TCP/1", "allow -"),
    ("[l3] bits beyond the length count for nothing", [(CNP, f"{{{ALL}, egress: [{{toCIDR: [203.0.113.77/24]}}]}}")],
     "shop/front > ip:203.0.113.9 TCP/1", "allow -"),
    ("[l3] IPv6", [(CNP, f"{{{ALL}, egress: [{{toCIDR: ['2001:db8::/32']}}]}}")],
     "shop/front > ip:2001:db8::1 TCP/1", "allow -"),
    ("[l3] entity world is CIDR 0/0", [(CNP, f"{{{ALL}, egress: [{{toCIDR: [0.0.0.0/0]}}]}}")],
     "shop/cart > entity:world TCP/1", "allow -"),
    *(
        (f"[l3] the world of another family: {l4}", [(CNP, f"{{{ALL}, egress: [{{toCIDR: ['{cidr}']}}]}}")],
         f"shop/front > entity:world {l4}", f"{side} -")
        for cidr, l4, side in [("::/0", "TCP/1", DEFAULT), ("::/0", "ICMPv6/128", ON), ("0.0.0.0/0", "ICMPv6/128", DEFAULT)]
    ),
    ("[l3] group by reference", [(CNP, f"{{{ALL}, egress: [{{toCIDRSet: [{{cidrGroupRef: partners}}]}}]}}")],
     "shop/front > ip:198.51.100.9 TCP/1", "allow -"),
    ("[l3] group by reference, except",
     [(CNP, f"{{{ALL}, egress: [{{toCIDRSet: [{{cidrGroupRef: partners, except: [198.51.100.8/29]}}]}}]}}")],
     "shop/front > ip:198.51.100.9 TCP/1", "deny-default -"),
    # --- entities ---
    *(
        (f"[l3] entity {entity}", [(CNP, f"{{{DB}, ingress: [{{fromEntities: [{entity}]}}]}}")],
         f"{end} > shop/db TCP/80", f"{'allow' if '/' in end else '-'} {side}")
        for entity, end, side in [
            ("all", "ip:203.0.113.9", ON), ("all", "shop/front", ON), ("none", "shop/front", DEFAULT),
            ("world", "ip:203.0.113.9", ON), ("world", "shop/front", DEFAULT), ("world", "node:n1", DEFAULT),
            ("world-ipv4", "ip:203.0.113.9", ON), ("world-ipv4", "ip:2001:db8::1", DEFAULT),
            ("world-ipv6", "ip:2001:db8::1", ON), ("cluster", "guest/front", ON), ("cluster", "node:n1", ON),
            ("cluster", "ip:203.0.113.9", DEFAULT), ("cluster", "entity:unmanaged", ON), ("cluster", "entity:init", ON),
            ("host", "node:n2", ON), ("host", "node:n1", DEFAULT), ("remote-node", "node:n1", ON),
            ("remote-node", "ip:172.16.0.1", ON), ("health", "entity:health", ON), ("ingress", "entity:ingress", ON),
            ("kube-apiserver", "ip:192.0.2.6", ON), ("kube-apiserver", "ip:203.0.113.66", ON),
            ("kube-apiserver", "node:n1", ON), ("kube-apiserver", "ip:203.0.113.9", DEFAULT),
        ]
    ),
    ("[cm] entity cluster: pods of the local one", [(CNP, f"{{{DB}, ingress: [{{fromEntities: [cluster]}}]}}")],
     "west:shop/front > shop/db TCP/80", "allow deny-default"),
    ("[l3] nodes of other clusters are remote nodes", [(CNP, f"{{{DB}, ingress: [{{fromEntities: [remote-node]}}]}}")],
     "node:west:m1 > shop/db TCP/80", "- allow"),
    ("[l3] the own host comes in", [(CNP, f"{{{DB}, ingress: [{{}}]}}")], "node:n2 > shop/db TCP/80", "- allow"),
    ("[map] unless a rule denies it", [(CNP, f"{{{DB}, ingressDeny: [{{fromEntities: [host]}}]}}")],
     "node:n2 > shop/db TCP/80", "- deny-explicit"),
    ("[l3] a pod of the host's network is its node", [(CNP, f"{{{DB}, ingress: [{{}}]}}")],
     "shop/agent > shop/db TCP/80", "- allow"),
    ("[l3] of a node that is not known, another node", [(CNP, f"{{{DB}, ingress: [{{fromEntities: [remote-node]}}]}}")],
     "shop/stray > shop/db TCP/80", "- allow"),
    ("[k8s] a pod that has ended has given its address back", [(CNP, f"{{{DB}, ingress: [{{fromEndpoints: [{{matchLabels: {{app: cart}}}}]}}]}}")], "ip:10.1.0.6 > shop/db TCP/80", "allow allow"),
    # --- labels ---
    ("[l3] a value with every character", [(CNP, f"{{{FRONT}, egress: [{{toEndpoints: [{{matchLabels: {{example.com/role: a.b-c_d}}}}]}}]}}")], DB80, "allow allow"),
    ("[l3] an empty value", [(CNP, f"{{{DB}, ingress: [{{fromEndpoints: [{{matchLabels: {{flag: ''}}}}]}}]}}")],
     "shop/dark > shop/db TCP/80", "allow allow"),
    ("[l3] an empty value is not absence", [(CNP, f"{{{DB}, ingress: [{{fromEndpoints: [{{matchExpressions: [{{key: flag, operator: DoesNotExist}}]}}]}}]}}")], "shop/dark > shop/db TCP/80", "allow deny-default"),
    ("[k8s] NotIn holds where the key is absent", [(NP, "{podSelector: {}, ingress: [{from: [{podSelector: {matchExpressions: [{key: tier, operator: NotIn, values: [web]}]}}]}]}")], "shop/cart > shop/db TCP/80",
     "allow allow"),
    ("[cm] own cluster by default", [(CNP, f"{{{DB}, ingress: [{{fromEndpoints: [{{}}]}}]}}")],
     "west:shop/front > shop/db TCP/80", "allow deny-default"),
    ("[cm] another by its label", [(CNP, f"{{{DB}, ingress: [{{fromEndpoints: [{{matchLabels: {{io.cilium.k8s.policy.cluster: west}}}}]}}]}}")], "west:shop/front > shop/db TCP/80", "allow allow"),
    ("[l3] service account", [(CNP, f"{{{DB}, ingress: [{{fromEndpoints: [{{matchLabels: {{io.cilium.k8s.policy.serviceaccount: default}}}}]}}]}}")], DB80, "allow allow"),
    ("[l3] labels of namespaces", [(CNP, f"{{{DB}, ingress: [{{fromEndpoints: [{{matchLabels: {{'k8s:io.cilium.k8s.namespace.labels.team': red}}}}]}}]}}")], "guest/front > shop/db TCP/80", "allow allow"),
    # --- ports ---
    *(
        (f"[l4] {written} and {l4}", [(CNP, f"{{{DB}, ingress: [{{toPorts: [{{ports: [{{{written}}}]}}]}}]}}")],
         f"shop/front > shop/db {l4}", f"allow {side}")
        for written, l4, side in [
            ("port: '80'", "TCP/80", ON), ("port: '80'", "UDP/80", ON), ("port: '80'", "SCTP/80", ON),
            ("port: '80'", "ICMP/8", DEFAULT), ("port: '80', protocol: TCP", "UDP/80", DEFAULT),
            ("port: '0'", "TCP/1", ON), ("port: '0', protocol: UDP", "TCP/1", DEFAULT),
            ("port: '80', endPort: 82", "TCP/82", ON), ("port: '80', endPort: 82", "TCP/83", DEFAULT),
            ("port: '80', endPort: 80", "TCP/80", ON), ("port: web", "TCP/5432", ON), ("port: WEB", "TCP/5432", ON),
            ("port: web, protocol: UDP", "UDP/5432", DEFAULT), ("port: web", "TCP/8080", DEFAULT),
            ("port: '65535'", "TCP/65535", ON),
        ]
    ),
    ("[k8s] a named port is the destination's", [(NP, "{podSelector: {matchLabels: {app: front}}, egress: [{ports: [{port: web}]}]}")], "shop/front > shop/db TCP/5432", "allow allow"),
    ("[k8s] of each destination its own", [(NP, "{podSelector: {matchLabels: {app: front}}, egress: [{ports: [{port: web}]}]}")], "shop/front > shop/db2 TCP/5432", "deny-default allow"),
    ("[k8s] nobody names it outside", [(NP, "{podSelector: {}, egress: [{ports: [{port: web}]}]}")],
     "shop/front > ip:203.0.113.9 TCP/5432", "deny-default -"),
    *(
        (f"[l4] ICMP {written} and {l4}", [(CNP, f"{{{FRONT}, egress: [{{icmps: [{{fields: [{{{written}}}]}}]}}]}}")],
         f"shop/front > {end} {l4}", f"{side} -")
        for written, l4, end, side in [
            ("type: 8", "ICMP/8", "ip:203.0.113.9", ON), ("type: '8'", "ICMP/8", "ip:203.0.113.9", ON),
            ("type: EchoRequest", "ICMP/8", "ip:203.0.113.9", ON), ("type: 8", "ICMP/0", "ip:203.0.113.9", DEFAULT),
            ("type: 8", "TCP/8", "ip:203.0.113.9", DEFAULT), ("type: 8", "ICMPv6/128", "ip:2001:db8::1", DEFAULT),
            ("family: IPv6, type: EchoRequest", "ICMPv6/128", "ip:2001:db8::1", ON),
        ]
    ),
    # --- deny ---
    ("[deny] deny wins over allow", [(CNP, f"{{{DB}, ingress: [{{fromEntities: [all]}}], ingressDeny: [{{fromEndpoints: [{{matchLabels: {{app: front}}}}]}}]}}")], DB80, "allow deny-explicit"),
    ("[deny] over an allow that is narrower", [(CNP, f"{{{DB}, ingress: [{{fromEndpoints: [{{matchLabels: {{app: front}}}}], toPorts: [{{ports: [{{port: '80'}}]}}]}}], ingressDeny: [{{fromEntities: [cluster]}}]}}")], DB80,
     "allow deny-explicit"),
    ("[deny] and leaves what it does not name", [(CNP, f"{{{DB}, ingress: [{{fromEntities: [all]}}], ingressDeny: [{{toPorts: [{{ports: [{{port: '81'}}]}}]}}]}}")], DB80, "allow allow"),
    ("[deny] across kinds", [(NP, "{podSelector: {}, ingress: [{}]}"), (CCNP, f"{{{DB}, ingressDeny: [{{fromEntities: [all]}}]}}")], DB80, "allow deny-explicit"),
    ("[deny] from one prefix of an allowed one", [(CNP, f"{{{ALL}, egress: [{{toCIDR: [203.0.113.0/24]}}], egressDeny: [{{toCIDR: [203.0.113.8/30]}}]}}")], "shop/front > ip:203.0.113.9 TCP/1", "deny-explicit -"),
    ("[deny] by name of a port", [(CNP, f"{{{DB}, ingress: [{{fromEntities: [all]}}], ingressDeny: [{{toPorts: [{{ports: [{{port: web}}]}}]}}]}}")], "shop/front > shop/db TCP/5432", "allow deny-explicit"),
    # --- services and names ---
    ("[svc] a service with selector: its pods, at any port",
     [(CNP, f"{{{FRONT}, egress: [{{toServices: [{{k8sService: {{serviceName: database, namespace: shop}}}}]}}]}}")],
     "shop/front > shop/db TCP/5432", "allow allow"),
    ("[svc] by labels of services", [(CNP, f"{{{FRONT}, egress: [{{toServices: [{{k8sServiceSelector: {{selector: {{matchLabels: {{kind: store}}}}}}}}]}}]}}")], "shop/front > shop/db2 TCP/1", "allow allow"),
    ("[svc] without selector: its addresses",
     [(CNP, f"{{{FRONT}, egress: [{{toServices: [{{k8sService: {{serviceName: outside, namespace: shop}}}}]}}]}}")],
     "shop/front > ip:198.51.100.1 TCP/1", "allow -"),
    ("[svc] one that is not there selects nobody", [(CNP, f"{{{FRONT}, egress: [{{toServices: [{{k8sService: {{serviceName: nope, namespace: shop}}}}], toPorts: [{{ports: [{{port: '80'}}]}}]}}]}}")], DB80, "deny-default allow"),
    *(
        (f"[dns] {written} and {address}", [(CNP, f"{{{FRONT}, egress: [{{toFQDNs: [{{{written}}}]}}]}}")],
         f"shop/front > ip:{address} TCP/443", f"{side} -")
        for written, address, side in [
            ("matchName: WWW.example.com.", "203.0.113.1", ON), ("matchName: example.com", "203.0.113.1", DEFAULT),
            ("matchPattern: '*.example.com'", "203.0.113.1", ON), ("matchPattern: '*.example.com'", "203.0.113.2", DEFAULT),
            ("matchPattern: '*.example.com'", "203.0.113.3", DEFAULT), ("matchPattern: '**.example.com'", "203.0.113.2", ON),
            ("matchPattern: '**.example.com'", "203.0.113.3", DEFAULT), ("matchPattern: '*'", "203.0.113.2", ON),
            ("matchPattern: '*'", "203.0.113.9", DEFAULT), ("matchPattern: 'w*w.example.com'", "203.0.113.1", ON),
            ("matchPattern: '*example.com'", "203.0.113.3", ON),
        ]
    ),
    # --- more sections and selectors of nodes ---
    ("[host] without the host firewall a host policy has no effect", [(CCNP, "{nodeSelector: {}, ingress: [{}]}")],
     "shop/front > node:n2 TCP/22", "allow -"),
]  # fmt: skip


def read_flow(text: str) -> dict[str, Any]:
    source, _, dest, l4 = text.split(" ")
    return {"from": source, "to": dest, "l4": l4}


@pytest.mark.parametrize(("source", "policies", "flow", "sides"), CASES)
def test_published(source: str, policies: list[tuple[str, str]], flow: str, sides: str) -> None:
    """What each side says, as the source has it."""
    found = judged(policies, read_flow(flow), {})
    assert said(found) == sides, found
    denied = any(each.startswith("deny") for each in sides.split(" "))
    assert (found["verdict"] == "deny") == denied == ("reason" in found)


HOST = {"enable-host-firewall": True}
NODES = {"enable-node-selector-labels": True}
SETTINGS: list[tuple[str, dict[str, Any], list[tuple[str, str]], str, str]] = [
    ("[intro] always", {"enable-policy": "always"}, [], DB80, "deny-default deny-default"),
    ("[intro] always beats enableDefaultDeny", {"enable-policy": "always"},
     [(CNP, f"{{{ALL}, egress: [{{toEntities: [all]}}], ingress: [{{}}], enableDefaultDeny: {{ingress: false}}}}")], DB80,
     "allow deny-default"),
    ("[intro] never", {"enable-policy": "never"}, [(CNP, f"{{{ALL}, ingressDeny: [{{fromEntities: [all]}}]}}")], DB80,
     "allow allow"),
    ("[intro] audit of a default", {"policy-audit-mode": True}, [(NP, "{podSelector: {}}")], DB80, "allow audit"),
    ("[intro] audit of a rule", {"policy-audit-mode": True},
     [(CNP, f"{{{ALL}, ingressDeny: [{{fromEntities: [all]}}]}}")], DB80, "allow audit"),
    ("[l3] allow-localhost policy", {"allow-localhost": "policy"}, [(CNP, f"{{{DB}, ingress: [{{}}]}}")],
     "node:n2 > shop/db TCP/80", "- deny-default"),
    ("[cm] clusters at large", {"policy-default-local-cluster": False},
     [(CNP, f"{{{DB}, ingress: [{{fromEndpoints: [{{}}]}}]}}")], "west:shop/front > shop/db TCP/80", "allow allow"),
    ("[l3] CIDR about nodes", {"policy-cidr-match-mode": "nodes"},
     [(CNP, f"{{{DB}, ingress: [{{fromCIDR: [172.16.0.0/16]}}]}}")], "node:n1 > shop/db TCP/80", "- allow"),
    ("[l3] and still not about pods", {"policy-cidr-match-mode": ["nodes"]},
     [(CNP, f"{{{DB}, ingress: [{{fromCIDR: [10.0.0.0/8]}}]}}")], DB80, "allow deny-default"),
    ("[node] fromNodes", NODES, [(CNP, f"{{{DB}, ingress: [{{fromNodes: [{{matchLabels: {{zone: a}}}}]}}]}}")],
     "node:n1 > shop/db TCP/80", "- allow"),
    ("[node] of the own cluster by default", NODES, [(CNP, f"{{{DB}, ingress: [{{fromNodes: [{{matchLabels: {{zone: a}}}}]}}]}}")], "node:west:m1 > shop/db TCP/80", "- deny-default"),
    ("[node] of another by its label", NODES, [(CNP, f"{{{DB}, ingress: [{{fromNodes: [{{matchLabels: {{io.cilium.k8s.policy.cluster: west}}}}]}}]}}")], "node:west:m1 > shop/db TCP/80", "- allow"),
    ("[node] toNodes", NODES, [(CNP, f"{{{FRONT}, egress: [{{toNodes: [{{matchLabels: {{zone: b}}}}]}}]}}")],
     "shop/front > node:n2 TCP/80", "allow -"),
    ("[host] of a selected node", HOST, [(CCNP, "{nodeSelector: {matchLabels: {zone: b}}, ingress: [{fromEntities: [world]}]}")], "shop/front > node:n2 TCP/22", "allow deny-default"),
    ("[host] not of another", HOST, [(CCNP, "{nodeSelector: {matchLabels: {zone: b}}, ingress: [{}]}")],
     "shop/front > node:n1 TCP/22", "allow allow"),
    ("[host] what a node sends", HOST, [(CCNP, "{nodeSelector: {}, egress: [{toEntities: [cluster]}]}")],
     "node:n1 > ip:203.0.113.9 TCP/443", "deny-default -"),
    ("[host] about pods it says nothing", HOST, [(CCNP, "{nodeSelector: {}, ingress: [{}]}")], DB80, "allow allow"),
    ("[intro] one kind switched off", {"enable-k8s-networkpolicy": "false"}, [(NP, "{podSelector: {}}")], DB80,
     "allow allow"),
    ("[repo] without policies that do not enforce", {"enable-non-default-deny-policies": False},
     [(CNP, f"{{{ALL}, ingress: [{{}}], enableDefaultDeny: {{ingress: false}}}}")], DB80, "allow deny-default"),
    ("[intro] Cilium's own ConfigMap", {"kind": "ConfigMap", "data": {"enable-policy": "always", "mtu": "1500"}}, [], DB80,
     "deny-default deny-default"),
]  # fmt: skip


@pytest.mark.parametrize(("source", "settings", "policies", "flow", "sides"), SETTINGS)
def test_published_settings(source: str, settings: Any, policies: Any, flow: str, sides: str) -> None:
    """What each side says under a setting."""
    assert said(judged(policies, read_flow(flow), settings)) == sides




def http(rule: str, more: str = "", subject: str = DB, section: str = "ingress") -> tuple[str, str]:
    """A policy with one rule about requests on port 80."""
    ports = "toPorts: [{ports: [{port: '80', protocol: TCP}], rules: {http: [" + rule + "]}}]"
    return CNP, f"{{{subject}, {section}: [{{{ports}}}]{more}}}"


GET = "{method: GET, path: '/v1/.*'}"
HTTP_CASES: list[tuple[str, list[tuple[str, str]], str, dict[str, Any], str]] = [
    ("[l7] redirect, and the answer", [http(GET)], DB80,
     {"http": {"method": "GET", "path": "/v1/a"}}, "allow redirect allow"),
    ("[l7] anchored at both ends", [http(GET)], DB80,
     {"http": {"method": "GETS", "path": "/v1/a"}}, "allow redirect deny"),
    ("[l7] no request, no answer", [http(GET)], DB80, {}, "allow redirect"),
    ("[l7] another port is denied", [http(GET)], "shop/front > shop/db TCP/81",
     {"http": {"path": "/v1/a"}}, "allow deny-default"),
    ("[l7] rules of several policies: or", [http(GET),
     http("{method: POST}")], DB80, {"http": {"method": "POST", "path": "/x"}},
     "allow redirect allow"),
    ("[l7] a layer 4 rule opens all requests", [http(GET),
     (NP, "{podSelector: {}, ingress: [{ports: [{port: 80}]}]}")], DB80, {"http": {"path": "/x"}}, "allow redirect allow"),
    ("[map] deny wins over redirect", [http(GET, ", ingressDeny: [{fromEntities: [all]}]")],
     DB80, {"http": {"path": "/v1/a"}}, "allow deny-explicit"),
    ("[l4go] where nothing is denied by default every request passes",
     [http(GET, ", enableDefaultDeny: {ingress: false}")], DB80, {"http": {"path": "/x"}},
     "allow redirect allow"),
    ("[map] the own host's requests all pass", [http(GET)], "node:n2 > shop/db TCP/80",
     {"http": {"path": "/x"}}, "- redirect allow"),
    ("[l7] both sides look", [http(GET), http("{method: PUT}", subject=FRONT, section="egress")], DB80, {"http": {"method": "GET", "path": "/v1/a"}}, "redirect redirect deny"),
    ("[l7] host", [http("{host: '.*[.]example[.]com'}")], DB80,
     {"http": {"host": "a.example.com"}}, "allow redirect allow"),
    ("[l7] POSIX classes", [http("{path: '/[[:digit:]]+'}")], DB80,
     {"http": {"path": "/12"}}, "allow redirect allow"),
    ("[l7] a header by name, any case", [http("{headers: [X-Token]}")], DB80,
     {"http": {"headers": {"x-token": "any"}}}, "allow redirect allow"),
    ("[l7] headerMatches by value", [http("{headerMatches: [{name: A, value: b}]}")],
     DB80, {"http": {"headers": {"A": "c"}}}, "allow redirect deny"),
    *((f"[l7] mismatch {action}", [http(f"{{headerMatches: [{{name: A, value: b, mismatch: {action}}}]}}")],
       DB80, {"http": {}}, "allow redirect allow") for action in ("LOG", "ADD", "DELETE", "REPLACE")),
]  # fmt: skip
DNS = "toPorts: [{{ports: [{{port: '53', protocol: ANY}}], rules: {{dns: [{}]}}}}]"
SNI = "toPorts: [{{ports: [{{port: '443', protocol: TCP}}], serverNames: ['{}']}}]"
HTTP_CASES += [
    (f"[dns] {written} and {name}", [(CNP, f"{{{FRONT}, egress: [{{{DNS.format(written)}}}]}}")],
     "shop/front > ip:203.0.113.9 UDP/53", {"dns": name}, f"redirect - {answered}")
    for written, name, answered in [
        ("{matchName: a.example.com}", "A.example.com.", ON), ("{matchPattern: '*'}", "x.y.z", ON),
        ("{matchPattern: '*.example.com'}", "a.b.example.com", OFF), ("{matchPattern: '**.example.com'}", "a.b.example.com", ON),
        ("{matchPattern: '*.example.com'}", "example.com", OFF),
    ]
]  # fmt: skip
HTTP_CASES += [
    (f"[l7] SNI {written} and {name}", [(CNP, f"{{{FRONT}, egress: [{{{SNI.format(written)}}}]}}")],
     "shop/front > ip:203.0.113.9 TCP/443", {"sni": name}, f"redirect - {answered}")
    for written, name, answered in [("a.com", "a.com", ON), ("a.com", "b.a.com", OFF), ("*.a.com", "b.a.com", ON)]
]  # fmt: skip


@pytest.mark.parametrize(("source", "policies", "flow", "request_", "sides"), HTTP_CASES)
def test_published_requests(source: str, policies: Any, flow: str, request_: dict[str, Any], sides: str) -> None:
    """What each side says of the connection, and the proxy of the request."""
    assert said(judged(policies, read_flow(flow) | request_, {})) == sides


@pytest.mark.parametrize("path", ["(?=a)b", "a++", r"(a)\1", "[[:letter:]]", "(", "a(?!b)"])
def test_expressions_that_proxies_do_not_understand_are_refused(path: str) -> None:
    """The proxy's language is RE2's: what only Python's has would be judged here and refused there."""
    reader = MeshReader("east", PolicySettings())
    reader.take(policy(*http(f"{{path: '{path}'}}")), "p", "east")
    (refused,) = reader.refused
    assert "must be a regular expression" in str(refused.refusals[0])
