"""Which rows of a node's tables decided what its programs did with a packet. Pure.

Belongs here: from a packet, what became of it and the node's rows to those that the programs found for it. Does not
belong here: running the programs (runtime/rehearsing.py), why a row is there (why_row.py).
"""

from collections.abc import Iterator, Mapping
from typing import Any

from controlplane.history.packets import Step, is_dropped
from controlplane.history.rows import row_fields, row_name
from datapath.abi import types as abi
from datapath.frames import ICMP, ICMPV6, Ends, Outcome, ends_of
from datapath.notifications import Notification
from datapath.tables import (
    BackendKey,
    EndpointKey,
    FacetKey,
    IpcacheKey,
    PolicyKey,
    PolicySubjectKey,
    ServiceKey,
)

Tables = Mapping[str, Mapping[Any, Any]]
Hit = tuple[str, Any]
"""A table and the key of a row in it."""

ADDRESS_BITS, PORT_BITS = 128, 16
REFUSED_BY_SERVICE = (abi.SERVICE_BACKEND_NOT_FOUND, abi.DENIED_BY_LB_SRC_RANGE_CHECK)
WITH_PORT = (abi.POLICY_MATCH_L3_L4, abi.POLICY_MATCH_L4_ONLY)
WITH_PROTOCOL = (*WITH_PORT, abi.POLICY_MATCH_L3_PROTO, abi.POLICY_MATCH_PROTO_ONLY)
OF_ANYONE = (abi.POLICY_MATCH_ALL, abi.POLICY_MATCH_L4_ONLY, abi.POLICY_MATCH_PROTO_ONLY)


def rows_hit(step: Step, outcome: Outcome, tables: Tables) -> list[dict[str, Any]]:
    """{"table", "key", "row"} in the order in which the programs ask: whose packet, which backend, where to, may it.

    `key` is as `meshlog why map` takes it. `tables`: typed, as they are derived for the step's node.
    """
    found = dict.fromkeys(hit for hit in _hits(step, outcome, tables) if hit[1] in tables.get(hit[0], {}))
    return [
        {"table": table, "key": row_name(table, key), "row": row_fields(table, tables[table][key])}
        for table, key in found
    ]


def _hits(step: Step, outcome: Outcome, tables: Tables) -> Iterator[Hit]:
    asked, sent = ends_of(step.frame), _sent(step, outcome)
    if step.device is not None:
        yield from (("devices", key) for key, row in tables["devices"].items() if row == step.device)
    else:
        yield from _address(asked.source, tables)
    yield from _service(step, outcome, asked, sent, tables)
    yield from _address(sent.dest, tables)
    for told in outcome.told:
        if told.type == abi.NOTIFICATION_VERDICT:
            yield from policy_hits(told, tables)


def _sent(step: Step, outcome: Outcome) -> Ends:
    """The packet's ends as they were judged: with the backend where a service had one, of a dropped packet too."""
    if not is_dropped(outcome):
        return ends_of(outcome.frame)
    asked = ends_of(step.frame)
    for told in outcome.told:
        if told.type == abi.NOTIFICATION_VERDICT:
            return asked._replace(dest=told.dest, dest_port=told.dest_port)
    return asked


def _service(step: Step, outcome: Outcome, asked: Ends, sent: Ends, tables: Tables) -> Iterator[Hit]:
    scope = abi.SERVICE_SCOPE_INTERNAL if step.program == "from_endpoint" else abi.SERVICE_SCOPE_EXTERNAL
    key = ServiceKey(asked.dest, asked.dest_port, asked.protocol, scope)
    row = tables["services"].get(key)
    is_translated = (sent.dest, sent.dest_port) != (asked.dest, asked.dest_port)
    if row is None or not (is_translated or outcome.drop_reason in REFUSED_BY_SERVICE):
        return
    yield "services", key
    for slot in range(row.count):
        backend = tables["backends"].get(BackendKey(row.backend_set, slot))
        if backend is not None and (backend.address, backend.port) == (sent.dest, sent.dest_port):
            yield "backends", BackendKey(row.backend_set, slot)


def _address(address: bytes, tables: Tables) -> Iterator[Hit]:
    """An address of this node, or else by the longest prefix."""
    if EndpointKey(address) in tables["endpoints"]:
        yield "endpoints", EndpointKey(address)
        return
    number = int.from_bytes(address)
    for length in range(ADDRESS_BITS, -1, -1):
        kept = number >> (ADDRESS_BITS - length) << (ADDRESS_BITS - length)
        key = IpcacheKey(length, kept.to_bytes(16))
        if key in tables["ipcache"]:
            yield "ipcache", key
            return


def policy_hits(told: Notification, tables: Tables) -> Iterator[Hit]:
    """What a verdict rests on: the subject's row, and the narrowest of the kind that the programs say they found."""
    is_ingress = told.policy_direction == abi.POLICY_INGRESS
    own, remote = told.dest_identity, told.source_identity
    if not is_ingress:
        own, remote = remote, own
    ends = (told.dest, told.source) if is_ingress else (told.source, told.dest)
    subject = tables["policy_subjects"].get(PolicySubjectKey(own))
    flags = subject.flags if subject else 0
    if flags & abi.POLICY_SUBJECT_HAS_FACETS:
        yield "facets", FacetKey(ends[0], own)
        own = _facet(ends[0], own, tables)
    if flags & abi.POLICY_SUBJECT_ASKS_FACETS:
        yield "facets", FacetKey(ends[1], remote)
        remote = _facet(ends[1], remote, tables)
    yield "policy_subjects", PolicySubjectKey(own)
    if told.match == abi.POLICY_MATCH_NONE:
        return
    protocol = told.protocol if told.match in WITH_PROTOCOL else 0
    port = told.dest_port >> 8 if told.protocol in (ICMP, ICMPV6) else told.dest_port
    allowed = told.verdict == abi.VERDICT_ALLOW
    wanted = abi.POLICY_VERDICT_ALLOW if allowed else abi.POLICY_VERDICT_DENY
    for length in range(PORT_BITS, 0, -1) if told.match in WITH_PORT else (0,):
        kept = port >> (PORT_BITS - length) << (PORT_BITS - length)
        of = 0 if told.match in OF_ANYONE else remote
        key = PolicyKey(own, of, kept, length, protocol, told.policy_direction)
        row = tables["policy"].get(key)
        if row is not None and row.verdict == wanted:
            yield "policy", key
            return


def _facet(address: bytes, identity: int, tables: Tables) -> int:
    row = tables["facets"].get(FacetKey(address, identity))
    return row.facet if row else identity
