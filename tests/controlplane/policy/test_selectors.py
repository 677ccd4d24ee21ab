"""Selectors over labels: keys with and without source, the four operators, the canonical form."""

import pytest

from controlplane.policy.selectors import EVERYTHING, Requirement, equals, exists, selector_of

LABELS = ("any-source:plain=1", "k8s:app=shop", "k8s:empty", "k8s:tier=gold", "reserved:host")


@pytest.mark.parametrize(
    ("requirement", "holds"),
    [
        (equals("k8s:app", "shop"), True),
        (equals("k8s:app", "other"), False),
        (equals("any:app", "shop"), True),
        (equals("other:app", "shop"), False),
        (equals("k8s:empty", ""), True),
        (exists("reserved:host"), True),
        (exists("any:host"), True),
        (exists("k8s:host"), False),
        (Requirement("k8s:app", "In", ("a", "shop")), True),
        (Requirement("k8s:app", "In", ("a", "b")), False),
        (Requirement("k8s:gone", "In", ("a",)), False),
        (Requirement("k8s:app", "NotIn", ("shop",)), False),
        (Requirement("k8s:app", "NotIn", ("a",)), True),
        (Requirement("k8s:gone", "NotIn", ("a",)), True),
        (Requirement("k8s:app", "DoesNotExist"), False),
        (Requirement("k8s:gone", "DoesNotExist"), True),
    ],
)
def test_one_requirement(requirement: Requirement, holds: bool) -> None:
    """Operators mean what "Labels and Selectors" of the Kubernetes documentation says; a key's source counts."""
    assert selector_of((requirement,)).matches(LABELS) is holds


def test_all_requirements_must_hold() -> None:
    """Requirements are joined by and."""
    assert selector_of((equals("k8s:app", "shop"), equals("k8s:tier", "gold"))).matches(LABELS)
    assert not selector_of((equals("k8s:app", "shop"), equals("k8s:tier", "tin"))).matches(LABELS)


def test_the_empty_selector_matches_everything() -> None:
    """Without requirements there is nothing to fail."""
    assert EVERYTHING.matches(LABELS)
    assert EVERYTHING.matches(())


def test_equal_selectors_are_equal_values() -> None:
    """Order and repetition do not make another selector, so one cache entry serves both."""
    first, second = equals("k8s:a", "1"), exists("k8s:b")
    assert selector_of((first, second, first)) == selector_of((second, first))
    assert hash(selector_of((first, second))) == hash(selector_of((second, first)))
