"""What the programs tell: records of the ring buffer as values, lines and JSON.

Belongs here: decoding and words. Does not belong here: reading the ring (kernel/). Line forms and drop
reasons are those that Cilium's users know.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from datapath.abi import types as abi
from datapath.addressing import endpoint_text, protocol_name
from datapath.codec import address_text

_KINDS = {"u8": "u1", "u16": "=u2", "u32": "=u4", "u64": "=u8", "be16": ">u2", "be32": ">u4", "be64": ">u8"}

PROGRAM_FILES = (abi.FILE_ENDPOINT, abi.FILE_HOST, abi.FILE_OVERLAY)
FILE_NAMES = {
    value: f"{name.removeprefix('FILE_').lower()}{'.bpf.c' if value in PROGRAM_FILES else '.h'}"
    for name, value in abi.ENUMS["source_file"].items()
}
TYPE_NAMES = {
    abi.NOTIFICATION_DROP: "drop",
    abi.NOTIFICATION_VERDICT: "policy-verdict",
    abi.NOTIFICATION_TRACE: "trace",
}
MATCH_NAMES = {
    abi.POLICY_MATCH_NONE: "none",
    abi.POLICY_MATCH_L3_ONLY: "L3-Only",
    abi.POLICY_MATCH_L3_L4: "L3-L4",
    abi.POLICY_MATCH_L4_ONLY: "L4-Only",
    abi.POLICY_MATCH_ALL: "all",
    abi.POLICY_MATCH_L3_PROTO: "L3-Proto",
    abi.POLICY_MATCH_PROTO_ONLY: "Proto-Only",
}
CILIUM_WORDS = {
    "FORWARDED": "Success",
    "INVALID_PACKET_DROPPED": "Invalid packet",
    "CT_TRUNCATED_OR_INVALID_HEADER": "CT: Truncated or invalid header",
    "CT_UNKNOWN_L4_PROTOCOL": "CT: Unknown L4 protocol",
    "UNSUPPORTED_L3_PROTOCOL": "Unsupported L3 protocol",
    "UNKNOWN_L3_TARGET_ADDRESS": "Unknown L3 target address",
    "STALE_OR_UNROUTABLE_IP": "Stale or unroutable IP",
    "ERROR_WHILE_CORRECTING_L3_CHECKSUM": "Error while correcting L3 checksum",
    "ERROR_WHILE_CORRECTING_L4_CHECKSUM": "Error while correcting L4 checksum",
    "CT_MAP_INSERTION_FAILED": "CT: Map insertion failed",
    "INVALID_IPV6_EXTENSION_HEADER": "Invalid IPv6 extension header",
    "IP_FRAGMENTATION_NOT_SUPPORTED": "IP fragmentation not supported",
    "UNSUPPORTED_L2_PROTOCOL": "Unsupported L2 protocol",
    "NO_TUNNEL_OR_ENCAPSULATION_ENDPOINT": "No tunnel/encapsulation endpoint (datapath BUG!)",
    "FIRST_LOGICAL_DATAGRAM_FRAGMENT_NOT_FOUND": "First logical datagram fragment not found",
    "INVALID_VNI": "Invalid VNI",
    "FIB_LOOKUP_FAILED": "FIB lookup failed",
    "DENIED_BY_LB_SRC_RANGE_CHECK": "Denied by LB src range check",
    "POLICY_DENY": "Policy denied by denylist",
    "TTL_EXCEEDED": "TTL exceeded",
    "DROP_EP_NOT_READY": "Endpoint policy program not available",
}
"""Where they are not simply the name of the reason: POLICY_DENIED is "Policy denied"."""

DROP_REASON_TEXTS = {
    value: CILIUM_WORDS.get(name, name.replace("_", " ").capitalize())
    for name, value in abi.ENUMS["drop_reason"].items()
}
VERDICT_NAMES = {abi.VERDICT_DENY: "deny", abi.VERDICT_ALLOW: "allow", abi.VERDICT_AUDIT: "audit"}
TCP_FLAGS = ((0x02, "SYN"), (0x10, "ACK"), (0x04, "RST"), (0x01, "FIN"), (0x08, "PSH"), (0x20, "URG"))
TCP = 6
ICMP = (1, 58)


class Notification(NamedTuple):
    """One record, with the fields of struct notification."""

    timestamp_ns: int
    policy_epoch: int
    source: bytes
    dest: bytes
    source_identity: int
    dest_identity: int
    ifindex: int
    length: int
    source_port: int
    dest_port: int
    endpoint_id: int
    line: int
    type: int
    drop_reason: int
    policy_direction: int
    protocol: int
    tcp_flags: int
    verdict: int
    match: int
    file: int


def decode_records(raw: bytes | memoryview) -> list[Notification]:
    """Records one after the other. Raises ValueError for bytes that are no whole number of records."""
    import numpy  # takes 50 ms, which an agent that is never asked for notifications is spared

    # Address fields are void, since a bytes field of numpy loses its trailing zeros.
    record = numpy.dtype(
        [(field.name, _KINDS.get(field.kind, f"V{field.size}")) for field in abi.STRUCTS["notification"].fields]
    )
    if len(raw) % record.itemsize:
        raise ValueError(f"{len(raw)} bytes are no whole number of records of {record.itemsize}")
    if record.names != Notification._fields:
        raise ValueError(f"struct notification has the fields {record.names}")
    records = numpy.frombuffer(raw, record)
    columns = [
        [bytes(address) for address in records[name]]
        if name in ("source", "dest")
        else records[name].tolist()
        for name in Notification._fields
    ]
    return [Notification(*values) for values in zip(*columns, strict=True)]


RECORD_BYTES = abi.STRUCTS["notification"].size
FLOW_FIELDS = frozenset(
    ("source", "dest", "source_identity", "dest_identity", "dest_port", "type", "drop_reason", "policy_direction",
     "protocol", "verdict")
)  # fmt: skip
"""What tells one flow from another; the others differ from packet to packet."""


def counted_records(raw: bytes) -> list[tuple[Notification, int]]:
    """Records that are alike in FLOW_FIELDS once, with their number; the other fields are 0. Raises ValueError."""
    mask = bytearray(RECORD_BYTES)
    for field in abi.STRUCTS["notification"].fields:
        if field.name in FLOW_FIELDS:
            mask[field.offset : field.offset + field.size] = b"\xff" * field.size
    kept = int.from_bytes(mask, "big")
    counts: Counter[int] = Counter(
        int.from_bytes(raw[start : start + RECORD_BYTES], "big") & kept for start in range(0, len(raw), RECORD_BYTES)
    )
    records = decode_records(b"".join(number.to_bytes(RECORD_BYTES, "big") for number in counts))
    return list(zip(records, counts.values(), strict=True))


def drop_reason_text(reason: int) -> str:
    """Cilium's words; the number where there are none."""
    return DROP_REASON_TEXTS.get(reason, str(reason))


