"""The peers of a rule of cilium.io/v2: endpoints, entities, CIDRs, groups, services, nodes, names. Pure.

Belongs here: the `from…` and `to…` fields and their meaning ("Layer 3 Policy" of Cilium's documentation). Does not
belong here: ports and requests (cilium_ports.py), sections (cilium.py).
"""

from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from controlplane.fields import Reading, path_of
from controlplane.labels import CLUSTER_KEY, NAMESPACE_KEY, NAMESPACE_LABEL_PREFIX, SOURCE_RESERVED
from controlplane.model import ObjectKey
from controlplane.policy.clauses import (
    ANY_GROUP,
    SOURCE_CIDR_GROUP,
    SOURCE_NODE,
    SelectorReader,
    cidr_selector,
    group_selector,
    in_any_namespace,
    in_cluster,
    in_namespace,
    name_selector,
    names_key,
    names_key_prefix,
    read_excepts,
    read_prefix,
    reserved,
)
from controlplane.policy.names import canonical_name, name_fault, pattern_fault
from controlplane.policy.rules import ServiceReference
from controlplane.policy.selectors import DOES_NOT_EXIST, Requirement, Selector, equals, exists, selector_of
from controlplane.policy.settings import PolicySettings
from datapath.abi.types import POLICY_INGRESS

FIELDS = {
    False: ("fromEndpoints", "fromEntities", "fromCIDR", "fromCIDRSet", "fromNodes"),
    True: ("toEndpoints", "toEntities", "toCIDR", "toCIDRSet", "toNodes", "toServices", "toFQDNs"),
}
"""By "is egress"."""
EMPTY_SELECTS_NONE = tuple(
    f"{side}{what}" for side in ("from", "to") for what in ("Endpoints", "Entities", "CIDR", "CIDRSet", "Nodes")
)
"""Where one of these is `[]` the rule selects nobody; an empty list of another field is as if it were absent."""
GROUPS = "groups of a cloud provider are not supported; write their prefixes in a CiliumCIDRGroup"
REQUIRES = "is no longer part of Cilium (1.19 refuses it too); put the labels into the selectors of the endpoints"
UNSUPPORTED = {
    False: {"fromGroups": GROUPS, "fromRequires": REQUIRES},
    True: {"toGroups": GROUPS, "toRequires": REQUIRES},
}
ENTITIES = (
    "all",
    "world",
    "world-ipv4",
    "world-ipv6",
    "cluster",
    "host",
    "init",
    "ingress",
    "unmanaged",
    "remote-node",
    "health",
    "none",
    "kube-apiserver",
)
CLUSTER_RESERVED = ("host", "remote-node", "init", "ingress", "health", "unmanaged", "kube-apiserver")
"""What entity `cluster` covers beside the endpoints of the own cluster."""
WORLD_PREFIXES = {"world-ipv4": "0.0.0.0/0", "world-ipv6": "::/0"}

CIDR_RULE_FIELDS = ("cidr", "cidrGroupRef", "cidrGroupSelector", "except")
SERVICE_FIELDS = ("k8sService", "k8sServiceSelector")


class Peers(msgspec.Struct, frozen=True):
    """`selectors` None: any remote. `named`: whether the rule names peers at all, be it with an empty list."""

    selectors: tuple[Selector, ...] | None
    services: tuple[ServiceReference, ...]
    named: bool


def entity_selectors(entity: str, cluster: str) -> tuple[Selector, ...] | None:
    """None: everything."""
    if entity == "all":
        return None
    if entity == "cluster":
        return (selector_of((in_cluster(cluster),)), *map(reserved, CLUSTER_RESERVED))
    if entity in WORLD_PREFIXES:
        return (cidr_selector(WORLD_PREFIXES[entity]).narrowed(exists("reserved:world")),)
    return (reserved(entity),)


