"""Which identities selectors select, as identities and selectors come and go."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controlplane.model import ObjectKey
from controlplane.policy.selection import Selection, Subjects
from controlplane.policy.selectors import (
    EVERYTHING,
    OPERATORS,
    Requirement,
    Selector,
    equals,
    index_labels,
    selector_of,
)
from tests.controlplane.policy.worlds import MESH, WORKLOADS, workload_labels

APP_DB = selector_of((equals("k8s:app", "db"),))

_KEYS = st.sampled_from(("k8s:app", "any:app", "k8s:tier", "any:io.cilium.k8s.policy.cluster", "reserved:host"))
_VALUES = st.lists(st.sampled_from(("db", "front", "gold", "east", "")), max_size=2).map(
    lambda values: tuple(sorted(set(values)))
)
_SELECTORS = st.lists(st.builds(Requirement, _KEYS, st.sampled_from(OPERATORS), _VALUES), max_size=3).map(selector_of)


def test_identities_are_sorted() -> None:
    """Whatever order they came in."""
    selection = Selection()
    selection.add(EVERYTHING)
    for number in (7, 3, 5):
        selection.put(number, workload_labels("db"))
    assert list(selection.selected(EVERYTHING)) == [3, 5, 7]


def test_a_change_names_the_selectors_that_it_reached() -> None:
    """And only those: the others need no new rows."""
    selection = Selection()
    selection.add(APP_DB)
    assert selection.put(3, workload_labels("front")) == []
    assert selection.put(4, workload_labels("db")) == [APP_DB]
    assert selection.put(4, workload_labels("db")) == []
    assert selection.remove(4) == [APP_DB]
    assert selection.remove(4) == []


def test_a_dropped_selector_is_forgotten() -> None:
    """Asking for it is an error of the caller, and changes reach it no more."""
    selection = Selection()
    selection.add(APP_DB)
    selection.drop(APP_DB)
    assert selection.put(4, workload_labels("db")) == []
    with pytest.raises(KeyError):
        selection.selected(APP_DB)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.tuples(st.just("put"), st.sampled_from(range(1, 6)), st.sampled_from(WORKLOADS))
        | st.tuples(st.just("remove"), st.sampled_from(range(1, 6)), st.just(0))
        | st.tuples(st.just("add"), st.just(0), _SELECTORS)
        | st.tuples(st.just("drop"), st.integers(0, 9), st.just(0)),
        max_size=30,
    )
)
def test_the_result_is_that_of_asking_everyone(acts: list[tuple[str, int, int | Selector]]) -> None:
    """The indexes change the cost, never the result."""
    selection = Selection()
    known: dict[int, tuple[str, ...]] = {}
    for act, number, value in acts:
        if act == "put":
            assert isinstance(value, int)
            known[number] = MESH[value]
            selection.put(number, MESH[value])
        elif act == "remove":
            known.pop(number, None)
            selection.remove(number)
        elif act == "add":
            assert isinstance(value, Selector)
            selection.add(value)
        elif selection.selectors():
            selection.drop(selection.selectors()[number % len(selection.selectors())])
        for selector in selection.selectors():
            assert list(selection.selected(selector)) == [n for n in sorted(known) if selector.matches(known[n])]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.lists(_SELECTORS, max_size=2)), max_size=12), st.sampled_from(WORKLOADS))
def test_no_policy_about_an_identity_is_passed_over(puts: list[tuple[int, list[Selector]]], workload: int) -> None:
    """Whichever anchors were chosen, and however often a policy changed or lost its subjects."""
    subjects = Subjects()
    held: dict[ObjectKey, list[Selector]] = {}
    for number, selectors in puts:
        key = ObjectKey("east", "NetworkPolicy", "shop", f"p{number}")
        held[key] = selectors
        subjects.put(key, selectors)
    index = index_labels(MESH[workload])
    about = [key for key in sorted(held) if any(selector.matches_index(index) for selector in held[key])]
    found = subjects.candidates(index)
    assert found == sorted(found)
    assert [key for key in found if key in about] == about
