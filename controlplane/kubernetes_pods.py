"""Kubernetes Pod manifests as commands. Pure.

Belongs here: what of a Pod decides where packets go: labels, ports, readiness. Does not belong here: its endpoint,
which comes to be when the node's CNI plugin is called.
"""

import re
from collections.abc import Iterator, Mapping
from decimal import Decimal
from typing import Any

from controlplane.commands.workload import ApplyWorkload
from controlplane.fields import Reading, path_of
from controlplane.kubernetes_slices import Named, read_address, read_weight
from controlplane.model import HostPort
from controlplane.policy.rules import PORT_MAX, PROTOCOLS
from controlplane.projections.workloads import bandwidth_fault

POD_SPEC_READ = (
    "containers",
    "initContainers",
    "nodeName",
    "serviceAccountName",
    "serviceAccount",
    "hostNetwork",
)
POD_SPEC_IGNORED = (
    "activeDeadlineSeconds",
    "affinity",
    "automountServiceAccountToken",
    "dnsConfig",
    "dnsPolicy",
    "enableServiceLinks",
    "ephemeralContainers",
    "hostAliases",
    "hostIPC",
    "hostPID",
    "hostUsers",
    "hostname",
    "hostnameOverride",
    "imagePullSecrets",
    "nodeSelector",
    "os",
    "overhead",
    "preemptionPolicy",
    "priority",
    "priorityClassName",
    "readinessGates",
    "resourceClaims",
    "resources",
    "restartPolicy",
    "runtimeClassName",
    "schedulerName",
    "schedulingGates",
    "securityContext",
    "setHostnameAsFQDN",
    "shareProcessNamespace",
    "subdomain",
    "terminationGracePeriodSeconds",
    "tolerations",
    "topologySpreadConstraints",
    "volumes",
    "workloadRef",
)
"""A Pod's spec is the platform's: these fields place and run it, and no packet depends on them."""

CONTAINER_PORT_FIELDS = ("name", "containerPort", "protocol", "hostPort", "hostIP")
ENDED = ("Succeeded", "Failed")
"""Phases of a Pod that will never serve again."""
EGRESS_BANDWIDTH, INGRESS_BANDWIDTH = "kubernetes.io/egress-bandwidth", "kubernetes.io/ingress-bandwidth"
SOCKOPS = "pod.meshlog.io/sockops"
"""Whether the pod's sockets may be joined, where its node does that: on or off."""
QUANTITY_SUFFIXES = {
    "": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "P": 10**15,
    "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40,
}  # fmt: skip
QUANTITY = re.compile(r"([0-9]{1,16}(?:\.[0-9]{1,9})?(?:[eE][0-9]{1,2})?)(|k|M|G|T|P|Ki|Mi|Gi|Ti)")
ANY_ADDRESS = ("0.0.0.0", "::")

Fields = Mapping[str, Any]


def read_pod(reading: Reading, metadata: Named, document: Mapping[str, Any]) -> ApplyWorkload:
    fields = reading.mapping(document, "", ("apiVersion", "kind", "metadata", "spec", "status"))
    spec = reading.mapping(fields.get("spec"), "spec", (*POD_SPEC_READ, *POD_SPEC_IGNORED))
    hosted = reading.flag(spec.get("hostNetwork"), "spec.hostNetwork", False)
    account = spec.get("serviceAccountName", spec.get("serviceAccount"))
    node = spec.get("nodeName")
    ports = tuple(_container_ports(reading, spec))
    return ApplyWorkload(
        namespace=metadata.namespace,
        name=metadata.name,
        labels=metadata.labels,
        ready=_is_ready(reading, fields.get("status")),
        service_account=reading.text(account, "spec.serviceAccountName"),
        ports=_named_ports(reading, ports),
        node=reading.dns_subdomain(node, "spec.nodeName") if node else "",
        host_ports=() if hosted else tuple(_host_ports(reading, ports)),
        host_network=hosted,
        terminating=reading.mapping(fields.get("metadata"), "metadata").get("deletionTimestamp") is not None,
        weight=read_weight(reading, metadata.annotations),
        egress_bits_s=read_bandwidth(reading, metadata.annotations, EGRESS_BANDWIDTH),
        ingress_bits_s=read_bandwidth(reading, metadata.annotations, INGRESS_BANDWIDTH),
        joins_sockets=read_sockops(reading, metadata.annotations),
    )


