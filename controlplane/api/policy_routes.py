"""The routes about policies: verdicts on flows, selectors in use, names and settings.

Belongs here: requests to answers over a Mesh. Does not belong here: what a verdict is (policy/), HTTP (server.py).
"""

import asyncio
from collections.abc import Mapping
from typing import Any, Protocol

import msgspec
from aiohttp import web

from controlplane.api.asking import asked_moment
from controlplane.api.endpoint_policy import endpoint_policy, find_endpoints
from controlplane.api.reading_routes import Readable
from controlplane.api.server import Refused, json_response, read_body
from controlplane.api.submitting import submit
from controlplane.api.views import endpoint_item
from controlplane.commands.addresses import ChangeSettings, ExpireName, ResolveName
from controlplane.commands.endpoint import ConfigureEndpoint
from controlplane.desired.forwarding import settings_notes
from controlplane.desired.policy import PolicyCompiler
from controlplane.desired.policy_mesh import mesh_of
from controlplane.history.at import Moment
from controlplane.history.records import time_text
from controlplane.model import Endpoint, NodeKey
from controlplane.policy.answers import answer
from controlplane.policy.lint import findings
from controlplane.policy.manifests import canonical
from controlplane.policy.mesh import Judge
from controlplane.policy.selectors import Selector
from controlplane.projections.state import State
from controlplane.runtime.writer import Writer

ANSWERS_AT_ONCE = 200
"""Flows judged before others get a turn: a few milliseconds."""


class Flows(msgspec.Struct, frozen=True):
    flows: list[Any]


class NameAsked(msgspec.Struct, frozen=True):
    """`expired`: the name has these addresses no longer ([]: none)."""

    name: str
    addresses: list[str] = []
    expired: bool = False


class Options(msgspec.Struct, frozen=True):
    """Of an endpoint; what is absent stays as it is."""

    endpoint: str
    PolicyAuditMode: bool | None = None


class Writing(Readable, Protocol):
    """What can be changed too."""

    @property
    def writer(self) -> Writer: ...


def reading_routes(mesh: Readable) -> list[web.RouteDef]:
    """Of whatever can be read, a capsule too."""
    serve = _PolicyRoutes(mesh)
    return [
        web.post("/v1/verdict", serve.verdict),
        web.get("/v1/policy/selectors", serve.selectors),
        web.get("/v1/policy/settings", serve.settings),
        web.get("/v1/policy/lint", serve.lint),
        web.get("/v1/policy/endpoint", serve.endpoint),
        web.get("/v1/names", serve.names),
    ]


def changing_routes(mesh: Writing) -> list[web.RouteDef]:
    """Of an agent or an operator."""
    serve = _ChangingRoutes(mesh)
    return [
        web.post("/v1/names", serve.change_name),
        web.post("/v1/policy/settings", serve.change_settings),
        web.post("/v1/policy/endpoint", serve.configure_endpoint),
    ]


