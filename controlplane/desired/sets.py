"""Contents that service rows name by a hash: sets of backends, lookup tables, backends for affinity, source ranges.

Belongs here: names, counting who uses them, and their rows. Does not belong here: which backends are in a set
(backends.py). A name covers everything that its rows depend on, so equal contents are one, on all nodes. Pure.
"""

from collections.abc import Callable, Iterable
from hashlib import blake2b
from typing import Any, NamedTuple

from datapath import tables as t
from datapath.abi.types import MAGLEV_CHUNK
from datapath.codec import prefix_bytes
from datapath.maglev import BACKENDS_MAX, lookup_table

SET_BITS = 64
SLOT_BYTES = 2

Rows = dict[Any, Any]


class Member(NamedTuple):
    """A backend in a set; `flags` of the ABI."""

    address: bytes
    port: int
    flags: int = 0
    weight: int = 1


class Maglev(NamedTuple):
    """What a lookup table depends on beside its backends."""

    size: int
    seed: bytes


class Choice(NamedTuple):
    """A frontend's backends: the first `count` take new flows. `name` 0: there are none at all."""

    name: int
    members: tuple[Member, ...]
    count: int  # type: ignore[assignment]  # the ABI's name; it hides tuple.count, which nobody needs
    maglev: Maglev | None


EMPTY = Choice(0, (), 0, None)


def choice_of(members: tuple[Member, ...], count: int, maglev: Maglev | None) -> Choice:
    """Named by its content. Without new flows, or with too many backends, no table is made."""
    if not members:
        return EMPTY
    if maglev and (not count or count > min(maglev.size, BACKENDS_MAX)):
        maglev = None
    parts = [member.address + member.port.to_bytes(2, "big") + bytes((member.flags,)) for member in members]
    parts.append(count.to_bytes(4, "big"))
    if maglev:
        parts.append(maglev.size.to_bytes(4, "big") + maglev.seed)
        parts += [member.weight.to_bytes(2, "big") for member in members[:count]]
    return Choice(_name(parts), members, count, maglev)


def range_set_name(prefixes: tuple[str, ...]) -> int:
    """0 for none."""
    return _name([",".join(prefixes).encode()]) if prefixes else 0


def _name(parts: Iterable[bytes]) -> int:
    """64 bits, never 0."""
    return int.from_bytes(blake2b(b"".join(parts), digest_size=8).digest(), "little") or 1


def _backend_rows(name: int, members: tuple[Member, ...]) -> Rows:
    return {
        t.BackendKey(name, slot): t.BackendRow(member.address, member.port, member.flags)
        for slot, member in enumerate(members)
    }


def _maglev_rows(name: int, choice: Choice) -> Rows:
    assert choice.maglev is not None, "only such choices are counted"
    members = choice.members[: choice.count]
    names = [member.address + member.port.to_bytes(2, "big") for member in members]
    table = lookup_table(names, [member.weight for member in members], *choice.maglev)
    step = MAGLEV_CHUNK * SLOT_BYTES
    return {
        t.MaglevKey(name, start // step): t.MaglevRow(table[start : start + step].ljust(step, b"\0"))
        for start in range(0, len(table), step)
    }


def _maglev_keys(name: int, choice: Choice) -> Rows:
    assert choice.maglev is not None, "only such choices are counted"
    chunks = -(-choice.maglev.size // MAGLEV_CHUNK)
    return dict.fromkeys(t.MaglevKey(name, chunk) for chunk in range(chunks))


def _affinity_rows(name: int, members: tuple[Member, ...]) -> Rows:
    return {
        t.AffinityBackendKey(name, member.address, member.port): t.AffinityBackendRow(slot)
        for slot, member in enumerate(members)
    }


def _range_rows(name: int, prefixes: tuple[str, ...]) -> Rows:
    found = (prefix_bytes(prefix) for prefix in prefixes)
    return {t.SourceRangeKey(SET_BITS + length, name, address): t.SourceRangeRow(1) for length, address in found}


class _Counted:
    """Contents by name, and how many frontends lead to each."""

    def __init__(self, rows_of: Callable[[int, Any], Rows], keys_of: Callable[[int, Any], Rows] | None = None) -> None:
        self._rows_of = rows_of
        self._keys_of = keys_of or rows_of
        self._held: dict[int, tuple[Any, int]] = {}
        self._touched: dict[int, Any] = {}
        """What was there before the changes that are not asked for yet; None: nothing."""

    def take(self, name: int, content: Any) -> None:
        held, count = self._held.get(name, (None, 0))
        self._touched.setdefault(name, held)
        self._held[name] = (content, count + 1)

    def drop(self, name: int) -> None:
        held, count = self._held[name]
        self._touched.setdefault(name, held)
        if count > 1:
            self._held[name] = (held, count - 1)
        else:
            del self._held[name]

    def changes(self) -> Rows:
        """Rows of contents that came, None for those of contents that went, since this was asked last."""
        rows: Rows = {}
        for name, before in self._touched.items():
            now = self._held.get(name, (None, 0))[0]
            if before is None and now is not None:
                rows.update(self._rows_of(name, now))
            elif before is not None and now is None:
                rows.update(dict.fromkeys(self._keys_of(name, before)))
        self._touched = {}
        return rows


class Contents:
    """Everything that the rows of services name."""

    def __init__(self) -> None:
        self._kinds = {
            "backends": _Counted(_backend_rows),
            "maglev": _Counted(_maglev_rows, _maglev_keys),
            "source_ranges": _Counted(_range_rows),
            "affinity_backends": _Counted(_affinity_rows),
        }

    def take(self, choice: Choice, has_affinity: bool, ranges: tuple[str, ...]) -> None:
        """One more frontend uses these."""
        for kind, name, content in _named(choice, has_affinity, ranges):
            self._kinds[kind].take(name, content)

    def drop(self, choice: Choice, has_affinity: bool, ranges: tuple[str, ...]) -> None:
        """One less."""
        for kind, name, _ in _named(choice, has_affinity, ranges):
            self._kinds[kind].drop(name)

    def changes(self) -> dict[str, Rows]:
        """Rows by table, None for those that go."""
        return {kind: counted.changes() for kind, counted in self._kinds.items()}


def _named(choice: Choice, has_affinity: bool, ranges: tuple[str, ...]) -> Iterable[tuple[str, int, Any]]:
    if choice.name:
        yield "backends", choice.name, choice.members
        if choice.maglev:
            yield "maglev", choice.name, choice
        if has_affinity and choice.count:
            yield "affinity_backends", choice.name, choice.members[: choice.count]
    if ranges:
        yield "source_ranges", range_set_name(ranges), ranges
