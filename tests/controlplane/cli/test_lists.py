"""Lists: the columns that Cilium's users know, and the formats."""

import json
from typing import Any

import msgspec
import pytest
import yaml

from controlplane.api import kernel_views, schema
from controlplane.api.client import ITEM_TYPES
from controlplane.cli import bpf, sysdump
from tests.controlplane.cli.conftest import Run
from tests.controlplane.cli.fake_agent import FakeAgent

ENDPOINT: dict[str, Any] = {
    "cluster": "east", "node": "n1", "endpoint_id": 7, "namespace": "shop", "workload": "cart",
    "ingress_enforced": True, "egress_enforced": False, "identity": 65793, "labels": ["k8s:app=cart", "k8s:team=shop"],
    "ipv4": "10.1.0.7", "ipv6": "fd00:1::7", "device": "ml7", "container_id": "c", "interface": "eth0",
    "state": "ready",
    "audited": False,
    "configured_audit": False,
}
ITEMS: dict[str, dict[str, Any]] = {
    "node": {"cluster": "east", "name": "n1", "ipv4": "192.0.2.1", "ipv6": "2001:db8::1",
             "pod_cidrs": ["10.1.0.0/24", "fd00:1::/64"], "device": "eth0", "labels": [], "endpoints": 1,
             "local": True},
    "endpoint": ENDPOINT,
    "identity": {"number": 2, "cluster": "", "labels": ["reserved:world"], "endpoints": 0},
    "service": {"cluster": "east", "namespace": "shop", "name": "cart", "type": "ClusterIP", "address": "10.96.0.4",
                "port": 80, "port_name": "http", "protocol": "TCP", "is_global": False,
                "backends": [{"address": "10.1.0.7", "port": 8080, "cluster": "east", "state": "active", "node": "n1",
                              "weight": 1, "selected": True}],
                "scope": "", "flags": [], "affinity_s": 0, "source_ranges": [], "kind": "Service"},
    "policy": {"cluster": "east", "kind": "NetworkPolicy", "namespace": "shop", "name": "p", "selected": 1,
               "endpoints": ["shop/web"], "ingress_enforced": True, "egress_enforced": False, "revision": 7},
    "ip": {"prefix": "10.1.0.7/32", "identity": 65793, "source": "endpoint", "cluster": "east", "node": "n1",
           "name": "x"},
}
HEADERS = {
    "node": "Name IPv4 Address Endpoint CIDR IPv6 Address Endpoint CIDR Source",
    "endpoint": "ENDPOINT POLICY (ingress) POLICY (egress) IDENTITY LABELS (source:key[=value]) IPv6 IPv4 STATUS",
    "identity": "ID LABELS REFCOUNT",
    "service": "ID Frontend Service Type Backend",
    "policy": "CLUSTER KIND NAMESPACE NAME ENDPOINTS",
    "ip": "IP IDENTITY SOURCE",
}


def serve(agent: FakeAgent, kind: str, *items: dict[str, Any]) -> None:
    """The listing of a kind."""
    agent.answers["GET", f"/v1/list/{kind}"] = (200, {"kind": kind, "revision": 9, "items": list(items)})


@pytest.mark.parametrize("kind", sorted(HEADERS))
def test_items_of_these_tests_are_those_of_the_api(kind: str) -> None:
    """What the tests serve has exactly the fields of the API's shapes, so that a change there shows here."""
    assert msgspec.to_builtins(msgspec.convert(ITEMS[kind], ITEM_TYPES[kind])) == ITEMS[kind]


@pytest.mark.parametrize("kind", sorted(HEADERS))
def test_headers_are_those_of_cilium(agent: FakeAgent, run: Run, kind: str) -> None:
    """The first line of each table has the columns that users of cilium-dbg know."""
    serve(agent, kind, ITEMS[kind])
    status, out, _ = run(kind, "list")
    assert (status, " ".join(out.splitlines()[0].split())) == (0, HEADERS[kind])


@pytest.mark.parametrize("kind", sorted(HEADERS))
@pytest.mark.parametrize("form", ["json", "yaml"])
def test_documents_are_the_items_as_served(agent: FakeAgent, run: Run, kind: str, form: str) -> None:
    """JSON and YAML hold the items unchanged, for scripts."""
    serve(agent, kind, ITEMS[kind])
    _, out, _ = run(kind, "ls", "-o", form)
    assert (json.loads(out) if form == "json" else yaml.safe_load(out)) == [ITEMS[kind]]


