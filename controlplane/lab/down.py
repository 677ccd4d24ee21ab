"""The lab's end: every trace is found by name and removed, whatever state the lab is in.

Belongs here: finding and removing. Does not belong here: trusting records. Nothing is taken from the lab's own files
but the pids of processes, and these only with their start time.
"""

import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

from controlplane.lab import machine, processes, topology

Say = Callable[[str], None]


def tear_down(say: Say) -> list[str]:
    """Remove the lab; returns what is left, one line each (empty: no trace)."""
    cgroup = machine.cgroup_root() / topology.CGROUP
    if not traces(cgroup):
        return []
    say("stopping processes")
    _stop_agents_first()
    machine.kill_cgroup(cgroup)
    for name in processes.recorded():
        processes.stop(name, signal.SIGKILL)
    say("removing pinned maps and programs")
    for target in machine.mounts_below(topology.ROOT):
        _unmount(target)
    say("removing namespaces")
    for name in machine.netns_names(topology.PREFIX):
        machine.remove_netns(name)
    say("removing cgroups and files")
    machine.remove_cgroup(cgroup)
    if not machine.mounts_below(topology.ROOT):
        shutil.rmtree(topology.ROOT, ignore_errors=True)
    return traces(cgroup)


def _stop_agents_first() -> None:
    """An agent that is asked to end closes its session in the log; etcd goes last."""
    names = [name for name in processes.recorded() if not name.startswith("etcd")]
    for name in names:
        process = processes.find(name)
        if process is not None:
            os.kill(process.pid, signal.SIGTERM)
    machine.wait_for(lambda: not any(processes.find(name) for name in names), seconds_max=3.0)


def _unmount(target: str) -> None:
    machine.run("umount", target, check=False)
    if target in machine.mounts_below(target):
        machine.run("umount", "--lazy", target, check=False)


def traces(cgroup: Path) -> list[str]:
    """What of a lab exists, one line each."""
    found = [f"process {pid} in {cgroup}" for pid in machine.cgroup_pids(cgroup)] if cgroup.is_dir() else []
    found += [f"cgroup {cgroup}"] if cgroup.is_dir() else []
    found += [f"mount {target}" for target in machine.mounts_below(topology.ROOT)]
    found += [f"network namespace {name}" for name in machine.netns_names(topology.PREFIX)]
    found += [f"directory {topology.ROOT}"] if os.path.lexists(topology.ROOT) else []
    return found
