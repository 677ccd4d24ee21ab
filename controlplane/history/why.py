"""Why a flow is allowed or denied in one state of the mesh, and the records behind the answer. Pure.

Belongs here: the verdict of both ends, what decided it, which records made that so. Does not belong here: who is meant
by an end (ends.py), the rule that came closest (nearest.py), rows of a kernel (why_row.py).
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from ipaddress import ip_address, ip_network
from typing import Any

import msgspec

from controlplane.api.schema import EndView, Evidence, Explanation, SideView
from controlplane.desired.backends import PROTOCOL_NUMBERS
from controlplane.desired.services import ServiceCompiler
from controlplane.history.ends import ENDPOINT, ENTITY, NODE, SERVICE, WORLD, End, Mesh
from controlplane.history.exposed import Exposed, exposed_frontend
from controlplane.history.nearest import nearest_rule, port_text
from controlplane.history.records import time_text
from controlplane.history.rows import thing_name
from controlplane.model import EndpointKey, Labels, NodeKey, ObjectKey, Service, Workload
from controlplane.policy.rules import ICMP, ICMPV6, PORT_MAX, PROTOCOLS, NamedPorts, ParsedPolicy, Rule
from controlplane.policy.selectors import index_labels
from controlplane.policy.verdict import HOST_LABEL, REDIRECT, Side, enforces, judge_side, rule_matches
from controlplane.projections.namespaces import namespace_key
from controlplane.projections.services import service_key
from controlplane.projections.workloads import workload_key
from datapath.abi.types import POLICY_EGRESS, POLICY_INGRESS
from datapath.codec import address_bytes, address_text
from datapath.tables import ServiceKey

DIRECTIONS = {POLICY_EGRESS: "egress", POLICY_INGRESS: "ingress"}
TRANSPORTS = {**PROTOCOLS, "ICMP": ICMP, "ICMPV6": ICMPV6}
ALLOW, DENY, MIXED = "allow", "deny", "mixed"

Realized = Mapping[NodeKey, int]
"""The revision that each node's kernel was last reported to hold."""


class PortError(ValueError):
    """The text is no port and protocol."""


def read_port(text: str) -> tuple[int, int]:
    """Protocol number and port (of ICMP: type) of "80/TCP". Raises PortError."""
    number, _, name = text.upper().partition("/")
    protocol = TRANSPORTS.get(name or "TCP")
    if protocol is None or not number.isascii() or not number.isdigit() or int(number) > PORT_MAX:
        raise PortError(f"{text!r} is no port; right is for example 80/TCP, 53/UDP or 8/ICMP")
    return protocol, int(number)


class _Found(msgspec.Struct):
    """What is gathered on the way to an answer."""

    reasons: list[str] = []
    sides: list[SideView] = []
    things: dict[tuple[str, Any], None] = {}
    notes: list[str] = []
    paths: list[str] = []


def explain(
    mesh: Mesh, source: End, target: End, protocol: int, port: int, realized: Realized | None = None, time_ns: int = 0
) -> Explanation:
    """The verdict of the flow's first packet. `realized` only of the present."""
    found = _Found()
    for end in (source, target):
        _gather_end(mesh, end, found)
    exposed = None
    if target.what in (WORLD, NODE) or (target.what == SERVICE and source.what in (WORLD, ENTITY)):
        exposed = exposed_frontend(mesh.state, mesh.cluster, source, target.address, protocol, port)
    if exposed is not None:
        verdict = _through_exposed(mesh, source, target, exposed, protocol, port, found)
    elif target.what == SERVICE:
        verdict = _through_service(mesh, source, target, protocol, port, found)
    else:
        verdict = _judged(mesh, source, target, protocol, port, found)
    evidence = [evidence_of(mesh, kind, key) for kind, key in found.things]
    found.notes += _not_applied(source, target, evidence, realized or {})
    return Explanation(
        revision=mesh.state.revision,
        time=time_text(time_ns),
        verdict=verdict,
        reasons=found.reasons,
        source=_end_view(mesh.shown(source, target)),
        target=_end_view(mesh.shown(target, source)),
        port=port_text(protocol, port),
        sides=found.sides,
        evidence=evidence,
        notes=found.notes,
        paths=found.paths,
    )


def evidence_of(mesh: Mesh, kind: str, key: Any) -> Evidence:
    """The record that changed a thing last."""
    about = f"{kind} {thing_name(kind, key, mesh.state.endpoints.get(key) if kind == ENDPOINT else None)}"
    origin = mesh.origins.of(kind, key)
    if origin is None:
        return Evidence(about, 0, "", "", f"unchanged since before revision {mesh.origins.since}")
    writer = f"{origin.cluster}/{origin.writer}"
    return Evidence(about, origin.revision, writer, time_text(origin.time_ns), origin.event)


