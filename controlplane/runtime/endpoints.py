"""The life of this node's endpoints: from a request to a device with addresses whose rows are in the kernel, and back.

Belongs here: the order of the steps, and undoing them when one fails. Does not belong here: what an endpoint gets
(commands/endpoint.py), its rows (desired/endpoints.py), system calls (devices.py).
"""

import asyncio
import errno
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import structlog

from controlplane.api import schema
from controlplane.commands.announcing import stale_endpoints
from controlplane.commands.endpoint import CreateEndpoint, DeleteEndpoint
from controlplane.commands.types import Rejection
from controlplane.events import EndpointCreated
from controlplane.model import Device, Endpoint, NodeKey
from controlplane.runtime.announced import OwnFile
from controlplane.runtime.clock import Clock
from controlplane.runtime.devices import Devices, device_name
from controlplane.runtime.follower import Follower
from controlplane.runtime.telemetry import Counters
from controlplane.runtime.writer import Writer, Written
from controlplane.settings import AgentSettings
from datapath.errors import DatapathError
from datapath.kernel.endpoint_side import GATEWAY_IPV4, GATEWAY_IPV6
from datapath.reconciler import Reconciler

type_Result = TypeVar("type_Result")


class EndpointRefused(Exception):
    """The endpoint cannot be made or removed; `status` as in HTTP, `field` of the request."""

    def __init__(self, status: int, reason: str, field: str = "") -> None:
        super().__init__(reason)
        self.status = status
        self.field = field


