"""How etcd is reached: channels, calls with deadlines, failover, and what a failed call means.

Belongs here: endpoints, TLS, method callables, retries of calls that may be repeated, the attributes of
LogStatus. Does not belong here: keys, records, sessions. Every request sent through `call` may arrive twice.
"""

import asyncio
import random
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import msgspec

from kvstore import rpc_pb2 as rpc
from kvstore.backoff import delay_s
from kvstore.errors import Fenced, LogError, LogFull, LogUnavailable, NotAllowed


class TLS(msgspec.Struct, frozen=True):
    """Files in PEM form. `certificate` and `key` are the client's own, given together or not at all."""

    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None


class Login(msgspec.Struct, frozen=True):
    """A user of etcd's, for a store that asks for a password. Its tokens are asked for again when they run out."""

    user: str
    password: str


class Limits(msgspec.Struct, frozen=True):
    """Every bound of an etcd log: seconds, counts."""

    transaction_s: float = 2.0
    call_s: float = 10.0
    close_s: float = 1.0
    lease_s: int = 15
    keepalive_s: float = 5.0
    quiet_s: float = 1.0
    audit_s: float = 30.0
    pages_in_flight: int = 4


class Method(msgspec.Struct, frozen=True):
    """One method of etcd's: its path and the two messages."""

    path: str
    request: Any
    answer: Any


RANGE = Method("/etcdserverpb.KV/Range", rpc.RangeRequest, rpc.RangeResponse)
PUT = Method("/etcdserverpb.KV/Put", rpc.PutRequest, rpc.PutResponse)
DELETE_RANGE = Method(
    "/etcdserverpb.KV/DeleteRange", rpc.DeleteRangeRequest, rpc.DeleteRangeResponse
)
TXN = Method("/etcdserverpb.KV/Txn", rpc.TxnRequest, rpc.TxnResponse)
COMPACT = Method("/etcdserverpb.KV/Compact", rpc.CompactionRequest, rpc.CompactionResponse)
LEASE_GRANT = Method("/etcdserverpb.Lease/LeaseGrant", rpc.LeaseGrantRequest, rpc.LeaseGrantResponse)
LEASE_REVOKE = Method("/etcdserverpb.Lease/LeaseRevoke", rpc.LeaseRevokeRequest, rpc.LeaseRevokeResponse)
LEASE_KEEP_ALIVE = Method(
    "/etcdserverpb.Lease/LeaseKeepAlive", rpc.LeaseKeepAliveRequest, rpc.LeaseKeepAliveResponse
)
WATCH = Method("/etcdserverpb.Watch/Watch", rpc.WatchRequest, rpc.WatchResponse)
AUTHENTICATE = Method(
    "/etcdserverpb.Auth/Authenticate", rpc.AuthenticateRequest, rpc.AuthenticateResponse
)
ALARM = Method("/etcdserverpb.Maintenance/Alarm", rpc.AlarmRequest, rpc.AlarmResponse)
DEFRAGMENT = Method(
    "/etcdserverpb.Maintenance/Defragment", rpc.DefragmentRequest, rpc.DefragmentResponse
)
STATUS = Method("/etcdserverpb.Maintenance/Status", rpc.StatusRequest, rpc.StatusResponse)

CHANNEL_OPTIONS = (
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 1000),
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 3_000),
    # Channels to one address share a connection by default, and with it their backoff and flow control.
    ("grpc.use_local_subchannel_pool", 1),
)

_TRANSIENT = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.ABORTED,
        grpc.StatusCode.UNKNOWN,
        grpc.StatusCode.INTERNAL,
    }
)

_LOGIN_REFUSED = ("user name is empty", "authentication failed", "authentication is not enabled")


class LeaseGone(Fenced):
    """etcd knows no such lease."""


class TokenGone(LogUnavailable):
    """The token has run out, or etcd forgot it when it started again: another one is asked for."""


def explain(code: grpc.StatusCode, details: str, endpoint: str) -> LogError:
    """The error of this room for a failed call."""
    text = f"etcd at {endpoint}: {_words(code, details)}"
    if code is grpc.StatusCode.UNAUTHENTICATED or "revision of auth store is old" in details:
        return TokenGone(text)
    if code is grpc.StatusCode.PERMISSION_DENIED or any(word in details for word in _LOGIN_REFUSED):
        return NotAllowed(text)
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED and "space exceeded" in details:
        return LogFull(text)
    if code is grpc.StatusCode.NOT_FOUND and "lease" in details:
        return LeaseGone(text)
    if code in _TRANSIENT or (code is grpc.StatusCode.RESOURCE_EXHAUSTED and "too many requests" in details):
        return LogUnavailable(text)
    return LogError(text)


