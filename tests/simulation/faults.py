"""What goes wrong in a simulated mesh: one function for each fault, and how often each comes.

Belongs here: choosing victims and moments. Does not belong here: how a process dies or a record is lost (process.py).
"""

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING

from controlplane.runtime.checkpoints import CHECKPOINT_FILE
from kvstore import checkpoint_parts, keys
from kvstore.memory import _Kept
from tests.simulation.process import APPEND_FAULTS, KILL_POINTS, WATCH_FAULTS, Process

if TYPE_CHECKING:
    from tests.simulation.mesh import Machine, NodeMachine, SimulatedMesh

CLUSTERS, VISITOR = ("east", "west"), "south"
DOWN_S = 8.0


def fault(mesh: "SimulatedMesh") -> None:
    """One of them."""
    act = mesh.chance.choices([each for each, _ in FAULTS], [weight for _, weight in FAULTS])[0]
    act(mesh)
    mesh.seen[f"fault: {act.__name__}"] += 1


def _victim(mesh: "SimulatedMesh") -> "tuple[Machine, Process] | None":
    running = [each for each in mesh.machines if each.is_running]
    if not running:
        return None
    machine = mesh.chance.choice(running)
    assert machine.process is not None
    return machine, machine.process


def _node(mesh: "SimulatedMesh") -> "NodeMachine | None":
    running = [each for each in mesh.nodes if each.is_running]
    return mesh.chance.choice(running) if running else None


def kill(mesh: "SimulatedMesh") -> None:
    if found := _victim(mesh):
        mesh.note(f"kill {found[0]}")
        mesh.kill(found[1])


def take_down(mesh: "SimulatedMesh") -> None:
    """A node, for longer than its operator waits for it."""
    if node := _node(mesh):
        mesh.note(f"{node} is taken down")
        assert node.process is not None
        mesh.kill(node.process)
        node.down_until_s = asyncio.get_running_loop().time() + DOWN_S


def kill_at_a_point(mesh: "SimulatedMesh") -> None:
    if found := _victim(mesh):
        point, times = mesh.chance.choice(KILL_POINTS), mesh.chance.randrange(1, 4)
        mesh.note(f"{found[0]} will die {point}, {times}")
        found[1].kill_at(point, times)


def crash_in_kernel_writes(mesh: "SimulatedMesh") -> None:
    if node := _node(mesh):
        node.kernel.crash_after(mesh.chance.randrange(1, 20))


def spoil_appends(mesh: "SimulatedMesh") -> None:
    if found := _victim(mesh):
        kinds = mesh.chance.choices(APPEND_FAULTS, k=mesh.chance.randrange(1, 3))
        mesh.note(f"{found[0]}: appends {kinds}")
        found[1].log.append_faults += kinds


def spoil_watch(mesh: "SimulatedMesh") -> None:
    if found := _victim(mesh):
        kinds = mesh.chance.choices(WATCH_FAULTS, k=mesh.chance.randrange(1, 3))
        mesh.note(f"{found[0]}: watch {kinds}")
        found[1].log.watch_faults += kinds
        # Records change places only where several come at once: for a while it reads slowly.
        found[1].lag_s = max(found[1].lag_s, 0.03)
        asyncio.get_running_loop().call_later(2.0, setattr, found[1], "lag_s", 0.0)


def cut_off_one(mesh: "SimulatedMesh") -> None:
    if found := _victim(mesh):
        _cut_off(mesh, [found[0]])


def cut_off_cluster(mesh: "SimulatedMesh") -> None:
    cluster = mesh.chance.choice(mesh.nodes).cluster
    _cut_off(mesh, [each for each in mesh.machines if each.cluster == cluster])


def _cut_off(mesh: "SimulatedMesh", machines: "list[Machine]") -> None:
    for_s = mesh.chance.choice((0.3, 1.0, 5.0, 9.0))
    mesh.note(f"cut off for {for_s} s: {', '.join(map(str, machines))}")
    mesh.cut_off(machines, for_s)


def stop(mesh: "SimulatedMesh") -> None:
    if found := _victim(mesh):
        for_s = mesh.chance.choice((0.3, 1.0, 5.0, 9.0))
        mesh.note(f"SIGSTOP {found[0]} for {for_s} s")
        mesh.stop(found[1], for_s)


def slow_down(mesh: "SimulatedMesh") -> None:
    if found := _victim(mesh):
        found[1].lag_s = mesh.chance.choice((0.0, 0.02, 0.2))


