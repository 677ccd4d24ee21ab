"""Why a packet that a node told about was treated so: its own words beside what the log says. Pure.

Belongs here: what a drop reason means in the mesh, identities that the kernel had otherwise than the log has them, and
what has changed since. Does not belong here: the verdict of policies (why.py), reading a line of the monitor
(cli/why.py).
"""

from collections.abc import Mapping, Sequence
from ipaddress import ip_address, ip_network

import msgspec

from controlplane.api.schema import Explanation
from controlplane.desired.prefixes import PrefixIdentities
from controlplane.history.ends import ENDPOINT, NODE, WORLD, End, Mesh, NoSuchEnd
from controlplane.history.why import ALLOW, DENY, explain
from controlplane.model import RESERVED_IDENTITIES, EndpointKey, NodeKey
from datapath.abi import types as abi
from datapath.notifications import DROP_REASON_TEXTS, drop_reason_text

POLICY_REASONS = (abi.POLICY_DENIED, abi.POLICY_DENY)
CAUSES: Mapping[int, str] = {
    abi.INVALID_SOURCE_MAC: "an endpoint sent with a hardware address that is not its own",
    abi.INVALID_SOURCE_IP: "an endpoint sent from an address that is not its own: only the log's addresses are let out",
    abi.INVALID_PACKET_DROPPED: "the packet's headers contradict each other",
    abi.CT_TRUNCATED_OR_INVALID_HEADER: "the packet ends before its transport header does",
    abi.FRAGMENTATION_NEEDED: "with the option for a direct answer it does not fit the MTU; its sender was told",
    abi.CT_UNKNOWN_L4_PROTOCOL: "it is the other address family's ICMP",
    abi.UNSUPPORTED_L3_PROTOCOL: "it is neither IPv4 nor IPv6",
    abi.ERROR_WRITING_TO_PACKET: "the kernel did not let the program change the packet",
    abi.UNKNOWN_L3_TARGET_ADDRESS: "the node's ipcache has no way to the destination",
    abi.STALE_OR_UNROUTABLE_IP: "nobody has the destination address: its endpoint is gone, or was not there yet",
    abi.ERROR_WHILE_CORRECTING_L3_CHECKSUM: "the kernel did not let the program mend the address checksum",
    abi.ERROR_WHILE_CORRECTING_L4_CHECKSUM: "the kernel did not let the program mend the transport checksum",
    abi.CT_MAP_INSERTION_FAILED: "the conntrack map took no more entries; `meshlog bpf ct list` shows who fills it",
    abi.INVALID_IPV6_EXTENSION_HEADER: "its IPv6 extension headers cannot be passed over",
    abi.IP_FRAGMENTATION_NOT_SUPPORTED: "it is a fragment, and ports of fragments are not known",
    abi.SERVICE_BACKEND_NOT_FOUND: "the service has no ready backend; `meshlog why --to service:NS/NAME` says why",
    abi.NO_TUNNEL_OR_ENCAPSULATION_ENDPOINT: "the node that has the destination has no tunnel address",
    abi.NO_CONFIGURATION_AVAILABLE_TO_PERFORM_POLICY_DECISION: "the kernel had no policy rows of the identity "
    "yet, and an endpoint is closed until they are written",
    abi.UNSUPPORTED_L2_PROTOCOL: "it is no Ethernet frame of IPv4, IPv6 or ARP",
    abi.NO_MAPPING_FOR_NAT_MASQUERADE: "every port of the node that was tried is taken; see `meshlog bpf nat list`",
    abi.UNSUPPORTED_PROTOCOL_FOR_NAT_MASQUERADE: "its protocol has no ports, so that answers to the node's address "
    "could be anyone's; `--non-masquerade-cidr` lets it out under its own",
    abi.FIB_LOOKUP_FAILED: "the node's routes do not lead to the destination; see `ip route get` on the node",
    abi.INVALID_IDENTITY: "the identity that came with the packet is none",
    abi.UNKNOWN_SENDER: "no node of the mesh has the address that the tunnel packet came from",
    abi.FIRST_LOGICAL_DATAGRAM_FRAGMENT_NOT_FOUND: "a later fragment came without its first, which has the ports",
    abi.INVALID_VNI: "the number in the tunnel header is no identity",
    abi.DENIED_BY_LB_SRC_RANGE_CHECK: "the service's loadBalancerSourceRanges do not hold the client",
    abi.TTL_EXCEEDED: "its time to live ran out: it may be going round",
    abi.DROP_EP_NOT_READY: "the endpoint's program was not attached yet",
}  # fmt: skip
"""By drop reason, of those that are no policy's: what it means here."""


class Told(msgspec.Struct, frozen=True):
    """What a notification says besides the flow; 0 and "" where it does not. `epoch`: the revision of the last record
    that had changed a policy or ipcache row of the node. `node`: "cluster/node"."""

    reason: int = 0
    source_identity: int = 0
    target_identity: int = 0
    epoch: int = 0
    node: str = ""


def reason_named(text: str) -> int:
    """The number of a drop reason in the monitor's words; 0: none is called so."""
    return next((number for number, words in DROP_REASON_TEXTS.items() if words.lower() == text.strip().lower()), 0)


