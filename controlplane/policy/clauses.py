"""The clauses that all policy kinds share: selectors, port numbers, labels of namespace and cluster. Pure.

Belongs here: reading them with refusals. Does not belong here: how a kind puts them together.
"""

import re
from collections.abc import Iterable
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import Any

from controlplane.fields import Reading, path_of
from controlplane.labels import CLUSTER_KEY, NAMESPACE_KEY, SOURCE_KUBERNETES, SOURCE_RESERVED
from controlplane.model import Labels
from controlplane.policy.rules import PORT_MAX
from controlplane.policy.selectors import (
    ANY_SOURCE,
    DOES_NOT_EXIST,
    IN,
    NOT_IN,
    OPERATORS,
    Requirement,
    Selector,
    equals,
    exists,
    selector_of,
)

SOURCE_CIDR = "cidr"
SOURCE_WITHIN = "within"
SOURCE_TOUCHES = "touches"
SOURCE_CIDR_GROUP = "cidrgroup"
SOURCE_NAME = "fqdn"
SOURCE_NODE = "node"
DERIVED_SOURCES = (SOURCE_CIDR, SOURCE_WITHIN, SOURCE_TOUCHES, SOURCE_CIDR_GROUP, SOURCE_NAME, SOURCE_NODE)
"""Sources of labels that no workload carries: they come from addresses, names and nodes (prefixes.py).

"cidr" is on addresses outside the mesh. "within" is on an end of the mesh all of whose addresses are in the prefix,
"touches" where one of them is: an ipBlock is about them too, and none may be let in for the sake of another.
"""
CIDR_GROUP_NAME = "io.cilium.policy.cidrgroupname/"
ANY_GROUP = "cidrgroup:io.cilium.policy.cidrgroup"
"""On every prefix of every group, so that a selector without requirements is about groups only."""

PORT_NAME = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")
PORT_NAME_CHARS_MAX = 15

SELECTOR_FIELDS = ("matchLabels", "matchExpressions")
EXPRESSION_FIELDS = ("key", "operator", "values")


def in_namespace(namespace: str) -> Requirement:
    return equals(f"{SOURCE_KUBERNETES}:{NAMESPACE_KEY}", namespace)


def in_any_namespace() -> Requirement:
    """Every workload endpoint has a namespace; world, host and the other reserved identities have none."""
    return exists(f"{SOURCE_KUBERNETES}:{NAMESPACE_KEY}")


def in_cluster(cluster: str) -> Requirement:
    return equals(f"{SOURCE_KUBERNETES}:{CLUSTER_KEY}", cluster)


def reserved(name: str) -> Selector:
    return selector_of((exists(f"{SOURCE_RESERVED}:{name}"),))


def reserved_labels(name: str) -> Labels:
    return (f"{SOURCE_RESERVED}:{name}",)


def names_key(selector: Selector, key: str) -> bool:
    """Whether a requirement is about this key, from Kubernetes or from any source."""
    names = (f"{SOURCE_KUBERNETES}:{key}", f"{ANY_SOURCE}:{key}")
    return any(requirement.key in names for requirement in selector.requirements)


def names_key_prefix(selector: Selector, prefix: str) -> bool:
    prefixes = (f"{SOURCE_KUBERNETES}:{prefix}", f"{ANY_SOURCE}:{prefix}")
    return any(requirement.key.startswith(prefixes) for requirement in selector.requirements)


def cidr_selector(prefix: str, excepts: Iterable[str] = ()) -> Selector:
    """Addresses outside the mesh."""
    return selector_of((exists(f"{SOURCE_CIDR}:{prefix}"), *_not_in(SOURCE_CIDR, excepts)))


def block_selectors(prefix: str, excepts: tuple[str, ...]) -> tuple[Selector, ...]:
    """Every address, of the mesh or not."""
    inside = selector_of((exists(f"{SOURCE_WITHIN}:{prefix}"), *_not_in(SOURCE_TOUCHES, excepts)))
    return cidr_selector(prefix, excepts), inside


def group_selector(name: str, excepts: Iterable[str] = ()) -> Selector:
    return selector_of((exists(f"{SOURCE_CIDR_GROUP}:{CIDR_GROUP_NAME}{name}"), *_not_in(SOURCE_CIDR, excepts)))


def name_selector(pattern: str) -> Selector:
    """Addresses outside the mesh that a matching name resolves to."""
    return selector_of((exists(f"{SOURCE_NAME}:{pattern}"),))


def _not_in(source: str, prefixes: Iterable[str]) -> list[Requirement]:
    return [Requirement(f"{source}:{prefix}", DOES_NOT_EXIST) for prefix in prefixes]


def read_prefix(reading: Reading, value: Any, path: str, *, or_address: bool = False) -> str:
    """A prefix in canonical form, bits beyond its length cleared; "" after a refusal."""
    text = reading.text(value, path, required=True)
    if not text:
        return ""
    network = network_of(text)
    if network is None or ("/" not in text and not or_address):
        reading.refuse(path, value, "must be a prefix such as 10.0.0.0/8 or fd00::/8")
        return ""
    return str(network)


