"""The agent of one node, put together: each part is built by one function, all tasks run in one group.

Belongs here: which parts there are, what each is given, and the order of a start and of an end. Does not belong here:
anything a part does.
"""

import asyncio
import os
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import structlog
from aiohttp import web

from controlplane.api import mesh_routes, node_routes, rehearsal_routes
from controlplane.api.schema import SOCKET_AGENT
from controlplane.api.server import build_app, serving
from controlplane.commands.types import Author
from controlplane.desired.derive import Deriver
from controlplane.model import NodeKey
from controlplane.projections.state import State
from controlplane.runtime import place
from controlplane.runtime.acceleration import acceleration
from controlplane.runtime.announced import OwnFile
from controlplane.runtime.archivist import Archivist
from controlplane.runtime.checkpoints import Checkpoints
from controlplane.runtime.clock import Clock, SystemClock
from controlplane.runtime.connection import connect_log
from controlplane.runtime.devices import Devices, NetlinkDevices
from controlplane.runtime.endpoints import Endpoints
from controlplane.runtime.feed import Feed
from controlplane.runtime.flags import parser_of, settings_from
from controlplane.runtime.flows import FlowRecorder
from controlplane.runtime.follower import Follower
from controlplane.runtime.health_checks import HealthChecks, NodeSource
from controlplane.runtime.inspection import Inspection
from controlplane.runtime.losses import Losses
from controlplane.runtime.monitor import Monitor, Ring
from controlplane.runtime.node import Node, NodeParts
from controlplane.runtime.overlay import Overlay
from controlplane.runtime.process import complain, run_process
from controlplane.runtime.recovery import Recovery
from controlplane.runtime.relabelling import Relabelling
from controlplane.runtime.reports import Reporter
from controlplane.runtime.settling import Settling
from controlplane.runtime.sockets import joining_cgroup, socket_cgroup, socket_constants
from controlplane.runtime.telemetry import Counters, configure_logging
from controlplane.runtime.underlay import Underlay, UnderlayError, enter_netns, find_underlay
from controlplane.runtime.writer import Writer
from controlplane.settings import AgentSettings, SettingsError
from datapath.conntrack_gc import ConntrackCollector
from datapath.errors import NotRoot
from datapath.kernel.api import Kernel
from datapath.kernel.real import RealKernel
from datapath.masquerade import masquerade_constants, node_constants, spare_ports
from datapath.reconciler import KernelWorker, Reconciler
from kvstore.api import EventLog
from kvstore.archive import Archive
from kvstore.errors import LogError
from kvstore.etcd import EtcdLog

PROGRAM = "meshlog agent"
CONNTRACK_CHUNK = 4096
NOTIFICATIONS = ("drops", "verdicts", "denials")
"""Entries removed in one kernel call: about 2 ms, so that rows are not kept waiting."""

