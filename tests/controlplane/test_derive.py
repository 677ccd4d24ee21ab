"""The rows that one node gets, table by table."""

from collections.abc import Mapping
from typing import Any

import msgspec

from controlplane import events as e
from controlplane.commands.endpoint import ConfigureEndpoint, RelabelEndpoint
from controlplane.commands.service import ApplyService, ReportBackends
from controlplane.commands.types import Author
from controlplane.commands.workload import ApplyWorkload
from controlplane.desired.derive import Deriver
from controlplane.model import Backend, Endpoint, NodeKey, ServicePort
from controlplane.projections.state import State
from controlplane.projections.workloads import workload_key
from datapath import tables as t
from datapath.abi.types import (
    DEVICE_AUDITED,
    DEVICE_SHAPED_EGRESS,
    DEVICE_SHAPED_INGRESS,
    ENDPOINT_AUDITED,
    ENDPOINT_HOST,
    ENDPOINT_JOINED,
    ENDPOINT_SHAPED,
    IPCACHE_REMOTE_ENDPOINT,
    SERVICE_CLUSTER_IP,
)
from datapath.codec import address_bytes, address_text, prefix_bytes
from tests.controlplane.random_mesh import Log
from tests.controlplane.small_mesh import UNDERLAY_IFINDEX, accept, add_endpoint, mesh, packed, table

TCP = 6
HTTP = ServicePort("http", 80, "TCP", 8080)
EAST, WEST = Author("east", "operator"), Author("west", "operator")


def backends_of(log: Log, address: str, port: int = 80, cluster: str = "east") -> list[tuple[str, int]]:
    """Addresses and ports behind a frontend, in the order of their slots."""
    row = table(log, "services", cluster)[t.ServiceKey(packed(address), port, TCP)]
    rows = table(log, "backends", cluster)
    found = [rows[t.BackendKey(row.backend_set, slot)] for slot in range(row.count)]
    return [(address_text(backend.address), backend.port) for backend in found]


def service(name: str, cluster: str, **fields: object) -> ApplyService:
    given = {"cluster_ips": ("172.1.0.10" if cluster == "east" else "172.2.0.10",), "ports": (HTTP,)}
    return ApplyService("shop", name, **{**given, "selector": {"app": name}, **fields})  # type: ignore[arg-type]


def test_local_endpoint_rows() -> None:
    """Both addresses lead to the device; the device says whose it is."""
    log = mesh()
    endpoint = add_endpoint(log, "east", "n1", "web", 11)
    mac, host_mac = bytes.fromhex("02000000000b"), bytes.fromhex("02000100000b")
    row = t.EndpointRow(11, endpoint.identity, endpoint.endpoint_id, 0, mac, host_mac)
    rows = table(log, "endpoints")
    assert rows[t.EndpointKey(packed(endpoint.ipv4))] == rows[t.EndpointKey(packed(endpoint.ipv6))] == row
    assert table(log, "devices") == {
        t.DeviceKey(11): t.DeviceRow(
            packed(endpoint.ipv4), packed(endpoint.ipv6), endpoint.identity, endpoint.endpoint_id, mac
        )
    }


def test_audit_of_an_endpoint_is_in_its_rows_alone() -> None:
    """Of its addresses and of its device, also when it takes other labels; not of another of the same identity."""
    log = mesh()
    audited = add_endpoint(log, "east", "n1", "web", 11, app="web")
    add_endpoint(log, "east", "n1", "twin", 12, app="web")
    accept(log, EAST, ConfigureEndpoint("n1", audited.endpoint_id, True))
    accept(log, EAST, ApplyWorkload("shop", "web", {"app": "other"}))
    accept(log, Author("east", "node.n1"), RelabelEndpoint("n1", audited.endpoint_id))
    devices = table(log, "devices")
    assert [devices[t.DeviceKey(ifindex)].flags for ifindex in (11, 12)] == [DEVICE_AUDITED, 0]
    assert table(log, "endpoints")[t.EndpointKey(packed(audited.ipv4))].flags == ENDPOINT_AUDITED
    accept(log, EAST, ConfigureEndpoint("n1", audited.endpoint_id, False))
    assert table(log, "devices")[t.DeviceKey(11)].flags == 0