@pytest.mark.parametrize("kind", sorted(HEADERS))
def test_wide_shows_more_columns(agent: FakeAgent, run: Run, kind: str) -> None:
    """-o wide works everywhere and never shows less than the table."""
    serve(agent, kind, ITEMS[kind])
    narrow = run(kind, "list")[1].splitlines()[0]
    assert len(run(kind, "list", "-o", "wide")[1].splitlines()[0]) >= len(narrow)


def test_endpoint_list_has_two_header_lines(agent: FakeAgent, run: Run) -> None:
    """ENFORCEMENT stands below both policy columns."""
    serve(agent, "endpoint", ENDPOINT)
    assert run("endpoint", "list")[1].splitlines()[1].split() == ["ENFORCEMENT", "ENFORCEMENT"]


def test_labels_stand_one_per_line(agent: FakeAgent, run: Run) -> None:
    """An endpoint of two labels takes two lines, the second blank but for the label."""
    serve(agent, "endpoint", ENDPOINT)
    assert run("endpoint", "list")[1].splitlines()[3].split() == ["k8s:team=shop"]


def test_endpoint_list_shows_the_nodes_own(agent: FakeAgent, run: Run) -> None:
    """Endpoints of other nodes are left out."""
    serve(agent, "endpoint", ENDPOINT | {"state": "remote"})
    assert "No entries found." in run("endpoint", "list")[2]


def test_endpoint_list_shows_all_nodes_where_asked(agent: FakeAgent, run: Run) -> None:
    """-A shows endpoints of other nodes too."""
    serve(agent, "endpoint", ENDPOINT | {"state": "remote"})
    assert "10.1.0.7" in run("endpoint", "list", "-A")[1]


def test_service_rows_read_as_in_cilium(agent: FakeAgent, run: Run) -> None:
    """Frontend with protocol, backend with number, arrow and state."""
    serve(agent, "service", ITEMS["service"])
    line = " ".join(run("service", "list")[1].splitlines()[1].split())
    assert line == "1 10.96.0.4:80/TCP ClusterIP 1 => 10.1.0.7:8080 (active)"


def test_nothing_found_is_said_on_standard_error(agent: FakeAgent, run: Run) -> None:
    """An empty list prints no header on standard output, and is no failure."""
    serve(agent, "ip")
    assert run("ip", "list") == (0, "", "No entries found.\n")


def test_headers_can_be_left_out(agent: FakeAgent, run: Run) -> None:
    """--no-headers prints rows only."""
    serve(agent, "ip", ITEMS["ip"])
    assert run("ip", "list", "--no-headers")[1].split()[0] == "10.1.0.7/32"