def _end_view(end: End) -> EndView:
    return EndView(end.text, end.what, end.identity, list(end.labels), end.address)


def _gather_end(mesh: Mesh, end: End, found: _Found) -> None:
    """The things that made the end what it is."""
    if isinstance(end.key, EndpointKey):
        endpoint = mesh.state.endpoints[end.key]
        found.things[ENDPOINT, end.key] = None
        if endpoint.identity in mesh.state.identities:
            found.things["identity", endpoint.identity] = None
        else:
            found.notes.append(f"identity {endpoint.identity} of {end.name} is not known: its packets are dropped")
        declared = workload_key(endpoint.cluster, endpoint.namespace, endpoint.workload)
        for kind, key, held in (
            ("workload", declared, mesh.state.workloads),
            ("namespace", namespace_key(endpoint.cluster, endpoint.namespace), mesh.state.namespaces),
        ):
            if key in held:
                found.things[kind, key] = None
    elif isinstance(end.key, NodeKey):
        found.things["node", end.key] = None
    elif end.key is not None:
        found.things["service", end.key] = None
    elif end.address:
        _gather_address(mesh, end.address, found)


def _gather_address(mesh: Mesh, address: str, found: _Found) -> None:
    """The groups and names by which policies know an address outside the mesh."""
    number = ip_address(address)
    for key, group in sorted(mesh.state.cidr_groups.items()):
        if any(number in ip_network(prefix) for prefix in group.prefixes):
            found.things["cidr_group", key] = None
    for key, name in sorted(mesh.state.resolved_names.items()):
        if address in name.addresses:
            found.things["name", key] = None


# --- policies -----------------------------------------------------------------------------------------------------


def _judged(
    mesh: Mesh, source: End, target: End, protocol: int, port: int, found: _Found,
    directions: Sequence[int] = (POLICY_EGRESS, POLICY_INGRESS),
) -> str:  # fmt: skip
    """Both sides, or those named; the first that denies decides."""
    names = mesh.named_ports(target)
    is_ipv6 = protocol == ICMPV6 or any(":" in end.address for end in (source, target))
    denied: list[str] = []
    allowed: list[str] = []
    for direction, own, remote in ((POLICY_EGRESS, source, target), (POLICY_INGRESS, target, source)):
        about = mesh.about_end(own) if direction in directions else None
        if about is None:
            continue
        seen = mesh.seen(own, remote, 6 if is_ipv6 else 4)
        settings = mesh.inputs(own.cluster).settings
        if isinstance(remote.key, NodeKey) and mesh.sight(own.cluster).tells_apart:
            found.things["settings", own.cluster] = None
        if isinstance(own.key, EndpointKey) and mesh.state.endpoints[own.key].is_audited:
            settings = msgspec.structs.replace(settings, audit=True)
        side = judge_side(direction, about, seen, protocol, port, names, settings=settings)
        reasons = _side_reasons(mesh, direction, own, seen, about, side, protocol, port, names, found)
        is_closed = side.denies or found.sides[-1].verdict == REDIRECT
        (denied if is_closed else allowed).extend(reasons)
    if not found.sides:
        allowed.append("neither end is an endpoint of the mesh or under host policies: no policy is about this flow")
    found.reasons += [*denied, *allowed]
    return DENY if denied else ALLOW


def _side_reasons(
    mesh: Mesh, direction: int, own: End, seen: Labels, about: Sequence[ParsedPolicy], side: Side,
    protocol: int, port: int, names: NamedPorts, found: _Found,
) -> list[str]:  # fmt: skip
    index = index_labels(seen)
    matching = [
        (policy, rule)
        for policy in about
        for rule in policy.rules
        if rule.direction == direction and rule_matches(rule, index, protocol, port, names)
    ]
    deciding = [pair for pair in matching if pair[1].deny] or matching
    where = f"{DIRECTIONS[direction]} of {own.name}"
    rules = [f"{rule.origin} of {policy.name}" for policy, rule in deciding]
    view = SideView(DIRECTIONS[direction], side.verdict, rules, list(side.enforced_by))
    if side.verdict == REDIRECT:
        view = _without_proxy(mesh, direction, own, seen, about, deciding, view)
    _gather_policies(mesh, about, deciding, side, found)
    closest = nearest_rule(direction, about, index, protocol, port, names) if side.denies and not rules else None
    if closest is not None:
        view = msgspec.structs.replace(view, nearest=closest.name, differs=list(closest.differs))
    found.sides.append(view)
    reasons = [_reason(where, view)]
    if side.denies and not rules:
        reasons += [
            f"{thing_name('policy', key)} cannot be read, so it closes its namespace: {refusals[0]}"
            for key, refusals in mesh.inputs(own.cluster).unreadable.items()
            if any(policy.key == key for policy in about)
        ]
    return reasons


