"""The settings that change what policies mean, by the names that Cilium's users know, and the one document in which
they stand with those of controlplane/balancing.py. Pure.

Belongs here: their values, defaults, and reading them from a document. Does not belong here: settings of processes
(controlplane/settings.py).
"""

from collections.abc import Mapping
from functools import lru_cache
from ipaddress import ip_address
from typing import Any, NamedTuple

import msgspec

from controlplane import balancing
from controlplane.fields import Reading, Refusal
from controlplane.policy.identity_labels import patterns_fault

DEFAULT = "default"
ALWAYS = "always"
NEVER = "never"
ENFORCEMENTS = (DEFAULT, ALWAYS, NEVER)
LOCALHOST = ("auto", "always", "policy")
CIDR_NODES = "nodes"


POLICY_MAP_MAX = 16384
POLICY_MAP_LEAST, POLICY_MAP_MOST = 256, 65536
"""What Cilium takes for bpf-policy-map-max."""


class PolicySettings(msgspec.Struct, frozen=True, array_like=True):
    """`enforcement`: default (where a policy selects), always, never. `audit`: what would be denied passes.

    `allow_localhost` "policy": the node's host needs to be allowed like everyone; "auto" and "always" let it in
    where no rule denies it. `default_local_cluster`: a selector that names no cluster is about its own.
    `cidr_match_nodes`: a CIDR selects nodes too. `node_labels`: nodes carry their labels, for fromNodes and toNodes.
    `host_firewall`: host policies count. `proxy`, `icmp`: rules about requests, about ICMP types, are taken.
    `default_allow`: enableDefaultDeny counts. `ignored`: kinds of policies that are read and have no effect.
    `api_servers`: addresses that entity kube-apiserver stands for, beside those behind service default/kubernetes.
    `policy_map_max`: rows that an identity's policies may become on a node; what is beyond is not allowed.
    `labels`: patterns of the labels that make up identities, beside those that always stand (identity_labels.py).
    """

    enforcement: str = DEFAULT
    audit: bool = False
    allow_localhost: str = "auto"
    default_local_cluster: bool = True
    host_firewall: bool = False
    cidr_match_nodes: bool = False
    node_labels: bool = False
    proxy: bool = True
    icmp: bool = True
    default_allow: bool = True
    ignored: tuple[str, ...] = ()
    api_servers: tuple[str, ...] = ()
    policy_map_max: int = POLICY_MAP_MAX
    labels: tuple[str, ...] = ()


DEFAULTS = PolicySettings()

ALIASES = {
    "policyEnforcementMode": "enable-policy",
    "policyAuditMode": "policy-audit-mode",
    "policyCIDRMatchMode": "policy-cidr-match-mode",
    "nodeSelectorLabels": "enable-node-selector-labels",
    "hostFirewall.enabled": "enable-host-firewall",
    "cluster.name": "cluster-name",
    "clustermesh.policyDefaultLocalCluster": "policy-default-local-cluster",
    "bpf.policyMapMax": "bpf-policy-map-max",
    "l7Proxy": "enable-l7-proxy",
    "enableNonDefaultDenyPolicies": "enable-non-default-deny-policies",
    "k8sNetworkPolicy.enabled": "enable-k8s-networkpolicy",
    **balancing.ALIASES,
}
"""The same settings as values of the Helm chart."""

KIND_SWITCHES = {
    "enable-k8s-networkpolicy": "NetworkPolicy",
    "enable-cilium-network-policy": "CiliumNetworkPolicy",
    "enable-cilium-clusterwide-network-policy": "CiliumClusterwideNetworkPolicy",
}
"""Off: policies of this kind have no effect."""

NAMES = (
    "cluster-name",
    "enable-policy",
    "policy-audit-mode",
    "allow-localhost",
    "policy-default-local-cluster",
    "enable-host-firewall",
    "policy-cidr-match-mode",
    "enable-node-selector-labels",
    "enable-l7-proxy",
    "enable-icmp-rules",
    "enable-non-default-deny-policies",
    *KIND_SWITCHES,
    "kube-apiserver-addresses",
    "bpf-policy-map-max",
    "labels",
    *balancing.NAMES,
)
CONFIG_MAP = "ConfigMap"
"""Of Cilium's ConfigMap the settings of policies are taken, all others passed over."""


def read_policy_settings(document: Any) -> tuple[str, PolicySettings] | tuple[Refusal, ...]:
    """The cluster's name ("" where none is given) and the settings of policies; all refusals at once."""
    found = read_settings(document)
    return (found.cluster, found.policy) if isinstance(found, Settings) else found


class Settings(NamedTuple):
    """Everything that a settings document says of a cluster; its name "" where none is given."""

    cluster: str
    policy: PolicySettings
    balancing: balancing.BalancingSettings


