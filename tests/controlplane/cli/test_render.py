"""`meshlog render`: one node's tables from manifests alone."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.controlplane.cli.conftest import Run

MANIFESTS = """
apiVersion: v1
kind: Node
metadata: {name: n1, labels: {topology.kubernetes.io/zone: a}}
spec: {podCIDR: 10.0.1.0/24}
status: {addresses: [{type: InternalIP, address: 192.168.0.1}]}
---
apiVersion: v1
kind: Node
metadata: {name: n2}
spec: {podCIDR: 10.0.2.0/24}
status: {addresses: [{type: InternalIP, address: 192.168.0.2}]}
---
apiVersion: v1
kind: Pod
metadata: {name: web-1, namespace: shop, labels: {app: web}}
spec: {nodeName: n1, containers: [{name: c, ports: [{name: http, containerPort: 8080}]}]}
status: {podIP: 10.0.1.5}
---
apiVersion: v1
kind: Pod
metadata: {name: web-2, namespace: shop, labels: {app: web}}
spec: {nodeName: n2, containers: [{name: c, ports: [{name: http, containerPort: 8080}]}]}
status: {podIP: 10.0.2.5}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec:
  type: NodePort
  clusterIP: 10.96.0.10
  externalTrafficPolicy: Local
  selector: {app: web}
  ports: [{port: 80, targetPort: http}]
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: closed, namespace: shop}
spec: {podSelector: {}, ingress: [{ports: [{port: http}]}]}
"""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A directory with the manifests."""
    directory = tmp_path / "manifests"
    directory.mkdir()
    (directory / "all.yaml").write_text(MANIFESTS)
    return directory


def rendered(run: Run, place: Path, *words: str) -> dict[str, Any]:
    status, out, error = run("render", "--manifests", str(place), "--node", "n1", "-o", "json", *words)
    assert status == 0, error
    found: dict[str, Any] = json.loads(out)
    return found


def test_services_of_a_node(run: Run, place: Path) -> None:
    """Frontends in each scope, their backends in order, the chosen node port."""
    found = rendered(run, place)["services"]
    frontends = {
        (each["frontend"]["address"], each["frontend"]["port"], each["frontend"]["scope"]): [
            backend["address"] for backend in each["backends"]
        ]
        for each in found
    }
    assert frontends == {
        ("10.96.0.10", 80, "internal"): ["10.0.1.5", "10.0.2.5"],
        ("192.168.0.1", 30000, "internal"): ["10.0.1.5", "10.0.2.5"],
        ("192.168.0.1", 30000, "external"): ["10.0.1.5"],
    }
    assert found[0]["backends"][1] == {
        "address": "10.0.2.5", "port": 8080, "state": "active", "weight": 1, "node": "n2", "cluster": "default",
        "selected": True,
    }  # fmt: skip


def test_policy_ipcache_and_routes(run: Run, place: Path) -> None:
    """What the policy allows, who has which address, and how to reach it."""
    found = rendered(run, place)
    (policy,) = found["policy"]
    assert (policy["endpoints"], policy["ingress_enforced"], policy["egress_enforced"]) == (["shop/web-1"], True, False)
    assert policy["rows"][0] == {
        "direction": "ingress", "verdict": "allow", "remote_identity": 0, "remote_labels": ["any"], "protocol": "TCP",
        "ports": "8080",
    }  # fmt: skip
    nodes = {each["prefix"]: each["node"] for each in found["ipcache"]}
    assert (nodes["10.0.1.5/32"], nodes["10.0.2.5/32"]) == ("", "192.168.0.2")
    routes = {each["prefix"]: each["gateway"] or each["endpoint"] for each in found["routes"]}
    assert routes == {"10.0.2.0/24": "192.168.0.2", "10.0.1.5/32": "shop/web-1"}


