"""What people and platforms ask of a simulated mesh: every kind of command, through agents and operators.

Belongs here: the wishes, and asking for them. Does not belong here: faults (faults.py), what must hold (witness.py).
"""

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from controlplane.api.schema import EndpointRequest
from controlplane.codec import decode
from controlplane.commands.addresses import ApplyCidrGroup, ChangeSettings, ExpireName, RemoveCidrGroup, ResolveName
from controlplane.commands.balancer_pools import ApplyBalancerPool, RemoveBalancerPool
from controlplane.commands.cluster import LeaveCluster
from controlplane.commands.namespace import RemoveNamespace
from controlplane.commands.policy import ApplyPolicy, RemovePolicy
from controlplane.commands.redirect import RemoveLocalRedirect
from controlplane.commands.service import WithdrawBackends
from controlplane.commands.types import Rejection
from controlplane.commands.workload import ApplyWorkload, RemoveWorkload
from controlplane.model import Exposure
from controlplane.policy.manifests import canonical
from controlplane.runtime.endpoints import EndpointRefused
from controlplane.runtime.writer import WriterFailed, Written
from tests.controlplane import random_mesh

if TYPE_CHECKING:
    from tests.simulation.mesh import Machine, NodeMachine, SimulatedMesh

NOT_WISHED = (4, 9, 10, 11, 19, 20, 21, 22, 30, 31)
"""Of random_mesh's wishes those that are about devices, blocks and nodes: agents and operators have them themselves."""
WISHES = tuple(kind for kind in range(33) if kind not in NOT_WISHED and not 5 <= kind <= 8)
ATTACHMENTS = 7
PATIENCE_S = 30.0

WEB, DB = {"matchLabels": {"app": "web"}}, {"matchLabels": {"app": "db"}}
PORTS = [{"ports": [{"port": "8080", "protocol": "TCP"}, {"port": "web", "protocol": "TCP"}]}]
CILIUM: Sequence[dict[str, Any]] = (
    {"endpointSelector": WEB, "ingress": [{"fromEndpoints": [DB], "toPorts": PORTS}]},
    {"endpointSelector": DB, "ingressDeny": [{"fromEntities": ["world"]}], "ingress": [{"fromEntities": ["all"]}]},
    {"endpointSelector": WEB, "egress": [{"toFQDNs": [{"matchName": "www.example.com"}, {"matchPattern": "*.org"}]}]},
    {"endpointSelector": DB, "egress": [{"toCIDRSet": [{"cidrGroupRef": "partners"}, {"cidr": "198.51.100.0/24"}]}]},
    {"endpointSelector": {}, "egress": [{"toServices": [{"k8sService": {"serviceName": "db", "namespace": "shop"}}]}]},
    {"endpointSelector": WEB, "ingress": [{"icmps": [{"fields": [{"type": 8, "family": "IPv4"}]}]}]},
    {"endpointSelector": DB, "ingress": [{"fromEntities": ["cluster", "kube-apiserver", "remote-node"]}]},
    {"endpointSelector": {}, "ingress": [{}], "enableDefaultDeny": {"ingress": False}},
    {"endpointSelector": DB, "egressDeny": [{"toCIDR": ["203.0.113.0/24"]}], "egress": [{"toEntities": ["all"]}]},
    {"endpointSelector": {"matchExpressions": [{"key": "app", "operator": "NotIn", "values": ["web"]}]}, "ingress": []},
)
CLUSTERWIDE: Sequence[dict[str, Any]] = (
    {"nodeSelector": {}, "ingress": [{"fromEntities": ["cluster"], "toPorts": PORTS}, {"fromEntities": ["world"]}]},
    {"endpointSelector": {"matchLabels": {"k8s:io.kubernetes.pod.namespace": "bank"}}, "egress": [{"toEntities": ["world"]}]},
)
SETTINGS = (
    "{}", '{"enable-policy":"always"}', '{"enable-policy":"never"}', '{"policy-audit-mode":true}',
    '{"policy-default-local-cluster":true}', '{"bpf-lb-algorithm":"maglev","bpf-lb-maglev-table-size":251}',
)  # fmt: skip
NAMES = ("www.example.com", "kernel.org", "python.org")


def wish(mesh: "SimulatedMesh") -> tuple[str, Any]:
    """A cluster and a command."""
    chance = mesh.chance
    own = (_policy, _policy, _policy, _cidr_group, _name, _settings, _removal, _balancer_pool)
    if chance.random() < 0.45:
        return chance.choice(("east", "west")), chance.choice(own)(mesh)
    step = (chance.choice(WISHES), chance.randrange(6), chance.randrange(4), chance.randrange(4))
    author, command = random_mesh.wish(step)
    return author.cluster, command


