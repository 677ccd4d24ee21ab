"""A notification of the datapath as the API says it, with the names of what its addresses belong to. Pure.

Belongs here: schema.Notification from the datapath's. Does not belong here: decoding and words
(datapath/notifications.py).
"""

from controlplane.api import schema
from controlplane.model import EndpointKey, NodeKey
from controlplane.projections.state import State
from datapath.abi import types as abi
from datapath.addressing import protocol_name
from datapath.codec import address_text
from datapath.notifications import FILE_NAMES, MATCH_NAMES, Notification, as_json, drop_reason_text, verdict_name

TYPES = {abi.NOTIFICATION_DROP: "drop", abi.NOTIFICATION_VERDICT: "verdict", abi.NOTIFICATION_TRACE: "trace"}
TCP = 6


class Names:
    """ "namespace/workload" of endpoint addresses, as of now."""

    def __init__(self, state: State) -> None:
        self._state = state

    def of(self, address: str) -> str:
        """ "" where the address is no endpoint's."""
        holder = self._state.addresses.get(address)
        if not isinstance(holder, EndpointKey):
            return ""
        endpoint = self._state.endpoints[holder]
        return f"{endpoint.namespace}/{endpoint.workload}"


def notification(found: Notification, names: Names, where: NodeKey) -> schema.Notification:
    """One line of the monitor."""
    kind = TYPES.get(found.type, str(found.type))
    source, target = address_text(found.source), address_text(found.dest)
    is_drop = kind == "drop"
    return schema.Notification(
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
        source_name=names.of(source),
        target=target,
        target_port=found.dest_port,
        target_identity=found.dest_identity,
        target_name=names.of(target),
        endpoint_id=found.endpoint_id,
        ifindex=found.ifindex,
        length=found.length,
        tcp_flags=",".join(as_json(found)["tcp_flags"]) if found.protocol == TCP else "",
        file=FILE_NAMES.get(found.file, str(found.file)),
        line=found.line,
        policy_epoch=found.policy_epoch,
    )
