"""One command of a request to the log, and its outcome as the answer.

Belongs here: what becomes of a rejection and of a log that takes nothing. Does not belong here: commands, manifests
(applying.py).
"""

import asyncio
from typing import Any

from aiohttp import web

from controlplane.api.server import Refused, json_response
from controlplane.commands.types import Rejection
from controlplane.runtime.writer import Writer, WriterFailed


async def submit(writer: Writer, command: Any) -> web.Response:
    """{"revision", "changed"}. Raises Refused 409 with what the decision says, 503 where the log takes nothing."""
    try:
        (outcome,) = await asyncio.shield(asyncio.ensure_future(writer.submit_all([command])))
    except WriterFailed as error:
        raise Refused(503, str(error)) from None
    if isinstance(outcome, Rejection):
        raise Refused(409, outcome.reason, outcome.field)
    return json_response({"revision": outcome.revision, "changed": bool(outcome.events)})
