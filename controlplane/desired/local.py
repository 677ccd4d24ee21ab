"""The tables that are about the node itself: its endpoints, devices, tunnel, programs, routes and neighbours.

Belongs here: putting them together, in full and after changes. Does not belong here: the rows (endpoints.py,
routes.py), and tables about the whole mesh (ipcache.py, services.py, policy.py). Pure.

Few rows, so they are remembered: a change of the node's own facts or of the settings, or the first and the last backend
in the node's own network, is rare, can reach all of them, and is a comparison of everything with everything. Any other
change costs what it reaches.
"""

from collections.abc import Sequence
from typing import Any

from controlplane.desired.endpoints import (
    LocalDevices,
    attachment_rows,
    device_row,
    endpoint_row,
    socket_hook_rows,
    underlay_programs,
)
from controlplane.desired.policy_inputs import policy_settings
from controlplane.desired.routes import endpoint_neighbours, endpoint_routes, node_neighbours, node_routes
from controlplane.desired.shaping import shaped, shaper_keys, shaper_rows
from controlplane.desired.underlay import node_addresses
from controlplane.model import Endpoint, EndpointKey, Node, NodeKey
from controlplane.projections.change import Change
from controlplane.projections.state import State
from datapath import tables as t
from datapath.codec import address_bytes
from datapath.tables import DeviceKey
from datapath.tables import EndpointKey as AddressKey

LOCAL_TABLES = (
    "endpoints", "devices", "tunnel", "attachments", "socket_hooks", "routes", "neighbours", "shapers",
)  # fmt: skip

Tables = dict[str, dict[Any, Any]]


