"""What of the lab runs, and how a command gets into a part of it.

Belongs here: reading. Does not belong here: building or removing.
"""

import os
import sys
from pathlib import Path
from typing import Any

from controlplane.lab import machine, nodes, pods, processes, topology
from controlplane.lab.up import read_topology


def describe() -> list[dict[str, Any]]:
    """One row per process of the lab. Raises LabFailure where there is no lab."""
    built = read_topology()
    rows = [_row(nodes.ETCD, "etcd", "", topology.ETCD_DIR)]
    for cluster in topology.CLUSTERS:
        path = topology.operator_socket(cluster.name)
        rows.append(_row(f"operator-{cluster.name}", "operator", path, path))
    rows += [_row(nodes.agent_name(node), "agent", node.socket, f"{node.netns} {node.ipv4} {node.ipv6}")
             for node in built.nodes]
    rows += [_row(pods.process_name(pod), "pod", "", f"{pod.node} {pod.netns}") for pod in built.pods]
    return rows


def _row(name: str, kind: str, socket_path: str, where: str) -> dict[str, Any]:
    process = processes.find(name)
    status = "running" if process else "stopped"
    if process and socket_path:
        answer = nodes.status_of(socket_path)
        status = str(answer["health"]) if answer else "no answer"
    return {"name": name, "kind": kind, "pid": process.pid if process else 0, "status": status,
            "well": status in ("running", "ok"), "where": where}


def command_in(place: str, command: list[str]) -> tuple[list[str], dict[str, str]]:
    """The command line that runs `command` in a node, a pod or outside, and its environment. Raises LabFailure.

    Only the network namespace and the cgroup are entered: files and mounts stay as they are. The program `meshlog` is
    on the PATH and asks the node's agent.
    """
    built = read_topology()
    if place == topology.OUTSIDE.name:
        argv = machine.in_netns(topology.OUTSIDE.netns, *command)
        return machine.in_cgroup(machine.ensure_cgroup(f"{topology.CGROUP}/{place}"), argv), dict(os.environ)
    by_name = {node.name: node for node in built.nodes}
    pod = None if place in by_name else pods.resolve(place, built.pods)
    if pod is None and place not in by_name:
        names = ", ".join([*by_name, topology.OUTSIDE.name, *(pod.title for pod in built.pods)])
        raise machine.LabFailure(f"{place!r} is no place of the lab; there are: {names}")
    node = by_name[pod.node if pod else place]
    programs = str(Path(sys.executable).parent)
    env = {**os.environ, "PATH": f"{programs}:{os.environ.get('PATH', os.defpath)}", "MESHLOG_SOCKET": node.socket}
    netns, cgroup = (pod.netns, pod.cgroup) if pod else (node.netns, f"{node.cgroup}/node")
    return machine.in_cgroup(machine.ensure_cgroup(cgroup), machine.in_netns(netns, *command)), env
