"""What is due without anybody asking."""

import msgspec
import pytest

from controlplane import events as e
from controlplane.commands.endpoint import RelabelEndpoint
from controlplane.commands.identity import ReleaseIdentity
from controlplane.commands.node import AssignAddressBlock, RemoveNode
from controlplane.commands.upkeep import Upkeep, due_commands, node_upkeep
from controlplane.model import NodeKey
from tests.controlplane.random_mesh import Log
from tests.controlplane.small_mesh import add_endpoint, device, mesh

N1 = NodeKey("east", "n1")
DEAD_S, RELEASE_S = 60.0, 30.0
ALIVE = ("node.n1", "node.n2", "operator")


@pytest.fixture
def log() -> Log:
    """The small mesh with an endpoint on n1 and one on n2."""
    log = mesh()
    add_endpoint(log, "east", "n1", "web", 11)
    add_endpoint(log, "east", "n2", "db", 11)
    return log


def due(
    log: Log, upkeep: Upkeep, now_s: float, alive: tuple[str, ...] = ALIVE, realized: int = 10**9,
    elsewhere: int = 10**9,
) -> list[object]:  # fmt: skip
    reported = {key: realized if key.cluster == "east" else elsewhere for key in log.state.nodes}
    return list(due_commands(upkeep, log.state, alive, reported, now_s))


def test_nothing_is_due_at_rest(log: Log) -> None:
    """Neither for a node nor for an operator."""
    assert node_upkeep(log.state, N1) == ()
    assert due(log, Upkeep("east", DEAD_S, RELEASE_S), 1000.0) == []


def test_a_changed_workload_relabels_its_endpoint(log: Log) -> None:
    """On the node that has it, by the change alone as by looking at everything."""
    changes = log.write("east", "operator", e.WorkloadApplied("shop", "web", {"app": "new"}))
    assert node_upkeep(log.state, N1, changes) == node_upkeep(log.state, N1) == (RelabelEndpoint("n1", 1),)
    assert node_upkeep(log.state, NodeKey("east", "n2"), changes) == ()


def test_a_changed_namespace_relabels_all_its_endpoints(log: Log) -> None:
    """On every node."""
    changes = log.write("east", "operator", e.NamespaceLabelled("shop", {"team": "a"}))
    for node in ("n1", "n2"):
        assert node_upkeep(log.state, NodeKey("east", node), changes) == (RelabelEndpoint(node, 1),)


def test_changed_settings_relabel_what_they_concern(log: Log) -> None:
    """A filter of labels: endpoints that lose one, on every node of that cluster, and back again."""
    changes = log.write("east", "operator", e.SettingsChanged('{"labels":"!app"}'))
    for node in ("n1", "n2"):
        assert node_upkeep(log.state, NodeKey("east", node), changes) == (RelabelEndpoint(node, 1),)
    assert node_upkeep(log.state, NodeKey("west", "n1"), changes) == ()
    changes = log.write("east", "operator", e.SettingsChanged('{"labels":"!other"}'))
    assert node_upkeep(log.state, N1, changes) == ()


def test_a_new_node_gets_blocks(log: Log) -> None:
    """As soon as it has joined."""
    log.write("east", "node.n3", e.NodeJoined("n3", ("192.168.0.3",), device(2)))
    alive = (*ALIVE, "node.n3")
    assert due(log, Upkeep("east", DEAD_S, RELEASE_S), 0.0, alive) == [AssignAddressBlock("n3")]


def test_a_node_gets_the_blocks_that_it_had(log: Log) -> None:
    """By its own word, or by a log that was put back since; others leave them alone while they may be asked for."""
    log.write("east", "node.n3", e.NodeJoined("n3", ("192.168.0.3",), device(2)))
    had = log.state.nodes[N1].blocks
    upkeep, backup = Upkeep("east", DEAD_S, RELEASE_S), log.state.copy()
    backup.nodes[N1] = msgspec.structs.replace(backup.nodes[N1], blocks=())
    upkeep.remember_blocks(log.state, until_s=100.0)
    upkeep.hear_blocks({"n3": ("10.1.7.0/24",)}, 0.0)
    alive, realized = (*ALIVE, "node.n3"), dict.fromkeys(log.state.nodes, 10 ** 9)
    first, third = due_commands(upkeep, backup, alive, realized, 0.0)
    assert first.wanted == had and set(third.avoid) >= set(had) and third.wanted == ("10.1.7.0/24",)
    upkeep.hear_blocks({}, 101.0)
    assert upkeep.blocks == {}


def test_a_dead_node_is_removed_after_its_grace(log: Log) -> None:
    """Counted from when this operator first missed it; a return starts it again."""
    upkeep = Upkeep("east", DEAD_S, RELEASE_S)
    gone = ("node.n1", "operator")
    assert due(log, upkeep, 0.0, gone) == []
    assert due(log, upkeep, DEAD_S - 1, gone) == []
    assert due(log, upkeep, DEAD_S) == []
    assert due(log, upkeep, DEAD_S + 1, gone) == []
    (removal,) = due(log, upkeep, 2 * DEAD_S + 1, gone)
    assert isinstance(removal, RemoveNode)
    assert removal.node == "n2"


def test_an_unused_number_is_released_when_all_nodes_have_gone_beyond(log: Log) -> None:
    """And not before its time has passed."""
    upkeep = Upkeep("east", DEAD_S, RELEASE_S)
    log.write("east", "node.n1", e.EndpointDeleted("n1", 1))
    removal = log.state.revision
    assert due(log, upkeep, 0.0, realized=removal) == []
    assert due(log, upkeep, RELEASE_S, realized=removal - 1) == []
    assert due(log, upkeep, RELEASE_S, elsewhere=removal - 1) == [], "a node of another cluster may carry it still"
    assert due(log, upkeep, RELEASE_S, realized=removal) == [ReleaseIdentity(65536 + 256)]
    log.write("east", "node.n1", e.WorkloadApplied("shop", "web", {"app": "web"}))
    add_endpoint(log, "east", "n1", "web", 11)
    assert due(log, upkeep, 10 * RELEASE_S) == []