HELPS = {
    "cluster": "name of the cluster this node is in",
    "node": "name of this node, unique in its cluster",
    "etcd": "endpoint of the log, unix:PATH or HOST:PORT",
    "device": "device that leads to the other nodes, such as eth0",
    "netns": "network namespace to run in, such as /run/netns/n1",
    "etcd_ca": "file with the authority of etcd's certificate, PEM",
    "etcd_cert": "file with the client certificate for etcd, PEM",
    "etcd_key": "file with the key of --etcd-cert, PEM",
    "etcd_user": "user of etcd, where it asks for a password",
    "etcd_password_file": "file with the password of --etcd-user",
    "archive_dir": "directory of the archived history, read where etcd has no more; none if not given",
    "archive_keep": "on: keep a copy of the history of all clusters there, and answer for any point of the past",
    "runtime_dir": "directory of the API socket; /run/meshlog/<node> if none",
    "state_dir": "directory of the checkpoint; /var/lib/meshlog/<node> if none",
    "bpffs": "where a bpffs is mounted; pins are made in <bpffs>/meshlog/<node>",
    "attach_mode": "auto, tcx or clsact: how programs are attached to devices; auto takes tcx where the kernel has it",
    "objects_dir": "directory of the compiled BPF objects",
    "labels": "label of the node, key=value",
    "masquerade": "on: endpoints leave the mesh with the node's address; off: with their own",
    "non_masquerade_cidr": "prefix outside the mesh for which endpoints keep their own address",
    "bpf_lb_sock": "on: services are translated at the sockets of --cgroup-root; off: at devices only",
    "bpf_lb_sock_hostns_only": "on: only at sockets of the node's own namespace",
    "bpf_lb_acceleration": "native, generic or best-effort: the underlay device balances itself (XDP); disabled: not",
    "sockops_enable": "on: TCP sockets of two endpoints of this node are joined and need no packets; off: not",
    "cgroup_root": "cgroup v2 directory whose sockets --bpf-lb-sock and --sockops-enable mean; its mount if none",
    "bpf_ct_timeout_regular_tcp": "seconds until a silent TCP connection is forgotten",
    "bpf_ct_timeout_regular_tcp_syn": "the same before it is acknowledged",
    "bpf_ct_timeout_regular_tcp_fin": "the same after its end",
    "bpf_ct_timeout_regular_any": "the same of other protocols",
    "notify": "what the programs tell: drops, verdicts, denials (the verdict beside a drop), or none",
    "mtu_bytes": "MTU of endpoint devices; 0: that of --device, less what a tunnel adds",
    "log_format": "console or json",
    "log_level": "debug, info, warning or error",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run an agent until it is told to stop. The exit code: 0, 1 for a failure, 2 for wrong flags."""
    parser = parser_of(PROGRAM, "Run the agent of one node.", AgentSettings, HELPS)
    settings = settings_from(parser, AgentSettings, argv)
    configure_logging(settings.log_format, settings.log_level, f"agent {settings.cluster}/{settings.node}")
    try:
        check_settings(settings)
        if settings.netns:
            enter_netns(settings.netns)
        underlay = find_underlay(settings.device)
        with place.locked(place.runtime_dir(settings.runtime_dir, settings.node)):
            return run_process(PROGRAM, lambda stop: run_agent(settings, underlay, stop))
    except (SettingsError, UnderlayError, place.PlaceTaken, NotRoot) as error:
        return complain(PROGRAM, error)


def check_settings(settings: AgentSettings) -> None:
    """What can be known before anything is touched. Raises SettingsError, NotRoot."""
    if os.geteuid() != 0:
        raise NotRoot("an agent needs root (CAP_BPF, CAP_NET_ADMIN, CAP_SYS_ADMIN)")
    if not settings.etcd:
        raise SettingsError("--etcd: no endpoint of the log is given; right is unix:PATH or HOST:PORT")
    objects = place.objects_dir(settings.objects_dir)
    if not list(objects.glob("*.bpf.o")):
        raise SettingsError(
            f"--objects-dir: there are no compiled objects in {objects}; build them with make -C bpf"
        )
    socket_cgroup(settings)
    joining_cgroup(settings)


async def run_agent(settings: AgentSettings, underlay: Underlay, stop: asyncio.Event) -> None:
    """From start to end. What it leaves in the kernel goes on forwarding."""
    kernel = build_kernel(settings, underlay)
    devices = NetlinkDevices(f"{settings.cluster}/{settings.node}")
    node = build_node(
        settings,
        underlay,
        SystemClock(),
        await connect_log(settings, archive=archive_dir(settings)),
        kernel,
        devices,
        kernel.read_notifications,
    )
    socket = place.runtime_dir(settings.runtime_dir, settings.node) / SOCKET_AGENT
    try:
        await devices.configure_node()
        await run_node(node, serving(build_api(node), socket), stop)
    finally:
        await node.close()
    structlog.get_logger().info("stopped; what is pinned goes on forwarding")


async def run_node(node: Node, api: AbstractAsyncContextManager[None], stop: asyncio.Event) -> None:
    """Every task of an agent, in one group."""
    async with asyncio.TaskGroup() as group:
        await node.open()
        tasks = [group.create_task(part) for part in node.tasks()]
        async with api:
            await stop.wait()
        for task in tasks:
            task.cancel()


# --- one part each ----------------------------------------------------------------------------------------------


def archive_dir(settings: AgentSettings) -> Path | None:
    """Where history is read that etcd has no more, and kept if it is to be."""
    if settings.archive_keep == "on" and not settings.archive_dir:
        return place.state_dir(settings.state_dir, settings.node) / "archive"
    return Path(settings.archive_dir) if settings.archive_dir else None


def build_archivist(
    settings: AgentSettings, log: EventLog, follower: Follower, clock: Clock, counters: Counters
) -> Archivist | None:
    """None where no copy is to be kept. A log in memory forgets nothing."""
    directory = archive_dir(settings)
    if settings.archive_keep == "off" or directory is None or not isinstance(log, EtcdLog):
        return None
    return Archivist(log, Archive(directory), follower, clock, settings, counters)


def build_node(
    settings: AgentSettings,
    underlay: Underlay,
    clock: Clock,
    log: EventLog,
    kernel: Kernel,
    devices: Devices,
    open_ring: Callable[[], Ring] | None,
    worker: KernelWorker | None = None,
) -> Node:
    """All parts of a node, wired; nothing runs yet. `worker`: who calls the kernel; None: a thread of its own."""
    counters = Counters()
    checkpoints = build_checkpoints(settings)
    state = checkpoints.load()
    follower = build_follower(settings, clock, log, state or State(), checkpoints, counters)
    writer = Writer(
        log, follower, Author(settings.cluster, f"node.{settings.node}"), clock, settings, counters
    )
    reconciler = Reconciler(kernel, clock.monotonic_s, worker=worker)
    where = NodeKey(settings.cluster, settings.node)
    deriver = Deriver(*where)
    relabelling = Relabelling(where, follower, writer, clock, settings)
    overlay = Overlay(settings, underlay, follower, reconciler, devices, clock)
    directory = place.state_dir(settings.state_dir, settings.node)
    own = OwnFile(directory, where, follower)
    endpoints = Endpoints(
        settings, follower, writer, reconciler, devices, clock, counters, overlay.mtu_bytes, own
    )
    flows = FlowRecorder(directory, log, writer, follower, clock, settings, counters)
    inspection = Inspection(reconciler, clock, settings)
    archivist = build_archivist(settings, log, follower, clock, counters)
    parts = NodeParts(
        settings=settings,
        underlay=underlay,
        clock=clock,
        counters=counters,
        log=log,
        checkpoints=checkpoints,
        follower=follower,
        writer=writer,
        kernel=kernel,
        reconciler=reconciler,
        feed=Feed(follower, deriver, reconciler, relabelling, counters),
        health_checks=HealthChecks(NodeSource(where, follower, deriver.services), follower.wait_moved, clock),
        relabelling=relabelling,
        devices=devices,
        endpoints=endpoints,
        overlay=overlay,
        settling=Settling(kernel, reconciler.worker, endpoints, clock, settings),
        inspection=inspection,
        reporter=Reporter(log, writer, follower, reconciler, inspection, clock, settings, own, archivist),
        monitor=Monitor(settings.monitor_queue_max, settings.monitor_recent_max, counters, flows.take),
        flows=flows,
        collector=build_collector(settings, clock, kernel, reconciler),
        open_ring=open_ring,
        archivist=archivist,
        losses=Losses(directory, follower),
        own=own,
        recovery=Recovery(where, own, follower, writer, reconciler, devices, clock, settings, counters),
        start_source=f"checkpoint at revision {checkpoints.revision}" if state else "the log's first record",
    )
    return Node(parts)


def build_api(node: Node) -> web.Application:
    """The routes of an agent."""
    objects = place.objects_dir(node.settings.objects_dir)
    routes = [*mesh_routes.routes(node), *node_routes.routes(node), *rehearsal_routes.routes(node, objects)]
    return build_app(routes, node.revision, node.parts.settings.api_body_bytes_max)


def build_kernel(settings: AgentSettings, underlay: Underlay) -> RealKernel:
    """The kernel of the namespace that this process is in."""
    pins = Path(settings.bpffs) / "meshlog" / settings.node
    objects = place.objects_dir(settings.objects_dir)
    return RealKernel(
        pins,
        objects,
        underlay.device.ifindex,
        attach=settings.attach_mode,
        stand_ins=True,
        constants=load_time_constants(settings, underlay),
        cgroup=socket_cgroup(settings),
        xdp=bool(acceleration(settings)),
        joining_cgroup=joining_cgroup(settings),
    )


def load_time_constants(settings: AgentSettings, underlay: Underlay) -> dict[str, int | bytes]:
    """What the programs are told when they are loaded. Raises SettingsError."""
    told: dict[str, int | bytes] = {f"config_notify_{what}": int(what in settings.notify) for what in NOTIFICATIONS}
    addresses = underlay.addresses if settings.masquerade == "on" else ()
    try:
        ports = spare_ports(underlay.local_ports)
        masquerade = masquerade_constants(addresses, ports, settings.non_masquerade_cidr)
        sockets = socket_constants(settings, underlay)
        return {**told, **lifetimes(settings), **node_constants(underlay.addresses), **sockets, **masquerade}
    except ValueError as error:
        raise SettingsError(f"--non-masquerade-cidr: {error}") from None


def lifetimes(settings: AgentSettings) -> dict[str, int]:
    """How long the programs remember a silent flow."""
    return {
        "config_conntrack_tcp_s": settings.bpf_ct_timeout_regular_tcp,
        "config_conntrack_syn_s": settings.bpf_ct_timeout_regular_tcp_syn,
        "config_conntrack_closing_s": settings.bpf_ct_timeout_regular_tcp_fin,
        "config_conntrack_other_s": settings.bpf_ct_timeout_regular_any,
    }


def build_checkpoints(settings: AgentSettings) -> Checkpoints:
    """In the state directory, made if absent. Raises PlaceTaken."""
    return Checkpoints(place.made(place.state_dir(settings.state_dir, settings.node)))


def build_follower(
    settings: AgentSettings,
    clock: Clock,
    log: EventLog,
    state: State,
    checkpoints: Checkpoints,
    counters: Counters,
) -> Follower:
    """It folds again from the checkpoint when the log contradicts itself."""

    async def refold(error: LogError) -> State:
        return await checkpoints.refold(log, error)

    return Follower(log, state, clock, settings, counters, refold)


def build_collector(
    settings: AgentSettings, clock: Clock, kernel: Kernel, reconciler: Reconciler
) -> ConntrackCollector:
    """In the reconciler's thread: one thread calls a kernel."""

    def now_ns() -> int:
        return int(clock.monotonic_s() * 1e9)

    return ConntrackCollector(kernel, reconciler, now_ns, settings.conntrack_gc_s, CONNTRACK_CHUNK)
