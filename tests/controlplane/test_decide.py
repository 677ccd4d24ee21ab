"""What commands are decided to: events and claims, nothing, or a reason not to."""

import pytest

from controlplane import events as e
from controlplane.commands.cluster import JoinCluster, LeaveCluster
from controlplane.commands.decide import decide
from controlplane.commands.endpoint import CreateEndpoint, DeleteEndpoint, RelabelEndpoint
from controlplane.commands.identity import ReleaseIdentity
from controlplane.commands.namespace import ApplyNamespace
from controlplane.commands.node import AssignAddressBlock, JoinNode, RemoveNode
from controlplane.commands.service import ApplyService, RemoveService
from controlplane.commands.types import Author, Decision, Rejection
from controlplane.commands.workload import ApplyWorkload, RemoveWorkload
from controlplane.model import ServicePort
from kvstore.types import Claim, Revision, Want
from tests.controlplane.random_mesh import Log
from tests.controlplane.small_mesh import accept, add_endpoint, device, mesh

OPERATOR, N1, N3 = Author("east", "operator"), Author("east", "node.n1"), Author("east", "node.n3")
HTTP = ServicePort("http", 80, "TCP", 8080)


@pytest.fixture
def log() -> Log:
    """The small mesh."""
    return mesh()


def rejected(log: Log, author: Author, command: object) -> Rejection:
    """The rejection; nothing may have been appended."""
    count = len(log.records)
    outcome = log.wish(author, command)
    assert isinstance(outcome, Rejection), outcome
    assert len(log.records) == count
    return outcome


def create(name: str, container: str = "", ifindex: int = 20) -> CreateEndpoint:
    return CreateEndpoint("n1", "shop", name, device(ifindex), container or f"c-{name}", "eth0")


def test_a_first_endpoint_allocates_its_identity_in_the_same_batch(log: Log) -> None:
    """With a claim for the number and one for the labels, so that no other writer gives either."""
    log.wish(OPERATOR, ApplyNamespace("shop", {"team": "a"}))
    log.wish(OPERATOR, ApplyWorkload("shop", "web", {"app": "web"}))
    decision = accept(log, N1, create("web"))
    allocated, created = decision.events
    assert isinstance(allocated, e.IdentityAllocated)
    assert isinstance(created, e.EndpointCreated)
    assert allocated.number == created.identity == 65536 + 256
    assert allocated.labels == created.labels
    assert "k8s:io.cilium.k8s.namespace.labels.team=a" in created.labels
    assert (created.endpoint_id, created.ipv4, created.ipv6) == (1, "10.1.1.2", "fd00:1:0:1::2")
    cluster, number, labels = decision.claims
    assert cluster == Claim("cluster/1", Want.HELD)
    assert number == Claim("identity/east/number/65792")
    assert labels.key.startswith("identity/east/labels/")


def test_a_second_endpoint_shares_the_identity(log: Log) -> None:
    """The same labels have the same number, which is held against a release."""
    first = add_endpoint(log, "east", "n1", "web-1", 11, app="web")
    log.wish(OPERATOR, ApplyWorkload("shop", "web-2", {"app": "web"}))
    decision = accept(log, N1, create("web-2"))
    (created,) = decision.events
    assert isinstance(created, e.EndpointCreated)
    assert (created.identity, decision.claims) == (first.identity, (Claim("identity/east/number/65792", Want.HELD),))


def test_creating_again_is_nothing(log: Log) -> None:
    """A repeated ADD of the same container and interface."""
    add_endpoint(log, "east", "n1", "web", 11)
    assert decide(log.state, N1, create("web")) == Decision()


def test_an_unknown_workload_is_rejected_with_what_to_do(log: Log) -> None:
    """Its labels decide its identity, so there is none without them."""
    rejection = rejected(log, N1, create("nobody"))
    assert "shop/nobody" in rejection.reason
    assert "apply" in rejection.reason


def test_a_freed_address_rests(log: Log) -> None:
    """The search goes on behind the last one given, although a lower and the last one are free again."""
    for number in range(3):
        add_endpoint(log, "east", "n1", f"web-{number}", 11 + number)
    accept(log, N1, DeleteEndpoint("n1", 1))
    accept(log, N1, DeleteEndpoint("n1", 3))
    endpoint = add_endpoint(log, "east", "n1", "next", 30)
    assert (endpoint.endpoint_id, endpoint.ipv4) == (1, "10.1.1.5")


