"""Label selectors: predicates over the labels of an identity. Pure.

Belongs here: what a selector is and whether it matches. Does not belong here: how manifests write one (clauses.py).
A key is "source:key"; "any:key" takes the key from any source. Requirements are sorted, so equal selectors are
equal values.
"""

from collections.abc import Iterable, Mapping

import msgspec

from controlplane.model import Labels

ANY_SOURCE = "any"
IN = "In"
NOT_IN = "NotIn"
EXISTS = "Exists"
DOES_NOT_EXIST = "DoesNotExist"
OPERATORS = (IN, NOT_IN, EXISTS, DOES_NOT_EXIST)

LabelIndex = Mapping[str, tuple[str, ...]]
"""The values of an identity's labels by "source:key" and by "any:key"."""


def index_labels(labels: Labels) -> LabelIndex:
    """The form that selectors look labels up in; build it once per identity."""
    index: dict[str, tuple[str, ...]] = {}
    for label in labels:
        source_key, _, value = label.partition("=")
        _, _, key = source_key.partition(":")
        for name in (source_key, f"{ANY_SOURCE}:{key}"):
            index[name] = (*index.get(name, ()), value)
    return index


class Requirement(msgspec.Struct, frozen=True, order=True):
    """One condition. `values` is sorted, and empty for Exists and DoesNotExist."""

    key: str
    operator: str
    values: tuple[str, ...] = ()

    def holds(self, index: LabelIndex) -> bool:
        """NotIn holds too where the key is absent, as in Kubernetes."""
        found = index.get(self.key)
        if self.operator == IN:
            return found is not None and any(value in self.values for value in found)
        if self.operator == NOT_IN:
            return found is None or not any(value in self.values for value in found)
        return (found is not None) == (self.operator == EXISTS)


class Selector(msgspec.Struct, frozen=True, order=True):
    """All requirements hold; without any it matches everything."""

    requirements: tuple[Requirement, ...] = ()

    def matches(self, labels: Labels) -> bool:
        return self.matches_index(index_labels(labels))

    def matches_index(self, index: LabelIndex) -> bool:
        return all(requirement.holds(index) for requirement in self.requirements)

    def narrowed(self, *more: Requirement) -> "Selector":
        return selector_of((*self.requirements, *more))

    def __str__(self) -> str:
        return ",".join(_text(requirement) for requirement in self.requirements) or "(everything)"


EVERYTHING = Selector()


def selector_of(requirements: Iterable[Requirement]) -> Selector:
    """The canonical form: sorted, each requirement once."""
    return Selector(tuple(sorted(set(requirements))))


def equals(key: str, value: str) -> Requirement:
    return Requirement(key, IN, (value,))


def exists(key: str) -> Requirement:
    return Requirement(key, EXISTS)


def _text(requirement: Requirement) -> str:
    key, values = requirement.key, requirement.values
    if requirement.operator == IN:
        return f"{key}={values[0]}" if len(values) == 1 else f"{key} in ({','.join(values)})"
    if requirement.operator == NOT_IN:
        return f"{key}!={values[0]}" if len(values) == 1 else f"{key} notin ({','.join(values)})"
    return key if requirement.operator == EXISTS else f"!{key}"
