"""Which labels make up a workload's identity, under the setting `labels`. Pure.

Belongs here: the patterns of that setting, those that always stand beside them, and what they take. Does not belong
here: the text form of labels (controlplane/labels.py), other settings (settings.py).

Meaning and names are those of "Limiting Identity-Relevant Labels" in Cilium's documentation. A pattern is
[SOURCE:][!]EXPRESSION; the expression is matched at the beginning of a label's key. Without "!" it includes, and then
only what some pattern includes is taken; with "!" it excludes. Where both match, the one that matches more of the key
counts: of the including ones the longest match against the shortest of the excluding ones, and what excludes in a tie.
"""

import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import NamedTuple

from controlplane.labels import (
    CLUSTER_KEY,
    NAMESPACE_KEY,
    NAMESPACE_LABEL_PREFIX,
    SERVICE_ACCOUNT_DEFAULT,
    SERVICE_ACCOUNT_KEY,
    SOURCE_KUBERNETES,
    label,
)
from controlplane.model import Labels
from controlplane.policy.expressions import effort_fault, expression, expression_fault

SOURCE_ANY = "any"

DEFAULT_PATTERNS = (
    r"reserved:.*",
    r"io\.kubernetes\.pod\.namespace",
    r"io\.cilium\.k8s\.namespace\.labels",
    r"app\.kubernetes\.io",
    r"io\.cilium\.k8s\.policy\.cluster",
    r"!io\.kubernetes",
    r"!kubernetes\.io",
    r"!statefulset\.kubernetes\.io/pod-name",
    r"!apps\.kubernetes\.io/pod-index",
    r"!batch\.kubernetes\.io/job-completion-index",
    r"!batch\.kubernetes\.io/controller-uid",
    r"!.*beta\.kubernetes\.io",
    r"!k8s\.io",
    r"!pod-template-generation",
    r"!pod-template-hash",
    r"!controller-revision-hash",
    r"!annotation.*",
    r"!controller-uid",
    r"!etcd_node",
)
"""They stand beside what the setting asks for. The excluding ones would give each pod, or each rollout, an identity of
its own. Source: the tables of the documentation, and of its source pkg/labelsfilter the pattern for clusters."""

_PLATFORM = re.compile(r"io\.cilium\.k8s|io\.kubernetes")
"""Keys that only the platform may write: a workload cannot give itself a namespace's or a cluster's labels."""

_SOURCE = re.compile(r"[-.a-z0-9]*")

KEYS_KEPT = 65_536
"""Answers about keys that are remembered."""


class _Pattern(NamedTuple):
    """`source` "" or "any": of every source."""

    source: str
    excludes: bool
    expression: re.Pattern[str]

    def length(self, source: str, key: str) -> int | None:
        """How much of the key it matches; None if it does not."""
        if self.source not in ("", SOURCE_ANY, source):
            return None
        found = self.expression.match(key)
        return found.end() if found else None


class LabelFilter:
    """Which labels take part in identities. `patterns`: of the setting, right ones."""

    def __init__(self, patterns: Iterable[str] = ()) -> None:
        own = [_read(text) for text in patterns]
        self._patterns = [*map(_read, DEFAULT_PATTERNS), *own]
        self._asks_inclusion = not all(pattern.excludes for pattern in own)
        self._answers: dict[tuple[str, str], bool] = {}

    def takes(self, key: str, source: str = SOURCE_KUBERNETES) -> bool:
        """Whether a label with this key is part of an identity."""
        found = self._answers.get((source, key))
        if found is None:
            if len(self._answers) >= KEYS_KEPT:
                self._answers.clear()
            found = self._answers[source, key] = self._judge(source, key)
        return found

    def _judge(self, source: str, key: str) -> bool:
        included, excluded = 0, 0
        for pattern in self._patterns:
            length = pattern.length(source, key)
            if length is None:
                continue
            if not pattern.excludes:
                included = max(included, length)
            elif excluded == 0 or length < excluded:
                excluded = length
        return (not self._asks_inclusion and excluded == 0) or included > excluded

    def takes_of_workload(self, key: str) -> bool:
        """The same of a label that a workload gives itself."""
        return _PLATFORM.match(key) is None and self.takes(key)


def _read(text: str) -> _Pattern:
    source, excludes, wanted = split_pattern(text)
    return _Pattern(source, excludes, expression(wanted))


def split_pattern(text: str) -> tuple[str, bool, str]:
    """Source, whether it excludes, and expression of a pattern."""
    source, colon, rest = text.partition(":")
    wanted = rest if colon else text
    return source if colon else "", wanted.startswith("!"), wanted.removeprefix("!")


@lru_cache(maxsize=64)
def label_filter(patterns: tuple[str, ...]) -> LabelFilter:
    """The filter of a setting; () of one that is not given."""
    return LabelFilter(patterns)


def patterns_fault(patterns: tuple[str, ...]) -> tuple[str, str]:
    """The pattern that is wrong, and why; two times "" if all are right."""
    for text in patterns:
        source, _, wanted = split_pattern(text)
        if source.startswith("!"):
            return text, f"the ! stands before the expression: {source[1:]}:!{wanted}"
        if _SOURCE.fullmatch(source) is None:
            return text, f"what stands before the first : is a source, such as k8s; right may be k8s:{text}"
        if not wanted:
            return text, "must be [SOURCE:][!]EXPRESSION, such as k8s:app or k8s:!job-name"
        fault = expression_fault(wanted) or effort_fault(wanted)
        if fault:
            return text, fault
    if not label_filter(patterns).takes(CLUSTER_KEY):
        return " ".join(patterns), f"would leave out {CLUSTER_KEY}, and a cluster numbers only its own labels"
    return "", ""


def identity_labels(
    cluster: str,
    namespace: str,
    namespace_labels: Mapping[str, str],
    workload_labels: Mapping[str, str],
    service_account: str,
    patterns: tuple[str, ...] = (),
) -> Labels:
    """The labels that decide a workload's identity; `patterns`: of the cluster's setting `labels`."""
    taken = label_filter(patterns)
    labels = [label(SOURCE_KUBERNETES, CLUSTER_KEY, cluster), label(SOURCE_KUBERNETES, NAMESPACE_KEY, namespace)]
    if taken.takes(SERVICE_ACCOUNT_KEY):
        labels.append(label(SOURCE_KUBERNETES, SERVICE_ACCOUNT_KEY, service_account or SERVICE_ACCOUNT_DEFAULT))
    for key, value in namespace_labels.items():
        if taken.takes(NAMESPACE_LABEL_PREFIX + key):
            labels.append(label(SOURCE_KUBERNETES, NAMESPACE_LABEL_PREFIX + key, value))
    labels += [
        label(SOURCE_KUBERNETES, key, value) for key, value in workload_labels.items() if taken.takes_of_workload(key)
    ]
    return tuple(sorted(labels))
