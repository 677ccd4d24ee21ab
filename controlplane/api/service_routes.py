"""The routes about backends of services that somebody judges.

Belongs here: requests to commands. Does not belong here: what a judgement does (desired/backends.py), lists
(service_views.py), HTTP (server.py).
"""

import msgspec
from aiohttp import web

from controlplane.api.policy_routes import Writing
from controlplane.api.server import read_body
from controlplane.api.submitting import submit
from controlplane.commands.redirect import SetBackendState


class BackendJudged(msgspec.Struct, frozen=True):
    """`state`: active, quarantined or maintenance."""

    address: str
    port: int
    state: str
    protocol: str = "TCP"


def changing_routes(mesh: Writing) -> list[web.RouteDef]:
    """Of an agent or an operator."""

    async def judge(request: web.Request) -> web.Response:
        body = await read_body(request, BackendJudged)
        return await submit(mesh.writer, SetBackendState(body.address, body.port, body.protocol, body.state))

    return [web.post("/v1/backends", judge)]
