"""A delta in safe order: which rows are written when, and which wait because another one failed.

Belongs here: PHASES, the one list of what comes after what, each with its reason. Does not belong here:
writing.

The rule of the list: referents up before references, references down before referents; and while a policy
changes, a packet is allowed only if the old or the new rows allow it, and is not dropped if both allow it. A
deny row wins over any allow row, and a row counts only while its subject's shapes name its kind; hence up to six
writes of a changed subject: relaxed (audit begins), widened (old and new shapes), then the new enforcement, then split
(its facets are subjects), then only the new shapes, at last settled (audit ends). And an endpoint that is relabelled
changes its identity only when the new identity's rows stand, while the old one's still do: devices, endpoints, ipcache
and facets move between the two. An address that falls back to a shorter prefix, or to its identity, likewise, when that
has only the rows of now, and before its own go.
A crash between two steps leaves a state that is one more "old" state: the next plan starts from it under the
same rule.
"""

import struct
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import NamedTuple

from datapath import codec
from datapath.abi.types import (
    POLICY_SUBJECT_ASKS_LOCALHOST,
    POLICY_SUBJECT_AUDIT,
    POLICY_SUBJECT_HAS_FACETS,
    POLICY_VERDICT_DENY,
    STRUCTS,
)
from datapath.delta import Delta, TableDelta
from datapath.tables import PolicyRow, PolicySubjectRow

PUT, DELETE = "put", "delete"
DENY = codec.encode_row("policy", PolicyRow(POLICY_VERDICT_DENY))

UNSETTLED_EPOCH = 1 << 63
"""Set in the policy epoch while a row of POLICY_TABLES is still to be written. When the last one is, the
epoch moves once more, so that flows are judged again by the rows that came late. Generations never reach this
bit."""

Row = tuple[bytes, bytes]
Token = tuple[str, int]


class Step(NamedTuple):
    """One call of the kernel: `rows` of a put or `keys` of a delete, sorted."""

    table: str
    operation: str
    phase: str
    rows: Sequence[Row]
    keys: Sequence[bytes]


class Phase(NamedTuple):
    """`choose` picks rows of a delta; of a delete with the value that goes. `held_by`: a row waits if a row
    of the same device, set or subject failed in one of these phases. `about`: of the policy, only rows about these
    remotes."""

    name: str
    table: str
    operation: str
    choose: Callable[[TableDelta], Sequence[Row]]
    held_by: tuple[str, ...]
    reason: str
    about: str = ""


def _puts(delta: TableDelta) -> Sequence[Row]:
    return tuple(delta.puts.items())


def _deletes(delta: TableDelta) -> Sequence[Row]:
    return tuple((key, delta.previous[key]) for key in delta.deletes)


def _deny_puts(delta: TableDelta) -> Sequence[Row]:
    return tuple(row for row in delta.puts.items() if row[1] == DENY)


def _allow_puts(delta: TableDelta) -> Sequence[Row]:
    return tuple(row for row in delta.puts.items() if row[1] != DENY)


def _allow_deletes(delta: TableDelta) -> Sequence[Row]:
    return tuple(row for row in _deletes(delta) if row[1] != DENY)


def _deny_deletes(delta: TableDelta) -> Sequence[Row]:
    return tuple(row for row in _deletes(delta) if row[1] == DENY)


class _SubjectStages(NamedTuple):
    """The values that a changed subject goes through, None where it was not there. `lowers`: a direction stops being
    enforced, or the node's host needs no row any more; or the subject is new, and all was closed to it."""

    key: bytes
    previous: bytes | None
    relaxed: bytes | None
    widened: bytes | None
    enforcing: bytes
    split: bytes
    narrowed: bytes
    settled: bytes
    lowers: bool


def _encoded(row: PolicySubjectRow) -> bytes:
    return codec.encode_row("policy_subjects", row)


