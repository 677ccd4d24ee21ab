"""Rows of every table that the kernel's contract suite puts and reads back."""

from collections.abc import Mapping
from typing import Any

from datapath import codec, tables
from datapath.tables import NO_ADDRESS
from tests.conftest import CGROUP


def address(text: str) -> bytes:
    return codec.address_bytes(text)


def rows_of(table: str, ifindexes: tuple[int, int]) -> list[tuple[Any, Any]]:
    """Two rows of a table (of an array the one that there is), in both address families."""
    first, second = address("10.0.0.1"), address("fd00::1")
    one, two = ifindexes
    mac = b"\x02\x00\x00\x00\x00\x01"
    samples: Mapping[str, list[tuple[Any, Any]]] = {
        "endpoints": [
            (tables.EndpointKey(first), tables.EndpointRow(one, 1001, 1, 0, mac, mac)),
            (tables.EndpointKey(second), tables.EndpointRow(two, 1002, 2, 1, mac, mac)),
        ],
        "devices": [
            (tables.DeviceKey(one), tables.DeviceRow(first, NO_ADDRESS, 1001, 1, mac)),
            (tables.DeviceKey(two), tables.DeviceRow(NO_ADDRESS, second, 1002, 2, mac)),
        ],
        "ipcache": [
            (tables.IpcacheKey(120, address("10.1.0.0")), tables.IpcacheRow(first, 7, 1)),
            (tables.IpcacheKey(128, second), tables.IpcacheRow(NO_ADDRESS, 8, 0)),
        ],
        "facets": [(tables.FacetKey(each, 1001), tables.FacetRow(3 << 24 | each[15])) for each in (first, second)],
        "policy_subjects": [
            (tables.PolicySubjectKey(7), tables.PolicySubjectRow(1, 0, 3, 0)),
            (tables.PolicySubjectKey(8), tables.PolicySubjectRow(0, 1, 0, 1)),
        ],
        "policy": [
            (tables.PolicyKey(7, 8, 80, 16, 6, 0), tables.PolicyRow(1)),
            (tables.PolicyKey(7, 0, 0, 0, 0, 1), tables.PolicyRow(2)),
        ],
        "services": [
            (tables.ServiceKey(first, 80, 6), tables.ServiceRow(2**63 + 1, 3, 1)),
            (tables.ServiceKey(second, 53, 17), tables.ServiceRow(5, 0, 0)),
        ],
        "backends": [
            (tables.BackendKey(2**63 + 1, 0), tables.BackendRow(first, 8080, 0)),
            (tables.BackendKey(2**63 + 1, 1), tables.BackendRow(second, 8081, 0)),
        ],
        "maglev": [
            (tables.MaglevKey(2**63 + 1, 0), tables.MaglevRow(b"\1\2" * 512)),
            (tables.MaglevKey(2**63 + 1, 1), tables.MaglevRow(b"\3\4" * 512)),
        ],
        "source_ranges": [
            (tables.SourceRangeKey(184, 2**63 + 1, address("10.1.0.0")), tables.SourceRangeRow(1)),
            (tables.SourceRangeKey(128, 5, address("fd00::")), tables.SourceRangeRow(1)),
        ],
        "affinity_backends": [
            (tables.AffinityBackendKey(2**63 + 1, first, 8080), tables.AffinityBackendRow(1)),
            (tables.AffinityBackendKey(5, second, 8081), tables.AffinityBackendRow(0)),
        ],
        "node_state": [(tables.NodeStateKey(0), tables.NodeStateRow(42))],
        "tunnel": [(tables.TunnelKey(0), tables.TunnelRow(one))],
        "attachments": [
            (tables.AttachmentKey(one, "ingress"), tables.AttachmentRow("from_endpoint")),
            (tables.AttachmentKey(one, "egress"), tables.AttachmentRow("to_endpoint")),
        ],
        "socket_hooks": [
            (tables.SocketHookKey("connect4"), tables.SocketHookRow("socket_connect4", str(CGROUP / "one"))),
            (tables.SocketHookKey("sendmsg6"), tables.SocketHookRow("socket_sendmsg6", str(CGROUP / "one"))),
        ],
        "routes": [
            (tables.RouteKey(128, first), tables.RouteRow(one, NO_ADDRESS)),
            (tables.RouteKey(128, second), tables.RouteRow(two, NO_ADDRESS)),
        ],
        "shapers": [(tables.ShaperKey(one, 11), tables.ShaperRow(1_250_000)), (tables.ShaperKey(one, 12), tables.ShaperRow(1 << 33))],
        "neighbours": [(tables.NeighbourKey(*each), tables.NeighbourRow(mac)) for each in ((one, first), (two, second))],
    }
    return samples[table]


def other_row(table: str, ifindexes: tuple[int, int]) -> Any:
    """Another row for the first key."""
    row = rows_of(table, ifindexes)[0][1]
    changes = {
        "endpoints": {"identity": 9}, "devices": {"identity": 9}, "ipcache": {"identity": 9},
        "facets": {"facet": 9}, "policy_subjects": {"egress_enforced": 1}, "policy": {"verdict": 2}, "services": {"count": 9},
        "backends": {"port": 9}, "maglev": {"slots": b"\5\6" * 512}, "source_ranges": {"contained": 9},
        "affinity_backends": {"slot": 9}, "node_state": {"policy_epoch": 43}, "tunnel": {"ifindex": ifindexes[1]},
        "attachments": {"program": "from_network"}, "socket_hooks": {"cgroup": str(CGROUP / "two")},
        "routes": {"ifindex": ifindexes[1]}, "shapers": {"rate_bytes_s": 9_000}, "neighbours": {"mac": b"\x02\x00\x00\x00\x00\x09"},
    }  # fmt: skip
    return row._replace(**changes[table])


def encoded(table: str, ifindexes: tuple[int, int]) -> list[tuple[bytes, bytes]]:
    """rows_of in bytes."""
    return [(codec.encode_key(table, k), codec.encode_row(table, r)) for k, r in rows_of(table, ifindexes)]
