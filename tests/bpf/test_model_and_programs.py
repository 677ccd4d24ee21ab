"""The plain model of a verdict against the programs: random meshes, policies and flows, each flow run as a packet."""

from collections import Counter
from collections.abc import Iterator
from random import Random
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from controlplane.commands.addresses import ChangeSettings
from controlplane.commands.namespace import ApplyNamespace
from controlplane.commands.policy import ApplyPolicy
from controlplane.commands.types import Author
from controlplane.commands.workload import ApplyWorkload
from controlplane.events import NodeJoined
from controlplane.policy.manifests import canonical
from controlplane.runtime.rehearsing import rehearse_on
from datapath.kernel.rehearsal import Rehearsal
from tests.controlplane.policy.worlds import cilium_policies, cilium_policy, network_policies, network_policy
from tests.controlplane.random_mesh import Log
from tests.controlplane.small_mesh import accept, add_endpoint, mesh

pytestmark = pytest.mark.kernel("bpf_redirect_peer")

PLACES = (
    ("east", "n1", "shop", "front", ""), ("east", "n1", "shop", "cart", "gold"), ("east", "n1", "guest", "db", "tin"),
    ("east", "n2", "shop", "db", ""), ("east", "n2", "guest", "front", "gold"),
    ("west", "n1", "shop", "cart", ""), ("west", "n1", "guest", "db", "gold"),
)  # fmt: skip
PODS = [f"{cluster}:{namespace}/{app}{tier}-{node}" for cluster, node, namespace, app, tier in PLACES]
OTHERS = ["entity:world", "ip:198.51.100.7", "ip:2001:db8::7", "entity:host", "node:n2", "node:west:n1", "ip:fd02::11"]
L4 = [f"{protocol}/{port}" for protocol in ("TCP", "UDP", "SCTP") for port in (1, 53, 79, 80, 81, 443, 8080, 65535)]
L4 += ["ICMP/0", "ICMP/8", "ICMP/9", "ICMPv6/128"]
FLOWS = 60


@pytest.fixture(scope="module")
def copy(objects_dir: Any) -> Iterator[Rehearsal]:
    with Rehearsal(objects_dir) as found:
        yield found


def world() -> Log:
    """Seven workloads of two namespaces on three nodes of two clusters."""
    log = mesh()
    for cluster in ("east", "west"):
        for namespace in ("shop", "guest"):
            accept(log, Author(cluster, "operator"), ApplyNamespace(namespace, {"team": f"{namespace}-team"}))
    for number, (cluster, node, namespace, app, tier) in enumerate(PLACES):
        labels = {"app": app, "tier": tier} if tier else {"app": app}
        add_endpoint(log, cluster, node, f"{app}{tier}-{node}", 10 + number, namespace, **labels)
    return log


def flows(chance: Random) -> list[dict[str, str]]:
    """One end at least of each is a workload."""
    found = []
    for _ in range(FLOWS):
        ends = [chance.choice(PODS), chance.choice([*PODS, *OTHERS])]
        chance.shuffle(ends)
        found.append({"from": ends[0], "to": ends[1], "l4": chance.choice(L4)})
    return found


@st.composite
def policies(draw: st.DrawFn) -> list[tuple[str, dict[str, Any]]]:
    count = draw(st.integers(1, 4))
    clusters = st.sampled_from(("east", "east", "west"))
    return [(draw(clusters), draw(network_policies(f"p{n}") | cilium_policies(f"p{n}"))) for n in range(count)]


CIDRS = st.sampled_from(("198.51.100.0/24", "198.51.100.7/32", "0.0.0.0/0", "2001:db8::/32", "::/0", "10.0.0.0/8"))
HOLES = st.sampled_from(("198.51.100.7/32", "198.51.100.0/25", "0.0.0.0/1"))
PORTS = st.sampled_from(({"port": "web", "protocol": "TCP"}, {"port": "443", "protocol": "TCP"}, {"port": "53"}))


def _sets(field: str) -> st.SearchStrategy[dict[str, Any]]:
    wide = st.fixed_dictionaries({"cidr": st.just("0.0.0.0/0")}, optional={"except": st.lists(HOLES, max_size=2, unique=True)})
    return st.fixed_dictionaries({field: st.lists(wide, min_size=1, max_size=1)})


