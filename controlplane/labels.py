"""Label sets as Kubernetes' and Cilium's users know them: "source:key=value", sorted.

Belongs here: which labels make up an identity, their text form, and what a right label set is. Does not belong here:
selecting by them (policy/selectors.py), the keys and values that a manifest may hold (fields.py).
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

_IRRELEVANT = re.compile(
    r"io\.kubernetes|kubernetes\.io|statefulset\.kubernetes\.io/pod-name|apps\.kubernetes\.io/pod-index"
    r"|batch\.kubernetes\.io/job-completion-index|batch\.kubernetes\.io/controller-uid|.*beta\.kubernetes\.io|k8s\.io"
    r"|pod-template-generation|pod-template-hash|controller-revision-hash|annotation|controller-uid|etcd_node"
)
"""Workload labels that would give each pod, or each rollout, an identity of its own: keys that begin so. Source:
Cilium's default label filter (documentation "Limiting Identity-Relevant Labels", source pkg/labelsfilter). Labels of
app.kubernetes.io and names of jobs take part, as there."""

_PLATFORM = re.compile(r"io\.cilium\.k8s|io\.kubernetes")
"""Keys that only the platform may write: a workload cannot give itself a namespace's or a cluster's labels."""


def label(source: str, key: str, value: str = "") -> str:
    """The text of one label."""
    return f"{source}:{key}={value}" if value else f"{source}:{key}"


def is_identity_relevant(key: str) -> bool:
    """Whether a workload's label takes part in its identity."""
    return _IRRELEVANT.match(key) is None and _PLATFORM.match(key) is None


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
    labels += [label(SOURCE_KUBERNETES, NAMESPACE_LABEL_PREFIX + key, value) for key, value in namespace_labels.items()]
    labels += [
        label(SOURCE_KUBERNETES, key, value) for key, value in workload_labels.items() if is_identity_relevant(key)
    ]
    return tuple(sorted(labels))


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
    """Why a cluster may not number these labels, or "": they are its own, and reserved identities are fixed."""
    fault = label_fault(labels)
    if fault:
        return fault
    own = label(SOURCE_KUBERNETES, CLUSTER_KEY, cluster)
    if own not in labels:
        return f"labels {','.join(labels)}: {own} is missing"
    for each in labels:
        if each.startswith(f"{SOURCE_RESERVED}:"):
            return f"label {each!r}: reserved identities are fixed"
        if each != own and each.partition("=")[0] == f"{SOURCE_KUBERNETES}:{CLUSTER_KEY}":
            return f"label {each!r}: right is {own} alone"
    return ""
