"""What a running mesh refuses, because it would be without effect there."""

from typing import Any

import pytest
import yaml

from controlplane.commands.decide import decide
from controlplane.commands.policy import ApplyPolicy
from controlplane.commands.types import Author, Decision, Rejection
from controlplane.policy.manifests import canonical, parse
from controlplane.projections.state import State
from tests.controlplane.policy.worlds import cilium_policy

OPERATOR = Author("east", "operator")
BY_LABEL = "{matchLabels: {'reserved:kube-apiserver': ''}}"
BY_EXPRESSION = "{matchExpressions: [{key: 'reserved:kube-apiserver', operator: Exists}]}"


def outcome(manifest: dict[str, Any]) -> Decision | Rejection:
    """Of applying it; the manifest itself is right."""
    parsed = parse(manifest["kind"], manifest, "east")
    assert not isinstance(parsed, tuple), parsed
    return decide(State(), OPERATOR, ApplyPolicy(manifest["kind"], "shop", "policy", canonical(manifest)))


@pytest.mark.parametrize(
    ("rules", "field"),
    [
        ("egressDeny: [{toEntities: [world, kube-apiserver]}]", "spec.egressDeny[0].toEntities[1]"),
        ("ingressDeny: [{}, {fromEntities: [kube-apiserver]}]", "spec.ingressDeny[1].fromEntities[0]"),
        (f"egressDeny: [{{toEndpoints: [{BY_LABEL}]}}]", "spec.egressDeny[0].toEndpoints[0]"),
        (f"ingressDeny: [{{fromEndpoints: [{{}}, {BY_EXPRESSION}]}}]", "spec.ingressDeny[0].fromEndpoints[1]"),
    ],
)
def test_denying_the_api_server_is_refused(rules: str, field: str) -> None:
    """No address carries its label there, so nothing would be denied; the refusal names the field."""
    found = outcome(cilium_policy(f"endpointSelector: {{}}\n{rules}"))
    assert isinstance(found, Rejection)
    assert (found.field, "would deny nothing" in found.reason) == (field, True)


def test_denying_the_api_server_in_a_later_spec_is_refused() -> None:
    """Each of `specs` is looked at."""
    manifest = cilium_policy("{endpointSelector: {}, ingress: [{}]}")
    manifest["specs"] = [yaml.safe_load("{endpointSelector: {}, egressDeny: [{toEntities: [kube-apiserver]}]}")]
    found = outcome(manifest)
    assert isinstance(found, Rejection) and found.field == "specs[0].egressDeny[0].toEntities[0]"


@pytest.mark.parametrize(
    "rules",
    [
        "egress: [{toEntities: [kube-apiserver]}]",
        "egressDeny: [{toEntities: [cluster]}]",
        "egressDeny: [{toEndpoints: [{matchLabels: {app: kube-apiserver}}]}]",
    ],
)
def test_what_stays_closed_is_taken(rules: str) -> None:
    """Allowing the API server opens nothing; other denials have an effect."""
    assert isinstance(outcome(cilium_policy(f"endpointSelector: {{}}\n{rules}")), Decision)
