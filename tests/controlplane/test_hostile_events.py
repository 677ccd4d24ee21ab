"""Whatever stands in a record, it stops nothing: a bad event is refused with its record and changes nothing, and what is
not refused can be derived, encoded, listed, explained and exported.

Every kind of event, as a real history has it, with each of its fields in turn replaced by what does not belong there,
and by every writer that must not write it. The log's other readers are asked after each.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from controlplane import events as e
from controlplane.api import views
from controlplane.api.schema import LIST_KINDS
from controlplane.codec import MalformedBatch, decode, encode
from controlplane.desired.derive import Deriver
from controlplane.desired.policy_mesh import mesh_of
from controlplane.events import EVENTS, Batch
from controlplane.history.changes import thing_changes
from controlplane.history.ends import Mesh
from controlplane.history.provenance import Origins
from controlplane.history.records import log_record
from controlplane.history.replay import encoded_rows
from controlplane.history.why import explain
from controlplane.model import NodeKey
from controlplane.policy.mesh import Judge
from controlplane.projections.state import State
from controlplane.runtime.status import refused_events
from kvstore.types import Record, Revision
from tests.replay.recorded import every_event

TEXTS = (
    "", "nobody", "300.1.1.1", "10.1.0.5/33", "10.1.1.0/24", "::ffff:10.1.0.5", "10.01.0.5", "fe80::1%eth0", "0.0.0.0",
    "255.255.255.255", "\x00", "x" * 5000, "../../etc/passwd", "k8s:a=b=c", "reserved:host", "{", "n1\nn2",
)  # fmt: skip
NUMBERS = (-1, 0, 1, 2, 256, 65535, 65536, 2**24, 2**31, 2**32, 2**63 - 1)
WRITERS = (("east", "operator"), ("east", "node.n1"), ("east", "node.n2"), ("west", "operator"), ("west", "node.n1"),
           ("nowhere", "operator"))  # fmt: skip


def history() -> tuple[State, dict[str, tuple[str, str, Any]]]:
    """A mesh with things of all kinds, and of each kind of event the last one with its writer."""
    log = every_event()
    found: dict[str, tuple[str, str, Any]] = {}
    for record in log.records:
        for event in decode(record.payload).events:
            found[type(event).__name__] = record.cluster, record.writer, event
    found["ClusterLeft"] = "west", "operator", e.ClusterLeft()
    return log.state, found


STATE, WRITTEN = history()


def hostile(value: Any) -> Iterator[Any]:
    """Values of the same shape that do not belong there."""
    if isinstance(value, bool) or value is None:
        yield not value
    elif isinstance(value, int):
        yield from NUMBERS
    elif isinstance(value, str):
        yield from TEXTS
    elif isinstance(value, tuple):
        yield ()
        yield (*value, *value)
        for bad in hostile(value[0]) if value else TEXTS:
            yield (bad,)
            yield (*value, bad)
    elif isinstance(value, dict):
        yield {}
        for bad in TEXTS:
            yield {bad: bad}
        for key, held in value.items():
            yield from ({key: bad} for bad in hostile(held))
    elif isinstance(value, msgspec.Struct):
        for name in value.__struct_fields__:
            for bad in hostile(getattr(value, name)):
                yield msgspec.structs.replace(value, **{name: bad})


def forged(kind: str) -> Iterator[tuple[str, str, Any]]:
    """The event itself again, by everybody, and with each field replaced."""
    cluster, writer, event = WRITTEN[kind]
    for other in WRITERS:
        yield *other, event
    for name in event.__struct_fields__:
        for bad in hostile(getattr(event, name)):
            yield cluster, writer, msgspec.structs.replace(event, **{name: bad})


def record_of(state: State, cluster: str, writer: str, *events: Any) -> Record:
    return state.next_record(cluster, writer, encode(Batch(1, 7, 0, events)))


@pytest.mark.parametrize("kind", [event.__name__ for event in EVENTS])
def test_no_event_stops_anything(kind: str) -> None:
    """It raises nothing; refused, it is named with its record and nothing has changed; taken, all that follows works."""
    seen: dict[str, None] = {}
    for cluster, writer, event in forged(kind):
        state = STATE.copy()
        count, digest = state.refused_count, state.digest()
        record = record_of(state, cluster, writer, event)
        try:
            changes = state.apply(record)
        except Exception as error:
            raise AssertionError(f"{cluster}/{writer} {event}: {error!r}") from error
        log_record(record)
        if state.refused_count > count:
            assert changes == ()
            assert state.digest() == digest, f"refused, and something changed: {event}"
            told = refused_events(state)[-1]
            assert str(record.revision) in str(told) and writer in str(told) and kind in str(told), told
            seen["refused"] = None
        elif changes:
            seen["taken"] = None
            all_that_follows(state, record, changes, f"{cluster}/{writer} {str(event)[:300]}")
    assert "refused" in seen or not WRITTEN[kind][2].__struct_fields__


@pytest.mark.parametrize("kind", [event.__name__ for event in EVENTS])
def test_a_run_of_events_is_what_each_of_them_is(kind: str) -> None:
    """Several in one batch come to what they come to in batches of their own, bad ones among them."""
    for place, (cluster, writer, event) in enumerate(forged(kind)):
        if place % 5:
            continue
        run = [WRITTEN[kind][2], event, event]
        together, apart = STATE.copy(), STATE.copy()
        record = record_of(together, cluster, writer, *run)
        with contextlib.suppress(MalformedBatch):
            decode(record.payload)
            together.apply(record)
        if together.revision == STATE.revision:
            continue  # malformed: a batch is refused whole, and told once
        for each in run:
            apart.apply(record_of(apart, cluster, writer, each))
        assert together.digest() == apart.digest(), event
        assert together.refused_count == apart.refused_count, event


def all_that_follows(state: State, record: Record, changes: Any, what: str) -> None:
    """Everything that is made of a state, at least once."""
    origins = Origins()
    try:
        origins.put(record, changes)
        State.load(state.save())
        thing_changes(STATE, state)
        for where in (NodeKey("east", "n1"), NodeKey("west", "n1")):
            deriver = Deriver(*where)
            deriver.full(STATE)
            deriver.update(state, [changes])
            encoded_rows(state, *where)
        for kind in LIST_KINDS:
            views.items_of(kind, state, NodeKey("east", "n1"), lambda *_: "")
        Judge(mesh_of(state, "east"))
        mesh = Mesh(state, origins, "east")
        for key in list(state.endpoints)[:2]:
            end = mesh.of_endpoint(state.endpoints[key])
            explain(mesh, end, mesh.end("ip:203.0.113.1"), 6, 80)
    except Exception as error:
        raise AssertionError(f"{what}: {error!r}") from error


@pytest.mark.parametrize("payload", [b"", b"\xc1", b"\x00" * 100, b"\x94\x01\x07\x00\x91\x91\xa1", b"\x94\x00\x07\x00\x90",
                                     b"\x94\x01\x07\x00\x91\x91\xc0", b"\x91" * 5000], ids=repr)  # fmt: skip
def test_no_payload_stops_anything(payload: bytes) -> None:
    """What is no batch is refused with its record, and the next record counts."""
    state = STATE.copy()
    record = state.next_record("west", "node.n1", payload)
    assert state.apply(record) == ()
    assert str(record.revision) in str(refused_events(state)[-1])
    after = Record(Revision(record.revision + 1), "east", "operator", 999, 0, encode(
        Batch(1, 7, 0, (e.NamespaceLabelled("after", {"a": "b"}),))
    ))  # fmt: skip
    assert state.apply(after) != ()
