"""Flows as people write them and verdicts as they read them: the JSON of `meshlog verdict`. Pure.

Belongs here: both forms. Does not belong here: what a verdict is (verdict.py), what an end is (mesh.py).
"""

from typing import Any

from controlplane.fields import Reading
from controlplane.policy.mesh import FlowFault, Judge, Question
from controlplane.policy.requests import HttpRequest, Request
from controlplane.policy.verdict import DENY, DENY_EXPLICIT, Verdict
from datapath.abi.types import POLICY_DENIED, POLICY_DENY

FLOW_FIELDS = ("from", "to", "l4", "http", "dns", "sni")
HTTP_FIELDS = ("method", "path", "host", "headers")


def answer(judge: Judge, flow: Any, number: int) -> dict[str, Any]:
    """The verdict on one flow, or {"error"}: which flow it is, the field, and what would be right."""
    try:
        return shown(judge.answer(question_of(flow)))
    except FlowFault as fault:
        return {"error": f"flow {number}: {fault}"}


def question_of(flow: Any) -> Question:
    """Raises FlowFault."""
    reading = Reading()
    question = _question(reading, flow)
    if reading.refusals:
        raise FlowFault("; ".join(map(str, reading.refusals)))
    return question


def _question(reading: Reading, flow: Any) -> Question:
    fields = reading.mapping(flow, "", FLOW_FIELDS)
    http = None
    if "http" in fields:
        given = reading.mapping(fields["http"], "http", HTTP_FIELDS)
        http = HttpRequest(
            reading.text(given.get("method", "GET"), "http.method"),
            reading.text(given.get("path", "/"), "http.path"),
            reading.text(given.get("host"), "http.host"),
            reading.texts(given.get("headers"), "http.headers"),
        )
    request = Request(http, reading.text(fields.get("dns"), "dns"), reading.text(fields.get("sni"), "sni"))
    source, dest, l4 = (reading.text(fields.get(name), name, required=True) for name in ("from", "to", "l4"))
    return Question(source, dest, l4, request)


def shown(verdict: Verdict) -> dict[str, Any]:
    """The JSON of a verdict."""
    shown: dict[str, Any] = {"verdict": verdict.verdict}
    for name, side in (("egress", verdict.egress), ("ingress", verdict.ingress)):
        if side:
            shown[name] = side.verdict
    if verdict.requests:
        shown["l7"] = verdict.requests
    shown["by"] = list(verdict.by)
    if verdict.verdict == DENY:
        explicit = next(side for side in verdict.sides if side.denies).verdict == DENY_EXPLICIT
        code, name = (POLICY_DENY, "POLICY_DENY") if explicit else (POLICY_DENIED, "POLICY_DENIED")
        shown["reason"] = {"code": code, "name": name}
    return shown
