"""The operator of one cluster, put together: each part is built by one function, all tasks run in one group.

Belongs here: which parts there are, what each is given, and the order of a start and of an end. Does not belong here:
anything a part does.
"""

import asyncio
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path

import structlog
from aiohttp import web

from controlplane.api import mesh_routes
from controlplane.api.schema import SOCKET_OPERATOR
from controlplane.api.server import build_app, serving
from controlplane.commands.cluster import JoinCluster
from controlplane.commands.types import Author
from controlplane.projections.state import State
from controlplane.runtime import place
from controlplane.runtime.archivist import Archivist
from controlplane.runtime.checkpoints import Checkpoints
from controlplane.runtime.clock import SystemClock
from controlplane.runtime.connection import connect_log
from controlplane.runtime.duties import Duties
from controlplane.runtime.flags import parser_of, settings_from
from controlplane.runtime.follower import Follower
from controlplane.runtime.keeping import Keeping
from controlplane.runtime.losses import Losses
from controlplane.runtime.process import complain, run_process
from controlplane.runtime.retention import Retention
from controlplane.runtime.telemetry import Counters, configure_logging
from controlplane.runtime.warden import Warden
from controlplane.runtime.writer import Writer
from controlplane.settings import OperatorSettings, SettingsError, block_prefixes
from kvstore.archive import Archive
from kvstore.embedded import EmbeddedEtcd
from kvstore.errors import LogError
from kvstore.etcd import EtcdLog

PROGRAM = "meshlog operator"
WRITER = "operator"
TUNNEL_PORTS = {"vxlan": 8472, "geneve": 6081}

