"""The plain model of a verdict against the programs: random meshes, policies and flows, each flow run as a packet."""

from collections import Counter
from collections.abc import Iterator
from random import Random
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from controlplane.commands.namespace import ApplyNamespace
from controlplane.commands.policy import ApplyPolicy
from controlplane.commands.types import Author
from controlplane.policy.manifests import canonical
from controlplane.runtime.rehearsing import rehearse_on
from datapath.kernel.rehearsal import Rehearsal
from tests.controlplane.policy.worlds import cilium_policies, network_policies
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


def play(copy: Rehearsal, written: list[tuple[str, dict[str, Any]]], asked: list[dict[str, str]]) -> Counter[str]:
    """How many flows came to what; fails at the first on which model and programs differ."""
    log = world()
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
