"""The order of writing: after each single row that is written, what a packet would meet."""

import itertools
from collections.abc import Callable, Iterable

from hypothesis import given
from hypothesis import strategies as st

from datapath import codec
from datapath.abi.types import POLICY_INGRESS, POLICY_SUBJECT_ASKS_LOCALHOST, POLICY_SUBJECT_AUDIT
from datapath.delta import Pending, difference
from datapath.kernel.fake import FakeKernel, KernelMemory
from datapath.plan import PHASES, PUT, UNSETTLED_EPOCH, plan
from datapath.realization import Realization
from datapath.tables import (
    TABLES,
    NodeStateKey,
    NodeStateRow,
    PolicyKey,
    PolicyRow,
    PolicySubjectKey,
    PolicySubjectRow,
)
from tests.datapath.rows import (
    Tables,
    complete,
    encoded,
    endpoint_tables,
    merged,
    service_tables,
    state_sequences,
)

ALLOW, DENY = 1, 2
SUBJECT = 100
HOST = 1
PACKETS = [
    (remote, protocol, port, direction)
    for remote in (HOST, 5, 9)
    for protocol in (6, 17)
    for port in (80, 81)
    for direction in (0, 1)
]


def offered(desired: object) -> Pending:
    """One offer, ready to be taken."""
    pending = Pending()
    pending.merge(desired)  # type: ignore[arg-type]
    return pending


def observed_transition(
    states: Iterable[Tables],
    check: Callable[[KernelMemory, str, str, bytes], None],
    failing: Iterable[tuple[str, bytes]] = (),
) -> KernelMemory:
    """Bring a kernel to the first state, then to the others, with `check` after each row written in the
    latter; the rows of `failing` fail for good."""
    first, *rest = states
    memory = KernelMemory()
    watching = False

    def observe(operation: str, table: str, key: bytes) -> None:
        if watching:
            check(memory, operation, table, key)

    kernel = FakeKernel(memory, observe)
    realization = Realization(kernel)
    realization.open()
    realization.converge(offered(complete(1, first)), 0.0)
    watching = True
    for table, key in failing:
        kernel.fail(table, key, times=1000)
    for generation, state in enumerate(rest, 2):
        realization.converge(offered(complete(generation, state)), 0.0)
    return memory


def verdict(tables: dict[str, dict[bytes, bytes]], packet: tuple[int, int, int, int]) -> bool:
    """What the programs decide for a packet of SUBJECT, from the rows of policy and policy_subjects."""
    remote, protocol, port, direction = packet
    found = tables["policy_subjects"].get(codec.encode_key("policy_subjects", PolicySubjectKey(SUBJECT)))
    if found is None:
        return False
    subject = codec.decode_row("policy_subjects", found)
    shapes = (subject.ingress_shapes, subject.egress_shapes)[direction]
    keys = [PolicyKey(SUBJECT, who, 0, 0, 0, direction) for who in (remote, 0)] if shapes & 1 else []
    for prefix in range(17):
        if shapes & 1 << (1 + prefix):
            masked = port >> (16 - prefix) << (16 - prefix)
            keys += [PolicyKey(SUBJECT, who, masked, prefix, protocol, direction) for who in (remote, 0)]
    rows = [tables["policy"].get(codec.encode_key("policy", key)) for key in keys]
    verdicts = {codec.decode_row("policy", row).verdict for row in rows if row is not None}
    if subject.flags & POLICY_SUBJECT_AUDIT:
        return True
    if DENY in verdicts:
        return False
    if (remote, direction) == (HOST, POLICY_INGRESS) and not subject.flags & POLICY_SUBJECT_ASKS_LOCALHOST:
        return True
    return ALLOW in verdicts or not (subject.ingress_enforced, subject.egress_enforced)[direction]


POLICY_KEYS = st.one_of(
    st.builds(
        PolicyKey,
        st.just(SUBJECT),
        st.sampled_from([0, HOST, 5, 9]),
        st.just(0),
        st.just(0),
        st.just(0),
        st.integers(0, 1),
    ),
    st.builds(
        lambda remote, port, protocol, direction: PolicyKey(
            SUBJECT, remote, port[0], port[1], protocol, direction
        ),
        st.sampled_from([0, HOST, 5, 9]),
        st.sampled_from([(0, 0), (80, 15), (80, 16), (81, 16)]),
        st.sampled_from([6, 17]),
        st.integers(0, 1),
    ),
)


@st.composite
def policies(draw: st.DrawFn) -> Tables:
    """Policy rows of SUBJECT, with the shapes that they have, and its flags; sometimes no subject."""
    rows = draw(
        st.dictionaries(POLICY_KEYS, st.sampled_from([PolicyRow(ALLOW), PolicyRow(DENY)]), max_size=6)
    )
    enforced = draw(st.tuples(st.integers(0, 1), st.integers(0, 1)))
    shapes = [0, 0]
    for key in rows:
        shapes[key.direction] |= 1 if key.protocol == 0 else 1 << (1 + key.port_prefix)
    if draw(st.integers(0, 5)) == 0:
        return {"policy": {}, "policy_subjects": {}}
    flags = draw(st.sampled_from((0, 0, POLICY_SUBJECT_AUDIT, POLICY_SUBJECT_ASKS_LOCALHOST)))
    return {
        "policy": rows,
        "policy_subjects": {PolicySubjectKey(SUBJECT): PolicySubjectRow(*enforced, *shapes, flags)},
    }


