"""Differences: applied, they give what is desired."""

from hypothesis import given
from hypothesis import strategies as st

from datapath.delta import Pending, TableDelta, difference, difference_at
from datapath.tables import Desired, DeviceKey

ROWS = st.dictionaries(st.binary(max_size=2), st.binary(max_size=1))


def applied(delta: TableDelta, realized: dict[bytes, bytes]) -> dict[bytes, bytes]:
    """The table after the delta."""
    kept = {key: value for key, value in realized.items() if key not in delta.deletes}
    return {**kept, **delta.puts}


@given(ROWS, ROWS)
def test_difference_leads_to_desired(desired: dict, realized: dict) -> None:
    """Whatever is held, the difference makes it what is desired."""
    assert applied(difference(desired, realized), realized) == desired


@given(ROWS, ROWS)
def test_difference_is_minimal_and_sorted(desired: dict, realized: dict) -> None:
    """No row that is right is touched, and the order is that of the keys."""
    delta = difference(desired, realized)
    assert all(realized.get(key) != value for key, value in delta.puts.items())
    assert list(delta.puts) == sorted(delta.puts)
    assert list(delta.deletes) == sorted(realized.keys() - desired.keys())


@given(ROWS, ROWS)
def test_difference_at_all_keys_is_the_difference(desired: dict, realized: dict) -> None:
    """The incremental way gives the same as the full one."""
    keys = desired.keys() | realized.keys()
    assert difference_at(keys, desired, realized) == difference(desired, realized)


@given(ROWS, ROWS)
def test_previous_is_what_is_realized(desired: dict, realized: dict) -> None:
    """A delta knows what stands now under each key that it changes."""
    delta = difference(desired, realized)
    touched = delta.puts.keys() | set(delta.deletes)
    assert delta.previous == {key: realized[key] for key in touched if key in realized}


def test_pending_keeps_the_latest_change() -> None:
    """Of several offers for one row only the last one counts, and the generation is that of the last."""
    pending = Pending()
    pending.merge(Desired(1, False, {"devices": {DeviceKey(1): "a", DeviceKey(2): "b"}}))
    pending.merge(Desired(2, False, {"devices": {DeviceKey(1): None}}))
    assert pending.changes == {"devices": {DeviceKey(1): None, DeviceKey(2): "b"}}
    assert pending.generation == 2


def test_a_complete_offer_replaces_what_is_pending() -> None:
    """Changes from before a complete offer are dropped, changes after it are kept on top."""
    pending = Pending()
    pending.merge(Desired(1, False, {"devices": {DeviceKey(1): "a"}}))
    whole = Desired(2, True, {})
    pending.merge(whole)
    pending.merge(Desired(3, False, {"devices": {DeviceKey(3): "c"}}))
    assert pending.complete is whole
    assert pending.changes == {"devices": {DeviceKey(3): "c"}}
