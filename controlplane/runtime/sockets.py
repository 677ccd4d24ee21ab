"""What is done at sockets, from settings to what the kernel is told: whose, and how the node knows its own.

Belongs here: the cgroup that counts, the constants of bpf/config.h about sockets, and the words for `status`. Does not
belong here: attaching anything.
"""

from pathlib import Path

from controlplane.model import Node
from controlplane.runtime.underlay import Underlay
from controlplane.settings import AgentSettings, SettingsError

MOUNTS = Path("/proc/self/mounts")
OFF = "off"


def socket_cgroup(settings: AgentSettings) -> str:
    """The path of the cgroup whose sockets are translated; "" where none are. Raises SettingsError."""
    return "" if settings.bpf_lb_sock == OFF else _cgroup(settings, "--bpf-lb-sock")


def joining_cgroup(settings: AgentSettings) -> str:
    """The path of the cgroup whose sockets are joined; "" where none are. Raises SettingsError."""
    return "" if settings.sockops_enable == OFF else _cgroup(settings, "--sockops-enable")


def _cgroup(settings: AgentSettings, wanted_by: str) -> str:
    path = settings.cgroup_root or _cgroup_mount(wanted_by)
    if not (Path(path) / "cgroup.controllers").exists():
        raise SettingsError(
            f"--cgroup-root: {path!r} is no cgroup v2 directory; right is one below the mount of type cgroup2"
        )
    return str(Path(path))


def socket_constants(settings: AgentSettings, underlay: Underlay) -> dict[str, int | bytes]:
    """What the programs are told of sockets; nothing where none are translated. Raises SettingsError."""
    if not socket_cgroup(settings):
        return {}
    return {
        "config_node_netns_cookie": underlay.netns_cookie,
        "config_socket_node_only": int(settings.bpf_lb_sock_hostns_only == "on"),
    }


def socket_lb_text(settings: AgentSettings, cgroup: str) -> str:
    """What `status` says; `cgroup` is the one that the log has for the node."""
    if not cgroup:
        return f"{OFF}: endpoints are served at their devices, and the node's own processes reach no cluster addresses"
    whose = "sockets of the node itself" if settings.bpf_lb_sock_hostns_only == "on" else "all sockets"
    return f"{whose} in {cgroup}"


def joining_text(own: Node | None) -> str:
    """What `status` says of joined sockets; `own`: the node as the log has it."""
    return f"sockets in {own.joining_cgroup}" if own is not None and own.joining_cgroup else OFF


def _cgroup_mount(wanted_by: str) -> str:
    for line in MOUNTS.read_text().splitlines():
        _, target, kind = line.split()[:3]
        if kind == "cgroup2":
            return target.encode().decode("unicode_escape")
    raise SettingsError(f"{wanted_by}: cgroup v2 is not mounted; mount it, or set it off")