def lines(notifications: Iterable[Notification]) -> Iterator[str]:
    """One line of `meshlog monitor` each."""
    return (line(notification) for notification in notifications)


def line(notification: Notification) -> str:
    """The form depends on the type."""
    if notification.type == abi.NOTIFICATION_DROP:
        return _drop_line(notification)
    if notification.type == abi.NOTIFICATION_VERDICT:
        return _verdict_line(notification)
    return _trace_line(notification)


def _drop_line(n: Notification) -> str:
    reason, file = drop_reason_text(n.drop_reason), FILE_NAMES.get(n.file, n.file)
    return (
        f"xx drop ({reason}) flow 0x0 to endpoint {n.endpoint_id}, ifindex {n.ifindex}, "
        f"file {file}:{n.line}, identity {n.source_identity}->{n.dest_identity}: {_flow(n)}"
    )


def _verdict_line(n: Notification) -> str:
    return (
        f"Policy verdict log: flow 0x0 local EP ID {n.endpoint_id}, remote ID {_remote_identity(n)}, "
        f"proto {n.protocol}, {_direction(n)}, action {verdict_name(n)}, auth: disabled, "
        f"match {MATCH_NAMES.get(n.match, n.match)}, {_flow(n)}"
    )


def _trace_line(n: Notification) -> str:
    return (
        f"-> endpoint {n.endpoint_id} flow 0x0 , identity {n.source_identity}->{n.dest_identity} "
        f"ifindex {n.ifindex}: {_flow(n)}"
    )


def _remote_identity(n: Notification) -> int:
    return n.source_identity if n.policy_direction == abi.POLICY_INGRESS else n.dest_identity


def _direction(n: Notification) -> str:
    return "ingress" if n.policy_direction == abi.POLICY_INGRESS else "egress"


def verdict_name(n: Notification) -> str:
    """allow, audit or deny; an unknown verdict, and every drop, is deny."""
    return VERDICT_NAMES.get(n.verdict, "deny") if n.type != abi.NOTIFICATION_DROP else "deny"


def _flow(n: Notification) -> str:
    """10.1.0.5:40000 -> 10.2.0.6:80 tcp SYN, or 10.1.0.5 -> 10.2.0.6 icmp type 8 code 0."""
    name = protocol_name(n.protocol).lower()
    if n.protocol in ICMP:
        kind = f"type {n.dest_port >> 8} code {n.dest_port & 0xFF}"
        return f"{address_text(n.source)} -> {address_text(n.dest)} {name} {kind}"
    flow = f"{endpoint_text(n.source, n.source_port)} -> {endpoint_text(n.dest, n.dest_port)} {name}"
    return f"{flow} {', '.join(_tcp_flags(n))}".rstrip() if n.protocol == TCP else flow


def _tcp_flags(n: Notification) -> list[str]:
    return [name for bit, name in TCP_FLAGS if n.tcp_flags & bit]


def as_json(n: Notification) -> dict[str, Any]:
    """Values for a JSON encoder, numbers with their words."""
    return {
        "type": TYPE_NAMES.get(n.type, str(n.type)),
        "timestamp_ns": n.timestamp_ns,
        "policy_epoch": n.policy_epoch,
        "endpoint_id": n.endpoint_id,
        "ifindex": n.ifindex,
        "length": n.length,
        "source": {"address": address_text(n.source), "port": n.source_port, "identity": n.source_identity},
        "dest": {"address": address_text(n.dest), "port": n.dest_port, "identity": n.dest_identity},
        "protocol": protocol_name(n.protocol),
        "tcp_flags": _tcp_flags(n),
        "direction": _direction(n),
        "verdict": verdict_name(n),
        "match": MATCH_NAMES.get(n.match, str(n.match)),
        "drop_reason": n.drop_reason,
        "drop_reason_text": drop_reason_text(n.drop_reason),
        "file": FILE_NAMES.get(n.file, str(n.file)),
        "line": n.line,
    }
