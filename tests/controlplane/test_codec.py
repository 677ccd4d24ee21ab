"""Batches and their bytes."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlplane import codec
from controlplane import events as e
from controlplane.codec import MalformedBatch, decode, encode
from tests.controlplane.random_mesh import Step, history, steps

packed = msgspec.msgpack.encode


@given(steps(20))
def test_batches_come_back_as_they_were(script: list[Step]) -> None:
    """Every payload that the product writes."""
    for record in history(script).records:
        assert encode(decode(record.payload)) == record.payload


@given(st.binary(max_size=200))
def test_any_bytes_are_a_batch_or_malformed(payload: bytes) -> None:
    """Nothing else is raised, whatever comes from the log."""
    try:
        decode(payload)
    except MalformedBatch as error:
        assert str(error)


@given(steps(6), st.data())
def test_damaged_batches_are_a_batch_or_malformed(script: list[Step], data: st.DataObject) -> None:
    """A byte changed in the middle of a right payload."""
    payload = bytearray(history(script).records[-1].payload)
    place = data.draw(st.integers(0, len(payload) - 1))
    payload[place] = data.draw(st.integers(0, 255))
    try:
        decode(bytes(payload))
    except MalformedBatch as error:
        assert str(error)


def test_unknown_events_are_kept_byte_for_byte() -> None:
    """Between events that are known, with whatever a newer version put into them."""
    newer = ["MeshChecked", "example.org", {"b": 1, "a": [None, 2.5]}, b"\x00"]
    payload = packed([1, 7, 0, [["NamespaceRemoved", "shop"], newer, ["ClusterLeft"]]])
    batch = decode(payload)
    assert batch.events == (
        e.NamespaceRemoved("shop"), e.Unknown("MeshChecked", packed(newer)), e.ClusterLeft(),
    )  # fmt: skip
    assert encode(batch) == payload


def test_fields_of_a_newer_version_are_left_out() -> None:
    """A field is only ever added at the end, so an older version reads what it knows."""
    batch = decode(packed([1, 0, 0, [["NamespaceRemoved", "shop", "a new field"]]]))
    assert batch.events == (e.NamespaceRemoved("shop"),)


def test_absent_fields_take_their_defaults() -> None:
    """An event of an older version has fewer of them."""
    batch = decode(packed([1, 0, 0, [["WorkloadApplied", "shop", "web", {}]]]))
    assert batch.events == (e.WorkloadApplied("shop", "web", {}),)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (7, "no batch"),
        ([1, 0, 0], "no batch"),
        ([1, 0, 0, [["EndpointDeleted", "n1", "seven"]]], "EndpointDeleted"),
        ([1, 0, 0, [["EndpointDeleted"]]], "EndpointDeleted"),
        ([1, 0, 0, [[7]]], "begins with its tag"),
        ([1, 0, 0, ["EndpointDeleted"]], "begins with its tag"),
        ([0, 0, 0, [["ClusterLeft"]]], "schema version 0"),
    ],
)
def test_malformed_batches_say_what_is_wrong(content: object, reason: str) -> None:
    """With the event's name where there is one."""
    with pytest.raises(MalformedBatch, match=reason):
        decode(packed(content))


def test_older_batches_go_through_every_upcaster(monkeypatch: pytest.MonkeyPatch) -> None:
    """One step for each version between theirs and ours."""

    def rename(payload: bytes) -> bytes:
        version, time_ns, cause, events = msgspec.msgpack.decode(payload)
        events = [["NamespaceRemoved", *event[1:]] if event[0] == "NamespaceGone" else event for event in events]
        return packed([version + 1, time_ns, cause, events])

    monkeypatch.setattr(codec, "SCHEMA_VERSION", 3)
    monkeypatch.setattr(codec, "UPCASTERS", {1: rename, 2: rename})
    assert decode(packed([1, 0, 0, [["NamespaceGone", "shop"]]])).events == (e.NamespaceRemoved("shop"),)
