"""The API from the caller's side, for the command line and the lab.

Belongs here: typed requests over the unix socket, streams, and errors. Does not belong here: printing. The CNI plugin
uses quickclient.py, which imports nothing slow.

    async with Client("/run/meshlog/n1/agent.sock") as client:
        status = await client.status()
        async for record in client.log(after=0, follow=True): ...
"""

from collections.abc import AsyncIterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar
from urllib.parse import quote

import aiohttp
import msgspec

from controlplane.api import items, schema
from controlplane.api.quickclient import ApiRefused, ApiUnavailable

TIMEOUT_S = 30.0
LINE_BYTES_MAX = 16 * 1024 * 1024
"""One record of a full batch, written as JSON."""

ITEM_TYPES: Mapping[str, type[Any]] = {
    "node": items.NodeItem,
    "endpoint": items.EndpointItem,
    "identity": items.IdentityItem,
    "service": items.ServiceItem,
    "policy": items.PolicyItem,
    "ip": items.IpItem,
}

type_Answer = TypeVar("type_Answer")


class Client:
    """One agent's or operator's API. Every call raises ApiUnavailable or ApiRefused."""

    def __init__(self, socket_path: str, timeout_s: float = TIMEOUT_S) -> None:
        self.socket_path = socket_path
        self.revision = 0
        """Of the last answer that named one."""
        self._timeout_s = timeout_s
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.UnixConnector(self.socket_path),
            timeout=aiohttp.ClientTimeout(total=self._timeout_s),
            read_bufsize=LINE_BYTES_MAX,
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._opened().close()

    async def status(self) -> schema.Status:
        """Of an agent."""
        return await self.call("GET", "/v1/status", schema.Status)

    async def list(self, kind: str) -> schema.Listing:
        """`items` converted to the kind's type."""
        listing = await self.call("GET", f"/v1/list/{quote(kind)}", schema.Listing)
        wanted = list[ITEM_TYPES[kind]]  # type: ignore[valid-type]  # the kind is known only now
        return msgspec.structs.replace(listing, items=msgspec.convert(listing.items, wanted))

    async def get(self, kind: str, namespace: str = "", name: str = "") -> schema.Documents:
        """Manifests in force; "" stands for all."""
        query = {"namespace": namespace, "name": name}
        return await self.call("GET", f"/v1/get/{quote(kind)}", schema.Documents, query=query)

    async def apply(
        self, documents: Sequence[schema.SourcedDocument], dry_run: bool = False
    ) -> schema.ApplyResult:
        """Returns when the answering process has applied what it appended."""
        body = schema.ApplyRequest(list(documents), dry_run)
        return await self.call("POST", "/v1/apply", schema.ApplyResult, body=body)

    async def delete(
        self, documents: Sequence[schema.SourcedDocument], dry_run: bool = False
    ) -> schema.ApplyResult:
        """As apply, for removal."""
        body = schema.ApplyRequest(list(documents), dry_run)
        return await self.call("POST", "/v1/delete", schema.ApplyResult, body=body)

    async def create_endpoint(self, request: schema.EndpointRequest) -> schema.EndpointResult:
        """Returns when the endpoint's rows are in the kernel."""
        return await self.call("POST", "/v1/endpoints", schema.EndpointResult, body=request)

    async def delete_endpoint(self, container_id: str, interface: str) -> schema.EndpointRemoval:
        """Idempotent."""
        return await self.call("DELETE", _endpoint_path(container_id, interface), schema.EndpointRemoval)

    async def check_endpoint(self, container_id: str, interface: str) -> schema.EndpointCheck:
        """Compares log, device and kernel rows."""
        return await self.call("GET", _endpoint_path(container_id, interface), schema.EndpointCheck)

    async def bpf(self, kind: str) -> schema.KernelRows:
        """What the kernel holds now."""
        return await self.call("GET", f"/v1/bpf/{quote(kind)}", schema.KernelRows)

    async def record(self, revision: int) -> schema.LogRecord:
        """One record of the log."""
        return await self.call("GET", f"/v1/log/{revision}", schema.LogRecord)

    async def digests(self) -> schema.Digests:
        """Per table."""
        return await self.call("GET", "/v1/digests", schema.Digests)

    async def verify(self) -> schema.Verification:
        """Compares log, belief and kernel."""
        return await self.call("GET", "/v1/verify", schema.Verification)

    async def repair(self) -> schema.Verification:
        """Verifies, writes what differs, verifies again."""
        return await self.call("POST", "/v1/repair", schema.Verification)

    async def wait(self, revision: int, timeout_s: float) -> schema.Waited:
        """Until the agent's kernel holds everything up to `revision`; of an operator, until it is applied."""
        query = {"revision": str(revision), "timeout_s": str(timeout_s)}
        return await self.call("GET", "/v1/wait", schema.Waited, query=query, timeout_s=timeout_s + 5)

    async def metrics(self) -> str:
        """Prometheus text."""
        return (await self._send("GET", "/metrics", None, None, None)).decode()

    def log(
        self, after: int = 0, limit: int | None = None, follow: bool = False
    ) -> AsyncIterator[schema.LogRecord]:
        """Records after a revision, oldest first; with `follow`, for ever."""
        query = {"after": str(after)}
        if limit is not None:
            query["limit"] = str(limit)
        if follow:
            query["follow"] = "1"
        return self._lines("/v1/log", query, schema.LogRecord)

    def monitor(self) -> AsyncIterator[items.Notification]:
        """What the datapath says, as it happens."""
        return self._lines("/v1/monitor", {}, items.Notification)

    async def call(
        self,
        method: str,
        path: str,
        answer: type[type_Answer],
        body: Any = None,
        query: Mapping[str, str] | None = None,
        timeout_s: float | None = None,
    ) -> type_Answer:
        """Any request with a JSON answer."""
        raw = await self._send(method, path, body, query, timeout_s)
        try:
            return msgspec.json.decode(raw, type=answer)
        except msgspec.MsgspecError as error:
            raise ApiUnavailable(
                f"{self.socket_path}: the answer to {path} is not as expected: {error}"
            ) from None

    def _opened(self) -> aiohttp.ClientSession:
        assert self._session is not None, "use `async with Client(...)`"
        return self._session

    async def _send(
        self, method: str, path: str, body: Any, query: Mapping[str, str] | None, timeout_s: float | None
    ) -> bytes:
        payload = None if body is None else msgspec.json.encode(body)
        timeout = aiohttp.ClientTimeout(total=timeout_s or self._timeout_s)
        try:
            async with self._opened().request(
                method, f"http://meshlog{path}", data=payload, params=query, timeout=timeout
            ) as response:
                raw = await response.read()
                self.revision = int(response.headers.get(schema.REVISION_HEADER, self.revision))
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise ApiUnavailable(f"no answer on {self.socket_path}: {_reason(error)}") from None
        if response.status >= 400:
            raise _refusal(response.status, raw)
        return raw

    async def _lines(
        self, path: str, query: Mapping[str, str], kind: type[type_Answer]
    ) -> AsyncIterator[type_Answer]:
        decoder = msgspec.json.Decoder(kind)
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=self._timeout_s)
        try:
            async with self._opened().get(f"http://meshlog{path}", params=query, timeout=timeout) as response:
                if response.status >= 400:
                    raise _refusal(response.status, await response.read())
                while line := await response.content.readline():
                    yield decoder.decode(line)
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError, msgspec.MsgspecError) as error:
            raise ApiUnavailable(f"{self.socket_path}: the stream broke off: {_reason(error)}") from None


def _endpoint_path(container_id: str, interface: str) -> str:
    return f"/v1/endpoints/{quote(container_id, safe='')}/{quote(interface, safe='')}"


def _reason(error: BaseException) -> str:
    return str(error) or type(error).__name__


def _refusal(status: int, raw: bytes) -> ApiRefused:
    try:
        error = msgspec.json.decode(raw, type=schema.Error)
    except msgspec.MsgspecError:
        error = schema.Error(raw.decode(errors="replace")[:200])
    return ApiRefused(status, error.error, error.field)