def expire_session(mesh: "SimulatedMesh") -> None:
    if found := _victim(mesh):
        mesh.note(f"the session of {found[0]} is lost")
        mesh.store.expire_session(found[0].cluster, found[0].writer_name)


def fail_kernel(mesh: "SimulatedMesh") -> None:
    if node := _node(mesh):
        tables = ("ipcache", "policy", "policy_subjects", "services", "backends", "routes", "devices", "node_state")
        call, table = mesh.chance.choice(("put", "put", "delete", "dump")), mesh.chance.choice(tables)
        mesh.note(f"{node}: {call} of {table} fails")
        node.kernel.fail_call(call, table, 1)


def move_clock(mesh: "SimulatedMesh") -> None:
    if found := _victim(mesh):
        found[1].clock.wrong_by_s += mesh.chance.choice((-3600.0, -1.0, 1.0, 3600.0))


def rival_operator(mesh: "SimulatedMesh") -> None:
    """A second process under the name of one that runs, or the only one, after the other died."""
    machine = mesh.chance.choice(mesh.operators[1::2])
    if machine.is_running:
        assert machine.process is not None
        mesh.kill(machine.process)
    else:
        machine.start()


def switch_routing(mesh: "SimulatedMesh") -> None:
    """The operator comes back with another routing mode."""
    for machine in (mesh.chance.choice(mesh.operators[::2]),):
        mesh.modes[machine.cluster] = mesh.chance.choice(("native", "tunnel"))
        for each in mesh.operators:
            if each.cluster == machine.cluster and each.is_running:
                assert each.process is not None
                mesh.kill(each.process)
        machine.start()


def damage_checkpoint(mesh: "SimulatedMesh") -> None:
    """A file of a machine is gone, cut, or holds other bytes."""
    path = mesh.chance.choice(mesh.machines).where
    for found in sorted(path.rglob(CHECKPOINT_FILE)):
        content = bytearray(found.read_bytes())
        kind = mesh.chance.randrange(3)
        found.unlink()  # another name of the file stays as it is
        if kind == 1:
            found.write_bytes(content[: mesh.chance.randrange(len(content))])
        elif kind == 2:
            content[mesh.chance.randrange(len(content))] ^= 1 << mesh.chance.randrange(8)
            found.write_bytes(content)
        mesh.note(f"checkpoint {found.parent.name}: {('gone', 'cut', 'other bytes')[kind]}")


def damage_shared(mesh: "SimulatedMesh") -> None:
    """A part of a checkpoint in the store, of a cluster whose history is whole: another may not need it."""
    whole = [each for each in (*CLUSTERS, VISITOR) if each not in mesh.store.lows()]
    parts = [key for each in whole for key in mesh.store.table(keys.PREFIX + b"checkpoint/%b/" % each.encode())]
    if parts:
        key = mesh.chance.choice(parts)
        kept = mesh.store.kept[key]
        content = bytearray(kept.value)
        content[mesh.chance.randrange(len(content))] ^= 1
        mesh.spoilt[key] = (asyncio.get_running_loop().time(), kept)
        mesh.store.kept[key] = _Kept(bytes(content), kept.revision, kept.lease)
        mesh.note(f"damage {keys.relative(key)}")


def start_cut_off(mesh: "SimulatedMesh") -> None:
    """A node's agent starts while the log is away, with the checkpoint that it has, which may be old."""
    if node := _node(mesh):
        assert node.process is not None
        mesh.kill(node.process)
        node.start()
        _cut_off(mesh, [node])


def restore(mesh: "SimulatedMesh") -> None:
    """etcd is put back to a backup: another store id, and an end of the log that has been passed before."""
    if mesh.store.records:
        revision = int(mesh.chance.choice(mesh.store.records[-20:]).revision)
        mesh.note(f"restore to {revision} of {mesh.store.revision}")
        mesh.restore(revision)


FAULTS: tuple[tuple[Callable[["SimulatedMesh"], None], int], ...] = (
    (kill, 8), (take_down, 3), (kill_at_a_point, 14), (crash_in_kernel_writes, 6), (spoil_appends, 14), (spoil_watch, 18),
    (cut_off_one, 8), (cut_off_cluster, 3), (stop, 6), (slow_down, 5), (expire_session, 6), (fail_kernel, 8),
    (move_clock, 4), (rival_operator, 4), (switch_routing, 2), (damage_checkpoint, 6), (start_cut_off, 6),
    (damage_shared, 2), (restore, 4),
)  # fmt: skip
"""With its weight."""
assert checkpoint_parts.FORMAT == 1, "the keys of shared checkpoints are looked for by their name here"
