"""Load balancers learn from a health check port whether the node has backends."""

import asyncio
import json
import socket

from controlplane.model import ObjectKey
from controlplane.runtime.clock import SystemClock
from controlplane.runtime.health_checks import HealthChecks

SERVICE = ObjectKey("east", "Service", "shop", "web")


class Given:
    """What the node knows, set by the test."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.count = 2

    def ports(self) -> dict[int, ObjectKey]:
        return {self.port: SERVICE} if self.port else {}

    def addresses(self) -> tuple[str, ...]:
        return ("127.0.0.1",)

    def local_backends(self, service: ObjectKey) -> int:
        assert service == SERVICE
        return self.count


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def ask(port: int) -> tuple[str, dict[str, object]]:
    """Status line and body."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET /healthz HTTP/1.1\r\nHost: n1\r\n\r\n")
    whole = await reader.read()
    writer.close()
    head, _, body = whole.partition(b"\r\n\r\n")
    return head.decode().splitlines()[0], json.loads(body)


async def test_the_answer_is_that_of_kube_proxy() -> None:
    """200 with the number of local backends, 503 without any."""
    given = Given(free_port())
    checks = HealthChecks(given, asyncio.Event().wait, SystemClock())  # type: ignore[arg-type]
    await checks.look()
    service = {"namespace": "shop", "name": "web"}
    assert await ask(given.port) == (
        "HTTP/1.1 200 OK", {"service": service, "localEndpoints": 2, "serviceProxyHealthy": True},
    )  # fmt: skip
    given.count = 0
    status, body = await ask(given.port)
    assert (status, body["localEndpoints"]) == ("HTTP/1.1 503 Service Unavailable", 0)
    checks.close()


async def test_nothing_listens_when_the_service_is_gone() -> None:
    """The port is free for others."""
    given = Given(free_port())
    checks = HealthChecks(given, asyncio.Event().wait, SystemClock())  # type: ignore[arg-type]
    await checks.look()
    port, given.port = given.port, 0
    await checks.look()
    with socket.socket() as other:
        assert other.connect_ex(("127.0.0.1", port)) != 0
