"""The routes about backends that somebody judges, over real HTTP and a state folded from real events."""

from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from controlplane.api import service_routes
from tests.controlplane.test_policy_routes import Mesh, refusals

PLACE = {"address": "10.1.1.2", "port": 8080, "protocol": "TCP"}


async def judged(mesh: Mesh, *bodies: dict[str, Any]) -> list[tuple[int, dict[str, Any]]]:
    """What the route answers to each, in order."""
    app = web.Application(middlewares=[refusals])
    app.add_routes(service_routes.changing_routes(mesh))  # type: ignore[arg-type]
    async with TestClient(TestServer(app)) as client:
        answers = [await client.post("/v1/backends", json=body) for body in bodies]
        return [(each.status, await each.json()) for each in answers]


@pytest.mark.asyncio
async def test_a_judgement_is_a_fact_of_the_log() -> None:
    """Until the backend is active again; saying so twice changes nothing."""
    mesh = Mesh()
    away, back = {**PLACE, "state": "quarantined"}, {**PLACE, "state": "active"}
    answers = await judged(mesh, away, away)
    assert [answer["changed"] for _, answer in answers] == [True, False]
    assert [each.state for each in mesh.log.state.backend_states.values()] == ["quarantined"]
    await judged(mesh, back)
    assert mesh.log.state.backend_states == {}


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("wrong", "right"),
    [({"state": "gone"}, "active, quarantined, maintenance"), ({"address": "web"}, "10.0.0.1"), ({"port": 0}, "65535")],
)
async def test_a_judgement_that_makes_no_sense_is_refused(wrong: dict[str, Any], right: str) -> None:
    """With what would be right."""
    ((status, answer),) = await judged(Mesh(), {**PLACE, "state": "maintenance", **wrong})
    assert (status, right in answer["reason"]) == (409, True)