class _PolicyRoutes:
    def __init__(self, mesh: Readable) -> None:
        self._mesh = mesh

    async def _asked(self, request: web.Request) -> tuple[State, Mapping[str, Any]]:
        """The state that is asked about, and how the answer says where it stands. Raises Refused."""
        moment: Moment | None = await asked_moment(self._mesh.past, request)
        if moment is None:
            return self._mesh.follower.state, {"revision": self._mesh.follower.applied_revision}
        return moment.state, {"revision": moment.revision, "time": time_text(moment.time_ns)}

    async def verdict(self, request: web.Request) -> web.Response:
        body = await read_body(request, Flows)
        state, standing = await self._asked(request)
        judge = Judge(mesh_of(state, self._mesh.cluster))
        answers = []
        for number, flow in enumerate(body.flows):
            answers.append(answer(judge, flow, number))
            if number % ANSWERS_AT_ONCE == ANSWERS_AT_ONCE - 1:
                await asyncio.sleep(0)
        return json_response({"answers": answers, **standing})

    async def selectors(self, request: web.Request) -> web.Response:
        state, standing = await self._asked(request)
        found = await asyncio.to_thread(_selectors, state, self._mesh.cluster, self._mesh.where)
        return json_response({"items": found, **standing})

    async def lint(self, request: web.Request) -> web.Response:
        state, standing = await self._asked(request)
        found = await asyncio.to_thread(findings, mesh_of(state, self._mesh.cluster))
        return json_response({"items": found, **standing})

    async def endpoint(self, request: web.Request) -> web.Response:
        state, standing = await self._asked(request)
        found = _found(state, request.query.get("endpoint", ""), self._mesh.where)
        items = [
            {
                "endpoint": endpoint_item(state, each, self._mesh.row_state),
                **await asyncio.to_thread(endpoint_policy, state, each),
            }
            for each in found
        ]
        return json_response({"items": items, **standing})

    async def settings(self, request: web.Request) -> web.Response:
        state, standing = await self._asked(request)
        text = state.policy_settings.get(self._mesh.cluster, "{}")
        notes = settings_notes(state, self._mesh.cluster)
        return json_response({"settings": msgspec.json.decode(text), "notes": notes, **standing})

    async def names(self, request: web.Request) -> web.Response:
        state, standing = await self._asked(request)
        found = [state.resolved_names[key] for key in sorted(state.resolved_names)]
        items = [{"cluster": each.cluster, "name": each.name, "addresses": list(each.addresses)} for each in found]
        return json_response({"items": items, **standing})


class _ChangingRoutes:
    def __init__(self, mesh: Writing) -> None:
        self._mesh = mesh

    async def change_name(self, request: web.Request) -> web.Response:
        body = await read_body(request, NameAsked)
        command = (ExpireName if body.expired else ResolveName)(body.name, tuple(body.addresses))
        return await submit(self._mesh.writer, command)

    async def configure_endpoint(self, request: web.Request) -> web.Response:
        body = await read_body(request, Options)
        state, cluster = self._mesh.follower.state, self._mesh.cluster
        found = _found(state, body.endpoint, self._mesh.where)
        own = [each for each in found if each.cluster == cluster]
        if len(own) != 1:
            where = ", ".join(f"number {each.endpoint_id} of node {each.node} in {each.cluster}" for each in found)
            right = f"name one of cluster {cluster}; others are for an agent of theirs to ask"
            raise Refused(409, f"{body.endpoint!r} is {where}; {right}", "endpoint")
        endpoint = own[0]
        is_audited = endpoint.is_audited if body.PolicyAuditMode is None else body.PolicyAuditMode
        return await submit(self._mesh.writer, ConfigureEndpoint(endpoint.node, endpoint.endpoint_id, is_audited))

    async def change_settings(self, request: web.Request) -> web.Response:
        body = await read_body(request, dict[str, Any])
        return await submit(self._mesh.writer, ChangeSettings(canonical(body)))


def _found(state: State, text: str, where: tuple[str, str] | None) -> list[Endpoint]:
    """Raises Refused where there is none."""
    found = find_endpoints(state.endpoints.values(), text, where)
    if not found:
        right = "right is a number of this node, NS/POD, CLUSTER:NS/POD or an address"
        raise Refused(404, f"no endpoint {text!r}; {right}", "endpoint")
    return found


def _selectors(state: State, cluster: str, where: NodeKey | None) -> list[dict[str, Any]]:
    """Each selector that rules of the cluster use: which policies use it, and the identities that it selects, those of
    prefixes and nodes too, as the node sees them (without one: as each would that is none of the mesh)."""
    compiler = PolicyCompiler()
    compiler.full(state, cluster, where.node if where else "")
    users: dict[Selector, dict[str, None]] = {}
    for policy in compiler.policies():
        for part in policy.parts:
            for rule in part.rules:
                for selector in rule.peers or ():
                    users.setdefault(selector, {})[part.name] = None
    return [
        {"selector": str(selector), "users": list(users[selector]), "identities": compiler.selected(selector)}
        for selector in sorted(users)
    ]
