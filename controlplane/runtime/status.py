"""What a process says about itself, put together from its parts.

Belongs here: reading the parts' plain attributes into the API's values, and the rules by which health is judged.
Does not belong here: any I/O.
"""

from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version

from controlplane.api import schema
from controlplane.api.kernel_views import Row, readable_key
from controlplane.desired.derive import Deriver
from controlplane.desired.policy_problems import policy_problems
from controlplane.desired.shaping import shaper_rows
from controlplane.model import Endpoint, Node, NodeKey
from controlplane.projections.state import State
from controlplane.runtime.follower import Follower
from controlplane.runtime.telemetry import Labels
from datapath.abi.types import ENUMS, FORWARDED, FORWARDED_AT_SOCKET, SOCKETS_FULL
from datapath.codec import address_bytes, decode_key
from datapath.conntrack_gc import CollectionCount, ConntrackCollector
from datapath.realization import Report
from datapath.reconciler import Reconciler
from kvstore.api import EventLog

Sample = tuple[str, Labels, float]

FAILED_ROWS_SHOWN_MAX = 50
REFUSED_SHOWN_MAX = 20
OVERFLOWS_SHOWN_MAX = 5
TABLE_PRESSURE_MAX = 0.9
CONNTRACK_MAX = ENUMS["limit"]["CONNTRACK_MAX"]
NO_DROPS = {FORWARDED: "forward", FORWARDED_AT_SOCKET: "socket_forward", SOCKETS_FULL: "sockets_full"}
"""What `bpf metrics` counts beside drops."""
PRESSURE_MAX = 0.9
"""Of a map in which the kernel makes room by itself. It does so per CPU in batches, and so before the map is full."""


def package_version() -> str:
    """Of the installed package; "source" where it runs from its tree."""
    try:
        return version("meshlog")
    except PackageNotFoundError:
        return "source"


def log_connection(log: EventLog, follower: Follower) -> schema.LogConnection:
    """How the log is reached, and how far it has been applied."""
    applied, head = follower.applied_revision, follower.head_revision
    return schema.LogConnection(
        endpoints=list(log.endpoints),
        connected=log.connected,
        unavailable_since=log.unavailable_since,
        last_error=log.last_error,
        reconnects=log.reconnects,
        head_revision=max(head, applied),
        applied_revision=applied,
        lag_records=int(head > applied),
        gaps=follower.gaps,
        rewinds=follower.rewinds,
        repairing=follower.repairing,
        full_since=log.full_since,
        refused=log.refused,
        last_refused=log.last_refused,
    )


def log_problems(connection: schema.LogConnection, in_sync: bool) -> list[str]:
    """What is wrong between a process and the log, in words."""
    problems = []
    if not connection.connected:
        problems.append(
            f"the log is away: {connection.last_error or 'no endpoint answers'}; serving what is held: packets go on "
            "as they did, changes wait"
        )
    if connection.full_since is not None:
        problems.append("NOSPACE: etcd is out of space and takes no writes; they wait until the duty holder made room")
    if connection.refused:
        count = f"{connection.refused} records were" if connection.refused > 1 else "a record was"
        problems.append(f"{count} refused, and no reader believes such a one; the last: {connection.last_refused}")
    if connection.repairing:
        problems.append(f"the log is being folded again: {connection.repairing}")
    elif not in_sync and connection.connected:
        problems.append("catching up with the log")
    return problems


def state_problems(state: State) -> list[str]:
    """What the state could not use, in words."""
    problems = []
    if state.unknown_events:
        problems.append(f"{state.unknown_events} events of a newer version are kept and not understood")
    if state.refused_count:
        problems.append(f"{state.refused_count} events of the log were refused; see refused_events")
    return problems + policy_problems(state)


def refused_events(state: State) -> list[str]:
    """The latest, in words."""
    return [str(refused) for refused in state.refused_events[-REFUSED_SHOWN_MAX:]]


