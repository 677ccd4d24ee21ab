"""Plain models against the programs where services, tunnels, host policies and audit come in: random meshes, each flow
run as a packet from program to program.

What a service may lead to is written here once more, from what was applied and where the workloads are, without the
compiler of rows.
"""

from collections import Counter
from collections.abc import Iterator
from ipaddress import ip_address, ip_network
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import pytest

from controlplane import events as e
from controlplane.commands.addresses import ChangeSettings
from controlplane.commands.endpoint import ConfigureEndpoint
from controlplane.commands.policy import ApplyPolicy
from controlplane.commands.service import ApplyService, ReportBackends
from controlplane.commands.types import Author
from controlplane.commands.workload import ApplyWorkload
from controlplane.history.ends import Mesh
from controlplane.history.provenance import Origins
from controlplane.history.why import explain, read_port
from controlplane.model import Backend, Exposure, ServicePort, Tunnel
from controlplane.policy.manifests import canonical
from controlplane.runtime.rehearsing import rehearse_on
from datapath.kernel.rehearsal import Rehearsal
from tests.bpf.test_model_and_programs import PLACES, PODS, world
from tests.controlplane.policy.worlds import network_policy
from tests.controlplane.random_mesh import Log
from tests.controlplane.small_mesh import UNDERLAY, accept, device, underlay_device

pytestmark = pytest.mark.kernel("bpf_redirect_peer")

EAST = Author("east", "operator")
MESHES, FLOWS = 32, 60
SLICE = {"198.51.100.50": "", "10.2.1.2": "n1"}
"""Backends that are no workloads of the cluster, and the nodes that the slice names: one is outside of the mesh."""
CLIENTS = ("198.51.100.7", "203.0.113.9", "2001:db8::7")
RANGES = ("198.51.100.0/24", "2001:db8::/32")
TARGET, NODE_PORT, EXTERNAL = 8080, 30080, "203.0.113.81"
UNDERLAY_ADDRESSES = {address: place for place, addresses in UNDERLAY.items() for address in addresses}


class Applied(NamedTuple):
    """A service of namespace shop in cluster east; `selector` is a value of label app, "" for backends from a slice."""

    selector: str
    port: int
    protocol: str
    exposure: Exposure
    hosted: bool
    """One backend runs in the network of n2 itself."""


class Meshed(NamedTuple):
    """`services` by name."""

    log: Log
    services: dict[str, Applied]
    external_cluster_ip: bool


@pytest.fixture(scope="module")
def copy(objects_dir: Path) -> Iterator[Rehearsal]:
    with Rehearsal(objects_dir) as found:
        yield found


def applied(chance: Random, number: int) -> Applied:
    kind = chance.choice(("ClusterIP", "NodePort", "LoadBalancer"))
    protocol = chance.choice(("TCP", "TCP", "UDP", "SCTP"))
    ranges = RANGES if kind == "LoadBalancer" and chance.random() < 0.4 else ()
    policies = [chance.choice(("Cluster", "Cluster", "Local")) for _ in range(2)]
    exposure = Exposure(
        kind,
        external_ips=(EXTERNAL,) if chance.random() < 0.3 and number == 0 else (),
        load_balancer_ips=(f"203.0.113.8{number + 2}",) if kind == "LoadBalancer" else (),
        source_ranges=ranges,
        external_policy=policies[0] if kind != "ClusterIP" else "Cluster",
        internal_policy=policies[1],
        affinity_s=chance.choice((0, 0, 600)),
    )
    selector = chance.choice(("front", "cart", "db", "nobody", ""))
    return Applied(selector, 80, protocol, exposure, selector == "db" and chance.random() < 0.3)


