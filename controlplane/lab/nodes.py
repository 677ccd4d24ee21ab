"""The lab's nodes: namespaces on one wire, etcd, operators and agents.

Belongs here: making each of them, each call safe to repeat. Does not belong here: the order of a whole lab (up.py).
"""

import sys
from pathlib import Path

from controlplane.api.connection import Connection
from controlplane.api.quickclient import ApiRefused, ApiUnavailable
from controlplane.lab import machine, processes, topology
from controlplane.lab.topology import LabCluster, LabHost, LabNode

ETCD = "etcd"
START_S_MAX = 30.0

NODE_SYSCTLS = {
    "net.ipv4.ip_forward": "1",
    "net.ipv6.conf.all.forwarding": "1",
    "net.ipv6.conf.all.accept_dad": "0",
    "net.ipv6.conf.default.accept_dad": "0",
    "net.ipv4.conf.all.rp_filter": "0",
    "net.ipv4.conf.default.rp_filter": "0",
}

CLIENT_SYSCTLS = {name: value for name, value in NODE_SYSCTLS.items() if name.endswith("accept_dad")}


def meshlog_program() -> str:
    """The program that this Python belongs to, so that the lab runs what is being looked at."""
    return str(Path(sys.executable).parent / "meshlog")


def build_wire() -> None:
    """The bridge, in a namespace of its own: never in the machine's."""
    machine.ensure_netns(topology.WIRE)
    machine.sysctl_in(topology.WIRE, {"net.ipv6.conf.all.disable_ipv6": "1", "net.ipv6.conf.default.disable_ipv6": "1"})
    if not has_link(topology.WIRE, topology.BRIDGE):
        machine.run(
            "ip", "-n", topology.WIRE, "link", "add", topology.BRIDGE, "type", "bridge",
            "stp_state", "0", "forward_delay", "0", "mcast_snooping", "0",
        )
    machine.run("ip", "-n", topology.WIRE, "link", "set", topology.BRIDGE, "up")


def build_node(node: LabNode) -> None:
    """Its namespace, its underlay device on the wire, its directories and its cgroup."""
    machine.ensure_netns(node.netns)
    machine.sysctl_in(node.netns, NODE_SYSCTLS)
    _join_wire(node)
    Path(node.run_dir).mkdir(mode=0o700, parents=True, exist_ok=True)
    machine.ensure_cgroup(f"{node.cgroup}/agent")


def build_outside() -> None:
    """The client that is no part of the mesh."""
    machine.ensure_netns(topology.OUTSIDE.netns)
    machine.sysctl_in(topology.OUTSIDE.netns, CLIENT_SYSCTLS)
    _join_wire(topology.OUTSIDE)


def _join_wire(host: LabHost) -> None:
    if not has_link(host.netns, topology.UPLINK):
        machine.run(
            "ip", "-n", topology.WIRE, "link", "add", host.name, "type", "veth",
            "peer", "name", topology.UPLINK, "address", host.mac, "netns", host.netns,
        )
    machine.run("ip", "-n", topology.WIRE, "link", "set", host.name, "master", topology.BRIDGE, "up")
    _checksums_by_software(topology.WIRE, host.name)
    _checksums_by_software(host.netns, topology.UPLINK)
    for address in (host.ipv4, host.ipv6):
        machine.run("ip", "-n", host.netns, "address", "replace", address, "dev", topology.UPLINK)
    machine.run("ip", "-n", host.netns, "link", "set", topology.UPLINK, "up")


def has_link(netns: str, name: str) -> bool:
    listed = machine.run("ip", "-n", netns, "-o", "link", "show")
    return any(line.split(": ")[1].partition("@")[0] == name for line in listed.splitlines())


def _checksums_by_software(netns: str, device: str) -> None:
    """Between virtual devices wrong checksums pass unseen unless the sender must fill them in."""
    machine.run(*machine.in_netns(netns, "ethtool", "-K", device, "tx", "off"))