def test_a_block_is_used_to_its_last_address(log: Log) -> None:
    """All but network, router and broadcast; then it is full, and after a deletion it is not."""
    small = Log()
    small.write("east", "operator", e.ClusterJoined(1, ("10.1.0.0/16",), (29,), ()))
    small.write("east", "node.n1", e.NodeJoined("n1", ("192.168.0.1",), device(2)))
    accept(small, OPERATOR, AssignAddressBlock("n1"))
    found = [add_endpoint(small, "east", "n1", f"web-{n}", 11 + n).ipv4 for n in range(5)]
    assert found == [f"10.1.0.{n}" for n in range(2, 7)]
    small.wish(OPERATOR, ApplyWorkload("shop", "more", {"app": "web"}))
    assert "10.1.0.0/29" in rejected(small, N1, create("more")).reason
    accept(small, N1, DeleteEndpoint("n1", 3))
    accept(small, N1, create("more"))
    assert small.state.addresses.get("10.1.0.4") is not None


def test_a_relabelled_workload_moves_its_endpoint(log: Log) -> None:
    """To the identity that its labels ask for now; once."""
    endpoint = add_endpoint(log, "east", "n1", "web", 11)
    relabel = RelabelEndpoint("n1", endpoint.endpoint_id)
    assert decide(log.state, N1, relabel) == Decision()
    log.wish(OPERATOR, ApplyWorkload("shop", "web", {"app": "db"}))
    events = accept(log, N1, relabel).events
    assert [type(event) for event in events] == [e.IdentityAllocated, e.EndpointRelabelled]
    assert decide(log.state, N1, relabel) == Decision()


def test_a_relabelled_workload_that_is_gone_stays_as_it_is(log: Log) -> None:
    """Its endpoint lives until its node deletes it."""
    endpoint = add_endpoint(log, "east", "n1", "web", 11)
    log.wish(OPERATOR, RemoveWorkload("shop", "web"))
    assert decide(log.state, N1, RelabelEndpoint("n1", endpoint.endpoint_id)) == Decision()


def test_numbers_are_released_with_their_claims(log: Log) -> None:
    """Not while they have an endpoint; the next allocation takes another number."""
    endpoint = add_endpoint(log, "east", "n1", "web", 11)
    assert "endpoints" in rejected(log, OPERATOR, ReleaseIdentity(endpoint.identity)).reason
    accept(log, N1, DeleteEndpoint("n1", endpoint.endpoint_id))
    stood_at = log.state.revision
    number, labels = accept(log, OPERATOR, ReleaseIdentity(endpoint.identity)).claims
    assert (number.want, number.untouched_since, labels.want) == (Want.FREED, stood_at, Want.FREED)
    assert add_endpoint(log, "east", "n1", "db", 12).identity == endpoint.identity + 1


def test_blocks_are_claimed_and_given_back(log: Log) -> None:
    """One of each family, the lowest that is free."""
    accept(log, N3, JoinNode("n3", ("192.168.0.3",), device(2)))
    decision = accept(log, OPERATOR, AssignAddressBlock("n3"))
    assert decision.events == (e.AddressBlockAssigned("n3", ("10.1.0.0/24", "fd00:1::/64")),)
    held, *blocks = decision.claims
    assert held == Claim("node/east/n3", Want.HELD)
    assert blocks == [Claim("block/east/10.1.0.0_24"), Claim("block/east/fd00:1::_64")]
    assert decide(log.state, OPERATOR, AssignAddressBlock("n3")) == Decision()
    stood_at = Revision(log.state.revision)
    node, *freed = accept(log, OPERATOR, RemoveNode("n3", "dead")).claims
    assert node == Claim("node/east/n3", Want.FREED, untouched_since=stood_at)
    assert freed == [Claim(claim.key, Want.FREED) for claim in blocks]


def test_a_node_joins_with_new_facts_only(log: Log) -> None:
    """Labels as people write them become labels with a source."""
    join = JoinNode("n3", ("192.168.0.3",), device(2), ("zone=a", "k8s:app=x"))
    (joined,) = accept(log, N3, join).events
    assert isinstance(joined, e.NodeJoined)
    assert joined.labels == ("k8s:app=x", "k8s:zone=a")
    assert decide(log.state, N3, join) == Decision()