def meshed(chance: Random) -> Meshed:
    log = world()
    settings: dict[str, Any] = {
        "enable-host-firewall": chance.random() < 0.5,
        "policy-audit-mode": chance.random() < 0.25,
        "bpf-lb-mode": chance.choice(("snat", "snat", "dsr", "hybrid")),
        "bpf-lb-algorithm": chance.choice(("random", "maglev")),
        "bpf-lb-maglev-table-size": 251,
        "bpf-lb-external-clusterip": chance.random() < 0.2,
    }
    for cluster in ("east", "west"):
        accept(log, Author(cluster, "operator"), ChangeSettings(canonical(settings)))
    for key in sorted(log.state.endpoints):
        if chance.random() < 0.1:
            accept(log, Author(key.cluster, "operator"), ConfigureEndpoint(key.node, key.endpoint_id, True))
    if chance.random() < 0.4:
        for place, addresses in UNDERLAY.items():
            joined = e.NodeJoined(place[1], addresses, underlay_device(*place), tunnel=Tunnel("vxlan", 8472, device(3)))
            log.write(place[0], f"node.{place[1]}", joined)
    services = {f"s{number}": applied(chance, number) for number in range(4)}
    for number, (name, service) in enumerate(services.items()):
        node_port = NODE_PORT + number if service.exposure.type != "ClusterIP" else 0
        port = ServicePort("p", service.port, service.protocol, TARGET + number, node_port)
        selector = {"app": service.selector} if service.selector else None
        accept(log, EAST, ApplyService("shop", name, (), (port,), selector, exposure=service.exposure))
        if not service.selector:
            ports = (ServicePort("p", TARGET + number, service.protocol, TARGET + number),)
            listed = tuple(Backend(address, node=node) for address, node in SLICE.items())
            accept(log, EAST, ReportBackends("shop", f"{name}-slice", name, listed, ports))
        if service.hosted:
            declared = ApplyWorkload("shop", "hosted", {"app": "db"}, True, "", {}, "n2", host_network=True)
            accept(log, EAST, declared)
    for number in range(chance.randrange(3)):
        accept(log, EAST, ApplyPolicy("NetworkPolicy", "shop", f"p{number}", canonical(policy(chance, f"p{number}"))))
    if settings["enable-host-firewall"] and chance.random() < 0.7:
        accept(log, EAST, ApplyPolicy("CiliumClusterwideNetworkPolicy", "", "nodes", canonical(host_policy(chance))))
    return Meshed(log, services, settings["bpf-lb-external-clusterip"])


def policy(chance: Random, name: str) -> dict[str, Any]:
    subject = chance.choice(({}, {"matchLabels": {"app": "db"}}, {"matchLabels": {"app": "front"}}))
    peer = chance.choice(
        ({"podSelector": {"matchLabels": {"app": "front"}}}, {"ipBlock": {"cidr": "198.51.100.0/24"}},
         {"namespaceSelector": {}})
    )  # fmt: skip
    ports = chance.choice(([], [{"port": TARGET, "endPort": TARGET + 1}], [{"port": TARGET + 1, "protocol": "UDP"}]))
    rule = {"ports": ports} if ports else {}
    spec: dict[str, Any] = {"podSelector": subject, "policyTypes": []}
    for direction, field in (("Ingress", "from"), ("Egress", "to")):
        if chance.random() < 0.5:
            spec["policyTypes"].append(direction)
            spec[direction.lower()] = [{field: [peer], **rule}]
    return network_policy(spec, name)


def host_policy(chance: Random) -> dict[str, Any]:
    entities = chance.sample(("world", "remote-node", "cluster"), chance.randrange(1, 3))
    ports = [{"ports": [{"port": str(NODE_PORT)}, {"port": str(TARGET)}]}]
    rules: dict[str, Any] = {}
    for section, field in (("ingress", "from"), ("egress", "to"), ("ingressDeny", "from")):
        if chance.random() < 0.5:
            rules[section] = [{f"{field}Entities": entities, **({"toPorts": ports} if chance.random() < 0.5 else {})}]
    return {
        "apiVersion": "cilium.io/v2", "kind": "CiliumClusterwideNetworkPolicy", "metadata": {"name": "nodes"},
        "spec": {"nodeSelector": {}, **(rules or {"ingress": []})},
    }  # fmt: skip