def read_bandwidth(reading: Reading, annotations: Mapping[str, str], name: str) -> int:
    """Bits per second of a Kubernetes quantity such as 10M, 1.5Gi or 1e6; 0 where the annotation is absent."""
    text = annotations.get(name)
    if text is None:
        return 0
    found = QUANTITY.fullmatch(text)
    bits_s = int(Decimal(found[1]) * QUANTITY_SUFFIXES[found[2]]) if found else 0
    if bits_s and not bandwidth_fault(bits_s):
        return bits_s
    reading.refuse(
        f"metadata.annotations[{name}]", text, "must be bits per second between 1k and 1P, such as 10M or 1Gi"
    )
    return 0


def read_sockops(reading: Reading, annotations: Mapping[str, str]) -> bool:
    """Not, where the annotation says "off"."""
    text = annotations.get(SOCKOPS, "on")
    if text not in ("on", "off"):
        reading.refuse(f"metadata.annotations[{SOCKOPS}]", text, "must be on or off")
    return text != "off"


def _is_ready(reading: Reading, status: Any) -> bool:
    """What condition Ready says; a pod without it counts as ready, since a manifest of one has no status."""
    fields = reading.mapping(status, "status")
    if fields.get("phase") in ENDED:
        return False
    for number, item in enumerate(reading.sequence(fields.get("conditions"), "status.conditions")):
        condition = reading.mapping(item, f"status.conditions[{number}]")
        if condition.get("type") == "Ready":
            path = f"status.conditions[{number}].status"
            return reading.one_of(condition.get("status"), path, ("True", "False", "Unknown"), "True") == "True"
    return True


def _container_ports(reading: Reading, spec: Fields) -> Iterator[tuple[str, Fields, int, str]]:
    """(path, fields, number, protocol) of the ports of containers, and of init containers that keep running."""
    for field in ("containers", "initContainers"):
        for number, item in enumerate(reading.sequence(spec.get(field), f"spec.{field}")):
            path = f"spec.{field}[{number}]"
            container = reading.mapping(item, path)
            ends = field == "initContainers" and container.get("restartPolicy") != "Always"
            where = path_of(path, "ports")
            for position, port in enumerate(reading.sequence(container.get("ports"), where)):
                found = _container_port(reading, port, f"{where}[{position}]")
                if not ends:
                    yield found


def _container_port(reading: Reading, item: Any, path: str) -> tuple[str, Fields, int, str]:
    port = reading.mapping(item, path, CONTAINER_PORT_FIELDS)
    number = reading.number(port.get("containerPort"), path_of(path, "containerPort"), 1, PORT_MAX)
    protocol = reading.one_of(port.get("protocol"), path_of(path, "protocol"), tuple(PROTOCOLS), "TCP")
    return path, port, number or 0, protocol


def _named_ports(
    reading: Reading, ports: tuple[tuple[str, Fields, int, str], ...]
) -> dict[str, tuple[int, str]]:
    """Ports with a name; the first of a name counts."""
    found: dict[str, tuple[int, str]] = {}
    for path, fields, number, protocol in ports:
        name = reading.text(fields.get("name"), path_of(path, "name"))
        if name:
            found.setdefault(name, (number, protocol))
    return found


def _host_ports(reading: Reading, ports: tuple[tuple[str, Fields, int, str], ...]) -> Iterator[HostPort]:
    for path, fields, number, protocol in ports:
        if fields.get("hostPort"):
            given = fields.get("hostIP")
            address = read_address(reading, given, path_of(path, "hostIP")) if given else ""
            host_port = reading.number(fields["hostPort"], path_of(path, "hostPort"), 1, PORT_MAX) or 0
            yield HostPort(host_port, number, protocol, "" if address in ANY_ADDRESS else address)
