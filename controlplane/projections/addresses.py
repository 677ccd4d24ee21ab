"""What policies ask of addresses: groups of prefixes, names, and the settings of policies.

Belongs here: their events. Does not belong here: what policies make of them (policy/). Pure.
"""

from typing import TYPE_CHECKING, Any

import msgspec

from controlplane.addresses import is_address, span_of
from controlplane.events import CIDRGroupApplied, CIDRGroupRemoved, NameExpired, NameResolved, SettingsChanged
from controlplane.model import CidrGroup, ObjectKey, ResolvedName
from controlplane.projections.change import Change
from kvstore.types import Record

if TYPE_CHECKING:
    from controlplane.projections.state import State

GROUP_KIND = "CiliumCIDRGroup"
NAME_KIND = "Name"


def group_key(cluster: str, name: str) -> ObjectKey:
    return ObjectKey(cluster, GROUP_KIND, "", name)


def name_key(cluster: str, name: str) -> ObjectKey:
    return ObjectKey(cluster, NAME_KIND, "", name)


def cidr_group_applied(state: "State", record: Record, event: CIDRGroupApplied, changes: list[Change]) -> str:
    for prefix in event.prefixes:
        if span_of(prefix) is None:
            return f"prefix {prefix!r}: right is for example 10.1.0.0/16, without bits beyond the length"
    key = group_key(record.cluster, event.name)
    new = CidrGroup(record.cluster, event.name, event.prefixes, event.labels)
    _put(state.cidr_groups, "cidr_group", key, new, changes)
    return ""


def cidr_group_removed(state: "State", record: Record, event: CIDRGroupRemoved, changes: list[Change]) -> str:
    _put(state.cidr_groups, "cidr_group", group_key(record.cluster, event.name), None, changes)
    return ""


def name_resolved(state: "State", record: Record, event: NameResolved, changes: list[Change]) -> str:
    for address in event.addresses:
        if not is_address(address):
            return f"address {address!r}: right is for example 192.0.2.1"
    key = name_key(record.cluster, event.name)
    known = state.resolved_names.get(key)
    addresses = tuple(sorted({*(known.addresses if known else ()), *event.addresses}))
    if addresses:
        _put(state.resolved_names, "name", key, ResolvedName(record.cluster, event.name, addresses), changes)
    return ""


def name_expired(state: "State", record: Record, event: NameExpired, changes: list[Change]) -> str:
    key = name_key(record.cluster, event.name)
    known = state.resolved_names.get(key)
    if known is None:
        return ""
    left = tuple(each for each in known.addresses if event.addresses and each not in event.addresses)
    new = ResolvedName(record.cluster, event.name, left) if left else None
    _put(state.resolved_names, "name", key, new, changes)
    return ""


def settings_changed(state: "State", record: Record, event: SettingsChanged, changes: list[Change]) -> str:
    try:
        document = msgspec.json.decode(event.document)
    except msgspec.MsgspecError as error:
        return f"the settings are not JSON: {error}"
    if not isinstance(document, dict):
        return "the settings are no mapping"
    old = state.policy_settings.get(record.cluster)
    if old != event.document:
        state.policy_settings[record.cluster] = event.document
        changes.append(Change("settings", record.cluster, old, event.document))
    return ""


def _put(held: dict[ObjectKey, Any], kind: Any, key: ObjectKey, new: Any, changes: list[Change]) -> None:
    old = held.pop(key, None)
    if new is not None:
        held[key] = new
    if old != new:
        changes.append(Change(kind, key, old, new))
