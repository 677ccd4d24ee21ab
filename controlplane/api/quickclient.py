"""One request to an agent, from the standard library alone: for the CNI plugin, whose start must cost little.

Belongs here: blocking requests over the unix socket, in the smallest form of HTTP: version 1.0, where an answer ends
where its connection ends. Does not belong here: aiohttp, msgspec, or any import that is slow (`http.client` alone costs
a plugin a third of its start); what to do with the answer.
"""

import json
import socket
from typing import Any, BinaryIO

TIMEOUT_S = 30.0
HEADER_BYTES_MAX = 65536


class ApiUnavailable(Exception):
    """Nobody answers on the socket, or the answer broke off. Try again later."""


class ApiRefused(Exception):
    """The request was refused: `status` is the HTTP status, `field` the path in the caller's input, or ""."""

    def __init__(self, status: int, reason: str, field: str = "") -> None:
        super().__init__(reason)
        self.status = status
        self.field = field


def request(
    socket_path: str, method: str, path: str, body: Any = None, timeout_s: float = TIMEOUT_S
) -> dict[str, Any]:
    """The decoded answer. Raises ApiUnavailable, ApiRefused."""
    with open_answer(socket_path, method, path, body, timeout_s) as stream:
        try:
            raw = stream.read()
        except OSError as error:
            raise ApiUnavailable(f"no answer on {socket_path}: {error.strerror or error}") from None
    return decoded(socket_path, raw) if raw.strip() else {}


def open_answer(
    socket_path: str, method: str, path: str, body: Any, timeout_s: float, silence_s: float | None = TIMEOUT_S
) -> BinaryIO:
    """The body of an answer, to be read to its end; `silence_s` bounds each read of it. Raises as `request` does."""
    assert path.isprintable() and " " not in path, path  # callers quote what they put into a path
    payload = b"" if body is None else json.dumps(body).encode()
    head = f"{method} {path} HTTP/1.0\r\nHost: meshlog\r\nContent-Type: application/json\r\n"
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.settimeout(timeout_s)
        connection.connect(socket_path)
        connection.sendall(f"{head}Content-Length: {len(payload)}\r\n\r\n".encode() + payload)
        stream = connection.makefile("rb")
        status = _read_head(socket_path, stream)
        connection.settimeout(silence_s)
    except OSError as error:
        raise ApiUnavailable(f"no answer on {socket_path}: {error.strerror or error}") from None
    finally:
        connection.close()  # the stream holds the descriptor until it is closed itself
    if status >= 400:
        with stream:
            raise _refusal(status, stream.read())
    return stream


def decoded(socket_path: str, raw: bytes) -> dict[str, Any]:
    """One JSON object of an answer. Raises ApiUnavailable."""
    try:
        answer: dict[str, Any] = json.loads(raw)
    except ValueError:
        raise ApiUnavailable(f"{socket_path} answered with something that is not JSON") from None
    return answer


def _read_head(socket_path: str, stream: BinaryIO) -> int:
    """Skip the header of an answer and return its status."""
    parts = stream.readline(HEADER_BYTES_MAX).split(None, 2)
    if len(parts) < 2 or not parts[0].startswith(b"HTTP/") or not parts[1].isdigit():
        raise ApiUnavailable(f"no answer on {socket_path}: it does not speak HTTP")
    while stream.readline(HEADER_BYTES_MAX).strip():
        pass
    return int(parts[1])


def _refusal(status: int, raw: bytes) -> ApiRefused:
    try:
        answer = json.loads(raw)
        return ApiRefused(status, str(answer["error"]), str(answer.get("field", "")))
    except (ValueError, KeyError, TypeError):
        return ApiRefused(status, raw.decode("utf-8", "replace").strip()[:200] or f"status {status}")
