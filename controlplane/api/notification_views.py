"""A notification of the datapath as the API says it, with the names of what its addresses belong to. Pure.

Belongs here: items.Notification from the datapath's. Does not belong here: decoding and words
(datapath/notifications.py).
"""

from collections.abc import Mapping

from controlplane.api import items
from controlplane.desired.members import RESERVED_LABELS
from controlplane.model import EndpointKey, Labels, NodeKey
from controlplane.projections.state import State
from datapath.abi import types as abi
from datapath.addressing import protocol_name
from datapath.codec import address_text
from datapath.notifications import FILE_NAMES, MATCH_NAMES, Notification, as_json, drop_reason_text, verdict_name

TYPES = {abi.NOTIFICATION_DROP: "drop", abi.NOTIFICATION_VERDICT: "verdict", abi.NOTIFICATION_TRACE: "trace"}
REASONS = {number: name for name, number in abi.ENUMS["drop_reason"].items()}
"""As Hubble's users filter by them: POLICY_DENIED."""
TCP = 6


class Names:
    """What addresses and identities are called, as of now. `started_ns`: the wall clock when the machine's own clock
    stood at 0. `derived_labels`: what the numbers of prefixes and nodes stand for here."""

    def __init__(self, state: State, started_ns: int, derived_labels: Mapping[int, Labels]) -> None:
        self.started_ns = started_ns
        self._state = state
        self._derived_labels = derived_labels

    def of(self, address: str) -> tuple[str, str]:
        """Cluster and "namespace/workload"; "" where the address is no endpoint's."""
        holder = self._state.addresses.get(address)
        if not isinstance(holder, EndpointKey):
            return "", ""
        endpoint = self._state.endpoints[holder]
        return endpoint.cluster, f"{endpoint.namespace}/{endpoint.workload}"

    def labels(self, number: int) -> Labels:
        """Of an identity; () of one that is given back."""
        known = self._state.identities.get(number)
        return known.labels if known else RESERVED_LABELS.get(number) or self._derived_labels.get(number, ())


def notification(found: Notification, names: Names, where: NodeKey) -> items.Notification:
    """One line of the monitor."""
    kind = TYPES.get(found.type, str(found.type))
    source, target = address_text(found.source), address_text(found.dest)
    is_drop = kind == "drop"
    source_cluster, source_name = names.of(source)
    target_cluster, target_name = names.of(target)
    return items.Notification(
        type=kind,
        time_ns=found.timestamp_ns,
        cluster=where.cluster,
        node=where.node,
        reason=drop_reason_text(found.drop_reason) if is_drop else "",
        reason_code=found.drop_reason,
        verdict=verdict_name(found),
        direction="ingress" if found.policy_direction == abi.POLICY_INGRESS else "egress",
        match=MATCH_NAMES.get(found.match, str(found.match)),
        protocol=protocol_name(found.protocol),
        source=source,
        source_port=found.source_port,
        source_identity=found.source_identity,
        source_name=source_name,
        target=target,
        target_port=found.dest_port,
        target_identity=found.dest_identity,
        target_name=target_name,
        endpoint_id=found.endpoint_id,
        ifindex=found.ifindex,
        length=found.length,
        tcp_flags=",".join(as_json(found)["tcp_flags"]) if found.protocol == TCP else "",
        file=FILE_NAMES.get(found.file, str(found.file)),
        line=found.line,
        policy_epoch=found.policy_epoch,
        wall_time_ns=names.started_ns + found.timestamp_ns,
        source_cluster=source_cluster,
        source_labels=names.labels(found.source_identity),
        target_cluster=target_cluster,
        target_labels=names.labels(found.dest_identity),
        reason_name=REASONS.get(found.drop_reason, "") if found.drop_reason else "",
    )