class LocalTables:
    """One node's. `full` comes first."""

    def __init__(self, node: NodeKey) -> None:
        self._node = node
        self._devices = LocalDevices()
        self._held: Tables = {name: {} for name in LOCAL_TABLES}
        self._is_guarded = False
        self._is_answering = False
        self._own = {("node", node): None, ("settings", node.cluster): None}

    def full(self, state: State, is_answering: bool) -> Tables:
        """All rows, from nothing. `is_answering`: as ServiceCompiler has it."""
        self._is_answering = is_answering
        self._devices = LocalDevices()
        self._held = self._build(state)
        return {name: dict(rows) for name, rows in self._held.items()}

    def update(self, state: State, changes: Sequence[Change], is_answering: bool) -> Tables:
        """What becomes of the rows; None for those that go."""
        was_answering, self._is_answering = self._is_answering, is_answering
        if is_answering != was_answering or any((change.kind, change.key) in self._own for change in changes):
            return self._rebuild(state)
        changed: Tables = {name: {} for name in LOCAL_TABLES}
        addresses: dict[str, None] = {}
        ifindexes: dict[int, None] = {}
        own = state.nodes.get(self._node)
        # In the order of the log: an address or a block has one owner at a time, so the last writer of a key is right.
        for change in changes:
            if change.kind == "endpoint" and (change.key.cluster, change.key.node) == self._node:
                self._follow_endpoint(change, changed, addresses, ifindexes)
                if own is not None:
                    _follow_shapers(state, own, change, changed)
            elif change.kind == "node" and own is not None:
                _follow_node(own, change, changed)
            elif change.kind == "workload" and own is not None:
                for endpoint in self._limited_anew(state, change):
                    changed["shapers"].update(shaper_rows(state, own, endpoint))
                    ifindexes[endpoint.device.ifindex] = None
                    addresses[endpoint.ipv4] = addresses[endpoint.ipv6] = None
        if own is not None:
            self._look_up(state, own, addresses, ifindexes, changed)
        self._keep(changed)
        return changed

    def _rebuild(self, state: State) -> Tables:
        held = self._held
        self._devices = LocalDevices()
        self._held = self._build(state)
        changed: Tables = {}
        for name, rows in self._held.items():
            changed[name] = dict.fromkeys(key for key in held[name] if key not in rows)
            changed[name].update((key, row) for key, row in rows.items() if held[name].get(key) != row)
        return changed

    def _keep(self, changed: Tables) -> None:
        for name, rows in changed.items():
            held = self._held[name]
            for key, row in rows.items():
                if row is None:
                    held.pop(key, None)
                else:
                    held[key] = row

    def _build(self, state: State) -> Tables:
        tables: Tables = {name: {} for name in LOCAL_TABLES}
        self._is_guarded = policy_settings(state, self._node.cluster).host_firewall
        own = state.nodes.get(self._node)
        if own is None:
            return tables
        tables["socket_hooks"].update(socket_hook_rows(own))
        addresses = dict.fromkeys(node_addresses(own))
        ifindexes = {own.device.ifindex: None}
        if own.tunnel is not None:
            ifindexes[own.tunnel.device.ifindex] = None
            tables["tunnel"][t.TunnelKey(0)] = t.TunnelRow(own.tunnel.device.ifindex)
        for endpoint in state.endpoints_of(self._node):
            self._devices.put(EndpointKey(*self._node, endpoint.endpoint_id), endpoint.device.ifindex)
            ifindexes[endpoint.device.ifindex] = None
            addresses[endpoint.ipv4] = addresses[endpoint.ipv6] = None
            tables["routes"].update(endpoint_routes(endpoint))
            tables["neighbours"].update(endpoint_neighbours(endpoint))
            tables["shapers"].update(shaper_rows(state, own, endpoint))
        self._look_up(state, own, addresses, ifindexes, tables)
        for key in sorted(state.nodes):
            if key != self._node:
                tables["routes"].update(node_routes(own, state.nodes[key]))
                tables["neighbours"].update(node_neighbours(own, state.nodes[key]))
        return {name: {key: row for key, row in rows.items() if row is not None} for name, rows in tables.items()}

    def _follow_endpoint(
        self, change: Change, changed: Tables, addresses: dict[str, None], ifindexes: dict[int, None]
    ) -> None:
        old: Endpoint | None = change.old
        new: Endpoint | None = change.new
        if old is not None:
            self._devices.remove(change.key, old.device.ifindex)
            changed["routes"].update(dict.fromkeys(endpoint_routes(old)))
            changed["neighbours"].update(dict.fromkeys(endpoint_neighbours(old)))
        if new is not None:
            self._devices.put(change.key, new.device.ifindex)
            changed["routes"].update(endpoint_routes(new))
            changed["neighbours"].update(endpoint_neighbours(new))
        for endpoint in (old, new):
            if endpoint is not None:
                ifindexes[endpoint.device.ifindex] = None
                addresses[endpoint.ipv4] = addresses[endpoint.ipv6] = None

    def _limited_anew(self, state: State, change: Change) -> list[Endpoint]:
        """The node's endpoints of a workload whose bandwidth changes, or whether its sockets are joined."""
        old, new = (
            (each.egress_bits_s, each.ingress_bits_s, each.joins_sockets) if each else (0, 0, True)
            for each in (change.old, change.new)
        )
        if old == new:
            return []
        key = change.key
        endpoints = state.workload_endpoints.get((key.cluster, key.namespace, key.name), ())
        return [state.endpoints[each] for each in endpoints if (each.cluster, each.node) == self._node]

    def _look_up(
        self, state: State, own: Node, addresses: dict[str, None], ifindexes: dict[int, None], tables: Tables
    ) -> None:
        """The rows of these keys as the state has them; None for what is not there."""
        for address in addresses:
            if address:
                row = endpoint_row(state, self._node, address)
                tables["endpoints"][AddressKey(address_bytes(address))] = row
        for ifindex in ifindexes:
            endpoint = self._devices.endpoint_at(state, ifindex)
            tables["devices"][DeviceKey(ifindex)] = None if endpoint is None else device_row(
                endpoint, shaped(state, endpoint)
            )
            underlay = underlay_programs(self._is_guarded, self._is_answering)
            tables["attachments"].update(attachment_rows(endpoint, own, underlay, ifindex))


def _follow_shapers(state: State, own: Node, change: Change, changed: Tables) -> None:
    if change.old is not None:
        changed["shapers"].update(dict.fromkeys(shaper_keys(own, change.old)))
    if change.new is not None:
        changed["shapers"].update(shaper_rows(state, own, change.new))


def _follow_node(own: Node, change: Change, changed: Tables) -> None:
    for node, gone in ((change.old, True), (change.new, False)):
        if node is not None:
            routes, neighbours = node_routes(own, node), node_neighbours(own, node)
            changed["routes"].update(dict.fromkeys(routes) if gone else routes)
            changed["neighbours"].update(dict.fromkeys(neighbours) if gone else neighbours)