def counts(state: State) -> dict[str, int]:
    """How much of each kind the mesh has."""
    return {
        "clusters": len(state.clusters),
        "nodes": len(state.nodes),
        "endpoints": len(state.endpoints),
        "identities": len(state.identities),
        "services": len(state.services),
        "policies": len(state.policies),
        "namespaces": len(state.namespaces),
        "workloads": len(state.workloads),
    }


def log_samples(log: EventLog, follower: Follower) -> list[Sample]:
    """What /metrics shows of the log."""
    connection = log_connection(log, follower)
    return [
        ("log_head_position", (), connection.head_revision),
        ("log_applied_position", (), connection.applied_revision),
        ("log_lag_events", (), connection.lag_records),
        ("log_connected", (), connection.connected),
        ("log_reconnects_total", (), connection.reconnects),
        ("log_refused_total", (), connection.refused),
        *((name, (), count) for name, count in counts(follower.state).items()),
    ]


def kernel_samples(reconciler: Reconciler, metrics: Sequence[Row]) -> list[Sample]:
    """What /metrics shows of a node's kernel; `metrics` are the rows of `bpf metrics list`."""
    report = reconciler.status()
    samples: list[Sample] = [
        ("kernel_realized_position", (), report.realized_generation),
        ("kernel_rows_failing", (), report.summary.error),
    ]
    for table, count in sorted(report.writes.items()):
        for action, number in (("delete", count.deletes), ("put", count.puts)):
            samples.append(("map_writes_total", (("action", action), ("map_name", table)), number))
    for row in metrics:
        name = NO_DROPS.get(row["reason_code"], "drop")
        labels: Labels = (("direction", row["direction"]),)
        if name == "drop":
            labels += (("reason", row["reason"]),)
        samples += [
            (f"{name}_count_total", labels, row["packets"]),
            (f"{name}_bytes_total", labels, row["bytes"]),
        ]
    return samples


def collector_samples(collector: ConntrackCollector) -> list[Sample]:
    """What /metrics shows of the entries that the programs made; `conntrack_limit` is where old ones have to go."""
    count = collector.count()
    return [
        ("conntrack_entries", (), count.entries),
        ("conntrack_limit", (), CONNTRACK_MAX),
        *(("bpf_map_pressure", (("map_name", name),), share) for name, share in _pressures(count).items()),
        ("conntrack_collections_total", (), count.runs),
        ("conntrack_collection_failures_total", (), count.failures),
        ("conntrack_expired_total", (), count.removed),
        ("conntrack_backend_gone_total", (), count.departed),
        ("masquerade_ports_freed_total", (), count.ports),
        ("sockets_ended_total", (), count.sockets),
    ]


def collector_problems(collector: ConntrackCollector) -> list[str]:
    """Maps that are so full that the kernel makes room by forgetting the flows that were silent longest, in words."""
    count = collector.count()
    problems = [
        f"{name} is {share:.0%} full: flows that are silent are forgotten before their time"
        for name, share in _pressures(count).items()
        if share >= PRESSURE_MAX
    ]
    if count.unjoined_anew:
        most = ENUMS["limit"]["SOCKET_ENDS_MAX"]
        problems.append(f"sockets is full ({most}): {count.unjoined_anew} more could not be joined, and use packets")
    return problems


def _pressures(count: CollectionCount) -> dict[str, float]:
    """By map, how much of it was used at the last reading."""
    return {
        "conntrack": round(count.entries / CONNTRACK_MAX, 4),
        "nat": round(count.nat_entries / ENUMS["limit"]["NAT_MAX"], 4),
    }


def bounds_problems(deriver: Deriver, report: Report) -> list[str]:
    """Policies and tables that do not fit, in words; what policies would allow beyond is dropped."""
    problems = [
        f"policies of identity {over.subject} are {over.rows} rows and {over.allowed} fit "
        "(setting bpf-policy-map-max, and the node's map): what the others allow is dropped"
        for over in deriver.policy_overflow[:OVERFLOWS_SHOWN_MAX]
    ]
    full = [name for name, share in _table_pressures(report).items() if share >= TABLE_PRESSURE_MAX]
    return problems + [f"table {name} is nearly full: {report.rows[name]} rows" for name in full]


