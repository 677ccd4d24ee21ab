"""Rows of kernel tables and things of the mesh, as fields that a person can read. Pure.

Belongs here: typed rows and structs to dicts of plain values. Does not belong here: comparing them (changes.py).
"""

from typing import Any

import msgspec

from controlplane.model import EndpointKey, NodeKey, ObjectKey
from datapath import codec
from datapath.abi.types import ENUMS, SERVICE_SCOPE_EXTERNAL
from datapath.addressing import protocol_name
from datapath.tables import NO_ADDRESS

FLAG_ENUMS = {
    "endpoints": "endpoint_flag",
    "ipcache": "ipcache_flag",
    "services": "service_flag",
    "backends": "backend_flag",
}
MAC_BYTES = (6, 8)
SET_BITS = 64
"""Of a source range's prefix: the set that it is in."""


def row_name(table: str, key: Any) -> str:
    """A key in one line, as it can be typed: "10.1.0.5/32", "10.96.0.4:80/TCP", or field=value pairs. A frontend as the
    network sees it has "/external" at its end."""
    if table == "services":
        address = codec.address_text(key.address)
        scope = "/external" if key.scope == SERVICE_SCOPE_EXTERNAL else ""
        return f"{f'[{address}]' if ':' in address else address}:{key.port}/{protocol_name(key.protocol)}{scope}"
    fields = row_fields(table, key)
    if len(fields) == 1:
        return str(next(iter(fields.values())))
    return " ".join(f"{name}={value}" for name, value in fields.items())


def row_fields(table: str, row: Any) -> dict[str, Any]:
    """A typed key or row."""
    fields = row._asdict()
    if "prefix_length" in fields:
        skipped = SET_BITS if table == "source_ranges" else 0
        length, address = fields.pop("prefix_length") - skipped, fields.pop("address")
        fields = {"prefix": codec.prefix_text(length, address), **fields}
    return {name: _field(table, name, value) for name, value in fields.items()}


def _field(table: str, name: str, value: Any) -> Any:
    if isinstance(value, bytes):
        if len(value) == 16:
            return "" if value == NO_ADDRESS else codec.address_text(value)
        return ":".join(f"{octet:02x}" for octet in value[:6]) if len(value) in MAC_BYTES else value.hex()
    if name == "flags" and table in FLAG_ENUMS:
        enum = FLAG_ENUMS[table]
        names = [flag.lower() for flag, bit in ENUMS[enum].items() if bit and value & bit == bit]
        return [flag.removeprefix(enum.removesuffix("flag")) for flag in names]
    if name == "direction":
        return _constant("policy_direction", value, "POLICY_")
    if name == "verdict":
        return _constant("policy_verdict", value, "POLICY_VERDICT_")
    if name == "protocol":
        return protocol_name(value) if value else "ANY"
    if name == "scope":
        return _constant("service_scope", value, "SERVICE_SCOPE_")
    if name in ("backend_set", "source_range_set"):
        return f"{value:016x}"
    return value


def _constant(enum: str, number: int, prefix: str) -> Any:
    for name, value in ENUMS[enum].items():
        if value == number:
            return name.removeprefix(prefix).lower()
    return number


def thing_name(kind: str, key: Any, value: Any = None) -> str:
    """A thing's key in one line: "east/n1", "east:shop/cart"; of an endpoint whose value is given, its workload too."""
    if kind == "endpoint" and value is not None:
        return f"{thing_name(kind, key)} ({value.namespace}/{value.workload})"
    if isinstance(key, ObjectKey):
        place = f"{key.namespace}/{key.name}" if key.namespace else key.name
        return f"{key.cluster}:{place}" if kind != "policy" else f"{key.cluster}:{key.kind}/{place}"
    if isinstance(key, (NodeKey, EndpointKey)):
        return "/".join(str(part) for part in key)
    return str(key)


def thing_fields(value: Any) -> dict[str, Any]:
    """A noun of model.py by its fields' names; of a text, the text."""
    if isinstance(value, str):
        return {"document": value}
    return {name: plain(getattr(value, name)) for name in value.__struct_fields__}


def plain(value: Any) -> Any:
    """Values that JSON has."""
    if isinstance(value, msgspec.Struct):
        return thing_fields(value)
    if isinstance(value, (tuple, list)):
        return [plain(each) for each in value]
    if isinstance(value, dict):
        return {str(key): plain(each) for key, each in value.items()}
    return value
