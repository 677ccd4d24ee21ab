"""Kubernetes manifests as commands: one document in, one command or everything that is wrong with it out. Pure.

Belongs here: the kinds that Meshlog takes, Namespace and policies. Does not belong here: files and YAML
(kubernetes.py), the other kinds (kubernetes_pods.py, _services.py, _slices.py, _redirects.py, _pools.py), the meaning
of policies (policy/), the way back (kubernetes_views.py).
"""

from collections.abc import Callable, Mapping
from typing import Any

from controlplane.commands.addresses import ApplyCidrGroup, RemoveCidrGroup
from controlplane.commands.balancer_pools import ApplyBalancerPool, RemoveBalancerPool
from controlplane.commands.namespace import ApplyNamespace, RemoveNamespace
from controlplane.commands.policy import ApplyPolicy, RemovePolicy
from controlplane.commands.redirect import ApplyLocalRedirect, RemoveLocalRedirect
from controlplane.commands.service import ApplyService, RemoveService, ReportBackends, WithdrawBackends
from controlplane.commands.workload import ApplyWorkload, RemoveWorkload
from controlplane.fields import Reading, Refusal
from controlplane.kubernetes_metadata import CLUSTER_SCOPED, NAMESPACE_NAME_LABEL, Metadata
from controlplane.kubernetes_pods import read_pod
from controlplane.kubernetes_pools import API_VERSIONS as POOL_VERSIONS
from controlplane.kubernetes_pools import read_pool
from controlplane.kubernetes_redirects import read_redirect
from controlplane.kubernetes_services import read_service
from controlplane.kubernetes_slices import read_backends
from controlplane.policy import cidr_groups
from controlplane.policy.manifests import (
    API_VERSIONS,
    DEFAULT_NAMESPACE,
    PARSER_VERSION,
    canonical,
    parse,
)
from controlplane.policy.settings import DEFAULTS, PolicySettings
from controlplane.projections.balancer_pools import KIND as POOL
from controlplane.projections.redirects import KIND as REDIRECT

Command = (
    ApplyNamespace
    | ApplyWorkload
    | ApplyService
    | ReportBackends
    | ApplyPolicy
    | RemoveNamespace
    | RemoveWorkload
    | RemoveService
    | WithdrawBackends
    | RemovePolicy
    | ApplyCidrGroup
    | RemoveCidrGroup
    | ApplyLocalRedirect
    | RemoveLocalRedirect
    | ApplyBalancerPool
    | RemoveBalancerPool
)

KINDS = {
    "Namespace": "v1",
    "Pod": "v1",
    "Service": "v1",
    "EndpointSlice": "discovery.k8s.io/v1",
    REDIRECT: "cilium.io/v2",
    **API_VERSIONS,
    cidr_groups.KIND: cidr_groups.API_VERSIONS[0],
    POOL: POOL_VERSIONS[0],
}
"""Every kind that is taken, with its apiVersion."""

NOT_APPLIED = {
    "Node": "a node is what its agent says it is: give labels there, `meshlog agent --labels KEY=VALUE`. Node "
    "objects are read by `meshlog verdict --manifests` and `meshlog render`",
}
"""Kinds that people have beside the others, and what is to be done instead."""


def _kind_of(document: Any, reading: Reading) -> str:
    """The kind, or "" after a refusal."""
    if not isinstance(document, dict):
        reading.refuse("", document, "a manifest is a mapping with apiVersion, kind and metadata")
        return ""
    kind = document.get("kind")
    if kind not in KINDS:
        if not isinstance(kind, str):
            reading.refuse("kind", kind, f"is required: one of {', '.join(KINDS)}")
        else:
            right = f"{kind} is not understood; Meshlog takes {', '.join(KINDS)}"
            reading.refuse("kind", kind, NOT_APPLIED.get(kind, right))
        return ""
    older = {cidr_groups.KIND: cidr_groups.API_VERSIONS, POOL: POOL_VERSIONS}.get(kind, ())
    if document.get("apiVersion") not in (KINDS[kind], *older):
        reading.refuse("apiVersion", document.get("apiVersion"), f"must be {KINDS[kind]} for kind {kind}")
    return str(kind)


def command_of(document: Any, cluster: str, settings: PolicySettings = DEFAULTS) -> Command | tuple[Refusal, ...]:
    """What `apply` of the document asks for in this cluster under its settings of policies; all refusals at once."""
    reading = Reading()
    kind = _kind_of(document, reading)
    if not kind:
        return tuple(reading.refusals)
    if kind in API_VERSIONS:
        return _policy(reading, kind, document, cluster, settings)
    metadata = Metadata(reading, document, kind)
    command = _READERS[kind](reading, metadata, document)
    return tuple(reading.refusals) or command