def network_of(text: str) -> IPv4Network | IPv6Network | None:
    try:
        return ip_network(text, strict=False)
    except ValueError:
        return None


def read_excepts(
    reading: Reading, value: Any, path: str, prefix: str, *, strict: bool = False
) -> tuple[str, ...]:
    """Prefixes inside `prefix` (`strict`: and smaller than it); "" takes any."""
    found = []
    outer = network_of(prefix) if prefix else None
    for number, item in enumerate(reading.sequence(value, path)):
        where = f"{path}[{number}]"
        text = read_prefix(reading, item, where)
        inner = network_of(text) if text else None
        if inner and outer and not (inner.version == outer.version and inner.subnet_of(outer)):  # type: ignore[arg-type]
            reading.refuse(where, item, f"must be inside {prefix}")
        elif inner and strict and inner == outer:
            reading.refuse(where, item, f"must be smaller than {prefix}")
        elif text:
            found.append(text)
    return tuple(found)


class SelectorReader:
    """Reads `matchLabels` and `matchExpressions` into requirements.

    `prefix` goes before each key ("k8s:", "k8s:io.cilium.k8s.namespace.labels."); "": the key may name its source
    itself ("k8s:app"), and one that does not is taken from any source.
    """

    def __init__(self, reading: Reading, prefix: str) -> None:
        self.reading = reading
        self.prefix = prefix

    def read(self, value: Any, path: str) -> Selector:
        fields = self.reading.mapping(value, path, SELECTOR_FIELDS)
        requirements = self._match_labels(fields.get("matchLabels"), path_of(path, "matchLabels"))
        where = path_of(path, "matchExpressions")
        for number, item in enumerate(self.reading.sequence(fields.get("matchExpressions"), where)):
            requirements += self._expression(item, f"{where}[{number}]")
        return selector_of(requirements)

    def _match_labels(self, value: Any, path: str) -> list[Requirement]:
        found = []
        for key, item in sorted(self.reading.mapping(value, path).items()):
            where = f"{path}[{key}]"
            named = self._key(key, where)
            wanted = self.reading.label_value(item, where)
            if named:
                found.append(equals(named, wanted))
        return found

    def _expression(self, value: Any, path: str) -> list[Requirement]:
        before = len(self.reading.refusals)
        fields = self.reading.mapping(value, path, EXPRESSION_FIELDS)
        key_path = path_of(path, "key")
        key = self._key(self.reading.text(fields.get("key"), key_path, required=True), key_path)
        operator_path, values_path = path_of(path, "operator"), path_of(path, "values")
        operator = self.reading.one_of(fields.get("operator"), operator_path, OPERATORS)
        if "operator" not in fields:
            self.reading.refuse(operator_path, None, f"is required: one of {', '.join(OPERATORS)}")
        listed = self.reading.sequence(fields.get("values"), values_path)
        values = [self.reading.label_value(item, f"{values_path}[{n}]") for n, item in enumerate(listed)]
        if operator in (IN, NOT_IN) and not listed:
            self.reading.refuse(values_path, fields.get("values"), f"operator {operator} needs at least one value")
        if operator not in (IN, NOT_IN, "") and listed:
            self.reading.refuse(values_path, listed, f"operator {operator} takes no values")
        if len(self.reading.refusals) > before or not key:
            return []
        return [Requirement(key, operator, tuple(sorted(set(values))))]

    def _key(self, key: str, path: str) -> str:
        if not key:
            return ""
        source, colon, bare = key.partition(":")
        if self.prefix or not colon:
            checked = self.reading.label_key(key, path)
            return checked and f"{self.prefix or ANY_SOURCE + ':'}{checked}"
        if not source:
            self.reading.refuse(path, key, "must name the label's source before the colon, as in k8s:app")
            return ""
        if source in DERIVED_SOURCES:
            self.reading.refuse(path, key, "comes from addresses; use the fields for CIDRs, groups, names and nodes")
            return ""
        return self.reading.label_key(bare, path) and key


def is_port_name(reading: Reading, text: str, path: str) -> bool:
    """Whether it is the name of a port (an IANA service name); else refuses it."""
    good = (
        len(text) <= PORT_NAME_CHARS_MAX
        and PORT_NAME.fullmatch(text) is not None
        and "--" not in text
        and any(char.isalpha() for char in text)
    )
    if not good:
        reading.refuse(path, text, "must be a number, or a name of a-z, 0-9 and -, at most 15 characters, one a letter")
    return good


def read_port(reading: Reading, value: Any, path: str, end_value: Any, end_path: str) -> tuple[int, int] | None:
    """A port number and its endPort, already known to be numbers, as a range."""
    first = reading.number(value, path, 0, PORT_MAX)
    if first is None or end_value is None:
        return None if first is None else (first, first)
    last = reading.number(end_value, end_path, 0, PORT_MAX)
    if last is None:
        return None
    if last < first:
        reading.refuse(end_path, end_value, f"must not be below the port {first}")
        return None
    return first, last