def test_the_node_is_an_endpoint_of_its_own() -> None:
    """With its underlay addresses and its routers', for the host stack."""
    rows = table(mesh(), "endpoints")
    own = ("192.168.0.1", "fd02::1", "10.1.1.1", "fd00:1:0:1::1")
    assert rows == {
        t.EndpointKey(packed(address)): t.EndpointRow(0, 1, 0, ENDPOINT_HOST, bytes(6), bytes(6)) for address in own
    }


def test_programs_are_attached_to_endpoints_and_underlay() -> None:
    """from_endpoint and to_endpoint at each endpoint's device, from_network at the underlay's."""
    log = mesh()
    add_endpoint(log, "east", "n1", "web", 11)
    assert table(log, "attachments") == {
        t.AttachmentKey(11, "ingress"): t.AttachmentRow("from_endpoint"),
        t.AttachmentKey(11, "egress"): t.AttachmentRow("to_endpoint"),
        t.AttachmentKey(UNDERLAY_IFINDEX, "ingress"): t.AttachmentRow("from_network"),
    }


def test_sockets_are_hooked_where_the_node_says_whose() -> None:
    """A node without a cgroup has no rows; one that joins again with it has one for each call, and loses them with it."""
    log = mesh()
    deriver = Deriver("east", "n1")
    deriver.full(log.state)
    assert table(log, "socket_hooks") == {}
    node = log.state.nodes[NodeKey("east", "n1")]
    joined = e.NodeJoined("n1", node.addresses, node.device, node.labels, cgroup="/sys/fs/cgroup/n1")
    changed = deriver.update(log.state, (log.write("east", "node.n1", joined),))
    rows = table(log, "socket_hooks")
    assert changed.tables["socket_hooks"] == rows
    assert {key.hook for key in rows} == {
        f"{call}{family}" for call in ("connect", "sendmsg", "recvmsg", "getpeername") for family in (4, 6)
    }
    assert {row.cgroup for row in rows.values()} == {"/sys/fs/cgroup/n1"}
    gone = log.write("east", "node.n1", e.NodeJoined("n1", node.addresses, node.device, node.labels))
    assert deriver.update(log.state, (gone,)).tables["socket_hooks"] == dict.fromkeys(rows)


def test_underlay_balances_itself_where_the_node_says_so() -> None:
    """By a hook for each way; one that joins without loses the row, and no other row changes."""
    log = mesh()
    deriver = Deriver("east", "n1")
    deriver.full(log.state)
    before = table(log, "attachments")
    node = log.state.nodes[NodeKey("east", "n1")]
    joined = e.NodeJoined("n1", node.addresses, node.device, node.labels)
    for way, hook in (("native", "xdp"), ("generic", "xdp-generic"), ("best-effort", "xdp-best-effort")):
        record = log.write("east", "node.n1", msgspec.structs.replace(joined, acceleration=way))
        key, row = t.AttachmentKey(UNDERLAY_IFINDEX, hook), t.AttachmentRow("xdp_from_network")
        assert deriver.update(log.state, (record,)).tables["attachments"][key] == row
        assert table(log, "attachments") == before | {key: row}
        gone = deriver.update(log.state, (log.write("east", "node.n1", joined),))
        assert gone.tables["attachments"] == {key: None}