class Endpoints:
    """The endpoints of one node. Requests for one attachment follow each other; others run side by side."""

    def __init__(
        self,
        settings: AgentSettings,
        follower: Follower,
        writer: Writer,
        reconciler: Reconciler,
        devices: Devices,
        clock: Clock,
        counters: Counters,
        mtu_bytes: Callable[[], int],
        own: OwnFile,
    ) -> None:
        self._settings = settings
        self._follower = follower
        self._writer = writer
        self._reconciler = reconciler
        self._devices = devices
        self._clock = clock
        self._counters = counters
        self._mtu_bytes = mtu_bytes
        self._own = own
        self._locks: dict[tuple[str, str], asyncio.Lock] = {}
        self._creations = 0
        self._created_s = clock.monotonic_s()
        self._logger = structlog.get_logger()

    def idle_s(self) -> float:
        """How long ago the last creation ended; 0 while one is under way."""
        return 0.0 if self._creations else self._clock.monotonic_s() - self._created_s

    def find(self, container_id: str, interface: str) -> Endpoint | None:
        """The endpoint of an attachment, as the log has it."""
        return self._follower.state.endpoint_of(
            self._settings.cluster, self._settings.node, container_id, interface
        )

    async def create(self, request: schema.EndpointRequest) -> schema.EndpointResult:
        """Returns when packets can flow. On any failure nothing of it stays. Raises EndpointRefused."""
        return await self._alone(request.container_id, request.interface, self._create_counted(request))

    async def delete(self, container_id: str, interface: str) -> schema.EndpointRemoval:
        """Idempotent. Raises EndpointRefused, WriterFailed."""
        return await self._alone(container_id, interface, self._delete(container_id, interface))

    async def check(self, container_id: str, interface: str) -> list[str]:
        """What is not as it should be: nothing, when all is well. Raises EndpointRefused 404."""
        endpoint = self.find(container_id, interface)
        if endpoint is None:
            raise EndpointRefused(404, f"no endpoint for container {container_id!r}, interface {interface!r}")
        problems = []
        found = (await self._devices.list()).get(endpoint.device.name)
        if found is None:
            problems.append(f"device {endpoint.device.name} is gone")
        elif found != endpoint.device.ifindex:
            problems.append(
                f"device {endpoint.device.name} has ifindex {found}, the log says {endpoint.device.ifindex}"
            )
        revision = self._follower.state.revision
        if self._reconciler.realized_generation < revision:
            problems.append(
                f"the kernel is realized through {self._reconciler.realized_generation} of {revision}"
            )
        problems += [f"{row.table}: {row.reason}" for row in self._reconciler.status().not_done]
        return problems

    async def remove_stale(self) -> None:
        """Make log and devices of this node agree after a start: endpoints whose device is gone leave the log, devices
        without an endpoint go. Only when in sync, and while none is being created. Raises WriterFailed, KernelError."""
        rewinds = self._follower.rewinds
        devices, where = await self._devices.list(), NodeKey(self._settings.cluster, self._settings.node)
        gone = stale_endpoints(self._follower.state, where, devices)
        await self._writer.submit_ahead(gone)
        if rewinds != self._follower.rewinds:
            return  # a state that lacks endpoints which live says nothing of their devices
        kept = {endpoint.device.name for endpoint in self._follower.state.endpoints_of(where)}
        orphans = sorted(set(devices) - kept)
        for name in orphans:
            await self._devices.delete(name)
        if gone or orphans:
            self._logger.info("swept what was left over", endpoints=len(gone), devices=len(orphans))

    async def _alone(
        self, container_id: str, interface: str, work: Coroutine[Any, Any, type_Result]
    ) -> type_Result:
        """One at a time for an attachment, and to the end even if the caller has gone away."""
        return await asyncio.shield(asyncio.ensure_future(self._locked((container_id, interface), work)))

    async def _locked(
        self, attachment: tuple[str, str], work: Coroutine[Any, Any, type_Result]
    ) -> type_Result:
        lock = self._locks.setdefault(attachment, asyncio.Lock())
        try:
            async with lock:
                await self._released()
                return await work
        finally:
            work.close()
            if not lock.locked():
                self._locks.pop(attachment, None)

    async def _released(self) -> None:
        """What is found in the state is only then what there is. Raises EndpointRefused."""
        try:
            await self._follower.wait_released(self._settings.wait_applied_s)
        except TimeoutError:
            raise EndpointRefused(503, f"try again: {self._follower.held}") from None

    async def _create_counted(self, request: schema.EndpointRequest) -> schema.EndpointResult:
        self._creations += 1
        try:
            return await self._create(request)
        finally:
            self._creations -= 1
            self._created_s = self._clock.monotonic_s()

    async def _create(self, request: schema.EndpointRequest) -> schema.EndpointResult:
        started_s = self._clock.monotonic_s()
        key = f"{request.container_id}/{request.interface}"
        present = self.find(request.container_id, request.interface)
        if present is not None:
            if (await self._devices.list()).get(present.device.name) == present.device.ifindex:
                return await self._repeat(request, present)
            await self._delete(request.container_id, request.interface)
        device = await self._create_device(key, request)
        written: Written | None = None
        known: asyncio.Future[list[str]] = asyncio.get_running_loop().create_future()
        configuring = asyncio.create_task(self._configure(request, device, known))
        try:
            written = await self._append(request, device)
            endpoint = self._created(written, request)
            self._own.keep()
            known.set_result(_addresses(endpoint))
            await self._realize(written.revision, configuring)
        except BaseException:
            configuring.cancel()
            await asyncio.gather(configuring, return_exceptions=True)
            await self._undo(request, device, written)
            raise
        duration_s = self._clock.monotonic_s() - started_s
        self._counters.add("endpoint_creations_total")
        self._counters.add("endpoint_creation_seconds_total", duration_s)
        self._logger.info(
            "endpoint created", endpoint_id=endpoint.endpoint_id, workload=f"{endpoint.namespace}/{endpoint.workload}",
            revision=written.revision, ms=round(duration_s * 1000, 1),
        )  # fmt: skip
        return self._result(request, endpoint, written.revision, False)

    async def _repeat(self, request: schema.EndpointRequest, present: Endpoint) -> schema.EndpointResult:
        """The same request again: make sure that the inside is configured, and give the same answer."""
        if (present.namespace, present.workload) != (request.namespace, request.workload):
            raise EndpointRefused(
                409,
                f"this attachment belongs to {present.namespace}/{present.workload}; delete it first",
                "workload",
            )
        revision = self._follower.state.revision
        known: asyncio.Future[list[str]] = asyncio.get_running_loop().create_future()
        known.set_result(_addresses(present))
        await self._realize(revision, asyncio.create_task(self._configure(request, present.device, known)))
        return self._result(request, present, revision, True)

    async def _configure(
        self, request: schema.EndpointRequest, device: Device, known: "asyncio.Future[list[str]]"
    ) -> None:
        """The inside, as far as it goes before the addresses are known, and then the rest."""
        try:
            await self._devices.configure(request.netns, request.interface, device.host_mac, known)
        except DatapathError as error:
            raise EndpointRefused(422, f"configuring {request.interface!r}: {error}", "netns") from None

    async def _create_device(self, key: str, request: schema.EndpointRequest) -> Device:
        owner = f"{request.namespace}/{request.workload}"
        mtu_bytes = request.mtu or self._mtu_bytes()
        try:
            return await self._devices.create(key, request.netns, request.interface, mtu_bytes, owner)
        except DatapathError as error:
            if getattr(error, "errno", 0) != errno.EEXIST:
                raise EndpointRefused(422, str(error), "netns") from None
        # Left by a creation that died half-way: the log knows no endpoint for it.
        if not await self._devices.delete(device_name(key)):
            raise EndpointRefused(
                409, f"{request.interface!r} exists already in {request.netns}", "interface"
            )
        try:
            return await self._devices.create(key, request.netns, request.interface, mtu_bytes, owner)
        except DatapathError as error:
            raise EndpointRefused(422, str(error), "netns") from None

    async def _append(self, request: schema.EndpointRequest, device: Device) -> Written:
        command = CreateEndpoint(
            node=self._settings.node,
            namespace=request.namespace,
            workload=request.workload,
            device=device,
            container_id=request.container_id,
            interface=request.interface,
            netns=request.netns,
        )
        outcome = await self._writer.submit(command)
        if isinstance(outcome, Rejection):
            raise EndpointRefused(422, outcome.reason, outcome.field)
        return outcome

    def _created(self, written: Written, request: schema.EndpointRequest) -> Endpoint:
        endpoint = self.find(request.container_id, request.interface)
        if endpoint is None:
            raise EndpointRefused(
                409, f"the endpoint was deleted again right after revision {written.revision}"
            )
        return endpoint

    async def _realize(self, revision: int, configuring: "asyncio.Task[None]") -> None:
        """The inside and the rows do not depend on each other, so they are made at the same time."""
        realized = self._reconciler.wait_realized(revision, self._settings.endpoint_ready_s)
        try:
            _, failed = await asyncio.gather(configuring, realized)
        except TimeoutError:
            raise EndpointRefused(
                504,
                f"the kernel did not hold revision {revision} after {self._settings.endpoint_ready_s:g} s",
            ) from None
        own = [row for row in failed if row.generation >= revision]
        if own:
            raise EndpointRefused(500, f"the kernel refused a row of {own[0].table}: {own[0].reason}")

    async def _undo(self, request: schema.EndpointRequest, device: Device, written: Written | None) -> None:
        # The device first: what has none is not announced again when etcd is put back meanwhile.
        try:
            await self._devices.delete(device.name)
            if written is not None and any(isinstance(fact, EndpointCreated) for fact in written.events):
                endpoint = self.find(request.container_id, request.interface)
                if endpoint is not None:
                    await self._writer.submit(
                        DeleteEndpoint(self._settings.node, endpoint.endpoint_id, "its creation failed")
                    )
        except Exception as error:
            self._logger.error("undoing a failed creation failed", device=device.name, reason=str(error))

    async def _delete(self, container_id: str, interface: str) -> schema.EndpointRemoval:
        endpoint = self.find(container_id, interface)
        name = endpoint.device.name if endpoint else device_name(f"{container_id}/{interface}")
        revision = self._follower.state.revision
        if endpoint is not None:
            outcome = await self._writer.submit(
                DeleteEndpoint(self._settings.node, endpoint.endpoint_id, "asked for")
            )
            if isinstance(outcome, Rejection):
                raise EndpointRefused(422, outcome.reason, outcome.field)
            revision = outcome.revision
        # After the log: a device without an endpoint is swept at the next start, the other way round is not.
        removed = await self._devices.delete(name)
        self._counters.add("endpoint_deletions_total")
        return schema.EndpointRemoval(endpoint is not None or removed, revision)

    def _result(
        self, request: schema.EndpointRequest, endpoint: Endpoint, revision: int, already_there: bool
    ) -> schema.EndpointResult:
        addresses, routes = [], {}
        if endpoint.ipv4:
            addresses.append(schema.EndpointAddress(f"{endpoint.ipv4}/32", GATEWAY_IPV4))
            routes["0.0.0.0/0"] = GATEWAY_IPV4
        if endpoint.ipv6:
            addresses.append(schema.EndpointAddress(f"{endpoint.ipv6}/128", GATEWAY_IPV6))
            routes["::/0"] = GATEWAY_IPV6
        return schema.EndpointResult(
            cluster=endpoint.cluster,
            node=endpoint.node,
            endpoint_id=endpoint.endpoint_id,
            identity=endpoint.identity,
            addresses=addresses,
            routes=routes,
            host_device=endpoint.device.name,
            host_mac=endpoint.device.host_mac,
            device=request.interface,
            mac=endpoint.device.mac,
            mtu=request.mtu or self._mtu_bytes(),
            revision=revision,
            already_there=already_there,
        )


def _addresses(endpoint: Endpoint) -> list[str]:
    return [address for address in (endpoint.ipv4, endpoint.ipv6) if address]
