"""Pseudonyms for what could tell whose mesh it is: names, labels, addresses, manifests. Pure.

Belongs here: one original to one pseudonym, the same wherever it stands. Does not belong here: what a capsule
consists of (redaction.py).

A name becomes a letter and a number, in the order that the names had: what a mesh decides by the order of names, such
as which of two services has an address that both claim, it decides the same way. A label keeps its source and the keys
that the platform itself gives a meaning. An address keeps its first octet and its host bits, and two addresses that
share a prefix share one of that length afterwards; so prefixes hold what they held, and a router's address is still the
first of its block.
"""

from bisect import bisect
from collections.abc import Iterable, Mapping, Sequence
from hashlib import blake2b
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import Any

import msgspec

from controlplane.balancing import NODE_ANNOTATION, NODE_SELECTOR_ANNOTATION, TYPE_ANNOTATION, VALUES, annotation_fault
from controlplane.commands.balancer_pools import ASKED_ANNOTATIONS
from controlplane.labels import CLUSTER_KEY, NAMESPACE_KEY, NAMESPACE_LABEL_PREFIX, SERVICE_ACCOUNT_KEY
from controlplane.policy.manifests import canonical

KEPT_NAMES = ("", "default", "operator")
"""A manifest without a namespace means "default"; "operator" is a role."""
LETTERS = ("b", "c", "m", "r")
"""Of names before each of those kept, and after all of them."""
KEPT_KEYS = (NAMESPACE_KEY, CLUSTER_KEY, SERVICE_ACCOUNT_KEY, "kubernetes.io/metadata.name", NODE_ANNOTATION)
LABEL_SOURCES = ("k8s", "any", "reserved", "cidr", "cidrgroup", "node", "fqdn", "container", "unspec")
KEPT_FIELDS = frozenset(
    ("apiVersion", "kind", "policyTypes", "operator", "protocol", "method", "family", "type", "fromEntities",
     "toEntities")
)  # fmt: skip
LABEL_FIELDS = frozenset(("matchLabels", "labels", "annotations", "selector"))
DNS_FIELDS = frozenset(("matchName", "matchPattern"))
FIRST_BIT = 8
LAST_BITS = {4: 24, 6: 64}
WITHHELD = "withheld"

Address = IPv4Address | IPv6Address


