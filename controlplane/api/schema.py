"""The API as its callers see it: every path, every request and every answer. Agent and operator serve the same shapes.

Belongs here: values, and nothing else. Does not belong here: how they are served (server.py), how they are made
(views.py). JSON over HTTP/1.1 on a unix socket. Every answer to a GET carries the header `Meshlog-Revision`: the
revision of the log that the answer stands at. An error has a status of 400 and above and an `Error` as its body.

    GET    /v1/status                                   Status (agent) | OperatorStatus (operator)
    GET    /v1/mesh[?digests=1][&left=1]                MeshStanding (history/standings.py): how far nodes are
    GET    /v1/list/{node|endpoint|identity|service|policy|ip}[?at=POINT]      Listing of the matching *Item
    GET    /v1/get/{kind}[?namespace=NS][&name=NAME][&at=POINT]     Documents; kind as in a manifest, plural too
    POST   /v1/apply, /v1/delete                        ApplyRequest -> ApplyResult
    POST   /v1/endpoints                                EndpointRequest -> EndpointResult (agent)
    GET    /v1/endpoints/{container_id}/{interface}     EndpointCheck (agent); 404 where there is none
    DELETE /v1/endpoints/{container_id}/{interface}     EndpointRemoval (agent); an absent one is removed already
    GET    /v1/bpf/{endpoint|ipcache|policy|lb|ct|nat|affinity|metrics}[?at=POINT]    KernelRows: what the
           kernel holds now (agent); with `at`, what it had to hold then
    GET    /v1/log[?after=REV][&limit=N][&follow=1]     NDJSON of LogRecord; with follow=1 the stream stays open
           without follow also since, until (POINT), kind, object, namespace, writer, cluster, node, cause
    GET    /v1/log/{revision}                           LogRecord; 404 where no record has that revision
    GET    /v1/digests                                  Digests (agent)
    GET    /v1/verify                                   Verification (agent)
    POST   /v1/repair                                   Verification, after the repair (agent)
    GET    /v1/monitor?recent=&follow=                  NDJSON of Notification; `lost` counts those left out
    GET    /v1/wait?revision=REV[&timeout_s=S]          Waited; 504 when the time is over first
    GET    /metrics                                     Prometheus text
    GET    /v1/at?at=POINT                              Standing: the revision of a point
    GET    /v1/effects/{revision}[?node=NODE]           Effects: what a record changed, in the mesh and in kernels
    GET    /v1/diff?from=POINT&to=POINT[&node=NODE]     Difference
    GET    /v1/why?from=END&to=END&port=80/TCP[&at=POINT]           Explanation
    GET    /v1/why/map/{table}?key=TEXT[&node=NODE][&at=POINT]      RowExplanation
    GET    /v1/capsule?since=POINT[&until=POINT]        the bytes of a capsule
    POST   /v1/verdict                                  {flows} -> {answers}, flows as `meshlog verdict -f` reads them
    GET    /v1/policy/selectors[?at=POINT]              {items: selector, users, identities}
    GET    /v1/policy/lint[?at=POINT]                   {items: policy, where, reason}
    GET    /v1/policy/endpoint?endpoint=E[&at=POINT]    {items: endpoint, identity, rules, rows}
    GET    /v1/policy/settings[?at=POINT]               {settings}; POST takes the settings themselves
    GET    /v1/names[?at=POINT]                         {items: cluster, name, addresses}
    POST   /v1/names                                    {name, addresses, expired} -> {revision, changed}
    GET    /v1/lost                                     LossList (loss_routes.py); DELETE -> {dismissed}

A POINT is a revision, a time (RFC 3339) or so long ago ("-10m"). A NODE is "n1" or "cluster/n1". An END is "ns/pod",
"cluster:ns/pod", "service:ns/name", "ip:ADDRESS" or "entity:NAME".
"""

from typing import Any

import msgspec

from controlplane.api import items

REVISION_HEADER = "Meshlog-Revision"
SOCKET_AGENT = "agent.sock"
SOCKET_OPERATOR = "operator.sock"
LIST_KINDS = ("node", "endpoint", "identity", "service", "policy", "ip")
BPF_KINDS = ("endpoint", "ipcache", "policy", "lb", "ct", "nat", "affinity", "metrics")


class Error(msgspec.Struct, frozen=True, omit_defaults=True):
    """Why a request was refused; `field` is the path in the caller's input, where there is one."""

    error: str
    field: str = ""

# --- status ---

class LogConnection(msgspec.Struct, frozen=True):
    """`unavailable_since`, `full_since`: seconds since the epoch, null while connected and while writes are taken.
    `lag_records`: 1 while a record
    is known to exist that is not applied yet."""

    endpoints: list[str]
    connected: bool
    unavailable_since: float | None
    last_error: str
    reconnects: int
    head_revision: int
    applied_revision: int
    lag_records: int
    gaps: int
    rewinds: int
    repairing: str = ""
    full_since: float | None = None
    refused: int = 0
    last_refused: str = ""