def _without_proxy(
    mesh: Mesh, direction: int, own: End, seen: Labels, about: Sequence[ParsedPolicy],
    deciding: Sequence[tuple[ParsedPolicy, Rule]], view: SideView,
) -> SideView:  # fmt: skip
    """What the programs make of rules that look at requests: such a rule has no row (policy/resolve.py)."""
    settings = mesh.inputs(own.cluster).settings
    plain = [f"{rule.origin} of {policy.name}" for policy, rule in deciding if rule.requests is None]
    is_localhost = direction == POLICY_INGRESS and HOST_LABEL in seen and settings.allow_localhost != "policy"
    if plain or is_localhost or not enforces(about, direction, settings):
        return msgspec.structs.replace(view, verdict=ALLOW, rules=plain)
    return view


def _reason(where: str, view: SideView) -> str:
    if view.verdict == REDIRECT:
        return (
            f"{where}: {', '.join(view.rules)} allows only certain requests, which a proxy must look at; there is none "
            "yet, so the packet is dropped"
        )
    if view.rules:
        return f"{where}: {view.verdict} by {', '.join(view.rules)}"
    if not view.enforced_by:
        return f"{where}: {view.verdict}, as no policy enforces there"
    by = ", ".join(view.enforced_by)
    if view.verdict == ALLOW:
        return f"{where}: allow, as the node's own host is let in; {by} enforces there"
    if not view.nearest:
        return f"{where}: {view.verdict}, as {by} enforces there and no policy has a rule that allows anything"
    return f"{where}: {view.verdict}, as {by} enforces there and no rule allows it; nearest is {view.nearest}: " + (
        "; ".join(view.differs)
    )


def _gather_policies(
    mesh: Mesh, about: Sequence[ParsedPolicy], deciding: Iterable[tuple[ParsedPolicy, Rule]], side: Side, found: _Found
) -> None:
    names = {*side.by, *side.enforced_by, *(policy.name for policy, _ in deciding)}
    for policy in about:
        if policy.name in names and policy.key in mesh.state.policies:
            found.things["policy", policy.key] = None


# --- services -----------------------------------------------------------------------------------------------------


def _through_service(mesh: Mesh, source: End, target: End, protocol: int, port: int, found: _Found) -> str:
    assert isinstance(target.key, ObjectKey)
    service = mesh.state.services[target.key]
    cluster = source.cluster or mesh.cluster
    _gather_backing(mesh, service, target.key, found)
    name = f"service {thing_name('service', target.key)}"
    if service.headless:
        found.reasons.append(f"{name} is headless: it has no address, and its name leads to its pods themselves")
        return DENY
    if source.what == WORLD or source.text == "entity:world":
        found.reasons.append(f"{name}: its cluster addresses are for the mesh, and the network does not reach them")
        return DENY
    asked_on = source.key if isinstance(source.key, (EndpointKey, NodeKey)) else NodeKey("", "")
    where = NodeKey(cluster, asked_on.node if asked_on.cluster == cluster else "")
    row = _frontend(mesh, service, where, target.address, protocol, port)
    if row is None:
        has = ", ".join(f"{each.port}/{each.protocol}" for each in service.ports) or "none"
        found.reasons.append(f"{name} has no port {port_text(protocol, port)} in cluster {cluster}; it has {has}")
        return DENY
    if not row:
        found.reasons.append(f"{name} has no ready backend for {port_text(protocol, port)}")
        found.reasons += _why_no_backend(mesh, service)
        return DENY
    return _through_backends(mesh, name, row, found, partial(_judge_backend, mesh, source, protocol))


def _judge_backend(mesh: Mesh, source: End, protocol: int, backend: End, port: int, found: _Found) -> str:
    if source.what == ENDPOINT and backend.key == source.key:
        found.reasons.append(f"{backend.name} asks itself, which no policy is asked about")
        return ALLOW
    return _judged(mesh, source, backend, protocol, port, found)


def _through_exposed(
    mesh: Mesh, source: End, target: End, exposed: Exposed, protocol: int, port: int, found: _Found
) -> str:
    """A node port, or an address of a balancer or outside: by the node that is asked."""
    service, node = mesh.state.services[exposed.service], mesh.of_node(exposed.node)
    found.things["service", exposed.service] = None
    _gather_backing(mesh, service, exposed.service, found)
    asked = f"{target.address} {port_text(protocol, port)} of service {thing_name('service', exposed.service)}"
    name = f"{asked}, asked at node {'/'.join(exposed.node)}"
    if source.address and not exposed.is_inside and exposed.refuses(source.address):
        found.reasons.append(f"{name}: {source.address} is kept out by loadBalancerSourceRanges")
        return DENY
    if not exposed.backends:
        found.reasons.append(f"{name}: there is no backend for who asks there")
        found.reasons += _why_no_backend(mesh, service)
        return DENY

    def judge(backend: End, backend_port: int, part: _Found) -> str:
        if exposed.is_inside:
            return _judge_backend(mesh, source, protocol, backend, backend_port, part)
        sent = _judged(mesh, source, node, protocol, port, part, (POLICY_EGRESS,)) if source.what == ENDPOINT else ALLOW
        keeps = exposed.keeps_client(mesh.state, source, backend.address)
        if not keeps:
            part.notes.append(f"{backend.address} is asked in the name of node {'/'.join(exposed.node)}")
        met = _judged(mesh, source if keeps else node, backend, protocol, backend_port, part, (POLICY_INGRESS,))
        return DENY if DENY in (sent, met) else ALLOW

    verdict = _through_backends(mesh, name, exposed.backends, found, judge)
    found.notes.append(name)
    return verdict


