"""What is in force, as manifests that can be applied again. Pure.

Belongs here: finding the nouns of a kind by namespace and name. Does not belong here: their form
(kubernetes_views.py).
"""

from collections.abc import Iterable
from typing import Any

from controlplane.kubernetes_views import manifest_of
from controlplane.model import Policy
from controlplane.projections.state import State

ALIASES = {
    "ns": "Namespace",
    "po": "Pod",
    "workload": "Pod",
    "svc": "Service",
    "no": "Node",
    "netpol": "NetworkPolicy",
    "clrp": "CiliumLocalRedirectPolicy",
    "ippool": "CiliumLoadBalancerIPPool",
    "lbippool": "CiliumLoadBalancerIPPool",
    "cnp": "CiliumNetworkPolicy",
    "ccnp": "CiliumClusterwideNetworkPolicy",
}
KINDS = (
    "Namespace", "Node", "Pod", "Service", "EndpointSlice", "NetworkPolicy", "CiliumNetworkPolicy",
    "CiliumClusterwideNetworkPolicy", "CiliumCIDRGroup", "CiliumLocalRedirectPolicy", "CiliumLoadBalancerIPPool",
)  # fmt: skip
POLICY_KINDS = ("NetworkPolicy", "CiliumNetworkPolicy", "CiliumClusterwideNetworkPolicy")


class UnknownKind(Exception):
    """No kind is called so; names those that are."""


def kind_named(text: str) -> str:
    """The kind as manifests write it. Raises UnknownKind."""
    lowered = text.lower()
    singular = {kind.lower(): kind for kind in KINDS}
    plural = {_plural(kind.lower()): kind for kind in KINDS}
    found = singular.get(lowered) or plural.get(lowered) or ALIASES.get(lowered)
    if found is None:
        raise UnknownKind(f"no kind is called {text!r}; there are: {', '.join(KINDS)}")
    return found


def documents(
    state: State, cluster: str, kind_text: str, namespace: str = "", name: str = ""
) -> list[dict[str, Any]]:
    """Manifests of one cluster, sorted; "" stands for all. Raises UnknownKind."""
    kind = kind_named(kind_text)
    found = [
        each
        for each in _nouns(state, kind)
        if each.cluster == cluster
        and (not name or each.name == name)
        and (not namespace or getattr(each, "namespace", "") == namespace)
    ]
    found.sort(key=lambda each: (getattr(each, "namespace", ""), each.name))
    return [manifest_of(kind, each) for each in found]


def _nouns(state: State, kind: str) -> Iterable[Any]:
    if kind in POLICY_KINDS:
        policies: Iterable[Policy] = state.policies.values()
        return [policy for policy in policies if policy.kind == kind]
    collections: dict[str, Iterable[Any]] = {
        "Namespace": state.namespaces.values(),
        "Node": state.nodes.values(),
        "Pod": state.workloads.values(),
        "Service": state.services.values(),
        "EndpointSlice": state.backend_slices.values(),
        "CiliumLocalRedirectPolicy": state.local_redirects.values(),
        "CiliumLoadBalancerIPPool": state.balancer_pools.values(),
        "CiliumCIDRGroup": state.cidr_groups.values(),
    }
    return collections[kind]


def _plural(singular: str) -> str:
    return singular[:-1] + "ies" if singular.endswith("y") else singular + "s"
