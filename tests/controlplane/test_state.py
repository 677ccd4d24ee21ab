"""What the state takes, what it refuses, and what it remembers of both."""

import msgspec
import pytest

from controlplane import events as e
from controlplane.codec import encode
from controlplane.model import Backend, Device, EndpointKey, NodeKey
from controlplane.projections.change import Change
from controlplane.projections.state import REFUSED_EVENTS_MAX, State, StateDamaged
from kvstore.types import Record, Revision
from tests.controlplane.random_mesh import Log, record_of
from tests.controlplane.small_mesh import add_endpoint, device, mesh

EAST_LABELS = ("k8s:app=web", "k8s:io.cilium.k8s.policy.cluster=east")
NUMBER = 65536 + 256


def created(**other: object) -> e.EndpointCreated:
    right = e.EndpointCreated(
        "n1", 7, "shop", "web", EAST_LABELS, NUMBER, "10.1.1.9", "fd00:1:0:1::9", device(9), "c9", "eth0"
    )
    return msgspec.structs.replace(right, **other)


@pytest.fixture
def log() -> Log:
    """The small mesh, with one identity of east's."""
    log = mesh()
    log.write("east", "operator", e.IdentityAllocated(NUMBER, EAST_LABELS))
    assert log.state.refused_events == []
    return log


def refusal(log: Log, cluster: str, writer: str, event: e.Event) -> str:
    """Why the event is refused; nothing else may have changed."""
    digest, epoch = log.state.digest(), log.state.policy_epoch
    assert log.write(cluster, writer, event) == ()
    assert (log.state.digest(), log.state.policy_epoch) == (digest, epoch)
    last = log.state.refused_events[-1]
    assert (last.revision, last.cluster, last.writer, last.event) == (
        log.state.revision, cluster, writer, type(event).__name__,
    )  # fmt: skip
    return last.reason


def test_a_right_endpoint_is_taken(log: Log) -> None:
    """The event from which the refused ones below differ in one thing each."""
    changes = log.write("east", "node.n1", created())
    key = EndpointKey("east", "n1", 7)
    assert changes == (Change("endpoint", key, None, log.state.endpoints[key]),)
    assert log.state.addresses["10.1.1.9"] == key
    assert (log.state.identity_users, log.state.identity_unused_since) == ({NUMBER: 1}, {})
    assert log.state.workload_endpoints["east", "shop", "web"] == (key,)


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        ({"endpoint_id": 0}, "endpoint_id 0"),
        ({"endpoint_id": 65536}, "endpoint_id 65536"),
        ({"identity": 999}, "identity 999 is not given out"),
        ({"labels": EAST_LABELS[1:]}, "stands for other labels"),
        ({"ipv4": "10.1.2.9"}, "10.1.2.9 is in no block of node n1"),
        ({"ipv4": "10.01.1.9"}, "10.01.1.9"),
        ({"ipv4": "10.1.1.256"}, "10.1.1.256"),
        ({"ipv4": "10.1.1.1"}, "10.1.1.1 is that of node east/n1"),
        ({"ipv4": "fd00:1:0:1::9", "ipv6": ""}, "fd00:1:0:1::9"),
        ({"ipv6": "fd00:1:0:2::9"}, "fd00:1:0:2::9 is in no block"),
        ({"ipv6": "::ffff:10.1.1.9"}, "::ffff:10.1.1.9"),
        ({"ipv6": "FD00:1:0:1::9"}, "FD00:1:0:1::9"),
        ({"ipv4": "", "ipv6": ""}, "needs an address"),
        ({"device": Device("ml9", 0, "", "")}, "ifindex"),
        ({"device": Device("ml9", 9, "02", "")}, "MAC"),
        ({"device": Device("ml9", 9, "02:00:00:00:00", ":0902:00:01:00:00:09")}, "MAC"),
    ],
)
def test_a_wrong_endpoint_is_refused(log: Log, other: dict[str, object], reason: str) -> None:
    """Also after a right one of the same node, whose checks leave something to look up faster."""
    log.write("east", "node.n1", created(endpoint_id=8, container_id="c8", ipv4="10.1.1.8", ipv6=""))
    assert reason in refusal(log, "east", "node.n1", created(**other))


