"""Manifests of whole clusters as the mesh that policies see, without a running one. Pure.

Belongs here: which fields of which kinds a verdict depends on. A field of a Pod, Node, Service or EndpointSlice that no
verdict depends on is passed over; a policy or group is understood exactly or refused. Does not belong here: files
(kubernetes.py), verdicts (policy/mesh.py).
"""

from collections.abc import Mapping, Sequence
from ipaddress import ip_address
from typing import Any

import msgspec

from controlplane.fields import Reading, Refusal, path_of
from controlplane.kubernetes_metadata import NAMESPACE_NAME_LABEL, Metadata
from controlplane.labels import label_fault
from controlplane.model import API_SERVER_SERVICE, CidrGroup, Labels
from controlplane.policy.cidr_groups import API_VERSIONS as GROUP_VERSIONS
from controlplane.policy.cidr_groups import KIND as GROUP
from controlplane.policy.cidr_groups import read_group
from controlplane.policy.identity_labels import identity_labels
from controlplane.policy.manifests import API_VERSIONS, parse
from controlplane.policy.mesh import Mesh, MeshCluster, MeshEndpoint, MeshNode
from controlplane.policy.names import canonical_name, name_fault
from controlplane.policy.rules import PORT_MAX, PROTOCOLS, NamedPorts, ParsedPolicy
from controlplane.policy.services import ServiceView
from controlplane.policy.settings import PolicySettings

ENDED = ("Succeeded", "Failed")
"""Phases in which a pod's address is another's to take."""
SERVICE_NAME_LABEL = "kubernetes.io/service-name"
READ = ("Namespace", "Node", "Pod", "Service", "EndpointSlice", GROUP, *API_VERSIONS)


class Refused(msgspec.Struct, frozen=True):
    """A document that cannot be used: where it stands, and everything that is wrong with it."""

    source: str
    refusals: tuple[Refusal, ...]


