"""What a policy is once it is understood: subject, enforcement, rules. Pure values.

Belongs here: the form that parsers produce and that rows and verdicts are made from.
Does not belong here: fields of manifests (network_policy.py, cilium.py).
"""

from collections.abc import Mapping

import msgspec

from controlplane.model import ObjectKey
from controlplane.policy.requests import RequestRules
from controlplane.policy.selectors import Selector

PORT_MAX = 65535
ANY_PROTOCOL = 0
ICMP = 1
TCP = 6
UDP = 17
ICMPV6 = 58
SCTP = 132
PROTOCOLS = {"TCP": TCP, "UDP": UDP, "SCTP": SCTP}


class PortRange(msgspec.Struct, frozen=True, order=True):
    """Ports `first`..`last`, both included, of one protocol number. 0..65535 is the protocol with any port.

    For ICMP and ICMPv6 a port is the type of the message.
    """

    protocol: int
    first: int = 0
    last: int = PORT_MAX

    def contains(self, protocol: int, port: int) -> bool:
        return protocol == self.protocol and self.first <= port <= self.last


class NamedPort(msgspec.Struct, frozen=True, order=True):
    """A port that the destination names; each workload says itself which number it is."""

    protocol: int
    name: str


class ServiceReference(msgspec.Struct, frozen=True, order=True):
    """Services of the policy's cluster. `namespace` "": any. Either `name`, or `labels` that the service carries."""

    namespace: str
    name: str
    labels: Selector | None = None


NamedPorts = Mapping[str, tuple[int, str]]
"""The named ports of a workload: name -> (number, "TCP")."""


class Rule(msgspec.Struct, frozen=True):
    """Allows or denies what its peers do on its ports.

    `direction` is POLICY_INGRESS or POLICY_EGRESS of the ABI. `peers` None: any remote; (): none. `ports` None:
    every protocol and port; with `named` beside it, (): none but those. `services` are peers too, known by the state
    only (services.py puts them in). `requests`: what is allowed is allowed for these requests only, and a proxy must
    look at them. `origin` is the rule's path in its manifest.
    """

    direction: int
    deny: bool
    peers: tuple[Selector, ...] | None
    ports: tuple[PortRange, ...] | None
    origin: str
    named: tuple[NamedPort, ...] = ()
    services: tuple[ServiceReference, ...] = ()
    requests: RequestRules | None = None


class ParsedPolicy(msgspec.Struct, frozen=True):
    """`subject` selects the identities that the policy is about; enforcing denies there what no rule allows.

    `of_nodes`: the subject selects nodes (host policy), not endpoints. `more`: the other specs of the same manifest.
    """

    key: ObjectKey
    subject: Selector
    enforce_ingress: bool
    enforce_egress: bool
    rules: tuple[Rule, ...]
    of_nodes: bool = False
    more: tuple["ParsedPolicy", ...] = ()

    @property
    def name(self) -> str:
        """ "Kind/namespace/name", as answers name a policy."""
        return f"{self.key.kind}/{self.key.namespace}/{self.key.name}"

    @property
    def is_idle(self) -> bool:
        """Whether it changes no verdict at all."""
        return not (self.rules or self.enforce_ingress or self.enforce_egress)

    @property
    def parts(self) -> tuple["ParsedPolicy", ...]:
        """One for each spec of the manifest."""
        return (self, *self.more)
