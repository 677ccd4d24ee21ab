"""A node's rows after changes are the rows of a node that started anew."""

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from controlplane.desired.derive import Deriver
from datapath import codec
from datapath.tables import Desired
from tests.controlplane.random_mesh import Log, Step, history, joined, steps, wish

Tables = dict[str, dict[Any, Any]]


def fold(tables: Tables, desired: Desired) -> None:
    """As the kernel would follow."""
    if desired.complete:
        tables.clear()
    for name, rows in desired.tables.items():
        held = tables.setdefault(name, {})
        for key, row in rows.items():
            if row is None:
                held.pop(key, None)
            else:
                held[key] = row


def full(log: Log, node: str) -> Tables:
    return {name: dict(rows) for name, rows in Deriver("east", node).full(log.state).tables.items()}


@settings(max_examples=150, deadline=None)
@given(steps(), steps(60), st.lists(st.integers(1, 6), min_size=1, max_size=8))
def test_folded_updates_equal_a_full_derivation(before: list[Step], after: list[Step], cuts: list[int]) -> None:
    """Whatever happens in the mesh, and however many records one update takes."""
    log = history(before)
    deriver, tables = Deriver("east", "n1"), {}
    fold(tables, deriver.full(log.state))
    wishes = [wish(step) for step in after]
    number = 0
    while wishes:
        count, number = cuts[number % len(cuts)], number + 1
        seen = len(log.changes)
        for author, command in wishes[:count]:
            log.wish(author, command)
        del wishes[:count]
        fold(tables, deriver.update(log.state, log.changes[seen:]))
        assert dict(tables) == full(log, "n1")


@settings(max_examples=60, deadline=None)
@given(steps(60))
def test_updates_from_an_empty_mesh_equal_a_full_derivation(script: list[Step]) -> None:
    """A node whose agent was there before its cluster, and saw everything come."""
    log = Log()
    deriver, tables = Deriver("east", "n1"), {}
    fold(tables, deriver.full(log.state))
    for author, command in [*joined(), *map(wish, script)]:
        seen = len(log.changes)
        log.wish(author, command)
        fold(tables, deriver.update(log.state, log.changes[seen:]))
    assert tables == full(log, "n1")


@settings(max_examples=60, deadline=None)
@given(steps(60))
def test_every_row_fits_its_struct(script: list[Step]) -> None:
    """The kernel's bytes exist for every row that a mesh can lead to."""
    log = history(script)
    for name, rows in Deriver("east", "n2").full(log.state).tables.items():
        assert len(codec.encode_rows(name, rows)) == len(rows)


@settings(max_examples=30, deadline=None)
@given(steps(60))
def test_what_service_rows_name_is_there(script: list[Step]) -> None:
    """Lookup tables, ranges and backends for affinity: none is missing, and none is left over."""
    tables = Deriver("east", "n1").full(history(script).state).tables
    rows = tables["services"].values()
    assert {key.backend_set for key in tables["maglev"]} == {row.backend_set for row in rows if row.maglev_slots}
    with_affinity = {row.backend_set for row in rows if row.affinity_s and row.count}
    assert {key.backend_set for key in tables["affinity_backends"]} == with_affinity
    with_ranges = {row.source_range_set for row in rows} - {0}
    assert {key.source_range_set for key in tables["source_ranges"]} == with_ranges


@settings(max_examples=60, deadline=None)
@given(steps(60))
def test_every_service_row_has_its_backends(script: list[Step]) -> None:
    """No set is missing, incomplete or left over."""
    tables = Deriver("east", "n1").full(history(script).state).tables
    named = {(row.backend_set, slot) for row in tables["services"].values() for slot in range(row.count)}
    held = {tuple(key) for key in tables["backends"]}
    assert named <= held
    assert {key[0] for key in held} <= {row.backend_set for row in tables["services"].values()}