@st.composite
def outward_policies(draw: st.DrawFn, name: str) -> dict[str, Any]:
    """A CiliumNetworkPolicy about prefixes, named ports and the API server."""
    entities = st.lists(st.sampled_from(("kube-apiserver", "world", "remote-node")), min_size=1, max_size=2, unique=True)

    def rules(direction: str) -> st.SearchStrategy[list[dict[str, Any]]]:
        peers = (
            st.fixed_dictionaries({f"{direction}CIDR": st.lists(CIDRS, min_size=1, max_size=2, unique=True)})
            | _sets(f"{direction}CIDRSet")
            | st.fixed_dictionaries({f"{direction}Entities": entities})
            | st.fixed_dictionaries({f"{direction}Endpoints": st.just([{}])})
        )
        ports = st.lists(PORTS, min_size=1, max_size=2).map(lambda listed: {"toPorts": [{"ports": listed}]})
        return st.lists(st.tuples(peers, st.just({}) | ports).map(lambda pair: pair[0] | pair[1]), min_size=1, max_size=2)

    spec = {"endpointSelector": draw(st.sampled_from(({}, {"matchLabels": {"app": "front"}})))}
    sections = {"ingress": "from", "ingressDeny": "from", "egress": "to", "egressDeny": "to"}
    for section in draw(st.lists(st.sampled_from(sorted(sections)), min_size=1, max_size=3, unique=True)):
        spec[section] = draw(rules(sections[section]))
    metadata = {"name": name, "namespace": "shop"}
    return {"kind": "CiliumNetworkPolicy", "apiVersion": "cilium.io/v2", "metadata": metadata, "spec": spec}


SEEN = ["node:n1", "node:n2", "node:west:n1", "entity:host", "ip:fd02::1", "ip:10.1.2.1", "ip:10.2.1.1", "ip:192.168.0.9"]
LABELS = {"n1": ("k8s:role=cpu",), "n2": ("k8s:role=gpu", "k8s:zone=a")}
NODES = ({}, {"matchLabels": {"role": "gpu"}}, {"matchLabels": {"zone": "a"}}, {"matchLabels": {"role": "cpu"}},
         {"matchExpressions": [{"key": "role", "operator": "DoesNotExist"}]},
         {"matchExpressions": [{"key": "io.cilium.k8s.policy.cluster", "operator": "Exists"}]})  # fmt: skip
UNDERLAYS = st.sampled_from(("192.168.0.0/24", "192.168.0.2/32", "192.168.0.0/16", "fd02::/64", "10.1.2.0/24", "0.0.0.0/0"))
SETTINGS = (
    {"enable-node-selector-labels": True}, {"policy-cidr-match-mode": "nodes"},
    {"enable-node-selector-labels": True, "policy-cidr-match-mode": "nodes", "allow-localhost": "policy"},
)  # fmt: skip


def nodes_world(settings_of: dict[str, Any]) -> Log:
    """The same mesh with labels at its nodes, under settings by which policies tell these apart."""
    log = world()
    for key, node in sorted(log.state.nodes.items()):
        labels = LABELS.get(node.name, ()) if key.cluster == "east" else ("k8s:role=gpu",)
        log.write(key.cluster, f"node.{node.name}", NodeJoined(node.name, node.addresses, node.device, labels))
        accept(log, Author(key.cluster, "operator"), ChangeSettings(canonical(settings_of)))
    return log


@st.composite
def node_policies(draw: st.DrawFn, name: str) -> dict[str, Any]:
    """A policy about nodes by label, by CIDR, by entity, by ipBlock."""
    if draw(st.integers(0, 4)) == 0:
        blocks = draw(st.lists(UNDERLAYS, min_size=1, max_size=2, unique=True))
        return network_policy({"podSelector": {}, "ingress": [{"from": [{"ipBlock": {"cidr": each}} for each in blocks]}]}, name)
    entities = st.sampled_from(("remote-node", "host", "cluster", "world", "world-ipv4", "kube-apiserver"))
    spec: dict[str, Any] = {"endpointSelector": {}}
    for section in draw(st.lists(st.sampled_from(("ingress", "ingressDeny", "egress", "egressDeny")), min_size=1, max_size=3, unique=True)):
        way = "from" if section.startswith("ingress") else "to"
        peers = (
            st.fixed_dictionaries({f"{way}Nodes": st.lists(st.sampled_from(NODES), min_size=1, max_size=2)})
            | st.fixed_dictionaries({f"{way}CIDR": st.lists(UNDERLAYS, min_size=1, max_size=2, unique=True)})
            | st.fixed_dictionaries({f"{way}Entities": st.lists(entities, min_size=1, max_size=2)})
        )
        spec[section] = draw(st.lists(peers, min_size=1, max_size=2))
    return cilium_policy(spec, name)


