"""cilium.io/v2 CiliumNetworkPolicy and CiliumClusterwideNetworkPolicy. Pure.

Belongs here: the spec of these kinds and its meaning, which is that of "Layer 3 Policy" and "Layer 4 Policy" of
Cilium's documentation: a section with at least one rule enforces its direction unless enableDefaultDeny says
otherwise; a rule without peers is about every remote if it names ports, and about none if it does not, so that `{}`
allows nothing and enforces; a list of peers that is `[]` selects none. A spec without any rule has no effect (Cilium
1.19 marks it invalid, to the same effect; lint.py says so). Peers: cilium_peers.py; ports: cilium_ports.py.
A clusterwide policy has no namespace: its selectors reach every one. Only it may select nodes, which is host policy.
"""

from typing import Any

from controlplane.fields import Reading, path_of
from controlplane.labels import NAMESPACE_KEY, SOURCE_KUBERNETES, SOURCE_RESERVED
from controlplane.model import ObjectKey
from controlplane.policy.cilium_peers import FIELDS, UNSUPPORTED, PeerReader
from controlplane.policy.cilium_ports import EVERYTHING, PortReader
from controlplane.policy.clauses import SelectorReader, in_cluster, in_namespace
from controlplane.policy.requests import DNS
from controlplane.policy.rules import ParsedPolicy, Rule
from controlplane.policy.selectors import ANY_SOURCE, Selector, exists
from controlplane.policy.settings import DEFAULTS, PolicySettings
from datapath.abi.types import POLICY_EGRESS, POLICY_INGRESS

SECTIONS = (
    ("ingress", POLICY_INGRESS, False),
    ("ingressDeny", POLICY_INGRESS, True),
    ("egress", POLICY_EGRESS, False),
    ("egressDeny", POLICY_EGRESS, True),
)
SPEC_FIELDS = (
    "endpointSelector",
    "nodeSelector",
    "enableDefaultDeny",
    "description",
    "labels",
    "log",
    *(section for section, _, _ in SECTIONS),
)
"""`description`, `labels` and `log` are the author's notes: they are kept in the manifest and change no verdict."""

NOTE_FIELDS = ("key", "value", "source")


class CiliumPolicyParser:
    """Parses one manifest; refusals are in `reading`."""

    def __init__(self, reading: Reading, key: ObjectKey, settings: PolicySettings = DEFAULTS) -> None:
        self.reading = reading
        self.key = key
        self.settings = settings
        self.selectors = SelectorReader(reading, "")
        self.peers = PeerReader(reading, key, settings)
        self.ports = PortReader(reading, settings)

    def parse(self, spec_value: Any, path: str = "spec") -> ParsedPolicy:
        spec = self.reading.mapping(spec_value, path, SPEC_FIELDS)
        of_nodes = "nodeSelector" in spec
        subject = self._nodes(spec, path) if of_nodes else self._subject(spec.get("endpointSelector"), path)
        self.reading.text(spec.get("description"), path_of(path, "description"))
        self._notes(spec.get("labels"), path_of(path, "labels"))
        log = self.reading.mapping(spec.get("log"), path_of(path, "log"), ("value",))
        self.reading.text(log.get("value"), path_of(path, "log.value"))
        rules: list[Rule] = []
        enforced = {POLICY_INGRESS: False, POLICY_EGRESS: False}
        for section, direction, deny in SECTIONS:
            items = self.reading.sequence(spec.get(section), path_of(path, section))
            enforced[direction] |= bool(items)
            for number, item in enumerate(items):
                rules += self._rule(item, f"{path}.{section}[{number}]", direction, deny)
        if of_nodes:
            self._refuse_requests(rules)
        ingress, egress = self._default_deny(
            spec.get("enableDefaultDeny"), path_of(path, "enableDefaultDeny"), enforced
        )
        return ParsedPolicy(self.key, subject, ingress, egress, tuple(rules), of_nodes)

    def _notes(self, value: Any, path: str) -> None:
        for number, item in enumerate(self.reading.sequence(value, path)):
            fields = self.reading.mapping(item, f"{path}[{number}]", NOTE_FIELDS)
            for name in fields:
                self.reading.text(fields[name], f"{path}[{number}].{name}")

    def _refuse_requests(self, rules: list[Rule]) -> None:
        """A host policy may look at the DNS queries of its node."""
        for rule in rules:
            if rule.requests is not None and rule.requests.protocol != DNS:
                self.reading.refuse(rule.origin, None, "a host policy has no rules about requests, but for DNS")

    def _default_deny(self, value: Any, path: str, enforced: dict[int, bool]) -> tuple[bool, bool]:
        """A direction without rules is not enforced, whatever the flag says, as in Cilium."""
        fields = self.reading.mapping(value, path, ("ingress", "egress"))
        if not self.settings.default_allow:
            return enforced[POLICY_INGRESS], enforced[POLICY_EGRESS]
        wanted = {name: self.reading.flag(fields.get(name), f"{path}.{name}", True) for name in ("ingress", "egress")}
        return enforced[POLICY_INGRESS] and wanted["ingress"], enforced[POLICY_EGRESS] and wanted["egress"]

    def _nodes(self, spec: dict[str, Any], path: str) -> Selector:
        where = path_of(path, "nodeSelector")
        if self.key.namespace:
            reason = "host policy is clusterwide: use CiliumClusterwideNetworkPolicy, or endpointSelector"
            self.reading.refuse(where, spec["nodeSelector"], reason)
        if "endpointSelector" in spec:
            self.reading.refuse(where, spec["nodeSelector"], "cannot stand beside endpointSelector")
        return self.selectors.read(spec["nodeSelector"], where).narrowed(exists(f"{SOURCE_RESERVED}:host"))

    def _subject(self, value: Any, spec_path: str) -> Selector:
        path = path_of(spec_path, "endpointSelector")
        if value is None:
            self.reading.refuse(path, None, "is required; {} selects every endpoint")
        selector = self.selectors.read(value, path)
        if not self.key.namespace:
            return selector.narrowed(in_cluster(self.key.cluster))
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
        egress = direction == POLICY_EGRESS
        known = (*FIELDS[egress], "toPorts", "icmps", *(() if deny else ("authentication",)))
        fields = self.reading.mapping(value, origin, known, self._unsupported(value, egress))
        self._authentication(fields.get("authentication"), path_of(origin, "authentication"))
        port_sets = self.ports.read(fields, origin, not egress, deny)
        peers = self.peers.read(fields, origin, direction, deny)
        selectors = peers.selectors
        if not peers.named:
            if port_sets == [EVERYTHING]:
                return []
            selectors = None
        elif selectors == () and not peers.services:
            return []
        return [
            Rule(direction, deny, selectors, ports.ranges, origin, ports.named, peers.services, ports.requests)
            for ports in port_sets
        ]

    def _unsupported(self, value: Any, egress: bool) -> dict[str, str]:
        """Empty lists of what is gone ask for nothing."""
        given = value if isinstance(value, dict) else {}
        return {name: reason for name, reason in UNSUPPORTED[egress].items() if given.get(name) != []}

    def _authentication(self, value: Any, path: str) -> None:
        mode = self.reading.mapping(value, path, ("mode",)).get("mode", "disabled")
        if mode != "disabled":
            self.reading.refuse(path_of(path, "mode"), mode, "mutual authentication is not supported; use disabled")
