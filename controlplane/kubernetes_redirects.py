"""CiliumLocalRedirectPolicy manifests as commands. Pure.

Belongs here: their fields. Does not belong here: which workloads of a node are chosen (desired/redirects.py).
"""

from collections.abc import Mapping
from typing import Any

from controlplane.commands.redirect import ApplyLocalRedirect
from controlplane.fields import Reading, path_of
from controlplane.kubernetes_slices import Named, read_address
from controlplane.model import ServicePort
from controlplane.policy.rules import PORT_MAX

TOP_FIELDS = ("apiVersion", "kind", "metadata", "spec", "status")
SPEC_FIELDS = ("redirectFrontend", "redirectBackend", "description")
SKIP = (
    "is not supported: a frontend's row holds for everyone who asks on the node, so the backend itself would be "
    "redirected too; remove it"
)
PORT_FIELDS = ("port", "protocol", "name")
PROTOCOLS = ("TCP", "UDP")
SOURCES = ("k8s:", "any:")

Port = tuple[str, int, str]
"""Name, number, protocol."""


def read_redirect(reading: Reading, metadata: Named, document: Mapping[str, Any]) -> ApplyLocalRedirect:
    fields = reading.mapping(document, "", TOP_FIELDS)
    spec = reading.mapping(fields.get("spec"), "spec", SPEC_FIELDS, {"skipRedirectFromBackend": SKIP})
    path = "spec.redirectFrontend"
    frontend = reading.mapping(spec.get("redirectFrontend"), path, ("addressMatcher", "serviceMatcher"))
    if len(frontend) != 1:
        reading.refuse(path, spec.get("redirectFrontend"), "needs addressMatcher or serviceMatcher, and not both")
    address = service = ""
    asked: tuple[Port, ...] = ()
    if "addressMatcher" in frontend:
        where = path_of(path, "addressMatcher")
        matcher = reading.mapping(frontend["addressMatcher"], where, ("ip", "toPorts"))
        address = read_address(reading, matcher.get("ip"), path_of(where, "ip"))
        asked = _ports(reading, matcher.get("toPorts"), path_of(where, "toPorts"), required=True)
    elif "serviceMatcher" in frontend:
        where = path_of(path, "serviceMatcher")
        matcher = reading.mapping(frontend["serviceMatcher"], where, ("serviceName", "namespace", "toPorts"))
        service = reading.dns_label(matcher.get("serviceName"), path_of(where, "serviceName"))
        namespace = reading.text(matcher.get("namespace"), path_of(where, "namespace"), required=True)
        if namespace and namespace != metadata.namespace:
            reason = f"must be the policy's own namespace, {metadata.namespace}"
            reading.refuse(path_of(where, "namespace"), namespace, reason)
        asked = _ports(reading, matcher.get("toPorts"), path_of(where, "toPorts"))
    path = "spec.redirectBackend"
    backend = reading.mapping(spec.get("redirectBackend"), path, ("localEndpointSelector", "toPorts"))
    targets = _ports(reading, backend.get("toPorts"), path_of(path, "toPorts"), required=True)
    return ApplyLocalRedirect(
        metadata.namespace,
        metadata.name,
        address,
        service,
        _paired(reading, asked, targets, path_of(path, "toPorts")),
        _selector(reading, backend.get("localEndpointSelector"), path_of(path, "localEndpointSelector")),
        not asked,
    )


def _ports(reading: Reading, value: Any, path: str, *, required: bool = False) -> tuple[Port, ...]:
    listed = reading.sequence(value, path)
    if required and not listed:
        reading.refuse(path, value, "needs at least one port")
    found = tuple(_port(reading, item, f"{path}[{n}]", len(listed) > 1) for n, item in enumerate(listed))
    for number, (name, _, _) in enumerate(found):
        if name and any(name == earlier for earlier, _, _ in found[:number]):
            reading.refuse(f"{path}[{number}].name", name, "is the name of an earlier port too")
    return found


def _port(reading: Reading, item: Any, path: str, needs_name: bool) -> Port:
    fields = reading.mapping(item, path, PORT_FIELDS)
    given = fields.get("port")
    number = int(given) if isinstance(given, str) and given.isascii() and given.isdigit() else given
    name = reading.text(fields.get("name"), path_of(path, "name"), required=needs_name)
    protocol = reading.one_of(fields.get("protocol"), path_of(path, "protocol"), PROTOCOLS)
    if not protocol and fields.get("protocol") is None:
        reading.refuse(path_of(path, "protocol"), None, f"is required: {' or '.join(PROTOCOLS)}")
    return name, reading.number(number, path_of(path, "port"), 1, PORT_MAX) or 1, protocol or "TCP"


def _paired(
    reading: Reading, asked: tuple[Port, ...], targets: tuple[Port, ...], path: str
) -> tuple[ServicePort, ...]:
    """Each frontend's port with that of the workloads: of the same name, or the only one of each."""
    if not asked:
        return tuple(ServicePort(name, number, protocol, number) for name, number, protocol in targets)
    found = []
    for name, number, protocol in asked:
        single = len(asked) == len(targets) == 1
        twins = [each for each in targets if each[2] == protocol and (single or each[0] == name)]
        if not twins:
            reading.refuse(path, None, f"has no {protocol} port {name or number} of the frontend")
        else:
            found.append(ServicePort(name, number, protocol, twins[0][1]))
    return tuple(found)


def _selector(reading: Reading, value: Any, path: str) -> dict[str, str]:
    expressions = {"matchExpressions": "is not supported; write matchLabels"}
    fields = reading.mapping(value, path, ("matchLabels",), expressions)
    given = reading.mapping(fields.get("matchLabels"), path_of(path, "matchLabels"))
    labels = {_without_source(key): item for key, item in given.items()}
    if not labels:
        reading.refuse(path, value, "needs matchLabels with at least one label")
    return reading.labels(labels, path_of(path, "matchLabels"))


def _without_source(key: str) -> str:
    return next((key.removeprefix(source) for source in SOURCES if key.startswith(source)), key)
