"""What a record did, and what is other between two states."""

from typing import Any

from hypothesis import given, settings

from controlplane.desired.derive import Deriver
from controlplane.history.changes import effects, node_row_changes, thing_changes
from controlplane.history.rows import row_fields, row_name
from controlplane.model import NodeKey
from controlplane.projections.state import State
from datapath.tables import TABLES
from tests.controlplane.history.past import shop
from tests.controlplane.random_mesh import forgery, history, steps


@given(steps(20))
@settings(max_examples=40, deadline=None)
def test_effects_are_the_difference(script: Any) -> None:
    """What a record is said to have done, in things and rows, is what is other behind it, for every node."""
    records = history(script).records
    state = State()
    for record in records:
        before = state.copy()
        state.apply(record)
        nodes = sorted(before.nodes)
        things, rows, refused = effects(before, record, nodes)
        by_name = {(each.kind, each.name): each for each in things}
        assert by_name == {(each.kind, each.name): each for each in thing_changes(before, state)}
        said = {(row.cluster, row.node, row.table, row.key): row for row in rows}
        seen = {(row.cluster, row.node, row.table, row.key): row
                for where in nodes for row in node_row_changes(before, state, where)}  # fmt: skip
        assert said == seen
        assert refused == []


def test_refusals_are_said() -> None:
    """A forged event changes nothing, and its record says why it was refused."""
    log = shop()
    cluster, writer, events = forgery((4, 0, 0, 0))
    before = log.state.copy()
    log.write(cluster, writer, *events)
    things, rows, refused = effects(before, log.records[-1], sorted(before.nodes))
    assert (things, rows, len(refused)) == ([], [], 1)
    assert "ClusterLeft refused" in refused[0]


def test_every_row_has_a_name_of_its_own() -> None:
    """No two rows of a table are called the same, and every field is a value that JSON has."""
    tables = Deriver(*NodeKey("east", "n1")).full(shop().state).tables
    for table in TABLES:
        names = [row_name(table, key) for key in tables[table]]
        assert len(set(names)) == len(names)
        for row in tables[table].values():
            assert all(isinstance(value, (str, int, list)) for value in row_fields(table, row).values())
