"""The tables that one node's kernel should hold, as a document for people and programs. Pure.

Belongs here: the shape of what `render` prints. Does not belong here: deriving (desired/), reading manifests
(kubernetes_state.py).
"""

from collections.abc import Mapping
from typing import Any

from controlplane.api import kernel_views
from controlplane.api.service_views import FrontendView, backend_item, frontend_views
from controlplane.desired.derive import Deriver
from controlplane.desired.services import ServiceCompiler
from controlplane.model import RESERVED_IDENTITIES, Endpoint, NodeKey
from controlplane.projections.state import State
from datapath import codec
from datapath.abi.types import SERVICE_DSR
from datapath.addressing import protocol_name
from datapath.codec import address_text, prefix_text
from datapath.tables import NO_ADDRESS

Document = dict[str, Any]


def render(state: State, where: NodeKey) -> Document:
    """Everything, each list in a fixed order."""
    deriver = Deriver(*where)
    tables = deriver.full(state).tables
    labels = identity_labels(state, deriver)
    return {
        "node": where.node,
        "cluster": where.cluster,
        "services": [_frontend(state, view) for view in frontend_views(deriver.services)],
        "health_checks": _health_checks(deriver.services),
        "policy": _policy(state, where, tables, labels),
        "ipcache": _ipcache(tables, labels),
        "routes": _routes(state, where, tables),
        "endpoints": [_endpoint(each) for each in state.endpoints_of(where)],
    }


def identity_labels(state: State, deriver: Deriver) -> dict[int, list[str]]:
    """Labels by number, of everything that the node knows."""
    found = {number: [f"reserved:{name}"] for name, number in RESERVED_IDENTITIES.items()}
    found.update({number: list(labels) for number, labels in deriver.derived_labels.items()})
    found.update({number: list(each.labels) for number, each in state.identities.items()})
    return found


def _frontend(state: State, view: FrontendView) -> Document:
    frontend, choice = view.frontend, view.frontend.choice
    backends = [
        backend_item(state, view.unit.cluster, member, slot < choice.count)
        for slot, member in enumerate(choice.members)
    ]
    return {
        "namespace": view.unit.namespace,
        "name": view.unit.name,
        "kind": view.unit.kind,
        "type": view.type,
        "frontend": {
            "address": address_text(view.key.address),
            "port": view.key.port,
            "protocol": protocol_name(view.key.protocol),
            "scope": view.scope,
        },
        "flags": view.flags,
        "backends": [
            {
                "address": each.address,
                "port": each.port,
                "state": each.state,
                "weight": each.weight,
                "node": each.node,
                "cluster": each.cluster or view.unit.cluster,
                "selected": each.selected,
            }
            for each in backends
        ],
        "session_affinity_s": frontend.affinity_s,
        "source_ranges": list(frontend.ranges),
        "algorithm": "maglev" if choice.maglev else "random",
        "forwarding_mode": "dsr" if frontend.flags & SERVICE_DSR else "snat",
    }


def _health_checks(services: ServiceCompiler) -> list[Document]:
    return [
        {"namespace": key.namespace, "name": key.name, "port": port, "local_backends": services.local_backends(key)}
        for key, port in services.health_checks()
    ]


def _policy(
    state: State, where: NodeKey, tables: Mapping[str, Any], labels: Mapping[int, list[str]]
) -> list[Document]:
    encoded = {name: codec.encode_rows(name, tables[name]) for name in ("policy", "policy_subjects")}
    rows: dict[int, list[Document]] = {}
    for row in kernel_views.kernel_rows("policy", encoded):
        rows.setdefault(row["subject_identity"], []).append(row)
    subjects = {key.identity: row for key, row in tables["policy_subjects"].items()}
    users: dict[int, list[str]] = {}
    for endpoint in state.endpoints_of(where):
        users.setdefault(endpoint.identity, []).append(f"{endpoint.namespace}/{endpoint.workload}")
    return [
        {
            "identity": number,
            "labels": labels.get(number, []),
            "endpoints": users.get(number, []),
            "ingress_enforced": bool(subjects[number].ingress_enforced) if number in subjects else False,
            "egress_enforced": bool(subjects[number].egress_enforced) if number in subjects else False,
            "rows": [_policy_row(row, labels) for row in rows.get(number, []) if row["verdict"] != "default deny"],
        }
        for number in sorted({*users, *subjects})
    ]


def _policy_row(row: Mapping[str, Any], labels: Mapping[int, list[str]]) -> Document:
    """`ports` "any", "80" or "80-95"; of ICMP the type."""
    first, width = row["port"], row["port_prefix"]
    last = first + (1 << 16 - width) - 1
    ports = "any" if not width else str(first) if first == last else f"{first}-{last}"
    remote = row["remote_identity"]
    return {
        "direction": row["direction"],
        "verdict": row["verdict"],
        "remote_identity": remote,
        "remote_labels": labels.get(remote, []) if remote else ["any"],
        "protocol": row["protocol"],
        "ports": ports,
    }


def _ipcache(tables: Mapping[str, Any], labels: Mapping[int, list[str]]) -> list[Document]:
    rows = kernel_views.kernel_rows("ipcache", {"ipcache": codec.encode_rows("ipcache", tables["ipcache"])})
    return [{**row, "labels": labels.get(row["identity"], [])} for row in rows]


def _routes(state: State, where: NodeKey, tables: Mapping[str, Any]) -> list[Document]:
    """`endpoint` of a route to one of the node's own; `gateway` of one to another node's."""
    names = {each.device.ifindex: f"{each.namespace}/{each.workload}" for each in state.endpoints_of(where)}
    return [
        {
            "prefix": prefix_text(*key),
            "gateway": "" if row.gateway == NO_ADDRESS else address_text(row.gateway),
            "endpoint": names.get(row.ifindex, "") if row.gateway == NO_ADDRESS else "",
        }
        for key, row in sorted(tables["routes"].items())
    ]


def _endpoint(found: Endpoint) -> Document:
    return {
        "namespace": found.namespace,
        "name": found.workload,
        "identity": found.identity,
        "labels": list(found.labels),
        "ipv4": found.ipv4,
        "ipv6": found.ipv6,
    }