BPF_ROWS: dict[str, dict[str, Any]] = {
    "endpoint": {"address": "10.1.0.7", "endpoint_id": 7, "identity": 65793, "ifindex": 3, "mac": "02:00:00:00:00:01",
                 "host_mac": "02:00:00:00:00:02", "flags": []},
    "ipcache": {"prefix": "10.1.0.7/32", "identity": 65793, "node": "192.0.2.1", "flags": []},
    "policy": {"subject_identity": 65793, "direction": "ingress", "verdict": "allow", "remote_identity": 0, "port": 80,
               "port_prefix": 16, "protocol": "TCP"},
    "lb": {"address": "10.96.0.4", "port": 80, "protocol": "TCP", "scope": "external", "backend_set": "00ff00ff00ff00ff",
           "count": 1, "flags": ["node_port", "dsr"], "affinity_s": 10800, "maglev_slots": 16381,
           "source_ranges": ["192.0.2.0/24"], "backends_missing": 0,
           "backends": [{"address": "10.1.0.7", "port": 8080, "state": "active"},
                        {"address": "10.1.0.8", "port": 8080, "state": "terminating"}]},
    "affinity": {"client": "198.51.100.9", "address": "10.96.0.4", "port": 80, "protocol": "TCP", "backend": "10.1.0.7",
                 "backend_port": 8080, "idle_s": 1.5},
    "ct": {"protocol": "TCP", "source": "10.1.0.7", "source_port": 5, "target": "10.1.0.8", "target_port": 80,
           "translated": "", "translated_port": 0, "source_identity": 65793, "expires_s": 10.0, "policy_epoch": 9,
           "forward_packets": 1, "forward_bytes": 70, "reply_packets": 0, "reply_bytes": 0, "forward_tcp_flags": "SYN",
           "reply_tcp_flags": "", "flags": []},
    "nat": {"direction": "outbound", "protocol": "TCP", "near": "10.1.0.7", "near_port": 5, "far": "198.51.100.9",
            "far_port": 443, "translated": "192.0.2.1", "translated_port": 10007},
    "metrics": {"reason": "policy denied", "reason_code": 133, "direction": "ingress", "packets": 2, "bytes": 140},
}


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("endpoint", "10.1.0.7 id=7 identity=65793 flags=none ifindex=3"),
        ("ipcache", "10.1.0.7/32 identity=65793 encryptkey=0 tunnelendpoint=192.0.2.1 flags=<none>"),
        ("policy", "65793 Allow Ingress ANY 80/TCP 16"),
        ("lb", "10.1.0.7:8080/TCP (00ff00ff) (1)"),
        ("lb", "10.96.0.4:80/TCP/e 0.0.0.0:0 (00ff00ff) (0) [NodePort, dsr, sessionAffinity(10800s), maglev(16381)"),
        ("lb", "maglev(16381), check source-range(192.0.2.0/24)]"),
        ("lb", "10.1.0.8:8080/TCP (00ff00ff) (2) [terminating]"),
        ("affinity", "198.51.100.9 10.96.0.4:80/TCP 10.1.0.7:8080/TCP 1.5s"),
        ("ct", "TCP 10.1.0.7:5 -> 10.1.0.8:80 expires=10.0 Packets=1 Bytes=70"),
        ("nat", "TCP OUT 10.1.0.7:5 -> 198.51.100.9:443 XLATE_SRC 192.0.2.1:10007"),
        ("metrics", "Policy denied INGRESS 2 140"),
    ],
)
def test_bpf_lists_read_as_in_cilium(agent: FakeAgent, run: Run, kind: str, words: str) -> None:
    """A row of each map, as users of cilium-dbg know it."""
    agent.answers["GET", f"/v1/bpf/{kind}"] = (200, {"kind": kind, "revision": 9, "rows": [BPF_ROWS[kind]]})
    assert words in " ".join(run("bpf", kind, "list")[1].split())


@pytest.mark.parametrize(
    ("word", "address", "port", "protocol"),
    [("10.1.0.2:8080", "10.1.0.2", 8080, "TCP"), ("[fd00::2]:53/udp", "fd00::2", 53, "UDP")],
)
def test_backend_is_judged(agent: FakeAgent, run: Run, word: str, address: str, port: int, protocol: str) -> None:
    """By its address, port and protocol."""
    agent.answers["POST", "/v1/backends"] = (200, {"revision": 9, "changed": True})
    status, out, _ = run("service", "backend", word, "--state", "maintenance")
    assert (status, "maintenance, changed, revision 9" in out) == (0, True)
    body = {"address": address, "port": port, "protocol": protocol, "state": "maintenance"}
    assert agent.asked == [("POST", "/v1/backends", body)]


def test_backend_without_a_port_is_wrong_usage(run: Run) -> None:
    """With an example of what would be right."""
    status, _, errors = run("service", "backend", "fd00::2", "--state", "active")
    assert (status, "[fd00::2]:53/UDP" in errors) == (2, True)


def test_every_map_that_can_be_listed_is_served() -> None:
    """The kinds of the command, of the agent's route and of what it reads are the same; sysdump asks for all of them."""
    kinds = set(bpf.KINDS)
    assert set(schema.BPF_KINDS) == set(kernel_views.KIND_TABLES) | set(kernel_views.KIND_RUNTIME_MAPS) == kinds
    assert (set(sysdump.MAPS), set(sysdump.LISTS)) == (kinds, set(schema.LIST_KINDS))


def test_one_identity_by_its_number(run: Run, agent: FakeAgent) -> None:
    """With its labels, and a number that nobody has is a failure that says where to look."""
    serve(agent, "identity", ITEMS["identity"], {**ITEMS["identity"], "number": 65793, "labels": ["k8s:app=cart"]})
    status, out, _ = run("identity", "get", "65793")
    assert (status, out.split("\n")[1].split()) == (0, ["65793", "k8s:app=cart", "0"])
    assert "reserved:world" not in out
    status, _, err = run("identity", "get", "9")
    assert status == 1 and "identity 9: there is none; see meshlog identity list" in err
