"""What the programs tell and count."""

from pathlib import Path

import pytest

from datapath import codec
from datapath.abi import types as abi
from tests.bpf import node as nodes
from tests.bpf import packets
from tests.bpf.node import CLIENT, GATEWAY_MAC, LOOPBACK, LOOPBACK_MAC, REDIRECT, REMOTE, SERVER, Node

pytestmark = pytest.mark.kernel("bpf_redirect_peer")

EGRESS, INGRESS = abi.TRAFFIC_EGRESS, abi.TRAFFIC_INGRESS


def test_forwarded_packets_are_counted(node: Node) -> None:
    """Under reason 0, by direction, with their bytes."""
    raw = node.frame(CLIENT, SERVER, packets.tcp(1000, 80))
    for _ in range(3):
        node.send(CLIENT, raw)
    assert node.packets_counted(abi.FORWARDED, EGRESS) == (3, 3 * len(raw))
    node.deliver(SERVER, raw)
    assert node.packets_counted(abi.FORWARDED, INGRESS) == (1, len(raw))


def test_drop_is_told_in_full(node: Node) -> None:
    """Every field of the record of a policy drop."""
    node.subject(CLIENT, egress=True)
    node.epoch(41)
    raw = node.frame(CLIENT, SERVER, packets.tcp(1000, 80))
    node.send(CLIENT, raw)
    [told] = [each for each in node.notifications() if each.type == abi.NOTIFICATION_DROP]
    assert told.line > 0
    assert told.timestamp_ns > 0
    assert told._replace(line=0, timestamp_ns=0)._asdict() == {
        "timestamp_ns": 0,
        "policy_epoch": 41,
        "source": codec.address_bytes(CLIENT.address(node.family)),
        "dest": codec.address_bytes(SERVER.address(node.family)),
        "source_identity": CLIENT.identity,
        "dest_identity": SERVER.identity,
        "ifindex": LOOPBACK,
        "length": len(raw),
        "source_port": 1000,
        "dest_port": 80,
        "endpoint_id": CLIENT.endpoint_id,
        "line": 0,
        "type": abi.NOTIFICATION_DROP,
        "drop_reason": abi.POLICY_DENIED,
        "policy_direction": abi.POLICY_EGRESS,
        "protocol": packets.TCP,
        "tcp_flags": packets.SYN,
        "verdict": abi.VERDICT_DENY,
        "match": abi.POLICY_MATCH_NONE,
        "file": abi.ENUMS["source_file"]["FILE_POLICY"],
    }


def test_drop_is_counted_where_policy_spoke(node: Node) -> None:
    """Egress of the sender under egress, ingress of the receiver under ingress."""
    raw = node.frame(CLIENT, SERVER, packets.tcp(1000, 80))
    node.subject(CLIENT, egress=True)
    node.send(CLIENT, raw)
    assert node.packets_counted(abi.POLICY_DENIED, EGRESS) == (1, len(raw))
    node.subject(CLIENT)
    node.subject(SERVER, ingress=True)
    node.send(CLIENT, raw)
    assert node.packets_counted(abi.POLICY_DENIED, INGRESS) == (1, len(raw))
    assert node.notifications()[-1].endpoint_id == SERVER.endpoint_id


def test_new_flow_tells_a_verdict_per_direction(node: Node) -> None:
    """Allowed egress of the sender, allowed ingress of the receiver; established packets tell nothing."""
    for _ in range(2):
        node.send(CLIENT, node.frame(CLIENT, SERVER, packets.tcp(1000, 80)))
    told = [(each.type, each.policy_direction, each.verdict, each.endpoint_id) for each in node.notifications()]
    assert told == [
        (abi.NOTIFICATION_VERDICT, abi.POLICY_EGRESS, abi.VERDICT_ALLOW, CLIENT.endpoint_id),
        (abi.NOTIFICATION_VERDICT, abi.POLICY_INGRESS, abi.VERDICT_ALLOW, SERVER.endpoint_id),
    ]


def told_of_denial(objects_dir: Path, family: int, **constants: int) -> list[tuple[int, int, int]]:
    """Type, verdict and reason of what a denied flow tells."""
    with nodes.load(objects_dir / "endpoint.bpf.o", **constants) as node:
        node.family = family
        node.settle()
        node.subject(CLIENT, egress=True)
        assert node.send(CLIENT, node.frame(CLIENT, SERVER, packets.tcp(1000, 80))).retval == nodes.SHOT
        return [(each.type, each.verdict, each.drop_reason) for each in node.notifications()]