def test_a_node_without_usable_facts_is_rejected(log: Log) -> None:
    """Another node's address, none at all, or one out of the pods' range."""
    for addresses, reason in (
        (("192.168.0.2",), "east/n2"),
        ((), "addresses"),
        (("10.1.9.9",), "pod_cidrs"),
        (("nonsense",), "nonsense"),
    ):
        assert reason in rejected(log, N3, JoinNode("n3", addresses, device(2))).reason


def test_a_cluster_number_is_claimed(log: Log) -> None:
    """And is nobody else's."""
    south = Author("south", "operator")
    assert "east" in rejected(log, south, JoinCluster(1, ("10.3.0.0/16",), (24,), ())).reason
    decision = accept(log, south, JoinCluster(3, ("10.3.0.0/16",), (24,), ()))
    assert decision.claims == (Claim("cluster/3"),)
    stood_at = Revision(log.state.revision)
    assert accept(log, south, LeaveCluster()).claims == (
        Claim("cluster/3", Want.FREED, untouched_since=stood_at),
    )


def test_a_cluster_leaves_when_it_is_empty(log: Log) -> None:
    """What is left would keep its claims."""
    assert "2 nodes" in rejected(log, OPERATOR, LeaveCluster()).reason


def test_services_get_an_address_of_each_family(log: Log) -> None:
    """The lowest free, claimed; applied again they keep them."""
    wanted = ApplyService("shop", "web", (), (HTTP,), {"app": "web"})
    decision = accept(log, OPERATOR, wanted)
    (applied,) = decision.events
    assert isinstance(applied, e.ServiceApplied)
    assert applied.cluster_ips == ("172.1.0.1", "fd01:1::1")
    name, cluster, *addresses = decision.claims
    assert (name, cluster) == (Claim("service/east/shop/web"), Claim("cluster/1", Want.HELD))
    assert addresses == [Claim("service-ip/east/172.1.0.1"), Claim("service-ip/east/fd01_1__1")]
    assert decide(log.state, OPERATOR, wanted) == Decision()
    again = ApplyService("shop", "web", (), (HTTP,), {"app": "db"})
    stood_at = Revision(log.state.revision)
    second = accept(log, OPERATOR, again)
    assert second.events[0].cluster_ips == applied.cluster_ips  # type: ignore[union-attr]
    assert second.claims == (Claim(name.key, Want.HELD, untouched_since=stood_at),)
    stood_at = Revision(log.state.revision)
    own, *freed = accept(log, OPERATOR, RemoveService("shop", "web")).claims
    assert own == Claim(name.key, Want.FREED, untouched_since=stood_at)
    assert freed == [Claim(claim.key, Want.FREED) for claim in addresses]


def test_a_cluster_address_in_use_is_rejected(log: Log) -> None:
    """With the field that the user wrote; so is one out of range."""
    accept(log, OPERATOR, ApplyService("shop", "web", ("172.1.0.9",), (HTTP,), None))
    for address in ("172.1.0.9", "10.9.9.9"):
        rejection = rejected(log, OPERATOR, ApplyService("shop", "other", (address,), (HTTP,), None))
        assert rejection.field == "spec.clusterIP"
        assert address in rejection.reason


def test_a_changed_cluster_address_gives_the_old_one_back(log: Log) -> None:
    """In the same transaction."""
    accept(log, OPERATOR, ApplyService("shop", "web", ("172.1.0.9",), (HTTP,), None))
    decision = accept(log, OPERATOR, ApplyService("shop", "web", ("172.1.0.8",), (HTTP,), None))
    assert decision.claims[1:] == (
        Claim("service-ip/east/172.1.0.8"), Claim("service-ip/east/172.1.0.9", Want.FREED),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("author", "command", "right"),
    [
        (N1, JoinCluster(3, (), (), ()), "operator"),
        (N1, AssignAddressBlock("n1"), "operator"),
        (N1, RemoveNode("n2", "mine"), "node.n2"),
        (OPERATOR, create("web"), "node.n1"),
        (N3, DeleteEndpoint("n1", 1), "node.n1"),
    ],
)
def test_commands_of_others_are_rejected(log: Log, author: Author, command: object, right: str) -> None:
    """Their events would be refused by every node: better to hear it before they are written."""
    assert f"{right} may" in rejected(log, author, command).reason
