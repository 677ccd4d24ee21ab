"""networking.k8s.io/v1 NetworkPolicy. Pure.

Belongs here: the fields of this kind and their meaning. The meaning is that of the Kubernetes API reference and of
"Network Policies" in its concepts: an absent or empty `from` is every source, absent or empty `ports` every port,
absent or empty `policyTypes` is Ingress, and Egress where there is an egress rule. Rules of a direction that
`policyTypes` leaves out have no effect, as there. Selectors reach the policy's own cluster only, unless the settings
say otherwise. An ipBlock is about every address in it, of the mesh too, as in Kubernetes; a named port is the number
that the destination's workload gives the name.
"""

from typing import Any

from controlplane.fields import Reading, path_of
from controlplane.labels import NAMESPACE_LABEL_PREFIX, SOURCE_KUBERNETES
from controlplane.model import ObjectKey
from controlplane.policy.clauses import (
    SelectorReader,
    block_selectors,
    in_any_namespace,
    in_cluster,
    in_namespace,
    is_port_name,
    read_excepts,
    read_port,
    read_prefix,
)
from controlplane.policy.rules import PROTOCOLS, NamedPort, ParsedPolicy, PortRange, Rule
from controlplane.policy.selectors import Selector
from controlplane.policy.settings import DEFAULTS, PolicySettings
from datapath.abi.types import POLICY_EGRESS, POLICY_INGRESS

SPEC_FIELDS = ("podSelector", "policyTypes", "ingress", "egress")
PEER_FIELDS = ("podSelector", "namespaceSelector", "ipBlock")
BLOCK_FIELDS = ("cidr", "except")
PORT_FIELDS = ("protocol", "port", "endPort")
POLICY_TYPES = ("Ingress", "Egress")


class NetworkPolicyParser:
    """Parses one manifest; refusals are in `reading`."""

    def __init__(self, reading: Reading, key: ObjectKey, settings: PolicySettings = DEFAULTS) -> None:
        self.reading = reading
        self.key = key
        self.settings = settings
        self.pods = SelectorReader(reading, f"{SOURCE_KUBERNETES}:")
        self.namespaces = SelectorReader(reading, f"{SOURCE_KUBERNETES}:{NAMESPACE_LABEL_PREFIX}")

    def parse(self, spec_value: Any) -> ParsedPolicy:
        spec = self.reading.mapping(spec_value, "spec", SPEC_FIELDS)
        subject = self.pods.read(spec.get("podSelector"), "spec.podSelector")
        ingress = self._rules(spec.get("ingress"), "spec.ingress", POLICY_INGRESS, "from")
        egress = self._rules(spec.get("egress"), "spec.egress", POLICY_EGRESS, "to")
        types = self._types(spec.get("policyTypes"), bool(egress))
        rules = (ingress if "Ingress" in types else []) + (egress if "Egress" in types else [])
        return ParsedPolicy(
            key=self.key,
            subject=subject.narrowed(in_cluster(self.key.cluster), in_namespace(self.key.namespace)),
            enforce_ingress="Ingress" in types,
            enforce_egress="Egress" in types,
            rules=tuple(rules),
        )

    def _own(self, selector: Selector, *more: Any) -> Selector:
        if not self.settings.default_local_cluster:
            return selector.narrowed(*more)
        return selector.narrowed(in_cluster(self.key.cluster), *more)

    def _types(self, value: Any, has_egress: bool) -> list[str]:
        path = "spec.policyTypes"
        listed = self.reading.sequence(value, path)
        if len(listed) > len(POLICY_TYPES):
            self.reading.refuse(path, value, f"must have at most {len(POLICY_TYPES)} types")
        types = [self.reading.one_of(item, f"{path}[{n}]", POLICY_TYPES) for n, item in enumerate(listed)]
        return types or (["Ingress", "Egress"] if has_egress else ["Ingress"])

    def _rules(self, value: Any, path: str, direction: int, peers_field: str) -> list[Rule]:
        rules = []
        for number, item in enumerate(self.reading.sequence(value, path)):
            origin = f"{path}[{number}]"
            fields = self.reading.mapping(item, origin, (peers_field, "ports"))
            peers = self._peers(fields.get(peers_field), path_of(origin, peers_field))
            ports, named = self._ports(fields.get("ports"), path_of(origin, "ports"))
            rules.append(Rule(direction, False, peers, ports, origin, named))
        return rules

    def _peers(self, value: Any, path: str) -> tuple[Selector, ...] | None:
        listed = self.reading.sequence(value, path)
        if not listed:
            return None
        return tuple(found for n, item in enumerate(listed) for found in self._peer(item, f"{path}[{n}]"))

    def _peer(self, value: Any, path: str) -> tuple[Selector, ...]:
        before = len(self.reading.refusals)
        fields = self.reading.mapping(value, path, PEER_FIELDS)
        if not fields and len(self.reading.refusals) == before:
            self.reading.refuse(path, value, "needs podSelector, namespaceSelector or both; or ipBlock")
        if "ipBlock" in fields:
            if len(fields) > 1:
                self.reading.refuse(path_of(path, "ipBlock"), fields["ipBlock"], "cannot be combined with selectors")
            return self._block(fields["ipBlock"], path_of(path, "ipBlock"))
        return (self._workloads(fields, path),)

    def _block(self, value: Any, path: str) -> tuple[Selector, ...]:
        fields = self.reading.mapping(value, path, BLOCK_FIELDS)
        prefix = read_prefix(self.reading, fields.get("cidr"), path_of(path, "cidr"))
        return block_selectors(
            prefix, read_excepts(self.reading, fields.get("except"), path_of(path, "except"), prefix, strict=True)
        )

    def _workloads(self, fields: dict[str, Any], path: str) -> Selector:
        pods = self.pods.read(fields.get("podSelector"), path_of(path, "podSelector"))
        if "namespaceSelector" not in fields:
            return self._own(pods, in_namespace(self.key.namespace))
        namespaces = self.namespaces.read(fields["namespaceSelector"], path_of(path, "namespaceSelector"))
        return self._own(pods, in_any_namespace(), *namespaces.requirements)

    def _ports(self, value: Any, path: str) -> tuple[tuple[PortRange, ...] | None, tuple[NamedPort, ...]]:
        listed = self.reading.sequence(value, path)
        if not listed:
            return None, ()
        found = [self._port(item, f"{path}[{n}]") for n, item in enumerate(listed)]
        ranges = {each for each in found if isinstance(each, PortRange)}
        return tuple(sorted(ranges)), tuple(sorted({each for each in found if isinstance(each, NamedPort)}))

    def _port(self, value: Any, path: str) -> PortRange | NamedPort | None:
        fields = self.reading.mapping(value, path, PORT_FIELDS)
        protocol_path, port_path, end_path = (path_of(path, name) for name in PORT_FIELDS)
        protocol = self.reading.one_of(fields.get("protocol"), protocol_path, tuple(PROTOCOLS), "TCP")
        port, end = fields.get("port"), fields.get("endPort")
        if port is None or isinstance(port, str):
            if end is not None:
                self.reading.refuse(end_path, end, "needs a port number")
            if port is None:
                return PortRange(PROTOCOLS[protocol])
            return NamedPort(PROTOCOLS[protocol], port) if is_port_name(self.reading, port, port_path) else None
        if port == 0:
            self.reading.refuse(port_path, port, "must be a number from 1 to 65535")
            return None
        span = read_port(self.reading, port, port_path, end, end_path)
        return PortRange(PROTOCOLS[protocol], *span) if span else None