def test_joined_sockets_are_a_hook_and_a_flag() -> None:
    """Where the node joins sockets, its endpoints' rows say so, but for those of a workload that will not; and no more
    once it does not."""
    log = mesh()
    willing, unwilling = add_endpoint(log, "east", "n1", "web", 11), add_endpoint(log, "east", "n1", "proxy", 12)
    workload = log.state.workloads[workload_key("east", unwilling.namespace, "proxy")]
    node = log.state.nodes[NodeKey("east", "n1")]
    joined = e.NodeJoined("n1", node.addresses, node.device, node.labels)
    key = t.SocketHookKey("sockops")
    deriver = Deriver("east", "n1")
    deriver.full(log.state)

    def flags(tables: Mapping[str, Any], endpoint: Endpoint) -> int:
        return int(tables["endpoints"][t.EndpointKey(address_bytes(endpoint.ipv4))].flags)

    on = deriver.update(
        log.state, (log.write("east", "node.n1", msgspec.structs.replace(joined, joining_cgroup="/cg")),)
    )
    assert on.tables["socket_hooks"] == {key: t.SocketHookRow("socket_life", "/cg")}
    assert flags(on.tables, willing) == flags(on.tables, unwilling) == ENDPOINT_JOINED
    fields = {**msgspec.structs.asdict(workload), "joins_sockets": False}
    del fields["cluster"]
    without = deriver.update(log.state, (log.write("east", "operator", e.WorkloadApplied(**fields)),))
    assert flags(without.tables, unwilling) == 0
    assert t.EndpointKey(address_bytes(willing.ipv4)) not in without.tables["endpoints"]
    off = deriver.update(log.state, (log.write("east", "node.n1", joined),))
    assert off.tables["socket_hooks"] == {key: None}
    assert flags(off.tables, willing) == 0


def test_limits_of_bandwidth_are_shapers() -> None:
    """What an endpoint sends is limited at the node's device, what it receives at its own; its rows say so."""
    log = mesh()
    endpoint = add_endpoint(log, "east", "n1", "web", 11)
    deriver = Deriver("east", "n1")
    deriver.full(log.state)
    workload = log.state.workloads[workload_key("east", endpoint.namespace, "web")]
    fields = {**msgspec.structs.asdict(workload), "egress_bits_s": 8000, "ingress_bits_s": 80_000}
    del fields["cluster"]
    changed = deriver.update(log.state, (log.write("east", "operator", e.WorkloadApplied(**fields)),))
    assert changed.tables["shapers"] == table(log, "shapers") == {
        t.ShaperKey(UNDERLAY_IFINDEX, endpoint.endpoint_id): t.ShaperRow(1000),
        t.ShaperKey(11, endpoint.endpoint_id): t.ShaperRow(10_000),
    }
    assert table(log, "devices")[t.DeviceKey(11)].flags == DEVICE_SHAPED_EGRESS | DEVICE_SHAPED_INGRESS
    assert table(log, "endpoints")[t.EndpointKey(packed(endpoint.ipv4))].flags == ENDPOINT_SHAPED


def test_ipcache_of_a_local_endpoint_has_no_node() -> None:
    """It is on this node; another node sends to this node's underlay address of the same family."""
    log = mesh()
    endpoint = add_endpoint(log, "east", "n1", "web", 11)
    for address, underlay in ((endpoint.ipv4, "192.168.0.1"), (endpoint.ipv6, "fd02::1")):
        key = t.IpcacheKey(128, packed(address))
        assert table(log, "ipcache")[key] == t.IpcacheRow(t.NO_ADDRESS, endpoint.identity, 0)
        for elsewhere in (("east", "n2"), ("west", "n1")):
            row = t.IpcacheRow(packed(underlay), endpoint.identity, IPCACHE_REMOTE_ENDPOINT)
            assert table(log, "ipcache", *elsewhere)[key] == row


def test_ipcache_takes_the_other_family_where_one_is_missing() -> None:
    """n2 has only an IPv4 underlay address: its endpoints' IPv6 goes there too."""
    log = mesh()
    endpoint = add_endpoint(log, "east", "n2", "web", 11)
    assert table(log, "ipcache")[t.IpcacheKey(128, packed(endpoint.ipv6))].node == packed("192.168.0.2")


def test_ipcache_knows_nodes_and_the_world() -> None:
    """This node is the host, all others are remote nodes, anything else is the world."""
    rows = table(mesh(), "ipcache")
    identities = {
        "192.168.0.1": 1, "10.1.1.1": 1, "192.168.0.2": 6, "10.1.2.1": 6, "192.168.1.1": 6, "fd02::11": 6,
    }  # fmt: skip
    for address, identity in identities.items():
        assert rows[t.IpcacheKey(128, packed(address))] == t.IpcacheRow(t.NO_ADDRESS, identity, 0)
    for prefix in ("0.0.0.0/0", "::/0"):
        assert rows[t.IpcacheKey(*prefix_bytes(prefix))] == t.IpcacheRow(t.NO_ADDRESS, 2, 0)


