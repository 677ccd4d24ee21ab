"""Who may talk to whom: default deny, deny over allow, every shape of row, both directions."""

import pytest

from datapath.abi import types as abi
from datapath.tables import NO_ADDRESS, IpcacheRow, PolicySubjectKey
from tests.bpf import packets
from tests.bpf.node import (
    ANY_PORT_SHAPE,
    CLIENT,
    HOST,
    L3_SHAPE,
    OK,
    PORT_SHAPE,
    REDIRECT,
    REMOTE,
    SERVER,
    WORLD,
    Endpoint,
    Node,
)

pytestmark = pytest.mark.kernel("bpf_redirect_peer")

EGRESS, INGRESS = abi.POLICY_EGRESS, abi.POLICY_INGRESS
DENY = abi.POLICY_VERDICT_DENY
ALL_SHAPES = (1 << abi.POLICY_SHAPES) - 1


def try_port(node: Node, port: int = 80, dest: Endpoint = SERVER) -> int:
    """CLIENT opens a connection; 0 if it may, else the reason of the drop."""
    run = node.send(CLIENT, node.frame(CLIENT, dest, packets.tcp(1000, port)))
    drops = node.drops()
    assert len(drops) == (run.retval not in (OK, REDIRECT))
    return drops[0] if drops else 0


def test_nothing_enforced_allows(node: Node) -> None:
    """No policy selects either end."""
    assert try_port(node) == 0


@pytest.mark.parametrize("subject", [CLIENT, SERVER], ids=["egress", "ingress"])
def test_enforced_without_a_row_denies(node: Node, subject: Endpoint) -> None:
    """Default deny, of either end."""
    node.subject(subject, egress=subject is CLIENT, ingress=subject is SERVER)
    assert try_port(node) == abi.POLICY_DENIED


@pytest.mark.parametrize("subject", [CLIENT, SERVER], ids=["egress", "ingress"])
def test_other_direction_enforced_allows(node: Node, subject: Endpoint) -> None:
    """Ingress of the sender and egress of the receiver have no say."""
    node.subject(subject, egress=subject is SERVER, ingress=subject is CLIENT)
    assert try_port(node) == 0


@pytest.mark.parametrize("subject", [CLIENT, SERVER], ids=["egress", "ingress"])
def test_unknown_subject_fails_closed(node: Node, subject: Endpoint) -> None:
    """An identity whose policy has not been written yet."""
    node.remove("policy_subjects", PolicySubjectKey(subject.identity))
    assert try_port(node) == abi.NO_CONFIGURATION_AVAILABLE_TO_PERFORM_POLICY_DECISION


ROWS = {
    "L3-only": (SERVER.identity, {}, L3_SHAPE, abi.POLICY_MATCH_L3_ONLY),
    "all": (0, {}, L3_SHAPE, abi.POLICY_MATCH_ALL),
    "L3-proto": (SERVER.identity, {"protocol": 6}, ANY_PORT_SHAPE, abi.POLICY_MATCH_L3_PROTO),
    "proto-only": (0, {"protocol": 6}, ANY_PORT_SHAPE, abi.POLICY_MATCH_PROTO_ONLY),
    "L4-only": (0, {"protocol": 6, "port": 80, "prefix": 16}, PORT_SHAPE, abi.POLICY_MATCH_L4_ONLY),
    "L3-L4": (SERVER.identity, {"protocol": 6, "port": 80, "prefix": 16}, PORT_SHAPE, abi.POLICY_MATCH_L3_L4),
}


@pytest.mark.parametrize("name", ROWS)
def test_row_of_every_shape_allows(node: Node, name: str) -> None:
    """One egress row of each shape lets the connection through, and the verdict names the shape."""
    remote, narrowed, shape, match = ROWS[name]
    node.subject(CLIENT, egress=True, shapes=shape)
    node.policy(CLIENT, EGRESS, remote, **narrowed)
    run = node.send(CLIENT, node.frame(CLIENT, SERVER, packets.tcp(1000, 80)))
    told = node.notifications()
    assert run.retval == REDIRECT
    assert [each.match for each in told if each.policy_direction == EGRESS] == [match]