def test_an_address_is_given_once(log: Log) -> None:
    """Neither an endpoint's nor a node's address can be taken by another."""
    log.write("east", "node.n1", created())
    again = created(endpoint_id=8, container_id="c8", ipv6="")
    assert "10.1.1.9 is that of endpoint 7 of node east/n1" in refusal(log, "east", "node.n1", again)
    joined = e.NodeJoined("n3", ("192.168.0.2",), device(2))
    assert "192.168.0.2 is that of node east/n2" in refusal(log, "east", "node.n3", joined)


def test_a_way_to_balance_that_nobody_knows_is_refused(log: Log) -> None:
    """The record says which are right."""
    joined = e.NodeJoined("n3", ("192.168.0.3",), device(2), acceleration="fast")
    assert "acceleration 'fast': right is one of '', 'native', 'generic'" in refusal(log, "east", "node.n3", joined)


def test_a_node_writes_only_of_itself(log: Log) -> None:
    """What n2 says of n1 is refused, whatever it is."""
    log.write("east", "node.n1", created())
    for event in (
        created(endpoint_id=8),
        e.EndpointRelabelled("n1", 7, EAST_LABELS, NUMBER),
        e.EndpointDeleted("n1", 7),
        e.NodeLeft("n1", "gone"),
        e.NodeJoined("n1", ("192.168.0.9",), device(2)),
    ):
        assert "node.n1" in refusal(log, "east", "node.n2", event)


def test_a_node_of_the_same_name_elsewhere_is_another(log: Log) -> None:
    """node.n1 of west has no say over n1 of east, and cannot use east's identities."""
    assert "is cluster east's" in refusal(log, "west", "node.n1", created(ipv4="10.2.1.9", ipv6=""))


def test_operator_only(log: Log) -> None:
    """What concerns the whole cluster is its operator's to write."""
    for event in (
        e.ClusterJoined(1, (), (), ()),
        e.ClusterLeft(),
        e.AddressBlockAssigned("n1", ("10.1.1.0/24", "fd00:1:0:1::/64")),
        e.IdentityReleased(NUMBER),
    ):
        assert refusal(log, "east", "node.n1", event) == "only operator may write it"


def test_the_operator_may_end_what_a_dead_node_cannot(log: Log) -> None:
    """It deletes endpoints and removes nodes."""
    log.write("east", "node.n1", created())
    assert [change.kind for change in log.write("east", "operator", e.EndpointDeleted("n1", 7))] == ["endpoint"]
    assert [change.kind for change in log.write("east", "operator", e.NodeLeft("n1", "dead"))] == ["node"]


def test_identities_are_of_the_cluster_that_numbers_them(log: Log) -> None:
    """Another cluster's number, reserved labels and another cluster's label are refused."""
    cases = [
        (131072 + 256, EAST_LABELS, "is not of cluster east"),
        (65536 + 3, EAST_LABELS, "256"),
        (65536 + 257, EAST_LABELS, f"have the number {NUMBER}"),
        (NUMBER, EAST_LABELS[1:], "has other labels already"),
        (65536 + 257, ("reserved:host",), "reserved:host"),
        (65536 + 257, ("k8s:app=web", "k8s:io.cilium.k8s.policy.cluster=west"), "policy.cluster="),
        (65536 + 257, tuple(reversed(EAST_LABELS)), "sorted"),
    ]
    for number, labels, reason in cases:
        assert reason in refusal(log, "east", "node.n1", e.IdentityAllocated(number, labels))


def test_an_identity_in_use_is_not_released(log: Log) -> None:
    """Only when its last endpoint is gone; the revision of that is remembered."""
    log.write("east", "node.n1", created())
    assert "has 1 endpoints" in refusal(log, "east", "operator", e.IdentityReleased(NUMBER))
    log.write("east", "node.n1", e.EndpointDeleted("n1", 7))
    assert log.state.identity_unused_since == {NUMBER: log.state.revision}
    assert [change.key for change in log.write("east", "operator", e.IdentityReleased(NUMBER))] == [NUMBER]
    assert log.state.identity_numbers == {}