def flows(chance: Random, made: Meshed) -> list[dict[str, str]]:
    """Most to frontends, from everywhere; some between nodes, and some from and to nodes."""
    nodes = ["node:n1", "node:n2", "node:west:n1"]
    found = []
    for _ in range(FLOWS):
        source = chance.choice([*PODS, *PODS, *(f"ip:{client}" for client in CLIENTS), *nodes])
        name = chance.choice(sorted(made.services))
        number, service = int(name[1:]), made.services[name]
        target, port, protocol = chance.choice([*nodes, *PODS]), TARGET + number, service.protocol
        if chance.random() < 0.7:
            target, port = chance.choice(list(frontends(made, name)))
        elif chance.random() < 0.2:
            protocol, port = "ICMP", 8
        found.append({"from": source, "to": target, "l4": f"{protocol}/{port}"})
    return found


def frontends(made: Meshed, name: str) -> Iterator[tuple[str, int]]:
    """Where the service is asked for, whether it is to be reached there or not."""
    number, service = int(name[1:]), made.services[name]
    for address in (*cluster_ips(made, name), *service.exposure.load_balancer_ips, *service.exposure.external_ips):
        yield f"ip:{address}", service.port
    for address in UNDERLAY_ADDRESSES:
        yield f"ip:{address}", NODE_PORT + number


# --- what a service may lead to -----------------------------------------------------------------------------------


def backends(made: Meshed, name: str, node: str, local: bool, ipv6: bool) -> set[str]:
    """Addresses that a new flow may go to which asks at a node of cluster east; `local`: of this node only."""
    service, state = made.services[name], made.log.state
    found: dict[str, str] = {}
    for cluster, where, namespace, app, tier in PLACES:
        if (cluster, namespace, app) == ("east", "shop", service.selector):
            (key,) = state.workload_endpoints[cluster, namespace, f"{app}{tier}-{where}"]
            found[state.endpoints[key].ipv6 if ipv6 else state.endpoints[key].ipv4] = where
    if service.selector == "db" and not ipv6 and any(each.hosted for each in made.services.values()):
        found[UNDERLAY["east", "n2"][0]] = "n2"
    if not service.selector and not ipv6:
        found = dict(SLICE)
    return {address for address, where in found.items() if not local or where == node}


Frontends = dict[tuple[str, int, str], tuple[set[str], int, tuple[str, ...]]]
"""By address, port and protocol: backends, their port, and who may ask; () for anyone."""


def reached(made: Meshed, node: str, outside: bool) -> Frontends:
    """The frontends of a node of cluster east, for its endpoints or for the network."""
    found: Frontends = {}
    for number, (name, service) in enumerate(made.services.items()):
        exposure, target = service.exposure, TARGET + number

        def put(address: str, port: int, local: bool, ranges: tuple[str, ...] = ()) -> None:
            allowed = backends(made, name, node, local, ":" in address)  # noqa: B023  # called at once
            found[address, port, service.protocol] = (allowed, target, ranges)  # noqa: B023

        if not outside or made.external_cluster_ip:
            for address in cluster_ips(made, name):
                put(address, service.port, exposure.internal_policy == "Local")
        local = outside and exposure.external_policy == "Local"
        for address in exposure.load_balancer_ips:
            put(address, service.port, local, exposure.source_ranges if outside else ())
        for address in exposure.external_ips:
            put(address, service.port, local)
        if exposure.type != "ClusterIP":
            for address in UNDERLAY["east", node]:
                put(address, NODE_PORT + number, local)
    return found


def cluster_ips(made: Meshed, name: str) -> tuple[str, ...]:
    return next(each for key, each in made.log.state.services.items() if key.name == name).cluster_ips


