"""Entries of the programs that outlived what they stand for: flows and sockets to a backend that left, ports without
a flow.

Belongs here: judging them, from bytes. Does not belong here: reading and removing them (conntrack_gc.py), lifetimes
(conntrack.py). Pure.
"""

import itertools
import struct
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from datapath import codec
from datapath.abi import types as abi
from datapath.conntrack import ConntrackKey, decode_entry, encode_key, is_expired
from datapath.tables import BackendKey, BackendRow, IpcacheKey, ServiceKey, ServiceRow

TCP, UDP = 6, 17
End = tuple[bytes, int]
"""An address and a port."""

_FLAGS = struct.Struct("=H")
_FLAGS_AT = next(field.offset for field in abi.STRUCTS["conntrack_row"].fields if field.name == "flags")
TRANSLATED = abi.CONNTRACK_DNAT | abi.CONNTRACK_REVERSE_DNAT


class NatKey(NamedTuple):
    """The end of this side, the endpoint's or the node's, and the end outside the mesh."""

    near: bytes
    far: bytes
    near_port: int
    far_port: int
    protocol: int
    direction: int


class NatRow(NamedTuple):
    address: bytes
    port: int


class SocketFlowKey(NamedTuple):
    """A socket, and the backend that it was sent to."""

    socket_cookie: int
    backend: bytes
    backend_port: int
    protocol: int


class SocketFlowRow(NamedTuple):
    """The frontend that it asked for."""

    frontend: bytes
    frontend_port: int
    flags: int


_SOCKET_KEY = codec.struct_codec(SocketFlowKey)
_SOCKET_ROW = codec.struct_codec(SocketFlowRow)
_NAT_KEY = codec.struct_codec(NatKey)
_NAT_ROW = codec.struct_codec(NatRow)


def decode_nat(key: bytes, value: bytes) -> tuple[NatKey, NatRow]:
    """Raises ValueError for bytes of another length."""
    return _NAT_KEY.decode(key), _NAT_ROW.decode(value)


def flow_key(protocol: int, one: End, other: End) -> bytes:
    """The bytes of a flow's conntrack key: its ends in order."""
    low, high = sorted((one, other))
    return encode_key(ConntrackKey(low[0], high[0], low[1], high[1], protocol))


def idle_ports(nat: Iterable[tuple[bytes, bytes]], conntrack: Mapping[bytes, bytes], now_ns: int) -> list[bytes]:
    """Keys of nat entries whose flow has no conntrack entry any more, or an expired one. `nat` must have been read
    before `conntrack`: a flow that begins in between is then no idle one."""
    idle = []
    for key, value in nat:
        decoded, row = decode_nat(key, value)
        is_outbound = decoded.direction == abi.NAT_OUTBOUND
        endpoint = (decoded.near, decoded.near_port) if is_outbound else (row.address, row.port)
        entry = conntrack.get(flow_key(decoded.protocol, endpoint, (decoded.far, decoded.far_port)))
        if entry is None or is_expired(entry, now_ns):
            idle.append(key)
    return idle


