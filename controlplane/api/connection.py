"""Requests to the socket of an agent or operator, with the standard library only, so that a command starts fast.

Belongs here: one answer, or lines as they come. Does not belong here: paths and shapes (controlplane.api.schema), which
socket is meant, and what is printed. Long-lived programs use client.py.
"""

import json
import socket
from collections.abc import Iterator
from typing import Any, BinaryIO

from controlplane.api.quickclient import ApiRefused, ApiUnavailable, request

HEADER_BYTES_MAX = 65536


class Connection:
    """Requests to the agent or operator that listens on `path`; each takes a connection of its own."""

    def __init__(self, path: str, timeout_s: float = 30.0) -> None:
        self.path = path
        self.timeout_s = timeout_s

    def get(self, target: str) -> Any:
        """Raises ApiUnavailable and ApiRefused."""
        return request(self.path, "GET", target, timeout_s=self.timeout_s)

    def send(self, method: str, target: str, body: Any = None) -> Any:
        """Raises ApiUnavailable and ApiRefused."""
        return request(self.path, method, target, body, timeout_s=self.timeout_s)

    def lines(self, target: str) -> Iterator[Any]:
        """Each line of an NDJSON answer as it comes, without a time limit between lines.

        Asked with HTTP/1.0: the answer is not cut into chunks and ends where the connection ends.
        """
        with self._open_stream(target) as stream:
            while line := _read_line(self.path, stream):
                if line.strip():
                    decoded = _decoded(self.path, line)
                    if set(decoded) <= {"error", "field"}:
                        raise ApiRefused(500, str(decoded["error"]), str(decoded.get("field", "")))
                    yield decoded

    def _open_stream(self, target: str) -> BinaryIO:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.settimeout(self.timeout_s)
            connection.connect(self.path)
            connection.sendall(f"GET {target} HTTP/1.0\r\nHost: meshlog\r\n\r\n".encode())
            stream = connection.makefile("rb")
            status = _read_head(self.path, stream)
            connection.settimeout(None)
        except OSError as error:
            raise ApiUnavailable(f"no answer on {self.path}: {error}") from None
        finally:
            connection.close()  # the stream holds the descriptor until it is closed itself
        if status >= 400:
            with stream:
                raise _refusal(status, stream.read())
        return stream


def _read_line(path: str, stream: BinaryIO) -> bytes:
    try:
        return stream.readline()
    except OSError as error:
        raise ApiUnavailable(f"{path}: the stream broke off: {error}") from None


def _read_head(path: str, stream: BinaryIO) -> int:
    """Skip the header of an answer and return its status."""
    parts = stream.readline(HEADER_BYTES_MAX).split(None, 2)
    if len(parts) < 2 or not parts[0].startswith(b"HTTP/"):
        raise ApiUnavailable(f"{path}: no HTTP answer; is this a Meshlog socket?")
    while stream.readline(HEADER_BYTES_MAX).strip():
        pass
    return int(parts[1])


def _refusal(status: int, content: bytes) -> ApiRefused:
    try:
        decoded = json.loads(content)
        return ApiRefused(status, str(decoded["error"]), str(decoded.get("field", "")))
    except (ValueError, KeyError, TypeError):
        return ApiRefused(status, content.decode("utf-8", "replace").strip() or f"status {status}")


def _decoded(path: str, content: bytes) -> Any:
    try:
        return json.loads(content)
    except ValueError as error:
        raise ApiUnavailable(f"{path}: a line is not JSON: {error}") from None