class FailedRow(msgspec.Struct, frozen=True):
    """A row that the kernel refused; it is tried again."""

    table: str
    key: str
    reason: str
    errno: int
    attempts: int


class KernelStatus(msgspec.Struct, frozen=True):
    """`generation`: the revision asked for last; `realized`: the one up to which the kernel holds everything.

    `rows`: how many are done, pending, error. `writes_at_start` and `writes`: rows put or removed, by table, while
    starting and since.
    """

    generation: int
    realized: int
    in_sync: bool
    rows: dict[str, int]
    failed: list[FailedRow]
    writes_at_start: dict[str, int]
    writes: dict[str, int]


class Status(msgspec.Struct, frozen=True):
    """An agent's word about itself. `health`: "ok", "degraded" or "starting"; `problems` say why, one line each.

    `ready` means: the kernel held the whole desired state once since the start. `ready_after_s` is null before.
    `attach_mode`: how programs are attached to devices, "tcx" or "clsact"; "" before the kernel is open.
    `routing_mode`: how packets go to other nodes, "native" or "tunnel [vxlan]".
    `bandwidth`: how limits of bandwidth are kept, and how many there are.
    `socket_lb`: whose sockets are translated, in words; "off" where none are.
    `acceleration`: how the underlay device balances by itself, in words; "off" where it does not.
    `balancing`: how answers of backends on other nodes find the client, and how backends are chosen.
    `joined_sockets`: which TCP sockets need no packets between endpoints of this node, in words; "off" where all do.
    """

    kind: str
    name: str
    cluster: str
    node: str
    version: str
    pid: int
    health: str
    problems: list[str]
    ready: bool
    ready_after_s: float | None
    uptime_s: float
    in_sync: bool
    log: LogConnection
    kernel: KernelStatus
    counts: dict[str, int]
    unknown_events: int
    refused_events: list[str]
    write_mode: str
    start_source: str
    attach_mode: str
    routing_mode: str = ""
    socket_lb: str = "off"
    bandwidth: str = ""
    acceleration: str = "off"
    balancing: str = ""
    joined_sockets: str = "off"


class ReportItem(msgspec.Struct, frozen=True):
    """What a node last reported: realized through `realized`, and when (seconds since the epoch)."""

    cluster: str
    node: str
    realized: int
    in_sync: bool
    failed_rows: int
    reported_at: float
    digests: dict[str, str]


class OperatorStatus(msgspec.Struct, frozen=True):
    """An operator's word about itself. `holds_duty`: it does the cluster's duties now; another may."""

    kind: str
    name: str
    cluster: str
    version: str
    pid: int
    health: str
    problems: list[str]
    ready: bool
    uptime_s: float
    in_sync: bool
    holds_duty: bool
    log: LogConnection
    reports: list[ReportItem]
    checkpoint_revision: int
    counts: dict[str, int]
    unknown_events: int
    refused_events: list[str]

# --- lists ---

class Listing(msgspec.Struct, frozen=True):
    """`items` are of the type in items.py that belongs to the kind, sorted. `time`: of `revision`, where the past was
    asked for."""

    kind: str
    revision: int
    items: list[Any]
    time: str = ""


class Documents(msgspec.Struct, frozen=True):
    """Manifests as they are in force."""

    revision: int
    documents: list[dict[str, Any]]
    time: str = ""

# --- apply ---

class SourcedDocument(msgspec.Struct, frozen=True):
    """`source` tells the person where it came from: "shop.yaml:12"."""

    document: dict[str, Any]
    source: str = ""


class ApplyRequest(msgspec.Struct, frozen=True):
    """`dry_run`: decide, say what would change, append nothing."""

    documents: list[SourcedDocument]
    dry_run: bool = False


class ObjectResult(msgspec.Struct, frozen=True):
    """`action`: "created", "configured", "unchanged", "deleted", "absent" or "rejected"."""

    source: str
    kind: str
    namespace: str
    name: str
    accepted: bool
    changed: bool
    action: str
    reason: str = ""
    field: str = ""


class ApplyResult(msgspec.Struct, frozen=True):
    """`revision`: of the last record appended, applied here by now; if nothing changed, the one applied."""

    revision: int
    results: list[ObjectResult]

# --- endpoints ---

class EndpointRequest(msgspec.Struct, frozen=True):
    """Attach a workload. `netns` is the path of its network namespace, `interface` the device's name in there."""

    container_id: str
    interface: str
    netns: str
    namespace: str
    workload: str
    mtu: int = 0


class EndpointAddress(msgspec.Struct, frozen=True):
    """`address` with its prefix length ("10.1.0.5/32"); `gateway` without."""

    address: str
    gateway: str