def _words(code: grpc.StatusCode, details: str) -> str:
    """What gRPC says, without saying it twice."""
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return "no answer in time" if details.lower() in ("", "deadline exceeded") else f"no answer in time: {details}"
    _, connecting, last = details.rpartition("last error: ")
    if code is grpc.StatusCode.UNAVAILABLE and connecting:
        return f"cannot be reached: {re.sub('^[A-Z_]+: ', '', last)}"
    return f"{code.name.lower().replace('_', ' ')}: {details}"


def target(endpoint: str) -> tuple[str, bool]:
    """gRPC's target of an endpoint, and whether it asks for TLS. Raises ValueError on another form."""
    if endpoint.startswith("unix:"):
        return "unix:" + endpoint.removeprefix("unix:").removeprefix("//"), False
    scheme, separator, rest = endpoint.rpartition("://")
    if separator and scheme not in ("http", "https"):
        raise ValueError(
            f"endpoint {endpoint!r}: use unix:/path, host:port, http://host:port or https://host:port"
        )
    host, colon, port = rest.rstrip("/").rpartition(":")
    if not colon or not host or not port.isdigit():
        raise ValueError(f"endpoint {endpoint!r}: the port is missing, for example {rest or 'host'}:2379")
    return f"{host}:{port}", scheme == "https"


