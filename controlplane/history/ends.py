"""Who is meant by the end of a flow, and the policies that are about it, in one state. Pure.

Belongs here: "shop/cart", "ip:10.1.0.5", "entity:world" to an identity and its labels; policies as they are in force.
Does not belong here: the verdict (why.py).
"""

from collections.abc import Mapping
from functools import cached_property
from ipaddress import ip_address

import msgspec

from controlplane.fields import Refusal
from controlplane.history.provenance import Origins
from controlplane.model import RESERVED_IDENTITIES, Endpoint, EndpointKey, Labels, NodeKey, ObjectKey
from controlplane.policy.clauses import in_cluster, in_namespace
from controlplane.policy.manifests import parse_text
from controlplane.policy.prefixes import AddressLabels, address_keys
from controlplane.policy.rules import ParsedPolicy
from controlplane.policy.selectors import selector_of
from controlplane.policy.services import view_of, with_services
from controlplane.projections.services import service_key
from controlplane.projections.state import State

RIGHT = "right is NS/POD, CLUSTER:NS/POD, service:NS/NAME, ip:ADDRESS or entity:NAME"
ENDPOINT, NODE, SERVICE, WORLD, ENTITY = "endpoint", "node", "service", "world", "entity"


class NoSuchEnd(ValueError):
    """Nobody in the state is meant by the text."""


class End(msgspec.Struct, frozen=True):
    """One end of a flow. `key` is its key in the state, None of the world and of entities. `identity` 0: it has none."""

    text: str
    what: str
    cluster: str
    key: EndpointKey | NodeKey | ObjectKey | None
    identity: int
    labels: Labels
    address: str = ""

    @property
    def name(self) -> str:
        """For sentences."""
        return self.text if not self.address or self.address in self.text else f"{self.text} ({self.address})"


