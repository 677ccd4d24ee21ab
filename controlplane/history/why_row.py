"""Why a row of a kernel table is there: the things it was derived from, and the records that changed them last. Pure.

Belongs here: from a row back to what it refers to. Does not belong here: deriving rows (desired/).
"""

from collections.abc import Callable, Mapping
from typing import Any

from controlplane.api.schema import RowExplanation
from controlplane.desired.derive import Deriver
from controlplane.desired.facets import SCOPE as FACETS
from controlplane.desired.members import HOST
from controlplane.desired.policy_mesh import mesh_node
from controlplane.desired.services import ServiceCompiler
from controlplane.history.ends import Mesh
from controlplane.history.records import time_text
from controlplane.history.rows import row_fields, row_name
from controlplane.history.why import evidence_of
from controlplane.model import EndpointKey, NodeKey, ObjectKey
from controlplane.policy.mesh import host_labels
from controlplane.policy.rules import ParsedPolicy, Rule
from controlplane.policy.selectors import LabelIndex, index_labels
from controlplane.policy.verdict import policies_of
from controlplane.projections.namespaces import namespace_key
from controlplane.projections.redirects import KIND as REDIRECT
from controlplane.projections.services import KIND as SERVICE
from controlplane.projections.workloads import KIND as WORKLOAD
from controlplane.projections.workloads import workload_key
from datapath.abi.types import POLICY_INGRESS, POLICY_VERDICT_DENY
from datapath.codec import address_text
from datapath.tables import TABLES

SHOWN_MAX = 10

Thing = tuple[str, Any]
Answer = tuple[list[str], list[Thing]]


class NoSuchRow(ValueError):
    """No row, or no table, is called so; names those that are close."""


def explain_row(mesh: Mesh, where: NodeKey, table: str, text: str, time_ns: int = 0) -> RowExplanation:
    """Raises NoSuchRow."""
    if table not in TABLES:
        raise NoSuchRow(f"there is no table {table!r}; there are: {', '.join(TABLES)}")
    rows = Deriver(*where).full(mesh.state).tables[table]
    key = _key_named(table, rows, text)
    reasons, things = _REFERENTS[table](mesh, where, key, rows[key])
    return RowExplanation(
        revision=mesh.state.revision,
        time=time_text(time_ns),
        node="/".join(where),
        table=table,
        key=row_name(table, key),
        row=row_fields(table, rows[key]),
        reasons=reasons,
        evidence=[evidence_of(mesh, *thing) for thing in dict.fromkeys(things)],
    )


def _key_named(table: str, rows: Mapping[Any, Any], text: str) -> Any:
    """By its name; by a part of it where only one row has it."""
    names = {row_name(table, key): key for key in rows}
    wanted = text.strip()
    for exact in (wanted, f"{wanted}/32", f"{wanted}/128"):
        if exact in names:
            return names[exact]
    parts = wanted.split()
    close = [name for name in sorted(names) if all(part in name for part in parts)]
    if len(close) == 1:
        return names[close[0]]
    there = close or sorted(names)
    more = f", and {len(there) - SHOWN_MAX} more" if len(there) > SHOWN_MAX else ""
    problem = "several rows are called so" if close else "had to hold no such row then"
    raise NoSuchRow(f"{table}: {text!r}: {problem}; there are: {'; '.join(there[:SHOWN_MAX]) or 'none'}{more}")


def _address(mesh: Mesh, address: bytes) -> Answer:
    text = address_text(address)
    holder = mesh.state.addresses.get(text)
    if isinstance(holder, EndpointKey):
        return _endpoint(mesh, holder, f"{text} is the address of")
    if holder is not None:
        return [f"{text} is an address of node {holder.cluster}/{holder.node}"], [("node", holder)]
    return [f"{text} is nobody's in the mesh: the row holds for the world"], []


