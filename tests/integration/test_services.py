"""Services end to end: applied as manifests, derived by real agents, asked with real sockets from everywhere.

Belongs here: what takes a whole mesh. Does not belong here: rows (tests/controlplane/test_derive_exposed.py) and packets
(tests/bpf/test_nodeport.py, test_socket.py).
"""

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.integration import exposed, lab
from tests.integration.exposed import NODES, OUTSIDE, Backend, Held, ask, names, service, slices

pytestmark = [pytest.mark.kernel("TCX links"), pytest.mark.kernel("bpf_redirect_peer")]

FAMILIES = ("ipv4", "ipv6")
SNAT, DSR, EXTERNAL, REFUSING, LOCAL, STICKY, EMPTY, HOSTED, ECHO, LEAVING, GUARDED = range(30100, 30111)
HEALTH, HOST_PORT = 30120, 8081
POD, ELSEWHERE = "east/shop/frontend", "east/guest/intruder"
"""On east-1 and on east-2."""
REFUSED = "ConnectionRefusedError"
BOTH = {"frontend", "intruder"}
TIMES = 8
"""Enough in four places to meet both of two backends."""


class Mesh(NamedTuple):
    """Backends by the name of their pod, cluster addresses by service and family."""

    folder: Path
    backends: dict[str, Backend]
    addresses: dict[tuple[str, str], str]


def backends() -> dict[str, Backend]:
    listed = lab.answer("endpoint", "list", "-A", "--socket", lab.socket_of("east-1"))
    return {
        each["workload"]: Backend(each["node"], {family: each[family] for family in FAMILIES})
        for each in listed
        if each["cluster"] == "east"
    }


