"""A generated mesh of any size, as the records that its writers would have appended. Deterministic; no measuring."""

from collections.abc import Iterator
from ipaddress import IPv4Address, IPv4Network
from typing import NamedTuple

from controlplane.codec import encode
from controlplane.events import (
    AddressBlockAssigned,
    BackendsReported,
    Batch,
    ClusterJoined,
    EndpointCreated,
    Event,
    IdentityAllocated,
    NamespaceLabelled,
    NodeJoined,
    ServiceApplied,
    WorkloadApplied,
)
from controlplane.model import Backend, Device, ServicePort
from controlplane.policy.identity_labels import identity_labels
from kvstore.types import Record, Revision

CLUSTER = "far"
CLUSTER_ID = 9
IDENTITIES = 500
ENDPOINTS_PER_NODE = 100
EVENTS_PER_BATCH = 100
POD_CIDR = IPv4Network("20.0.0.0/8")
SERVICE_CIDR = IPv4Network("172.20.0.0/16")


class Written(NamedTuple):
    """A batch as its writer appends it."""

    writer: str
    events: tuple[Event, ...]


def node_name(number: int) -> str:
    """Name of the n-th node, from 0."""
    return f"n{number}"


def device(number: int) -> Device:
    """A device with facts made from a number."""
    tail = f"{number >> 16 & 255:02x}:{number >> 8 & 255:02x}:{number & 255:02x}"
    return Device(f"ml{number:08x}", 10 + number, f"02:00:00:{tail}", f"02:00:01:{tail}")


def labels_of(app: int) -> tuple[str, ...]:
    """The identity labels of the n-th application."""
    return identity_labels(CLUSTER, "shop", {}, {"app": f"app{app}"}, "")


def world(endpoints: int, services: int = 0, identities: int = IDENTITIES) -> Iterator[Written]:
    """Cluster, nodes, identities, workloads and endpoints, then services of three backends each."""
    nodes = -(-endpoints // ENDPOINTS_PER_NODE)
    yield Written("operator", (ClusterJoined(CLUSTER_ID, (str(POD_CIDR),), (24,), (str(SERVICE_CIDR),)),))
    yield Written("operator", (NamespaceLabelled("shop", {}),))
    for n in range(nodes):
        address = str(IPv4Address("192.168.0.1") + n)
        yield Written(f"node.{node_name(n)}", (NodeJoined(node_name(n), (address,), device(n)),))
    blocks = [str(IPv4Network((int(POD_CIDR[0]) + (n << 8), 24))) for n in range(nodes)]
    yield from _batched("operator", [AddressBlockAssigned(node_name(n), (blocks[n],)) for n in range(nodes)])
    numbers = [CLUSTER_ID << 16 | 256 + app for app in range(min(identities, endpoints))]
    yield from _batched("node.n0", [IdentityAllocated(number, labels_of(app)) for app, number in enumerate(numbers)])
    for n in range(nodes):
        yield from _node(n, endpoints, numbers)
    yield from _batched("operator", list(_services(services)))


def _node(n: int, endpoints: int, numbers: list[int]) -> Iterator[Written]:
    mine = range(n * ENDPOINTS_PER_NODE, min(endpoints, (n + 1) * ENDPOINTS_PER_NODE))
    apps = [i % len(numbers) for i in mine]
    yield from _batched(
        "operator", [WorkloadApplied("shop", f"w{i}", {"app": f"app{app}"}) for i, app in zip(mine, apps, strict=True)]
    )
    base = int(POD_CIDR[0]) + (n << 8)
    yield from _batched(
        f"node.{node_name(n)}",
        [
            EndpointCreated(
                node_name(n),
                place + 1,
                "shop",
                f"w{i}",
                labels_of(app),
                numbers[app],
                str(IPv4Address(base + place + 2)),
                "",
                device(i),
                f"c{i}",
                "eth0",
            )
            for place, (i, app) in enumerate(zip(mine, apps, strict=True))
        ],
    )


def _services(services: int) -> Iterator[Event]:
    ports = (ServicePort("http", 80, "TCP", 8080),)
    for s in range(services):
        yield ServiceApplied("shop", f"s{s}", (str(SERVICE_CIDR[s + 1]),), ports, None)
        backends = tuple(Backend(str(IPv4Address("100.64.0.1") + 3 * s + k)) for k in range(3))
        yield BackendsReported("shop", f"s{s}-slice", f"s{s}", backends, ports)


def rollouts(endpoints: int, events: int) -> Iterator[Written]:
    """What a platform says of the workloads of `world(endpoints)` as they come and go: not ready, then ready again."""
    for start in range(0, events, EVENTS_PER_BATCH):
        turn = start // EVENTS_PER_BATCH
        first = turn * EVENTS_PER_BATCH % endpoints
        ready = turn * EVENTS_PER_BATCH // endpoints % 2 == 1
        yield Written(
            "operator",
            tuple(
                WorkloadApplied("shop", f"w{i}", {"app": f"app{i % min(IDENTITIES, endpoints)}"}, ready)
                for i in range(first, first + min(EVENTS_PER_BATCH, events - start))
            ),
        )


def _batched(writer: str, events: list[Event]) -> Iterator[Written]:
    for start in range(0, len(events), EVENTS_PER_BATCH):
        yield Written(writer, tuple(events[start : start + EVENTS_PER_BATCH]))


def records(written: Iterator[Written], after: int = 0) -> Iterator[Record]:
    """The same batches as records of a log, with revisions from `after` + 1."""
    sequences: dict[str, int] = {}
    for revision, batch in enumerate(written, after + 1):
        sequences[batch.writer] = sequences.get(batch.writer, 0) + 1
        payload = encode(Batch(1, 1_700_000_000_000_000_000, 0, batch.events))
        yield Record(Revision(revision), CLUSTER, batch.writer, sequences[batch.writer], 1, payload)
