"""Whatever happens to the agents and the log, in the end every kernel holds what the log says. MESHLOG_SEEDS=7,8 or
MESHLOG_SEEDS=200 (so many) chooses the seeds; a failing one is in the test's name."""

import asyncio
import os
from pathlib import Path
from typing import Any

import pytest

from controlplane.api.schema import EndpointRequest
from controlplane.commands.namespace import ApplyNamespace
from controlplane.commands.policy import ApplyPolicy, RemovePolicy
from controlplane.commands.service import ApplyService, RemoveService
from controlplane.commands.workload import ApplyWorkload, RemoveWorkload
from controlplane.model import ServicePort
from controlplane.policy.manifests import canonical
from controlplane.runtime.endpoints import EndpointRefused
from controlplane.runtime.writer import WriterFailed
from kvstore.errors import LogUnavailable
from tests.simulation.mesh import SimulatedAgent, SimulatedMesh

STEPS = 60
APPS = ("web", "api", "db")


def seeds() -> list[int]:
    """From the environment; five otherwise."""
    text = os.environ.get("MESHLOG_SEEDS", "5")
    return [int(part) for part in text.split(",")] if "," in text else list(range(int(text)))


def workload(mesh: SimulatedMesh) -> Any:
    name = f"{mesh.chance.choice(APPS)}-{mesh.chance.randrange(4)}"
    if mesh.chance.random() < 0.15:
        return RemoveWorkload("shop", name)
    labels = {"app": name.split("-")[0], "tier": mesh.chance.choice("ab")}
    return ApplyWorkload("shop", name, labels, mesh.chance.random() < 0.9)


def service(mesh: SimulatedMesh) -> Any:
    app = mesh.chance.choice(APPS)
    if mesh.chance.random() < 0.2:
        return RemoveService("shop", app)
    port = ServicePort("http", 80, "TCP", mesh.chance.choice((8080, 9090)))
    return ApplyService("shop", app, (), (port,), {"app": app}, is_global=mesh.chance.random() < 0.5)


def policy(mesh: SimulatedMesh) -> Any:
    app, peer = mesh.chance.choice(APPS), mesh.chance.choice(APPS)
    if mesh.chance.random() < 0.3:
        return RemovePolicy("NetworkPolicy", "shop", app)
    manifest = {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": app, "namespace": "shop"},
        "spec": {
            "podSelector": {"matchLabels": {"app": app}},
            "ingress": [{"from": [{"podSelector": {"matchLabels": {"app": peer}}}]}],
        },
    }
    return ApplyPolicy("NetworkPolicy", "shop", app, canonical(manifest))


def namespace(mesh: SimulatedMesh) -> Any:
    return ApplyNamespace("shop", {"team": mesh.chance.choice("xy")})


async def populate(mesh: SimulatedMesh) -> None:
    """Workloads in both clusters, so that endpoints can be made from the first step on."""
    for agent in mesh.agents:
        declared = [ApplyWorkload("shop", f"{app}-{n}", {"app": app}) for app in APPS for n in range(4)]
        await agent.work.writer.submit_all(declared)


async def change(mesh: SimulatedMesh, agent: SimulatedAgent) -> None:
    """One change of the mesh through this agent; refused or unanswered ones are part of life."""
    wishes = [mesh.chance.choice((workload, workload, service, policy, namespace))(mesh) for _ in range(3)]
    attachment = f"c{mesh.chance.randrange(6)}"
    name = f"{mesh.chance.choice(APPS)}-{mesh.chance.randrange(4)}"
    kind = mesh.chance.random()
    try:
        async with asyncio.timeout(2):
            if kind < 0.5:
                await agent.work.writer.submit_all(wishes)
            elif kind < 0.85:
                request = EndpointRequest(attachment, "eth0", "/run/netns/none", "shop", name)
                await agent.work.parts.endpoints.create(request)
            else:
                await agent.work.parts.endpoints.delete(attachment, "eth0")
    except (WriterFailed, EndpointRefused, TimeoutError):
        return


async def trouble(mesh: SimulatedMesh, agent: SimulatedAgent) -> None:
    """One fault."""
    kind = mesh.chance.randrange(7)
    if kind == 0:
        await agent.crash()
    elif kind == 1:
        agent.kernel.crash_after(mesh.chance.randrange(1, 12))
    elif kind == 2:
        agent.log.fail_next("append", LogUnavailable("the answer was lost"), landed=True)
    elif kind == 3:
        agent.log.fail_next("append", LogUnavailable("never arrived"))
    elif kind == 4:
        agent.log.disconnect()
    elif kind == 5:
        mesh.store.expire_session(agent.cluster, f"node.{agent.node}")
    elif kind == 6:
        agent.kernel.fail_call("put", mesh.chance.choice(("ipcache", "policy", "services", "routes")), 1)


@pytest.mark.parametrize("seed", seeds())
async def test_every_kernel_ends_as_the_log_says(seed: int, tmp_path: Path) -> None:
    """Crashes in mid-write, lost answers, lost sessions, outages, refused rows, records delivered twice or in another
    order: after quiet, each kernel equals the rows derived from a replay of the log, and all nodes agree on the state."""
    print(f"seed {seed}")
    mesh = SimulatedMesh(seed, tmp_path)
    try:
        await mesh.settle()
        await populate(mesh)
        for _ in range(STEPS):
            agent = mesh.chance.choice(mesh.agents)
            if not agent.is_running:
                agent.start()
            if mesh.chance.random() < 0.25:
                await trouble(mesh, agent)
            else:
                await change(mesh, agent)
            if mesh.chance.random() < 0.3:
                agent.log.reconnect()
        await mesh.settle()
        state = await mesh.replayed()
        assert state.endpoints, "the run made no endpoint: it proves nothing"
        assert mesh.duplicates, "no record came twice: it proves less than it says"
        print(f"{mesh.duplicates} duplicates, {mesh.reorderings} reorderings")
        assert not state.refused_events, state.refused_events
        for agent in mesh.agents:
            assert agent.work.follower.state.digest() == state.digest()
            assert agent.memory.tables == mesh.rows(state, agent).tables, agent.node
    finally:
        await mesh.close()


async def test_restart_of_a_quiet_mesh_writes_nothing(tmp_path: Path) -> None:
    """An agent that is killed and started again on an unchanged mesh writes no row."""
    mesh = SimulatedMesh(1, tmp_path)
    try:
        await mesh.settle()
        await populate(mesh)
        for _ in range(15):
            await change(mesh, mesh.chance.choice(mesh.agents))
        await mesh.settle()
        for agent in mesh.agents:
            before = agent.memory.writes
            await agent.crash()
            agent.start()
            await mesh.settle()
            assert agent.memory.writes == before, agent.node
    finally:
        await mesh.close()
