"""The routes about what a log that was put back to a backup has lost.

Belongs here: requests to answers. Does not belong here: what is lost (history/loss.py), HTTP (server.py).
"""

from typing import Protocol

import msgspec
from aiohttp import web

from controlplane.api.server import json_response
from controlplane.history.loss import LostObject
from controlplane.runtime.losses import Losses


class LossList(msgspec.Struct, frozen=True):
    """`cluster`: of the process that answers. `left_out`: how many more there were."""

    cluster: str
    items: list[LostObject]
    left_out: int


class Knowing(Protocol):
    """What these routes need of an agent or an operator."""

    @property
    def cluster(self) -> str: ...

    @property
    def losses(self) -> Losses: ...


def routes(mesh: Knowing) -> list[web.RouteDef]:
    """The table."""

    async def listing(request: web.Request) -> web.Response:
        return json_response(LossList(mesh.cluster, list(mesh.losses.open()), mesh.losses.left_out))

    async def dismiss(request: web.Request) -> web.Response:
        return json_response({"dismissed": mesh.losses.dismiss()})

    return [web.get("/v1/lost", listing), web.delete("/v1/lost", dismiss)]