def _endpoint(mesh: Mesh, key: EndpointKey, how: str) -> Answer:
    endpoint = mesh.state.endpoints[key]
    things: list[Thing] = [("endpoint", key)]
    if endpoint.identity in mesh.state.identities:
        things.append(("identity", endpoint.identity))
    declared = workload_key(endpoint.cluster, endpoint.namespace, endpoint.workload)
    named = namespace_key(endpoint.cluster, endpoint.namespace)
    things += [("workload", declared)] if declared in mesh.state.workloads else []
    things += [("namespace", named)] if named in mesh.state.namespaces else []
    return [f"{how} {key.cluster}:{endpoint.namespace}/{endpoint.workload} on node {key.node}"], things


def _by_address(mesh: Mesh, where: NodeKey, key: Any, row: Any) -> Answer:
    return _address(mesh, key.address)


def _ipcache(mesh: Mesh, where: NodeKey, key: Any, row: Any) -> Answer:
    reasons, things = _address(mesh, key.address) if key.prefix_length == 128 else (["a prefix of the world"], [])
    if row.identity in mesh.nodes(where).labels:
        labels = ",".join(mesh.labels_of(row.identity, where))
        reasons.append(f"identity {row.identity}: of nodes that policies of {where.cluster} know by {labels}")
        things = [*things, ("settings", where.cluster)]
    if row.node != bytes(16):
        via, more = _address(mesh, row.node)
        reasons, things = [*reasons, f"reached through {via[0]}"], [*things, *more]
    elif things and things[0][0] == "endpoint":
        things.append(("node", NodeKey(things[0][1].cluster, things[0][1].node)))
    return reasons, things


def _by_device(mesh: Mesh, where: NodeKey, key: Any, row: Any) -> Answer:
    for each in mesh.state.endpoints_of(where):
        if each.device.ifindex == key.ifindex:
            held = EndpointKey(each.cluster, each.node, each.endpoint_id)
            return _endpoint(mesh, held, f"device {each.device.name} belongs to")
    return [f"ifindex {key.ifindex} is the node's own device"], [("node", where)]


def _facet(mesh: Mesh, where: NodeKey, key: Any, row: Any) -> Answer:
    reasons, things = _address(mesh, key.address)
    labels = ",".join(mesh.labels_of(row.facet, where))
    reasons.append(f"policies of {where.cluster} tell it from other addresses of identity {key.identity}, by {labels}")
    return reasons, things


def _subject(mesh: Mesh, where: NodeKey, number: int) -> Answer:
    if number >= FACETS:
        reasons, behind = _subject(mesh, where, mesh.facets(where.cluster).identity_of(number))
        labels = ",".join(mesh.labels_of(number, where))
        return [*reasons, f"{number} stands for those that policies of {where.cluster} know by {labels}"], behind
    identity = mesh.state.identities.get(number)
    if identity is None:
        return [f"identity {number} is reserved"], []
    things: list[Thing] = [("identity", number)]
    users = [each for each in mesh.state.endpoints_of(where) if each.identity == number]
    things += [("endpoint", EndpointKey(each.cluster, each.node, each.endpoint_id)) for each in users[:SHOWN_MAX]]
    return [f"{len(users)} endpoints of the node have identity {number} ({','.join(identity.labels)})"], things


def _about(mesh: Mesh, where: NodeKey, number: int) -> list[ParsedPolicy]:
    """The policies about an identity; host policies about the node's own."""
    if number == HOST:
        node = mesh.state.nodes.get(where)
        policies = list(mesh.inputs(where.cluster).policies.values())
        return policies_of(host_labels(mesh_node(node)), policies, of_nodes=True) if node else []
    identity = mesh.state.identities.get(mesh.facets(where.cluster).identity_of(number) or number)
    return mesh.about(where.cluster, identity.labels if identity else ())


def _policy_subject(mesh: Mesh, where: NodeKey, key: Any, row: Any) -> Answer:
    reasons, things = _subject(mesh, where, key.identity)
    about = _about(mesh, where, key.identity)
    reasons += [f"{policy.name} is about it" for policy in about] or ["no policy is about it"]
    return reasons, [*things, *(("policy", policy.key) for policy in about)]