MORE_PLACES = (("n1", "shop", "front"), ("n2", "shop", "front"), ("n2", "shop", "db"), ("n1", "guest", "db"))
"""A second and a third endpoint of identities that others have already."""
PORTS_GIVEN = ({}, {"web": (8080, "TCP")}, {"web": (80, "TCP")}, {"web": (53, "UDP")}, {"web": (8080, "TCP"), "dns": (53, "UDP")})
BLOCKS = (
    {"cidr": "0.0.0.0/0"}, {"cidr": "10.1.1.0/24"}, {"cidr": "10.1.1.2/32"}, {"cidr": "::/0"}, {"cidr": "fd00:1::/32"},
    {"cidr": "10.0.0.0/8", "except": ["10.1.2.0/24"]}, {"cidr": "0.0.0.0/0", "except": ["10.1.1.2/32", "10.2.0.0/16"]},
    {"cidr": "fd00::/16", "except": ["fd00:1:0:2::/64"]},
)  # fmt: skip


def mixed_world(chance: Random) -> Log:
    """Endpoints of one identity that stand in other prefixes, and give one port name other numbers."""
    log = world()
    for number, (node, namespace, app) in enumerate(MORE_PLACES):
        labels = {"app": app} if namespace == "shop" else {"app": app, "tier": "tin"}
        add_endpoint(log, "east", node, f"more-{number}", 30 + number, namespace, **labels)
    for key in sorted(log.state.workloads):
        if chance.random() < 0.7:
            held = log.state.workloads[key]
            labels = {name.removeprefix("k8s:"): value for name, _, value in (each.partition("=") for each in held.labels)}
            given = ApplyWorkload(key.namespace, key.name, labels, True, "", chance.choice(PORTS_GIVEN), held.node)
            accept(log, Author(key.cluster, "operator"), given)
    return log


@st.composite
def block_policies(draw: st.DrawFn, name: str) -> dict[str, Any]:
    """A NetworkPolicy about blocks of addresses and named ports, or a CiliumNetworkPolicy that denies by name."""
    ports = st.lists(st.sampled_from(({"port": "web"}, {"port": 8080}, {"port": "dns", "protocol": "UDP"})), max_size=2)
    if draw(st.integers(0, 3)) == 0:
        named = [{"ports": [{"port": draw(st.sampled_from(("web", "dns")))}]}]
        section, way = draw(st.sampled_from((("ingressDeny", "from"), ("egressDeny", "to"))))
        peers = draw(st.sampled_from(({f"{way}Endpoints": [{}]}, {f"{way}Entities": ["all"]}, {})))
        return cilium_policy({"endpointSelector": {}, section: [{**peers, "toPorts": named}]}, name)
    subject = draw(st.sampled_from(({}, {"matchLabels": {"app": "front"}}, {"matchLabels": {"app": "db"}})))
    spec: dict[str, Any] = {"podSelector": subject}
    for section, field in draw(st.sampled_from(((("ingress", "from"),), (("egress", "to"),), (("ingress", "from"), ("egress", "to"))))):
        peers = st.sampled_from(BLOCKS).map(lambda block: {"ipBlock": block}) | st.just({"podSelector": {"matchLabels": {"app": "db"}}})
        rule = st.fixed_dictionaries({"ports": ports}, optional={field: st.lists(peers, min_size=1, max_size=2)})
        spec[section] = draw(st.lists(rule, min_size=1, max_size=2))
    return network_policy(spec, name)


def play(
    copy: Rehearsal, written: list[tuple[str, dict[str, Any]]], asked: list[dict[str, str]], log: Log | None = None
) -> Counter[str]:
    """How many flows came to what; fails at the first on which model and programs differ."""
    log = log or world()
    for cluster, manifest in written:
        name = manifest["metadata"]["name"]
        log.wish(Author(cluster, "operator"), ApplyPolicy(manifest["kind"], "shop", name, canonical(manifest)))
    counted: Counter[str] = Counter()
    for flow, found in zip(asked, rehearse_on(copy, log.state, "east", asked), strict=True):
        assert found.get("agrees", True), (flow, found)
        counted["error" if "agrees" not in found else found["datapath"]["verdict"]] += 1
    return counted


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(policies(), st.integers(0, 1 << 32))
def test_programs_and_model_agree(copy: Rehearsal, written: list[tuple[str, dict[str, Any]]], seed: int) -> None:
    """Three thousand flows: every side that the programs judged was judged as the model says, and the packet passed or
    was dropped accordingly."""
    play(copy, written, flows(Random(seed)))


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(outward_policies("p"), outward_policies("q") | cilium_policies("q"), st.integers(0, 1 << 32))
def test_they_agree_about_prefixes_named_ports_and_the_api_server(
    copy: Rehearsal, outward: dict[str, Any], beside: dict[str, Any], seed: int
) -> None:
    """Beside another policy, the flows of which half go to the outside or come from there."""
    chance = Random(seed)
    asked = flows(chance)
    for flow in asked[::2]:
        end = chance.choice(("from", "to"))
        flow[end], flow["to" if end == "from" else "from"] = chance.choice(OTHERS), chance.choice(PODS)
    play(copy, [("east", outward), ("east", beside)], asked)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.sampled_from(SETTINGS), node_policies("p"), node_policies("q"), st.integers(0, 1 << 32))
