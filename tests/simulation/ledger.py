"""What must be unique and must be there, kept from the events alone: a second opinion beside the projections.

Belongs here: one line of bookkeeping for each kind of event that decides something. Does not belong here: anything
that is imported from projections/ or commands/, whose errors it is to show.
"""

import ipaddress
from collections.abc import Callable, Iterator

from controlplane import events as e
from kvstore.types import Record

NodeName = tuple[str, str]


class Breach(Exception):
    """The log holds something that no decision may lead to."""


class Ledger:
    """`realized` tells how far a node's kernel has ever been."""

    def __init__(self, realized: Callable[[NodeName], int]) -> None:
        self.nodes: dict[NodeName, tuple[str, ...]] = {}
        self.joined_at: dict[NodeName, int] = {}
        self.blocks: dict[NodeName, tuple[str, ...]] = {}
        self.identities: dict[int, tuple[str, tuple[str, ...]]] = {}
        self.last_use: dict[int, int] = {}
        self.endpoints: dict[tuple[str, str, int], e.EndpointCreated] = {}
        self.carries: dict[tuple[str, str, int], int] = {}
        """Endpoint -> identity."""
        self.services: dict[tuple[str, str, str], e.ServiceApplied] = {}
        self.cluster_ids: dict[int, str] = {}
        self._realized = realized

    def add(self, record: Record, events: tuple[e.Event | e.Unknown, ...]) -> None:
        """Raises Breach."""
        for event in events:
            name = "_" + "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in type(event).__name__)
            entry = getattr(self, name.replace("__", "_"), None)
            if entry is not None:
                entry(record, event)

    def _need(self, holds: bool, what: str, record: Record) -> None:
        if not holds:
            raise Breach(f"{what}: record {record.revision} of {record.cluster}/{record.writer}")

    def _cluster_joined(self, record: Record, event: e.ClusterJoined) -> None:
        owner = self.cluster_ids.setdefault(event.cluster_id, record.cluster)
        self._need(owner == record.cluster, f"cluster number {event.cluster_id} is {owner}'s too", record)

    def _cluster_left(self, record: Record, event: e.ClusterLeft) -> None:
        own = [number for number, owner in self.cluster_ids.items() if owner == record.cluster]
        self._need(bool(own), f"cluster {record.cluster} left and was not there", record)
        for what, held in (("nodes", self.nodes), ("services", self.services), ("endpoints", self.endpoints)):
            left = [key for key in held if key[0] == record.cluster]
            self._need(not left, f"cluster {record.cluster} left with {what} {left}", record)
        for number in own:
            del self.cluster_ids[number]

    def _node_joined(self, record: Record, event: e.NodeJoined) -> None:
        key = (record.cluster, event.node)
        taken = {a: other for other, addresses in self.nodes.items() if other != key for a in addresses}
        for address in event.addresses:
            self._need(address not in taken, f"node address {address} is {taken.get(address)}'s too", record)
        if key not in self.nodes:
            self.joined_at[key] = int(record.revision)
        self.nodes[key] = event.addresses

    def _node_left(self, record: Record, event: e.NodeLeft) -> None:
        key = (record.cluster, event.node)
        self._need(key in self.nodes, f"node {key} left and was not there", record)
        for endpoint in [each for each in self.endpoints if each[:2] == key]:
            self._end(endpoint, record)
        del self.nodes[key]
        self.blocks.pop(key, None)

    def _address_block_assigned(self, record: Record, event: e.AddressBlockAssigned) -> None:
        key = (record.cluster, event.node)
        self._need(key in self.nodes, f"a block for node {key}, which is not there", record)
        self._need(key not in self.blocks, f"node {key} has blocks", record)
        for block in map(ipaddress.ip_network, event.blocks):
            for other, blocks in self.blocks.items():
                for held in map(ipaddress.ip_network, blocks):
                    meets = held.version == block.version and held.overlaps(block)  # type: ignore[arg-type]
                    self._need(not meets, f"block {block} of {key} is {other}'s too", record)
        self.blocks[key] = event.blocks

    def _identity_allocated(self, record: Record, event: e.IdentityAllocated) -> None:
        number, owner = event.number, (record.cluster, tuple(event.labels))
        self._need(self.cluster_ids.get(number >> 16) == record.cluster, f"identity {number} of no own range", record)
        self._need(number not in self.identities, f"identity {number} is given out twice", record)
        self._need(owner not in self.identities.values(), f"labels {event.labels} have two numbers", record)
        self.identities[number] = owner
        self.last_use[number] = int(record.revision)

    def _identity_released(self, record: Record, event: e.IdentityReleased) -> None:
        number = event.number
        self._need(number in self.identities, f"identity {number} is released twice", record)
        users = [key for key, carried in self.carries.items() if carried == number]
        self._need(not users, f"identity {number} is released while {users} carry it", record)
        for node in self.nodes:
            held = self._realized(node)
            # Whoever released it may not have seen a node come back; that folds the log before it writes a row.
            is_back = self.joined_at[node] > self.last_use[number]
            self._need(
                is_back or held >= self.last_use[number],
                f"identity {number} is released; node {node} has realized {held} only, its last use is at "
                f"{self.last_use[number]}",
                record,
            )
        del self.identities[number]

    def _endpoint_created(self, record: Record, event: e.EndpointCreated) -> None:
        key = (record.cluster, event.node, event.endpoint_id)
        self._need(record.writer == f"node.{event.node}", f"endpoint {key} of another node's writer", record)
        self._need(key[:2] in self.nodes, f"endpoint {key} on a node that is not there", record)
        self._need(key not in self.endpoints, f"endpoint number {key} is given out twice", record)
        for other, held in self.endpoints.items():
            same = {held.ipv4, held.ipv6} & {event.ipv4, event.ipv6} - {""}
            self._need(not same, f"address {same} of {key} is {other}'s too", record)
            where = (other[0], held.node, held.container_id, held.interface)
            attached = where == (record.cluster, event.node, event.container_id, event.interface)
            self._need(not attached, f"attachment {where} has two endpoints", record)
        for address in filter(None, (event.ipv4, event.ipv6)):
            blocks = map(ipaddress.ip_network, self.blocks.get(key[:2], ()))
            inside = any(ipaddress.ip_address(address) in block for block in blocks)
            self._need(inside, f"address {address} of {key} is in no block of its node", record)
        self.endpoints[key] = event
        self._carry(key, event.identity, tuple(event.labels), record)

    def _endpoint_relabelled(self, record: Record, event: e.EndpointRelabelled) -> None:
        key = (record.cluster, event.node, event.endpoint_id)
        self._need(key in self.endpoints, f"endpoint {key} is relabelled and not there", record)
        self.last_use[self.carries[key]] = int(record.revision)
        self._carry(key, event.identity, tuple(event.labels), record)

    def _endpoint_deleted(self, record: Record, event: e.EndpointDeleted) -> None:
        key = (record.cluster, event.node, event.endpoint_id)
        self._need(key in self.endpoints, f"endpoint {key} is deleted and not there", record)
        self._end(key, record)

    def _carry(self, key: tuple[str, str, int], number: int, labels: tuple[str, ...], record: Record) -> None:
        known = self.identities.get(number)
        self._need(known == (key[0], labels), f"endpoint {key} carries identity {number}, which is {known}", record)
        self.carries[key] = number
        self.last_use[number] = int(record.revision)

    def _end(self, key: tuple[str, str, int], record: Record) -> None:
        self.last_use[self.carries.pop(key)] = int(record.revision)
        del self.endpoints[key]

    def _service_applied(self, record: Record, event: e.ServiceApplied) -> None:
        key = (record.cluster, event.namespace, event.name)
        for other, held in self.services.items():
            if other[0] != key[0] or other == key:
                continue
            same = set(_places(held)) & set(_places(event))
            self._need(not same, f"node port {same} of {key} is {other}'s too", record)
            shared = set(held.cluster_ips) & set(event.cluster_ips)
            self._need(not shared, f"service address {shared} of {key} is {other}'s too", record)
            given = set(_chosen(held)) & set(_chosen(event))
            self._need(not given, f"balancer address {given} of {key} is {other}'s too", record)
        own = list(_places(event))
        self._need(len(own) == len(set(own)), f"service {key} has a node port twice", record)
        self.services[key] = event

    def _service_removed(self, record: Record, event: e.ServiceRemoved) -> None:
        key = (record.cluster, event.namespace, event.name)
        self._need(key in self.services, f"service {key} is removed and not there", record)
        del self.services[key]


def _chosen(service: e.ServiceApplied) -> tuple[str, ...]:
    """The addresses that pools gave a service."""
    return service.exposure.load_balancer_ips if service.exposure.load_balancer_chosen else ()


def _places(service: e.ServiceApplied) -> Iterator[tuple[int, str]]:
    """The node ports of a service."""
    for port in service.ports:
        if port.node_port:
            yield port.node_port, port.protocol
