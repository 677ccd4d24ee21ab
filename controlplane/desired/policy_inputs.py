"""What a node's policies are made of: manifests, settings, services, groups and names, read once per change. Pure.

Belongs here: from the state to resolved policies, and which of them a change touches. Does not belong here: rows
(policy.py). A policy that cannot be read is not ignored: it closes both directions for every endpoint of its namespace,
a clusterwide one for every endpoint of the cluster.
"""

from collections.abc import Iterable, Mapping
from copy import copy

from controlplane.fields import Refusal
from controlplane.model import API_SERVER_SERVICE, ObjectKey, Policy
from controlplane.policy.clauses import in_cluster, in_namespace
from controlplane.policy.manifests import parse_text
from controlplane.policy.prefixes import AddressKeys, AddressLabels, address_keys, merged
from controlplane.policy.rules import ParsedPolicy
from controlplane.policy.selectors import selector_of
from controlplane.policy.services import ServiceView, needs_services, view_of, with_services
from controlplane.policy.settings import DEFAULTS, PolicySettings, Settings, settings_in_force
from controlplane.projections.change import Change
from controlplane.projections.services import service_key
from controlplane.projections.state import State

KINDS = ("policy", "service", "backends", "settings")
"""Changes of these kinds can change what the policies are."""
ADDRESS_KINDS = ("cidr_group", "name")
"""Changes of these kinds can change the labels of addresses though the policies stay."""


OldAndNew = tuple[ParsedPolicy | None, ParsedPolicy | None]


class PolicyInputs:
    """The policies of one cluster as they are meant now."""

    def __init__(self, cluster: str) -> None:
        self._cluster = cluster
        self.settings = DEFAULTS
        self.policies: dict[ObjectKey, ParsedPolicy] = {}
        """Services resolved."""
        self.unreadable: dict[ObjectKey, tuple[Refusal, ...]] = {}
        """Policies of the log that this version cannot read, and why; what they could be about is closed."""
        self._sources: dict[ObjectKey, Policy] = {}
        self._written: dict[ObjectKey, ParsedPolicy] = {}
        self.api_servers: tuple[str, ...] = ()
        """Addresses of the cluster's own API servers."""
        self._by_service: dict[ObjectKey, None] = {}
        self._keys: dict[ObjectKey, AddressKeys] = {}

    def fill(self, state: State) -> None:
        """From nothing."""
        self.settings = policy_settings(state, self._cluster)
        self.api_servers = api_servers(state, self._cluster, self.settings)
        for key in sorted(state.policies):
            self._read(state, key)

    def after(
        self, state: State, changes: Iterable[Change]
    ) -> tuple["PolicyInputs", Mapping[ObjectKey, OldAndNew]]:
        """As they are meant now, and what changed, old and new form. This one stays as it was."""
        mattering = [change for change in changes if change.kind in KINDS]
        if not mattering:
            return self, {}
        coming = copy(self)
        for name in ("policies", "unreadable", "_sources", "_written", "_by_service", "_keys"):
            setattr(coming, name, dict(getattr(self, name)))
        return coming, coming._update(state, mattering)

    def _update(self, state: State, changes: Iterable[Change]) -> dict[ObjectKey, OldAndNew]:
        touched: dict[ObjectKey, None] = {}
        services = False
        for change in changes:
            if change.kind == "policy":
                touched[change.key] = None
            elif change.kind in ("service", "backends"):
                services |= change.key.cluster == self._cluster
            elif change.kind == "settings" and change.key == self._cluster:
                self.settings = policy_settings(state, self._cluster)
                self._sources.clear()
                touched.update(dict.fromkeys((*self._written, *state.policies)))
        self.api_servers = api_servers(state, self._cluster, self.settings)
        if services:
            touched.update(self._by_service)
        found = {}
        for key in sorted(touched):
            old = self.policies.get(key)
            self._read(state, key)
            new = self.policies.get(key)
            if old != new:
                found[key] = (old, new)
        return found

    def _read(self, state: State, key: ObjectKey) -> None:
        """Parses once per manifest. Policies of other clusters are about none of this node's endpoints."""
        policy = state.policies.get(key)
        if policy is None:
            for held in (self.policies, self._sources, self._written, self.unreadable, self._by_service, self._keys):
                held.pop(key, None)
            return
        if policy.cluster != self._cluster:
            return
        before = self.policies.get(key)
        if self._sources.get(key) != policy:
            self._parse(key, policy)
        self.policies[key] = self._written[key]
        if key in self._by_service:
            self.policies[key] = with_services(self._written[key], service_views(state, self._cluster))
        if self.policies[key] != before:
            self._keys[key] = address_keys((self.policies[key],))

    def _parse(self, key: ObjectKey, policy: Policy) -> None:
        self._sources[key] = policy
        self.unreadable.pop(key, None)
        self._by_service.pop(key, None)
        parsed = parse_text(policy.kind, policy.manifest, policy.cluster, policy.parser, self.settings)
        if not isinstance(parsed, tuple) and parsed.key != key:
            parsed = (Refusal("metadata", parsed.name, f"the event names {key.kind}/{key.namespace}/{key.name}"),)
        if isinstance(parsed, tuple):
            self.unreadable[key] = parsed
            parsed = _closing(key)
        self._written[key] = parsed
        if needs_services(parsed):
            self._by_service[key] = None

    def keys(self) -> AddressKeys:
        """What the policies ask of addresses."""
        return merged(self._keys.values())

    def address_labels(self, state: State, keys: AddressKeys | None = None) -> AddressLabels:
        """Under the groups and names of the state. A name counts whichever cluster saw it. `keys`: what is asked, if it
        is not what the policies ask."""
        groups = [group for key, group in state.cidr_groups.items() if key.cluster == self._cluster]
        names: dict[str, tuple[str, ...]] = {}
        for name in state.resolved_names.values():
            names[name.name] = tuple(sorted({*names.get(name.name, ()), *name.addresses}))
        return AddressLabels(self.keys() if keys is None else keys, groups, names, self.api_servers)


def service_views(state: State, cluster: str) -> list[ServiceView]:
    """Of one cluster, by name."""
    return [
        view_of(state.services[key], [state.backend_slices[each] for each in state.service_slices.get(key, ())])
        for key in sorted(state.services)
        if key.cluster == cluster
    ]


def api_servers(state: State, cluster: str, settings: PolicySettings) -> tuple[str, ...]:
    """Sorted: what is behind the service of the API server, and what the settings name."""
    slices = state.service_slices.get(service_key(cluster, *API_SERVER_SERVICE), ())
    found = [backend.address for key in slices for backend in state.backend_slices[key].backends]
    return tuple(sorted({*found, *settings.api_servers}))


def policy_settings(state: State, cluster: str) -> PolicySettings:
    """Those in force."""
    return settings_of(state, cluster).policy


def settings_of(state: State, cluster: str) -> Settings:
    """Everything that the cluster's settings say."""
    return settings_in_force(state.policy_settings.get(cluster, ""))


def _closing(key: ObjectKey) -> ParsedPolicy:
    own = (in_namespace(key.namespace),) if key.namespace else ()
    subject = selector_of((*own, in_cluster(key.cluster)))
    return ParsedPolicy(key, subject, enforce_ingress=True, enforce_egress=True, rules=())
