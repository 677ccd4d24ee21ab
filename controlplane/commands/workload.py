"""Commands about what the platform declares of workloads. Pure."""

import msgspec

from controlplane.commands.types import Author, Decision, Rejection
from controlplane.events import WorkloadApplied, WorkloadRemoved
from controlplane.model import HostPort, Workload
from controlplane.projections.state import State
from controlplane.projections.workloads import (
    bandwidth_fault,
    host_ports_fault,
    ports_fault,
    weight_fault,
    workload_key,
)


class ApplyWorkload(msgspec.Struct, frozen=True):
    """The workload as the platform declares it now."""

    namespace: str
    name: str
    labels: dict[str, str]
    ready: bool = True
    service_account: str = ""
    ports: dict[str, tuple[int, str]] = {}
    node: str = ""
    host_ports: tuple[HostPort, ...] = ()
    host_network: bool = False
    terminating: bool = False
    weight: int = 1
    egress_bits_s: int = 0
    ingress_bits_s: int = 0
    joins_sockets: bool = True


class RemoveWorkload(msgspec.Struct, frozen=True):
    namespace: str
    name: str


def apply_workload(state: State, author: Author, command: ApplyWorkload) -> Decision | Rejection:
    """Nothing to do when it is known in this very form."""
    fault = ports_fault(command.ports) or host_ports_fault(command.host_ports) or weight_fault(command.weight)
    if fault:
        return Rejection(fault, "spec.containers")
    fault = bandwidth_fault(command.egress_bits_s) or bandwidth_fault(command.ingress_bits_s)
    if fault:
        return Rejection(fault, "metadata.annotations")
    known = state.workloads.get(workload_key(author.cluster, command.namespace, command.name))
    event = WorkloadApplied(
        command.namespace,
        command.name,
        dict(sorted(command.labels.items())),
        command.ready,
        command.service_account,
        dict(sorted(command.ports.items())),
        command.node,
        command.host_ports,
        command.host_network,
        command.terminating,
        command.weight,
        command.egress_bits_s,
        command.ingress_bits_s,
        command.joins_sockets,
    )
    if known == Workload(author.cluster, *msgspec.structs.astuple(event)):
        return Decision()
    return Decision((event,))


def remove_workload(state: State, author: Author, command: RemoveWorkload) -> Decision | Rejection:
    """Its endpoint, if there is one, keeps its identity until the platform detaches it."""
    if workload_key(author.cluster, command.namespace, command.name) not in state.workloads:
        return Decision()
    return Decision((WorkloadRemoved(command.namespace, command.name),))
