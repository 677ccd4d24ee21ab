"""The clauses that all policy kinds share: selectors, port numbers, labels of namespace and cluster. Pure.

Belongs here: reading them with refusals. Does not belong here: how a kind puts them together.
"""

from typing import Any

from controlplane.fields import Reading, path_of
from controlplane.labels import CLUSTER_KEY, NAMESPACE_KEY, SOURCE_KUBERNETES, SOURCE_RESERVED
from controlplane.model import Labels
from controlplane.policy.rules import PORT_MAX
from controlplane.policy.selectors import (
    ANY_SOURCE,
    IN,
    NOT_IN,
    OPERATORS,
    Requirement,
    Selector,
    equals,
    exists,
    selector_of,
)

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
        return self.reading.label_key(bare, path) and key


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