class EndpointResult(msgspec.Struct, frozen=True):
    """What a CNI result needs, and where it stands in the log. Routes are prefix -> gateway."""

    cluster: str
    node: str
    endpoint_id: int
    identity: int
    addresses: list[EndpointAddress]
    routes: dict[str, str]
    host_device: str
    host_mac: str
    device: str
    mac: str
    mtu: int
    revision: int
    already_there: bool = False


class EndpointRemoval(msgspec.Struct, frozen=True):
    removed: bool
    revision: int


class EndpointCheck(msgspec.Struct, frozen=True):
    """`problems` is empty where log, device and kernel rows agree."""

    endpoint: items.EndpointItem
    ok: bool
    problems: list[str]

# --- kernel ---

class KernelRows(msgspec.Struct, frozen=True):
    """Rows as fields with readable values: addresses and prefixes as text, names for numbers where they have one."""

    kind: str
    revision: int
    rows: list[dict[str, Any]]
    time: str = ""


class Digests(msgspec.Struct, frozen=True):
    """Per table the digest (32 hexadecimal digits) of what the log says and of what the agent believes is realized."""

    revision: int
    realized: int
    desired: dict[str, str]
    believed: dict[str, str]


class DifferentRow(msgspec.Struct, frozen=True):
    """`difference`: "missing" (in the kernel), "alien" (only there) or "corrupted"; `key` readable."""

    table: str
    key: str
    difference: str


class TableVerification(msgspec.Struct, frozen=True):
    """Three digests that must be equal: of the log, of the agent's belief, of the kernel's dump."""

    table: str
    rows: int
    log: str
    believed: str
    kernel: str
    equal: bool


class Verification(msgspec.Struct, frozen=True):
    """`differences` is cut at a bound; `differences_total` is not."""

    revision: int
    equal: bool
    tables: list[TableVerification]
    differences: list[DifferentRow]
    differences_total: int
    runtime_tables: list[str]
    repaired_rows: int = 0


# --- log ---

class LogRecord(msgspec.Struct, frozen=True):
    """One record. `events` are {"event": NAME, ...fields}; `time` is the writer's clock, RFC 3339, never order."""

    revision: int
    cluster: str
    writer: str
    sequence: int
    time: str
    cause: int
    schema_version: int
    events: list[dict[str, Any]]
    bytes: int
    error: str = ""


class Standing(msgspec.Struct, frozen=True):
    """A point of the history: `time` is of the writer of its last record."""

    revision: int
    time: str


class ThingChange(msgspec.Struct, frozen=True):
    """`change`: "added", "removed" or "changed". `fields`: name -> [before, after]; null where there was or is none."""

    kind: str
    name: str
    change: str
    fields: dict[str, Any]


class RowChange(msgspec.Struct, frozen=True):
    """A row of a kernel table; `before` and `after` are its fields, null where there was or is none."""

    cluster: str
    node: str
    table: str
    key: str
    change: str
    before: dict[str, Any] | None
    after: dict[str, Any] | None


class Effects(msgspec.Struct, frozen=True):
    """What one record did. `nodes`: whose kernels were looked at, all unless there are many."""

    record: LogRecord
    refused: list[str]
    things: list[ThingChange]
    rows: list[RowChange]
    nodes: list[str]


class Difference(msgspec.Struct, frozen=True):
    """What is other at `until` than at `since`."""

    since: Standing
    until: Standing
    things: list[ThingChange]
    rows: list[RowChange]


class Evidence(msgspec.Struct, frozen=True):
    """A record behind an answer. `revision` 0: older than what the history holds. `time` is the writer's clock."""

    about: str
    revision: int
    writer: str
    time: str
    event: str


class EndView(msgspec.Struct, frozen=True):
    """One end of a flow as it was understood. `identity` 0: none."""

    text: str
    what: str
    identity: int
    labels: list[str]
    address: str


class SideView(msgspec.Struct, frozen=True):
    """What one end's policies say. `nearest`: the rule that would allow it with the fewest changes; `differs`: them."""

    direction: str
    verdict: str
    rules: list[str]
    enforced_by: list[str]
    nearest: str = ""
    differs: list[str] = []


class Explanation(msgspec.Struct, frozen=True):
    """`verdict`: "allow" or "deny". `reasons`: one line each, the deciding one first. One entry of `paths` for each
    backend, where a service is asked for."""

    revision: int
    time: str
    verdict: str
    reasons: list[str]
    source: EndView
    target: EndView
    port: str
    sides: list[SideView]
    evidence: list[Evidence]
    notes: list[str] = []
    paths: list[str] = []


class RowExplanation(msgspec.Struct, frozen=True):
    """A row of a kernel table and the records that made it."""

    revision: int
    time: str
    node: str
    table: str
    key: str
    row: dict[str, Any]
    reasons: list[str]
    evidence: list[Evidence]


class Waited(msgspec.Struct, frozen=True):
    revision: int
    realized: int