class Backends:
    """Who serves which frontend, from the rows that the kernel holds."""

    def __init__(
        self, services: Mapping[bytes, bytes], backends: Mapping[bytes, bytes], ipcache: Mapping[bytes, bytes]
    ) -> None:
        self._services = services
        self._backends = backends
        self._ipcache = ipcache
        self._known: dict[tuple[int, End], frozenset[End]] = {}
        self._known_ports: dict[tuple[int, int], frozenset[End]] = {}

    def of(self, protocol: int, frontend: End) -> frozenset[End]:
        """Empty where there is no such frontend."""
        found = self._known.get((protocol, frontend))
        if found is None:
            found = self._known[protocol, frontend] = frozenset(self._read(protocol, frontend))
        return found

    def of_node_port(self, protocol: int, port: int) -> frozenset[End]:
        """Of the node port of this number, whichever of the node's addresses its rows stand under."""
        known = self._known_ports.get((protocol, port))
        if known is not None:
            return known
        found: set[End] = set()
        for raw, value in self._services.items():
            key: ServiceKey = codec.decode_key("services", raw)
            service: ServiceRow = codec.decode_row("services", value)
            if (key.protocol, key.port) == (protocol, port) and service.flags & abi.SERVICE_NODE_PORT:
                found.update(self._members(service.backend_set))
        self._known_ports[protocol, port] = frozenset(found)
        return self._known_ports[protocol, port]

    def is_in_mesh(self, address: bytes) -> bool:
        """Whether an endpoint or a node has the address."""
        return codec.encode_key("ipcache", IpcacheKey(128, address)) in self._ipcache

    def _read(self, protocol: int, frontend: End) -> Iterable[End]:
        """Whichever side asks; also those that only keep the flows that they have."""
        for scope in abi.ENUMS["service_scope"].values():
            value = self._services.get(codec.encode_key("services", ServiceKey(*frontend, protocol, scope)))
            if value is not None:
                service: ServiceRow = codec.decode_row("services", value)
                yield from self._members(service.backend_set)

    def _members(self, backend_set: int) -> Iterable[End]:
        for slot in itertools.count():
            found = self._backends.get(codec.encode_key("backends", BackendKey(backend_set, slot)))
            if found is None:
                return
            backend: BackendRow = codec.decode_row("backends", found)
            yield backend.address, backend.port


def departed_flows(conntrack: Iterable[tuple[bytes, bytes]], backends: Backends) -> list[bytes]:
    """Keys of entries, both of each flow, that lead to a backend which does not serve the frontend any more.

    A TCP connection to an endpoint that is still there may end in its own time: it was only taken out of the
    service. Its peer would not know of any other; datagrams go to those that serve.
    """
    departed = []
    flags_of = _FLAGS.unpack_from
    for key, value in conntrack:
        if not flags_of(value, _FLAGS_AT)[0] & TRANSLATED:
            continue
        flow, row = decode_entry(key, value)
        ends = (flow.low, flow.low_port), (flow.high, flow.high_port)
        responder = ends[0] if row.flags & abi.CONNTRACK_INITIATOR_HIGH else ends[1]
        translated = (row.translated, row.translated_port)
        frontend, backend = (responder, translated) if row.flags & abi.CONNTRACK_DNAT else (translated, responder)
        # Another node's port, which that node sent on here: the own one of this number has the same backends.
        serving = backends.of(flow.protocol, frontend) or backends.of_node_port(flow.protocol, frontend[1])
        if backend in serving:
            continue
        if flow.protocol != TCP or not backends.is_in_mesh(backend[0]):
            departed.append(key)
    return departed


def departed_sockets(flows: Iterable[tuple[bytes, bytes]], backends: Backends) -> dict[bytes, int]:
    """Keys of socket_flows whose datagrams would go to a backend that does not serve the frontend any more, with the
    cookie of the socket. A TCP connection ends in its own time."""
    departed = {}
    for raw, value in flows:
        key: SocketFlowKey = _SOCKET_KEY.decode(raw)
        if key.protocol != UDP:
            continue
        row: SocketFlowRow = _SOCKET_ROW.decode(value)
        if row.flags & abi.SOCKET_FLOW_NODE_PORT:
            serving = backends.of_node_port(key.protocol, row.frontend_port)
        else:
            serving = backends.of(key.protocol, (row.frontend, row.frontend_port))
        if (key.backend, key.backend_port) not in serving:
            departed[raw] = key.socket_cookie
    return departed


RowsOf = Callable[[str], Mapping[bytes, bytes]]
"""What the kernel holds of a table, as was written."""


def backends_of(rows_of: RowsOf) -> Backends:
    """From the three tables that tell."""
    return Backends(rows_of("services"), rows_of("backends"), rows_of("ipcache"))