def test_routes_and_neighbours() -> None:
    """To local endpoints through their device, to other nodes' blocks through their underlay address."""
    log = mesh()
    endpoint = add_endpoint(log, "east", "n1", "web", 11)
    routes, neighbours = table(log, "routes"), table(log, "neighbours")
    assert routes[t.RouteKey(128, packed(endpoint.ipv4))] == t.RouteRow(11, t.NO_ADDRESS)
    via = t.RouteRow(UNDERLAY_IFINDEX, packed("192.168.0.2"))
    assert routes[t.RouteKey(*prefix_bytes("10.1.2.0/24"))] == via
    assert t.RouteKey(*prefix_bytes("fd00:1:0:2::/64")) not in routes
    assert t.RouteKey(*prefix_bytes("10.1.1.0/24")) not in routes
    assert neighbours[t.NeighbourKey(11, packed(endpoint.ipv6))] == t.NeighbourRow(bytes.fromhex("02000000000b"))
    there = t.NeighbourKey(UNDERLAY_IFINDEX, packed("192.168.1.1"))
    assert neighbours[there] == t.NeighbourRow(bytes.fromhex("060000000201"))


def test_a_service_leads_to_ready_workloads_that_match() -> None:
    """In order of address; not to those of another namespace, other labels, or that are not ready."""
    log = mesh()
    first = add_endpoint(log, "east", "n2", "web-1", 11, app="web")
    second = add_endpoint(log, "east", "n1", "web-2", 12, app="web", extra="yes")
    add_endpoint(log, "east", "n1", "db-1", 13, app="db")
    add_endpoint(log, "east", "n1", "web-3", 14, namespace="bank", app="web")
    add_endpoint(log, "east", "n1", "web-4", 15, app="web")
    log.write("east", "operator", e.WorkloadApplied("shop", "web-4", {"app": "web"}, ready=False))
    accept(log, EAST, service("web", "east"))
    assert backends_of(log, "172.1.0.10") == [(second.ipv4, 8080), (first.ipv4, 8080)]


def test_a_frontend_leads_to_its_own_family() -> None:
    """IPv6 to IPv6; each family is a set of its own."""
    log = mesh()
    endpoint = add_endpoint(log, "east", "n1", "web", 11)
    accept(log, EAST, service("web", "east", cluster_ips=("172.1.0.10", "fd01:1::a")))
    assert backends_of(log, "fd01:1::a") == [(endpoint.ipv6, 8080)]


def test_named_ports_are_each_workloads_own() -> None:
    """A workload without a port of that name and protocol serves nothing."""
    log = mesh()
    endpoint = add_endpoint(log, "east", "n1", "web", 11)
    add_endpoint(log, "east", "n1", "web-2", 12, app="web")
    log.write("east", "operator", e.WorkloadApplied("shop", "web-2", {"app": "web"}, ports={"web": (9, "UDP")}))
    accept(log, EAST, service("web", "east", ports=(ServicePort("", 80, "TCP", "web"),)))
    assert backends_of(log, "172.1.0.10") == [(endpoint.ipv4, 8080)]


def test_a_service_without_backends_has_a_row() -> None:
    """So that packets to it are dropped with a reason; it has no set."""
    log = mesh()
    accept(log, EAST, service("web", "east"))
    key = t.ServiceKey(packed("172.1.0.10"), 80, TCP)
    assert table(log, "services") == {key: t.ServiceRow(0, 0, SERVICE_CLUSTER_IP)}


def test_equal_sets_are_one() -> None:
    """Two frontends with the same backends share them, until one of them changes."""
    log = mesh()
    add_endpoint(log, "east", "n1", "web", 11)
    accept(log, EAST, service("web", "east"))
    accept(log, EAST, service("copy", "east", cluster_ips=("172.1.0.11",), selector={"app": "web"}))
    assert len(table(log, "backends")) == 1
    deriver = Deriver("east", "n1")
    deriver.full(log.state)
    first = deriver.update(log.state, [log.write("east", "operator", e.ServiceRemoved("shop", "copy"))])
    assert "backends" not in first.tables
    second = deriver.update(log.state, [log.write("east", "operator", e.ServiceRemoved("shop", "web"))])
    assert list(second.tables["backends"].values()) == [None]


