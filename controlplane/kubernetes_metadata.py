"""The metadata of Kubernetes manifests. Pure.

Belongs here: names, namespaces and labels of any kind. Does not belong here: what a kind is (kubernetes_objects.py,
kubernetes_mesh.py); this module is apart so that neither needs the other.
"""

from collections.abc import Mapping
from typing import Any

from controlplane.fields import Reading
from controlplane.policy import cidr_groups
from controlplane.policy.manifests import DEFAULT_NAMESPACE, WITHOUT_NAMESPACE
from controlplane.projections.balancer_pools import KIND as POOL

CLUSTER_SCOPED = ("Namespace", "Node", cidr_groups.KIND, POOL, *WITHOUT_NAMESPACE)
"""Kinds without a namespace."""

NAMESPACE_NAME_LABEL = "kubernetes.io/metadata.name"
"""The API server puts it on every namespace, and policies count on it."""

METADATA_KEPT = ("name", "namespace", "labels", "annotations")
METADATA_IGNORED = (
    "creationTimestamp",
    "deletionGracePeriodSeconds",
    "deletionTimestamp",
    "finalizers",
    "generateName",
    "generation",
    "managedFields",
    "ownerReferences",
    "resourceVersion",
    "selfLink",
    "uid",
)
"""Metadata that the API server keeps for itself."""


class Metadata:
    """The checked metadata of one document. `namespace` is "" for a kind without one."""

    def __init__(self, reading: Reading, document: Mapping[str, Any], kind: str) -> None:
        fields = reading.mapping(document.get("metadata"), "metadata", (*METADATA_KEPT, *METADATA_IGNORED))
        name = fields.get("name")
        self.name = reading.dns_subdomain(name, "metadata.name")
        if kind == "Namespace" and self.name:
            self.name = reading.dns_label(name, "metadata.name")
        self.namespace = ""
        if kind not in CLUSTER_SCOPED:
            self.namespace = reading.dns_label(fields.get("namespace", DEFAULT_NAMESPACE), "metadata.namespace")
        elif fields.get("namespace"):
            reading.refuse("metadata.namespace", fields["namespace"], "this kind has no namespace")
        self.labels = reading.labels(fields.get("labels"), "metadata.labels")
        self.annotations = reading.texts(fields.get("annotations"), "metadata.annotations")
