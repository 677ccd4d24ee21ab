"""The ways of packets: at which program a flow begins, and where it goes on."""

import pytest

from controlplane import events as e
from controlplane.commands.addresses import ChangeSettings
from controlplane.commands.service import ApplyService
from controlplane.commands.types import Author
from controlplane.desired.policy_mesh import mesh_of
from controlplane.desired.services import ServiceCompiler
from controlplane.history.packets import NoPacket, PacketWays, Sender, Step
from controlplane.model import Exposure, NodeKey, ServicePort, Tunnel
from controlplane.policy.mesh import Judge, Question
from datapath.abi.types import IDENTITY_REMOTE_NODE
from datapath.codec import address_bytes
from datapath.frames import ACTION_OK, ACTION_REDIRECT, ACTION_SHOT, Outcome
from tests.controlplane.random_mesh import Log
from tests.controlplane.small_mesh import UNDERLAY, accept, add_endpoint, device, mesh, underlay_device


@pytest.fixture
def log() -> Log:
    found = mesh()
    for node, name, ifindex in (("n1", "front", 10), ("n1", "cart", 11), ("n2", "db", 12)):
        add_endpoint(found, "east", node, name, ifindex)
    return found


def ways(log: Log) -> PacketWays:
    def services_at(node: NodeKey) -> ServiceCompiler:
        compiler = ServiceCompiler(*node)
        compiler.full(log.state)
        return compiler

    return PacketWays(log.state, "east", Judge(mesh_of(log.state, "east")), services_at)


def first(log: Log, source: str, dest: str, l4: str = "TCP/80") -> Step:
    return ways(log).first(Question(source, dest, l4))


@pytest.mark.parametrize(
    ("source", "dest", "node", "program"),
    [
        ("shop/front", "shop/db", "n1", "from_endpoint"),
        ("shop/front", "entity:world", "n1", "from_endpoint"),
        ("ip:198.51.100.7", "node:n2", "n2", "from_network"),
        ("node:n1", "node:n2", "n2", "from_network"),
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
        ("entity:world", "ip:198.51.100.7", "TCP/80", "neither end is a workload"),
        ("node:n1", "ip:198.51.100.7", "TCP/80", "without host policies no program asks"),
        ("node:n1", "node:n1", "TCP/80", "to itself passes no program"),
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


def test_a_packet_that_a_node_led_on_goes_on_too(log: Log) -> None:
    """A node that answers for a frontend sends it to the backend's node."""
    step = first(log, "ip:198.51.100.7", "node:n1")
    sent = first(log, "node:n1", "shop/db")
    found = ways(log).following(step, Outcome(ACTION_REDIRECT, sent.frame, ()))
    assert found is not None and (found.node, found.program) == (NodeKey("east", "n2"), "from_network")


def test_a_frontend_that_no_node_has_as_its_address_is_asked_at_a_node(log: Log) -> None:
    """The first of the own cluster that answers for it."""
    exposure = Exposure("LoadBalancer", load_balancer_ips=("203.0.113.9",))
    port = ServicePort("", 80, "TCP", 8080)
    accept(log, Author("east", "operator"), ApplyService("shop", "db", (), (port,), {"app": "db"}, exposure=exposure))
    step = first(log, "ip:198.51.100.7", "ip:203.0.113.9")
    assert (step.node, step.program) == (NodeKey("east", "n1"), "from_network")
    with pytest.raises(NoPacket, match="neither end"):
        first(log, "ip:198.51.100.7", "ip:203.0.113.9", "TCP/81")


def test_where_host_policies_are_in_force_a_node_is_asked_on_both_sides(log: Log) -> None:
    """Before the packet leaves the one, and where it comes in at the other."""
    accept(log, Author("east", "operator"), ChangeSettings('{"enable-host-firewall":true}'))
    step = first(log, "node:n1", "node:n2")
    assert (step.node.node, step.program) == ("n1", "to_network")
    found = ways(log).following(step, Outcome(ACTION_OK, step.frame, ()))
    assert found is not None and (found.node.node, found.program) == ("n2", "from_network_guarded")
    assert first(log, "node:n1", "entity:world").program == "to_network"


def test_in_a_tunnel_a_packet_has_its_sender_with_it(log: Log) -> None:
    """The identity of the endpoint, or that of a remote node, and the sending node's address."""
    for node, addresses in UNDERLAY.items():
        tunnel = Tunnel("vxlan", 8472, device(3))
        log.write(node[0], f"node.{node[1]}", e.NodeJoined(node[1], addresses, underlay_device(*node), tunnel=tunnel))
    step = first(log, "shop/front", "shop/db")
    found = ways(log).following(step, Outcome(ACTION_REDIRECT, step.frame, ()))
    assert step.device is not None and found is not None
    assert (found.program, found.sender) == ("from_overlay", Sender(address_bytes("192.168.0.1"), step.device.identity))
    step = first(log, "node:n1", "shop/db")
    found = ways(log).following(step, Outcome(ACTION_OK, step.frame, ()))
    assert (step.program, found and found.program) == ("to_overlay", "from_overlay")
    assert found is not None and found.sender == Sender(address_bytes("192.168.0.1"), IDENTITY_REMOTE_NODE)
    assert first(log, "ip:198.51.100.7", "shop/db").program == "from_network"