def test_slices_add_backends() -> None:
    """Ready ones, with the port of the same name."""
    log = mesh()
    accept(log, EAST, service("web", "east", selector=None))
    backends = (Backend("10.9.0.2"), Backend("10.9.0.1", ready=False), Backend("fd09::1"))
    ports = (ServicePort("http", 9000, "TCP", 9000), ServicePort("other", 1, "TCP", 1))
    accept(log, EAST, ReportBackends("shop", "s", "web", backends, ports))
    assert backends_of(log, "172.1.0.10") == [("10.9.0.2", 9000)]


def test_headless_services_and_other_clusters_have_no_rows() -> None:
    """A frontend is the cluster's own."""
    log = mesh()
    accept(log, EAST, service("web", "east", cluster_ips=(), headless=True))
    accept(log, WEST, service("web", "west"))
    assert table(log, "services") == {}


def test_global_twins_share_backends() -> None:
    """Both global: each serves with the other's too, unless the other does not share its own."""
    log = mesh()
    east = add_endpoint(log, "east", "n1", "web", 11)
    west = add_endpoint(log, "west", "n1", "web", 11)
    accept(log, EAST, service("web", "east", is_global=True))
    accept(log, WEST, service("web", "west"))
    assert backends_of(log, "172.1.0.10") == [(east.ipv4, 8080)]
    accept(log, WEST, service("web", "west", is_global=True, shared=False))
    assert backends_of(log, "172.1.0.10") == [(east.ipv4, 8080)]
    assert backends_of(log, "172.2.0.10", cluster="west") == [(east.ipv4, 8080), (west.ipv4, 8080)]
    accept(log, WEST, service("web", "west", is_global=True))
    assert backends_of(log, "172.1.0.10") == [(east.ipv4, 8080), (west.ipv4, 8080)]


def test_node_state_has_no_row_before_the_first_epoch() -> None:
    """The kernel's array cannot tell a row of zeros from none, so none is asked for."""
    assert Deriver("east", "n1").full(State()).tables["node_state"] == {}


def test_node_state_holds_the_epoch() -> None:
    """The revision of the last record that could change a policy or ipcache row."""
    log = mesh()
    assert table(log, "node_state") == {t.NodeStateKey(0): t.NodeStateRow(log.state.policy_epoch)}


def test_an_update_names_only_what_a_change_reaches() -> None:
    """An endpoint elsewhere is one ipcache row per address, and nothing local."""
    log = mesh()
    add_endpoint(log, "east", "n1", "web", 11)
    deriver = Deriver("east", "n1")
    deriver.full(log.state)
    seen = len(log.changes)
    endpoint = add_endpoint(log, "east", "n2", "web", 11)
    desired = deriver.update(log.state, log.changes[seen:])
    assert not desired.complete
    assert desired.generation == log.state.revision
    assert {key.address for key in desired.tables["ipcache"]} == {packed(endpoint.ipv4), packed(endpoint.ipv6)}
    assert sorted(desired.tables) == ["ipcache", "node_state"]


def test_a_node_that_has_not_joined_has_only_what_all_nodes_have() -> None:
    """No devices, routes or programs; the mesh's addresses are known."""
    log = mesh()
    tables = Deriver("east", "n9").full(log.state).tables
    assert [name for name, rows in tables.items() if rows] == ["ipcache", "node_state"]


def test_a_workload_that_is_relabelled_leaves_its_service() -> None:
    """By the change alone: the labels it had say which services it was behind."""
    log = mesh()
    add_endpoint(log, "east", "n1", "web", 11)
    accept(log, EAST, service("web", "east"))
    deriver = Deriver("east", "n1")
    deriver.full(log.state)
    changes = log.write("east", "operator", e.WorkloadApplied("shop", "web", {"app": "db"}))
    assert [row.count for row in deriver.update(log.state, [changes]).tables["services"].values()] == [0]