class Mesh:
    """One state, and what its policies say."""

    def __init__(self, state: State, origins: Origins, cluster: str) -> None:
        self.state = state
        self.origins = origins
        self.cluster = cluster
        self.unreadable: dict[ObjectKey, tuple[Refusal, ...]] = {}

    @cached_property
    def policies(self) -> Mapping[str, list[ParsedPolicy]]:
        """By cluster, as they are in force. One that cannot be read closes its namespace."""
        found: dict[str, list[ParsedPolicy]] = {}
        services = [
            view_of(service, [self.state.backend_slices[each] for each in self.state.service_slices.get(key, ())])
            for key, service in sorted(self.state.services.items())
        ]
        for key, policy in sorted(self.state.policies.items()):
            parsed = parse_text(policy.kind, policy.manifest, policy.cluster, policy.parser)
            if isinstance(parsed, tuple):
                self.unreadable[key] = parsed
                closed = selector_of((in_namespace(key.namespace), in_cluster(key.cluster)))
                parsed = ParsedPolicy(key, closed, enforce_ingress=True, enforce_egress=True, rules=())
            found.setdefault(policy.cluster, []).append(with_services(parsed, services))
        return found

    @cached_property
    def addresses(self) -> AddressLabels:
        """What policies say of addresses."""
        return AddressLabels(address_keys(policy for listed in self.policies.values() for policy in listed))

    def end(self, text: str) -> End:
        """Raises NoSuchEnd."""
        scheme, colon, rest = text.partition(":")
        if colon and scheme == "ip":
            return self.at_address(rest, text)
        if colon and scheme == "entity":
            return self._entity(rest, text)
        if colon and scheme == "service":
            cluster, colon, name = rest.partition(":") if ":" in rest else (self.cluster, ":", rest)
            return self._service(cluster, name, text)
        cluster, name = (scheme, rest) if colon else (self.cluster, text)
        return self._workload(cluster, name, text)

    def at_address(self, address: str, text: str = "") -> End:
        """Whoever has the address. Raises NoSuchEnd."""
        try:
            canonical = str(ip_address(address))
        except ValueError:
            raise NoSuchEnd(f"{address!r} is no address; {RIGHT}") from None
        holder = self.state.addresses.get(canonical)
        if isinstance(holder, EndpointKey):
            return self.of_endpoint(self.state.endpoints[holder], text)
        if holder is not None:
            number = RESERVED_IDENTITIES["remote-node"]
            name = text or f"node {holder.node}"
            return End(name, NODE, holder.cluster, holder, number, ("reserved:remote-node",), canonical)
        service = self.state.service_addresses.get((self.cluster, canonical))
        if service is not None:
            return End(text or str(service.name), SERVICE, service.cluster, service, 0, (), canonical)
        labels = self.addresses.of_world(canonical)
        return End(text or f"ip:{canonical}", WORLD, "", None, RESERVED_IDENTITIES["world"], labels, canonical)

    def of_endpoint(self, endpoint: Endpoint, text: str = "") -> End:
        """With the labels of its identity, which are what the kernel judges by."""
        key = EndpointKey(endpoint.cluster, endpoint.node, endpoint.endpoint_id)
        identity = self.state.identities.get(endpoint.identity)
        own = endpoint.labels if identity is None else identity.labels
        addresses = [address for address in (endpoint.ipv4, endpoint.ipv6) if address]
        labels = tuple(sorted({*own, *self.addresses.of_mesh(addresses)}))
        name = f"{endpoint.cluster}:{endpoint.namespace}/{endpoint.workload}"
        what = name if not text or text.startswith("ip:") else text
        return End(what, ENDPOINT, endpoint.cluster, key, endpoint.identity, labels, addresses[0] if addresses else "")

    def _entity(self, name: str, text: str) -> End:
        if name not in RESERVED_IDENTITIES:
            raise NoSuchEnd(f"no entity is called {name!r}; there are: {', '.join(RESERVED_IDENTITIES)}")
        labels = self.addresses.of_anywhere() if name == "world" else (f"reserved:{name}",)
        return End(text, ENTITY, "", None, RESERVED_IDENTITIES[name], labels)

    def _service(self, cluster: str, name: str, text: str) -> End:
        namespace, _, service = name.partition("/")
        key = service_key(cluster, namespace, service)
        if key not in self.state.services:
            raise NoSuchEnd(f"there was no service {name!r} in cluster {cluster}{self._gone('service', key)}")
        address = next(iter(self.state.services[key].cluster_ips), "")
        return End(text, SERVICE, cluster, key, 0, (), address)

    def _workload(self, cluster: str, name: str, text: str) -> End:
        namespace, slash, workload = name.partition("/")
        if not slash or not namespace or not workload:
            raise NoSuchEnd(f"{text!r} names no end of a flow; {RIGHT}")
        found = self.state.workload_endpoints.get((cluster, namespace, workload))
        if not found:
            raise NoSuchEnd(f"{cluster}:{name} had no endpoint{self._gone_endpoint(cluster, namespace, workload)}")
        return self.of_endpoint(self.state.endpoints[found[0]], f"{cluster}:{name}")

    def _gone_endpoint(self, cluster: str, namespace: str, workload: str) -> str:
        for (kind, key), origin in reversed(self.origins.gone.items()):
            if kind == ENDPOINT and key.cluster == cluster and self.origins.gone_names.get((kind, key)) == (
                namespace, workload
            ):  # fmt: skip
                return f"; it went at revision {origin.revision} ({origin.event} by {origin.cluster}/{origin.writer})"
        declared = any(
            (key.cluster, key.namespace, key.name) == (cluster, namespace, workload) for key in self.state.workloads
        )
        return "; the workload is declared, and no node has attached it" if declared else ""

    def _gone(self, kind: str, key: ObjectKey) -> str:
        origin = self.origins.gone.get((kind, key))
        return f"; it went at revision {origin.revision}" if origin else ""
