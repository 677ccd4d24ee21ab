"""What a node says again after etcd was put back to a backup, and what becomes of it."""

from collections.abc import Iterable

import pytest

from controlplane.commands.announcing import Announced, AnnounceEndpoint, announced_of, announcements
from controlplane.commands.cluster import JoinCluster
from controlplane.commands.decide import decide
from controlplane.commands.endpoint import CreateEndpoint, DeleteEndpoint
from controlplane.commands.namespace import ApplyNamespace
from controlplane.commands.node import AssignAddressBlock, JoinNode
from controlplane.commands.types import Author, Rejection
from controlplane.commands.workload import ApplyWorkload
from controlplane.model import Endpoint, NodeKey
from controlplane.projections.state import State
from kvstore.types import Record
from tests.controlplane.random_mesh import Log
from tests.controlplane.small_mesh import CLUSTER_IDS, UNDERLAY, accept, add_endpoint, device, mesh, underlay_device

OPERATOR, N1, N2 = Author("east", "operator"), Author("east", "node.n1"), Author("east", "node.n2")
WHERE = NodeKey("east", "n1")
NODES = tuple(NodeKey(*each) for each in UNDERLAY)


def lived() -> Log:
    """Endpoints come and go on every node; numbers, addresses and devices are used again, and a label set is new."""
    log = mesh()
    accept(log, OPERATOR, ApplyNamespace("shop", {"team": "a"}))
    add_endpoint(log, "east", "n1", "web", 11)
    add_endpoint(log, "west", "n1", "web", 11)
    gone = add_endpoint(log, "east", "n1", "db", 12)
    add_endpoint(log, "east", "n2", "cart", 11)
    accept(log, N1, DeleteEndpoint("n1", gone.endpoint_id))
    add_endpoint(log, "east", "n1", "cache", 13)
    accept(log, OPERATOR, ApplyNamespace("bank", {"team": "b"}))
    add_endpoint(log, "east", "n2", "vault", 12, "bank")
    add_endpoint(log, "east", "n1", "search", 14)
    return log


def devices_of(state: State, where: NodeKey) -> dict[str, int]:
    """What is there when the log is as it was."""
    return {each.device.name: each.device.ifindex for each in state.endpoints_of(where)}


def put_back(records: Iterable[Record]) -> Log:
    """The log as of a backup."""
    log = Log()
    for record in records:
        log.records.append(record)
        log.state.apply(record)
    return log


def return_to(log: Log, known: dict[NodeKey, Announced], devices: dict[NodeKey, dict[str, int]]) -> list[object]:
    """What operators and nodes do; the rejections."""
    rejections = []
    for cluster, number in CLUSTER_IDS.items():
        pods, services = (f"10.{number}.0.0/16", f"fd00:{number}::/48"), (f"172.{number}.0.0/24", f"fd01:{number}::/112")
        accept(log, Author(cluster, "operator"), JoinCluster(number, pods, (24, 64), services))
    for where in NODES:
        operator, node = Author(where.cluster, "operator"), Author(where.cluster, f"node.{where.node}")
        accept(log, node, JoinNode(where.node, UNDERLAY[where], underlay_device(*where)))
        accept(log, operator, AssignAddressBlock(where.node, known[where].blocks))
        for command in announcements(known[where], log.state, where, devices[where]):
            outcome = log.wish(node, command)
            rejections += [outcome] if isinstance(outcome, Rejection) else []
    return rejections


def test_whatever_the_backup_lacks_every_living_endpoint_is_as_it_was() -> None:
    """From a backup of every moment, the empty log included: the same endpoints, to the last field, and no others."""
    before = lived()
    known = {where: announced_of(before.state, where) for where in NODES}
    devices = {where: devices_of(before.state, where) for where in NODES}
    for count in range(len(before.records) + 1):
        log = put_back(before.records[:count])
        assert return_to(log, known, devices) == []
        assert log.state.endpoints == before.state.endpoints
        assert {each.labels: n for n, each in log.state.identities.items() if n in log.state.identity_users} == {
            each.labels: n for n, each in before.state.identities.items() if n in before.state.identity_users
        }
        assert log.state.refused_events == []


def test_saying_it_twice_says_nothing() -> None:
    """A node that died half-way begins again."""
    before = lived()
    known, devices = announced_of(before.state, WHERE), devices_of(before.state, WHERE)
    for command in announcements(known, before.state, WHERE, devices):
        assert not decide(before.state, N1, command).events  # type: ignore[union-attr]