def removal_of(document: Any) -> Command | tuple[Refusal, ...]:
    """What `delete` of the document asks for: only its kind and its name count."""
    reading = Reading()
    kind = _kind_of(document, reading)
    if not kind:
        return tuple(reading.refusals)
    metadata = Metadata(reading, document, kind)
    if reading.refusals:
        return tuple(reading.refusals)
    namespace, name = metadata.namespace, metadata.name
    if kind == "Namespace":
        return RemoveNamespace(name)
    if kind == "Pod":
        return RemoveWorkload(namespace, name)
    if kind == "Service":
        return RemoveService(namespace, name)
    if kind == "EndpointSlice":
        return WithdrawBackends(namespace, name)
    if kind == REDIRECT:
        return RemoveLocalRedirect(namespace, name)
    if kind == cidr_groups.KIND:
        return RemoveCidrGroup(name)
    if kind == POOL:
        return RemoveBalancerPool(name)
    return RemovePolicy(kind, namespace, name)


def name_of(document: Any) -> tuple[str, str, str]:
    """(kind, namespace, name) as far as the document says them, for reports; "" where it does not."""
    found = document if isinstance(document, dict) else {}
    metadata = found.get("metadata")
    metadata = metadata if isinstance(metadata, dict) else {}
    kind = str(found.get("kind") or "")
    namespace = "" if kind in CLUSTER_SCOPED else str(metadata.get("namespace") or DEFAULT_NAMESPACE)
    return kind, namespace, str(metadata.get("name") or "")


def _policy(
    reading: Reading, kind: str, document: dict[str, Any], cluster: str, settings: PolicySettings
) -> Command | tuple[Refusal, ...]:
    metadata = Metadata(reading, document, kind)
    parsed = parse(kind, document, cluster, settings=settings)
    if isinstance(parsed, tuple):
        seen = {refusal.field for refusal in reading.refusals}
        reading.refusals += [refusal for refusal in parsed if refusal.field not in seen]
    if reading.refusals:
        return tuple(reading.refusals)
    kept: dict[str, Any] = {"name": metadata.name}
    if metadata.namespace:
        kept["namespace"] = metadata.namespace
    if metadata.labels:
        kept["labels"] = metadata.labels
    if metadata.annotations:
        kept["annotations"] = metadata.annotations
    manifest = {"apiVersion": KINDS[kind], "kind": kind, "metadata": kept}
    manifest.update({field: document[field] for field in ("spec", "specs") if document.get(field) is not None})
    return ApplyPolicy(kind, metadata.namespace, metadata.name, canonical(manifest), PARSER_VERSION)


def _namespace(reading: Reading, metadata: Metadata, document: dict[str, Any]) -> Command:
    fields = reading.mapping(document, "", ("apiVersion", "kind", "metadata", "spec", "status"))
    reading.mapping(fields.get("spec"), "spec", ("finalizers",))
    return ApplyNamespace(metadata.name, {**metadata.labels, NAMESPACE_NAME_LABEL: metadata.name})


def _pod(reading: Reading, metadata: Metadata, document: dict[str, Any]) -> Command:
    return read_pod(reading, metadata, document)


def _service(reading: Reading, metadata: Metadata, document: dict[str, Any]) -> Command:
    return read_service(reading, metadata, document)


def _endpoint_slice(reading: Reading, metadata: Metadata, document: dict[str, Any]) -> Command:
    return read_backends(reading, metadata, document)


def _local_redirect(reading: Reading, metadata: Metadata, document: dict[str, Any]) -> Command:
    return read_redirect(reading, metadata, document)


def _cidr_group(reading: Reading, metadata: Metadata, document: dict[str, Any]) -> Command:
    found = cidr_groups.read_group(reading, document, "", metadata.name, metadata.labels)
    return ApplyCidrGroup(found.name, found.prefixes, found.labels)


def _balancer_pool(reading: Reading, metadata: Metadata, document: dict[str, Any]) -> Command:
    return read_pool(reading, metadata, document)


_READERS: Mapping[str, Callable[[Reading, Metadata, dict[str, Any]], Command]] = {
    "Namespace": _namespace,
    "Pod": _pod,
    "Service": _service,
    "EndpointSlice": _endpoint_slice,
    REDIRECT: _local_redirect,
    cidr_groups.KIND: _cidr_group,
    POOL: _balancer_pool,
}