class PeerReader:
    """Reads the peers of one rule after the other; refusals are in `reading`."""

    def __init__(self, reading: Reading, key: ObjectKey, settings: PolicySettings) -> None:
        self.reading = reading
        self.key = key
        self.settings = settings
        self.selectors = SelectorReader(reading, "")
        self.nodes = SelectorReader(reading, f"{SOURCE_NODE}:")
        self.groups = SelectorReader(reading, f"{SOURCE_CIDR_GROUP}:")
        self.services = SelectorReader(reading, "k8s:")

    def read(self, fields: Mapping[str, Any], origin: str, direction: int, deny: bool) -> Peers:
        egress = direction != POLICY_INGRESS
        given = [name for name in FIELDS[egress] if name in fields]
        filled = [name for name in given if fields[name]]
        if len(filled) > 1:
            reason = f"cannot be combined with {filled[0]} in one rule; write a rule for each"
            self.reading.refuse(path_of(origin, filled[1]), fields[filled[1]], reason)
        if deny and "toFQDNs" in filled:
            self.reading.refuse(path_of(origin, "toFQDNs"), fields["toFQDNs"], "a deny rule cannot name DNS names")
        selectors: list[Selector] = []
        services: list[ServiceReference] = []
        everything = False
        for name in given:
            for number, item in enumerate(self.reading.sequence(fields[name], path_of(origin, name))):
                where = f"{path_of(origin, name)}[{number}]"
                if name == "toServices":
                    services += self._service(item, where)
                    continue
                found = self._readers(name)(item, where)
                everything |= found is None
                selectors += found or ()
        if any(name in EMPTY_SELECTS_NONE and not fields[name] for name in given):
            return Peers((), (), named=True)
        peers = None if everything else tuple(sorted(set(selectors)))
        return Peers(peers, tuple(dict.fromkeys(services)), bool(filled))

    def _readers(self, name: str) -> Callable[[Any, str], tuple[Selector, ...] | None]:
        return {
            "Endpoints": self._endpoints,
            "Entities": self._entity,
            "CIDR": self._cidr,
            "CIDRSet": self._cidr_rule,
            "Nodes": self._nodes,
            "FQDNs": self._name,
        }[name.removeprefix("from").removeprefix("to")]

    def _endpoints(self, value: Any, path: str) -> tuple[Selector, ...]:
        if value is None:
            self.reading.refuse(path, None, "must be a selector; {} selects every endpoint of the namespace")
        selector = self.selectors.read(value, path)
        if any(requirement.key.startswith(f"{SOURCE_RESERVED}:") for requirement in selector.requirements):
            return (selector,)
        if not names_key(selector, NAMESPACE_KEY):
            if not self.key.namespace:
                selector = selector.narrowed(in_any_namespace())
            elif not names_key_prefix(selector, NAMESPACE_LABEL_PREFIX):
                selector = selector.narrowed(in_namespace(self.key.namespace))
        if self.settings.default_local_cluster and not names_key(selector, CLUSTER_KEY):
            selector = selector.narrowed(in_cluster(self.key.cluster))
        return (selector,)

    def _entity(self, value: Any, path: str) -> tuple[Selector, ...] | None:
        entity = self.reading.one_of(value, path, ENTITIES)
        if value is None:
            self.reading.refuse(path, None, f"must be one of {', '.join(ENTITIES)}")
        return entity_selectors(entity, self.key.cluster) if entity else ()

    def _cidr(self, value: Any, path: str) -> tuple[Selector, ...]:
        prefix = read_prefix(self.reading, value, path, or_address=True)
        return (cidr_selector(prefix),) if prefix else ()

    def _cidr_rule(self, value: Any, path: str) -> tuple[Selector, ...]:
        fields = self.reading.mapping(value, path, CIDR_RULE_FIELDS)
        given = [name for name in CIDR_RULE_FIELDS[:3] if name in fields]
        if len(given) != 1:
            self.reading.refuse(path, value, f"needs exactly one of {', '.join(CIDR_RULE_FIELDS[:3])}")
            return ()
        where = path_of(path, given[0])
        excepts_path = path_of(path, "except")
        if given[0] == "cidr":
            prefix = read_prefix(self.reading, fields["cidr"], where)
            return (cidr_selector(prefix, read_excepts(self.reading, fields.get("except"), excepts_path, prefix)),)
        excepts = read_excepts(self.reading, fields.get("except"), excepts_path, "")
        if given[0] == "cidrGroupRef":
            return (group_selector(self.reading.dns_subdomain(fields["cidrGroupRef"], where), excepts),)
        found = self.groups.read(fields["cidrGroupSelector"], where)
        return (found.narrowed(exists(ANY_GROUP), *(Requirement(f"cidr:{each}", DOES_NOT_EXIST) for each in excepts)),)

    def _nodes(self, value: Any, path: str) -> tuple[Selector, ...]:
        if not self.settings.node_labels:
            self.reading.refuse(path, value, "needs the setting enable-node-selector-labels, which is off")
        if value is None:
            self.reading.refuse(path, None, "must be a selector; {} selects every node")
        found = self.nodes.read(value, path)
        cluster = f"{SOURCE_NODE}:{CLUSTER_KEY}"
        if self.settings.default_local_cluster and not any(each.key == cluster for each in found.requirements):
            found = found.narrowed(equals(cluster, self.key.cluster))
        return found.narrowed(exists("reserved:remote-node")), found.narrowed(exists("reserved:host"))

    def _service(self, value: Any, path: str) -> list[ServiceReference]:
        fields = self.reading.mapping(value, path, SERVICE_FIELDS)
        if len(fields) != 1:
            self.reading.refuse(path, value, f"needs exactly one of {', '.join(SERVICE_FIELDS)}")
            return []
        if "k8sService" in fields:
            where = path_of(path, "k8sService")
            named = self.reading.mapping(fields["k8sService"], where, ("serviceName", "namespace"))
            name = self.reading.dns_label(named.get("serviceName"), path_of(where, "serviceName"))
            return [ServiceReference(self._namespace(named.get("namespace"), where), name)]
        where = path_of(path, "k8sServiceSelector")
        chosen = self.reading.mapping(fields["k8sServiceSelector"], where, ("selector", "namespace"))
        if "selector" not in chosen:
            self.reading.refuse(path_of(where, "selector"), None, "is required")
        labels = self.services.read(chosen.get("selector"), path_of(where, "selector"))
        return [ServiceReference(self._namespace(chosen.get("namespace"), where), "", labels)]

    def _namespace(self, value: Any, path: str) -> str:
        """ "": any namespace, as in Cilium."""
        return self.reading.dns_label(value, path_of(path, "namespace")) if value else ""

    def _name(self, value: Any, path: str) -> tuple[Selector, ...]:
        pattern = read_name_or_pattern(self.reading, value, path)
        return (name_selector(pattern),) if pattern else ()


def read_name_or_pattern(reading: Reading, value: Any, path: str) -> str:
    """`matchName` or `matchPattern`, canonical; "" after a refusal."""
    fields = reading.mapping(value, path, ("matchName", "matchPattern"))
    if len(fields) != 1:
        reading.refuse(path, value, "needs exactly one of matchName, matchPattern")
        return ""
    name, item = next(iter(fields.items()))
    where = path_of(path, name)
    text = reading.text(item, where, required=True)
    fault = text and (name_fault(text) if name == "matchName" else pattern_fault(text))
    if fault:
        reading.refuse(where, item, fault)
        return ""
    return canonical_name(text)