class Client:
    """Calls to one of several endpoints; the next one is tried when a call gets no answer."""

    def __init__(
        self, endpoints: Sequence[str], tls: TLS | None, limits: Limits, login: Login | None = None
    ) -> None:
        """Connects on the first call. Raises ValueError on a malformed endpoint, OSError on a TLS file."""
        if not endpoints:
            raise ValueError("endpoints: at least one is needed, for example 127.0.0.1:2379")
        self.endpoints = tuple(endpoints)
        self.limits = limits
        self.connected = False
        self.unavailable_since: float | None = None
        self.last_error = ""
        self.full_since: float | None = None
        self.reconnects = 0
        self.cluster_id = 0
        self._targets = [target(endpoint) for endpoint in self.endpoints]
        secure = tls is not None or any(secured for _, secured in self._targets)
        self._credentials = _credentials(tls or TLS()) if secure else None
        self._all_secure = tls is not None
        self._channels: dict[int, grpc.aio.Channel] = {}
        self._methods: dict[tuple[int, str], Any] = {}
        self._streams: set[Any] = set()
        self._current = 0
        self._login = login
        self._token = ""
        self.closed = False

    async def call(self, method: Method, request: Any, within_s: float | None = None) -> Any:
        """Send until there is an answer, for `within_s` seconds. Raises LogUnavailable, LogFull, LogError."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + (self.limits.call_s if within_s is None else within_s)
        tries = 0
        while True:
            try:
                return await self.send(
                    method, request, min(self.limits.transaction_s, deadline - loop.time())
                )
            except LogUnavailable:
                wait = delay_s(tries, random.random())
                tries += 1
                if self.closed or loop.time() + wait >= deadline:
                    raise
            await asyncio.sleep(wait)

    async def send(self, method: Method, request: Any, timeout_s: float) -> Any:
        """Send once. Raises as `call`; after LogUnavailable nobody knows whether the request took effect."""
        at = self._current
        try:
            metadata = await self._metadata(at, timeout_s)
            answer = await self._callable(at, method)(request, timeout=timeout_s, metadata=metadata)
        except grpc.aio.AioRpcError as error:
            known = self.failed(error, at)
            if isinstance(known, LogFull):
                self._reached()
                self.full_since = self.full_since or time.time()
            raise known from None
        except asyncio.CancelledError:
            # Closing the channel cancels its calls; that is not a cancellation of the task that waits for
            # one.
            task = asyncio.current_task()
            if self.closed and task is not None and not task.cancelling():
                raise LogUnavailable("this log is closed") from None
            raise
        self.cluster_id = answer.header.cluster_id
        self._reached()
        if method is PUT or method is LEASE_GRANT:
            self.full_since = None
        return answer

    async def send_each(self, method: Method, request: Any, timeout_s: float) -> Sequence[Any]:
        """Send once to every endpoint, one after the other: the answers that came. Raises as `call` if none did."""
        answers: list[Any] = []
        failure: LogError = LogUnavailable("no endpoint answers")
        for at in range(len(self.endpoints)):
            try:
                metadata = await self._metadata(at, timeout_s)
                answers.append(await self._callable(at, method)(request, timeout=timeout_s, metadata=metadata))
            except grpc.aio.AioRpcError as error:
                failure = explain(error.code(), error.details() or "", self.endpoints[at])
        if not answers:
            raise failure
        return answers

    async def keep_alive(self, lease: int) -> int:
        """Seconds that the lease now has, 0 if it is gone. Raises LogUnavailable."""
        at = self._current
        stream = self._callable(at, LEASE_KEEP_ALIVE)(timeout=self.limits.transaction_s, metadata=self._known_token())
        try:
            # gRPC's own deadline does not end a write that waits for a connection.
            async with asyncio.timeout(self.limits.transaction_s):
                await stream.write(rpc.LeaseKeepAliveRequest(ID=lease))
                answer = await stream.read()
        except grpc.aio.AioRpcError as error:
            raise self.failed(error, at) from None
        except (asyncio.InvalidStateError, TimeoutError) as error:
            raise LogUnavailable(f"etcd at {self.endpoints[at]}: {error}") from None
        finally:
            stream.cancel()
        if answer is grpc.aio.EOF:
            raise LogUnavailable(f"etcd at {self.endpoints[at]} gave no answer to a keepalive")
        self._reached()
        return int(answer.TTL)

    def watch(self) -> Any:
        """A new watch stream on the endpoint in use; etcd ends it when its member has no leader."""
        if self.closed:
            raise LogUnavailable("this log is closed")
        stream = self._callable(self._current, WATCH)(metadata=(("hasleader", "true"), *self._known_token()))
        self._streams.add(stream)
        stream.add_done_callback(self._streams.discard)
        return stream

    def failed(self, error: grpc.aio.AioRpcError, at: int | None = None) -> LogError:
        """Note a failed call or stream and say what it means; a silent endpoint gives way to the next."""
        place = self._current if at is None else at
        known = explain(error.code(), error.details() or "", self.endpoints[place])
        if isinstance(known, TokenGone):
            self._token = ""
        elif isinstance(known, LogUnavailable):
            self.unreachable(str(known), place)
        return known

    def unreachable(self, reason: str, at: int) -> None:
        """Note that the endpoint gave no answer."""
        self.connected = False
        self.unavailable_since = self.unavailable_since or time.time()
        self.last_error = reason
        if at == self._current:
            self._current = (at + 1) % len(self.endpoints)

    async def close(self) -> None:
        """Close every channel; calls in flight end."""
        self.closed, self.connected = True, False
        channels, self._channels = list(self._channels.values()), {}
        self._methods.clear()
        for stream in tuple(self._streams):
            stream.cancel()
        for channel in channels:
            await channel.close()

    async def _metadata(self, at: int, timeout_s: float) -> tuple[tuple[str, str], ...]:
        """The token of each call, asked for now if there is none. Raises AioRpcError."""
        if self._login is not None and not self._token:
            request = rpc.AuthenticateRequest(name=self._login.user, password=self._login.password)
            self._token = (await self._callable(at, AUTHENTICATE)(request, timeout=timeout_s)).token
        return self._known_token()

    def _known_token(self) -> tuple[tuple[str, str], ...]:
        return (("token", self._token),) if self._token else ()

    def _reached(self) -> None:
        if self.connected:
            return
        self.connected = True
        self.reconnects += self.unavailable_since is not None
        self.unavailable_since = None

    def _callable(self, at: int, method: Method) -> Any:
        found = self._methods.get((at, method.path))
        if found is None:
            channel = self._channel(at)
            streams = method is WATCH or method is LEASE_KEEP_ALIVE
            make = channel.stream_stream if streams else channel.unary_unary
            found = make(
                method.path,
                request_serializer=_encoded,
                response_deserializer=method.answer.FromString,
            )
            self._methods[at, method.path] = found
        return found

    def _channel(self, at: int) -> grpc.aio.Channel:
        if self.closed:
            raise LogUnavailable("this log is closed")
        if at not in self._channels:
            address, secured = self._targets[at]
            options: list[tuple[str, int | str]] = list(CHANNEL_OPTIONS)
            if address.startswith("unix:"):
                # etcd refuses the path of a socket as the name of a host.
                options.append(("grpc.default_authority", "localhost"))
            if self._credentials is not None and (secured or self._all_secure):
                self._channels[at] = grpc.aio.secure_channel(address, self._credentials, options=options)
            else:
                self._channels[at] = grpc.aio.insecure_channel(address, options=options)
        return self._channels[at]


def _encoded(request: Any) -> bytes:
    return request if isinstance(request, bytes) else request.SerializeToString()


def _credentials(tls: TLS) -> grpc.ChannelCredentials:
    if (tls.certificate is None) != (tls.key is None):
        raise ValueError("TLS: certificate and key are given together or not at all")
    read = [None if path is None else Path(path).read_bytes() for path in (tls.ca, tls.key, tls.certificate)]
    return grpc.ssl_channel_credentials(*read)
