"""Runs of one kind of event in a batch are applied at once: as one by one, whatever is wrong with some of them."""

from collections.abc import Sequence
from typing import Any

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from controlplane import events as e
from controlplane.model import Device
from controlplane.projections import endpoints, workloads
from controlplane.projections.state import BULK_PROJECTIONS, State
from tests.controlplane.random_mesh import Log
from tests.controlplane.small_mesh import mesh

LABELS = (("k8s:app=a", "k8s:io.cilium.k8s.policy.cluster=east"), ("k8s:app=b", "k8s:io.cilium.k8s.policy.cluster=east"))
NUMBERS = (65536 + 256, 65536 + 257)


def started() -> Log:
    """The small mesh with two identities."""
    log = mesh()
    log.write("east", "operator", *(e.IdentityAllocated(*each) for each in zip(NUMBERS, LABELS, strict=True)))
    assert log.state.refused_events == []
    return log


def created(number: int) -> e.EndpointCreated:
    """The n-th of node n1: right, and with nothing that another has."""
    which, tail = number % 2, f"{number:02x}"
    return e.EndpointCreated(
        "n1", number, "shop", f"w{number}", LABELS[which], NUMBERS[which], f"10.1.1.{number}", f"fd00:1:0:1::{number:x}",
        Device(f"ml{number}", number, f"02:00:00:00:00:{tail}", f"02:00:01:00:00:{tail}"), f"c{number}", "eth0",
    )  # fmt: skip


ODD: list[dict[str, Any]] = [
    {},
    {"ipv6": ""},
    {"ipv4": ""},
    {"ipv4": "", "ipv6": ""},
    {"ipv4": "10.1.1.1"},
    {"ipv4": "10.1.1.7"},
    {"ipv4": "10.1.1.256", "ipv6": ""},
    {"ipv4": "10.1.2.9", "ipv6": ""},
    {"ipv6": "fd00:1:0:2::9"},
    {"endpoint_id": 0},
    {"endpoint_id": 7},
    {"endpoint_id": 65536},
    {"container_id": "c7"},
    {"workload": "w7"},
    {"identity": 999},
    {"labels": LABELS[0]},
    {"node": "n2"},
    {"container_id": "c/d"},
    {"workload": ""},
    {"interface": "x" * 300},
    {"device": Device("ml", 0, "02:00:00:00:00:01", "02:00:00:00:00:02")},
    {"device": Device("ml", 1, "02:00:00:00:00:0g", "02:00:00:00:00:02")},
    {"device": Device("ml", 1, "02:00:00:00:00:0é", "02:00:00:00:00:02")},
    {"device": Device("ml", 1, "02:00:00:00:00", "02:00:00:00:00:02")},
    {"device": Device("ml", 1, "0200:00:00:00::01", "02:00:00:00:00:02")},
]
"""What makes an endpoint another than the right one; some are right all the same."""

endpoint_runs = st.lists(
    st.builds(
        lambda number, odd: msgspec.structs.replace(created(number), **odd),
        st.integers(2, 14),
        st.one_of(st.just({}), st.just({}), st.sampled_from(ODD)),
    ),
    max_size=8,
)
workload_runs = st.lists(
    st.builds(
        e.WorkloadApplied,
        st.sampled_from(("shop", "bank")),
        st.sampled_from([f"w{number}" for number in range(6)]),
        st.sampled_from(({}, {"app": "a"})),
        ports=st.sampled_from(({}, {}, {"web": (80, "TCP")}, {"web": (0, "TCP")})),
        weight=st.sampled_from((1, 1, 0, -1, 10**6)),
    ),
    max_size=8,
)


def facts(state: State) -> dict[str, Any]:
    """All that a state holds, its indexes among it, but for the revisions, which another cut into batches moves."""
    held = dict(vars(state))
    for name in ("revision", "sequences", "policy_epoch", "block_heads"):
        del held[name]
    held["identity_unused_since"] = sorted(state.identity_unused_since)
    held["refused_events"] = [(each.event, each.reason) for each in state.refused_events]
    return held


@settings(max_examples=150, deadline=None)
@given(st.lists(st.one_of(endpoint_runs, workload_runs), min_size=1, max_size=4), st.sampled_from(("node.n1", "node.n2")))
def test_a_run_is_applied_as_one_by_one(runs: list[list[e.Event]], writer: str) -> None:
    """The same state and indexes, the same refusals, the same changes in the same order, the epoch moved alike."""
    at_once, singly = started(), started()
    for run in runs:
        if run:
            before = at_once.state.policy_epoch, singly.state.policy_epoch
            changes = at_once.write("east", writer, *run)
            assert changes == tuple(change for event in run for change in singly.write("east", writer, event))
            moved = at_once.state.policy_epoch > before[0], singly.state.policy_epoch > before[1]
            assert moved[0] == moved[1], "one of them moved the policy epoch"
    assert facts(at_once.state) == facts(singly.state)


def test_right_runs_are_applied_at_once() -> None:
    """The shortcut is taken: else the property above would compare a thing with itself."""
    log = started()
    record = log.records[-1]
    apply = BULK_PROJECTIONS[e.EndpointCreated]
    assert apply is endpoints.endpoints_created
    record = msgspec.structs.replace(record, writer="node.n1")
    assert apply(log.state, record, columns([created(number) for number in range(2, 14)]), [])
    no_ipv6 = [msgspec.structs.replace(created(number), ipv6="") for number in range(14, 20)]
    assert apply(log.state, record, columns(no_ipv6), [])
    apply = BULK_PROJECTIONS[e.WorkloadApplied]
    assert apply is workloads.workloads_applied
    assert apply(log.state, record, columns([e.WorkloadApplied("shop", f"w{n}", {}) for n in range(5)]), []) is False


def columns(events: Sequence[e.Event]) -> Sequence[Sequence[Any]]:
    """Of events of one kind, field by field."""
    return list(zip(*map(msgspec.structs.astuple, events), strict=True))
