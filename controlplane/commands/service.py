"""Commands about services and the backends reported for them. Pure."""

import msgspec

from controlplane.addresses import family_of, is_address, is_within, service_addresses
from controlplane.commands.balancer_pools import balancer_claims, with_balancer_addresses
from controlplane.commands.cluster import cluster_claim
from controlplane.commands.node_ports import decide_node_ports, freed_port_claims, port_claims
from controlplane.commands.types import Author, Decision, Rejection
from controlplane.events import BackendsReported, BackendsWithdrawn, ServiceApplied, ServiceRemoved
from controlplane.model import Backend, BackendSlice, Cluster, Exposure, Service, ServicePort
from controlplane.projections.exposures import EXTERNAL_NAME, exposure_fault, node_ports
from controlplane.projections.services import ports_fault, service_key, slice_key
from controlplane.projections.state import State
from controlplane.projections.workloads import weight_fault
from kvstore.types import Claim, Want

FAMILIES = (4, 6)
SINGLE_STACK, PREFER_DUAL_STACK, REQUIRE_DUAL_STACK = "SingleStack", "PreferDualStack", "RequireDualStack"
FAMILY_POLICIES = (SINGLE_STACK, PREFER_DUAL_STACK, REQUIRE_DUAL_STACK)


class ApplyService(msgspec.Struct, frozen=True):
    """`cluster_ips` may be empty: they are then chosen of the cluster's ranges, `families` (4, 6) in that order.

    `families` (): every range. `family_policy`: "SingleStack" takes the first, "RequireDualStack" needs both. Ports
    of the nodes that are 0 are chosen where the exposure asks for them.
    """

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
    exposure: Exposure = Exposure()
    families: tuple[int, ...] = ()
    family_policy: str = ""


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
    weight: int = 1


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
    fault = exposure_fault(command.exposure)
    if fault:
        return Rejection(fault, "spec")
    known = state.services.get(service_key(author.cluster, command.namespace, command.name))
    addresses = _cluster_ips(state, cluster, command, known)
    if isinstance(addresses, Rejection):
        return addresses
    key = service_key(author.cluster, command.namespace, command.name)
    reached = decide_node_ports(state, key, command.ports, command.exposure, known)
    if isinstance(reached, Rejection):
        return reached
    new = Service(author.cluster, *msgspec.structs.astuple(applied(command, addresses, *reached)))
    had = known.cluster_ips if known else ()
    new = msgspec.structs.replace(new, exposure=with_balancer_addresses(state, new, known.exposure if known else None))
    event = ServiceApplied(*msgspec.structs.astuple(new)[1:])
    if known == new:
        return Decision()
    own = name_claim(author.cluster, command.namespace, command.name)
    if known is None:
        claims = [Claim(own), Claim(cluster_claim(cluster.cluster_id), Want.HELD)]
    else:
        claims = [Claim(own, Want.HELD, untouched_since=state.revision)]
    claims += [Claim(address_claim(author.cluster, each)) for each in addresses if each not in had]
    claims += [Claim(address_claim(author.cluster, each), Want.FREED) for each in had if each not in addresses]
    claims += port_claims(author.cluster, known, new)
    claims += balancer_claims(author.cluster, known, new)
    return Decision((event,), tuple(claims))


def applied(
    command: ApplyService, addresses: tuple[str, ...], ports: tuple[ServicePort, ...], exposure: Exposure
) -> ServiceApplied:
    """The event of a command when everything in it is decided."""
    return ServiceApplied(
        command.namespace, command.name, addresses, ports, command.selector or None, command.headless,
        command.is_global, command.shared, command.labels, command.annotations, exposure,
    )  # fmt: skip


def _cluster_ips(
    state: State, cluster: Cluster, command: ApplyService, known: Service | None
) -> tuple[str, ...] | Rejection:
    if command.headless or command.exposure.type == EXTERNAL_NAME:
        return ()
    if not command.cluster_ips:
        had = known.cluster_ips if known else ()
        if had and not command.families and not command.family_policy:
            return had
        return _chosen_ips(state, cluster, command, {family_of(each): each for each in had})
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


def wanted_families(command: ApplyService, there: tuple[int, ...]) -> tuple[int, ...]:
    """The families of which a service gets addresses, in order; `there`: those that the cluster has."""
    named = command.families
    if command.family_policy == SINGLE_STACK:
        return named[:1] or there[:1]
    if command.family_policy:
        return tuple(dict.fromkeys((*named, *there)))
    return named or there


def _chosen_ips(
    state: State, cluster: Cluster, command: ApplyService, had: dict[int, str]
) -> tuple[str, ...] | Rejection:
    """Of each family the address that it has, or a free one."""
    chosen = []
    ranges = {family_of(cidr): cidr for cidr in sorted(cluster.service_cidrs, key=family_of)}
    for family in wanted_families(command, tuple(ranges)):
        cidr = ranges.get(family, "")
        if not cidr:
            has = " and ".join(cluster.service_cidrs) or "none"
            return Rejection(f"IPv{family}: cluster {cluster.name} has no such range; it has {has}", "spec.ipFamilies")
        free = (each for each in service_addresses(cidr) if (cluster.name, each) not in state.service_addresses)
        address = had.get(family) or next(free, None)
        if address is None:
            return Rejection(f"no address is left in the service range {cidr} of cluster {cluster.name}")
        chosen.append(address)
    if command.family_policy == REQUIRE_DUAL_STACK and len(chosen) < len(FAMILIES):
        problem = f"cluster {cluster.name} has only {' and '.join(cluster.service_cidrs) or 'no range'}"
        return Rejection(f"{REQUIRE_DUAL_STACK}: {problem}", "spec.ipFamilyPolicy")
    return tuple(chosen)


def remove_service(state: State, author: Author, command: RemoveService) -> Decision | Rejection:
    """Its addresses are free again."""
    known = state.services.get(service_key(author.cluster, command.namespace, command.name))
    if known is None:
        return Decision()
    name = name_claim(author.cluster, command.namespace, command.name)
    own = Claim(name, Want.FREED, untouched_since=state.revision)
    addresses = (Claim(address_claim(author.cluster, each), Want.FREED) for each in known.cluster_ips)
    balancer = balancer_claims(author.cluster, known, None)
    claims = (own, *addresses, *freed_port_claims(author.cluster, node_ports(known)), *balancer)
    return Decision((ServiceRemoved(command.namespace, command.name),), claims)


def report_backends(state: State, author: Author, command: ReportBackends) -> Decision | Rejection:
    """Nothing to do when the slice is known in this very form."""
    fault = ports_fault(command.ports) or weight_fault(command.weight)
    if fault:
        return Rejection(fault, "ports")
    wrong = next((each.address for each in command.backends if not is_address(each.address)), None)
    if wrong is not None:
        return Rejection(f"{wrong!r} is no address in canonical form", "endpoints")
    known = state.backend_slices.get(slice_key(author.cluster, command.namespace, command.name))
    event = BackendsReported(*msgspec.structs.astuple(command))
    if known == BackendSlice(author.cluster, *msgspec.structs.astuple(event)):
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
