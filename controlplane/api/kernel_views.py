"""What the kernel holds, as rows that a person can read. Pure.

Belongs here: bytes of tables and runtime maps -> dicts with addresses as text and names for numbers; notifications.
Does not belong here: reading the kernel, printing.
"""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from datapath import codec
from datapath.abi.types import AFFINITY_CLIENT_NETNS, BACKEND_TERMINATING, ENUMS
from datapath.addressing import protocol_name
from datapath.affinity import decode_affinity, netns_cookie
from datapath.conntrack import decode_entry
from datapath.orphans import decode_nat
from datapath.tables import NO_ADDRESS

ANY_PROTOCOL = "ANY"
SET_BITS = 64
"""Of a source range's prefix: the set that it is in."""
TCP_FLAGS = ("FIN", "SYN", "RST", "PSH", "ACK", "URG", "ECE", "CWR")

KIND_TABLES: Mapping[str, tuple[str, ...]] = {
    "endpoint": ("endpoints",),
    "ipcache": ("ipcache",),
    "policy": ("policy", "policy_subjects"),
    "lb": ("services", "backends", "source_ranges"),
}
"""What has to be dumped for a kind; "ct", "nat", "affinity" and "metrics" are runtime maps."""
KIND_RUNTIME_MAPS: Mapping[str, str] = {
    "ct": "conntrack", "nat": "nat", "affinity": "affinity", "metrics": "metrics",
}  # fmt: skip

Rows = Mapping[bytes, bytes]
Row = dict[str, Any]


class MetricsKey(NamedTuple):
    index: int  # type: ignore[assignment]


class MetricsRow(NamedTuple):
    packets: int
    bytes: int


_metrics_key = codec.struct_codec(MetricsKey)
_metrics_row = codec.struct_codec(MetricsRow)


def constant_name(enum: str, number: int, prefix: str = "") -> str:
    """The constant's name in lower case and in words, or the number where it has none."""
    for name, value in ENUMS[enum].items():
        if value == number:
            return name.removeprefix(prefix).lower().replace("_", " ")
    return str(number)


def flag_names(enum: str, flags: int, prefix: str) -> list[str]:
    """The names of the bits that are set."""
    names = [name for name, bit in ENUMS[enum].items() if bit and flags & bit == bit]
    return [name.removeprefix(prefix).lower() for name in names]


def policy_protocol(protocol: int) -> str:
    """ "TCP"; of a policy row, 0 stands for any."""
    return protocol_name(protocol) if protocol else ANY_PROTOCOL


def address_or_empty(address: bytes) -> str:
    """ "" for the address of zeros."""
    return "" if address == NO_ADDRESS else codec.address_text(address)


def mac_text(mac: bytes) -> str:
    """02:00:..."""
    return ":".join(f"{octet:02x}" for octet in mac[:6])


def kernel_rows(kind: str, tables: Mapping[str, Rows]) -> list[Row]:
    """The rows of a kind, sorted. `tables` holds the dumps that KIND_TABLES names. Raises KeyError."""
    return _VIEWS[kind](tables)


def conntrack_rows(entries: Iterable[tuple[bytes, bytes]], now_ns: int) -> list[Row]:
    """Flows as their initiator sees them; `expires_s` may be negative of one that waits for its removal."""
    return sorted((_conntrack(key, value, now_ns) for key, value in entries), key=_flow_order)


def nat_rows(entries: Iterable[tuple[bytes, bytes]]) -> list[Row]:
    """Masqueraded flows: two rows each, one for each way."""
    return sorted((_nat(key, value) for key, value in entries), key=_nat_order)


def affinity_rows(entries: Iterable[tuple[bytes, bytes]], now_ns: int) -> list[Row]:
    """Which backend each client was sent to last; `idle_s`: how long ago."""
    return sorted((_affinity(key, value, now_ns) for key, value in entries), key=_affinity_order)