# --- processes --------------------------------------------------------------------------------------------------


def etcd_endpoint() -> str:
    from kvstore.embedded import CLIENT_SOCKET

    return f"unix:{topology.ETCD_DIR}/{CLIENT_SOCKET}"


def ensure_etcd() -> bool:
    """Start the embedded etcd; it outlives this command. True if it was started now."""
    if processes.find(ETCD):
        return False
    program = [sys.executable, "-m", "controlplane.lab.etcd", topology.ETCD_DIR]
    cgroup = machine.ensure_cgroup(f"{topology.CGROUP}/etcd")
    pid = machine.run(*machine.in_cgroup(cgroup, machine.in_netns(topology.WIRE, *program)))
    processes.record(ETCD, int(pid))
    return True


def ensure_operator(cluster: LabCluster, tunnel: str) -> bool:
    """True if it was started now. One that runs with another `tunnel`, "" for none, is started anew."""
    name = f"operator-{cluster.name}"
    routing = ["--routing-mode", "tunnel", "--tunnel-protocol", tunnel] if tunnel else ["--routing-mode", "native"]
    running = processes.find(name)
    if running and " ".join(routing) in processes.command_line(running.pid):
        return False
    processes.stop(name)
    run_dir = Path(topology.operator_socket(cluster.name)).parent
    run_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    argv = [meshlog_program(), "operator", "--cluster", cluster.name, "--cluster-id", str(cluster.cluster_id)]
    argv += ["--etcd", etcd_endpoint(), "--runtime-dir", str(run_dir), "--state-dir", f"{run_dir}/state"]
    for cidr, length in zip(cluster.pod_cidrs, cluster.block_prefixes, strict=True):
        argv += ["--pod-cidr", cidr, "--block-size", str(length)]
    for cidr in cluster.service_cidrs:
        argv += ["--service-cidr", cidr]
    argv += routing
    processes.start(name, argv, topology.WIRE, f"{topology.CGROUP}/{name}")
    return True


def agent_name(node: LabNode) -> str:
    return f"agent-{node.name}"


def ensure_agent(node: LabNode) -> bool:
    """True if it was started now."""
    if processes.find(agent_name(node)):
        return False
    argv = [meshlog_program(), "agent", "--cluster", node.cluster, "--node", node.name, "--etcd", etcd_endpoint()]
    argv += ["--device", topology.UPLINK, "--bpffs", topology.BPFFS]
    argv += ["--bpf-lb-sock", "on", "--cgroup-root", str(machine.ensure_cgroup(node.cgroup))]
    argv += ["--runtime-dir", node.run_dir, "--state-dir", f"{node.run_dir}/state"]
    processes.start(agent_name(node), argv, node.netns, f"{node.cgroup}/agent")
    return True


def wait_ready(name: str, socket_path: str, seconds_max: float = START_S_MAX) -> dict[str, object]:
    """Wait until it says `ready`, and return its status. Raises LabFailure, at once if the process has ended."""
    found: dict[str, object] = {}

    def is_ready() -> bool:
        if processes.find(name) is None:
            raise machine.LabFailure(f"{name} ended; see {processes.log_path(name)}{processes.last_line(name)}")
        found.clear()
        found.update(status_of(socket_path) or {})
        return bool(found.get("ready"))

    if not machine.wait_for(is_ready, seconds_max, pause_s=0.05):
        problems = found.get("problems") or "no answer on its socket"
        raise machine.LabFailure(
            f"{name} is not ready after {seconds_max:.0f} s: {problems}; see {processes.log_path(name)}"
        )
    return dict(found)


def status_of(socket_path: str) -> dict[str, object] | None:
    """None while nobody answers."""
    try:
        status: dict[str, object] = Connection(socket_path, timeout_s=5).get("/v1/status")
    except (ApiUnavailable, ApiRefused):
        return None
    return status
