"""Label sets as Kubernetes' and Cilium's users know them: "source:key=value", sorted.

Belongs here: their text form, and what a right label set is. Does not belong here: which of them make up an identity
(policy/identity_labels.py), selecting by them (policy/selectors.py), the keys and values that a manifest may hold
(fields.py).
"""

from controlplane.model import Labels

SOURCE_KUBERNETES = "k8s"
SOURCE_RESERVED = "reserved"
NAMESPACE_KEY = "io.kubernetes.pod.namespace"
NAMESPACE_LABEL_PREFIX = "io.cilium.k8s.namespace.labels."
CLUSTER_KEY = "io.cilium.k8s.policy.cluster"
SERVICE_ACCOUNT_KEY = "io.cilium.k8s.policy.serviceaccount"
SERVICE_ACCOUNT_DEFAULT = "default"

def label(source: str, key: str, value: str = "") -> str:
    """The text of one label."""
    return f"{source}:{key}={value}" if value else f"{source}:{key}"


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
