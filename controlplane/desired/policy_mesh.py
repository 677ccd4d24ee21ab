"""The mesh as policies see it, out of the state: for questions about a running mesh. Pure.

Belongs here: from the nouns of the state to those of policy/mesh.py. Does not belong here: verdicts.
"""

from controlplane.addresses import router_address
from controlplane.desired.policy_inputs import PolicyInputs, service_views
from controlplane.labels import CLUSTER_KEY
from controlplane.model import Endpoint, Node
from controlplane.policy.mesh import Mesh, MeshCluster, MeshEndpoint, MeshNode
from controlplane.projections.state import State
from controlplane.projections.workloads import workload_key


def mesh_of(state: State, cluster: str) -> Mesh:
    """`cluster`: the one that is meant where a question names none. A policy that cannot be read closes, as in rows."""
    names: dict[str, tuple[str, ...]] = {}
    for name in state.resolved_names.values():
        names[name.name] = tuple(sorted({*names.get(name.name, ()), *name.addresses}))
    return Mesh(
        cluster,
        {name: _cluster(state, name) for name in sorted({cluster, *state.clusters, *_writers(state)})},
        [_endpoint(state, state.endpoints[key]) for key in sorted(state.endpoints)],
        [mesh_node(state.nodes[key]) for key in sorted(state.nodes)],
        names=names,
    )


def _writers(state: State) -> dict[str, None]:
    return dict.fromkeys(key.cluster for key in state.policies)


def _cluster(state: State, name: str) -> MeshCluster:
    inputs = PolicyInputs(name)
    inputs.fill(state)
    return MeshCluster(
        tuple(inputs.policies[key] for key in sorted(inputs.policies)),
        tuple(service_views(state, name)),
        tuple(state.cidr_groups[key] for key in sorted(state.cidr_groups) if key.cluster == name),
        inputs.settings,
        inputs.api_servers,
    )


def _endpoint(state: State, found: Endpoint) -> MeshEndpoint:
    workload = state.workloads.get(workload_key(found.cluster, found.namespace, found.workload))
    addresses = tuple(address for address in (found.ipv4, found.ipv6) if address)
    ports = workload.ports if workload else {}
    return MeshEndpoint(
        found.cluster, found.namespace, found.workload, found.labels, addresses, ports, found.node, found.is_audited
    )


def mesh_node(found: Node) -> MeshNode:
    """With the labels that the platform gave it."""
    pairs = (label.partition(":")[2].partition("=") for label in found.labels)
    labels = {key: value for key, _, value in pairs if key != CLUSTER_KEY}
    return MeshNode(found.cluster, found.name, found.addresses, labels, tuple(map(router_address, found.blocks)))
