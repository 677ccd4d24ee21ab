"""What a version of Meshlog has written, this one reads: the same mesh, the same rows."""

import json
from pathlib import Path
from typing import Any

import pytest

from controlplane.codec import decode
from controlplane.events import EVENTS, Unknown
from controlplane.history.capsule import Capsule, unpack
from controlplane.projections.state import State
from tests.replay.recorded import DATA, digests_of, folded, things_of

RECORDED = sorted(DATA.glob("*/*.capsule"))
HINT = "if other rows are meant: python -m tests.replay.recorded digests, and review the diff"


def both(path: Path) -> tuple[Capsule, dict[str, Any]]:
    return unpack(path.read_bytes()), json.loads(path.with_suffix(".json").read_text())


def has(found: Any, expected: Any) -> bool:
    """Whether a value has all that it had; what is recorded as fields may have gained some, at any depth."""
    if isinstance(expected, dict):
        return isinstance(found, dict) and all(name in found and has(found[name], expected[name]) for name in expected)
    if isinstance(expected, list):
        return isinstance(found, list) and len(found) == len(expected) and all(map(has, found, expected))
    return bool(found == expected)


@pytest.mark.parametrize("path", RECORDED, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_a_recorded_history_leads_to_the_mesh_that_it_led_to(path: Path) -> None:
    """Every thing that was recorded is there with every field that it had, and nothing else is."""
    capsule, expected = both(path)
    found = json.loads(json.dumps(things_of(folded(list(capsule.records)))))
    assert {kind: sorted(found[kind]) for kind in found} == {
        kind: sorted(expected["things"].get(kind, ())) for kind in found
    }
    for kind, things in expected["things"].items():
        for name, fields in things.items():
            assert has(found[kind][name], fields), f"{kind} {name}: {found[kind][name]}, and it was {fields}"


@pytest.mark.parametrize("path", RECORDED, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_a_recorded_history_has_the_digests_that_are_stored(path: Path) -> None:
    """Of the state and of each table of each node, refusals and unknown events counted, whole or from its middle."""
    capsule, expected = both(path)
    records = list(capsule.records)
    del expected["things"]
    assert digests_of(folded(records)) == expected, HINT
    middle = State.load(folded(records[: len(records) // 2]).save())
    for record in records[len(records) // 2 :]:
        middle.apply(record)
    assert digests_of(middle) == expected


def test_every_kind_of_event_is_recorded() -> None:
    """A kind that is new asks for a recording of its own, before a release makes it history."""
    seen: dict[str, None] = {}
    for path in RECORDED:
        for record in both(path)[0].records:
            try:
                events = decode(record.payload).events
            except ValueError:
                continue
            seen.update(dict.fromkeys(type(each).__name__ for each in events if not isinstance(each, Unknown)))
    missing = [event.__name__ for event in EVENTS if event.__name__ not in seen]
    assert missing == [], "let them happen in tests/replay/recorded.py, which says how to record"