class MeshReader:
    """Takes documents one by one; `mesh` puts them together. `refused` and `skipped` say what was not taken."""

    def __init__(self, cluster: str, settings: PolicySettings) -> None:
        self._cluster = cluster
        self._settings = settings
        self.refused: list[Refused] = []
        self.skipped: list[tuple[str, str]] = []
        """(source, kind) of documents that no verdict depends on."""
        self._clusters: dict[str, None] = {}
        self._namespaces: dict[tuple[str, str], dict[str, str]] = {}
        self._endpoints: dict[tuple[str, str, str], tuple[MeshEndpoint, dict[str, str], str]] = {}
        self._nodes: dict[tuple[str, str], MeshNode] = {}
        self._hosted: dict[tuple[str, str, str], str] = {}
        """Workloads of a host's network, and their node."""
        self._mentioned: dict[tuple[str, str], dict[str, None]] = {}
        """Nodes that workloads are on, and addresses that those of the host's network have."""
        self._services: dict[tuple[str, str, str], ServiceView] = {}
        self._slices: dict[tuple[str, str, str], tuple[str, tuple[str, ...]]] = {}
        self._policies: dict[Any, ParsedPolicy] = {}
        self._groups: dict[tuple[str, str], CidrGroup] = {}

    def take(self, document: Any, source: str, cluster: str) -> None:
        """A later document of the same kind and name takes the place of an earlier one."""
        self._clusters[cluster] = None
        reading = Reading()
        kind = document.get("kind") if isinstance(document, dict) else None
        if not isinstance(kind, str):
            self.refused.append(Refused(source, (Refusal("kind", "", "is required"),)))
            return
        if kind not in READ:
            self.skipped.append((source, kind))
            return
        readers = {
            "Namespace": self._namespace,
            "Node": self._node,
            "Pod": self._workload,
            "Service": self._service,
            "EndpointSlice": self._slice,
            GROUP: self._group,
        }
        metadata = Metadata(reading, document, kind)
        readers.get(kind, self._policy)(reading, metadata, document, cluster)
        if reading.refusals:
            self.refused.append(Refused(source, tuple(dict.fromkeys(reading.refusals))))

    def mesh(self, names: Mapping[str, Sequence[str]], address_labels: Mapping[str, Labels]) -> Mesh:
        clusters = self._clusters or {self._cluster: None}
        return Mesh(
            cluster=self._cluster if self._cluster in clusters else next(iter(clusters)),
            clusters={name: self._mesh_cluster(name) for name in clusters},
            endpoints=[self._labelled(*self._endpoints[key]) for key in sorted(self._endpoints)],
            nodes=[self._node_of(key) for key in sorted({*self._nodes, *self._mentioned})],
            hosted=self._hosted,
            names=names,
            address_labels=address_labels,
        )

    def _node_of(self, key: tuple[str, str]) -> MeshNode:
        """Of one that has no manifest, what its workloads tell."""
        return self._nodes.get(key) or MeshNode(*key, tuple(each for each in self._mentioned[key] if each))

    def _api_servers(self, cluster: str) -> tuple[str, ...]:
        """The addresses behind service kubernetes, as Cilium finds them, and those of the settings."""
        wanted = (cluster, *API_SERVER_SERVICE)
        behind = [listed for place, (name, listed) in self._slices.items() if (*place[:2], name) == wanted]
        return tuple(sorted({*self._settings.api_servers, *(each for listed in behind for each in listed)}))

    def _mesh_cluster(self, cluster: str) -> MeshCluster:
        return MeshCluster(
            tuple(self._policies[key] for key in sorted(self._policies) if key.cluster == cluster),
            tuple(self._with_slices(key) for key in sorted(self._services) if key[0] == cluster),
            tuple(self._groups[key] for key in sorted(self._groups) if key[0] == cluster),
            self._settings,
            self._api_servers(cluster),
        )

    def _with_slices(self, key: tuple[str, str, str]) -> ServiceView:
        service = self._services[key]
        if service.selector:
            return service
        found = [each for place, (name, listed) in self._slices.items() if (*place[:2], name) == key for each in listed]
        return msgspec.structs.replace(service, addresses=tuple(sorted(set(found))))

    def _labelled(self, endpoint: MeshEndpoint, own: dict[str, str], account: str) -> MeshEndpoint:
        known = self._namespaces.get((endpoint.cluster, endpoint.namespace), {})
        namespace = {**known, NAMESPACE_NAME_LABEL: endpoint.namespace}
        patterns = self._settings.labels
        labels = identity_labels(endpoint.cluster, endpoint.namespace, namespace, own, account, patterns)
        return msgspec.structs.replace(endpoint, labels=labels)

    def _namespace(self, reading: Reading, metadata: Metadata, document: dict[str, Any], cluster: str) -> None:
        self._namespaces[cluster, metadata.name] = metadata.labels

    def _node(self, reading: Reading, metadata: Metadata, document: dict[str, Any], cluster: str) -> None:
        status = reading.mapping(document.get("status"), "status")
        addresses = []
        for number, item in enumerate(reading.sequence(status.get("addresses"), "status.addresses")):
            path = f"status.addresses[{number}]"
            fields = reading.mapping(item, path)
            if fields.get("type") in ("InternalIP", "ExternalIP"):
                addresses.append(_address(reading, fields.get("address"), path_of(path, "address")))
        self._nodes[cluster, metadata.name] = MeshNode(
            cluster, metadata.name, tuple(each for each in addresses if each), metadata.labels
        )

    def _workload(self, reading: Reading, metadata: Metadata, document: dict[str, Any], cluster: str) -> None:
        spec = reading.mapping(document.get("spec"), "spec")
        status = reading.mapping(document.get("status"), "status")
        node = reading.text(spec.get("nodeName"), "spec.nodeName")
        given = [
            status.get("podIP"),
            *(_field(item, "ip") for item in reading.sequence(status.get("podIPs"), "status.podIPs")),
        ]
        addresses = dict.fromkeys(_address(reading, each, "status.podIP") for each in given if each)
        if node:
            self._mentioned.setdefault((cluster, node), {})
        if reading.flag(spec.get("hostNetwork"), "spec.hostNetwork", False):
            self._hosted[cluster, metadata.namespace, metadata.name] = node
            if node:
                self._mentioned[cluster, node].update(addresses)
            return
        if status.get("phase") in ENDED:
            addresses = {}
        account = spec.get("serviceAccountName", spec.get("serviceAccount"))
        endpoint = MeshEndpoint(
            cluster,
            metadata.namespace,
            metadata.name,
            (),
            tuple(each for each in addresses if each),
            _named_ports(reading, spec),
            node,
        )
        key = (cluster, metadata.namespace, metadata.name)
        self._endpoints[key] = endpoint, metadata.labels, reading.text(account, "spec.serviceAccountName")

    def _service(self, reading: Reading, metadata: Metadata, document: dict[str, Any], cluster: str) -> None:
        spec = reading.mapping(document.get("spec"), "spec")
        selector = reading.labels(spec.get("selector"), "spec.selector")
        labels = tuple(sorted(f"k8s:{key}={value}" for key, value in metadata.labels.items()))
        self._services[cluster, metadata.namespace, metadata.name] = ServiceView(
            cluster, metadata.namespace, metadata.name, labels, tuple(sorted(selector.items()))
        )

    def _slice(self, reading: Reading, metadata: Metadata, document: dict[str, Any], cluster: str) -> None:
        addresses = []
        for number, item in enumerate(reading.sequence(document.get("endpoints"), "endpoints")):
            path = f"endpoints[{number}]"
            listed = reading.sequence(reading.mapping(item, path).get("addresses"), path_of(path, "addresses"))
            addresses += [_address(reading, each, path_of(path, "addresses")) for each in listed]
        key = (cluster, metadata.namespace, metadata.name)
        self._slices[key] = metadata.labels.get(SERVICE_NAME_LABEL, ""), tuple(each for each in addresses if each)

    def _group(self, reading: Reading, metadata: Metadata, document: dict[str, Any], cluster: str) -> None:
        if document.get("apiVersion") not in GROUP_VERSIONS:
            reading.refuse("apiVersion", document.get("apiVersion"), f"must be one of {', '.join(GROUP_VERSIONS)}")
        self._groups[cluster, metadata.name] = read_group(reading, document, cluster, metadata.name, metadata.labels)

    def _policy(self, reading: Reading, metadata: Metadata, document: dict[str, Any], cluster: str) -> None:
        parsed = parse(document["kind"], document, cluster, settings=self._settings)
        if isinstance(parsed, tuple):
            reading.refusals += parsed
        else:
            self._policies[parsed.key] = parsed