def _policy(mesh: "SimulatedMesh") -> Any:
    is_wide = mesh.chance.random() < 0.25
    kind, specs = ("CiliumClusterwideNetworkPolicy", CLUSTERWIDE) if is_wide else ("CiliumNetworkPolicy", CILIUM)
    namespace = "" if is_wide else mesh.chance.choice(random_mesh.NAMESPACES)
    number = mesh.chance.randrange(len(specs))
    name = f"c{number % 6}"
    if mesh.chance.random() < 0.25:
        return RemovePolicy(kind, namespace, name)
    metadata = {"name": name, **({"namespace": namespace} if namespace else {})}
    document = {"apiVersion": "cilium.io/v2", "kind": kind, "metadata": metadata, "spec": specs[number]}
    return ApplyPolicy(kind, namespace, name, canonical(document))


def _removal(mesh: "SimulatedMesh") -> Any:
    namespace, number = mesh.chance.choice(random_mesh.NAMESPACES), mesh.chance.randrange(3)
    return mesh.chance.choice((
        RemoveWorkload(namespace, f"{mesh.chance.choice(random_mesh.APPS)}-{number}"),
        WithdrawBackends(namespace, f"s{number}"), RemoveNamespace(namespace), RemoveLocalRedirect(namespace, "lrp"),
    ))  # fmt: skip


def _cidr_group(mesh: "SimulatedMesh") -> Any:
    name = mesh.chance.choice(("partners", "others"))
    if mesh.chance.random() < 0.3:
        return RemoveCidrGroup(name)
    prefixes = mesh.chance.sample(("198.51.100.0/24", "198.51.100.0/28", "192.0.2.0/24", "2001:db8::/32"), 2)
    return ApplyCidrGroup(name, tuple(sorted(prefixes)), {"trust": mesh.chance.choice(("high", "low"))})


def _name(mesh: "SimulatedMesh") -> Any:
    name, address = mesh.chance.choice(NAMES), f"203.0.113.{mesh.chance.randrange(4)}"
    if mesh.chance.random() < 0.3:
        return ExpireName(name, mesh.chance.choice(((), (address,))))
    return ResolveName(name, (address, "2001:db8::7"))


def _settings(mesh: "SimulatedMesh") -> Any:
    return ChangeSettings(mesh.chance.choice(SETTINGS))


def _balancer_pool(mesh: "SimulatedMesh") -> Any:
    """Of few addresses, so that services compete for them; or such a service."""
    if mesh.chance.random() < 0.4:
        _, service = random_mesh.wish((23, 0, 0, mesh.chance.randrange(4)))
        return msgspec.structs.replace(service, exposure=Exposure("LoadBalancer"))
    name = f"p{mesh.chance.randrange(2)}"
    if mesh.chance.random() < 0.3:
        return RemoveBalancerPool(name)
    return ApplyBalancerPool(name, ("198.18.0.0/30", "2001:db8:9::/126"), disabled=mesh.chance.random() < 0.2)


async def populate(mesh: "SimulatedMesh") -> None:
    """Workloads in both clusters, so that endpoints can be made from the first step on; the third is there, or not yet."""
    if mesh.chance.random() < 0.5:
        mesh.visitor.start()
    for machine in (mesh.nodes[0], mesh.nodes[2]):
        declared = [
            ApplyWorkload(namespace, f"{app}-{n}", {"app": app}, True, "", {"web": (8000, "TCP")})
            for namespace in random_mesh.NAMESPACES
            for app in random_mesh.APPS
            for n in range(3)
        ]
        await machine.writer.submit_all(declared)


def change(mesh: "SimulatedMesh") -> None:
    """One request, or several at once, to whoever runs; answered later, if at all."""
    kind = mesh.chance.random()
    if kind < 0.05:
        _visit(mesh)
        return
    if kind < 0.1:
        _contend(mesh)
        return
    if kind < 0.45:
        cluster, _ = first = wish(mesh)
        wishes = [first, *(wish(mesh) for _ in range(mesh.chance.randrange(6)))]
        machines = [each for each in mesh.machines if each.cluster == cluster and each.is_running]
        if machines:
            commands = [command for where, command in wishes if where == cluster]
            _ask(mesh, mesh.chance.choice(machines), _submit, commands)
        return
    nodes = [each for each in mesh.nodes if each.is_running]
    if nodes:
        container = f"c{mesh.chance.randrange(ATTACHMENTS)}"
        _ask(mesh, mesh.chance.choice(nodes), _create if kind < 0.8 else _delete, container)