def test_clusters_do_not_overlap(log: Log) -> None:
    """Neither in number nor in addresses, nor over a node's own address."""
    cases = [
        ((1, ("10.3.0.0/16",), (24,), ()), "cluster_id 1 is east's"),
        ((3, ("10.0.0.0/8",), (24,), ()), "overlaps east's"),
        ((3, ("192.168.0.0/16",), (24,), ()), "192.168.0.1"),
        ((3, ("10.3.0.0/16",), (24,), ("10.3.9.0/24",)), "overlap"),
        ((256, ("10.3.0.0/16",), (24,), ()), "1 to 255"),
        ((3, ("10.3.0.1/16",), (24,), ()), "10.3.0.1/16"),
        ((3, ("10.3.0.0/16",), (8,), ()), "16 to 30"),
        ((3, ("10.3.0.0/16",), (), ()), "0 block_prefixes"),
    ]
    for fields, reason in cases:
        assert reason in refusal(log, "south", "operator", e.ClusterJoined(*fields))


def test_blocks_are_cut_from_the_cluster_and_given_once(log: Log) -> None:
    """Another node's block, one of another length, one from elsewhere, and a second one are refused."""
    log.write("east", "node.n3", e.NodeJoined("n3", ("192.168.0.3",), device(2)))
    six = "fd00:1:0:9::/64"
    cases = [
        ("n3", ("10.1.1.0/24", six), "10.1.1.0/24 is that of node east/n1"),
        ("n3", ("10.1.8.0/23", six), "right is a /24"),
        ("n3", ("10.2.8.0/24", six), "right is a /24 of 10.1.0.0/16"),
        ("n3", ("10.1.8.0/24",), "1 blocks"),
        ("n1", ("10.1.8.0/24", six), "which stay"),
        ("n9", ("10.1.8.0/24", six), "has not joined"),
    ]
    for node, blocks, reason in cases:
        assert reason in refusal(log, "east", "operator", e.AddressBlockAssigned(node, blocks))


def test_a_node_that_left_takes_its_endpoints(log: Log) -> None:
    """Endpoints first, so that whoever follows the changes never sees an endpoint without its node."""
    log.write("east", "node.n1", created())
    changes = log.write("east", "operator", e.NodeLeft("n1", "dead"))
    assert [change.kind for change in changes] == ["endpoint", "node"]
    assert NodeKey("east", "n1") not in log.state.nodes
    assert not [address for address, holder in log.state.addresses.items() if holder[:2] == ("east", "n1")]


def test_an_address_of_a_gone_block_is_refused(log: Log) -> None:
    """What was learnt of a block is forgotten with it."""
    log.write("east", "node.n1", created())
    log.write("east", "operator", e.NodeLeft("n1", "dead"))
    log.write("east", "node.n1", e.NodeJoined("n1", ("192.168.0.1",), device(2)))
    assert "is in no block" in refusal(log, "east", "node.n1", created(ipv6=""))


def test_repeating_changes_nothing(log: Log) -> None:
    """A writer that creates what exists is right, and is not refused."""
    log.write("east", "node.n1", created())
    count = log.state.refused_count
    for writer, event in (
        ("node.n1", created()),
        ("node.n1", e.IdentityAllocated(NUMBER, EAST_LABELS)),
        ("operator", e.AddressBlockAssigned("n1", ("10.1.1.0/24", "fd00:1:0:1::/64"))),
    ):
        assert log.write("east", writer, event) == ()
    assert log.state.refused_count == count


def test_the_rest_of_a_batch_counts(log: Log) -> None:
    """A refused event takes nothing else with it."""
    changes = log.write("east", "node.n1", created(endpoint_id=0), created())
    assert [change.key.endpoint_id for change in changes] == [7]


def test_a_malformed_batch_is_skipped() -> None:
    """It is remembered, and the position moves on."""
    state = State()
    assert state.apply(Record(Revision(5), "east", "node.n1", 3, 1, b"\xff\x00")) == ()
    assert (state.position.revision, state.position.sequences) == (5, {"east/node.n1": 3})
    assert (state.refused_events[0].event, state.refused_events[0].revision) == ("", 5)


def test_unknown_events_are_counted() -> None:
    """By name; a state saved with one is refused once its name is known, so that the log is folded again."""
    state = State()
    raw = msgspec.msgpack.encode(["MeshChecked", 1])
    state.apply(record_of([], "east", "operator", (e.Unknown("MeshChecked", raw), e.NamespaceLabelled("shop", {}))))
    assert state.unknown_events == 1
    assert len(state.namespaces) == 1
    assert State.load(state.save()).unknown_tags == {"MeshChecked": 1}
    state.unknown_tags = {"PolicyApplied": 1}
    with pytest.raises(StateDamaged, match="PolicyApplied"):
        State.load(state.save())


