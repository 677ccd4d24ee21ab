"""The route that tries flows as packets: the programs' own verdict beside the model's, now and at any revision.

Belongs here: the request to an answer. Does not belong here: what is run (runtime/rehearsing.py). Only an agent has it,
since the kernel must let it load programs.
"""

import asyncio
from functools import partial
from pathlib import Path

from aiohttp import web

from controlplane.api.asking import asked_moment, moment_at
from controlplane.api.policy_routes import Flows
from controlplane.api.reading_routes import Readable
from controlplane.api.server import Refused, json_response, read_body
from controlplane.history.records import time_text
from controlplane.runtime.rehearsing import rehearse
from datapath.errors import KernelError


def routes(mesh: Readable, objects_dir: Path) -> list[web.RouteDef]:
    """The table."""
    return [web.post("/v1/verdict/datapath", partial(_verdict, mesh, objects_dir))]


async def _verdict(mesh: Readable, objects_dir: Path, request: web.Request) -> web.Response:
    body = await read_body(request, Flows)
    moment = await asked_moment(mesh.past, request)
    if moment is None:
        # A state of its own: the thread reads it while this one goes on changing the node's.
        moment = await moment_at(mesh.past, mesh.follower.applied_revision)
    try:
        answers = await asyncio.to_thread(rehearse, moment.state, mesh.cluster, body.flows, objects_dir)
    except KernelError as error:
        raise Refused(503, f"packets cannot be tried here: {error}") from None
    return json_response({"answers": answers, "revision": moment.revision, "time": time_text(moment.time_ns)})