@pytest.mark.parametrize("name", ROWS)
def test_deny_row_of_every_shape_wins(node: Node, name: str) -> None:
    """A deny row is stronger than allow rows of all shapes."""
    remote, narrowed, _, match = ROWS[name]
    node.subject(CLIENT, egress=True, shapes=ALL_SHAPES)
    for allowed_remote, allowed, _, _ in ROWS.values():
        node.policy(CLIENT, EGRESS, allowed_remote, **allowed)
    node.policy(CLIENT, EGRESS, remote, verdict=DENY, **narrowed)
    run = node.send(CLIENT, node.frame(CLIENT, SERVER, packets.tcp(1000, 80)))
    told = [each for each in node.notifications() if each.type == abi.NOTIFICATION_DROP]
    assert run.retval not in (OK, REDIRECT)
    assert [(each.drop_reason, each.match) for each in told] == [(abi.POLICY_DENY, match)]


def test_deny_row_counts_where_nothing_is_enforced(node: Node) -> None:
    """A deny row alone does not turn on default deny, but denies what it names."""
    node.subject(CLIENT, shapes=PORT_SHAPE)
    node.policy(CLIENT, EGRESS, 0, protocol=6, port=80, prefix=16, verdict=DENY)
    assert (try_port(node, 80), try_port(node, 81)) == (abi.POLICY_DENY, 0)


def test_row_of_a_shape_not_in_use_is_not_looked_up(node: Node) -> None:
    """`egress_shapes` says where to look."""
    node.subject(CLIENT, egress=True, shapes=L3_SHAPE)
    node.policy(CLIENT, EGRESS, 0, protocol=6, port=80, prefix=16)
    assert try_port(node) == abi.POLICY_DENIED


@pytest.mark.parametrize(
    ("remote", "narrowed", "direction"),
    [
        (REMOTE.identity, {}, EGRESS),
        (SERVER.identity, {}, INGRESS),
        (SERVER.identity, {"protocol": 17}, EGRESS),
        (SERVER.identity, {"protocol": 6, "port": 81, "prefix": 16}, EGRESS),
        (SERVER.identity, {"protocol": 17, "port": 80, "prefix": 16}, EGRESS),
    ],
    ids=["identity", "direction", "protocol", "port", "protocol of the port"],
)
def test_row_for_something_else_does_not_allow(
    node: Node, remote: int, narrowed: dict[str, int], direction: int
) -> None:
    """Every field of the key counts."""
    node.subject(CLIENT, egress=True, shapes=ALL_SHAPES)
    node.policy(CLIENT, direction, remote, **narrowed)
    assert try_port(node) == abi.POLICY_DENIED


@pytest.mark.parametrize(
    ("port", "prefix", "inside", "outside"),
    [
        (8080, 16, (8080,), (8081, 8079)),
        (8080, 12, (8080, 8095), (8079, 8096)),
        (32768, 1, (32768, 65535), (32767, 1)),
    ],
)
def test_port_prefix_covers_its_range(
    node: Node, port: int, prefix: int, inside: tuple[int, ...], outside: tuple[int, ...]
) -> None:
    """A row of n bits allows the ports that begin with them, and no others."""
    node.subject(CLIENT, egress=True, shapes=abi.POLICY_SHAPE_PORT_0 << prefix)
    node.policy(CLIENT, EGRESS, 0, protocol=6, port=port, prefix=prefix)
    assert [try_port(node, each) for each in inside] == [0] * len(inside)
    assert [try_port(node, each) for each in outside] == [abi.POLICY_DENIED] * len(outside)


def test_ingress_row_names_the_sender(node: Node) -> None:
    """For ingress the remote identity is the source's."""
    node.subject(SERVER, ingress=True, shapes=PORT_SHAPE)
    node.policy(SERVER, INGRESS, CLIENT.identity, protocol=6, port=80, prefix=16)
    assert (try_port(node, 80), try_port(node, 81)) == (0, abi.POLICY_DENIED)


def ping(node: Node, echo_id: int) -> int:
    """CLIENT asks SERVER for an echo."""
    protocol = packets.ICMP if node.family == 4 else packets.ICMPV6
    return node.send(CLIENT, node.frame(CLIENT, SERVER, packets.icmp(echo_type(node), echo_id=echo_id), protocol)).retval


def echo_type(node: Node) -> int:
    return packets.ECHO_REQUEST if node.family == 4 else packets.ECHO_REQUEST_V6


