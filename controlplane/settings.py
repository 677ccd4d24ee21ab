"""Every setting and every bound of a running agent or operator, with its unit in its name and its reason beside it.

Belongs here: the two frozen structs, and reading them from flags, environment and a file, in this order of precedence:
flag, environment MESHLOG_<NAME>, file (TOML or JSON), default. Does not belong here: acting on them.
"""

import json
import os
import tomllib
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, TypeVar, get_args, get_origin, get_type_hints

import msgspec
from msgspec import Meta

ENVIRONMENT_PREFIX = "MESHLOG_"

Seconds = Annotated[float, Meta(gt=0)]
Count = Annotated[int, Meta(ge=1)]
Lifetime = Annotated[int, Meta(ge=1, le=604_800)]
"""Seconds, up to a week."""


class SettingsError(Exception):
    """A setting is wrong: names it, its value, and what would be right."""


class CommonSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What agent and operator share."""

    cluster: Annotated[str, Meta(min_length=1, max_length=63, pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")]
    etcd: tuple[str, ...] = ()
    """Endpoints, "unix:PATH" or "HOST:PORT"; several are tried in turn."""
    etcd_ca: str = ""
    """Files in PEM form: the authority of etcd's certificate, and a client certificate with its key."""
    etcd_cert: str = ""
    etcd_key: str = ""
    etcd_user: str = ""
    """A user of etcd's; the password stands in a file, never on a command line."""
    etcd_password_file: str = ""
    archive_dir: str = ""
    """Where segments of the history are when they have left etcd. An operator writes those of its cluster there, "" for
    "archive" in its state directory. An agent reads there, and writes if `archive_keep` is "on". Several processes may
    share a directory."""
    archive_round_s: Seconds = 15.0
    """Pause between two looks for sealed segments to copy: small beside `retention_s`, after which they leave etcd."""
    runtime_dir: str = ""
    state_dir: str = ""
    log_format: Annotated[str, Meta(pattern="^(console|json)$")] = "console"
    log_level: Annotated[str, Meta(pattern="^(debug|info|warning|error)$")] = "info"

    follow_records_max: Count = 512
    """Records applied before others get a turn: about 10 ms of folding, so that the API stays answering."""
    command_queue_max: Count = 4096
    """Commands waiting for the writer; beyond it a caller is told to try again instead of memory growing."""
    group_commands_max: Count = 256
    """Commands in one batch: their events must fit kvstore's batch bound with room to spare."""
    decide_again_max: Count = 16
    """Rounds of catching up and deciding again after a conflict; a 17th would mean a fault, not contention."""
    wait_applied_s: Seconds = 10.0
    """How long an appended record may take to come back through the log before the caller is told."""
    retry_s: Seconds = 0.5
    """Pause before the log is tried again; jittered, so that a mesh does not come back in step."""
    retry_s_max: Seconds = 5.0
    full_wait_s: Seconds = 60.0
    """How long a command waits while etcd is out of space; whoever holds the duty makes room within seconds."""
    checkpoint_s: Seconds = 30.0
    """How old a checkpoint may be: bounds what a restart must fold."""
    log_page_records_max: Count = 10_000
    """Records of one answer to /v1/log without follow."""
    api_body_bytes_max: Count = 64 * 1024 * 1024
    """Largest request body: 5,000 manifests of 10 KiB fit."""