def documents(found: dict[str, Backend]) -> Iterator[dict[str, Any]]:
    """Every service of this module with its backends."""
    here, there = found["frontend"], found["intruder"]
    yield service("snat", SNAT)
    yield service("direct", DSR, annotations={"service.cilium.io/forwarding-mode": "dsr"})
    ranges = ["172.31.77.0/24", "fd77::/64"]
    yield exposed.balanced("external", 1, EXTERNAL, externalIPs=["172.31.80.2", "fd80::2"],
                           loadBalancerSourceRanges=ranges)  # fmt: skip
    yield exposed.balanced("refusing", 3, REFUSING, loadBalancerSourceRanges=["10.0.0.0/8", "fd88::/64"])
    local = {"externalTrafficPolicy": "Local", "internalTrafficPolicy": "Local", "healthCheckNodePort": HEALTH}
    yield exposed.balanced("local", 4, LOCAL, **local)
    yield service("sticky", STICKY, sessionAffinity="ClientIP")
    yield service("empty", EMPTY)
    yield service("hosted", HOSTED)
    yield service("echo", ECHO, "UDP")
    yield service("leaving", LEAVING)
    yield service("guarded", GUARDED)
    for name in ("snat", "direct", "external", "refusing", "sticky"):
        yield from slices(name, here, there)
    yield from slices("local", here)
    yield from slices("leaving", here)
    yield from slices("hosted", Backend("east-1", NODES["east-1"]), port=exposed.HOSTED_PORT)
    yield from slices("echo", here, protocol="UDP")
    yield from slices("guarded", found["cart"])
    port = {"containerPort": exposed.BACKEND_PORT, "hostPort": HOST_PORT}
    spec = {"nodeName": "east-1", "containers": [{"name": "frontend", "image": "shop", "ports": [port]}]}
    metadata = {"name": "frontend", "namespace": "shop", "labels": {"app": "frontend"}}
    yield {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    """One lab for all tests, with a server in the network of node east-1, and routes outside to the balancer."""
    folder = tmp_path_factory.mktemp("services")
    lab.well("lab", "down")
    try:
        lab.well("lab", "up")
        found = backends()
        exposed.apply(folder, *documents(found))
        listed = lab.answer("service", "list", "--socket", lab.socket_of("east-1"))
        addresses = {
            (each["name"], "ipv6" if ":" in each["address"] else "ipv4"): each["address"]
            for each in listed
            if each["type"] == "ClusterIP" and each["cluster"] == "east"
        }
        lab.well("lab", "exec", "outside", "--", "ip", "route", "add", "172.31.80.0/24", "via", NODES["east-2"]["ipv4"])
        lab.well("lab", "exec", "outside", "--", "ip", "route", "add", "fd80::/64", "via", NODES["east-2"]["ipv6"])
        hosted = exposed.program("east-1", exposed.SERVER, str(exposed.HOSTED_PORT))
        environment = {**lab.ENVIRONMENT, "SHOP_NAME": "hosted"}
        with subprocess.Popen(hosted, env=environment, stderr=subprocess.DEVNULL) as server:
            yield Mesh(folder, found, addresses)
            server.kill()
    finally:
        lab.well("lab", "down")


def at_nodes(port: int) -> list[tuple[str, int]]:
    """The port at both nodes, by both families: east-1, then east-2."""
    return [(NODES[node][family], port) for node in NODES for family in FAMILIES]


@pytest.mark.parametrize("port", [SNAT, DSR])
def test_port_of_a_node_leads_to_backends_here_and_elsewhere(mesh: Mesh, port: int) -> None:
    """Who is elsewhere sees the asked node as its client, or by DSR the client."""
    found = ask("outside", *at_nodes(port), times=TIMES)
    assert set().union(*map(names, found)) == BOTH
    for (address, _), answers in zip(at_nodes(port), found, strict=True):
        family = "ipv6" if ":" in address else "ipv4"
        for each in answers:
            is_here = NODES[each["node"]][family] == address
            assert each["client"] == (OUTSIDE[family] if is_here or port == DSR else address)


@pytest.mark.parametrize("host", [1, 2])
def test_addresses_of_load_balancers_and_external_addresses(mesh: Mesh, host: int) -> None:
    """Routed to a node they lead to the backends, for clients of the source ranges."""
    found = ask("outside", (f"172.31.80.{host}", 80), (f"fd80::{host}", 80), times=TIMES)
    assert all(names(answers) <= BOTH for answers in found)


def test_source_ranges_keep_others_out(mesh: Mesh) -> None:
    """Of the balancer's addresses only; the port of the node is open."""
    assert exposed.is_silent("outside", ("172.31.80.3", 80), ("fd80::3", 80))
    assert all(names(answers) <= BOTH for answers in ask("outside", *at_nodes(REFUSING)))


def test_external_policy_local_keeps_the_client_and_the_node(mesh: Mesh) -> None:
    """The node with a backend shows it the client; the other is silent, and says so to health checks."""
    here = ask("outside", *at_nodes(LOCAL)[:2], times=2)
    clients = {(each["name"], each["client"]) for answers in here for each in answers}
    assert clients == {("frontend", OUTSIDE[family]) for family in FAMILIES}
    assert exposed.is_silent("outside", *at_nodes(LOCAL)[2:])
    statuses = [answers[0].get("status") for answers in ask("outside", *at_nodes(HEALTH))]
    assert statuses == ["200", "200", "503", "503"]


def test_internal_policy_local_refuses_where_there_is_no_backend(mesh: Mesh) -> None:
    """A pod of the backend's node is answered, one of another node is refused at once."""
    asks = [(mesh.addresses["local", family], 80) for family in FAMILIES]
    assert [names(each) for each in ask(POD, *asks)] == [{"frontend"}] * 2
    assert [names(each) for each in ask(ELSEWHERE, *asks)] == [{REFUSED}] * 2


def test_no_backends_are_told_at_once(mesh: Mesh) -> None:
    """To clients outside, in pods and on nodes."""
    asks = [*at_nodes(EMPTY), *((mesh.addresses["empty", family], 80) for family in FAMILIES)]
    assert [names(each) for each in ask("outside", *asks[:4])] == [{REFUSED}] * 4
    for place in (POD, "east-2"):
        assert [names(each) for each in ask(place, *asks)] == [{REFUSED}] * 6


@pytest.mark.parametrize("place", ["east-1", "east-2"])
def test_process_of_a_node_reaches_services(mesh: Mesh, place: str) -> None:
    """Cluster addresses, ports of both nodes, and its own loopback; of DSR too, whose backend may be at home."""
    asks = [(mesh.addresses["snat", family], 80) for family in FAMILIES]
    asks += [("127.0.0.1", SNAT), ("::1", SNAT), *at_nodes(SNAT), *at_nodes(DSR)]
    found = [names(answers) for answers in ask(place, *asks, times=TIMES)]
    assert all(each <= BOTH for each in found)
    assert set().union(*found) == BOTH


def test_loopback_of_a_pod_is_its_own(mesh: Mesh) -> None:
    """Ports of the node are not there."""
    assert [names(each) for each in ask(POD, ("127.0.0.1", SNAT), ("::1", SNAT))] == [{REFUSED}] * 2


@pytest.mark.parametrize("place", ["outside", "east-1", "east-2", POD, ELSEWHERE])
def test_backend_in_a_nodes_own_network(mesh: Mesh, place: str) -> None:
    """Through its own node and through another."""
    assert [names(each) for each in ask(place, *at_nodes(HOSTED))] == [{"hosted"}] * 4


def test_port_of_a_host_is_its_pods(mesh: Mesh) -> None:
    """On the pod's node; nobody listens there on another."""
    *here, refused4, refused6 = map(names, ask("outside", *at_nodes(HOST_PORT)))
    assert here == [{"frontend"}] * 2
    assert refused4 | refused6 == {REFUSED}


def test_pod_reaches_itself(mesh: Mesh) -> None:
    """Through its service, through its node, and through another."""
    asks = [(mesh.addresses["leaving", family], 80) for family in FAMILIES]
    assert [names(each) for each in ask(POD, *asks, *at_nodes(LEAVING))] == [{"frontend"}] * 6


def test_policy_judges_who_comes_through_a_port(mesh: Mesh) -> None:
    """Of a pod that only the cluster may ask: a client outside is denied, also behind the node that it asked."""
    assert exposed.is_silent("outside", *at_nodes(GUARDED)[:2])
    assert [names(each) for each in ask("east-2", *at_nodes(GUARDED))] == [{"cart"}] * 4


def test_terminating_backend_keeps_its_connection_and_gets_no_other(mesh: Mesh) -> None:
    """By both families, through a node elsewhere."""
    here, there = mesh.backends["frontend"], mesh.backends["intruder"]
    port = at_nodes(LEAVING)[2:]
    with Held("outside", "tcp", *port[0]) as first, Held("outside", "tcp", *port[1]) as second:
        exposed.apply(mesh.folder, *slices("leaving", here._replace(is_terminating=True), there))
        assert [names(each) for each in ask("outside", *port, times=8)] == [{"intruder"}] * 2
        assert [first.ask()["name"], second.ask()["name"]] == ["frontend"] * 2


def test_judged_backend_gets_no_new_flows(mesh: Mesh) -> None:
    """In maintenance it is listed so and nobody is sent there, until it is active again."""
    address = mesh.backends["frontend"].addresses["ipv4"]

    def judge(state: str) -> None:
        words = ("service", "backend", f"{address}:8080", "--state", state)
        exposed.wait_realized(int(lab.well(*words, "--socket", lab.socket_of("east-2")).split()[-1]))

    judge("maintenance")
    found = [names(each) for each in ask("outside", *at_nodes(SNAT)[::2], times=TIMES)]
    listed = lab.well("service", "list", "--socket", lab.socket_of("east-1"))
    judge("active")
    assert (found, f"{address}:8080 (maintenance)" in listed) == ([{"intruder"}] * 2, True)


@pytest.mark.parametrize("family", FAMILIES)
def test_socket_of_datagrams_ends_with_its_backend(mesh: Mesh, family: str) -> None:
    """It hears of it, instead of sending to nobody."""
    exposed.apply(mesh.folder, *slices("echo", mesh.backends["frontend"], protocol="UDP"))
    assert [names(each) for each in ask("outside", *at_nodes(ECHO), protocol="udp")] == [{"x"}] * 4
    with Held(ELSEWHERE, "udp", mesh.addresses["echo", family], 80) as held:
        exposed.apply(mesh.folder, *slices("echo", protocol="UDP"))
        assert held.ask().get("error") not in (None, "TimeoutError")


def test_client_keeps_its_backend_over_a_restart_of_the_agent(mesh: Mesh) -> None:
    """One that a client outside has through a node, and one that a pod has."""
    def chosen(place: str) -> list[set[str]]:
        return [names(each) for each in ask(place, *at_nodes(STICKY)[2:], times=6)]

    before = chosen("outside"), chosen(ELSEWHERE)
    assert [len(each) for place in before for each in place] == [1] * 4
    os.kill(lab.recorded_pid("agent-east-2"), signal.SIGKILL)
    lab.well("lab", "up")
    assert (chosen("outside"), chosen(ELSEWHERE)) == before
