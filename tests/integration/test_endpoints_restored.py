"""Endpoints live on when etcd is put back to a backup that does not know them: at that moment, and over a restart."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Sequence
from contextlib import asynccontextmanager

import pytest

from controlplane.agent import build_node
from controlplane.api.schema import EndpointRequest, EndpointResult
from controlplane.commands.cluster import JoinCluster
from controlplane.commands.namespace import ApplyNamespace
from controlplane.commands.policy import ApplyPolicy
from controlplane.commands.workload import ApplyWorkload
from controlplane.model import Device, NodeKey
from controlplane.policy.manifests import canonical
from controlplane.projections.state import State
from controlplane.runtime.checkpoints import fold
from controlplane.runtime.clock import SystemClock
from controlplane.runtime.devices import device_name
from controlplane.runtime.duties import Duties
from controlplane.runtime.keeping import Keeping
from controlplane.runtime.node import Node
from controlplane.runtime.telemetry import Counters
from controlplane.runtime.underlay import Underlay
from controlplane.settings import AgentSettings, OperatorSettings
from datapath.codec import address_bytes, encode_key
from datapath.kernel.fake import FakeKernel, KernelMemory
from datapath.tables import EndpointKey
from kvstore.etcd import EtcdLog
from tests.integration.log_part import LIMITS, Part
from tests.integration.test_etcd_restored import Store, store, wait_until

WAIT_S = 30.0
JOIN = JoinCluster(1, ("10.1.0.0/16",), (24,), ("172.1.0.0/24",))
WHERE = NodeKey("east", "n1")

__all__ = ["store"]


class MadeDevices:
    """Devices that are there from their creation to their deletion, whatever becomes of processes."""

    def __init__(self, found: dict[str, int]) -> None:
        self.found = found

    async def create(self, key: str, netns: str, interface: str, mtu_bytes: int, owner: str) -> Device:
        number = self.found[device_name(key)] = 100 + len(self.found)
        return Device(device_name(key), number, f"02:00:01:00:00:{number:02x}", f"02:00:02:00:00:{number:02x}")

    async def configure(self, netns: str, interface: str, host_mac: str, addresses: Awaitable[Sequence[str]]) -> None:
        await addresses

    async def delete(self, name: str) -> bool:
        return self.found.pop(name, None) is not None

    async def list(self) -> dict[str, int]:
        return dict(self.found)

    async def ensure_tunnel(self, protocol: str, port: int, mtu_bytes: int) -> Device:
        raise AssertionError("the cluster routes natively")

    async def remove_tunnels(self, but: str) -> Sequence[str]:
        return ()

    async def close(self) -> None:
        """Devices stay."""


class Machine:
    """A node's: its directory, kernel and devices outlive its agent, and know whether an address ever lost its row."""

    def __init__(self, store: Store) -> None:
        self.store, self.memory, self.devices = store, KernelMemory(), dict[str, int]()
        self.where = store.folder / "n1"
        self.where.mkdir()

    @asynccontextmanager
    async def running(self, is_killed: bool = False, restore_wait_s: float = WAIT_S) -> AsyncIterator[Node]:
        """`is_killed`: at the end nothing is saved. `restore_wait_s`: after which it goes on without what others had."""
        settings = AgentSettings(
            cluster="east", node="n1", runtime_dir=str(self.where), state_dir=str(self.where), retry_s=0.02,
            retry_s_max=0.1, wait_applied_s=20.0, report_s=0.1, restore_wait_s=restore_wait_s,
        )  # fmt: skip
        log = await EtcdLog.connect([self.store.etcd.endpoint], limits=LIMITS)
        underlay = Underlay(Device("eth0", 2, "02:00:00:00:00:01"), ("192.168.0.1",), 1500)
        kernel = FakeKernel(self.memory)
        node = build_node(settings, underlay, SystemClock(), log, kernel, MadeDevices(self.devices), None)
        await node.open()
        tasks = [asyncio.create_task(each) for each in node.tasks()]
        try:
            await wait_until(lambda: node.ready and node.joined)
            yield node
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            if is_killed:
                await log.close()
            else:
                await node.close()

    def has_row(self, made: EndpointResult) -> bool:
        address = made.addresses[0].address.removesuffix("/32")
        return encode_key("endpoints", EndpointKey(address_bytes(address))) in self.memory.tables["endpoints"]


@asynccontextmanager
async def operator(store: Store, after_restore: str = "name") -> AsyncIterator[Part]:
    """With its duties."""
    part = await store.part("operator")
    settings = OperatorSettings(
        cluster="east", cluster_id=1, duty_s=0.1, retry_s=0.02, wait_applied_s=20.0, after_restore=after_restore
    )
    clock, counters = SystemClock(), Counters()
    duties = Duties(part.log, part.follower, part.writer, clock, settings, counters, (JOIN,))
    keeping = Keeping(part.follower, part.writer, duties, clock, settings, counters)
    async with part.running():
        tasks = [asyncio.create_task(each.run()) for each in (duties, keeping)]
        try:
            yield part
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


def request(name: str) -> EndpointRequest:
    return EndpointRequest(f"c-{name}", "eth0", "/run/netns/none", "shop", name)


