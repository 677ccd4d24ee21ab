"""cilium.io/v2 CiliumNetworkPolicy. Pure.

Belongs here: the fields of this kind and their meaning, which is that of "Layer 3 Policy" and "Layer 4 Policy" of
Cilium's documentation: a section with at least one rule enforces its direction unless enableDefaultDeny says
otherwise; a rule without peers is about every remote if it names ports, and about none if it does not, so that `{}`
allows nothing and enforces; a list of peers that is `[]` selects none.
"""

from typing import Any

from controlplane.fields import Reading, path_of
from controlplane.labels import (
    CLUSTER_KEY,
    NAMESPACE_KEY,
    NAMESPACE_LABEL_PREFIX,
    SOURCE_KUBERNETES,
    SOURCE_RESERVED,
)
from controlplane.model import ObjectKey
from controlplane.policy.clauses import (
    SelectorReader,
    in_cluster,
    in_namespace,
    names_key,
    names_key_prefix,
    read_port,
    reserved,
)
from controlplane.policy.rules import PORT_MAX, PROTOCOLS, ParsedPolicy, PortRange, Rule
from controlplane.policy.selectors import ANY_SOURCE, Selector, selector_of
from datapath.abi.types import POLICY_EGRESS, POLICY_INGRESS

SECTIONS = (
    ("ingress", POLICY_INGRESS, False),
    ("ingressDeny", POLICY_INGRESS, True),
    ("egress", POLICY_EGRESS, False),
    ("egressDeny", POLICY_EGRESS, True),
)
SPEC_FIELDS = (
    "endpointSelector",
    "enableDefaultDeny",
    "description",
    "labels",
    *(section for section, _, _ in SECTIONS),
)
"""`description` and `labels` are the author's notes: they are kept in the manifest and change no verdict."""

SPEC_UNSUPPORTED = {
    "nodeSelector": "host policy is not supported yet; use endpointSelector",
    "log": "is not supported yet; remove it",
}
PEERS = {POLICY_INGRESS: ("fromEndpoints", "fromEntities"), POLICY_EGRESS: ("toEndpoints", "toEntities")}
NOT_YET = "is not supported yet; use {} or {}"
PEERS_UNSUPPORTED = {
    POLICY_INGRESS: ("fromCIDR", "fromCIDRSet", "fromRequires", "fromGroups", "fromNodes"),
    POLICY_EGRESS: ("toCIDR", "toCIDRSet", "toRequires", "toGroups", "toNodes", "toServices", "toFQDNs"),
}
RULE_UNSUPPORTED = {
    "icmps": "is not supported yet; a rule without toPorts covers ICMP",
    "authentication": "is not supported yet; remove it",
}
PORTS_FIELDS = ("ports",)
PORTS_UNSUPPORTED = {
    "rules": "layer 7 rules are not supported yet; allow the port without rules",
    "listener": "is not supported yet; remove it",
    "terminatingTLS": "is not supported yet; remove it",
    "originatingTLS": "is not supported yet; remove it",
    "serverNames": "is not supported yet; remove it",
}
PORT_FIELDS = ("port", "endPort", "protocol")
ANY = "ANY"

ENTITIES = ("world", "host", "remote-node", "cluster", "all")
CLUSTER_RESERVED = ("host", "remote-node", "init", "ingress", "health", "unmanaged", "kube-apiserver")
"""What entity `cluster` covers beside the endpoints of the own cluster."""


def entity_selectors(entity: str, cluster: str) -> tuple[Selector, ...] | None:
    """None: everything."""
    if entity == "all":
        return None
    if entity == "cluster":
        return (selector_of((in_cluster(cluster),)), *map(reserved, CLUSTER_RESERVED))
    return (reserved(entity),)