def _policy(mesh: Mesh, where: NodeKey, key: Any, row: Any) -> Answer:
    reasons, things = _subject(mesh, where, key.subject_identity)
    remote = mesh.labels_of(key.remote_identity, where) if key.remote_identity else ()
    if key.remote_identity:
        reasons.append(f"the other end has identity {key.remote_identity} ({','.join(remote) or 'not known'})")
    behind = mesh.facets(where.cluster).identity_of(key.remote_identity) or key.remote_identity
    if behind in mesh.state.identities:
        things.append(("identity", behind))
    things += _nodes_behind(mesh, where, key.remote_identity)
    index, closing = index_labels(remote), row.verdict == POLICY_VERDICT_DENY
    for policy in _about(mesh, where, key.subject_identity):
        for rule in policy.rules:
            if rule.direction == key.direction and rule.deny == closing and _asks(mesh, where, rule, key, index):
                reasons.append(f"{rule.origin} of {policy.name} asks for it")
                things.append(("policy", policy.key))
    return reasons, things


def _nodes_behind(mesh: Mesh, where: NodeKey, number: int) -> list[Thing]:
    """The nodes that have an identity of their own, and the setting that gives it to them."""
    known = mesh.nodes(where)
    if number not in known.labels:
        return []
    holders = dict.fromkeys(mesh.state.addresses[address] for address, held in known.numbers.items() if held == number)
    return [("settings", where.cluster), *(("node", holder) for holder in list(holders)[:SHOWN_MAX])]


def _asks(mesh: Mesh, where: NodeKey, rule: Rule, key: Any, remote: LabelIndex) -> bool:
    """Whether a rule covers all that the row does."""
    if rule.requests is not None and not rule.deny:
        return False
    if rule.peers is not None and not any(selector.matches_index(remote) for selector in rule.peers):
        return False
    if rule.ports is None:
        return True
    last = key.port | (0xFFFF >> key.port_prefix)
    if key.protocol and any(each.contains(key.protocol, key.port) and each.last >= last for each in rule.ports):
        return True
    target = key.subject_identity if key.direction == POLICY_INGRESS else key.remote_identity
    given = mesh.ports(target, where)
    return any(key.port == given.get((named.protocol, named.name)) for named in rule.named)


UNIT_KINDS = {SERVICE: "service", WORKLOAD: "workload", REDIRECT: "local_redirect"}
"""What frontends come from, as kinds of things."""


def _frontend_of(unit: ObjectKey) -> str:
    place = f"{unit.namespace}/{unit.name}"
    return {SERVICE: f"service {place}", WORKLOAD: f"host ports of {place}"}.get(unit.kind, f"redirect {place}")


def _service(mesh: Mesh, where: NodeKey, key: Any, row: Any) -> Answer:
    compiler = ServiceCompiler(*where)
    backends = compiler.full(mesh.state)["backends"]
    unit = compiler.unit_of(key)
    assert unit is not None, "the row is there, so somebody has the frontend"
    things: list[Thing] = [(UNIT_KINDS[unit.kind], unit)]
    for twin in mesh.state.service_twins.get((unit.namespace, unit.name), ()) if unit.kind == SERVICE else ():
        things.append(("service", twin))
        things += [("backends", each) for each in mesh.state.service_slices.get(twin, ())]
    members = [held for slot, held in sorted(backends.items()) if slot.backend_set == row.backend_set]
    reasons = [f"{address_text(key.address)} is a frontend of {_frontend_of(unit)}"]
    for member in members[:SHOWN_MAX]:
        more, behind = _address(mesh, member.address)
        reasons.append(f"backend: {more[0]}")
        things += behind
    return reasons if row.count else [*reasons, "it has no ready backend"], things


def _backend(mesh: Mesh, where: NodeKey, key: Any, row: Any) -> Answer:
    reasons, things = _address(mesh, row.address)
    more, behind = _by_set(mesh, where, key, row)
    return [*reasons, *more], [*things, *behind]