def metrics_rows(entries: Iterable[tuple[bytes, bytes]]) -> list[Row]:
    """Counters summed over CPUs; those that never counted are left out."""
    rows = []
    for key, value in entries:
        packets, octets = _sum_cpus(value)
        if not packets:
            continue
        index = _metrics_key.decode(key).index
        reason = index >> 2
        rows.append(
            {
                "reason": "forwarded" if reason == 0 else constant_name("drop_reason", reason),
                "reason_code": reason,
                "direction": constant_name("traffic_direction", index & 3, "TRAFFIC_"),
                "packets": packets,
                "bytes": octets,
            }
        )
    return sorted(rows, key=lambda row: (row["reason_code"], row["direction"]))


def readable_key(table: str, key: Any) -> str:
    """A typed key (or its bytes) in one line: "prefix=10.1.0.5/32"."""
    if isinstance(key, bytes):
        return key.hex()
    fields = key._asdict()
    if "prefix_length" in fields:
        return f"prefix={codec.prefix_text(fields['prefix_length'], fields['address'])}"
    return " ".join(f"{name}={_readable(value)}" for name, value in fields.items())


def _readable(value: Any) -> str:
    if isinstance(value, bytes):
        return codec.address_text(value) if len(value) == 16 else mac_text(value)
    return f"{value:016x}" if isinstance(value, int) and value > 1 << 32 else str(value)


def _sum_cpus(value: bytes) -> tuple[int, int]:
    size = _metrics_row.size
    rows = [_metrics_row.decode(value[start : start + size]) for start in range(0, len(value), size)]
    return sum(row.packets for row in rows), sum(row.bytes for row in rows)


def _decoded(table: str, rows: Rows) -> list[tuple[Any, Any]]:
    return [(codec.decode_key(table, key), codec.decode_row(table, row)) for key, row in sorted(rows.items())]


def _endpoints(tables: Mapping[str, Rows]) -> list[Row]:
    return [
        {
            "address": codec.address_text(key.address),
            "endpoint_id": row.endpoint_id,
            "identity": row.identity,
            "ifindex": row.ifindex,
            "mac": mac_text(row.mac),
            "host_mac": mac_text(row.host_mac),
            "flags": flag_names("endpoint_flag", row.flags, "ENDPOINT_"),
        }
        for key, row in _decoded("endpoints", tables["endpoints"])
    ]


def _ipcache(tables: Mapping[str, Rows]) -> list[Row]:
    return [
        {
            "prefix": codec.prefix_text(key.prefix_length, key.address),
            "identity": row.identity,
            "node": address_or_empty(row.node),
            "flags": flag_names("ipcache_flag", row.flags, "IPCACHE_"),
        }
        for key, row in _decoded("ipcache", tables["ipcache"])
    ]


def _policy(tables: Mapping[str, Rows]) -> list[Row]:
    rows: list[Row] = [
        {
            "subject_identity": key.subject_identity,
            "direction": constant_name("policy_direction", key.direction, "POLICY_"),
            "verdict": constant_name("policy_verdict", row.verdict, "POLICY_VERDICT_"),
            "remote_identity": key.remote_identity,
            "port": key.port,
            "port_prefix": key.port_prefix,
            "protocol": policy_protocol(key.protocol),
        }
        for key, row in _decoded("policy", tables["policy"])
    ]
    for key, row in _decoded("policy_subjects", tables["policy_subjects"]):
        for direction in ("ingress", "egress"):
            if getattr(row, f"{direction}_enforced"):
                rows.append(
                    {
                        "subject_identity": key.identity,
                        "direction": direction,
                        "verdict": "default deny",
                        "remote_identity": 0,
                        "port": 0,
                        "port_prefix": 0,
                        "protocol": ANY_PROTOCOL,
                    }
                )
    order = ("subject_identity", "direction", "verdict", "remote_identity", "protocol", "port")
    return sorted(rows, key=lambda row: tuple(row[name] for name in order))


def _services(tables: Mapping[str, Rows]) -> list[Row]:
    slots: dict[int, list[tuple[int, Any]]] = {}
    for key, row in _decoded("backends", tables["backends"]):
        slots.setdefault(key.backend_set, []).append((key.slot, row))
    ranges: dict[int, list[str]] = {}
    for key, _ in _decoded("source_ranges", tables["source_ranges"]):
        prefix = codec.prefix_text(key.prefix_length - SET_BITS, key.address)
        ranges.setdefault(key.source_range_set, []).append(prefix)
    return [
        _service(key, row, slots.get(row.backend_set, []), ranges.get(row.source_range_set, []))
        for key, row in _decoded("services", tables["services"])
    ]


