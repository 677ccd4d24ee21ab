"""What became of a flow's packets: in the words of the model, beside the model, and by which rows."""

from typing import Any

import pytest

from controlplane.commands.service import ApplyService
from controlplane.commands.types import Author
from controlplane.desired.derive import Deriver
from controlplane.desired.policy_mesh import mesh_of
from controlplane.desired.services import ServiceCompiler
from controlplane.history.packet_verdicts import Passage, agrees, model_of, refusal_of, service_fault, verdict_of
from controlplane.history.packets import Step
from controlplane.history.rows_hit import rows_hit
from controlplane.model import Exposure, NodeKey, ServicePort
from controlplane.policy.mesh import Judge, Question
from datapath.abi import types as abi
from datapath.codec import address_bytes
from datapath.frames import ACTION_OK, ACTION_REDIRECT, ACTION_SHOT, Outcome, first_packet
from datapath.notifications import Notification
from tests.controlplane.random_mesh import Log
from tests.controlplane.small_mesh import accept, add_endpoint, mesh

FRONT, DB, OTHER_DB = "10.1.1.2", "10.1.2.2", "10.1.2.3"
FRONTEND = "172.1.0.10"
N1, N2 = NodeKey("east", "n1"), NodeKey("east", "n2")


@pytest.fixture(scope="module")
def log() -> Log:
    """Service shop/db at FRONTEND port 80, and one that nothing serves at port 81."""
    found = mesh()
    add_endpoint(found, "east", "n1", "front", 10)
    for number, name in enumerate(("db", "other-db")):
        add_endpoint(found, "east", "n2", name, 11 + number, app="db")
    ranges = Exposure("LoadBalancer", load_balancer_ips=("203.0.113.9",), source_ranges=("198.51.100.0/24",))
    ports = (ServicePort("", 80, "TCP", 8080),)
    accept(found, Author("east", "operator"), ApplyService("shop", "db", (FRONTEND,), ports, {"app": "db"}, exposure=ranges))
    ports = (ServicePort("", 81, "TCP", 8080),)
    accept(found, Author("east", "operator"), ApplyService("shop", "none", ("172.1.0.11",), ports, {"app": "none"}))
    return found


def passage(
    log: Log, sent: tuple[str, int], asked: tuple[str, int] = (FRONTEND, 80), source: str = FRONT, drop: int = 0,
    program: str = "from_endpoint", node: NodeKey = N1, told: tuple[Notification, ...] = (),
) -> Passage:  # fmt: skip
    """A packet that was sent to `asked` and went to `sent`."""
    frame = first_packet(address_bytes(source), address_bytes(asked[0]), 6, asked[1])
    left = first_packet(address_bytes(source), address_bytes(sent[0]), 6, sent[1])
    compiler = ServiceCompiler(*node)
    compiler.full(log.state)
    if drop:
        told = (*told, notification(abi.NOTIFICATION_DROP, source, sent, drop_reason=drop))
        return Passage(Step(node, program, frame, None), Outcome(ACTION_SHOT, frame, told), compiler)
    return Passage(Step(node, program, frame, None), Outcome(ACTION_REDIRECT, left, told), compiler)


def notification(kind: int, source: str, dest: tuple[str, int], **fields: int) -> Notification:
    values = dict.fromkeys(Notification._fields, 0) | {"type": kind, "source_port": 49152, "protocol": 6} | fields
    ends = {"source": address_bytes(source), "dest": address_bytes(dest[0]), "dest_port": dest[1]}
    return Notification(**values | ends)  # type: ignore[arg-type]


def test_a_backend_of_the_service_is_right_and_any_other_is_not(log: Log) -> None:
    """By the frontends of the node where the packet was; also of a packet that policy then dropped."""
    assert service_fault(passage(log, (DB, 8080))) == ""
    assert "no backend for new flows" in service_fault(passage(log, (FRONT, 8080)))
    assert "no backend for new flows" in service_fault(passage(log, (FRONTEND, 80)))
    verdict = notification(abi.NOTIFICATION_VERDICT, FRONT, (FRONT, 8080))
    denied = passage(log, (FRONT, 8080), drop=abi.POLICY_DENIED, told=(verdict,))
    assert "no backend for new flows" in service_fault(denied)
    assert "there is no frontend" in service_fault(passage(log, (DB, 8080), (FRONTEND, 99)))
    assert service_fault(passage(log, (FRONTEND, 99), (FRONTEND, 99))) == ""


@pytest.mark.parametrize(
    ("source", "asked", "program", "refusal"),
    [
        (FRONT, ("172.1.0.11", 81), "from_endpoint", abi.SERVICE_BACKEND_NOT_FOUND),
        ("192.0.2.1", ("203.0.113.9", 80), "from_network", abi.DENIED_BY_LB_SRC_RANGE_CHECK),
        ("198.51.100.7", ("203.0.113.9", 80), "from_network", 0),
        (FRONT, ("203.0.113.9", 80), "from_endpoint", 0),
    ],
)
def test_a_service_refuses_by_itself(log: Log, source: str, asked: tuple[str, int], program: str, refusal: int) -> None:
    """Without backends, and clients outside its ranges; what was not dropped so is a fault."""
    way = passage(log, (DB, 8080), asked, source, program=program)
    assert refusal_of(way) == refusal
    assert bool(service_fault(way)) == bool(refusal)
    if refusal:
        assert service_fault(passage(log, asked, asked, source, refusal, program)) == ""