class CiliumPolicyParser:
    """Parses one manifest; refusals are in `reading`."""

    def __init__(self, reading: Reading, key: ObjectKey) -> None:
        self.reading = reading
        self.key = key
        self.selectors = SelectorReader(reading, "")

    def parse(self, spec_value: Any) -> ParsedPolicy:
        spec = self.reading.mapping(spec_value, "spec", SPEC_FIELDS, SPEC_UNSUPPORTED)
        subject = self._subject(spec.get("endpointSelector"))
        self.reading.text(spec.get("description"), "spec.description")
        self.reading.sequence(spec.get("labels"), "spec.labels")
        rules: list[Rule] = []
        enforced = {POLICY_INGRESS: False, POLICY_EGRESS: False}
        for section, direction, deny in SECTIONS:
            items = self.reading.sequence(spec.get(section), path_of("spec", section))
            enforced[direction] |= bool(items)
            for number, item in enumerate(items):
                rules += self._rule(item, f"spec.{section}[{number}]", direction, deny)
        ingress, egress = self._default_deny(spec.get("enableDefaultDeny"), enforced)
        return ParsedPolicy(self.key, subject, ingress, egress, tuple(rules))

    def _default_deny(self, value: Any, enforced: dict[int, bool]) -> tuple[bool, bool]:
        path = "spec.enableDefaultDeny"
        fields = self.reading.mapping(value, path, ("ingress", "egress"))
        return (
            self.reading.flag(fields.get("ingress"), f"{path}.ingress", enforced[POLICY_INGRESS]),
            self.reading.flag(fields.get("egress"), f"{path}.egress", enforced[POLICY_EGRESS]),
        )

    def _subject(self, value: Any) -> Selector:
        path = "spec.endpointSelector"
        if value is None:
            self.reading.refuse(path, None, "is required; {} selects every endpoint of the namespace")
        selector = self.selectors.read(value, path)
        own = in_namespace(self.key.namespace)
        for requirement in selector.requirements:
            source, _, bare = requirement.key.partition(":")
            if source == SOURCE_RESERVED:
                self.reading.refuse(path, requirement.key, "a policy of a namespace selects no reserved identity")
            foreign = requirement.operator != own.operator or requirement.values != own.values
            if bare == NAMESPACE_KEY and source in (SOURCE_KUBERNETES, ANY_SOURCE) and foreign:
                reason = f"the policy selects in its own namespace only: {self.key.namespace}"
                self.reading.refuse(path, requirement.key, reason)
        return selector.narrowed(own, in_cluster(self.key.cluster))

    def _rule(self, value: Any, origin: str, direction: int, deny: bool) -> list[Rule]:
        endpoints_field, entities_field = PEERS[direction]
        reason = NOT_YET.format(endpoints_field, entities_field)
        unsupported = {**RULE_UNSUPPORTED, **dict.fromkeys(PEERS_UNSUPPORTED[direction], reason)}
        known = (endpoints_field, entities_field, "toPorts")
        fields = self.reading.mapping(value, origin, known, unsupported)
        ports = self._ports(fields.get("toPorts"), path_of(origin, "toPorts"), deny)
        endpoints = self._endpoints(fields.get(endpoints_field), path_of(origin, endpoints_field))
        everything, entities = self._entities(fields.get(entities_field), path_of(origin, entities_field))
        if endpoints and fields.get(entities_field):
            reason = f"cannot be combined with {endpoints_field} in one rule; write a rule for each"
            self.reading.refuse(path_of(origin, entities_field), fields[entities_field], reason)
        if everything:
            return [Rule(direction, deny, None, ports, origin)]
        if endpoints_field not in fields and entities_field not in fields:
            return [Rule(direction, deny, None, ports, origin)] if ports else []
        peers = tuple(sorted({*endpoints, *entities}))
        return [Rule(direction, deny, peers, ports, origin)] if peers else []

    def _endpoints(self, value: Any, path: str) -> list[Selector]:
        items = self.reading.sequence(value, path)
        return [self._peer(item, f"{path}[{number}]") for number, item in enumerate(items)]

    def _peer(self, value: Any, path: str) -> Selector:
        if value is None:
            self.reading.refuse(path, None, "must be a selector; {} selects every endpoint of the namespace")
        selector = self.selectors.read(value, path)
        if any(requirement.key.startswith(f"{SOURCE_RESERVED}:") for requirement in selector.requirements):
            return selector
        if not names_key(selector, NAMESPACE_KEY) and not names_key_prefix(selector, NAMESPACE_LABEL_PREFIX):
            selector = selector.narrowed(in_namespace(self.key.namespace))
        if not names_key(selector, CLUSTER_KEY):
            selector = selector.narrowed(in_cluster(self.key.cluster))
        return selector

    def _entities(self, value: Any, path: str) -> tuple[bool, list[Selector]]:
        """Whether one of them is `all`, and the selectors of the others."""
        everything = False
        selectors: list[Selector] = []
        for number, item in enumerate(self.reading.sequence(value, path)):
            where = f"{path}[{number}]"
            entity = self.reading.one_of(item, where, ENTITIES)
            if item is None:
                self.reading.refuse(where, None, f"must be one of {', '.join(ENTITIES)}")
            if not entity:
                continue
            found = entity_selectors(entity, self.key.cluster)
            everything |= found is None
            selectors += found or ()
        return everything, selectors

    def _ports(self, value: Any, path: str, deny: bool) -> tuple[PortRange, ...] | None:
        """None: every protocol and port."""
        listed = self.reading.sequence(value, path)
        if not listed:
            return None
        unsupported = {} if deny else PORTS_UNSUPPORTED
        ranges: list[PortRange] = []
        for number, item in enumerate(listed):
            where = f"{path}[{number}]"
            before = len(self.reading.refusals)
            fields = self.reading.mapping(item, where, PORTS_FIELDS, unsupported)
            ports_path = path_of(where, "ports")
            ports = self.reading.sequence(fields.get("ports"), ports_path)
            if not ports and len(self.reading.refusals) == before:
                self.reading.refuse(ports_path, fields.get("ports"), "needs at least one port")
            for position, port in enumerate(ports):
                ranges += self._port(port, f"{ports_path}[{position}]")
        return tuple(sorted(set(ranges)))

    def _port(self, value: Any, path: str) -> list[PortRange]:
        fields = self.reading.mapping(value, path, PORT_FIELDS)
        port_path, end_path, protocol_path = (path_of(path, name) for name in PORT_FIELDS)
        name = self.reading.one_of(fields.get("protocol"), protocol_path, (*PROTOCOLS, ANY), ANY)
        port = self.reading.text(fields.get("port"), port_path, required=True)
        if not port:
            return []
        if not (port.isascii() and port.isdigit()):
            self.reading.refuse(port_path, port, "named ports are not supported yet; write the number in quotes")
            return []
        span = read_port(self.reading, int(port), port_path, fields.get("endPort"), end_path)
        if span is None:
            return []
        if span[0] == 0 and "endPort" not in fields:
            span = (0, PORT_MAX)
        numbers = PROTOCOLS.values() if name == ANY else (PROTOCOLS[name],)
        return [PortRange(number, *span) for number in numbers]