VERDICT = (abi.NOTIFICATION_VERDICT, abi.VERDICT_DENY, abi.POLICY_DENIED)
DROP = (abi.NOTIFICATION_DROP, abi.VERDICT_DENY, abi.POLICY_DENIED)


@pytest.mark.parametrize(
    ("constants", "told"),
    [
        ({}, [DROP]),
        ({"config_notify_denials": 1}, [VERDICT, DROP]),
        ({"config_notify_drops": 0}, [VERDICT]),
        ({"config_notify_drops": 0, "config_notify_verdicts": 0}, []),
    ],
    ids=["usual", "both", "verdicts only", "nothing"],
)
def test_denied_flow_is_told_once(
    objects_dir: Path, family: int, constants: dict[str, int], told: list[tuple[int, int, int]]
) -> None:
    """The drop says all that the verdict would; both only where asked for, and never none but where asked for."""
    assert told_of_denial(objects_dir, family, **constants) == told


def test_verdicts_can_be_turned_off(objects_dir: Path, family: int) -> None:
    """Then only drops are told."""
    with nodes.load(objects_dir / "endpoint.bpf.o", config_notify_verdicts=0) as node:
        node.family = family
        node.settle()
        assert node.send(CLIENT, node.frame(CLIENT, REMOTE, packets.tcp(1000, 80))).retval == REDIRECT
        node.subject(CLIENT, egress=True)
        node.send(CLIENT, node.frame(CLIENT, SERVER, packets.tcp(1001, 80)))
        assert [each.type for each in node.notifications()] == [abi.NOTIFICATION_DROP]


def test_icmp_is_told_by_type_and_code(node: Node) -> None:
    """In place of the ports."""
    node.subject(CLIENT, egress=True)
    protocol, kind = (packets.ICMP, 3) if node.family == 4 else (packets.ICMPV6, 1)
    node.send(CLIENT, node.frame(CLIENT, SERVER, packets.icmp(kind, 4), protocol))
    assert {(each.source_port, each.dest_port) for each in node.notifications()} == {(0, kind << 8 | 4)}


def test_lost_notifications_are_counted(node: Node) -> None:
    """A ring that nobody reads fills up; what does not fit is counted."""
    node.subject(CLIENT, egress=True)
    node.device(CLIENT)
    raw = node.frame(CLIENT, SERVER, packets.tcp(1000, 80))
    fitting = abi.NOTIFICATION_BYTES // (abi.STRUCTS["notification"].size + 8)
    node.repeat("from_endpoint", raw, fitting + 100)
    lost, _ = node.packets_counted(abi.ENUMS["drop_reason"]["NOTIFICATIONS_LOST"], EGRESS)
    dropped, _ = node.packets_counted(abi.POLICY_DENIED, EGRESS)
    assert (dropped, dropped - lost) == (fitting + 100, fitting)


def test_from_network_counts_and_tells_as_ingress(network: Node) -> None:
    """Delivered and dropped."""
    raw = network.frame(REMOTE, SERVER, packets.tcp(1000, 80), source_mac=GATEWAY_MAC, dest_mac=LOOPBACK_MAC)
    network.receive(raw)
    network.subject(SERVER, ingress=True)
    network.epoch(2)
    network.receive(raw)
    assert network.packets_counted(abi.FORWARDED, INGRESS) == (1, len(raw))
    assert network.packets_counted(abi.POLICY_DENIED, INGRESS) == (1, len(raw))
    told = network.notifications()[-1]
    assert (told.type, told.source_identity, told.endpoint_id) == (
        abi.NOTIFICATION_DROP,
        REMOTE.identity,
        SERVER.endpoint_id,
    )


def test_from_network_does_not_count_what_it_leaves(network: Node) -> None:
    """The stack's packets are not ours."""
    raw = network.frame(REMOTE, REMOTE, packets.tcp(1000, 80), source_mac=GATEWAY_MAC, dest_mac=LOOPBACK_MAC)
    network.receive(raw)
    assert network.packets_counted(abi.FORWARDED, INGRESS) == (0, 0)