def explain_told(
    then: Mesh, now: Mesh, source: str, target: str, protocol: int, port: int, told: Told, time_ns: int = 0
) -> Explanation:
    """`then`: the mesh that the node's kernel stood at; `now`: the newest. Raises NoSuchEnd."""
    ends = then.end(source), then.end(target)
    answer = explain(then, *ends, protocol, port, None, time_ns)
    reasons, verdict = list(answer.reasons), answer.verdict
    notes = list(answer.notes)
    if told.reason and told.reason not in POLICY_REASONS:
        cause = CAUSES.get(told.reason, "a reason that this version does not know")
        reasons.insert(0, f"{drop_reason_text(told.reason)}: dropped by the programs and not by a policy: {cause}")
        verdict = DENY
    seen = [_as_told(then, end, number, told) for end, number in zip(ends, _numbers(told), strict=True)]
    other = [each for each in seen if each[1]]
    if other:
        kernel = explain(then, seen[0][0], seen[1][0], protocol, port)
        reasons = [*(text for _, text in other), *(f"judged so: {each}" for each in kernel.reasons), *reasons]
        verdict = DENY if verdict == DENY else kernel.verdict
    elif told.reason in POLICY_REASONS and answer.verdict == ALLOW:
        where = f" --node {told.node.partition('/')[2]}" if told.node else ""
        reasons.insert(0, f"by the log at revision {then.state.revision} this flow is allowed, and the node denied it: "
                          f"its kernel holds other rows, which `meshlog verify{where}` names")  # fmt: skip
        verdict = DENY
    notes += _since(then, now, source, target, protocol, port, answer)
    return msgspec.structs.replace(answer, verdict=verdict, reasons=reasons, notes=list(dict.fromkeys(notes)))


def _numbers(told: Told) -> tuple[int, int]:
    return told.source_identity, told.target_identity


def _as_told(mesh: Mesh, end: End, number: int, told: Told) -> tuple[End, str]:
    """The end with the identity that the kernel had for it, and what is wrong with that; "" where it is the log's."""
    cluster, _, node = told.node.partition("/")
    where = NodeKey(cluster or mesh.cluster, node)
    expected = _expected(end, where, mesh)
    if not number or not expected or number == expected:
        return end, ""
    labels = mesh.labels_of(number, where)
    words = f"{','.join(labels)}" if labels else "no identity of the log"
    address = f" of {end.address}" if end.address else ""
    origin = mesh.origins.of(ENDPOINT, end.key) if end.what == ENDPOINT else None
    why = (
        f"; `meshlog verify` on {told.node or 'the node'} compares it, and `meshlog why map ipcache {end.address}` "
        "says what the row must be"
    )
    if origin is not None and told.epoch and origin.revision > told.epoch:
        why = f": it stood at revision {told.epoch} and had not applied revision {origin.revision} ({origin.event}) yet"
    text = f"the node's row{address} said identity {number} ({words}), and the log says {expected} for {end.name}{why}"
    as_told = End(end.text, "identity", end.cluster, None, number, labels, end.address)
    return (msgspec.structs.replace(end, identity=number, labels=labels) if end.what == ENDPOINT else as_told), text


def _expected(end: End, node: NodeKey, mesh: Mesh) -> int:
    if end.what == NODE:
        return mesh.node_number(end, node)
    if end.what == WORLD:
        return _world_number(mesh.prefixes(node.cluster), end.address)
    return end.identity


def _world_number(prefixes: PrefixIdentities, address: str) -> int:
    """Of the longest prefix that policies name and that has the address."""
    found, longest = RESERVED_IDENTITIES["world"], -1
    for prefix, number in prefixes.numbers.items():
        network = ip_network(prefix)
        if network.prefixlen > longest and ip_address(address) in network:
            found, longest = number, network.prefixlen
    return found


def _since(
    then: Mesh, now: Mesh, source: str, target: str, protocol: int, port: int, before: Explanation
) -> Sequence[str]:
    """What has become of the flow after the revision that the node stood at."""
    at = then.state.revision
    if now.state.revision <= at:
        return []
    notes = []
    try:
        ends = now.end(source), now.end(target)
    except NoSuchEnd as error:
        return [f"since then: {error}"]
    for end in ends:
        origin = now.origins.of(ENDPOINT, end.key) if isinstance(end.key, EndpointKey) else None
        if origin is not None and origin.revision > at:
            notes.append(
                f"{end.address} is {end.text} since revision {origin.revision} ({origin.event} by {origin.cluster}/"
                f"{origin.writer}), which the node had not applied: it stood at {at}"
            )
    after = explain(now, *ends, protocol, port)
    if after.verdict != before.verdict:
        notes.append(f"now, at revision {now.state.revision}, the verdict is {after.verdict}: {after.reasons[0]}")
        late = sorted((each for each in after.evidence if each.revision > at), key=lambda each: each.revision)
        notes += [f"changed since: revision {each.revision} ({each.event}, {each.about})" for each in late]
    return notes