def bounds_samples(deriver: Deriver, report: Report) -> list[Sample]:
    """How full the tables are; `policy_identity` is the fullest identity's share of bpf-policy-map-max."""
    shares = {**_table_pressures(report), "policy_identity": round(deriver.policy_fullness, 4)}
    return [
        *(("bpf_map_pressure", (("map_name", name),), share) for name, share in sorted(shares.items())),
        ("policy_overflow_identities", (), len(deriver.policy_overflow)),
    ]


def _table_pressures(report: Report) -> dict[str, float]:
    """By derived table, its share of the map's places."""
    limits = {name: ENUMS["limit"].get(f"{name.upper()}_MAX", 0) for name in report.rows}
    return {name: round(report.rows[name] / limit, 4) for name, limit in limits.items() if limit}


def node_problems(node: Node | None, kernel: schema.KernelStatus) -> list[str]:
    """What keeps this node from its work, in words."""
    problems = []
    if node is None:
        problems.append("this node has not joined yet")
    elif not node.blocks:
        problems.append("this node has no address block yet: the cluster's operator assigns it")
    if kernel.rows["error"]:
        problems.append(f"the kernel refuses {kernel.rows['error']} rows; see kernel.failed")
    return problems


def bandwidth_text(state: State, where: NodeKey) -> str:
    """How this node's limits of bandwidth are kept, and how many there are."""
    own = state.nodes.get(where)
    rows = [shaper_rows(state, own, endpoint) for endpoint in state.endpoints_of(where)] if own else []
    limits = sum(row is not None for each in rows for row in each.values())
    return f"HTB by priority, {limits} limits"


def has_block(node: Node | None) -> bool:
    """The operator has given the node its addresses."""
    return node is not None and bool(node.blocks)


def endpoint_state(endpoint: Endpoint | None, report: Report, generation: int) -> str:
    """ "error" where the kernel refuses a row of its device or addresses; "pending" until all of them are written."""
    if endpoint is None:
        return "pending"
    addresses = {address_bytes(address) for address in (endpoint.ipv4, endpoint.ipv6) if address}
    for row in report.not_done:
        key = decode_key(row.table, row.key)
        if (
            getattr(key, "address", None) in addresses
            or getattr(key, "ifindex", 0) == endpoint.device.ifindex
        ):
            return row.state
    return "ready" if report.realized_generation >= generation else "pending"


def health(ready: bool, problems: Sequence[str], is_static: bool = False) -> str:
    """One word. `is_static`: the log is away, and the kernel keeps what was pinned."""
    if is_static:
        return "degraded"
    if not ready:
        return "starting"
    return "degraded" if problems else "ok"


def kernel_status(
    reconciler: Reconciler, generation: int, writes_at_start: dict[str, int]
) -> schema.KernelStatus:
    """How far the kernel is."""
    report = reconciler.status()
    writes = {table: count.puts + count.deletes for table, count in report.writes.items()}
    return schema.KernelStatus(
        generation=generation,
        realized=report.realized_generation,
        in_sync=report.in_sync,
        rows={"done": report.summary.done, "pending": report.summary.pending, "error": report.summary.error},
        failed=[
            schema.FailedRow(row.table, row_key_text(row.table, row.key), row.reason, row.errno, row.attempts)
            for row in report.not_done[:FAILED_ROWS_SHOWN_MAX]
        ],
        writes_at_start=writes_at_start,
        writes={table: count - writes_at_start.get(table, 0) for table, count in writes.items()},
    )


def row_key_text(table: str, key: bytes) -> str:
    """Readable, or the bytes where they cannot be decoded."""
    try:
        return readable_key(table, decode_key(table, key))
    except ValueError:
        return key.hex()
