"""The model of a verdict: both sides, who is named, and the algebra of allow and deny."""

import json
import re
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from controlplane.policy.rules import ParsedPolicy
from controlplane.policy.verdict import ALLOW, DENY, DENY_DEFAULT, DENY_EXPLICIT, Flow, Side, judge
from tests.controlplane.policy.worlds import (
    MESH,
    TCP,
    cilium_policies,
    cilium_policy,
    flows,
    network_policies,
    network_policy,
    parsed,
    policy_sets,
    reserved,
    workload_labels,
)

FRONT, DB = workload_labels("front"), workload_labels("db")
WEB = Flow(FRONT, DB, TCP, 80)

Asked = tuple[int, int, int, int]


def flow_of(asked: Asked) -> Flow:
    source, dest, protocol, port = asked
    return Flow(MESH[source], MESH[dest], protocol, port)


def test_without_policies_everything_passes() -> None:
    """Nothing is enforced where no policy is; nobody is named."""
    assert judge(WEB, []) == judge(WEB, [parsed(network_policy("podSelector: {matchLabels: {app: x}}"))])
    assert judge(WEB, []).verdict == ALLOW
    assert judge(WEB, []).by == ()


def test_default_deny_names_the_policies_that_enforce() -> None:
    """A default deny has no rule to name: it names who put the endpoint into enforcement."""
    policies = [parsed(network_policy("podSelector: {}", name)) for name in ("b", "a")]
    verdict = judge(WEB, policies)
    assert verdict.verdict == DENY
    assert verdict.ingress == Side(
        DENY_DEFAULT,
        ("NetworkPolicy/shop/a", "NetworkPolicy/shop/b"),
        ("NetworkPolicy/shop/a", "NetworkPolicy/shop/b"),
    )
    assert verdict.by == ("NetworkPolicy/shop/a", "NetworkPolicy/shop/b")


def test_an_allow_names_the_policies_with_the_rule() -> None:
    """Of the policies that enforce, only those that allow are named."""
    closing = parsed(network_policy("podSelector: {}", "closing"))
    opening = parsed(network_policy("ingress: [{ports: [{port: 80}]}]", "opening"))
    verdict = judge(WEB, [closing, opening])
    assert verdict.verdict == ALLOW
    assert verdict.by == ("NetworkPolicy/shop/opening",)
    assert verdict.ingress is not None
    assert verdict.ingress.enforced_by == ("NetworkPolicy/shop/closing", "NetworkPolicy/shop/opening")


def test_an_explicit_deny_names_the_deny_rule() -> None:
    """Not those that would have allowed."""
    opening = parsed(network_policy("ingress: [{}]", "opening"))
    denying = parsed(cilium_policy("{endpointSelector: {}, ingressDeny: [{fromEntities: [all]}]}", "denying"))
    verdict = judge(WEB, [opening, denying])
    assert verdict.ingress is not None
    assert verdict.ingress.verdict == DENY_EXPLICIT
    assert verdict.by == ("CiliumNetworkPolicy/shop/denying",)


def test_both_ends_must_agree() -> None:
    """An egress denial is a denial, whatever the destination allows, and names the source's policy."""
    closing = parsed(network_policy("{podSelector: {matchLabels: {app: front}}, policyTypes: [Egress]}", "out"))
    verdict = judge(WEB, [closing])
    assert verdict.egress is not None and verdict.ingress is not None
    assert (verdict.egress.verdict, verdict.ingress.verdict) == (DENY_DEFAULT, ALLOW)
    assert (verdict.verdict, verdict.by) == (DENY, ("NetworkPolicy/shop/out",))


def test_an_end_outside_the_mesh_has_no_side() -> None:
    """The world has no policy of ours."""
    verdict = judge(Flow(reserved("world"), DB, TCP, 80), [])
    assert verdict.egress is None
    assert verdict.ingress == Side(ALLOW)


def _allowed(policies: list[ParsedPolicy], asked: Asked) -> bool:
    return judge(flow_of(asked), policies).verdict == ALLOW


