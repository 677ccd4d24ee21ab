"""Ring records as values, as Cilium's lines, as JSON."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datapath import codec, notifications
from datapath.abi import types as abi
from datapath.notifications import Notification
from tests.datapath.rows import typed

CODEC = codec.struct_codec(Notification)
DROP = Notification(
    timestamp_ns=1,
    policy_epoch=7,
    source=codec.address_bytes("10.1.0.5"),
    dest=codec.address_bytes("10.2.0.6"),
    source_identity=65537,
    dest_identity=2,
    ifindex=5,
    length=74,
    source_port=40000,
    dest_port=80,
    endpoint_id=12,
    line=123,
    type=abi.NOTIFICATION_DROP,
    drop_reason=abi.POLICY_DENIED,
    policy_direction=abi.POLICY_EGRESS,
    protocol=6,
    tcp_flags=0x02,
    verdict=abi.VERDICT_DENY,
    match=abi.POLICY_MATCH_NONE,
    file=abi.FILE_ENDPOINT,
)


@given(st.lists(typed(Notification), max_size=5))
def test_records_come_back(records: list[Notification]) -> None:
    """Records one after the other are read as they were written, addresses with trailing zeros included."""
    assert notifications.decode_records(b"".join(map(CODEC.encode, records))) == records


def test_a_broken_record_is_refused() -> None:
    """Bytes that are no whole number of records are not guessed at."""
    with pytest.raises(ValueError, match="whole number"):
        notifications.decode_records(bytes(81))


def test_drop_line() -> None:
    """A drop reads as Cilium's users know it."""
    assert notifications.line(DROP) == (
        "xx drop (Policy denied) flow 0x0 to endpoint 12, ifindex 5, file endpoint.bpf.c:123, "
        "identity 65537->2: 10.1.0.5:40000 -> 10.2.0.6:80 tcp SYN"
    )


def test_verdict_line() -> None:
    """A policy verdict reads as Cilium's users know it."""
    verdict = DROP._replace(
        type=abi.NOTIFICATION_VERDICT,
        policy_direction=abi.POLICY_INGRESS,
        source_identity=2,
        dest_identity=65537,
        verdict=abi.VERDICT_ALLOW,
        match=abi.POLICY_MATCH_L3_L4,
    )
    assert notifications.line(verdict) == (
        "Policy verdict log: flow 0x0 local EP ID 12, remote ID 2, proto 6, ingress, action allow, "
        "auth: disabled, match L3-L4, 10.1.0.5:40000 -> 10.2.0.6:80 tcp SYN"
    )


def test_verdict_line_of_egress_names_the_other_side() -> None:
    """The remote identity of egress is the destination's."""
    line = notifications.line(DROP._replace(type=abi.NOTIFICATION_VERDICT))
    assert "remote ID 2, proto 6, egress, action deny" in line


def test_icmp_has_a_type_and_no_ports() -> None:
    """ICMP shows type and code, in both families."""
    line = notifications.line(
        DROP._replace(protocol=58, dest_port=128 << 8, source=codec.address_bytes("fd00::1"))
    )
    assert line.endswith("fd00::1 -> 10.2.0.6 icmpv6 type 128 code 0")


def test_several_tcp_flags() -> None:
    """SYN and ACK both show, in Cilium's order."""
    assert notifications.line(DROP._replace(tcp_flags=0x12)).endswith("tcp SYN, ACK")


def test_drop_reasons_in_cilium_words() -> None:
    """Words where the ABI has a reason, a number where it has none; no words for what does not exist."""
    reasons = [abi.POLICY_DENIED, abi.POLICY_DENY, abi.INVALID_SOURCE_IP, abi.UNSUPPORTED_L3_PROTOCOL, 254]
    assert [notifications.drop_reason_text(reason) for reason in reasons] == [
        "Policy denied",
        "Policy denied by denylist",
        "Invalid source ip",
        "Unsupported L3 protocol",
        "254",
    ]
    assert notifications.CILIUM_WORDS.keys() <= abi.ENUMS["drop_reason"].keys()


def test_file_names() -> None:
    """Programs and headers are told apart."""
    assert notifications.FILE_NAMES[abi.FILE_HOST] == "host.bpf.c"
    assert all(name.endswith((".bpf.c", ".h")) for name in notifications.FILE_NAMES.values())


@given(typed(Notification))
def test_any_record_has_a_line_and_json(record: Notification) -> None:
    """Whatever the numbers are, a record can be shown."""
    assert notifications.line(record)
    assert json.dumps(notifications.as_json(record))


def test_json_of_a_drop() -> None:
    """JSON has the numbers and their words."""
    found = notifications.as_json(DROP)
    assert found["source"] == {"address": "10.1.0.5", "port": 40000, "identity": 65537}
    assert (found["drop_reason"], found["drop_reason_text"], found["verdict"]) == (
        133,
        "Policy denied",
        "deny",
    )
