"""The ways of packets: at which program a flow begins, where it goes on, and when model and programs are at one."""

from typing import Any

import pytest

from controlplane.desired.policy_mesh import mesh_of
from controlplane.history.packets import NoPacket, PacketWays, Step, agrees, backend_question, verdict_of
from controlplane.model import NodeKey
from controlplane.policy.mesh import Judge, Question
from datapath.codec import address_bytes
from datapath.frames import ACTION_OK, ACTION_REDIRECT, ACTION_SHOT, Outcome, ends_of, first_packet
from tests.controlplane.random_mesh import Log
from tests.controlplane.small_mesh import add_endpoint, mesh


@pytest.fixture
def log() -> Log:
    found = mesh()
    for node, name, ifindex in (("n1", "front", 10), ("n1", "cart", 11), ("n2", "db", 12)):
        add_endpoint(found, "east", node, name, ifindex)
    return found


def ways(log: Log) -> PacketWays:
    return PacketWays(log.state, Judge(mesh_of(log.state, "east")))


def first(log: Log, source: str, dest: str, l4: str = "TCP/80") -> Step:
    return ways(log).first(Question(source, dest, l4))


@pytest.mark.parametrize(
    ("source", "dest", "node", "program"),
    [
        ("shop/front", "shop/db", "n1", "from_endpoint"),
        ("shop/front", "entity:world", "n1", "from_endpoint"),
        ("entity:host", "shop/db", "n2", "to_endpoint"),
        ("node:n2", "shop/db", "n2", "to_endpoint"),
        ("node:n1", "shop/db", "n2", "from_network"),
        ("ip:198.51.100.7", "shop/db", "n2", "from_network"),
        ("entity:remote-node", "shop/db", "n2", "from_network"),
    ],
)
def test_a_flow_begins_where_its_packet_is_seen_first(log: Log, source: str, dest: str, node: str, program: str) -> None:
    """At the sender's own device, else at the receiver's, from its host or from the network."""
    step = first(log, source, dest)
    assert (step.node, step.program) == (NodeKey("east", node), program)
    assert (step.device is None) == (program == "from_network")


@pytest.mark.parametrize(
    ("source", "dest", "l4", "why"),
    [
        ("entity:world", "node:n1", "TCP/80", "neither end is a workload"),
        ("shop/front", "entity:ingress", "TCP/80", "has the identity of entity ingress"),
        ("shop/front", "ip:2001:db8::1", "ICMP/8", "ICMPv6"),
        ("shop/front", "ip:2001:db8::1", "TCP/80", ""),
    ],
)
def test_a_flow_without_a_packet_says_why(log: Log, source: str, dest: str, l4: str, why: str) -> None:
    """And the last of these has one."""
    if why:
        with pytest.raises(NoPacket, match=why):
            first(log, source, dest, l4)
    else:
        assert first(log, source, dest, l4).program == "from_endpoint"


def test_a_packet_goes_on_at_the_node_of_its_destination(log: Log) -> None:
    """Not if it was dropped, nor if its destination is here or nowhere in the mesh."""
    there, here = first(log, "shop/front", "shop/db"), first(log, "shop/front", "shop/cart")
    following = ways(log).following
    found = following(there, Outcome(ACTION_REDIRECT, there.frame, ()))
    assert found is not None and (found.node, found.program) == (NodeKey("east", "n2"), "from_network")
    assert following(there, Outcome(ACTION_SHOT, there.frame, ())) is None
    assert following(here, Outcome(ACTION_REDIRECT, here.frame, ())) is None
    outside = first(log, "shop/front", "entity:world")
    assert following(outside, Outcome(ACTION_OK, outside.frame, ())) is None


def test_a_translated_packet_is_asked_about_by_its_backend(log: Log) -> None:
    """The model has no services: what it is compared with is the verdict on the backend."""
    step = first(log, "shop/front", "ip:172.1.0.9")
    sent = first_packet(ends_of(step.frame).source, address_bytes("10.1.2.1"), 6, 8080)
    question = Question("shop/front", "ip:172.1.0.9", "TCP/80")
    found = backend_question(question, [step], [Outcome(ACTION_REDIRECT, sent, ())])
    assert found == Question("shop/front", "ip:10.1.2.1", "TCP/8080")
    assert backend_question(question, [step], [Outcome(ACTION_REDIRECT, step.frame, ())]) is None


def test_a_silent_delivery_is_an_admission(log: Log) -> None:
    """The node's host comes in without a notification."""
    step = first(log, "entity:host", "shop/db")
    assert verdict_of([step], [Outcome(ACTION_OK, step.frame, ())])["ingress"] == "allow"


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
    ],
)
def test_agreement_is_side_by_side(model: dict[str, Any], packet: dict[str, Any], expected: bool) -> None:
    """A side that the packet did not reach is not compared; what a proxy would look at is dropped."""
    assert agrees(model, packet) is expected