def test_refusals_are_bounded() -> None:
    """The last ones are kept, all are counted."""
    log = Log()
    for _ in range(REFUSED_EVENTS_MAX + 5):
        log.write("east", "node.n1", e.ClusterLeft())
    assert len(log.state.refused_events) == REFUSED_EVENTS_MAX
    assert log.state.refused_count == REFUSED_EVENTS_MAX + 5
    assert log.state.refused_events[-1].revision == log.state.revision


def test_the_epoch_moves_with_rows_only(log: Log) -> None:
    """Policies, identities, endpoints, nodes, namespaces and API servers move it; workloads and services do not."""
    log.write("east", "operator", e.PolicyApplied("NetworkPolicy", "shop", "p", "{}"))
    epoch = log.state.policy_epoch
    assert epoch == log.state.revision
    log.write("east", "operator", e.WorkloadApplied("shop", "web", {}))
    log.write("east", "operator", e.ServiceApplied("shop", "web", ("172.1.0.9",), (), None))
    log.write("east", "operator", e.PolicyApplied("NetworkPolicy", "shop", "p", "{}"))
    assert log.state.policy_epoch == epoch < log.state.revision
    log.write("east", "node.n1", created())
    assert log.state.policy_epoch == log.state.revision
    log.write("east", "operator", e.BackendsReported("shop", "web", "web", (Backend("192.0.2.1"),), ()))
    assert log.state.policy_epoch < log.state.revision
    log.write("east", "operator", e.BackendsReported("default", "a", "kubernetes", (Backend("192.0.2.1"),), ()))
    assert log.state.policy_epoch == log.state.revision


@pytest.mark.parametrize("saved", [b"", b"\x93\x01\x02\x03", b"nonsense", msgspec.msgpack.encode([99] + [0] * 9)])
def test_damaged_bytes_are_no_state(saved: bytes) -> None:
    """As a ValueError, which whoever keeps checkpoints expects."""
    with pytest.raises(ValueError, match="saved"):
        State.load(saved)


def test_payload_with_the_wrong_types_is_no_event(log: Log) -> None:
    """Types are checked where bytes become events, for every field."""
    payload = msgspec.msgpack.encode([1, 0, 0, [["EndpointDeleted", "n1", "seven", ""]]])
    log.state.apply(Record(Revision(999), "east", "node.n1", 99, 1, payload))
    assert "EndpointDeleted" in log.state.refused_events[-1].reason


def test_attachments_find_their_endpoint(log: Log) -> None:
    """By container and interface, until the endpoint is deleted."""
    endpoint = add_endpoint(log, "east", "n1", "front", 11)
    assert log.state.endpoint_of("east", "n1", "c-front", "eth0") == endpoint
    log.write("east", "node.n1", e.EndpointDeleted("n1", endpoint.endpoint_id))
    assert log.state.endpoint_of("east", "n1", "c-front", "eth0") is None


def test_encoded_batches_are_what_records_hold(log: Log) -> None:
    """The payload of a record of these tests is made by the product's own encoder."""
    assert log.records[0].payload == encode(e.Batch(1, 0, 0, (e.ClusterJoined(
        1, ("10.1.0.0/16", "fd00:1::/48"), (24, 64), ("172.1.0.0/24", "fd01:1::/112")),)))  # fmt: skip


def test_a_record_again_is_not_applied() -> None:
    """Not even one whose events would change something a second time."""
    record = record_of([], "east", "operator", (e.NamespaceLabelled("shop", {}), e.NamespaceRemoved("shop")))
    state = State()
    assert len(state.apply(record)) == 2
    assert state.apply(record) == ()


def test_what_happens_to_a_copy_does_not_happen_to_the_original(log: Log) -> None:
    """Every index of endpoints is the copy's own."""
    log.write("east", "node.n1", created())
    copy, saved = log.state.copy(), log.state.save()
    copy.apply(record_of(log.records, "east", "node.n1", (e.EndpointDeleted("n1", 7),)))
    assert copy.endpoints_of(NodeKey("east", "n1")) == ()
    assert len(log.state.endpoints_of(NodeKey("east", "n1"))) == 1
    assert log.state.save() == saved
