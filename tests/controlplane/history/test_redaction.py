"""Redaction: nothing of the original is in the file, and the mesh in it is the same but for its words."""

import zlib
from collections.abc import Iterator
from ipaddress import ip_address, ip_network
from typing import Any

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from controlplane import events as e
from controlplane.codec import decode
from controlplane.commands.namespace import ApplyNamespace
from controlplane.commands.policy import ApplyPolicy
from controlplane.commands.types import Author
from controlplane.desired.derive import Deriver
from controlplane.history.capsule import Capsule, pack, unpack
from controlplane.history.changes import KINDS
from controlplane.history.ends import Mesh
from controlplane.history.exporting import check, moments_of
from controlplane.history.pseudonyms import Pseudonyms
from controlplane.history.redaction import redacted
from controlplane.history.why import explain
from controlplane.policy.manifests import canonical
from controlplane.projections.state import State
from tests.controlplane.history.past import shop
from tests.controlplane.history.test_capsule import capsule_of
from tests.controlplane.policy.worlds import cilium_policy
from tests.controlplane.random_mesh import Log, forgery, history, steps
from tests.controlplane.small_mesh import accept

KEY = b"a key of the test's own"
SECRETS = ("cart", "shop", "front", "east", "west", "c-cart", "payments-team", "secret-tier", "team-owner", "guard",
           "api.example.com", "example", "198.51.100", "192.168.0.1", "192.168.1.1", "fd02::1", "10.1.1.", "172.1.0",
           "eth0", "06:00:00", "node.n1", "what the author thought")  # fmt: skip


def telling() -> Log:
    """A mesh whose every field says something."""
    log = shop()
    operator = Author("east", "operator")
    accept(log, operator, ApplyNamespace("shop", {"team-owner": "payments-team"}))
    spec = """
        description: what the author thought
        endpointSelector: {matchLabels: {app: db, "k8s:secret-tier": front}}
        ingress:
          - fromEndpoints: [{matchExpressions: [{key: app, operator: In, values: [cart, front]}]}]
            toPorts: [{ports: [{port: "5432", protocol: TCP}]}]
          - fromCIDR: [198.51.100.0/24]
        egress:
          - toFQDNs: [{matchName: api.example.com}]
    """
    document = canonical(cilium_policy(spec, "guard"))
    accept(log, operator, ApplyPolicy("CiliumNetworkPolicy", "shop", "guard", document))
    log.write("east", "node.n1", e.NodeLeft("n2", "secret-tier is full"))
    return log


