"""What a row says of a frontend beside its backends: who may ask, who gets the same backend again, which table chooses."""

import struct
from collections import Counter
from random import Random

import pytest

from datapath import codec
from datapath.abi import types as abi
from datapath.tables import (
    AffinityBackendKey,
    AffinityBackendRow,
    MaglevKey,
    MaglevRow,
    ServiceRow,
    SourceRangeKey,
    SourceRangeRow,
)
from tests.bpf import packets
from tests.bpf.node import CLIENT, CLUSTER_IP, FRONTEND, HOST, REDIRECT, REMOTE, SERVER, SHOT, WORLD, Endpoint, Node

pytestmark = pytest.mark.kernel("bpf_redirect_peer")

BACKENDS = (SERVER, REMOTE, HOST, WORLD)
RANGES = 7


def ask(node: Node, port: int = 1000, source: Endpoint = CLIENT) -> str:
    """source:port -> FRONTEND:80; where it is sent, or "" if it is dropped."""
    run = node.send(source, node.frame(source, FRONTEND, packets.tcp(port, 80), packets.TCP))
    return "" if run.retval == SHOT else packets.read(run.packet).dest


def serve(node: Node, row: ServiceRow, *backends: Endpoint) -> None:
    node.service([(each, 80) for each in backends], packets.TCP, row=row)


def keep(node: Node, *backends: Endpoint) -> None:
    """Clients may keep these backends."""
    old = list(node.maps["affinity_backends"].dump())
    node.maps["affinity_backends"].delete(old)
    rows = {
        AffinityBackendKey(CLUSTER_IP.backend_set, codec.address_bytes(each.address(node.family)), 80): (
            AffinityBackendRow(i)
        )
        for i, each in enumerate(backends)
    }
    node.put("affinity_backends", rows)


def ranged(node: Node, prefix: str) -> None:
    """The set RANGES is this prefix."""
    length, address = codec.prefix_bytes(prefix)
    node.put("source_ranges", {SourceRangeKey(64 + length, RANGES, address): SourceRangeRow(1)})


PREFIXES = {4: ("10.1.0.0/28", "10.9.0.0/16"), 6: ("fd00:1::/120", "fd00:9::/32")}


@pytest.mark.parametrize(("flags", "inside", "is_served"), [(0, 1, 1), (0, 0, 0), (128, 1, 0), (128, 0, 1)])
def test_source_ranges(node: Node, flags: int, inside: int, is_served: int) -> None:
    """Who is in them may ask, or with the flag may not; others the other way round."""
    ranged(node, PREFIXES[node.family][0 if inside else 1])
    serve(node, CLUSTER_IP._replace(flags=CLUSTER_IP.flags | flags, source_range_set=RANGES), SERVER)
    raw = node.frame(CLIENT, FRONTEND, packets.tcp(1000, 80), packets.TCP)
    run = node.send(CLIENT, raw)
    assert run.retval == (REDIRECT if is_served else SHOT)
    assert node.drops() == ([] if is_served else [abi.DENIED_BY_LB_SRC_RANGE_CHECK])


def test_client_keeps_its_backend(node: Node) -> None:
    """Over all its ports; another client gets one of its own."""
    serve(node, CLUSTER_IP._replace(affinity_s=60), *BACKENDS)
    keep(node, *BACKENDS)
    assert len({ask(node, port) for port in range(1000, 1020)}) == 1
    assert len(node.maps["affinity"].dump()) == 1
    ask(node, source=SERVER)
    assert len(node.maps["affinity"].dump()) == 2


def test_backend_that_left_is_kept_by_nobody(node: Node) -> None:
    """The client gets another, and keeps that."""
    serve(node, CLUSTER_IP._replace(affinity_s=60), *BACKENDS)
    keep(node, *BACKENDS)
    first = ask(node)
    rest = [each for each in BACKENDS if each.address(node.family) != first]
    serve(node, CLUSTER_IP._replace(affinity_s=60), *rest)
    keep(node, *rest)
    seen = {ask(node, port) for port in range(1001, 1020)}
    assert len(seen) == 1
    assert first not in seen


def test_affinity_ends_with_its_time(node: Node) -> None:
    """Counted from the last flow that asked."""
    serve(node, CLUSTER_IP._replace(affinity_s=60), *BACKENDS)
    keep(node, *BACKENDS)
    ask(node)
    aged = [(key, bytes(8) + value[8:]) for key, value in node.maps["affinity"].dump().items()]
    assert not node.maps["affinity"].put(aged)
    # The clock of a machine that has been up for less than affinity_s would keep it.
    serve(node, CLUSTER_IP._replace(affinity_s=1), *BACKENDS)
    seen = {ask(node, port) for port in range(1001, 1010)}
    assert len(seen) == 1
    assert all(value[:8] != bytes(8) for value in node.maps["affinity"].dump().values())


def test_affinity_is_what_a_plain_dict_remembers(node: Node) -> None:
    """Over hundreds of flows of several clients while backends come, go and return: who was sent to a backend goes there
    again as long as the set has it for new flows; anyone else to some backend of the set, and flows that are known stay."""
    chance, serving = Random(node.family), list(BACKENDS[:3])
    remembered: dict[Endpoint, str] = {}
    flows: dict[tuple[Endpoint, int], str] = {}
    seen = Counter[str]()
    row = CLUSTER_IP._replace(affinity_s=1000)

    def change(backends: list[Endpoint]) -> None:
        serve(node, row, *backends)
        keep(node, *backends)

    change(serving)
    for step in range(400):
        if step % 10 == 9:
            serving = chance.sample(BACKENDS, chance.randrange(1, 4))
            change(serving)
        client, port = chance.choice((CLIENT, SERVER)), chance.randrange(1000, 1100)
        allowed = {each.address(node.family) for each in serving}
        sent = ask(node, port, client)
        if (client, port) in flows:
            assert sent == flows[client, port]
            seen["known"] += 1
            continue
        if remembered.get(client) in allowed:
            assert sent == remembered[client]
            seen["kept"] += 1
        else:
            assert sent in allowed
            seen["chosen"] += 1
        remembered[client] = flows[client, port] = sent
    assert min(seen[each] for each in ("known", "kept", "chosen")) > 10, seen


def test_maglev_table_chooses(node: Node) -> None:
    """The flow's hash finds a place in it, also in a later chunk; the place names the slot."""
    slots = 2 * abi.MAGLEV_CHUNK - 3
    serve(node, CLUSTER_IP._replace(maglev_slots=slots), *BACKENDS)
    for chunk, slot in ((0, 1), (1, 2)):
        node.put("maglev", {MaglevKey(99, chunk): MaglevRow(struct.pack("=H", slot) * abi.MAGLEV_CHUNK)})
    seen = {ask(node, port) for port in range(1000, 1060)}
    assert seen == {each.address(node.family) for each in (REMOTE, HOST)}