def test_they_agree_about_nodes(
    copy: Rehearsal, settings_of: dict[str, Any], first: dict[str, Any], second: dict[str, Any], seed: int
) -> None:
    """Whom policies select by label or by CIDR, the own node and others, of another cluster too, by any address."""
    chance, asked = Random(seed), []
    for _ in range(FLOWS):
        ends = [chance.choice(PODS), chance.choice(SEEN)]
        chance.shuffle(ends)
        asked.append({"from": ends[0], "to": ends[1], "l4": chance.choice(L4)})
    written = [("east", first), (chance.choice(("east", "west")), second)]
    play(copy, written, asked, nodes_world(settings_of))


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(block_policies("p"), block_policies("q"), st.integers(0, 1 << 32))
def test_they_agree_about_endpoints_of_one_identity(
    copy: Rehearsal, first: dict[str, Any], second: dict[str, Any], seed: int
) -> None:
    """Each is judged by its own addresses, IPv4 and IPv6, and by its own numbers of named ports."""
    chance = Random(seed)
    log = mixed_world(chance)
    families = list(zip(*((each.ipv4, each.ipv6) for each in log.state.endpoints.values()), strict=True))
    asked = []
    for _ in range(FLOWS):
        ends = [f"ip:{each}" for each in chance.sample(chance.choice(families), 2)]
        asked.append({"from": ends[0], "to": ends[1], "l4": chance.choice(("TCP/80", "TCP/8080", "UDP/53", "TCP/443"))})
    counted = play(copy, [("east", first), ("east", second)], asked, log)
    assert not counted["error"]


def test_nodes_are_told_apart(copy: Rehearsal) -> None:
    """The comparison is about something: one node passes by its label and no other, and the same by CIDR."""
    labels = {"matchLabels": {"role": "gpu"}}
    allowed = {}
    for settings_of, peer in ((SETTINGS[0], {"fromNodes": [labels]}), (SETTINGS[1], {"fromCIDR": ["192.168.0.2/32"]})):
        log = nodes_world(settings_of)
        policy = canonical(cilium_policy({"endpointSelector": {}, "ingress": [peer]}, "p"))
        accept(log, Author("east", "operator"), ApplyPolicy("CiliumNetworkPolicy", "shop", "p", policy))
        asked = [{"from": each, "to": PODS[0], "l4": "TCP/80"} for each in ("node:n2", "node:west:n1", PODS[1])]
        found = rehearse_on(copy, log.state, "east", asked)
        assert all(each["agrees"] for each in found)
        allowed[next(iter(peer))] = [each["datapath"]["verdict"] for each in found]
    assert allowed == {"fromNodes": ["allow", "deny", "deny"], "fromCIDR": ["allow", "deny", "deny"]}


def test_both_verdicts_occur(copy: Rehearsal) -> None:
    """The comparison is about something: of these flows some pass, some are denied, and few cannot be run."""
    manifest = {
        "kind": "CiliumNetworkPolicy",
        "apiVersion": "cilium.io/v2",
        "metadata": {"name": "p", "namespace": "shop"},
        "spec": {"endpointSelector": {}, "ingress": [{"fromEndpoints": [{"matchLabels": {"app": "front"}}]}],
                 "egressDeny": [{"toEntities": ["world"]}]},
    }  # fmt: skip
    asked = [{"from": one, "to": other, "l4": "TCP/80"} for one in PODS for other in [*PODS, *OTHERS] if one != other]
    counted = play(copy, [("east", manifest)], asked)
    assert counted["allow"] > 20 and counted["deny"] > 10 and counted["error"] < 5, counted