@settings(max_examples=100, deadline=None)
@given(policy_sets(), network_policies("p0"), flows())
def test_adding_an_allow_rule_never_removes_a_flow(
    policies: list[ParsedPolicy], manifest: dict[str, object], asked: Asked
) -> None:
    """A policy that gains rules without deny allows at least what it allowed before."""
    policy = parsed(manifest)
    fewer = ParsedPolicy(policy.key, policy.subject, policy.enforce_ingress, policy.enforce_egress, ())
    if _allowed([*policies, fewer], asked):
        assert _allowed([*policies, policy], asked)


@settings(max_examples=100, deadline=None)
@given(policy_sets(), cilium_policies("p9"), flows())
def test_deny_wins(policies: list[ParsedPolicy], manifest: dict[str, object], asked: Asked) -> None:
    """What one policy denies by a rule, no company of other policies lets through."""
    policy = parsed(manifest)
    alone = judge(flow_of(asked), [policy])
    together = judge(flow_of(asked), [*policies, policy])
    for before, after in ((alone.egress, together.egress), (alone.ingress, together.ingress)):
        if before is not None and before.verdict == DENY_EXPLICIT:
            assert after is not None and after.verdict == DENY_EXPLICIT


@settings(max_examples=100, deadline=None)
@given(policy_sets(), flows(), st.randoms(use_true_random=False))
def test_order_does_not_matter(policies: list[ParsedPolicy], asked: Asked, chance: object) -> None:
    """The same policies in another order: the same verdict, the same names."""
    shuffled = sorted(policies, key=lambda _: chance.random())  # type: ignore[attr-defined]
    assert judge(flow_of(asked), shuffled) == judge(flow_of(asked), policies)


@settings(max_examples=100, deadline=None)
@given(policy_sets(), flows())
def test_a_policy_name_decides_nothing(policies: list[ParsedPolicy], asked: Asked) -> None:
    """Renaming policies changes who is named, never the verdict."""
    renamed = [
        ParsedPolicy(
            policy.key._replace(name=f"z{-number}"),
            policy.subject,
            policy.enforce_ingress,
            policy.enforce_egress,
            policy.rules,
        )
        for number, policy in enumerate(policies)
    ]
    assert _allowed(renamed, asked) == _allowed(policies, asked)


RENAMED = {
    "shop": "lager", "guest": "attic", "front": "zebra", "cart": "apex", "db": "m1", "gold": "x.y", "tin": "a_b",
    "app": "zone.io/kind", "tier": "A", "east": "omega", "west": "alpha",
}  # fmt: skip
"""Other names, in another order."""
NAMED = re.compile(rf"(?<![\w./])({'|'.join(RENAMED)})(?![\w./])")


def renamed(text: str) -> str:
    return NAMED.sub(lambda found: RENAMED[found[1]], text)


@st.composite
def _manifests(draw: st.DrawFn) -> list[dict[str, Any]]:
    count = draw(st.integers(1, 3))
    return [draw(network_policies(f"p{number}") | cilium_policies(f"p{number}")) for number in range(count)]


@settings(max_examples=150, deadline=None)
@given(_manifests(), flows())
def test_consistent_renaming_changes_no_verdict(manifests: list[dict[str, Any]], asked: Asked) -> None:
    """Other names of namespaces, clusters, labels and their values, everywhere: the same verdict of each side."""
    source, dest, protocol, port = asked
    flow = Flow(*(tuple(sorted(map(renamed, MESH[number]))) for number in (source, dest)), protocol, port)
    policies = [parsed(json.loads(renamed(json.dumps(manifest))), RENAMED["east"]) for manifest in manifests]
    there, here = judge(flow, policies), judge(flow_of(asked), [parsed(manifest) for manifest in manifests])
    assert [side and side.verdict for side in (there.egress, there.ingress)] == [
        side and side.verdict for side in (here.egress, here.ingress)
    ]


@settings(max_examples=100, deadline=None)
@given(policy_sets(), cilium_policies("p9"), flows())
def test_a_deny_rule_only_takes_away(policies: list[ParsedPolicy], manifest: dict[str, Any], asked: Asked) -> None:
    """More deny rules, no enforcement with them: what is allowed was allowed before."""
    spec = {name: value for name, value in manifest["spec"].items() if name not in ("ingress", "egress")}
    spec["enableDefaultDeny"] = {"ingress": False, "egress": False}
    if _allowed([*policies, parsed(cilium_policy(spec, "p9"))], asked):
        assert _allowed(policies, asked)
