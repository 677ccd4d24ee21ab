"""Kubernetes EndpointSlice manifests as commands. Pure.

Belongs here: their fields, with conditions and hints. Does not belong here: which backends are chosen (desired/).
"""

import ipaddress
from collections.abc import Mapping
from typing import Any, Protocol

from controlplane.balancing import WEIGHT_ANNOTATION
from controlplane.commands.service import ReportBackends
from controlplane.fields import Reading, path_of
from controlplane.model import Backend, ServicePort
from controlplane.policy.rules import PORT_MAX
from controlplane.projections.workloads import PROTOCOLS, WEIGHT_MAX

SLICE_FIELDS = ("apiVersion", "kind", "metadata", "addressType", "endpoints", "ports")
ENDPOINT_FIELDS = (
    "addresses",
    "conditions",
    "nodeName",
    "hostname",
    "targetRef",
    "zone",
    "deprecatedTopology",
    "hints",
)
"""Of these `hostname`, `targetRef` and `deprecatedTopology` name an endpoint and choose nothing."""
SERVICE_NAME_LABEL = "kubernetes.io/service-name"
IP_FAMILIES = ("IPv4", "IPv6")


class Named(Protocol):
    """The metadata of the document, checked."""

    name: str
    namespace: str
    labels: dict[str, str]
    annotations: dict[str, str]


def read_backends(reading: Reading, metadata: Named, document: Mapping[str, Any]) -> ReportBackends:
    fields = reading.mapping(document, "", SLICE_FIELDS)
    service = metadata.labels.get(SERVICE_NAME_LABEL, "")
    if not service:
        path = f"metadata.labels[{SERVICE_NAME_LABEL}]"
        reading.refuse(path, None, "is required: the Service whose backends these are")
    family = reading.one_of(fields.get("addressType"), "addressType", IP_FAMILIES)
    if "addressType" not in fields:
        reading.refuse("addressType", None, f"is required: one of {', '.join(IP_FAMILIES)}")
    listed = reading.sequence(fields.get("endpoints"), "endpoints")
    ports = reading.sequence(fields.get("ports"), "ports")
    return ReportBackends(
        namespace=metadata.namespace,
        name=metadata.name,
        service=service,
        backends=tuple(_backend(reading, item, f"endpoints[{n}]", family) for n, item in enumerate(listed)),
        ports=tuple(_backend_port(reading, item, f"ports[{n}]") for n, item in enumerate(ports)),
        weight=read_weight(reading, metadata.annotations),
    )


def read_weight(reading: Reading, annotations: Mapping[str, str]) -> int:
    """Of a Pod's or a slice's annotations; 1 where they say nothing."""
    text = annotations.get(WEIGHT_ANNOTATION, "1")
    if text.isascii() and text.isdigit() and int(text) <= WEIGHT_MAX:
        return int(text)
    reading.refuse(f"metadata.annotations[{WEIGHT_ANNOTATION}]", text, f"must be a number from 0 to {WEIGHT_MAX}")
    return 1


def read_address(reading: Reading, value: Any, path: str, family: str = "") -> str:
    """In canonical form, or "" after a refusal."""
    try:
        address = ipaddress.ip_address(value) if isinstance(value, str) else None
    except ValueError:
        address = None
    if address is None or (family and f"IPv{address.version}" != family) or "%" in str(address):
        reading.refuse(path, value, f"must be an {family or 'IP'} address")
        return ""
    return str(address)


def _backend(reading: Reading, item: Any, path: str, family: str) -> Backend:
    fields = reading.mapping(item, path, ENDPOINT_FIELDS)
    where = path_of(path, "addresses")
    addresses = reading.sequence(fields.get("addresses"), where)
    if len(addresses) != 1:
        reading.refuse(where, fields.get("addresses"), "must hold one address; write an endpoint for each")
    conditions = path_of(path, "conditions")
    known = reading.mapping(fields.get("conditions"), conditions, ("ready", "serving", "terminating"))
    ready = reading.flag(known.get("ready"), path_of(conditions, "ready"), True)
    hints = path_of(path, "hints")
    hinted = reading.mapping(fields.get("hints"), hints, ("forZones", "forNodes"))
    return Backend(
        address=read_address(reading, addresses[0], f"{where}[0]", family) if addresses else "",
        ready=ready,
        node=reading.text(fields.get("nodeName"), path_of(path, "nodeName")),
        serving=reading.flag(known.get("serving"), path_of(conditions, "serving"), ready),
        terminating=reading.flag(known.get("terminating"), path_of(conditions, "terminating"), False),
        zone=reading.text(fields.get("zone"), path_of(path, "zone")),
        for_zones=_hinted(reading, hinted.get("forZones"), path_of(hints, "forZones")),
        for_nodes=_hinted(reading, hinted.get("forNodes"), path_of(hints, "forNodes")),
    )


def _hinted(reading: Reading, value: Any, path: str) -> tuple[str, ...]:
    found = []
    for number, item in enumerate(reading.sequence(value, path)):
        fields = reading.mapping(item, f"{path}[{number}]", ("name",))
        found.append(reading.text(fields.get("name"), f"{path}[{number}].name", required=True))
    return tuple(sorted(dict.fromkeys(found)))


def _backend_port(reading: Reading, item: Any, path: str) -> ServicePort:
    fields = reading.mapping(item, path, ("name", "port", "protocol", "appProtocol"))
    port = reading.number(fields.get("port"), path_of(path, "port"), 1, PORT_MAX) or 0
    protocol = reading.one_of(fields.get("protocol"), path_of(path, "protocol"), PROTOCOLS, "TCP")
    return ServicePort(reading.text(fields.get("name"), path_of(path, "name")), port, protocol, port)
