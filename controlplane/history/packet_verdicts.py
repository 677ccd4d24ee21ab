"""What became of a flow's packets, in the words of the model's answer, and whether that is what the model says. Pure.

Belongs here: from outcomes to a verdict that can be laid beside the model's (policy/mesh.py), and what services make of
a packet by the model (desired/services.py). Does not belong here: which packets (packets.py), running them
(runtime/rehearsing.py).
"""

from collections.abc import Mapping, Sequence
from ipaddress import ip_address, ip_network
from typing import Any, NamedTuple

from controlplane.desired.frontends import Frontend
from controlplane.desired.services import ServiceCompiler
from controlplane.history.packets import FROM_ENDPOINT, TO_ENDPOINT, TO_NETWORK, Step, is_dropped
from controlplane.policy.mesh import Judge, Question
from controlplane.policy.verdict import ALLOW, AUDIT, DENY, DENY_DEFAULT, DENY_EXPLICIT, REDIRECT, Verdict, joined
from datapath.abi import types as abi
from datapath.addressing import protocol_name
from datapath.codec import address_text
from datapath.frames import ICMP, ICMPV6, Ends, Outcome, ends_of
from datapath.notifications import DROP_REASON_TEXTS
from datapath.tables import ServiceKey

SIDES = {abi.POLICY_EGRESS: "egress", abi.POLICY_INGRESS: "ingress"}
DENIALS = {abi.POLICY_DENIED: DENY_DEFAULT, abi.POLICY_DENY: DENY_EXPLICIT}
LEAVING = (FROM_ENDPOINT, TO_ENDPOINT, TO_NETWORK, "to_overlay")
"""Programs that ask the sender's own policies: those of an endpoint, or of the node itself."""


class Passage(NamedTuple):
    """A packet at one program, and what became of it there. `services`: of the program's node."""

    step: Step
    outcome: Outcome
    services: ServiceCompiler


def verdict_of(way: Sequence[Passage]) -> dict[str, Any]:
    """What the programs said, in the words of the model's answer: verdict, egress, ingress, reason; and the way.

    "backend": to which one a frontend led.
    """
    found: dict[str, Any] = {"verdict": ALLOW}
    for step, outcome, _ in way:
        for told in outcome.told:
            if told.type == abi.NOTIFICATION_VERDICT:
                found[SIDES[told.policy_direction]] = _said(told.verdict, told.drop_reason)
        if is_dropped(outcome):
            found["verdict"] = DENY
            found["reason"] = _reason(outcome.drop_reason)
            continue
        asked, sent = ends_of(step.frame), ends_of(outcome.frame)
        if (asked.dest, asked.dest_port) != (sent.dest, sent.dest_port):
            found["backend"] = f"{address_text(sent.dest)} {_l4(sent)}"
    if found["verdict"] == ALLOW and way[-1].step.program == TO_ENDPOINT:
        # The node's host comes in without being asked, and nothing is told of it.
        found.setdefault("ingress", ALLOW)
    found["way"] = [f"{'/'.join(step.node)} {step.program}" for step, _, _ in way]
    return found


def _said(verdict: int, drop_reason: int) -> str:
    if verdict == abi.VERDICT_ALLOW:
        return ALLOW
    return AUDIT if verdict == abi.VERDICT_AUDIT else DENIALS.get(drop_reason, DENY)


def _reason(code: int) -> dict[str, Any]:
    return {"code": code, "name": DROP_REASON_TEXTS.get(code, str(code))}


def _l4(ends: Ends) -> str:
    return f"{protocol_name(ends.protocol)}/{ends.dest_port}"


# --- policies -----------------------------------------------------------------------------------------------------


def model_of(judge: Judge, question: Question, way: Sequence[Passage]) -> Verdict:
    """What the model says of the flow as the programs saw it: the sender's side about the backend where a frontend was
    asked, the receiver's side about the node in whose name the packet came. Raises FlowFault."""
    asked = ends_of(way[0].step.frame)
    first, last = (_judged_ends(way, direction) for direction in (abi.POLICY_EGRESS, abi.POLICY_INGRESS))
    if asked.dest != asked.source == first.dest:
        # Through a frontend an endpoint may always talk to itself.
        return joined(None, None)
    egress = judge.answer(_as_seen(question, asked, first)).egress if way[0].step.program in LEAVING else None
    return joined(egress, judge.answer(_as_seen(question, asked, last)).ingress)