HELPS = {
    "cluster": "name of the cluster",
    "cluster_id": "number of the cluster, 1 to 255, unique in the mesh",
    "pod_cidr": "prefix that nodes' address blocks are cut from",
    "block_size": "prefix length of a node's block, one for each --pod-cidr",
    "service_cidr": "prefix of the cluster's service addresses",
    "routing_mode": "native: nodes route each other's endpoints; tunnel: they wrap packets for them",
    "tunnel_protocol": "vxlan or geneve; geneve needs a kernel that has it on every node",
    "tunnel_port": "UDP port of the tunnel; 0: 8472 of vxlan, 6081 of geneve",
    "etcd": "endpoint of the log, unix:PATH or HOST:PORT",
    "embedded_etcd": "run an etcd of its own in this directory, and end it with this process",
    "etcd_ca": "file with the authority of etcd's certificate, PEM",
    "etcd_cert": "file with the client certificate for etcd, PEM",
    "etcd_key": "file with the key of --etcd-cert, PEM",
    "etcd_user": "user of etcd, where it asks for a password",
    "etcd_password_file": "file with the password of --etcd-user",
    "runtime_dir": "directory of the API socket; /run/meshlog/operator-<cluster> if none",
    "state_dir": "directory of the checkpoint; /var/lib/meshlog/operator-<cluster> if none",
    "archive_dir": "directory of the archived history; archive in the state directory if none",
    "after_restore": "keep: apply again what was added since a backup that etcd was put back to; name: only name it",
    "archive_keep": "on: keep the history of all clusters there; off: of this one",
    "retention_s": "seconds that history stays in etcd",
    "retention_bytes_max": "bytes that a cluster's packed history may take in etcd",
    "log_format": "console or json",
    "log_level": "debug, info, warning or error",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run an operator until it is told to stop. The exit code: 0, 1 for a failure, 2 for wrong flags."""
    parser = parser_of(PROGRAM, "Run the operator of one cluster.", OperatorSettings, HELPS)
    settings = settings_from(parser, OperatorSettings, argv)
    configure_logging(settings.log_format, settings.log_level, f"operator {settings.cluster}")
    try:
        check_settings(settings)
        with place.locked(place.runtime_dir(settings.runtime_dir, process_name(settings))):
            return run_process(PROGRAM, lambda stop: run_operator(settings, stop))
    except (SettingsError, place.PlaceTaken) as error:
        return complain(PROGRAM, error)


def process_name(settings: OperatorSettings) -> str:
    """Of directories."""
    return f"operator-{settings.cluster}"


def check_settings(settings: OperatorSettings) -> None:
    """What can be known before anything is touched. Raises SettingsError."""
    if bool(settings.etcd) == bool(settings.embedded_etcd):
        raise SettingsError("--etcd or --embedded-etcd: give one of them")
    if not settings.pod_cidr:
        raise SettingsError("--pod-cidr: none is given; right is one IPv4 prefix, one IPv6 prefix, or both")
    block_prefixes(settings)


async def run_operator(settings: OperatorSettings, stop: asyncio.Event) -> None:
    """From start to end."""
    async with AsyncExitStack() as stack:
        endpoints = settings.etcd
        if settings.embedded_etcd:
            etcd = await EmbeddedEtcd.start(Path(settings.embedded_etcd))
            stack.push_async_callback(etcd.stop)
            endpoints = (etcd.endpoint,)
        warden = build_operator(settings, await build_log(settings, endpoints))
        stack.push_async_callback(warden.close)
        socket = place.runtime_dir(settings.runtime_dir, process_name(settings)) / SOCKET_OPERATOR
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(task) for task in warden.tasks()]
            async with serving(build_api(warden), socket):
                structlog.get_logger().info("serving", socket=str(socket), etcd=list(endpoints))
                await stop.wait()
            for task in tasks:
                task.cancel()


# --- one part each ----------------------------------------------------------------------------------------------


async def build_log(settings: OperatorSettings, endpoints: Sequence[str]) -> EtcdLog:
    """It reaches into the archive where etcd has no more."""
    return await connect_log(settings, endpoints, archive_dir(settings))


def archive_dir(settings: OperatorSettings) -> Path:
    """Made when the first segment is kept."""
    return Path(settings.archive_dir or place.state_dir(settings.state_dir, process_name(settings)) / "archive")


def build_operator(settings: OperatorSettings, log: EtcdLog) -> Warden:
    """All parts, wired; nothing runs yet."""
    clock, counters = SystemClock(), Counters()
    directory = place.made(place.state_dir(settings.state_dir, process_name(settings)))
    checkpoints = Checkpoints(directory)

    async def refold(error: LogError) -> State:
        return await checkpoints.refold(log, error)

    follower = Follower(log, checkpoints.load() or State(), clock, settings, counters, refold)
    losses = Losses(directory, follower)
    writer = Writer(log, follower, Author(settings.cluster, WRITER), clock, settings, counters)
    duties = Duties(log, follower, writer, clock, settings, counters, (build_wish(settings),))
    keeping = Keeping(follower, writer, duties, clock, settings, counters)
    kept, archivist = archive_dir(settings), None
    if settings.archive_keep == "on":
        archivist = Archivist(log, Archive(kept), follower, clock, settings, counters)
    retention = Retention(
        log, Archive(kept), archivist, follower, writer, duties, clock, settings, counters
    )
    return Warden(
        settings, clock, counters, log, checkpoints, follower, writer, duties, retention, losses, archivist, keeping
    )


def build_wish(settings: OperatorSettings) -> JoinCluster:
    """What the flags say of the cluster."""
    return JoinCluster(
        cluster_id=settings.cluster_id,
        pod_cidrs=settings.pod_cidr,
        block_prefixes=block_prefixes(settings),
        service_cidrs=settings.service_cidr,
        routing_mode=settings.routing_mode,
        tunnel_protocol=settings.tunnel_protocol,
        tunnel_port=settings.tunnel_port or TUNNEL_PORTS[settings.tunnel_protocol],
    )


def build_api(warden: Warden) -> web.Application:
    """The routes of an operator."""
    return build_app(mesh_routes.routes(warden), warden.revision, warden.settings.api_body_bytes_max)