def read_settings(document: Any) -> Settings | tuple[Refusal, ...]:
    """All refusals at once."""
    reading = Reading()
    given: dict[str, Any] = {}
    if isinstance(document, dict) and document.get("kind") == CONFIG_MAP:
        held = reading.mapping(document.get("data"), "data")
        document = {name: held[name] for name in held if name in NAMES}
    for key, value in _flat(reading.mapping(document, ""), "").items():
        name = ALIASES.get(key, key)
        if name in given:
            reading.refuse(key, value, f"stands twice, under this name and as {name}")
        given[name] = value
    fields = reading.mapping(given, "", NAMES)
    settings = PolicySettings(
        enforcement=reading.one_of(fields.get("enable-policy"), "enable-policy", ENFORCEMENTS, DEFAULT),
        audit=_flag(reading, fields, "policy-audit-mode", False),
        allow_localhost=reading.one_of(fields.get("allow-localhost"), "allow-localhost", LOCALHOST, "auto"),
        default_local_cluster=_flag(reading, fields, "policy-default-local-cluster", True),
        host_firewall=_flag(reading, fields, "enable-host-firewall", False),
        cidr_match_nodes=_cidr_match_nodes(reading, fields.get("policy-cidr-match-mode")),
        node_labels=_flag(reading, fields, "enable-node-selector-labels", False),
        proxy=_flag(reading, fields, "enable-l7-proxy", True),
        icmp=_flag(reading, fields, "enable-icmp-rules", True),
        default_allow=_flag(reading, fields, "enable-non-default-deny-policies", True),
        api_servers=_addresses(reading, fields.get("kube-apiserver-addresses"), "kube-apiserver-addresses"),
        policy_map_max=_number(
            reading, fields, "bpf-policy-map-max", POLICY_MAP_LEAST, POLICY_MAP_MOST, POLICY_MAP_MAX
        ),
        labels=_label_patterns(reading, fields.get("labels")),
        ignored=tuple(kind for name, kind in KIND_SWITCHES.items() if not _flag(reading, fields, name, True)),
    )
    balanced = balancing.read_balancing_settings(reading, fields)
    cluster = fields.get("cluster-name")
    name = reading.dns_label(cluster, "cluster-name") if cluster is not None else ""
    return tuple(reading.refusals) or Settings(name, settings, balanced)


@lru_cache(maxsize=64)
def settings_in_force(text: str) -> Settings:
    """What the log holds, "" for nothing; the defaults where it cannot be read, under which policies deny what they do
    not allow."""
    found = read_settings(msgspec.json.decode(text)) if text else ()
    return found if isinstance(found, Settings) else Settings("", DEFAULTS, balancing.DEFAULTS)


def _flat(document: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in document.items():
        if isinstance(value, dict):
            found.update(_flat(value, f"{prefix}{key}."))
        else:
            found[prefix + key] = value
    return found


def _flag(reading: Reading, fields: Mapping[str, Any], name: str, default: bool) -> bool:
    """A ConfigMap holds "true" as text."""
    value = fields.get(name)
    return reading.flag(
        {"true": True, "false": False}.get(value, value) if isinstance(value, str) else value, name, default
    )


def _number(reading: Reading, fields: Mapping[str, Any], name: str, low: int, high: int, default: int) -> int:
    """A ConfigMap holds "16384" as text."""
    value = fields.get(name)
    given = int(value) if isinstance(value, str) and value.isascii() and value.isdigit() else value
    number = reading.number(given, name, low, high) if given is not None else None
    return default if number is None else number


def _listed(reading: Reading, value: Any, name: str) -> list[Any]:
    """A list, or a text with spaces or commas, as in a ConfigMap."""
    return value.replace(",", " ").split() if isinstance(value, str) else reading.sequence(value, name)


def _addresses(reading: Reading, value: Any, name: str) -> tuple[str, ...]:
    found = []
    for item in _listed(reading, value, name):
        try:
            found.append(str(ip_address(item)))
        except ValueError:
            reading.refuse(name, item, "must be an address such as 192.0.2.1 or 2001:db8::1")
    return tuple(sorted(set(found)))


def _label_patterns(reading: Reading, value: Any) -> tuple[str, ...]:
    """A text with spaces, as in Cilium, or a list."""
    listed = value.split() if isinstance(value, str) else reading.sequence(value, "labels")
    wrong = [item for item in listed if not isinstance(item, str) or item.split() != [item]]
    for item in wrong:
        reading.refuse("labels", item, "must be text without spaces, such as k8s:app or k8s:!job-name")
    patterns = () if wrong else tuple(dict.fromkeys(listed))
    pattern, fault = patterns_fault(patterns)
    if fault:
        reading.refuse("labels", pattern, fault)
    return () if fault else patterns


def _cidr_match_nodes(reading: Reading, value: Any) -> bool:
    listed = _listed(reading, value, "policy-cidr-match-mode")
    modes = [reading.one_of(item, "policy-cidr-match-mode", (CIDR_NODES,)) for item in listed]
    return CIDR_NODES in modes
