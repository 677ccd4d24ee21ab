"""What a policy is once it is understood: subject, enforcement, rules. Pure values.

Belongs here: the form that parsers produce and that rows and verdicts are made from.
Does not belong here: fields of manifests (network_policy.py, cilium.py).
"""

import msgspec

from controlplane.model import ObjectKey
from controlplane.policy.selectors import Selector

PORT_MAX = 65535
ANY_PROTOCOL = 0
TCP = 6
UDP = 17
SCTP = 132
PROTOCOLS = {"TCP": TCP, "UDP": UDP, "SCTP": SCTP}


class PortRange(msgspec.Struct, frozen=True, order=True):
    """Ports `first`..`last`, both included, of one protocol number. 0..65535 is the protocol with any port."""

    protocol: int
    first: int = 0
    last: int = PORT_MAX

    def contains(self, protocol: int, port: int) -> bool:
        return protocol == self.protocol and self.first <= port <= self.last


class Rule(msgspec.Struct, frozen=True):
    """Allows or denies what its peers do on its ports.

    `direction` is POLICY_INGRESS or POLICY_EGRESS of the ABI. `peers` None: any remote; (): none. `ports` None:
    every protocol and port. `origin` is the rule's path in its manifest.
    """

    direction: int
    deny: bool
    peers: tuple[Selector, ...] | None
    ports: tuple[PortRange, ...] | None
    origin: str


class ParsedPolicy(msgspec.Struct, frozen=True):
    """`subject` selects the identities that the policy is about; enforcing denies there what no rule allows."""

    key: ObjectKey
    subject: Selector
    enforce_ingress: bool
    enforce_egress: bool
    rules: tuple[Rule, ...]

    @property
    def name(self) -> str:
        """ "Kind/namespace/name", as answers name a policy."""
        return f"{self.key.kind}/{self.key.namespace}/{self.key.name}"