def _through_backends(
    mesh: Mesh,
    name: str,
    row: Sequence[tuple[str, int]],
    found: _Found,
    judge: Callable[[End, int, _Found], str],
) -> str:
    verdicts: dict[str, None] = {}
    kept = _Found()
    for address, port in row:
        backend, part = mesh.at_address(address), _Found()
        _gather_end(mesh, backend, part)
        verdict = judge(backend, port, part)
        found.paths.append(f"{address}:{port} {backend.text}: {verdict}; {part.reasons[0]}")
        if verdict not in verdicts and (DENY not in verdicts):
            kept = part
        verdicts[verdict] = None
        found.things.update(part.things)
        found.notes += part.notes
    found.sides += kept.sides
    verdict = MIXED if len(verdicts) > 1 else next(iter(verdicts))
    if verdict == MIXED:
        found.reasons.append(f"{name} leads to {len(row)} backends, and policies let only some be reached")
    found.reasons += kept.reasons
    return verdict


def _frontend(
    mesh: Mesh, service: Service, where: NodeKey, address: str, protocol: int, port: int
) -> list[tuple[str, int]] | None:
    """The backends of a frontend as a node's kernel holds them; None where there is no such frontend."""
    if protocol not in PROTOCOL_NUMBERS.values() or not address:
        return None
    compiler = ServiceCompiler(*where)
    compiler.full(mesh.state)
    key = service_key(where.cluster, service.namespace, service.name)
    frontend = compiler.frontends(key).get(ServiceKey(address_bytes(address), port, protocol))
    if frontend is None:
        return None
    choice = frontend.choice
    return [(address_text(member.address), member.port) for member in choice.members[: choice.count]]


def _selected(mesh: Mesh, service: Service) -> list[tuple[ObjectKey, Workload]]:
    if not service.selector:
        return []
    return [
        (key, workload)
        for key, workload in sorted(mesh.state.workloads.items())
        if (key.cluster, key.namespace) == (service.cluster, service.namespace)
        and all(workload.labels.get(name) == value for name, value in service.selector.items())
    ]


def _gather_backing(mesh: Mesh, service: Service, key: ObjectKey, found: _Found) -> None:
    for each in mesh.state.service_slices.get(key, ()):
        found.things["backends", each] = None
    for each, workload in _selected(mesh, service):
        if not workload.ready:
            found.things["workload", each] = None


def _why_no_backend(mesh: Mesh, service: Service) -> list[str]:
    if not service.selector:
        return ["it has no selector, and no EndpointSlice of it has a ready address"]
    wanted = ",".join(f"{name}={value}" for name, value in sorted(service.selector.items()))
    selected = _selected(mesh, service)
    if not selected:
        return [f"no workload of namespace {service.namespace} has the labels {wanted}"]
    reasons = []
    for key, workload in selected:
        attached = mesh.state.workload_endpoints.get((key.cluster, key.namespace, key.name))
        why = "is not ready" if not workload.ready else "has no endpoint" if not attached else "has no such target port"
        reasons.append(f"workload {thing_name('workload', key)} is selected and {why}")
    return reasons


# --- nodes --------------------------------------------------------------------------------------------------------


def _not_applied(source: End, target: End, evidence: Sequence[Evidence], realized: Realized) -> list[str]:
    """One note for each node of the flow that has not reported all records behind the answer as realized."""
    notes = []
    for end in (source, target):
        if not isinstance(end.key, (EndpointKey, NodeKey)):
            continue
        where = NodeKey(end.key.cluster, end.key.node)
        held = realized.get(where)
        late = [each for each in evidence if held is not None and each.revision > held]
        if late:
            first = min(late, key=lambda each: each.revision)
            more = f" and {len(late) - 1} more" if len(late) > 1 else ""
            so_far = f"has realized up to revision {held} only" if held and held > 0 else "has reported nothing yet"
            notes.append(
                f"node {'/'.join(where)} {so_far}: revision {first.revision} ({first.event}, {first.about}){more} "
                f"may not be in its kernel yet"
            )
    return list(dict.fromkeys(notes))