def _subject_stages(delta: TableDelta) -> Iterator[_SubjectStages]:
    for key, value in delta.puts.items():
        previous = delta.previous.get(key)
        new: PolicySubjectRow = codec.decode_row("policy_subjects", value)
        if previous is None:
            whole = _encoded(new._replace(flags=new.flags & ~POLICY_SUBJECT_HAS_FACETS))
            yield _SubjectStages(key, None, None, None, whole, value, value, value, True)
            continue
        old: PolicySubjectRow = codec.decode_row("policy_subjects", previous)
        shapes = {
            "ingress_shapes": old.ingress_shapes | new.ingress_shapes,
            "egress_shapes": old.egress_shapes | new.egress_shapes,
        }
        relaxed = old._replace(flags=old.flags | new.flags & POLICY_SUBJECT_AUDIT)
        narrowed = new._replace(flags=new.flags | old.flags & POLICY_SUBJECT_AUDIT)
        split = narrowed._replace(**shapes)
        comes = new.flags & ~old.flags & POLICY_SUBJECT_HAS_FACETS
        lowers = (
            old.ingress_enforced > new.ingress_enforced
            or old.egress_enforced > new.egress_enforced
            or bool(old.flags & ~new.flags & POLICY_SUBJECT_ASKS_LOCALHOST)
        )
        yield _SubjectStages(
            key,
            previous,
            relaxed=_encoded(relaxed),
            widened=_encoded(relaxed._replace(**shapes)),
            enforcing=_encoded(split._replace(flags=split.flags & ~comes)),
            split=_encoded(split),
            narrowed=_encoded(narrowed),
            settled=value,
            lowers=lowers,
        )


def _subjects_relaxed(delta: TableDelta) -> Sequence[Row]:
    return _subjects_at(delta, "previous", "relaxed")


def _subjects_widened(delta: TableDelta) -> Sequence[Row]:
    return _subjects_at(delta, "relaxed", "widened")


def _subjects_enforced(delta: TableDelta) -> Sequence[Row]:
    return _subjects_enforcing(delta, lowers=False)


def _subjects_released(delta: TableDelta) -> Sequence[Row]:
    return _subjects_enforcing(delta, lowers=True)


def _subjects_enforcing(delta: TableDelta, lowers: bool) -> Sequence[Row]:
    return tuple(
        (stage.key, stage.enforcing)
        for stage in _subject_stages(delta)
        if stage.lowers is lowers and stage.enforcing != stage.widened
    )


def _subjects_split(delta: TableDelta) -> Sequence[Row]:
    return _subjects_at(delta, "enforcing", "split")


def _subjects_narrowed(delta: TableDelta) -> Sequence[Row]:
    return _subjects_at(delta, "split", "narrowed")


def _subjects_settled(delta: TableDelta) -> Sequence[Row]:
    return _subjects_at(delta, "narrowed", "settled")


def _subjects_at(delta: TableDelta, before: str, stage: str) -> Sequence[Row]:
    """The rows whose value changes from one stage to the next."""
    found = ((each.key, getattr(each, before), getattr(each, stage)) for each in _subject_stages(delta))
    return tuple((key, value) for key, old, value in found if value is not None and value != old)


STAYING, STAYING_ALONE, LEAVING, LEAVING_OR_ANY = "staying", "staying alone", "leaving", "leaving or any"
"""Remotes that no address loses by this very delta, and those that one does: with rows about every remote, or not."""
DENIALS_WAIT = ("denials up", "subjects widened", "subjects enforced", "subjects released", "subjects gone")