def test_what_came_back_makes_room_for_what_lives() -> None:
    """An endpoint deleted since the backup is deleted again, before its number and address are taken."""
    log = mesh()
    add_endpoint(log, "east", "n1", "old", 11)
    backup = put_back(log.records)
    (old,) = log.state.endpoints_of(WHERE)
    lives = Endpoint("east", "n1", old.endpoint_id, "shop", "new", old.labels, old.identity, old.ipv4, old.ipv6,
                     device(12), "c-new", "eth0")  # fmt: skip
    commands = announcements(Announced(9, (), (lives,)), backup.state, WHERE, {"ml12": 12})
    for command in commands:
        accept(backup, N1, command)
    assert backup.state.endpoints_of(WHERE) == (lives,)


def test_declarations_are_repeated_where_they_are_absent_only() -> None:
    """An older one in the log may be what somebody has applied since; an absent one would take the endpoint's labels."""
    log = mesh()
    accept(log, OPERATOR, ApplyWorkload("shop", "web", {"app": "old"}))
    backup = put_back(log.records)
    accept(log, OPERATOR, ApplyNamespace("shop", {"team": "a"}))
    add_endpoint(log, "east", "n1", "web", 11)
    add_endpoint(log, "east", "n1", "cart", 12)
    known = announced_of(log.state, WHERE)
    said = announcements(known, backup.state, WHERE, devices_of(log.state, WHERE))
    assert [(type(each).__name__, getattr(each, "name", "")) for each in said[:-2]] == [
        ("ApplyNamespace", ""), ("ApplyWorkload", "cart"),
    ]  # fmt: skip


def test_an_identity_number_that_others_got_is_not_shared() -> None:
    """The endpoint keeps number and addresses, and has the identity that its labels have now."""
    log = mesh()
    backup = put_back(log.records)
    endpoint = add_endpoint(log, "east", "n1", "web", 11)
    other = add_endpoint(backup, "east", "n2", "db", 11)
    assert other.identity == endpoint.identity and other.labels != endpoint.labels
    accept(backup, N1, AnnounceEndpoint("n1", endpoint))
    (found,) = backup.state.endpoints_of(WHERE)
    assert found.identity == endpoint.identity + 1
    assert (found.endpoint_id, found.ipv4, found.labels) == (endpoint.endpoint_id, endpoint.ipv4, endpoint.labels)


@pytest.mark.parametrize("what", ["number", "address", "block"])
def test_a_collision_is_named_and_nothing_is_taken(what: str) -> None:
    """Who has it now keeps it, and the message says who that is."""
    log = mesh()
    backup = put_back(log.records)
    endpoint = add_endpoint(log, "east", "n1", "web", 11)
    if what == "number":
        accept(backup, OPERATOR, ApplyWorkload("shop", "db", {"app": "db"}))
        accept(backup, N1, CreateEndpoint("n1", "shop", "db", device(12), "c-db", "eth0"))
        expected = f"number {endpoint.endpoint_id} is that of shop/db"
    elif what == "address":
        endpoint = Endpoint("east", "n1", 9, "shop", "web", endpoint.labels, endpoint.identity, "10.1.1.1", "",
                            endpoint.device, "c-web", "eth0")  # fmt: skip
        expected = "address 10.1.1.1 is that of node east/n1"
    else:
        endpoint = Endpoint("east", "n1", 9, "shop", "web", endpoint.labels, endpoint.identity, "10.1.2.9", "",
                            endpoint.device, "c-web", "eth0")  # fmt: skip
        expected = "address 10.1.2.9 is in no block of node n1"
    count = len(backup.records)
    outcome = backup.wish(N1, AnnounceEndpoint("n1", endpoint))
    assert isinstance(outcome, Rejection) and outcome.reason == expected
    assert len(backup.records) == count


def test_a_block_is_given_to_whom_it_was() -> None:
    """What is wanted and free is assigned; what another wants is left alone; what is taken is not given twice."""
    log = mesh()
    for node, number in (("n3", 3), ("n4", 4)):
        accept(log, Author("east", f"node.{node}"), JoinNode(node, (f"192.168.0.{number}",), device(2)))
    accept(log, OPERATOR, AssignAddressBlock("n3", avoid=("10.1.0.0/24", "fd00:1::/64")))
    assert log.state.nodes[NodeKey("east", "n3")].blocks == ("10.1.3.0/24", "fd00:1:0:3::/64")
    taken = AssignAddressBlock("n4", wanted=("10.1.3.0/24", "fd00:1:0:3::/64"))
    accept(log, OPERATOR, taken)
    assert log.state.nodes[NodeKey("east", "n4")].blocks == ("10.1.0.0/24", "fd00:1::/64")
