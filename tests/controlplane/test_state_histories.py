"""Random histories: what holds for the state whatever was written to the log."""

from unittest.mock import patch

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controlplane.codec import decode
from controlplane.events import ClusterLeft, Event, NamespaceLabelled, WorkloadApplied, WorkloadRemoved
from controlplane.projections import folding as module
from controlplane.projections.folding import Folding
from controlplane.projections.state import State
from kvstore.types import Record
from tests.controlplane.random_mesh import CLUSTERS, LEAVE, Log, Step, forgery, history, joined, steps, wish

CACHES = ("block_heads",)


def replayed(records: list[Record]) -> State:
    state = State()
    for record in records:
        state.apply(record)
    return state


def indexes(state: State) -> dict[str, object]:
    return {name: value for name, value in vars(state).items() if name not in CACHES}


@settings(max_examples=150, deadline=None)
@given(steps(80))
def test_what_is_decided_is_never_refused(script: list[Step]) -> None:
    """Decisions and projections agree on what may be."""
    assert history(script).state.refused_events == []


@settings(max_examples=100, deadline=None)
@given(steps(60))
def test_what_was_decided_is_true_afterwards(script: list[Step]) -> None:
    """The same wish again leads to nothing."""
    log = history(script)
    for author, command in map(wish, script):
        log.wish(author, command)
        again = log.wish(author, command)
        assert not getattr(again, "events", ()), again


@settings(max_examples=100, deadline=None)
@given(steps(60))
def test_a_loaded_state_is_the_saved_one(script: list[Step]) -> None:
    """Every index, not only what is saved."""
    state = history(script).state
    loaded = State.load(state.save())
    assert indexes(loaded) == indexes(state)


@settings(max_examples=60, deadline=None)
@given(steps(60))
def test_a_copy_stands_alone(script: list[Step]) -> None:
    """Changing the copy does not change the original."""
    log = history(script)
    saved, copy = log.state.save(), log.state.copy()
    before = dict(indexes(State.load(saved)))
    other = Log()
    other.state, other.records = copy, list(log.records)
    for author, command in map(wish, reversed(script)):
        other.wish(author, command)
    assert log.state.save() == saved
    assert indexes(log.state) == before


@settings(max_examples=60, deadline=None)
@given(steps(60))
def test_nothing_is_left_of_clusters_that_left(script: list[Step]) -> None:
    """Teardown ends where the log began, but for how far the log is."""
    log = history(script)
    for cluster in CLUSTERS:
        log.write(cluster, "operator", ClusterLeft())
    left = [name for name, value in indexes(log.state).items() if isinstance(value, dict) and value]
    assert left == ["sequences"]
    assert log.state.digest() == State().digest()


@settings(max_examples=100, deadline=None)
@given(steps(30), steps(12))
def test_forgeries_change_nothing(script: list[Step], forged: list[Step]) -> None:
    """They are refused and remembered, and that is all."""
    log = history(step for step in script if step[0] != LEAVE)
    digest, epoch = log.state.digest(), log.state.policy_epoch
    for number, step in enumerate(forged, 1):
        cluster, writer, events = forgery(step)
        assert log.write(cluster, writer, *events) == ()
        assert log.state.refused_count == number, events
    assert (log.state.digest(), log.state.policy_epoch) == (digest, epoch)


@settings(max_examples=60, deadline=None)
@given(steps(40))
def test_a_record_counts_once(script: list[Step]) -> None:
    """Delivered again, now or later, it changes nothing."""
    log = history(script)
    state = State()
    for record in log.records:
        state.apply(record)
        assert state.apply(record) == ()
    for record in log.records:
        assert state.apply(record) == ()
    assert state.save() == log.state.save()


declarations = st.lists(
    st.builds(
        WorkloadApplied,
        st.just("shop"),
        st.sampled_from(("w0", "w1", "w2", "w/3")),
        st.just({}),
        ready=st.booleans(),
        ports=st.sampled_from(({}, {}, {"web": (80, "TCP")}, {"web": (0, "TCP")})),
    ),
    min_size=1,
    max_size=4,
)
other_records = st.sampled_from((WorkloadRemoved("shop", "w1"), NamespaceLabelled("shop", {"a": "b"}), ClusterLeft()))


@settings(max_examples=150, deadline=None)
@given(steps(20), st.lists(st.one_of(declarations, other_records)), st.sampled_from((1, 300, 2**26)))
def test_folding_ends_where_applying_does(
    script: list[Step], more: list[list[WorkloadApplied] | Event], bytes_max: int
) -> None:
    """Whatever waits within it: state, indexes, refusals, and the revision of the last record that could change a
    policy row; a record that comes again counts once, and so does each event."""
    log = history(script)
    for each in more:
        log.write(CLUSTERS[0], "operator", *(each if isinstance(each, list) else (each,)))
    state = State()
    with patch.object(module, "WAITING_BYTES_MAX", bytes_max), Folding(state) as folding:
        for record in log.records:
            folding.apply(record)
            folding.apply(record)
    assert state.save() == log.state.save()
    assert indexes(state) == indexes(log.state)
    assert folding.events == sum(len(decode(record.payload).events) for record in log.records)


def test_what_waits_is_built_behind_the_block() -> None:
    """Else the property above would compare a thing with itself; a block that fails leaves a whole state too."""
    log = history(())
    state = replayed(log.records)
    log.write(CLUSTERS[0], "operator", WorkloadApplied("shop", "late", {}))
    with pytest.raises(ZeroDivisionError), Folding(state) as folding:
        folding.apply(log.records[-1])
        assert state.workloads != log.state.workloads
        raise ZeroDivisionError
    assert state.save() == log.state.save()


def test_joined_mesh_has_every_node() -> None:
    """The histories of these tests begin with something."""
    log = Log()
    for author, command in joined():
        log.wish(author, command)
    assert len(log.state.nodes) == 6
    assert all(node.blocks for node in log.state.nodes.values())