async def make(node: Node, name: str) -> EndpointResult:
    """An endpoint of a declared workload."""
    await node.writer.submit(ApplyWorkload("shop", name, {"app": name}))
    return await node.parts.endpoints.create(request(name))


async def as_logged(node: Node) -> dict[str, tuple[int, str]]:
    """By workload, what a process that folds the log from its first record finds."""
    state = await fold(node.log, State())
    return {each.workload: (each.endpoint_id, f"{each.ipv4}/32") for each in state.endpoints_of(WHERE)}


@pytest.mark.parametrize("backup", ["before the node", "before the endpoint"])
async def test_an_endpoint_lives_over_a_restore_and_the_next_start(store, backup):
    """The log says the same of it again, its row is there at every moment, and the next start keeps its device."""
    async with operator(store):
        await asyncio.sleep(0)
        if backup == "before the node":
            await wait_until_joined(store)
            await store.keep()
        machine = Machine(store)
        async with machine.running() as node:
            first = await make(node, "first")
            if backup == "before the endpoint":
                await store.keep()
            second = await make(node, "second")
            await node.writer.submit(ApplyNamespace("bank", {"team": "b"}))
            lost = True

            def is_back() -> bool:
                nonlocal lost
                lost = lost and machine.has_row(first) and machine.has_row(second)
                return node.follower.rewinds > 0 and not node.follower.held and node.follower.in_sync

            await store.put_back()
            await wait_until(is_back)
            made = {"first": first, "second": second}
            expected = {name: (each.endpoint_id, each.addresses[0].address) for name, each in made.items()}
            assert lost, "a row of a living endpoint was gone meanwhile"
            assert await as_logged(node) == expected
            assert [each.text for each in node.losses.open()] == ["Namespace bank"]
            assert any("Namespace bank (gone)" in problem for problem in node.status().problems)
            third = await make(node, "third")
            expected["third"] = (third.endpoint_id, third.addresses[0].address)
            assert len(set(expected.values())) == 3
        async with machine.running() as node:
            assert await as_logged(node) == expected
            assert [each.text for each in node.losses.open()] == ["Namespace bank"]
            assert len(machine.devices) == 3 and all(map(machine.has_row, (first, second, third)))


async def wait_until_joined(store: Store) -> None:
    """The cluster is in the log."""
    part = await store.part("node.reader")
    async with part.running():
        await wait_until(lambda: "east" in part.follower.state.clusters)


@pytest.mark.parametrize("after_restore", ["keep", "name"])
async def test_a_policy_that_was_added_goes_on_to_hold(store, after_restore):
    """The operator applies it again, and no row of it goes meanwhile; told otherwise it is only named."""
    manifest = {
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"name": "closed", "namespace": "shop"},
        "spec": {"podSelector": {}},
    }  # fmt: skip
    async with operator(store, after_restore) as knowing:
        machine = Machine(store)
        keeps = after_restore == "keep"
        async with machine.running(restore_wait_s=WAIT_S if keeps else 0.5) as node:
            made = await make(node, "web")
            await store.keep()
            written = await node.writer.submit(ApplyPolicy("NetworkPolicy", "shop", "closed", canonical(manifest)))
            await node.wait_realized(written.revision, WAIT_S)
            await knowing.follower.wait_applied(written.revision, WAIT_S)
            subjects = dict(machine.memory.tables["policy_subjects"])
            assert subjects and machine.has_row(made)
            stood = True

            def is_back() -> bool:
                nonlocal stood
                stood = stood and machine.memory.tables["policy_subjects"] == subjects
                return node.follower.rewinds > 0 and not node.follower.held and node.follower.in_sync

            await store.put_back()
            await wait_until(is_back)
            assert stood or not keeps
            await node.wait_realized(node.follower.head_revision, WAIT_S)
            assert (machine.memory.tables["policy_subjects"] == subjects) is keeps
            assert [each.text for each in node.losses.open()] == ([] if keeps else ["NetworkPolicy shop/closed"])


async def test_an_agent_that_was_dead_meanwhile_knows_its_endpoints(store):
    """Its checkpoint is older than the backup, so the log seems whole to it: what it has written of itself says more."""
    async with operator(store):
        machine = Machine(store)
        async with machine.running(is_killed=True) as node:
            await store.keep()
            made = await make(node, "web")
        await store.put_back()
        async with machine.running() as node:
            assert await as_logged(node) == {"web": (made.endpoint_id, made.addresses[0].address)}
            assert len(machine.devices) == 1 and machine.has_row(made)


async def test_an_endpoint_that_comes_back_without_a_device_goes_again(store):
    """Deleted since the backup, it is in the log again until its node sees it."""
    async with operator(store):
        machine = Machine(store)
        async with machine.running() as node:
            await make(node, "web")
            await store.keep()
            await node.parts.endpoints.delete("c-web", "eth0")
            await store.put_back()
            await wait_until(lambda: node.follower.rewinds > 0 and not node.follower.held and node.follower.in_sync)
            assert await as_logged(node) == {}
            assert machine.devices == {}
