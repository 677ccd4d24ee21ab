"""A notification of a node as a flow of Hubble's: the shape that filters and printers of `observe` work on, and that
its JSON has. Pure.

Belongs here: Hubble's field names and words. Does not belong here: choosing (flow_filters.py), printing
(flow_forms.py).
What Hubble has no field for stands under `extensions`: the revision in force, the endpoint's number, the device.
"""

from datetime import UTC, datetime
from typing import Any

Flow = dict[str, Any]

DROP, POLICY_VERDICT, TRACE = 1, 5, 4
"""Numbers of event types."""
TYPES = {"drop": DROP, "verdict": POLICY_VERDICT, "trace": TRACE}
VERDICTS = {"allow": "FORWARDED", "audit": "AUDIT", "deny": "DROPPED"}
MATCHES = {"none": 0, "L3-Only": 1, "L3-L4": 2, "L4-Only": 3, "all": 4, "L3-Proto": 5, "Proto-Only": 6}
DIRECTIONS = {"ingress": "INGRESS", "egress": "EGRESS"}
ICMP = {"ICMP": "ICMPv4", "ICMPV6": "ICMPv6"}
ICMP_TYPES = {
    ("ICMPv4", 0): "EchoReply", ("ICMPv4", 3): "DestinationUnreachable", ("ICMPv4", 8): "EchoRequest",
    ("ICMPv4", 11): "TimeExceeded", ("ICMPv6", 1): "DestinationUnreachable", ("ICMPv6", 2): "PacketTooBig",
    ("ICMPv6", 3): "TimeExceeded", ("ICMPv6", 128): "EchoRequest", ("ICMPv6", 129): "EchoReply",
    ("ICMPv6", 135): "NeighborSolicitation", ("ICMPv6", 136): "NeighborAdvertisement",
}  # fmt: skip
EXTENSION = "type.googleapis.com/google.protobuf.Struct"
"""What an extension of any shape is called in Hubble's JSON."""


def flow_of(told: dict[str, Any]) -> Flow:
    """Of one line of /v1/monitor that is a drop, a verdict or a trace."""
    get = told.get
    dropped = told["type"] == "drop"
    flow: Flow = {
        "time": time_text(get("wall_time_ns", 0)),
        "verdict": "DROPPED" if dropped else VERDICTS.get(get("verdict", ""), "FORWARDED"),
        "IP": {"source": told["source"], "destination": told["target"],
               "ipVersion": "IPv6" if ":" in told["source"] else "IPv4"},
        "l4": _l4(told),
        "source": _end(told, "source", get("direction") == "egress"),
        "destination": _end(told, "target", get("direction") == "ingress"),
        "Type": "L3_L4",
        "node_name": "/".join(name for name in (get("cluster", ""), get("node", "")) if name),
        "event_type": {"type": TYPES.get(told["type"], TRACE)},
        "traffic_direction": DIRECTIONS.get(get("direction", ""), "TRAFFIC_DIRECTION_UNKNOWN"),
    }  # fmt: skip
    if dropped:
        flow["event_type"]["sub_type"] = get("reason_code", 0)
    elif told["type"] == "verdict":
        flow["policy_match_type"] = MATCHES.get(get("match", ""), 0)
        flow["is_reply"] = False
    if get("reason_code"):
        flow["drop_reason"] = get("reason_code")
        flow["drop_reason_desc"] = get("reason_name", "")
    flow["Summary"] = summary(flow)
    flow["extensions"] = {"@type": EXTENSION, "value": _own(told)}
    return flow


def _own(told: dict[str, Any]) -> dict[str, Any]:
    of_drop = ("reason", "file", "line") if told["type"] == "drop" else ()
    names = ("policy_epoch", "endpoint_id", "ifindex", "length", *of_drop)
    return {name: told[name] for name in names if told.get(name)}


def own(flow: Flow) -> dict[str, Any]:
    """What Meshlog tells beside what Hubble has; {} of a flow that is Hubble's."""
    found = flow.get("extensions") or {}
    value = found.get("value") if isinstance(found, dict) else None
    return value if isinstance(value, dict) else {}


def time_text(time_ns: int) -> str:
    """RFC 3339 with nanoseconds, UTC."""
    seconds, rest = divmod(time_ns, 1_000_000_000)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{rest:09d}Z"


def time_ns(flow: Flow) -> int:
    """Since the epoch; 0 where there is no time that can be read."""
    text = str(flow.get("time", ""))
    whole, _, rest = text.removesuffix("Z").partition(".")
    try:
        moment = datetime.fromisoformat(whole if text.endswith("Z") else text)
    except ValueError:
        return 0
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    digits = rest if text.endswith("Z") else ""
    return int(moment.timestamp()) * 1_000_000_000 + int(digits[:9].ljust(9, "0") if digits.isdigit() else 0)


def _end(told: dict[str, Any], side: str, is_here: bool) -> dict[str, Any]:
    namespace, _, pod = told.get(f"{side}_name", "").partition("/")
    found = {
        "ID": told.get("endpoint_id", 0) if is_here else 0,
        "identity": told.get(f"{side}_identity", 0),
        "cluster_name": told.get(f"{side}_cluster", ""),
        "namespace": namespace,
        "labels": list(told.get(f"{side}_labels", ())),
        "pod_name": pod,
    }
    return {name: value for name, value in found.items() if value}


def _l4(told: dict[str, Any]) -> dict[str, Any]:
    protocol = told.get("protocol", "")
    source, target = told.get("source_port", 0), told.get("target_port", 0)
    if protocol in ICMP:
        return {ICMP[protocol]: {"type": target >> 8, "code": target & 0xFF}}
    ports: dict[str, Any] = {"source_port": source, "destination_port": target}
    if protocol == "TCP" and told.get("tcp_flags"):
        ports["flags"] = dict.fromkeys(told["tcp_flags"].split(","), True)
    return {protocol: ports}


def layer4(flow: Flow) -> tuple[str, dict[str, Any]]:
    """Name and fields of the transport; "" and {} where there is none."""
    found = flow.get("l4") or {}
    return next(((name, fields or {}) for name, fields in found.items()), ("", {}))


def summary(flow: Flow) -> str:
    """Hubble's last column: flags of TCP, kind of ICMP, else the protocol."""
    name, fields = layer4(flow)
    if name == "TCP" and fields.get("flags"):
        return f"TCP Flags: {', '.join(flag for flag, is_set in fields['flags'].items() if is_set)}"
    if name in ICMP.values():
        number, code = fields.get("type", 0), fields.get("code", 0)
        return f"{name} {ICMP_TYPES.get((name, number), f'Type {number} Code {code}')}"
    return name
