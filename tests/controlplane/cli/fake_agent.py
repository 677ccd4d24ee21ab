"""An agent's socket with answers made up by the test, over the real unix socket and real HTTP.

Belongs here: serving. Does not belong here: any rule of an agent.
"""

import json
import socketserver
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

Answer = tuple[int, Any]
"""A status, and a body: bytes go out as they are, anything else as JSON."""


class FakeAgent:
    """Answers by (method, path without query); records what it was asked."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.answers: dict[tuple[str, str], Answer | Callable[[Any], Answer]] = {}
        self.asked: list[tuple[str, str, Any]] = []
        self._server = _server(self, path)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
        self.path.unlink(missing_ok=True)


def _server(agent: FakeAgent, path: Path) -> socketserver.ThreadingUnixStreamServer:
    class Requests(BaseHTTPRequestHandler):
        def _serve(self) -> None:
            size = int(self.headers.get("Content-Length") or 0)
            body = json.loads(self.rfile.read(size)) if size else None
            agent.asked.append((self.command, self.path, body))
            found = agent.answers.get((self.command, self.path.partition("?")[0]), (404, {"error": "no such thing"}))
            status, content = found(body) if callable(found) else found
            raw = content if isinstance(content, bytes) else json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(raw)))
            self.end_headers()
            self.wfile.write(raw)

        do_GET = do_POST = do_DELETE = _serve

        def log_message(self, *_: object) -> None:
            return

    server = socketserver.ThreadingUnixStreamServer(str(path), Requests)
    server.daemon_threads = True
    return server
