"""Commands about what policies ask of addresses: groups of prefixes, names, settings of policies. Pure."""

import msgspec

from controlplane.addresses import is_address
from controlplane.commands.types import Author, Decision, Rejection
from controlplane.events import CIDRGroupApplied, CIDRGroupRemoved, NameExpired, NameResolved, SettingsChanged
from controlplane.model import CidrGroup
from controlplane.policy.manifests import parse_text
from controlplane.policy.names import canonical_name, name_fault
from controlplane.policy.settings import Settings, read_settings, settings_in_force
from controlplane.projections.addresses import group_key, name_key
from controlplane.projections.state import State

SHOWN_MAX = 3
"""Policies that a rejection names."""


class ApplyCidrGroup(msgspec.Struct, frozen=True):
    """`prefixes` in canonical form."""

    name: str
    prefixes: tuple[str, ...]
    labels: dict[str, str] = {}


class RemoveCidrGroup(msgspec.Struct, frozen=True):
    name: str


class ResolveName(msgspec.Struct, frozen=True):
    """The name has these addresses too."""

    name: str
    addresses: tuple[str, ...]


class ExpireName(msgspec.Struct, frozen=True):
    """The name has these addresses no longer; (): none."""

    name: str
    addresses: tuple[str, ...] = ()


class ChangeSettings(msgspec.Struct, frozen=True):
    """The settings of policies are exactly these; `document` is canonical JSON by Cilium's names."""

    document: str


def apply_cidr_group(state: State, author: Author, command: ApplyCidrGroup) -> Decision | Rejection:
    new = CidrGroup(author.cluster, command.name, command.prefixes, command.labels)
    if state.cidr_groups.get(group_key(author.cluster, command.name)) == new:
        return Decision()
    return Decision((CIDRGroupApplied(command.name, command.prefixes, command.labels),))


def remove_cidr_group(state: State, author: Author, command: RemoveCidrGroup) -> Decision | Rejection:
    """Removing what is not there is done already."""
    if group_key(author.cluster, command.name) not in state.cidr_groups:
        return Decision()
    return Decision((CIDRGroupRemoved(command.name),))


def resolve_name(state: State, author: Author, command: ResolveName) -> Decision | Rejection:
    fault = _fault(command.name, command.addresses)
    if fault:
        return fault
    if not command.addresses:
        return Rejection("needs at least one address", "addresses")
    name = canonical_name(command.name)
    known = state.resolved_names.get(name_key(author.cluster, name))
    new = tuple(sorted(set(command.addresses) - set(known.addresses if known else ())))
    return Decision((NameResolved(name, new),)) if new else Decision()


def expire_name(state: State, author: Author, command: ExpireName) -> Decision | Rejection:
    fault = _fault(command.name, command.addresses)
    if fault:
        return fault
    name = canonical_name(command.name)
    known = state.resolved_names.get(name_key(author.cluster, name))
    if known is None or (command.addresses and not set(command.addresses) & set(known.addresses)):
        return Decision()
    return Decision((NameExpired(name, tuple(sorted(set(command.addresses)))),))


def _fault(name: str, addresses: tuple[str, ...]) -> Rejection | None:
    if name_fault(name):
        return Rejection(f"{name!r}: {name_fault(name)}", "name")
    for address in addresses:
        if not is_address(address):
            return Rejection(f"{address!r}: must be an address such as 192.0.2.1 or 2001:db8::1", "addresses")
    return None


def change_settings(state: State, author: Author, command: ChangeSettings) -> Decision | Rejection:
    found = read_settings(msgspec.json.decode(command.document))
    if not isinstance(found, Settings):
        return Rejection("; ".join(map(str, found)))
    held = state.policy_settings.get(author.cluster, "")
    if (held or "{}") == command.document:
        return Decision()
    lost = _unreadable(state, author.cluster, settings_in_force(held), found)
    if lost:
        shown = "; ".join(lost[:SHOWN_MAX]) + ("; and others" if len(lost) > SHOWN_MAX else "")
        who = f"{len(lost)} policies need" if len(lost) > 1 else "a policy needs"
        return Rejection(f"{who} the settings as they are: change or delete what needs them first: {shown}")
    return Decision((SettingsChanged(command.document),))


def _unreadable(state: State, cluster: str, old: Settings, new: Settings) -> list[str]:
    """The policies that can be read under the old settings and not under the new ones, and why: they would close all
    that they could be about."""
    found = []
    for key in sorted(state.policies) if old.policy != new.policy else ():
        policy = state.policies[key]
        if policy.cluster != cluster:
            continue
        before, after = (
            parse_text(policy.kind, policy.manifest, cluster, policy.parser, each.policy) for each in (old, new)
        )
        if isinstance(after, tuple) and not isinstance(before, tuple):
            found.append(f"{policy.kind} {'/'.join(filter(None, (policy.namespace, policy.name)))}: {after[0]}")
    return found
