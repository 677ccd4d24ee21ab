"""The route that tries flows as packets, over real HTTP and real programs."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from controlplane.api.rehearsal_routes import routes
from controlplane.commands.policy import ApplyPolicy
from controlplane.commands.types import Author
from controlplane.policy.manifests import canonical
from tests.controlplane.history.past import past_of
from tests.controlplane.policy.worlds import network_policy
from tests.controlplane.random_mesh import Log
from tests.controlplane.small_mesh import accept, add_endpoint, mesh

FLOW = {"from": "shop/front", "to": "shop/db", "l4": "TCP/80"}


def guarded() -> tuple[Log, int]:
    """A flow that was allowed up to the revision given, and is denied since."""
    log = mesh()
    add_endpoint(log, "east", "n1", "front", 10)
    add_endpoint(log, "east", "n2", "db", 11)
    before = log.state.revision
    manifest = canonical(network_policy("{podSelector: {matchLabels: {app: db}}}"))
    accept(log, Author("east", "operator"), ApplyPolicy("NetworkPolicy", "shop", "policy", manifest))
    return log, before


async def asked(log: Log, objects_dir: Path, query: str = "") -> dict[str, Any]:
    seen = SimpleNamespace(
        cluster="east", past=past_of(log), follower=SimpleNamespace(applied_revision=log.state.revision)
    )
    app = web.Application()
    app.add_routes(routes(seen, objects_dir))  # type: ignore[arg-type]
    async with TestClient(TestServer(app)) as client:
        answer = await client.post(f"/v1/verdict/datapath{query}", json={"flows": [FLOW]})
        found: dict[str, Any] = await answer.json()
        return found


@pytest.mark.kernel("bpf_redirect_peer")
async def test_the_programs_say_what_holds_now(objects_dir: Path) -> None:
    """Beside the model's verdict: the programs', with the drop reason and the way of the packet."""
    log, _ = guarded()
    (found,) = (await asked(log, objects_dir))["answers"]
    assert (found["verdict"], found["agrees"]) == ("deny", True)
    packet = found["datapath"]
    assert packet["reason"] == {"code": 133, "name": "Policy denied"}
    assert packet["way"] == ["east/n1 from_endpoint", "east/n2 from_network"]


@pytest.mark.kernel("bpf_redirect_peer")
async def test_the_programs_say_what_held_then(objects_dir: Path) -> None:
    """At a revision before the policy the same packet passes."""
    log, before = guarded()
    (found,) = (await asked(log, objects_dir, f"?at={before}"))["answers"]
    assert (found["datapath"]["verdict"], found["agrees"]) == ("allow", True)