def test_row_for_icmp_allows_every_type(node: Node) -> None:
    """A row for the protocol has no port to compare."""
    node.subject(CLIENT, egress=True, shapes=ANY_PORT_SHAPE)
    node.policy(CLIENT, EGRESS, 0, protocol=packets.ICMP if node.family == 4 else packets.ICMPV6)
    assert ping(node, 1) == REDIRECT


def test_type_of_an_icmp_message_is_its_port(node: Node) -> None:
    """A row for another type, or for the same type of the other family's protocol, allows nothing."""
    own, other = (packets.ICMP, packets.ICMPV6) if node.family == 4 else (packets.ICMPV6, packets.ICMP)
    node.subject(CLIENT, egress=True, shapes=PORT_SHAPE)
    node.policy(CLIENT, EGRESS, 0, protocol=own, port=echo_type(node) + 1, prefix=16)
    node.policy(CLIENT, EGRESS, 0, protocol=other, port=echo_type(node), prefix=16)
    assert (ping(node, 1) == REDIRECT, node.drops()) == (False, [abi.POLICY_DENIED])
    node.policy(CLIENT, EGRESS, 0, protocol=own, port=echo_type(node), prefix=16)
    assert ping(node, 2) == REDIRECT


def test_denied_type_of_an_icmp_message_does_not_pass(node: Node) -> None:
    """Only that type is denied."""
    protocol = packets.ICMP if node.family == 4 else packets.ICMPV6
    node.subject(CLIENT, shapes=PORT_SHAPE)
    node.policy(CLIENT, EGRESS, 0, protocol=protocol, port=echo_type(node) + 1, prefix=16, verdict=DENY)
    assert ping(node, 1) == REDIRECT
    node.policy(CLIENT, EGRESS, 0, protocol=protocol, port=echo_type(node), prefix=16, verdict=DENY)
    assert (ping(node, 2) == REDIRECT, node.drops()) == (False, [abi.POLICY_DENY])


def test_host_has_an_identity_of_its_own(node: Node) -> None:
    """Egress to the node's own address is judged as to the host."""
    node.subject(CLIENT, egress=True, shapes=L3_SHAPE)
    node.policy(CLIENT, EGRESS, abi.IDENTITY_HOST)
    assert (try_port(node, dest=HOST), try_port(node, dest=WORLD)) == (0, abi.POLICY_DENIED)


def test_unknown_address_is_the_world(node: Node) -> None:
    """What no ipcache row covers has IDENTITY_WORLD."""
    node.subject(CLIENT, egress=True, shapes=L3_SHAPE)
    node.policy(CLIENT, EGRESS, abi.IDENTITY_WORLD)
    assert (try_port(node, dest=WORLD), try_port(node, dest=REMOTE)) == (0, abi.POLICY_DENIED)


def test_longest_prefix_of_the_ipcache_wins(node: Node) -> None:
    """A network has an identity, and one address in it another."""
    network = "198.51.100.0/24" if node.family == 4 else "2001:db8::/64"
    node.ipcache(network, IpcacheRow(NO_ADDRESS, 5001, 0))
    node.ipcache(WORLD.address(node.family), IpcacheRow(NO_ADDRESS, 5002, 0))
    node.send(CLIENT, node.frame(CLIENT, WORLD, packets.tcp(1000, 80)))
    assert [each.dest_identity for each in node.notifications()] == [5002]


AUDIT = abi.POLICY_SUBJECT_AUDIT


BY_WHOM = pytest.mark.parametrize("own", [False, True], ids=["identity", "endpoint"])


def audit(node: Node, subject: Endpoint, own: bool) -> int:
    """By the endpoint's own configuration, or else the flags for its subject row."""
    node.audit(*([subject] if own else []))
    return 0 if own else AUDIT