# fmt: off
PHASES: tuple[Phase, ...] = (
    Phase("backends up", "backends", PUT, _puts, (), "a header points only to backends that are there"),
    Phase("maglev up", "maglev", PUT, _puts, (), "nor to a lookup table that is not whole"),
    Phase("affinity backends up", "affinity_backends", PUT, _puts, (),
          "a client's last backend is not taken for one that left"),
    Phase("source ranges up", "source_ranges", PUT, _puts, (), "a frontend finds its clients' ranges whole"),
    Phase("services", "services", PUT, _puts,
          ("backends up", "maglev up", "affinity backends up", "source ranges up"),
          "one write flips a frontend to its new set"),
    Phase("subjects relaxed", "policy_subjects", PUT, _subjects_relaxed, (),
          "audit begins before any denial that it lets pass"),
    Phase("denials up", "policy", PUT, _deny_puts, (), "denied before anything more is allowed"),
    Phase("subjects widened", "policy_subjects", PUT, _subjects_widened, (),
          "rows of new kinds count, rows of old kinds still do"),
    Phase("permissions up", "policy", PUT, _allow_puts, ("denials up", "subjects widened"),
          "new permissions stand before enforcement or the loss of old ones; never without their denials"),
    Phase("subjects released", "policy_subjects", PUT, _subjects_released, ("denials up", "subjects widened"),
          "enforcement ends before permissions go, a new subject opens, and neither while a denial is missing"),
    Phase("tunnel up", "tunnel", PUT, _puts, (), "no row leads into a tunnel that is not known"),
    Phase("facets up", "facets", PUT, _puts, (),
          "an address has its new facet when the facet's permissions stand, and before its new identity"),
    Phase("ipcache up", "ipcache", PUT, _puts, (),
          "an address takes its new identity when that identity's permissions stand"),
    Phase("subjects enforced", "policy_subjects", PUT, _subjects_enforced, ("subjects widened",),
          "enforcement starts when its permissions stand, and addresses have the identities that these are about; a "
          "denial that failed does not keep it off"),
    Phase("subjects split", "policy_subjects", PUT, _subjects_split, ("denials up", "subjects widened"),
          "endpoints that have facets are subjects of their own when these and their permissions stand"),
    Phase("devices up", "devices", PUT, _puts, (), "a program finds its device's row with the first packet"),
    Phase("attachments up", "attachments", PUT, _puts, ("devices up",),
          "a program runs when all that it reads is there"),
    Phase("neighbours up", "neighbours", PUT, _puts, (), "a route's next hop is known before the route"),
    Phase("endpoints up", "endpoints", PUT, _puts, ("devices up", "attachments up"),
          "nothing is sent to an endpoint whose device is not guarded"),
    Phase("routes up", "routes", PUT, _puts, ("devices up", "attachments up", "neighbours up"),
          "likewise for what the host stack sends"),
    Phase("routes down", "routes", DELETE, _deletes, (), "after the routes that replace them"),
    Phase("endpoints down", "endpoints", DELETE, _deletes, (), "nothing is sent any more to what goes"),
    Phase("neighbours down", "neighbours", DELETE, _deletes, ("routes up", "routes down"),
          "no route leads to them any more"),
    Phase("devices down", "devices", DELETE, _deletes, (),
          "a program without its device's row drops everything: closed, where the reverse would be open"),
    Phase("attachments down", "attachments", DELETE, _deletes,
          ("endpoints up", "routes up", "routes down", "endpoints down", "devices down"),
          "a device keeps its program for as long as any row speaks of it"),
    Phase("subjects gone", "policy_subjects", DELETE, _deletes, (),
          "an identity keeps its policy until no device and no address has it any more; "
          "then one write ends it, before its permissions go one by one"),
    Phase("permissions down", "policy", DELETE, _allow_deletes, (),
          "never waits: it only closes, and makes room where a map is full", STAYING),
    Phase("denials down", "policy", DELETE, _deny_deletes, (*DENIALS_WAIT, "permissions down"),
          "old denials go once the old permissions that they limit are gone; not while what may replace them is "
          "missing, nor while the subject is still there", STAYING_ALONE),
    Phase("ipcache down", "ipcache", DELETE, _deletes, (),
          "an address falls back to a shorter prefix when that has only the rows of now"),
    Phase("facets down", "facets", DELETE, _deletes, (),
          "likewise to the rows of its identity, and after it has left that"),
    Phase("leavers' permissions down", "policy", DELETE, _allow_deletes, (),
          "an address has left an identity before that is permitted less", LEAVING),
    Phase("subjects narrowed", "policy_subjects", PUT, _subjects_narrowed,
          ("denials up", "permissions down", "leavers' permissions down"),
          "old denials may stop to count once the old permissions that they limit are gone"),
    Phase("leavers' denials down", "policy", DELETE, _deny_deletes,
          (*DENIALS_WAIT, "permissions down", "leavers' permissions down"),
          "for the same reason; those about every remote as well", LEAVING_OR_ANY),
    Phase("subjects settled", "policy_subjects", PUT, _subjects_settled,
          ("denials up", "permissions down", "leavers' permissions down"),
          "audit ends after the last denial that it let pass"),
    Phase("tunnel down", "tunnel", DELETE, _deletes, (), "no row leads into it any more"),
    Phase("shapers up", "shapers", PUT, _puts, (), "what has no class yet passes without a limit, and not slower"),
    Phase("shapers down", "shapers", DELETE, _deletes, (), "likewise"),
    Phase("socket hooks up", "socket_hooks", PUT, _puts, (),
          "a socket is sent to a backend when the services and the devices that it goes through stand"),
    Phase("socket hooks down", "socket_hooks", DELETE, _deletes, (), "what it does not translate, its device does"),
    Phase("services down", "services", DELETE, _deletes, (), "headers before what they point to"),
    Phase("backends down", "backends", DELETE, _deletes, ("services", "services down"), "no header is left"),
    Phase("maglev down", "maglev", DELETE, _deletes, ("services", "services down"), "likewise"),
    Phase("affinity backends down", "affinity_backends", DELETE, _deletes, ("services", "services down"), "likewise"),
    Phase("source ranges down", "source_ranges", DELETE, _deletes, ("services", "services down"), "likewise"),
    Phase("epoch", "node_state", PUT, _puts, (),
          "when every policy and ipcache row stands, established flows are judged again"),
    Phase("epoch down", "node_state", DELETE, _deletes, (), "never desired; for completeness"),
)
# fmt: on

