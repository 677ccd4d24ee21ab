"""Lists of what the mesh knows: prefixes that policies name stand in them as the kernel holds them."""

import pytest

from controlplane import events as e
from controlplane.api.endpoint_policy import endpoint_policy, find_endpoints
from controlplane.api.views import items_of
from controlplane.commands.addresses import ChangeSettings
from controlplane.commands.policy import ApplyPolicy
from controlplane.commands.types import Author
from controlplane.model import RESERVED_IDENTITIES, NodeKey
from controlplane.policy.manifests import canonical
from controlplane.projections.state import State
from datapath.codec import prefix_bytes
from tests.controlplane.policy.worlds import cilium_policy
from tests.controlplane.random_mesh import Log
from tests.controlplane.small_mesh import accept, add_endpoint, mesh, table

NODE, OPERATOR = NodeKey("east", "n1"), Author("east", "operator")


def remote(cluster: str, node: str, endpoint_id: int) -> str:
    return "remote"


def apply(log: Log, cluster: str, *prefixes: str) -> None:
    """A policy that allows egress to these."""
    text = canonical(cilium_policy(f"{{endpointSelector: {{}}, egress: [{{toCIDR: {list(prefixes)}}}]}}"))
    log.write(cluster, "operator", e.PolicyApplied("CiliumNetworkPolicy", "shop", "policy", text))


@pytest.fixture
def log() -> Log:
    """Two policies that name prefixes: the world, a network, an address of nobody and one of an endpoint."""
    found = mesh()
    endpoint = add_endpoint(found, "east", "n1", "web", 11)
    prefixes = ("0.0.0.0/0", "198.51.100.0/24", "2001:db8::/32", f"{endpoint.ipv4}/32", "198.51.100.7/32")
    apply(found, "east", *prefixes)
    apply(found, "west", "203.0.113.0/24")
    return found


def test_ip_list_is_the_ipcache_of_the_node(log: Log) -> None:
    """Every prefix once, with the identity that the kernel finds for it."""
    listed = items_of("ip", log.state, NODE, remote)
    held = {(key.prefix_length, key.address): row.identity for key, row in table(log, "ipcache").items()}
    assert {prefix_bytes(item.prefix): item.identity for item in listed} == held
    assert len(listed) == len(held)


def test_identity_list_has_the_labels_of_prefixes(log: Log) -> None:
    """Each number that the node gives to a prefix, with the labels that policies see."""
    known = {item.number: item.labels for item in items_of("identity", log.state, NODE, remote)}
    numbers = {item.prefix: item.identity for item in items_of("ip", log.state, NODE, remote)}
    assert set(numbers.values()) - {RESERVED_IDENTITIES["world"]} <= set(known)
    assert "cidr:198.51.100.0/24" in known[numbers["198.51.100.7/32"]]
    assert not any("cidr:203.0.113.0/24" in labels for labels in known.values())


def test_nodes_that_policies_tell_apart_are_listed(log: Log) -> None:
    """By label and by CIDR: each address with the number that the kernel finds, each number with its labels; without
    the settings all are remote-node again."""
    facts = log.state.nodes["east", "n2"]
    log.write("east", "node.n2", e.NodeJoined("n2", facts.addresses, facts.device, ("k8s:role=gpu", "k8s:zone=a")))
    accept(log, OPERATOR, ChangeSettings('{"enable-node-selector-labels":true,"policy-cidr-match-mode":"nodes"}'))
    spec = "{endpointSelector: {}, ingress: [{fromNodes: [{matchLabels: {role: gpu}}]}, {fromCIDR: [fd02::/64]}]}"
    text = canonical(cilium_policy(spec, "nodes"))
    accept(log, OPERATOR, ApplyPolicy("CiliumNetworkPolicy", "shop", "nodes", text))
    test_ip_list_is_the_ipcache_of_the_node(log)
    for where in (None, NODE):
        numbers = {item.prefix: item.identity for item in items_of("ip", log.state, where, remote)}
        listed = items_of("identity", log.state, where, remote)
        known = {item.number: item.labels for item in listed if item.cluster != "west"}
        own, cluster = known[numbers["192.168.0.2/32"]], "node:io.cilium.k8s.policy.cluster="
        assert {"node:role=gpu", f"{cluster}east", "reserved:remote-node"} == {*own} - {"cidr:0.0.0.0/0"}
    assert numbers["fd02::11/128"] != numbers["192.168.1.1/32"]
    log.write("east", "operator", e.SettingsChanged("{}"))
    test_ip_list_is_the_ipcache_of_the_node(log)
    numbers = {item.prefix: item.identity for item in items_of("ip", log.state, NODE, remote)}
    assert numbers["192.168.0.2/32"] == RESERVED_IDENTITIES["remote-node"]


def test_the_operator_lists_prefixes_of_every_cluster(log: Log) -> None:
    """Under the cluster whose policies name them; the world is listed beside."""
    listed = items_of("ip", log.state, None, remote)
    named = {(item.cluster, item.prefix) for item in listed if item.source == "policy"}
    assert {("east", "198.51.100.0/24"), ("west", "203.0.113.0/24")} <= named
    assert [item.identity for item in listed if item.source == "reserved"] == [RESERVED_IDENTITIES["world"]] * 2


def test_policy_list_says_what_is_selected_enforced_and_since_when(log: Log) -> None:
    """The endpoints by name, each direction, the record that last changed the policy; the settings count."""
    revision = log.state.revision
    (own,) = (item for item in items_of("policy", log.state, NODE, remote) if item.cluster == "east")
    assert (own.selected, own.endpoints) == (1, ["shop/web"])
    assert (own.ingress_enforced, own.egress_enforced) == (False, True)
    assert 0 < own.revision < revision
    log.write("east", "operator", e.SettingsChanged('{"enable-policy":"never"}'))
    (own,) = (item for item in items_of("policy", log.state, NODE, remote) if item.cluster == "east")
    assert not own.egress_enforced
    (endpoint,) = items_of("endpoint", log.state, NODE, remote)
    assert not endpoint.egress_enforced
    apply(log, "east", "192.0.2.0/24")
    (own,) = (item for item in items_of("policy", log.state, NODE, remote) if item.cluster == "east")
    assert own.revision == log.state.revision
    assert State.load(log.state.save()).policy_revisions == log.state.policy_revisions


def test_an_endpoint_shows_the_rows_of_each_rule(log: Log) -> None:
    """By the rule's path; together they are the rows of its identity."""
    (endpoint,) = log.state.endpoints.values()
    found = endpoint_policy(log.state, endpoint)
    (rule,) = found["rules"]
    assert (rule["path"], rule["direction"], rule["verdict"]) == ("spec.egress[0]", "egress", "allow")
    assert rule["rows"] == found["rows"]
    assert len(found["rows"]) == sum(key.subject_identity == endpoint.identity for key in table(log, "policy"))
    own = (endpoint.cluster, endpoint.node)
    for text in (str(endpoint.endpoint_id), "shop/web", "east:shop/web", endpoint.ipv4):
        assert find_endpoints(log.state.endpoints.values(), text, own) == [endpoint]
    assert find_endpoints(log.state.endpoints.values(), str(endpoint.endpoint_id), None) == []
