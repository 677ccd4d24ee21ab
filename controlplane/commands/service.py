"""Commands about services and the backends reported for them. Pure."""

import msgspec

from controlplane.addresses import family_of, is_address, is_within, service_addresses
from controlplane.commands.cluster import cluster_claim
from controlplane.commands.types import Author, Decision, Rejection
from controlplane.events import BackendsReported, BackendsWithdrawn, ServiceApplied, ServiceRemoved
from controlplane.model import Backend, Cluster, Service, ServicePort
from controlplane.projections.services import ports_fault, service_key, slice_key
from controlplane.projections.state import State
from kvstore.types import Claim, Want


class ApplyService(msgspec.Struct, frozen=True):
    """`cluster_ips` may be empty: they are then chosen, one of each range of the cluster."""

    namespace: str
    name: str
    cluster_ips: tuple[str, ...]
    ports: tuple[ServicePort, ...]
    selector: dict[str, str] | None
    headless: bool = False
    is_global: bool = False
    shared: bool = True
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}


class RemoveService(msgspec.Struct, frozen=True):
    namespace: str
    name: str


class ReportBackends(msgspec.Struct, frozen=True):
    """An EndpointSlice."""

    namespace: str
    name: str
    service: str
    backends: tuple[Backend, ...]
    ports: tuple[ServicePort, ...]


class WithdrawBackends(msgspec.Struct, frozen=True):
    namespace: str
    name: str


def apply_service(state: State, author: Author, command: ApplyService) -> Decision | Rejection:
    """Cluster addresses asked for must be free and in the cluster's ranges; those it has it keeps."""
    cluster = state.clusters.get(author.cluster)
    if cluster is None:
        return Rejection(f"cluster {author.cluster} has not joined the mesh; its operator must come first")
    fault = ports_fault(command.ports)
    if fault:
        return Rejection(fault, "spec.ports")
    known = state.services.get(service_key(author.cluster, command.namespace, command.name))
    addresses = _cluster_ips(state, cluster, command, known)
    if isinstance(addresses, Rejection):
        return addresses
    event = ServiceApplied(
        command.namespace, command.name, addresses, command.ports, command.selector or None, command.headless,
        command.is_global, command.shared, command.labels, command.annotations,
    )  # fmt: skip
    had = known.cluster_ips if known else ()
    if known is not None and known == Service(author.cluster, *msgspec.structs.astuple(event)):
        return Decision()
    own = name_claim(author.cluster, command.namespace, command.name)
    if known is None:
        claims = [Claim(own), Claim(cluster_claim(cluster.cluster_id), Want.HELD)]
    else:
        claims = [Claim(own, Want.HELD, untouched_since=state.revision)]
    claims += [Claim(address_claim(author.cluster, each)) for each in addresses if each not in had]
    claims += [Claim(address_claim(author.cluster, each), Want.FREED) for each in had if each not in addresses]
    return Decision((event,), tuple(claims))


def _cluster_ips(
    state: State, cluster: Cluster, command: ApplyService, known: Service | None
) -> tuple[str, ...] | Rejection:
    if command.headless:
        return ()
    if not command.cluster_ips:
        return known.cluster_ips if known and known.cluster_ips else _free_ips(state, cluster)
    key = service_key(cluster.name, command.namespace, command.name)
    for address in command.cluster_ips:
        if not is_address(address):
            return Rejection(f"{address!r} is no address in canonical form", "spec.clusterIP")
        holder = state.service_addresses.get((cluster.name, address))
        if holder is not None and holder != key:
            return Rejection(f"{address} is the cluster address of {holder.namespace}/{holder.name}", "spec.clusterIP")
        if not any(is_within(address, cidr) for cidr in cluster.service_cidrs):
            return Rejection(
                f"{address} is not in {' or '.join(cluster.service_cidrs)} of cluster {cluster.name}", "spec.clusterIP"
            )
    return command.cluster_ips


def _free_ips(state: State, cluster: Cluster) -> tuple[str, ...] | Rejection:
    chosen = []
    for cidr in sorted(cluster.service_cidrs, key=family_of):
        free = (each for each in service_addresses(cidr) if (cluster.name, each) not in state.service_addresses)
        address = next(free, None)
        if address is None:
            return Rejection(f"no address is left in the service range {cidr} of cluster {cluster.name}")
        chosen.append(address)
    return tuple(chosen)


def remove_service(state: State, author: Author, command: RemoveService) -> Decision | Rejection:
    """Its addresses are free again."""
    known = state.services.get(service_key(author.cluster, command.namespace, command.name))
    if known is None:
        return Decision()
    name = name_claim(author.cluster, command.namespace, command.name)
    own = Claim(name, Want.FREED, untouched_since=state.revision)
    claims = (own, *(Claim(address_claim(author.cluster, each), Want.FREED) for each in known.cluster_ips))
    return Decision((ServiceRemoved(command.namespace, command.name),), claims)


def report_backends(state: State, author: Author, command: ReportBackends) -> Decision | Rejection:
    """Nothing to do when the slice is known in this very form."""
    fault = ports_fault(command.ports)
    if fault:
        return Rejection(fault, "ports")
    wrong = next((each.address for each in command.backends if not is_address(each.address)), None)
    if wrong is not None:
        return Rejection(f"{wrong!r} is no address in canonical form", "endpoints")
    known = state.backend_slices.get(slice_key(author.cluster, command.namespace, command.name))
    event = BackendsReported(command.namespace, command.name, command.service, command.backends, command.ports)
    if known is not None and (known.service, known.backends, known.ports) == (
        event.service, event.backends, event.ports,
    ):  # fmt: skip
        return Decision()
    return Decision((event,))


def withdraw_backends(state: State, author: Author, command: WithdrawBackends) -> Decision | Rejection:
    """Withdrawing what is not there is done already."""
    if slice_key(author.cluster, command.namespace, command.name) not in state.backend_slices:
        return Decision()
    return Decision((BackendsWithdrawn(command.namespace, command.name),))


def name_claim(cluster: str, namespace: str, name: str) -> str:
    """The claim's key of a service. Two writers that change one service at once would else each account for the
    addresses that it had before, and one of them would be lost for good."""
    return f"service/{cluster}/{namespace}/{name}"


def address_claim(cluster: str, address: str) -> str:
    """The claim's key of a cluster address."""
    return f"service-ip/{cluster}/{address.replace(':', '_')}"