def texts(value: Any) -> Iterator[str]:
    """Every text in decoded content."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, bytes):
        yield value.decode("utf-8", "replace")
    elif isinstance(value, dict):
        for key, each in value.items():
            yield from texts(key)
            yield from texts(each)
    elif isinstance(value, (list, tuple)):
        for each in value:
            yield from texts(each)


def plain(capsule: Capsule) -> str:
    """The file with its compression taken off, payloads of records included."""
    content = pack(capsule)
    found = [content.decode("latin-1")]
    start = 0
    while (start := content.find(b"\x78\x9c", start)) >= 0:
        try:
            part = zlib.decompressobj().decompress(content[start:])
        except zlib.error:
            part = b""
        found.append(part.decode("latin-1"))
        start += 1
    found += texts(msgspec.msgpack.decode(capsule.saved))
    found += [text for record in capsule.records for text in texts(msgspec.msgpack.decode(record.payload))]
    return "\n".join(found)


@pytest.mark.parametrize("since", [0, 30, 10_000])
async def test_no_original_is_in_the_file(since: int) -> None:
    """Names, labels, addresses, free text: all are in the file before, none after, from records and state alike."""
    log = telling()
    capsule = await capsule_of(log, min(since, int(log.records[-1].revision)))
    before, after = plain(capsule), plain(redacted(capsule, KEY))
    assert [secret for secret in SECRETS if secret not in before and since != 10_000] == []
    assert [secret for secret in SECRETS if secret in after] == []


async def test_no_address_of_the_mesh_is_in_the_file() -> None:
    """Whatever has an address before, no text of the file is one of these addresses after."""
    log = telling()
    held = set(log.state.addresses)
    after = redacted(await capsule_of(log), KEY)
    last = moments_of(after)[1].state
    assert held.isdisjoint(last.addresses)


TWO_OF_ONE_ADDRESS = [(0, 0, 0, 0)] * 4 + [(23, 0, 1, 0), (23, 0, 1, 1)]
"""Balancers of two namespaces: the first by name has the address."""
ANNOTATED = [(0, 0, 0, 0)] * 2 + [(4, 0, 2, 0), (5, 1, 0, 0), (23, 1, 2, 0), (24, 0, 0, 0)]
"""A global service whose annotation keeps it to backends of its own cluster."""


@given(steps(25), st.lists(st.tuples(st.integers(0, 12), *[st.integers(0, 5)] * 3), max_size=3), st.integers(0, 30))
@example(TWO_OF_ONE_ADDRESS, [], 13)
@example(ANNOTATED, [], 0)
@settings(max_examples=40, deadline=None)
async def test_the_mesh_keeps_its_shape(script: Any, forged: Any, place: int) -> None:
    """As many things of each kind, as many rows in each table of each node, as many refusals; and it verifies."""
    log = history(script)
    for step in forged:
        cluster, writer, events = forgery(step)
        log.write(cluster, writer, *events)
    capsule = await capsule_of(log, int(log.records[min(place, len(log.records) - 1)].revision))
    after = unpack(pack(redacted(capsule, KEY)))
    old, new = moments_of(capsule)[1], moments_of(after)[1]
    assert shape(new.state) == shape(old.state)
    assert sorted(origin.revision for origin in new.origins.held.values()) == sorted(
        origin.revision for origin in old.origins.held.values()
    )
    assert {each.result for each in check(after)} <= {"equal"}


def shape(state: State) -> Any:
    """Counts: of things by kind, of rows by table (of all nodes), of refusals."""
    rows: dict[str, list[int]] = {}
    for where in state.nodes:
        for table, held in Deriver(*where).full(state).tables.items():
            rows.setdefault(table, []).append(len(held))
    things = {kind: len(getattr(state, attribute)) for kind, attribute in KINDS.items()}
    return things, {table: sorted(counts) for table, counts in rows.items()}, state.refused_count


async def test_verdicts_stay() -> None:
    """Every pair of endpoints gets the same verdict on several ports, under the redacted policies."""
    log = telling()
    capsule = await capsule_of(log)
    old, new = moments_of(capsule)[1], moments_of(redacted(capsule, KEY))[1]
    assert verdicts(new.state, new.origins) == verdicts(old.state, old.origins)


def verdicts(state: State, origins: Any) -> list[list[str]]:
    """By endpoints in the order of their numbers."""
    mesh = Mesh(state, origins, "")
    numbered = sorted(state.endpoints.values(), key=lambda each: (each.identity, each.endpoint_id))
    ends = [mesh.of_endpoint(each) for each in numbered]
    world = mesh.end("entity:world")
    return [
        [explain(mesh, source, target, 6, port).verdict for port in (80, 5432)]
        for source in [*ends, world]
        for target in ends
    ]


async def test_what_differed_differs_still() -> None:
    """A table that a node reported wrongly is named by verify before and after."""
    log = shop()
    whole = await capsule_of(log)
    wrong = msgspec.structs.replace(whole.reports[0], digests={**whole.reports[0].digests, "ipcache": "0" * 32})
    capsule = msgspec.structs.replace(whole, reports=[wrong, *whole.reports[1:]])
    found = check(redacted(capsule, KEY))
    assert sorted(tuple(each.tables) for each in found) == sorted(tuple(each.tables) for each in check(capsule))


async def test_times_and_revisions_stay() -> None:
    """When things happened, and in which order, is kept."""
    capsule = await capsule_of(shop())
    after = redacted(capsule, KEY)
    assert [(each.revision, decode(each.payload).time_ns) for each in after.records] == [
        (each.revision, decode(each.payload).time_ns) for each in capsule.records
    ]


@given(st.integers(0, 2**32 - 1), st.integers(0, 32), st.integers(0, 2**32 - 1))
def test_addresses_stay_in_their_prefixes(number: int, length: int, other: int) -> None:
    """An address is in a mapped prefix exactly if it was in the prefix; host bits of a block stay."""
    names = Pseudonyms(KEY, {4: 24, 6: 64})
    prefix = ip_network((number >> (32 - length) << (32 - length), length))
    inside = ip_address(other) in prefix
    mapped = names.address(str(ip_address(other)))
    if not ip_address(other).is_loopback and not prefix.network_address.is_loopback:
        assert (ip_address(mapped) in ip_network(names.address(str(prefix)))) == inside
        assert int(ip_address(mapped)) & 255 == other & 255


def test_one_original_has_one_pseudonym() -> None:
    """The same wherever it stands, and no two originals share one."""
    names = Pseudonyms(KEY, {})
    assert names.label("k8s:app=cart") == f"k8s:{names.name('app')}={names.name('cart')}"
    assert len({names.name(f"n{number}") for number in range(100)}) == 100


@given(st.sets(st.text("abmnrz-", max_size=3)))
def test_names_keep_their_order(names: set[str]) -> None:
    """Among each other, and to those that stay: what is decided by the order of names is decided the same way."""
    words = sorted({*names, "", "default", "operator"})
    found = [Pseudonyms(KEY, {}, names).name(each) for each in words]
    assert found == sorted(found) and len(set(found)) == len(found)
