"""The same events end in the same state and the same rows, by whatever path."""

from itertools import groupby
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from controlplane.codec import decode
from controlplane.desired.derive import Deriver
from controlplane.projections.state import State
from kvstore.types import Record
from tests.controlplane.random_mesh import CLUSTERS, NODES, Step, history, record_of, steps

EPOCH_TABLE = "node_state"
"""Its one row holds a revision, which another cut into batches moves."""


def folded(records: list[Record], state: State | None = None) -> State:
    state = state or State()
    for record in records:
        state.apply(record)
    return state


def rows(state: State) -> dict[tuple[str, str], Any]:
    return {
        (cluster, node): {
            name: table for name, table in Deriver(cluster, node).full(state).tables.items() if name != EPOCH_TABLE
        }
        for cluster in CLUSTERS
        for node in NODES
    }


def single(records: list[Record]) -> list[Record]:
    """One event in each batch."""
    cut: list[Record] = []
    for record in records:
        for event in decode(record.payload).events:
            cut.append(record_of(cut, record.cluster, record.writer, (event,)))
    return cut


def merged(records: list[Record], largest: int) -> list[Record]:
    """Neighbours of one writer in one batch."""
    cut: list[Record] = []
    for (cluster, writer), group in groupby(records, key=lambda record: (record.cluster, record.writer)):
        events = [event for record in group for event in decode(record.payload).events]
        for start in range(0, len(events), largest):
            cut.append(record_of(cut, cluster, writer, events[start : start + largest]))
    return cut


@settings(max_examples=60, deadline=None)
@given(steps(60), st.integers(1, 9))
def test_the_cut_into_batches_does_not_show(script: list[Step], largest: int) -> None:
    """Neither in the state nor in any node's rows."""
    records = history(script).records
    whole, singles, merges = (folded(cut) for cut in (records, single(records), merged(records, largest)))
    assert whole.digest() == singles.digest() == merges.digest()
    assert rows(whole) == rows(singles) == rows(merges)


@settings(max_examples=100, deadline=None)
@given(steps(60), st.integers(0, 100))
def test_a_checkpoint_anywhere_does_not_show(script: list[Step], percent: int) -> None:
    """Byte for byte: what is saved at the end is what replay from the first record saves."""
    records = history(script).records
    place = len(records) * percent // 100
    resumed = State.load(folded(records[:place]).save())
    end = folded(records[place:], resumed)
    whole = folded(records)
    assert end.save() == whole.save()
    assert end.policy_epoch == whole.policy_epoch
    assert rows(end) == rows(whole)


@settings(max_examples=60, deadline=None)
@given(steps(40))
def test_independent_clusters_may_come_in_any_order(script: list[Step]) -> None:
    """Each cluster's own order kept, another interleaving gives the same mesh, as long as nothing is refused."""
    records = history(script).records
    first = [r for cluster in CLUSTERS for r in records if r.cluster == cluster]
    ordered: list[Record] = []
    for record in first:
        ordered.append(record_of(ordered, record.cluster, record.writer, decode(record.payload).events))
    other = folded(ordered)
    assert other.refused_events == []
    assert other.digest() == folded(records).digest()
    assert rows(other) == rows(folded(records))