def _service(key: Any, row: Any, slots: list[tuple[int, Any]], ranges: list[str]) -> Row:
    there = sum(slot < row.count for slot, _ in slots)
    return {
        "address": codec.address_text(key.address),
        "port": key.port,
        "protocol": protocol_name(key.protocol),
        "scope": constant_name("service_scope", key.scope, "SERVICE_SCOPE_"),
        "backend_set": f"{row.backend_set:016x}",
        "count": row.count,
        "flags": flag_names("service_flag", row.flags, "SERVICE_"),
        "affinity_s": row.affinity_s,
        "maglev_slots": row.maglev_slots,
        "source_ranges": ranges,
        "backends": [_service_backend(backend) for slot, backend in sorted(slots)],
        "backends_missing": row.count - there,
    }


def _service_backend(backend: Any) -> Row:
    return {
        "address": codec.address_text(backend.address),
        "port": backend.port,
        "state": "terminating" if backend.flags & BACKEND_TERMINATING else "active",
    }


def _affinity(key: bytes, value: bytes, now_ns: int) -> Row:
    found, row = decode_affinity(key, value)
    by_netns = found.client_kind == AFFINITY_CLIENT_NETNS
    return {
        "client": f"netns {netns_cookie(found.client)}" if by_netns else codec.address_text(found.client),
        "address": codec.address_text(found.frontend),
        "port": found.port,
        "protocol": protocol_name(found.protocol),
        "backend": codec.address_text(row.address),
        "backend_port": row.port,
        "idle_s": round((now_ns - row.last_used_ns) / 1e9, 1),
    }


def _affinity_order(row: Row) -> tuple[Any, ...]:
    return (row["address"], row["port"], row["protocol"], row["client"])


def _conntrack(key: bytes, value: bytes, now_ns: int) -> Row:
    flow, row = decode_entry(key, value)
    low, high = (flow.low, flow.low_port), (flow.high, flow.high_port)
    flags = flag_names("conntrack_flag", row.flags, "CONNTRACK_")
    source, target = (high, low) if "initiator_high" in flags else (low, high)
    return {
        "protocol": protocol_name(flow.protocol),
        "source": codec.address_text(source[0]),
        "source_port": source[1],
        "target": codec.address_text(target[0]),
        "target_port": target[1],
        "translated": address_or_empty(row.translated),
        "translated_port": row.translated_port,
        "source_identity": row.source_identity,
        "expires_s": round((row.expires_ns - now_ns) / 1e9, 1),
        "policy_epoch": row.policy_epoch,
        "forward_packets": row.forward_packets,
        "forward_bytes": row.forward_bytes,
        "reply_packets": row.reply_packets,
        "reply_bytes": row.reply_bytes,
        "forward_tcp_flags": tcp_flag_text(row.forward_tcp_flags),
        "reply_tcp_flags": tcp_flag_text(row.reply_tcp_flags),
        "flags": [flag for flag in flags if flag != "initiator_high"],
    }


def _nat(key: bytes, value: bytes) -> Row:
    flow, row = decode_nat(key, value)
    return {
        "direction": constant_name("nat_direction", flow.direction, "NAT_"),
        "protocol": protocol_name(flow.protocol),
        "near": codec.address_text(flow.near),
        "near_port": flow.near_port,
        "far": codec.address_text(flow.far),
        "far_port": flow.far_port,
        "translated": codec.address_text(row.address),
        "translated_port": row.port,
    }


def _nat_order(row: Row) -> tuple[Any, ...]:
    return (row["direction"] != "outbound", row["protocol"], row["near"], row["near_port"], row["far"], row["far_port"])


def _flow_order(row: Row) -> tuple[Any, ...]:
    return (row["protocol"], row["source"], row["source_port"], row["target"], row["target_port"])


def tcp_flag_text(flags: int) -> str:
    """ "SYN,ACK"."""
    return ",".join(name for bit, name in enumerate(TCP_FLAGS) if flags >> bit & 1)


_VIEWS = {"endpoint": _endpoints, "ipcache": _ipcache, "policy": _policy, "lb": _services}
