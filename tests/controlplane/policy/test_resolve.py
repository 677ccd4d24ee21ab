"""From rules to rows: port ranges as prefixes, shapes, and that the rows say what the model says."""

from hypothesis import given, settings
from hypothesis import strategies as st

from controlplane.policy.resolve import port_pieces, resolve, shape_of
from controlplane.policy.rules import ParsedPolicy, PortRange
from controlplane.policy.selectors import index_labels
from controlplane.policy.verdict import ALLOW, judge_side, policies_of
from datapath.abi.types import POLICY_EGRESS, POLICY_INGRESS, POLICY_SHAPE_L3, POLICY_SHAPE_PORT_0
from datapath.tables import PolicyKey, PolicyRow, PolicySubjectKey
from tests.controlplane.policy.worlds import (
    MESH,
    TCP,
    cilium_policy,
    flows,
    look_up,
    parsed,
    policy_sets,
    selection_of,
)


@given(st.tuples(st.integers(0, 65535), st.integers(0, 65535)).map(sorted))
def test_pieces_cover_exactly_the_range(ends: list[int]) -> None:
    """Every port of the range is in one piece, no other port in any, and a piece is aligned to its prefix."""
    first, last = ends
    port = first
    for protocol, start, prefix in port_pieces(PortRange(TCP, first, last)):
        size = 1 << (16 - prefix)
        assert (protocol, start, start % size) == (TCP, port, 0)
        port += size
    assert port == last + 1


def test_a_range_takes_the_fewest_pieces() -> None:
    """8080-8090 is 8080/13, 8088/15 and 8090/16; all ports are one piece."""
    assert list(port_pieces(PortRange(TCP, 8080, 8090))) == [
        (TCP, 8080, 13),
        (TCP, 8088, 15),
        (TCP, 8090, 16),
    ]
    assert list(port_pieces(PortRange(TCP))) == [(TCP, 0, 0)]


def test_shapes_are_the_bits_of_the_abi() -> None:
    """Bit 0 for any protocol, bit 1 + n for a port prefix of n bits."""
    assert shape_of((0, 0, 0)) == POLICY_SHAPE_L3
    assert shape_of((TCP, 0, 0)) == POLICY_SHAPE_PORT_0
    assert shape_of((TCP, 80, 16)) == 1 << 17


def test_a_deny_row_takes_the_place_of_an_allow_row() -> None:
    """One key holds one verdict: deny, whichever rule came first."""
    allow_and_deny = """
      endpointSelector: {}
      ingress: [{toPorts: [{ports: [{port: "80", protocol: TCP}]}]}]
      ingressDeny: [{toPorts: [{ports: [{port: "80", protocol: TCP}]}]}]
    """
    _, rows = resolve(65792, [parsed(cilium_policy(allow_and_deny))], lambda _: ())
    assert rows == {PolicyKey(65792, 0, 80, 16, TCP, POLICY_INGRESS): PolicyRow(2)}


def test_allow_rules_without_enforcement_make_no_rows() -> None:
    """Where nothing is enforced an allow rule changes no verdict, so it costs no lookup either."""
    spec = "{endpointSelector: {}, ingress: [{fromEntities: [all]}], enableDefaultDeny: {ingress: false}}"
    subject, rows = resolve(65792, [parsed(cilium_policy(spec))], lambda _: ())
    assert (tuple(subject), rows) == ((0, 0, 0, 0, 0), {})


@settings(max_examples=150, deadline=None)
@given(policy_sets(), st.lists(flows(), min_size=1, max_size=12))
def test_rows_say_what_the_model_says(policies: list[ParsedPolicy], asked: list[tuple[int, int, int, int]]) -> None:
    """For random policies and flows, the maps looked up as abi.h says give the model's verdict, both directions."""
    selection = selection_of(MESH, policies)
    for subject, remote, protocol, port in asked:
        index = index_labels(MESH[subject])
        about = [policy for policy in policies if policy.subject.matches_index(index)]
        subject_row, rows = resolve(subject, about, selection.selected)
        for direction in (POLICY_INGRESS, POLICY_EGRESS):
            side = judge_side(direction, policies_of(MESH[subject], policies), MESH[remote], protocol, port)
            passed = look_up({PolicySubjectKey(subject): subject_row}, rows, subject, remote, direction, protocol, port)
            assert passed == (side.verdict == ALLOW), (side, MESH[subject], MESH[remote])