def _field(item: Any, name: str) -> Any:
    return item.get(name) if isinstance(item, dict) else None


def _address(reading: Reading, value: Any, path: str) -> str:
    """In canonical form; "" after a refusal."""
    try:
        return str(ip_address(value))
    except ValueError:
        reading.refuse(path, value, "must be an address such as 192.0.2.1 or 2001:db8::1")
        return ""


def _named_ports(reading: Reading, spec: Mapping[str, Any]) -> NamedPorts:
    """Of containers and of init containers that keep running; the first of a name counts."""
    found: dict[str, tuple[int, str]] = {}
    for field in ("containers", "initContainers"):
        for number, item in enumerate(reading.sequence(spec.get(field), f"spec.{field}")):
            container = reading.mapping(item, f"spec.{field}[{number}]")
            if field == "initContainers" and container.get("restartPolicy") != "Always":
                continue
            where = f"spec.{field}[{number}].ports"
            for position, port in enumerate(reading.sequence(container.get("ports"), where)):
                fields = reading.mapping(port, f"{where}[{position}]")
                name = reading.text(fields.get("name"), f"{where}[{position}].name")
                protocol = reading.one_of(
                    fields.get("protocol"), f"{where}[{position}].protocol", tuple(PROTOCOLS), "TCP"
                )
                value = reading.number(fields.get("containerPort"), f"{where}[{position}].containerPort", 1, PORT_MAX)
                if name and value:
                    found.setdefault(name, (value, protocol))
    return found


def read_names(document: Any) -> dict[str, tuple[str, ...]] | tuple[Refusal, ...]:
    """{"www.example.com": ["192.0.2.1"]}, names canonical."""
    reading = Reading()
    found: dict[str, tuple[str, ...]] = {}
    for name, listed in reading.mapping(document, "").items():
        fault = name_fault(name)
        if fault:
            reading.refuse(name, None, fault)
        addresses = [_address(reading, item, name) for item in reading.sequence(listed, name)]
        known = found.get(canonical_name(name), ())
        found[canonical_name(name)] = tuple(dict.fromkeys((*known, *addresses)))
    return tuple(reading.refusals) or found


def read_address_labels(document: Any) -> dict[str, Labels] | tuple[Refusal, ...]:
    """{"203.0.113.10": ["reserved:kube-apiserver"]}."""
    reading = Reading()
    found: dict[str, Labels] = {}
    for address, listed in reading.mapping(document, "").items():
        items = reading.sequence(listed, address)
        labels = tuple(sorted({reading.text(item, address, required=True) for item in items}))
        fault = label_fault(labels)
        if fault:
            reading.refuse(address, listed, fault)
        found[_address(reading, address, address)] = labels
    return tuple(reading.refusals) or found
