"""HTTP on a unix socket: routes in, JSON out, errors as schema.Error.

Belongs here: what all routes share (encoding, errors, the revision header, streams, the socket). Does not belong here:
what any route answers (mesh_routes.py, node_routes.py).
"""

import os
import socket
import stat
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import structlog
from aiohttp import web

from controlplane.api import schema

SOCKET_MODE = 0o660
SOCKET_PATH_BYTES_MAX = 107
SHUTDOWN_S = 1.0
"""How long open streams may take to end when the process is told to stop."""

type_Body = TypeVar("type_Body")

RevisionOf = Callable[[], int]


class Refused(Exception):
    """A request that is answered with a status and a reason."""

    def __init__(self, status: int, reason: str, field: str = "") -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason
        self.field = field


class SocketTaken(Exception):
    """Another process listens on the path, or the path cannot be one."""


def json_response(body: Any, status: int = 200) -> web.Response:
    """Any msgspec value."""
    return web.Response(body=msgspec.json.encode(body), status=status, content_type="application/json")


async def read_body(request: web.Request, kind: type[type_Body]) -> type_Body:
    """The typed body. Raises Refused 400 naming the field that does not fit."""
    raw = await request.read()
    try:
        return msgspec.json.decode(raw, type=kind)
    except msgspec.DecodeError as error:
        reason, _, path = str(error).partition(" - at `$")
        raise Refused(400, f"the body is not as expected: {reason}", path.strip("`.")) from None


def query_int(request: web.Request, name: str, default: int) -> int:
    """A number from the query. Raises Refused 400."""
    text = request.query.get(name, "")
    if not text:
        return default
    if not text.isascii() or not text.isdigit():
        raise Refused(400, f"{text!r} is not a whole number", name)
    return int(text)


def query_seconds(request: web.Request, name: str, default: float, longest: float) -> float:
    """Seconds from the query, cut at `longest`. Raises Refused 400."""
    text = request.query.get(name, "")
    try:
        seconds = float(text) if text else default
    except ValueError:
        raise Refused(400, f"{text!r} is not a number of seconds", name) from None
    if not seconds >= 0:
        raise Refused(400, f"{text!r}: right is 0 or more seconds", name)
    return min(seconds, longest)


async def stream_lines(
    request: web.Request, revision: int, chunks: AsyncIterator[bytes]
) -> web.StreamResponse:
    """NDJSON as it comes. What fails after the first line ends the stream with a line that is a schema.Error."""
    headers = {schema.REVISION_HEADER: str(revision), "Content-Type": "application/x-ndjson"}
    response = web.StreamResponse(headers=headers)
    await response.prepare(request)
    try:
        async for chunk in chunks:
            await response.write(chunk)
    except Refused as error:
        await response.write(msgspec.json.encode(schema.Error(error.reason, error.field)) + b"\n")
    except (ConnectionResetError, BrokenPipeError):
        return response
    await response.write_eof()
    return response


def build_app(routes: list[web.RouteDef], revision_of: RevisionOf, body_bytes_max: int) -> web.Application:
    """An application whose GET answers carry the revision and whose errors are schema.Error."""
    app = web.Application(middlewares=[_answering(revision_of)], client_max_size=body_bytes_max)
    app.add_routes(routes)
    return app


def _answering(revision_of: RevisionOf) -> Any:
    logger = structlog.get_logger()

    @web.middleware
    async def answer(
        request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        try:
            response = await handler(request)
        except Refused as error:
            response = json_response(schema.Error(error.reason, error.field), error.status)
        except web.HTTPException as error:
            response = json_response(
                schema.Error(f"{request.method} {request.path}: {error.reason}"), error.status
            )
        except (ConnectionResetError, BrokenPipeError):
            raise
        except Exception as error:
            logger.exception("a request failed", method=request.method, path=request.path)
            response = json_response(schema.Error(f"{type(error).__name__}: {error}"), 500)
        if not response.prepared:
            response.headers.setdefault(schema.REVISION_HEADER, str(revision_of()))
        return response

    return answer


@asynccontextmanager
async def serving(app: web.Application, path: Path) -> AsyncIterator[None]:
    """The application on a unix socket, mode 0660, until the block ends. The caller holds the directory's lock, so a
    socket that is there already is a dead process's. Raises SocketTaken."""
    listening = _bind(path)
    runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=SHUTDOWN_S)
    await runner.setup()
    try:
        await web.SockSite(runner, listening).start()
        yield
    finally:
        await runner.cleanup()
        path.unlink(missing_ok=True)


def _bind(path: Path) -> socket.socket:
    if len(os.fsencode(path)) > SOCKET_PATH_BYTES_MAX:
        raise SocketTaken(
            f"{path} is longer than {SOCKET_PATH_BYTES_MAX} bytes; give a shorter --runtime-dir"
        )
    if path.exists():
        if not stat.S_ISSOCK(path.stat().st_mode):
            raise SocketTaken(f"{path} exists and is no socket; remove it or give another --runtime-dir")
        path.unlink()
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    mask = os.umask(0o777 & ~SOCKET_MODE)
    try:
        listening.bind(str(path))
    except OSError as error:
        listening.close()
        raise SocketTaken(f"{path}: {error.strerror}") from None
    finally:
        os.umask(mask)
    listening.listen(128)
    listening.setblocking(False)
    return listening
