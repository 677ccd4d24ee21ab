"""Answers load balancers that ask on a service's health check port whether this node has backends for it.

Belongs here: the sockets, one for each port and address of the node, and the answer in kube-proxy's shape. Does not
belong here: which ports there are and how many backends (desired/services.py).
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from http import HTTPStatus
from typing import Protocol

import msgspec
import structlog

from controlplane.desired.services import ServiceCompiler
from controlplane.model import NodeKey, ObjectKey
from controlplane.runtime.clock import Clock
from controlplane.runtime.follower import Follower

REQUEST_BYTES_MAX = 8192
REQUEST_S_MAX = 5.0
PAUSE_S = 0.5
BODY_CONTENT = "application/json"


class Source(Protocol):
    """What the node knows now."""

    def ports(self) -> Mapping[int, ObjectKey]:
        """The ports that are asked for, and whose they are."""
        ...

    def addresses(self) -> tuple[str, ...]:
        """Of the node."""
        ...

    def local_backends(self, service: ObjectKey) -> int:
        """Ready backends of the service on this node."""
        ...


class NodeSource:
    """From the state that a node follows and the frontends that are compiled of it."""

    def __init__(self, where: NodeKey, follower: Follower, services: ServiceCompiler) -> None:
        self._where = where
        self._follower = follower
        self._services = services

    def ports(self) -> Mapping[int, ObjectKey]:
        return {port: key for key, port in self._services.health_checks()}

    def addresses(self) -> tuple[str, ...]:
        own = self._follower.state.nodes.get(self._where)
        return own.addresses if own else ()

    def local_backends(self, service: ObjectKey) -> int:
        return self._services.local_backends(service)


class HealthChecks:
    """`wait_moved` returns when anything may be other; between two looks there is a pause."""

    def __init__(self, source: Source, wait_moved: Callable[[], Awaitable[None]], clock: Clock) -> None:
        self._source = source
        self._wait_moved = wait_moved
        self._clock = clock
        self._servers: dict[tuple[str, int], asyncio.Server] = {}
        self._owners: Mapping[int, ObjectKey] = {}
        self._refused: dict[tuple[str, int], str] = {}
        self._logger = structlog.get_logger()

    async def run(self) -> None:
        """Until cancelled; then nothing listens any more."""
        try:
            while True:
                await self.look()
                await self._wait_moved()
                await self._clock.sleep_s(PAUSE_S)
        finally:
            self.close()

    def close(self) -> None:
        """Listen nowhere."""
        for server in self._servers.values():
            server.close()
        self._servers = {}

    async def look(self) -> None:
        """Listen where it is asked for now, and nowhere else. A port that is taken is logged, and tried again."""
        self._owners = self._source.ports()
        wanted = [(address, port) for port in self._owners for address in self._source.addresses()]
        for place in [each for each in self._servers if each not in wanted]:
            self._servers.pop(place).close()
        for place in wanted:
            if place not in self._servers:
                await self._listen(place)

    async def _listen(self, place: tuple[str, int]) -> None:
        address, port = place
        try:
            self._servers[place] = await asyncio.start_server(
                lambda reader, writer: self._serve(port, reader, writer), address, port, limit=REQUEST_BYTES_MAX
            )
            self._refused.pop(place, None)
        except OSError as error:
            if self._refused.get(place) != str(error):
                self._refused[place] = str(error)
                self._logger.warning("no health checks", address=address, port=port, reason=str(error))

    async def _serve(self, port: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One request of one connection, whatever its path."""
        try:
            async with asyncio.timeout(REQUEST_S_MAX):
                await reader.readuntil(b"\r\n\r\n")
                service = self._owners.get(port)
                if service is not None:
                    writer.write(answer(service, self._source.local_backends(service)))
                    await writer.drain()
        except (OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass  # whoever asked is gone, or asks nothing that has an answer
        finally:
            writer.close()


def answer(service: ObjectKey, local_backends: int) -> bytes:
    """200 with at least one backend, 503 without."""
    status = HTTPStatus.OK if local_backends else HTTPStatus.SERVICE_UNAVAILABLE
    body = msgspec.json.encode(
        {
            "service": {"namespace": service.namespace, "name": service.name},
            "localEndpoints": local_backends,
            "serviceProxyHealthy": True,
        }
    )
    head = (
        f"HTTP/1.1 {status.value} {status.phrase}\r\nContent-Type: {BODY_CONTENT}\r\nContent-Length: {len(body)}\r\n"
        f"X-Content-Type-Options: nosniff\r\nX-Load-Balancing-Endpoint-Weight: {local_backends}\r\n"
        f"Connection: close\r\n\r\n"
    )
    return head.encode() + body
