"""Requests to the socket of an agent or operator, with the standard library only, so that a command starts fast.

Belongs here: one answer, or lines as they come. Does not belong here: paths and shapes (controlplane.api.schema), which
socket is meant, and what is printed. Long-lived programs use client.py.
"""

from collections.abc import Iterator
from typing import Any, BinaryIO

from controlplane.api.quickclient import TIMEOUT_S, ApiRefused, ApiUnavailable, decoded, open_answer, request


class Connection:
    """Requests to the agent or operator that listens on `path`; each takes a connection of its own."""

    def __init__(self, path: str, timeout_s: float = TIMEOUT_S) -> None:
        self.path = path
        self.timeout_s = timeout_s

    def get(self, target: str) -> Any:
        """Raises ApiUnavailable and ApiRefused."""
        return self.send("GET", target)

    def send(self, method: str, target: str, body: Any = None) -> Any:
        """Raises ApiUnavailable and ApiRefused."""
        return request(self.path, method, target, body, timeout_s=self.timeout_s)

    def lines(self, target: str) -> Iterator[Any]:
        """Each line of an NDJSON answer as it comes, without a time limit between lines.

        The request is sent and accepted before this returns. A line that is nothing but an error ends the stream.
        Raises ApiUnavailable and ApiRefused.
        """
        return self._each_line(open_answer(self.path, "GET", target, None, self.timeout_s, silence_s=None))

    def _each_line(self, stream: BinaryIO) -> Iterator[Any]:
        with stream:
            try:
                for line in stream:
                    if line.strip():
                        yield self._line(line)
            except OSError as error:
                raise ApiUnavailable(f"{self.path}: the stream broke off: {error}") from None

    def _line(self, line: bytes) -> dict[str, Any]:
        answer = decoded(self.path, line)
        if set(answer) <= {"error", "field"}:
            raise ApiRefused(500, str(answer["error"]), str(answer.get("field", "")))
        return answer