def _contend(mesh: "SimulatedMesh") -> None:
    """Two writers of a cluster want a node port each, at the same moment, and there is a lowest free one."""
    author, _ = random_mesh.wish((14, mesh.chance.randrange(2), 0, 0))
    machines = [each for each in mesh.machines if each.cluster == author.cluster and each.is_running]
    cluster, again = random_mesh.CLUSTERS.index(author.cluster), mesh.chance.random() < 0.5
    for place, machine in enumerate(mesh.chance.sample(machines, min(2, len(machines)))):
        _, removal = random_mesh.wish((14, cluster, 0, place))
        _, service = random_mesh.wish((23, cluster, 0, place))
        _ask(mesh, machine, _submit, [removal, service] if again else [service])


def _visit(mesh: "SimulatedMesh") -> None:
    """The third cluster comes up, offers services, or takes them back and leaves for good; or wants to while it has them."""
    visitor = mesh.visitor
    if not visitor.is_running:
        visitor.start()
        return
    services = [random_mesh.wish((kind, 0, 0, place))[1] for kind in (23, 14) for place in range(3)]
    offers, removals = services[:3], services[3:]
    if mesh.chance.random() < 0.4:
        _ask(mesh, visitor, _submit, offers)
    else:
        _ask(mesh, visitor, _leave, removals[: mesh.chance.choice((0, 0, 3))])


async def _leave(mesh: "SimulatedMesh", visitor: "Machine", removals: Sequence[Any]) -> None:
    process = visitor.process
    await _submit(mesh, visitor, [*removals, LeaveCluster()])
    if process is not None and visitor.process is process and mesh.chance.random() < 0.7:
        mesh.note(f"{visitor} is switched off")
        mesh.kill(process)


def _ask(mesh: "SimulatedMesh", machine: "Machine", how: Any, what: Any) -> None:
    mesh.requests.append((machine.process, asyncio.ensure_future(_answered(mesh, machine, how, what))))


async def _answered(mesh: "SimulatedMesh", machine: "Machine", how: Any, what: Any) -> None:
    try:
        await how(mesh, machine, what)
    except (WriterFailed, EndpointRefused) as error:
        mesh.seen[type(error).__name__] += 1


async def _submit(mesh: "SimulatedMesh", machine: "Machine", commands: Sequence[Any]) -> None:
    mesh.note(f"asks {machine}: {', '.join(type(each).__name__ for each in commands)}")
    rewinds = mesh.seen["restored"]
    outcomes = await machine.writer.submit_all(commands)
    for command, outcome in zip(commands, outcomes, strict=True):
        if isinstance(outcome, Rejection):
            mesh.seen["rejected"] += 1
        elif outcome.events and mesh.seen["restored"] == rewinds:
            _stands(mesh, machine, command, outcome)


def _stands(mesh: "SimulatedMesh", machine: "Machine", command: Any, outcome: Written) -> None:
    """What a caller was told to be written is in the log, there and nowhere else."""
    record = next((each for each in reversed(mesh.witness.records) if each.revision == outcome.revision), None)
    written = () if record is None else decode(record.payload).events
    if any(event not in written for event in outcome.events):
        mesh.witness.find("acknowledged is written", f"{machine}: {command} at {outcome.revision}")


async def _create(mesh: "SimulatedMesh", node: "NodeMachine", container: str) -> None:
    name = f"{mesh.chance.choice(random_mesh.APPS)}-{mesh.chance.randrange(3)}"
    request = EndpointRequest(container, "eth0", "/run/netns/none", mesh.chance.choice(random_mesh.NAMESPACES), name)
    mesh.note(f"asks {node}: create {container}")
    removals = node.removals[container]
    made = await node.work.parts.endpoints.create(request)
    lived = node.living.setdefault(container, made) if node.removals[container] == removals else made
    if (lived.endpoint_id, lived.addresses) != (made.endpoint_id, made.addresses):
        mesh.witness.find("living endpoints stay", f"{node}: {container} was {lived}, is made again as {made}")
    mesh.seen["endpoint made"] += 1


async def _delete(mesh: "SimulatedMesh", node: "NodeMachine", container: str) -> None:
    mesh.note(f"asks {node}: delete {container}")
    node.removals[container] += 1
    node.living.pop(container, None)
    await node.work.parts.endpoints.delete(container, "eth0")