def verdicts(tables: dict[str, dict[bytes, bytes]]) -> list[bool]:
    """Of all packets."""
    return [verdict(tables, packet) for packet in PACKETS]


@given(policies(), policies())
def test_policy_change_is_closed_and_drops_nothing(old: Tables, new: Tables) -> None:
    """At every moment a packet passes only if the old or the new policy allows it, and passes if both do."""
    before, after = verdicts(encoded(old)), verdicts(encoded(new))

    def check(memory: KernelMemory, operation: str, table: str, key: bytes) -> None:
        for was, now, will in zip(before, verdicts(memory.tables), after, strict=True):
            assert now <= (was or will), "opened"
            assert now >= (was and will), "dropped"

    memory = observed_transition([old, new], check)
    assert verdicts(memory.tables) == after


@given(policies(), policies(), st.data())
def test_policy_change_with_a_failing_row_stays_closed(old: Tables, new: Tables, data: st.DataObject) -> None:
    """Also when some row cannot be written or removed, nothing passes that neither policy allows."""
    before, after = verdicts(encoded(old)), verdicts(encoded(new))
    rows = [
        (table, key)
        for tables in (encoded(old), encoded(new))
        for table, held in tables.items()
        for key in held
    ]
    failing = data.draw(st.lists(st.sampled_from(rows), max_size=2)) if rows else []

    def check(memory: KernelMemory, operation: str, table: str, key: bytes) -> None:
        for was, now, will in zip(before, verdicts(memory.tables), after, strict=True):
            assert now <= (was or will), "opened"

    observed_transition([old, new], check, failing)


def small_policies() -> list[Tables]:
    """Every combination of a permission for all, a denial of 5, a row for 5 at port 80, and enforcement."""
    everyone, five = PolicyKey(SUBJECT, 0, 0, 0, 0, 0), PolicyKey(SUBJECT, 5, 0, 0, 0, 0)
    five_at_80 = PolicyKey(SUBJECT, 5, 80, 16, 6, 0)
    found: list[Tables] = []
    for for_all, for_five, at_80, enforced in itertools.product(
        (0, ALLOW), (0, DENY), (0, ALLOW, DENY), (0, 1)
    ):
        wanted = {everyone: for_all, five: for_five, five_at_80: at_80}
        rows = {key: PolicyRow(value) for key, value in wanted.items() if value}
        shapes = (1 if for_all or for_five else 0) | (1 << 17 if at_80 else 0)
        subject = {PolicySubjectKey(SUBJECT): PolicySubjectRow(enforced, 0, shapes, 0)}
        found.append({"policy": rows, "policy_subjects": subject})
    return found


def test_every_small_policy_change_with_each_row_failing_stays_closed() -> None:
    """All changes between small policies, each row that takes part failing in turn: nothing opens."""
    packets = [(remote, 6, port, 0) for remote in (5, 9) for port in (80, 81)]
    for old, new in itertools.permutations(small_policies(), 2):
        before, after = ([verdict(encoded(state), packet) for packet in packets] for state in (old, new))
        bound = [was or will for was, will in zip(before, after, strict=True)]

        def check(
            memory: KernelMemory, operation: str, table: str, key: bytes, bound: list[bool] = bound
        ) -> None:
            now = [verdict(memory.tables, packet) for packet in packets]
            assert all(passes <= may for passes, may in zip(now, bound, strict=True)), "opened"

        for table in ("policy", "policy_subjects"):
            for key in codec.encode_rows(table, {**old[table], **new[table]}):
                observed_transition([old, new], check, [(table, key)])


@st.composite
def services(draw: st.DrawFn) -> Tables:
    """Frontends with sets of backends; sets are named by number, equal numbers are equal sets."""
    numbers = draw(st.dictionaries(st.integers(1, 3), st.integers(1, 4), max_size=3))
    return merged(
        *(service_tables(number, backend_set, backend_set) for number, backend_set in numbers.items())
    )


def headers_are_whole(memory: KernelMemory, operation: str, table: str, key: bytes) -> None:
    """No service header points to a backend that is not there."""
    held = {codec.decode_key("backends", found) for found in memory.tables["backends"]}
    for value in memory.tables["services"].values():
        row = codec.decode_row("services", value)
        slots = {slot for backend_set, slot, *_ in held if backend_set == row.backend_set}
        assert slots.issuperset(range(row.count))


@given(st.lists(services(), min_size=2, max_size=4))
def test_no_service_without_its_backends(states: list[Tables]) -> None:
    """A frontend's set is whole at every moment, while services come, change and go."""
    observed_transition(states, headers_are_whole)