def test_words_about_the_node_and_its_backends(run: Run, place: Path, tmp_path: Path) -> None:
    """They go before the Node object; health is by address, or by address and port."""
    health = tmp_path / "health.json"
    health.write_text('{"10.0.1.5:8080/TCP": "quarantined", "10.0.2.5": "healthy"}')
    found = rendered(run, place, "--node-address", "192.0.2.7", "--backend-health", str(health), "--only", "services")
    assert {each["frontend"]["address"] for each in found["services"]} == {"10.96.0.10", "192.0.2.7"}
    assert [(each["address"], each["state"]) for each in found["services"][0]["backends"]] == [
        ("10.0.2.5", "active"),
        ("10.0.1.5", "quarantined"),
    ]
    assert "policy" not in found


def test_a_node_that_no_manifest_is_about_gets_a_note(run: Run, place: Path) -> None:
    """With the names of those that are there; not where the command line says what it is."""
    for node, words, noted in (("n3", (), True), ("n3", ("--node-address", "192.0.2.7"), False), ("n1", (), False)):
        status, _, error = run("render", "--manifests", str(place), "--node", node, *words)
        assert status == 0 and ("there are n1, n2" in error) is noted, error


def test_settings_choose_the_algorithm(run: Run, place: Path, tmp_path: Path) -> None:
    """By Cilium's names; a value that is none is refused with the field."""
    good, bad = tmp_path / "good.json", tmp_path / "bad.json"
    good.write_text('{"bpf-lb-algorithm": "maglev", "bpf-lb-mode": "dsr", "bpf-lb-maglev-table-size": 251}')
    bad.write_text('{"bpf-lb-maglev-table-size": 250}')
    found = rendered(run, place, "--settings", str(good))["services"]
    assert [each["algorithm"] for each in found] == ["random", "maglev", "maglev"]
    status, _, error = run("render", "--manifests", str(place), "--node", "n1", "--settings", str(bad))
    assert status == 1
    assert "bpf-lb-maglev-table-size: 250: must be one of 251" in error


def test_settings_tell_nodes_apart(run: Run, place: Path, tmp_path: Path) -> None:
    """The other node has an identity of its own where a policy asks for its label, and the row of the policy names it."""
    settings = tmp_path / "settings.json"
    settings.write_text('{"enable-node-selector-labels": true}')
    (place / "nodes.yaml").write_text(
        "apiVersion: v1\nkind: Node\nmetadata: {name: n3, labels: {role: gpu}}\n"
        "status: {addresses: [{type: InternalIP, address: 192.168.0.3}]}\n---\n"
        "apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {name: nodes, namespace: shop}\n"
        "spec: {endpointSelector: {}, ingress: [{fromNodes: [{matchLabels: {role: gpu}}]}]}\n"
    )
    found = rendered(run, place, "--settings", str(settings))
    (own,) = (row for row in found["ipcache"] if row["prefix"] == "192.168.0.3/32")
    assert (own["identity"] >> 24, "node:role=gpu" in own["labels"]) == (2, True)
    assert own["identity"] in {row["remote_identity"] for each in found["policy"] for row in each["rows"]}
    status, _, error = run("render", "--manifests", str(place), "--node", "n1")
    assert (status, "needs the setting enable-node-selector-labels" in error) == (1, True)


def test_the_table_names_each_part(run: Run, place: Path) -> None:
    """For people: a heading for each part, and rows below it."""
    status, out, _ = run("render", "--manifests", str(place), "--node", "n1")
    assert status == 0
    words = " ".join(out.split())
    assert "SERVICES SERVICE FRONTEND SCOPE" in words
    assert "shop/web 192.168.0.1:30000/TCP external NodePort 1 => 10.0.1.5:8080 (active) local_backends" in words


def test_what_cannot_be_used_is_told_at_once(run: Run, place: Path) -> None:
    """Half of a mesh has other tables, so nothing is printed."""
    (place / "wrong.yaml").write_text("apiVersion: v1\nkind: Service\nmetadata: {name: bad}\nspec: {port: 80}\n")
    (place / "twice.yaml").write_text(MANIFESTS.split("---")[2].replace("web-1", "web-3"))
    status, out, error = run("render", "--manifests", str(place), "--node", "n1")
    assert (status, out) == (1, "")
    assert "spec.port: 80: unknown field; did you mean ports?" in error
    assert 'status.podIP: 10.0.1.5: pod shop/web-1 has it too' in error
