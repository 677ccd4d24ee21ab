"""`meshlog apply --offline`: what a mesh would take of manifests, without one; and what `--replace` takes out.

Belongs here: one result per manifest in the form of the API. Does not belong here: what a manifest means.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from controlplane.policy.settings import PolicySettings

CLUSTER_DEFAULT = "default"
REPLACED_KINDS = ("NetworkPolicy", "CiliumNetworkPolicy", "CiliumClusterwideNetworkPolicy", "CiliumCIDRGroup")
"""Kinds of which `--replace` makes the given set the whole set."""


def check(documents: Sequence[dict[str, Any]], cluster: str, settings: "PolicySettings") -> dict[str, Any]:
    """The answer of an apply that changes nothing, in a mesh of these settings; revision 0, for there is no log."""
    from controlplane.kubernetes_objects import command_of, name_of

    results = []
    for item in documents:
        kind, namespace, name = name_of(item["document"])
        command = command_of(item["document"], cluster or CLUSTER_DEFAULT, settings)
        result = {"source": item["source"], "kind": kind, "namespace": namespace, "name": name}
        result |= {"accepted": True, "changed": False, "action": "accepted", "reason": "", "field": ""}
        if isinstance(command, tuple):
            reason = "; ".join(str(refusal) for refusal in command)
            result |= {"accepted": False, "action": "rejected", "reason": reason, "field": command[0].field}
        results.append(result)
    return {"revision": 0, "results": results}


def left_over(given: Sequence[dict[str, Any]], known: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of the documents in force those that the given set does not name, for a delete."""
    from controlplane.kubernetes_objects import name_of

    named = {name_of(item["document"]) for item in given}
    return [{"document": each, "source": "--replace"} for each in known if name_of(each) not in named]
