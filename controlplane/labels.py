"""Label sets as Kubernetes' and Cilium's users know them: "source:key=value", sorted.

Belongs here: which labels make up an identity, their text form, and what a valid key and value is. Does not belong
here: selecting by them (policy/selectors.py).
"""

import re
from collections.abc import Mapping

from controlplane.model import Labels

SOURCE_KUBERNETES = "k8s"
SOURCE_RESERVED = "reserved"
NAMESPACE_KEY = "io.kubernetes.pod.namespace"
NAMESPACE_LABEL_PREFIX = "io.cilium.k8s.namespace.labels."
CLUSTER_KEY = "io.cilium.k8s.policy.cluster"
SERVICE_ACCOUNT_KEY = "io.cilium.k8s.policy.serviceaccount"
SERVICE_ACCOUNT_DEFAULT = "default"

IDENTITY_IRRELEVANT = (
    re.compile(r"io\.kubernetes(?!\.pod\.namespace$).*"),
    re.compile(r"kubernetes\.io/.*"),
    re.compile(r".*\.kubernetes\.io/.*"),
    re.compile(r"pod-template-(generation|hash)"),
    re.compile(r"controller-revision-hash"),
    re.compile(r"annotation.*"),
    re.compile(r"etcd_node"),
    re.compile(r"statefulset\.kubernetes\.io/pod-name"),
    re.compile(r"batch\.kubernetes\.io/(job-completion-index|controller-uid)"),
    re.compile(r"(controller-uid|job-name)"),
)
"""Workload labels that change with every rollout or pod and would give each pod an identity of its own.
Source: Cilium's default label filter, documented under "Limiting Identity-Relevant Labels"."""

_IRRELEVANT = re.compile("|".join(f"(?:{pattern.pattern})" for pattern in IDENTITY_IRRELEVANT))
_KEEPS = re.compile(r"app\.kubernetes\.io/.*")
"""Cilium keeps the recommended labels of applications although they end in kubernetes.io."""

_NAME = re.compile(r"[A-Za-z0-9](?:[-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?")
_DNS = re.compile(r"[a-z0-9](?:[-a-z0-9]*[a-z0-9])?(?:\.[a-z0-9](?:[-a-z0-9]*[a-z0-9])?)*")
DNS_CHARS_MAX = 253


def label(source: str, key: str, value: str = "") -> str:
    """The text of one label."""
    return f"{source}:{key}={value}" if value else f"{source}:{key}"


def is_identity_relevant(key: str) -> bool:
    """Whether a workload's label takes part in its identity."""
    return bool(_KEEPS.fullmatch(key)) or not _IRRELEVANT.fullmatch(key)


def identity_labels(
    cluster: str,
    namespace: str,
    namespace_labels: Mapping[str, str],
    workload_labels: Mapping[str, str],
    service_account: str,
) -> Labels:
    """The labels that decide a workload's identity."""
    labels = [
        f"k8s:{CLUSTER_KEY}={cluster}",
        f"k8s:{NAMESPACE_KEY}={namespace}",
        f"k8s:{SERVICE_ACCOUNT_KEY}={service_account or SERVICE_ACCOUNT_DEFAULT}",
    ]
    labels += [
        label(SOURCE_KUBERNETES, NAMESPACE_LABEL_PREFIX + key, value) for key, value in namespace_labels.items()
    ]
    labels += [
        label(SOURCE_KUBERNETES, key, value)
        for key, value in workload_labels.items()
        if is_identity_relevant(key)
    ]
    return tuple(sorted(labels))


def invalid_key(key: str) -> str:
    """What is wrong with a label's key, or "". Source: Kubernetes' "Labels and Selectors", syntax and character set."""
    prefix, slash, name = key.rpartition("/")
    if slash and (len(prefix) > DNS_CHARS_MAX or not _DNS.fullmatch(prefix)):
        return f"prefix {prefix!r} must be a DNS name"
    if not _NAME.fullmatch(name):
        return f"name {name!r} must be 1 to 63 letters, digits, '-', '_' or '.', with a letter or digit at both ends"
    return ""


def invalid_value(value: str) -> str:
    """What is wrong with a label's value, or ""."""
    if value and not _NAME.fullmatch(value):
        return f"value {value!r} must be at most 63 letters, digits, '-', '_' or '.', with a letter or digit at both ends"
    return ""


def label_fault(labels: Labels) -> str:
    """What is wrong with a label set, or "": sorted, each once, each "source:key" or "source:key=value"."""
    if list(labels) != sorted(set(labels)):
        return f"labels {','.join(labels)}: right is sorted, each once"
    for each in labels:
        source, colon, rest = each.partition(":")
        if not source or not colon or not rest or rest.startswith("="):
            return f"label {each!r}: right is for example k8s:app=shop"
    return ""


def identity_fault(cluster: str, labels: Labels) -> str:
    """What is wrong with the labels of an identity of this cluster, or ""."""
    fault = label_fault(labels)
    if fault:
        return fault
    own = label(SOURCE_KUBERNETES, CLUSTER_KEY, cluster)
    return "" if own in labels else f"labels {','.join(labels)}: {own} is missing"
