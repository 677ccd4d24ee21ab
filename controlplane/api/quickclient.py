"""One request to an agent, from the standard library alone: for the CNI plugin, whose start must cost little.

Belongs here: a blocking request over the unix socket. Does not belong here: aiohttp, msgspec, or any import that is
slow; what to do with the answer.
"""

import json
import socket
from http.client import HTTPConnection, HTTPException
from typing import Any

TIMEOUT_S = 30.0


class ApiUnavailable(Exception):
    """Nobody answers on the socket, or the answer broke off. Try again later."""


class ApiRefused(Exception):
    """The request was refused: `status` is the HTTP status, `field` the path in the caller's input, or ""."""

    def __init__(self, status: int, reason: str, field: str = "") -> None:
        super().__init__(reason)
        self.status = status
        self.field = field


class _UnixConnection(HTTPConnection):
    def __init__(self, socket_path: str, timeout_s: float) -> None:
        super().__init__("meshlog", timeout=timeout_s)
        self._socket_path = socket_path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._socket_path)


def request(
    socket_path: str, method: str, path: str, body: Any = None, timeout_s: float = TIMEOUT_S
) -> dict[str, Any]:
    """The decoded answer. Raises ApiUnavailable, ApiRefused."""
    connection = _UnixConnection(socket_path, timeout_s)
    try:
        payload = None if body is None else json.dumps(body).encode()
        connection.request(method, path, payload, {"Content-Type": "application/json"})
        response = connection.getresponse()
        raw = response.read()
    except (OSError, HTTPException) as error:
        raise ApiUnavailable(f"no answer on {socket_path}: {error}") from None
    finally:
        connection.close()
    try:
        answer = json.loads(raw) if raw else {}
    except ValueError:
        raise ApiUnavailable(f"{socket_path} answered {response.status} with something that is not JSON") from None
    if response.status >= 400:
        raise ApiRefused(response.status, str(answer.get("error", response.reason)), str(answer.get("field", "")))
    return answer