def check_service(made: Meshed, flow: dict[str, str], packet: dict[str, Any]) -> str:
    """What the programs made of a frontend: "led", "refused", or "" where the flow asked for none."""
    target, client = (_address(flow[end]) for end in ("to", "from"))
    protocol, _, port = flow["l4"].partition("/")
    for step in packet["way"]:
        place, program = step.split()
        cluster, _, node = place.partition("/")
        if cluster != "east" or program in ("to_endpoint", "to_network", "to_overlay"):
            continue
        held = reached(made, node, program != "from_endpoint").get((target, int(port), protocol))
        if held is None:
            continue
        allowed, number, ranges = held
        reason = packet.get("reason", {}).get("name")
        if ranges and client and not any(ip_address(client) in ip_network(each) for each in ranges):
            assert reason == "Denied by LB src range check", (flow, packet)
            return "refused"
        if not allowed:
            assert reason == "Service backend not found", (flow, packet)
            return "refused"
        assert "backend" not in packet or packet["backend"] in {
            f"{address} {protocol}/{number}" for address in allowed
        }, (flow, packet, allowed)
        assert "backend" in packet or packet["verdict"] == "deny", (flow, packet)
        return "led"
    assert "backend" not in packet, (flow, packet)
    return ""


def _address(end: str) -> str:
    """"" of an endpoint, which no source range of these tests has."""
    if end.startswith("node:"):
        cluster, _, node = end.removeprefix("node:").rpartition(":")
        return UNDERLAY[cluster or "east", node][0]
    return end.removeprefix("ip:") if end.startswith("ip:") else ""


def check_explanation(mesh: Mesh, flow: dict[str, str], packet: dict[str, Any]) -> str:
    """What `why` says of the flow, which is what the programs did; "mixed": that depends on the backend."""
    protocol, _, port = flow["l4"].partition("/")
    answer = explain(mesh, mesh.end(flow["from"]), mesh.end(flow["to"]), *read_port(f"{port}/{protocol}"))
    if any("has no port" in reason for reason in answer.reasons):
        return "untranslated"
    assert answer.verdict in ("mixed", packet["verdict"]), (flow, packet, answer.reasons, answer.paths)
    return answer.verdict


# --- the tests ----------------------------------------------------------------------------------------------------


def play(copy: Rehearsal, seed: int) -> Counter[str]:
    """One mesh and its flows; fails at the first on which a model and the programs differ."""
    chance = Random(seed)
    made = meshed(chance)
    asked = flows(chance, made)
    counted: Counter[str] = Counter()
    mesh = Mesh(made.log.state, Origins(), "east")
    for flow, found in zip(asked, rehearse_on(copy, made.log.state, "east", asked), strict=True):
        assert found.get("agrees", True), (seed, flow, found)
        packet = found.get("datapath", found)
        if "error" in packet:
            counted["error"] += 1
            continue
        explained = check_explanation(mesh, flow, packet)
        counted[f"explained {explained}"] += 1
        done = check_service(made, flow, packet)
        counted.update([packet["verdict"], f"service {done}" * bool(done)])
        counted.update({step.split()[1] for step in packet["way"]})
        counted.update(side for side in ("egress", "ingress") if packet.get(side) == "audit")
    return counted


def test_services_tunnels_host_policies_and_audit(copy: Rehearsal) -> None:
    """Some two thousand flows: each was led to a backend that its service has for it, or refused by it; each side was
    judged as the model says of that backend; and of everything that is to be compared there was enough."""
    counted = sum((play(copy, seed) for seed in range(MESHES)), Counter[str]())
    programs = ("from_endpoint", "to_endpoint", "from_network", "from_network_guarded", "to_network", "from_overlay")
    for name in ("allow", "deny", "service led", "service refused", "egress", "ingress", *programs):
        assert counted[name] >= 5, counted
    assert counted["error"] < MESHES * FLOWS / 4, counted