def test_the_model_is_asked_about_the_backend_and_in_whose_name(log: Log) -> None:
    """The sender's side about the backend, the receiver's about the node that stands for the client."""
    judge, question = Judge(mesh_of(log.state, "east")), Question("shop/front", f"ip:{FRONTEND}", "TCP/80")
    way = [passage(log, (DB, 8080))]
    model = model_of(judge, question, way)
    assert (model.verdict, model.egress is None, model.ingress is None) == ("allow", False, False)
    assert verdict_of(way)["backend"] == f"{DB} TCP/8080"
    outside = Question("ip:192.0.2.1", "ip:203.0.113.9", "TCP/80")
    first = passage(log, (DB, 8080), ("203.0.113.9", 80), "192.0.2.1", program="from_network")
    second = passage(log, (DB, 8080), (DB, 8080), "192.168.0.1", program="from_network", node=N2)
    model = model_of(judge, outside, [first, second])
    assert (model.egress, model.ingress is None) == (None, False)


def test_an_endpoint_may_talk_to_itself_through_a_service(log: Log) -> None:
    """No policy is asked, so the model has none; straight to its own address it has."""
    judge = Judge(mesh_of(log.state, "east"))
    hairpin = passage(log, (DB, 8080), source=DB, node=N2)
    assert model_of(judge, Question("shop/db", f"ip:{FRONTEND}", "TCP/80"), [hairpin]).sides == []
    straight = passage(log, (DB, 8080), (DB, 8080), source=DB, node=N2)
    assert len(model_of(judge, Question("shop/db", "shop/db", "TCP/8080"), [straight]).sides) == 2


def test_a_silent_delivery_is_an_admission(log: Log) -> None:
    """The node's host comes in without a notification."""
    found = passage(log, (FRONT, 80), (FRONT, 80), "192.168.0.1", program="to_endpoint")
    assert verdict_of([found._replace(outcome=found.outcome._replace(action=ACTION_OK))])["ingress"] == "allow"


def test_the_rows_that_a_packet_met_are_named(log: Log) -> None:
    """Frontend, backend, where the backend is, and what the verdict rests on, by the names that `why map` takes."""
    identity = log.state.endpoint_of("east", "n1", "c-front", "eth0").identity  # type: ignore[union-attr]
    told = notification(abi.NOTIFICATION_VERDICT, FRONT, (DB, 8080), source_identity=identity, dest_identity=2,
                        policy_direction=abi.POLICY_EGRESS, verdict=abi.VERDICT_ALLOW)  # fmt: skip
    step, outcome, _ = passage(log, (DB, 8080), told=(told,))
    found = rows_hit(step, outcome, Deriver(*N1).full(log.state).tables)
    assert [(each["table"], each["key"]) for each in found if each["table"] != "backends"] == [
        ("endpoints", FRONT), ("services", f"{FRONTEND}:80/TCP"), ("ipcache", f"{DB}/32"),
        ("policy_subjects", str(identity)),
    ]  # fmt: skip
    assert [each["row"]["address"] for each in found if each["table"] == "backends"] == [DB]


ALLOWED = {"verdict": "allow", "egress": "allow", "ingress": "allow"}


@pytest.mark.parametrize(
    ("model", "packet", "expected"),
    [
        (ALLOWED, ALLOWED, True),
        (ALLOWED, {"verdict": "deny", "egress": "allow", "ingress": "deny-default"}, False),
        (ALLOWED, {"verdict": "deny", "egress": "allow"}, False),
        ({"verdict": "deny", "egress": "deny-default", "ingress": "allow"}, {"verdict": "deny", "egress": "deny-default"}, True),
        ({"verdict": "deny", "egress": "deny-explicit"}, {"verdict": "deny", "egress": "deny-default"}, False),
        ({"verdict": "redirect", "egress": "redirect"}, {"verdict": "deny", "egress": "deny-default"}, True),
        ({"verdict": "redirect", "egress": "redirect"}, {"verdict": "allow", "egress": "allow"}, False),
        ({"verdict": "redirect", "egress": "redirect"}, {"verdict": "allow", "egress": "audit"}, True),
        ({"verdict": "allow", "egress": "audit"}, {"verdict": "allow", "egress": "audit"}, True),
        ({"verdict": "allow", "egress": "audit"}, {"verdict": "allow", "egress": "allow"}, False),
    ],
)
def test_agreement_is_side_by_side(model: dict[str, Any], packet: dict[str, Any], expected: bool) -> None:
    """A side that the packet did not reach is not compared; what a proxy would look at is dropped, but under audit."""
    assert agrees(model, packet) is expected
