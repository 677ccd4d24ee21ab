"""Rows of the node's own endpoints: where their addresses live, whose their devices are, which programs run there.

Belongs here: the tables endpoints, devices, attachments, socket_hooks. Does not belong here: what other nodes'
endpoints need (ipcache.py, routes.py). Each row is a function of the state and its key. Pure.
"""

from collections.abc import Mapping

from controlplane.desired.shaping import shaped, workload_of
from controlplane.desired.underlay import mac_bytes
from controlplane.model import Endpoint, EndpointKey, Node, NodeKey
from controlplane.projections.state import State
from datapath import tables as t
from datapath.abi.types import (
    DEVICE_AUDITED,
    DEVICE_SHAPED_INGRESS,
    ENDPOINT_AUDITED,
    ENDPOINT_HOST,
    ENDPOINT_JOINED,
    ENDPOINT_SHAPED,
    IDENTITY_HOST,
)
from datapath.codec import address_bytes

HOOKS = ("ingress", "egress")
PROGRAMS_OF_ENDPOINT = {"ingress": "from_endpoint", "egress": "to_endpoint"}
PROGRAMS_OF_UNDERLAY = {"ingress": "from_network"}
PROGRAMS_OF_GUARDED_UNDERLAY = {"ingress": "from_network_guarded", "egress": "to_network"}
"""Where host policies are in force."""
PROGRAMS_OF_ANSWERING_UNDERLAY = {"ingress": "from_network", "egress": "to_network_answering"}
"""Where they are not, and the node's own network holds a backend of what the network asks for."""
HOOKS_OF_ACCELERATION = {"native": "xdp", "generic": "xdp-generic", "best-effort": "xdp-best-effort"}
ACCELERATING_PROGRAM = "xdp_from_network"
"""Before what runs at the underlay's ingress."""
PROGRAMS_OF_SOCKETS = {
    "connect4": "socket_connect4", "connect6": "socket_connect6",
    "sendmsg4": "socket_sendmsg4", "sendmsg6": "socket_sendmsg6",
    "recvmsg4": "socket_recvmsg4", "recvmsg6": "socket_recvmsg6",
    "getpeername4": "socket_peername4", "getpeername6": "socket_peername6",
}  # fmt: skip
JOINING_HOOK, JOINING_PROGRAM = "sockops", "socket_life"
"""Of the cgroup whose sockets are joined."""
PROGRAMS_OF_TUNNEL = {"ingress": "from_overlay", "egress": "to_overlay"}
"""By hook. What comes in at the host side of a device comes from its endpoint."""

HOST_ROW = t.EndpointRow(0, IDENTITY_HOST, 0, ENDPOINT_HOST, bytes(6), bytes(6))


class LocalDevices:
    """Which endpoints of the node stand at an ifindex: more than one while the node comes back after a reboot."""

    def __init__(self) -> None:
        self._at: dict[int, dict[EndpointKey, None]] = {}

    def put(self, key: EndpointKey, ifindex: int) -> None:
        self._at.setdefault(ifindex, {})[key] = None

    def remove(self, key: EndpointKey, ifindex: int) -> None:
        held = self._at[ifindex]
        del held[key]
        if not held:
            del self._at[ifindex]

    def endpoint_at(self, state: State, ifindex: int) -> Endpoint | None:
        """The one that counts: the highest number, which is as good as any and the same everywhere."""
        held = self._at.get(ifindex)
        return state.endpoints[max(held)] if held else None


def endpoint_row(state: State, node: NodeKey, address: str) -> t.EndpointRow | None:
    """Of an address of the node or of one of its endpoints; None for any other."""
    holder = state.addresses.get(address)
    if holder is None:
        return None
    if isinstance(holder, NodeKey):
        return HOST_ROW if holder == node else None
    if (holder.cluster, holder.node) != node:
        return None
    endpoint = state.endpoints[holder]
    device = endpoint.device
    return t.EndpointRow(
        device.ifindex,
        endpoint.identity,
        endpoint.endpoint_id,
        _endpoint_flags(state, endpoint),
        mac_bytes(device.mac),
        mac_bytes(device.host_mac),
    )


def _endpoint_flags(state: State, endpoint: Endpoint) -> int:
    workload, node = workload_of(state, endpoint), state.nodes.get(NodeKey(endpoint.cluster, endpoint.node))
    is_joined = node is not None and node.joining_cgroup and (workload is None or workload.joins_sockets)
    flags = ENDPOINT_SHAPED if shaped(state, endpoint) & DEVICE_SHAPED_INGRESS else 0
    return flags | ENDPOINT_AUDITED * endpoint.is_audited | (ENDPOINT_JOINED if is_joined else 0)


def device_row(endpoint: Endpoint, flags: int = 0) -> t.DeviceRow:
    """Whose device it is; `flags`: of the ABI's device_flag, those that the endpoint does not tell itself."""
    return t.DeviceRow(
        address_bytes(endpoint.ipv4) if endpoint.ipv4 else t.NO_ADDRESS,
        address_bytes(endpoint.ipv6) if endpoint.ipv6 else t.NO_ADDRESS,
        endpoint.identity,
        endpoint.endpoint_id,
        mac_bytes(endpoint.device.mac),
        flags | DEVICE_AUDITED * endpoint.is_audited,
    )


def underlay_programs(is_guarded: bool, is_answering: bool) -> Mapping[str, str]:
    """By hook, of the node's device to the others."""
    if is_guarded:
        return PROGRAMS_OF_GUARDED_UNDERLAY
    return PROGRAMS_OF_ANSWERING_UNDERLAY if is_answering else PROGRAMS_OF_UNDERLAY


def attachment_rows(
    endpoint: Endpoint | None, own: Node, underlay: Mapping[str, str], ifindex: int
) -> dict[t.AttachmentKey, t.AttachmentRow | None]:
    """What runs at each hook of a device of the node `own`; None: nothing of ours. `underlay`: underlay_programs()."""
    programs: Mapping[str, str] = {}
    if ifindex == own.device.ifindex:
        programs = underlay
    elif own.tunnel is not None and ifindex == own.tunnel.device.ifindex:
        programs = PROGRAMS_OF_TUNNEL
    elif endpoint is not None:
        programs = PROGRAMS_OF_ENDPOINT
    rows: dict[t.AttachmentKey, t.AttachmentRow | None] = {
        t.AttachmentKey(ifindex, hook): t.AttachmentRow(programs[hook]) if hook in programs else None for hook in HOOKS
    }
    # Of other devices there is none to take away: which is the underlay changes with the node's own facts only, and
    # then every row is derived.
    if ifindex == own.device.ifindex and own.acceleration:
        hook = HOOKS_OF_ACCELERATION[own.acceleration]
        rows[t.AttachmentKey(ifindex, hook)] = t.AttachmentRow(ACCELERATING_PROGRAM)
    return rows


def socket_hook_rows(node: Node) -> dict[t.SocketHookKey, t.SocketHookRow]:
    """What runs at the calls of the sockets in the node's cgroups; nothing where it has none."""
    programs = PROGRAMS_OF_SOCKETS if node.cgroup else {}
    rows = {hook: t.SocketHookRow(program, node.cgroup) for hook, program in programs.items()}
    if node.joining_cgroup:
        rows[JOINING_HOOK] = t.SocketHookRow(JOINING_PROGRAM, node.joining_cgroup)
    return {t.SocketHookKey(hook): row for hook, row in rows.items()}