class Pseudonyms:
    """`key` decides the addresses. `block_bits`: by IP version, the length of the shortest address block. `names`:
    those whose order is kept."""

    def __init__(self, key: bytes, block_bits: Mapping[int, int], names: Iterable[str] = ()) -> None:
        self._key = key
        self._last_bits = {version: min(bits, block_bits.get(version, bits)) for version, bits in LAST_BITS.items()}
        self._names = _in_order(names)
        self._macs: dict[str, str] = {}
        self.originals: dict[str, None] = {}
        """Addresses and prefixes that were replaced, of /16 and longer."""
        self.replacements: dict[str, None] = {}

    def name(self, text: str) -> str:
        """Of any name or value."""
        if text in KEPT_NAMES:
            return text
        return self._names.setdefault(text, f"{LETTERS[-1]}{len(self._names) + 1}")

    def names(self) -> Sequence[str]:
        """The originals."""
        return list(self._names)

    def writer(self, text: str) -> str:
        """ "node.n1" keeps its role."""
        role, dot, node = text.partition(".")
        return f"{role}.{self.name(node)}" if dot and role == "node" else self.name(text)

    def mac(self, text: str) -> str:
        """Locally administered, as the originals of endpoints are."""
        if not text:
            return text
        number = len(self._macs) + 1
        return self._macs.setdefault(text, "02:4d:" + ":".join(f"{octet:02x}" for octet in number.to_bytes(4, "big")))

    def dns(self, text: str) -> str:
        """Part by part; a part that is a wildcard stays."""
        return ".".join(part if set(part) <= {"*"} else self.name(part) for part in text.split("."))

    def label(self, text: str) -> str:
        """ "source:key=value"."""
        source, _, rest = text.partition(":")
        if source == "reserved":
            return text
        key, equals, value = rest.partition("=")
        return f"{source}:{self.label_key(key)}{equals}{self.name(value)}"

    def label_key(self, key: str) -> str:
        """Without a source, or with one as in selectors."""
        source, colon, rest = key.partition(":")
        if colon and source in LABEL_SOURCES:
            return key if source == "reserved" else f"{source}:{self.label_key(rest)}"
        if key in KEPT_KEYS:
            return key
        if key.startswith(NAMESPACE_LABEL_PREFIX):
            return NAMESPACE_LABEL_PREFIX + self.label_key(key.removeprefix(NAMESPACE_LABEL_PREFIX))
        return self.name(key)

    def labels(self, labels: Mapping[str, Any]) -> dict[str, Any]:
        """Keys and values of a mapping."""
        return {
            self.label_key(key): value if key.startswith("reserved:") else self.name(str(value))
            for key, value in labels.items()
        }

    def annotations(self, annotations: Mapping[str, str]) -> dict[str, str]:
        """Of a service: what it says to the mesh keeps its meaning."""
        found = {}
        for key, value in annotations.items():
            if key in ASKED_ANNOTATIONS:
                found[key] = ",".join(self.address(each.strip()) for each in value.split(","))
            elif key == NODE_SELECTOR_ANNOTATION:
                found[key] = ",".join(map(self._pair, value.split(",")))
            elif key == TYPE_ANNOTATION or value.lower() in VALUES.get(key, ()):
                found[key] = value if not annotation_fault(key, value) else self.name(value)
            else:
                found.update(self.labels({key: value}))
        return found

    def _pair(self, text: str) -> str:
        """ "key=value" or "key"."""
        key, equals, value = text.replace("==", "=").partition("=")
        return f"{self.label_key(key.strip())}{equals}{self.name(value.strip()) if equals else ''}"

    # --- addresses --------------------------------------------------------------------------------------------------

    def address(self, text: str) -> str:
        """An address or a prefix; what is neither becomes a name."""
        try:
            network = ip_network(text, strict=False)
            address = ip_address(text.partition("/")[0])
        except ValueError:
            return self.name(text)
        if address.is_loopback:
            return text
        number = self._mapped(address)
        if "/" in text:
            bits = address.max_prefixlen - network.prefixlen
            found = f"{_address(address.version, number >> bits << bits)}/{network.prefixlen}"
        else:
            found = str(_address(address.version, number))
        if network.prefixlen >= FIRST_BIT * 2:
            self.originals[text] = self.replacements[found] = None
        return found

    def _mapped(self, address: Address) -> int:
        width, number = address.max_prefixlen, int(address)
        mapped = number
        for place in range(FIRST_BIT, self._last_bits[address.version]):
            before = (number >> (width - place)).to_bytes(16, "big")
            told = blake2b(bytes((address.version, place)) + before, key=self._key, digest_size=1).digest()
            mapped ^= (told[0] & 1) << (width - 1 - place)
        return mapped

    @property
    def tells(self) -> bool:
        """Whether an address stands for one that was in the mesh too: then another key is needed."""
        return any(text in self.originals for text in self.replacements)

    # --- documents --------------------------------------------------------------------------------------------------

    def manifest(self, text: str) -> str:
        """A policy as its author wrote it. What is not JSON tells nothing any more."""
        try:
            document = msgspec.json.decode(text)
        except msgspec.MsgspecError:
            return WITHHELD
        found = self._value(document, "")
        return canonical(found) if isinstance(found, dict) else WITHHELD

    def settings(self, text: str) -> str:
        """Only a cluster's name tells anything, and the patterns of labels, which nothing that is told from a capsule
        depends on: endpoints carry the labels that they chose."""
        try:
            document = msgspec.json.decode(text)
        except msgspec.MsgspecError:
            return "{}"
        if not isinstance(document, dict):
            return "{}"
        document.pop("labels", None)
        hidden = ("cluster-name", "cluster.name", "cluster")
        return canonical({key: self._value(value, key) if key in hidden else value for key, value in document.items()})

    def _value(self, value: Any, field: str) -> Any:
        if isinstance(value, dict):
            return self._mapping(value, field)
        if isinstance(value, list):
            return [self._value(each, field) for each in value]
        return self._text(value, field) if isinstance(value, str) else value

    def _mapping(self, value: dict[str, Any], field: str) -> dict[str, Any]:
        if field in LABEL_FIELDS and not {"matchLabels", "matchExpressions"} & set(value):
            return self.labels(value)
        if "operator" in value and isinstance(value.get("key"), str):
            kept = {name: self._value(each, name) for name, each in value.items() if name != "key"}
            return {**kept, "key": self.label_key(value["key"])}
        return {name: self._value(each, name) for name, each in value.items()}

    def _text(self, text: str, field: str) -> str:
        if field in KEPT_FIELDS or (field == "port" and text.isdigit()):
            return text
        if field in DNS_FIELDS:
            return self.dns(text)
        return self.address(text) if _is_address(text) else self.name(text)


def _in_order(names: Iterable[str]) -> dict[str, str]:
    """The pseudonyms of names, in the same order among each other and to those that are kept."""
    originals = sorted(names)
    width = len(str(len(originals)))
    return {
        each: f"{LETTERS[bisect(KEPT_NAMES, each)]}{number:0{width}}" for number, each in enumerate(originals, start=1)
    }


def _address(version: int, number: int) -> Address:
    return IPv4Address(number) if version == 4 else IPv6Address(number)


def _is_address(text: str) -> bool:
    try:
        ip_network(text, strict=False)
    except ValueError:
        return False
    return "." in text or ":" in text