def _by_set(mesh: Mesh, where: NodeKey, key: Any, row: Any) -> Answer:
    """The frontends that use the set which a row belongs to."""
    field = "backend_set" if hasattr(key, "backend_set") else "source_range_set"
    reasons: list[str] = []
    things: list[Thing] = []
    compiler = ServiceCompiler(*where)
    for frontend, held in sorted(compiler.full(mesh.state)["services"].items()):
        unit = compiler.unit_of(frontend)
        if unit is not None and getattr(held, field) == getattr(key, field):
            reasons.append(f"{row_name('services', frontend)} of {_frontend_of(unit)} leads to it")
            things.append((UNIT_KINDS[unit.kind], unit))
    return reasons, things


def _backend_by_address(mesh: Mesh, where: NodeKey, key: Any, row: Any) -> Answer:
    return _backend(mesh, where, key, key)


def _epoch(mesh: Mesh, where: NodeKey, key: Any, row: Any) -> Answer:
    found: list[Thing] = [thing for thing, origin in mesh.origins.held.items() if origin.revision == row.policy_epoch]
    reason = f"revision {row.policy_epoch} is the last that can have changed a policy or ipcache row of any node"
    return [reason], found


def _tunnel(mesh: Mesh, where: NodeKey, key: Any, row: Any) -> Answer:
    return [f"ifindex {row.ifindex} wraps packets for other nodes"], [("node", where)]


def _link(mesh: Mesh, where: NodeKey, key: Any, row: Any) -> Answer:
    reasons, things = _by_device(mesh, where, key, row)
    for name in ("address", "gateway"):
        address = getattr(key, name, None) or getattr(row, name, None)
        if address and address != bytes(16):
            more, behind = _address(mesh, address)
            reasons, things = [*reasons, *more], [*things, *behind]
    return reasons, [*things, ("node", where)]


def _route(mesh: Mesh, where: NodeKey, key: Any, row: Any) -> Answer:
    reasons, things = _address(mesh, row.gateway) if row.gateway != bytes(16) else (["it is on link"], [])
    owner = next(
        (node for node in sorted(mesh.state.nodes) if any(
            block.startswith(address_text(key.address)) for block in mesh.state.nodes[node].blocks)), None,
    )  # fmt: skip
    if owner is not None:
        reasons, things = [*reasons, f"it leads to the pods of node {'/'.join(owner)}"], [*things, ("node", owner)]
    return reasons, [*things, ("node", where)]


def _socket_hook(mesh: Mesh, where: NodeKey, key: Any, row: Any) -> Answer:
    return [f"the node's sockets are those made in {row.cgroup}"], [("node", where)]


def _shaper(mesh: Mesh, where: NodeKey, key: Any, row: Any) -> Answer:
    endpoint = mesh.state.endpoints.get(EndpointKey(*where, key.endpoint_id))
    if endpoint is None:
        return [f"the node has no endpoint {key.endpoint_id}"], [("node", where)]
    title = f"{endpoint.namespace}/{endpoint.workload}"
    workload = workload_key(endpoint.cluster, endpoint.namespace, endpoint.workload)
    return [f"the annotations of {title} limit its bandwidth"], [("workload", workload), ("node", where)]


Referents = Callable[[Mesh, NodeKey, Any, Any], Answer]
_REFERENTS: Mapping[str, Referents] = {
    "endpoints": _by_address,
    "devices": _by_device,
    "ipcache": _ipcache,
    "facets": _facet,
    "policy_subjects": _policy_subject,
    "policy": _policy,
    "services": _service,
    "backends": _backend,
    "maglev": _by_set,
    "source_ranges": _by_set,
    "affinity_backends": _backend_by_address,
    "node_state": _epoch,
    "tunnel": _tunnel,
    "attachments": _link,
    "socket_hooks": _socket_hook,
    "shapers": _shaper,
    "routes": _route,
    "neighbours": _link,
}