POLICY_TABLES = ("policy", "policy_subjects", "ipcache", "facets")
"""A row of these that is still to be written keeps the epoch unsettled."""

_HELD_BY = {phase.name: phase.held_by for phase in PHASES}


_IDENTITY = struct.Struct("=I")
_NUMBER_AT = {
    table: next(each.offset for each in STRUCTS[struct].fields if each.name == field)
    for table, struct, field in (("ipcache", "ipcache_row", "identity"), ("facets", "facet_row", "facet"))
}
_REMOTE_AT = next(each.offset for each in STRUCTS["policy_key"].fields if each.name == "remote_identity")
ANY_REMOTE = 0


def _remote(key: bytes) -> int:
    """Of a policy key."""
    return int(_IDENTITY.unpack_from(key, _REMOTE_AT)[0])


def _left(delta: Delta) -> frozenset[int]:
    """The identities and facets that an address loses by a delta, and none gets."""
    lost: set[int] = set()
    got: set[int] = set()
    for table, place in _NUMBER_AT.items():
        changes = delta.get(table)
        if changes:
            lost.update(_IDENTITY.unpack_from(value, place)[0] for value in changes.previous.values())
            got.update(_IDENTITY.unpack_from(value, place)[0] for value in changes.puts.values())
    return frozenset(lost - got)


def _is_about(about: str, remote: int, left: Collection[int]) -> bool:
    if about in (STAYING, LEAVING):
        return (remote in left) == (about == LEAVING)
    return (remote == ANY_REMOTE or remote in left) == (about == LEAVING_OR_ANY)


def plan(delta: Delta) -> tuple[Step, ...]:
    """The steps of a delta, in order; empty ones are left out."""
    steps = []
    left = _left(delta) if "policy" in delta else frozenset()
    for phase in PHASES:
        changes = delta.get(phase.table)
        chosen = phase.choose(changes) if changes else ()
        if phase.about:
            chosen = tuple(row for row in chosen if _is_about(phase.about, _remote(row[0]), left))
        if chosen and phase.operation == PUT:
            steps.append(Step(phase.table, PUT, phase.name, chosen, ()))
        elif chosen:
            steps.append(Step(phase.table, DELETE, phase.name, (), tuple(key for key, _ in chosen)))
    return tuple(steps)


def unsettled_epoch(row: bytes) -> bytes:
    """The node_state row to write while a row of POLICY_TABLES is still to be written."""
    decoded = codec.decode_row("node_state", row)
    return codec.encode_row(
        "node_state", decoded._replace(policy_epoch=decoded.policy_epoch | UNSETTLED_EPOCH)
    )


class Holds:
    """Which rows of one pass wait because of which failures."""

    def __init__(self) -> None:
        self._failed: set[tuple[str, Token]] = set()
        self._phases: set[str] = set()

    def __bool__(self) -> bool:
        return bool(self._failed)

    def fail(self, phase: str, table: str, key: bytes, values: Sequence[bytes | None]) -> None:
        """A row failed, or waits; `values` are what it was to hold and what it holds."""
        self._phases.add(phase)
        self._failed.update((phase, token) for token in _tokens(table, key, values))

    def reason(self, phase: str, table: str, key: bytes, values: Sequence[bytes | None]) -> str:
        """Why a row has to wait; "" if it need not."""
        if self._phases.isdisjoint(_HELD_BY[phase]):
            return ""
        for token in _tokens(table, key, values):
            for other in _HELD_BY[phase]:
                if (other, token) in self._failed:
                    return f"waits for {other} of {token[0]} {token[1]}"
        return ""


def _tokens(table: str, key: bytes, values: Sequence[bytes | None]) -> set[Token]:
    """What ties a row to rows of other tables."""
    present = [codec.decode_row(table, value) for value in values if value is not None]
    if table in ("devices", "attachments", "neighbours"):
        return {("device", codec.decode_key(table, key).ifindex)}
    if table in ("endpoints", "routes"):
        return {("device", row.ifindex) for row in present}
    if table in ("backends", "maglev", "affinity_backends"):
        return {("backend set", codec.decode_key(table, key).backend_set)}
    if table == "source_ranges":
        return {("source range set", codec.decode_key(table, key).source_range_set)}
    if table == "services":
        sets = {("backend set", row.backend_set) for row in present}
        return sets | {("source range set", row.source_range_set) for row in present if row.source_range_set}
    if table == "policy":
        return {("subject", codec.decode_key(table, key).subject_identity)}
    if table == "policy_subjects":
        return {("subject", codec.decode_key(table, key).identity)}
    return set()