def _judged_ends(way: Sequence[Passage], direction: int) -> Ends:
    """The ends between which a side was judged, or would have been."""
    for _, outcome, _ in way:
        for told in outcome.told:
            if told.type == abi.NOTIFICATION_VERDICT and told.policy_direction == direction:
                return Ends(told.source, told.dest, told.protocol, told.source_port, told.dest_port)
    step, outcome, _ = way[0 if direction == abi.POLICY_EGRESS else -1]
    return ends_of(step.frame if is_dropped(outcome) else outcome.frame)


def _as_seen(question: Question, asked: Ends, seen: Ends) -> Question:
    """The question with those ends that are others by now."""
    source, dest, l4 = question.source, question.dest, question.l4
    if seen.source != asked.source:
        source = f"ip:{address_text(seen.source)}"
    if seen.dest != asked.dest:
        dest = f"ip:{address_text(seen.dest)}"
    if seen.protocol not in (ICMP, ICMPV6) and seen.dest_port != asked.dest_port:
        l4 = _l4(seen)
    return Question(source, dest, l4, question.request)


def agrees(model: Mapping[str, Any], packet: Mapping[str, Any]) -> bool:
    """Whether the programs did what the model says. What only a proxy could allow, they drop as long as there is none,
    but under audit.

    A packet that was dropped at one end never met the other end's policy; that side is not compared.
    """
    audited = False
    for side in SIDES.values():
        said, done = model.get(side), packet.get(side)
        if said is None or done is None:
            continue
        audited = audited or (said == REDIRECT and done == AUDIT)
        if done != said and not (said == REDIRECT and done in (DENY_DEFAULT, AUDIT)):
            return False
    allowed = model.get("verdict") == ALLOW or (model.get("verdict") == REDIRECT and audited)
    return bool(allowed == (packet["verdict"] == ALLOW))


# --- services -----------------------------------------------------------------------------------------------------


def service_fault(passage: Passage) -> str:
    """What the program did otherwise than the node's services say; "" if nothing."""
    frontend, asked = _frontend(passage), ends_of(passage.step.frame)
    reason = passage.outcome.drop_reason if is_dropped(passage.outcome) else 0
    refusal = refusal_of(passage)
    if refusal:
        done = DROP_REASON_TEXTS[reason] if reason else "not dropped"
        return "" if reason == refusal else f"the service refuses with {DROP_REASON_TEXTS[refusal]}, and it was: {done}"
    sent = _sent(passage)
    if sent is None:
        return ""
    went = (sent.dest, sent.dest_port)
    if frontend is None:
        return "" if went == (asked.dest, asked.dest_port) else f"{_place(*went)} is no backend: there is no frontend"
    backends = [(member.address, member.port) for member in frontend.choice.members[: frontend.choice.count]]
    right = ", ".join(_place(*each) for each in backends)
    return "" if went in backends else f"{_place(*went)} is no backend for new flows, which are {right}"


def refusal_of(passage: Passage) -> int:
    """The drop reason with which a service turns the packet away, whatever policies say; 0: it does not."""
    frontend = _frontend(passage)
    if frontend is None:
        return 0
    if frontend.ranges:
        client = ip_address(address_text(ends_of(passage.step.frame).source))
        inside = any(client in ip_network(prefix) for prefix in frontend.ranges)
        if inside == bool(frontend.flags & abi.SERVICE_SOURCE_RANGES_DENY):
            return abi.DENIED_BY_LB_SRC_RANGE_CHECK
    return 0 if frontend.choice.count else abi.SERVICE_BACKEND_NOT_FOUND


def _frontend(passage: Passage) -> Frontend | None:
    """The one that the packet asks for at its step, by the model."""
    program, asked = passage.step.program, ends_of(passage.step.frame)
    if program not in (FROM_ENDPOINT, "from_network", "from_network_guarded", "from_overlay"):
        return None
    scope = abi.SERVICE_SCOPE_INTERNAL if program == FROM_ENDPOINT else abi.SERVICE_SCOPE_EXTERNAL
    key = ServiceKey(asked.dest, asked.dest_port, asked.protocol, scope)
    unit = passage.services.unit_of(key)
    return None if unit is None else passage.services.frontends(unit)[key]


def _sent(passage: Passage) -> Ends | None:
    """To whom the packet went, or was to go; None of one that was dropped before that was told."""
    if not is_dropped(passage.outcome):
        return ends_of(passage.outcome.frame)
    for told in passage.outcome.told:
        if told.type == abi.NOTIFICATION_VERDICT:
            asked = ends_of(passage.step.frame)
            port = asked.dest_port if told.protocol in (ICMP, ICMPV6) else told.dest_port
            return Ends(told.source, told.dest, told.protocol, told.source_port, port)
    return None


def _place(address: bytes, port: int) -> str:
    text = address_text(address)
    return f"[{text}]:{port}" if ":" in text else f"{text}:{port}"