class AgentSettings(CommonSettings, frozen=True, kw_only=True):
    """One agent process of one node."""

    node: Annotated[str, Meta(min_length=1, max_length=63, pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$")]
    device: str = ""
    """The underlay device; "" takes the device of the default route."""
    netns: str = ""
    """Path of a network namespace to enter first; "" stays where the process was started."""
    bpffs: str = "/sys/fs/bpf"
    attach_mode: Annotated[str, Meta(pattern="^(auto|tcx|clsact)$")] = "auto"
    """How programs are attached; "auto" takes TCX links where the kernel has them (Linux 6.6), else clsact."""
    objects_dir: str = ""
    labels: tuple[str, ...] = ()
    """Labels of the node, "key=value"."""
    archive_keep: Annotated[str, Meta(pattern="^(on|off)$")] = "off"
    """Whether this agent keeps a copy of the history of all clusters in `archive_dir` ("" then: "archive" in its state
    directory), so that it answers for any point of the past by itself. It costs disk, and reads each segment once."""
    mtu_bytes: Annotated[int, Meta(ge=0, le=65535)] = 0
    """MTU of endpoint devices; 0 takes the underlay device's, less what a tunnel adds where the cluster has one."""

    masquerade: Annotated[str, Meta(pattern="^(on|off)$")] = "on"
    """Whether endpoints leave the mesh with the node's address; "off": with their own, which needs routes back."""
    non_masquerade_cidr: tuple[str, ...] = ()
    """Prefixes outside the mesh for which endpoints keep their own address."""
    bpf_lb_sock: Annotated[str, Meta(pattern="^(on|off)$")] = "off"
    """Whether sockets are sent to a backend when they ask for a frontend; "off": their packets are, at the device."""
    bpf_lb_sock_hostns_only: Annotated[str, Meta(pattern="^(on|off)$")] = "off"
    """"on": only sockets of the node's own network namespace; those of endpoints are left to their device."""
    bpf_lb_acceleration: Annotated[str, Meta(pattern="^(disabled|native|generic|best-effort)$")] = "disabled"
    """Whether the underlay device forwards what is for a frontend with its backend elsewhere, before the host stack has
    it: in its driver ("native"), just before the stack ("generic", for tests), or whichever it can. Cilium's name."""
    sockops_enable: Annotated[str, Meta(pattern="^(on|off)$")] = "off"
    """Whether the TCP sockets of two endpoints of this node are joined, so that what they write needs no packet. Off,
    because the kernel then answers some calls of the reader otherwise (docs/joined-sockets.md). Cilium's name."""
    cgroup_root: str = ""
    """The cgroup v2 directory whose sockets are meant, all below included; "" takes the mount. Nodes that share a
    kernel need one each."""
    bpf_ct_timeout_regular_tcp: Lifetime = 8000
    """Seconds that a TCP connection may be silent before it is forgotten; Cilium's name and value, as of the next
    three."""
    bpf_ct_timeout_regular_tcp_syn: Lifetime = 60
    """The same until the initiator has acknowledged: anyone could have sent its first packet."""
    bpf_ct_timeout_regular_tcp_fin: Lifetime = 10
    """The same when both ends have closed, or one has reset."""
    bpf_ct_timeout_regular_any: Lifetime = 60
    """The same of UDP, SCTP and ICMP."""
    notify: tuple[Annotated[str, Meta(pattern="^(drops|verdicts|denials|none)$")], ...] = ("drops", "verdicts")
    """What the programs tell: "denials" is the verdict on a denied flow beside its drop, which says the same."""

    start_log_s: Seconds = 3.0
    """How long a start waits for etcd before it serves from the checkpoint: longer than an election (2 s)."""
    restore_wait_s: Seconds = 15.0
    """How long the kernel stays as it is after etcd was put back to a backup, for other nodes to announce again what
    the log has lost of them; they do within seconds, or are away."""
    report_s: Seconds = 2.0
    """How often a node reports to its side table; the report is one small put."""
    endpoint_ready_s: Seconds = 10.0
    """How long a new endpoint may take to be realized before its creation is undone."""
    inspect_s: Seconds = 60.0
    """How often the kernel's tables are compared with what was written into them, a dump of each."""
    settle_quiet_s: Seconds = 1.0
    """How long no endpoint may have been created before TCX links replace the filters that stand in for them: each
    holds up every change of a device for some 15 ms."""
    tunnel_drain_s: Seconds = 2.0
    """How long a tunnel device stays when nothing here leads into it any more: other nodes learn it later."""
    kernel_retry_s: Seconds = 0.5
    monitor_queue_max: Count = 4096
    """Notifications kept for one slow monitor; what is more is counted as lost."""
    monitor_recent_max: Count = 4096
    """Notifications kept for those who ask what was told before they listened, 80 bytes each."""
    monitor_flush_s: Seconds = 0.05
    """How long notifications are gathered into one write to a monitor."""
    flows_rows_max: Count = 8192
    """Rows of the sum of recorded flows, some 300 bytes each; beyond it rows are given up and counted."""
    flows_age_s: Seconds = 604_800.0
    """How long a recorded flow is kept that is not seen again: a week has its weekly jobs."""
    flows_save_s: Seconds = 30.0
    """How old the file of recorded flows may be: what a kill loses of them."""
    flows_publish_s: Seconds = 300.0
    """How often a node publishes its recorded flows: 1,000 nodes at the bound below come to 109 KB/s of etcd."""
    flows_publish_bytes_max: Count = 32 * 1024
    """Bytes of one node's published flows, compressed: about 2,000 rows; how many are left out is in it."""
    conntrack_gc_s: Seconds = 30.0
    verify_differences_max: Count = 200


class OperatorSettings(CommonSettings, frozen=True, kw_only=True):
    """One operator process of one cluster."""

    cluster_id: Annotated[int, Meta(ge=1, le=255)]
    pod_cidr: tuple[str, ...] = ()
    """What address blocks are cut from: one IPv4 prefix, one IPv6 prefix, or both."""
    service_cidr: tuple[str, ...] = ()
    block_size: tuple[Annotated[int, Meta(ge=1, le=128)], ...] = ()
    """Prefix length of a node's block, per pod_cidr; default /24, or 8 bits below a longer one; /64 for IPv6."""
    routing_mode: Annotated[str, Meta(pattern="^(native|tunnel)$")] = "native"
    """How the cluster's nodes send to each other's endpoints: by their addresses, or wrapped; Cilium's names."""
    tunnel_protocol: Annotated[str, Meta(pattern="^(vxlan|geneve)$")] = "vxlan"
    tunnel_port: Annotated[int, Meta(ge=0, le=65535)] = 0
    """UDP port of the tunnel; 0: 8472 of VXLAN, 6081 of Geneve."""
    embedded_etcd: str = ""
    """Directory in which the operator runs an etcd of its own; "" uses the endpoints given."""

    duty_s: Seconds = 1.0
    """Pause between two rounds of duties."""
    node_dead_s: Seconds = 60.0
    """A node without a session or a report for this long is removed: four leases of 15 s."""
    retention_s: Seconds = 86_400.0
    """How long history stays in etcd; older segments are in the archive only."""
    retention_bytes_max: Count = 512 * 1024 * 1024
    """What a cluster's packed history may take in etcd: a quarter of the embedded etcd's quota."""
    segment_age_s: Seconds = 3600.0
    """An open segment with records is sealed when it is older than this or than `retention_s`, so that the history of a
    mesh that rests is packed, archived and taken out by age too."""
    archive_keep: Annotated[str, Meta(pattern="^(on|off)$")] = "on"
    """Whether this operator keeps the history of the other clusters too; "off": that of its own cluster only."""
    archive_wait_s: Seconds = 3600.0
    """How long what is due stays in etcd for the copies of agents and of other operators; they take seconds, unless
    their disk is full."""
    after_restore: Annotated[str, Meta(pattern="^(keep|name)$")] = "keep"
    """What becomes of manifests that were added since a backup that etcd was put back to: "keep": the operator that was
    at work applies them again, so that a policy goes on to hold; "name": `status` names them, as it does what was
    changed or removed since in either case."""
    retention_round_s: Seconds = 5.0
    """Pause between two looks at what is to be packed, archived and taken out."""
    shared_checkpoint_s: Seconds = 300.0
    """How old the checkpoint in etcd may be: bounds what an agent without one of its own must fold."""
    identity_release_s: Seconds = 60.0
    """An identity without a user for this long may be released."""


type_Settings = TypeVar("type_Settings", bound=CommonSettings)


def read_settings(
    kind: type[type_Settings],
    flags: Mapping[str, Any],
    environment: Mapping[str, str] | None = None,
    file_path: str = "",
) -> type_Settings:
    """The settings of a process. `flags` holds only what was given. Raises SettingsError."""
    environment = os.environ if environment is None else environment
    hints = setting_hints(kind)
    found: dict[str, Any] = {}
    found.update(_from_file(kind, file_path, hints))
    found.update(_from_environment(environment, hints))
    found.update({name: value for name, value in flags.items() if value is not None})
    checked = {name: _checked(name, value, hints[name]) for name, value in found.items()}
    for field in msgspec.structs.fields(kind):
        if field.required and field.name not in checked:
            raise SettingsError(f"{field.name} is not set; give {flag_name(field.name)}")
    return kind(**checked)


def setting_hints(kind: type[CommonSettings]) -> dict[str, Any]:
    """Each field's type with its limits."""
    return get_type_hints(kind, include_extras=True)


def flag_name(field: str) -> str:
    """The command-line flag of a field."""
    return "--" + field.replace("_", "-")


def is_repeatable(hint: Any) -> bool:
    """True of a field that holds several values."""
    return get_origin(_plain(hint)) is tuple


def _plain(hint: Any) -> Any:
    return get_args(hint)[0] if get_origin(hint) is Annotated else hint


def _checked(name: str, value: Any, hint: Any) -> Any:
    if is_repeatable(hint) and isinstance(value, str):
        value = [part for part in value.split(",") if part]
    try:
        return msgspec.convert(value, hint, strict=False)
    except msgspec.ValidationError as error:
        reason = str(error).split(" - at ")[0]
        raise SettingsError(
            f"{flag_name(name)}: {value!r} is not usable: {reason[0].lower()}{reason[1:]}"
        ) from None


def _from_environment(environment: Mapping[str, str], hints: Mapping[str, Any]) -> dict[str, Any]:
    names = {ENVIRONMENT_PREFIX + name.upper(): name for name in hints}
    return {names[key]: value for key, value in environment.items() if key in names}


def _from_file(kind: type[Any], path: str, hints: Mapping[str, Any]) -> dict[str, Any]:
    if not path:
        return {}
    try:
        with open(path, "rb") as file:
            raw = file.read()
        content = json.loads(raw) if path.endswith(".json") else tomllib.loads(raw.decode())
    except OSError as error:
        raise SettingsError(f"--config: {path!r} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise SettingsError(f"--config: {path!r} is neither TOML nor (as *.json) JSON: {error}") from None
    if not isinstance(content, dict):
        raise SettingsError(f"--config: {path!r} must hold settings by name")
    unknown = sorted(set(content) - set(hints))
    if unknown:
        raise SettingsError(f"--config: {path!r} has {unknown[0]!r}, which {kind.__name__} does not know")
    return content


def block_prefixes(settings: OperatorSettings) -> tuple[int, ...]:
    """The prefix length of a node's block for each pod CIDR. Raises SettingsError for lengths that do not fit."""
    given: Sequence[int] = settings.block_size or tuple(_default_block(cidr) for cidr in settings.pod_cidr)
    if len(given) != len(settings.pod_cidr):
        raise SettingsError(
            f"--block-size is given {len(given)} times and --pod-cidr {len(settings.pod_cidr)} times; give one for each"
        )
    for cidr, length in zip(settings.pod_cidr, given, strict=True):
        cluster_length = int(cidr.partition("/")[2] or 0)
        longest = 126 if ":" in cidr else 30
        if not cluster_length < length <= longest:
            raise SettingsError(
                f"--block-size: {length} for {cidr}; right is between {cluster_length + 1} and {longest}"
            )
    return tuple(given)


def _default_block(cidr: str) -> int:
    length = int(cidr.partition("/")[2] or 0)
    if ":" in cidr:
        return max(64, min(length + 16, 120))
    return max(24, min(length + 8, 28))