@BY_WHOM
@pytest.mark.parametrize("subject", [CLIENT, SERVER], ids=["egress", "ingress"])
@pytest.mark.parametrize("reason", [abi.POLICY_DENIED, abi.POLICY_DENY], ids=["default", "explicit"])
def test_audit_lets_pass_what_would_be_denied(node: Node, subject: Endpoint, reason: int, own: bool) -> None:
    """The verdict says audit and why; the entry says it too; the other end is asked as ever."""
    node.subject(subject, egress=True, ingress=True, shapes=L3_SHAPE, flags=audit(node, subject, own))
    if reason == abi.POLICY_DENY:
        node.policy(subject, EGRESS if subject is CLIENT else INGRESS, 0, verdict=DENY)
    run = node.send(CLIENT, node.frame(CLIENT, SERVER, packets.tcp(1000, 80)))
    told = {each.endpoint_id: (each.type, each.verdict, each.drop_reason) for each in node.notifications()}
    other = SERVER if subject is CLIENT else CLIENT
    assert run.retval == REDIRECT
    assert told == {
        subject.endpoint_id: (abi.NOTIFICATION_VERDICT, abi.VERDICT_AUDIT, reason),
        other.endpoint_id: (abi.NOTIFICATION_VERDICT, abi.VERDICT_ALLOW, 0),
    }
    assert node.entries()[0].row.flags & abi.CONNTRACK_AUDITED


@BY_WHOM
def test_audit_of_one_end_does_not_open_the_other(node: Node, own: bool) -> None:
    """Only what its own policy would deny passes."""
    node.subject(CLIENT, egress=True, flags=audit(node, CLIENT, own))
    node.subject(SERVER, ingress=True)
    assert try_port(node) == abi.POLICY_DENIED


@BY_WHOM
@pytest.mark.parametrize("arrives", [False, True], ids=["sent", "received"])
def test_audit_of_what_comes_from_elsewhere_and_of_answers(node: Node, own: bool, arrives: bool) -> None:
    """To an endpoint from another node; and an answer that is judged again, by the policy of who began."""
    node.subject(SERVER, ingress=True, flags=audit(node, SERVER, own))
    asked = packets.tcp(1000, 80)
    if arrives:
        assert node.deliver(SERVER, node.frame(REMOTE, SERVER, asked)).retval == OK
        return
    assert node.send(CLIENT, node.frame(CLIENT, SERVER, asked)).retval == REDIRECT
    node.epoch(2)
    answer = packets.tcp(80, 1000, packets.SYN | packets.ACK)
    assert node.send(SERVER, node.frame(SERVER, CLIENT, answer)).retval == REDIRECT
    node.audit()
    node.subject(SERVER, ingress=True)
    node.epoch(3)
    assert node.send(SERVER, node.frame(SERVER, CLIENT, answer)).retval == 2


@BY_WHOM
def test_end_of_audit_cuts_what_it_let_pass(node: Node, own: bool) -> None:
    """With the next packet; what a row allows goes on, and is no longer marked."""
    node.subject(CLIENT, egress=True, shapes=PORT_SHAPE, flags=audit(node, CLIENT, own))
    assert (try_port(node, 80), try_port(node, 81)) == (0, 0)
    node.audit()
    node.subject(CLIENT, egress=True, shapes=PORT_SHAPE)
    node.policy(CLIENT, EGRESS, 0, protocol=6, port=80, prefix=16)
    node.epoch(2)
    for port, expected in ((80, REDIRECT), (81, 2)):
        raw = node.frame(CLIENT, SERVER, packets.tcp(1000, port, packets.ACK))
        assert node.send(CLIENT, raw).retval == expected
    assert [each.row.flags & abi.CONNTRACK_AUDITED for each in node.entries()] == [0]


def test_unknown_subject_fails_closed_under_audit_of_others(node: Node) -> None:
    """Audit is a word of the subject's row; without one nothing passes."""
    node.subject(SERVER, flags=AUDIT)
    node.remove("policy_subjects", PolicySubjectKey(CLIENT.identity))
    assert try_port(node) == abi.NO_CONFIGURATION_AVAILABLE_TO_PERFORM_POLICY_DECISION


@pytest.mark.parametrize("flags", [0, abi.POLICY_SUBJECT_ASKS_LOCALHOST], ids=["auto", "policy"])
def test_host_needs_a_row_where_localhost_is_asked(node: Node, flags: int) -> None:
    """allow-localhost: policy."""
    node.subject(SERVER, ingress=True, flags=flags)
    run = node.deliver(SERVER, node.frame(HOST, SERVER, packets.tcp(1000, 80)))
    assert (run.retval == OK) is not bool(flags)