@given(st.lists(services(), min_size=2, max_size=3), st.data())
def test_no_service_without_its_backends_though_rows_fail(states: list[Tables], data: st.DataObject) -> None:
    """Nor when a backend or a header cannot be written or removed."""
    rows = [(table, key) for state in states for table, held in encoded(state).items() for key in held]
    failing = data.draw(st.lists(st.sampled_from(rows), max_size=2)) if rows else []
    observed_transition(states, headers_are_whole, failing)


@st.composite
def endpoints(draw: st.DrawFn) -> Tables:
    """Endpoints behind devices; numbers and devices change places from state to state."""
    numbers = draw(st.lists(st.integers(1, 4), unique=True, max_size=3))
    devices = draw(st.lists(st.integers(11, 14), unique=True, min_size=len(numbers), max_size=len(numbers)))
    return merged(*(endpoint_tables(number, device) for number, device in zip(numbers, devices, strict=True)))


def devices_are_guarded(memory: KernelMemory, operation: str, table: str, key: bytes) -> None:
    """A program that comes finds its device's row; what is sent to a device meets its programs; a device
    whose program goes has no rows left."""
    held = memory.tables
    attached = {tuple(codec.decode_key("attachments", found)) for found in held["attachments"]}
    known = {codec.decode_key("devices", found).ifindex for found in held["devices"]}
    reached = {
        codec.decode_row(name, value).ifindex
        for name in ("endpoints", "routes")
        for value in held[name].values()
    }
    assert {(ifindex, hook) for ifindex in reached for hook in ("ingress", "egress")} <= attached
    if table == "attachments":
        ifindex = codec.decode_key("attachments", key).ifindex
        assert ifindex in known if operation == PUT else ifindex not in known | reached


@given(st.lists(endpoints(), min_size=2, max_size=4))
def test_no_reachable_device_without_its_programs(states: list[Tables]) -> None:
    """While endpoints come, move and go, no device is reachable unguarded and no program meets an unknown
    device."""
    observed_transition(states, devices_are_guarded)


@given(st.lists(endpoints(), min_size=2, max_size=3), st.data())
def test_no_reachable_device_without_its_programs_though_rows_fail(
    states: list[Tables], data: st.DataObject
) -> None:
    """Nor when rows cannot be written or removed."""
    rows = [(table, key) for state in states for table, held in encoded(state).items() for key in held]
    failing = data.draw(st.lists(st.sampled_from(rows), max_size=2)) if rows else []
    observed_transition(states, devices_are_guarded, failing)


@given(state_sequences(2))
def test_steps_lead_to_desired(states: list[Tables]) -> None:
    """The steps of any delta, applied in order, give the desired rows."""
    realized, desired = encoded(states[0]), encoded(states[1])
    for step in plan({table: difference(desired[table], realized[table]) for table in TABLES}):
        realized[step.table].update(step.rows)
        for key in step.keys:
            del realized[step.table][key]
    assert realized == desired


@given(state_sequences(2))
def test_the_epoch_comes_after_policy_and_ipcache(states: list[Tables]) -> None:
    """The step that has flows judged again is the last one to put, after all that it depends on."""
    realized, desired = encoded(states[0]), encoded(states[1])
    steps = plan({table: difference(desired[table], realized[table]) for table in TABLES})
    tables = [step.table for step in steps]
    assert "node_state" not in tables or not {"policy", "policy_subjects", "ipcache"} & set(
        tables[tables.index("node_state") :]
    )


def test_the_epoch_is_marked_until_policy_is_settled() -> None:
    """While a policy row fails, the epoch that stands is one that will change again when the row is
    written."""
    policy = PolicyKey(SUBJECT, 5, 80, 16, 6, 0)
    tables: Tables = {"policy": {policy: PolicyRow(DENY)}, "node_state": {NodeStateKey(0): NodeStateRow(7)}}
    kernel = FakeKernel()
    realization = Realization(kernel)
    realization.open()
    kernel.fail("policy", codec.encode_key("policy", policy), times=1)
    realization.converge(offered(complete(1, tables)), 0.0)
    (marked,) = kernel.memory.tables["node_state"].values()
    realization.converge(Pending(), 1.0)
    (settled,) = kernel.memory.tables["node_state"].values()
    assert codec.decode_row("node_state", marked) == NodeStateRow(7 | UNSETTLED_EPOCH)
    assert codec.decode_row("node_state", settled) == NodeStateRow(7)


def test_every_table_has_a_way_up_and_down() -> None:
    """No table is forgotten: each can be put and deleted."""
    assert {(phase.table, phase.operation) for phase in PHASES} == {
        (table, operation) for table in TABLES for operation in ("put", "delete")
    }


def test_holds_name_phases_that_come_before() -> None:
    """A phase can only wait for one that has run already."""
    names = [phase.name for phase in PHASES]
    assert len(set(names)) == len(names)
    assert all(set(phase.held_by) <= set(names[:at]) for at, phase in enumerate(PHASES))
