"""Numbers for addresses by their labels: those of a label set are one, however many addresses have it. Pure.

Belongs here: keeping them as addresses come, change and go. Does not belong here: whose addresses they are and what
their labels are (nodes.py, facets.py), how a number is made from labels (prefixes.py).
"""

from collections.abc import Mapping

from controlplane.desired.prefixes import numbers_of
from controlplane.model import Labels


class AddressIdentities:
    """`replace` what an address's labels are, then read. `reserved`: label sets that have a number already."""

    def __init__(self, scope: int, reserved: Mapping[Labels, int]) -> None:
        self._scope, self._reserved = scope, reserved
        self.numbers: dict[str, int] = {}
        """By address."""
        self.labels: dict[int, Labels] = {}
        """Of the numbers that are not reserved."""
        self._labels_of: dict[str, Labels] = {}
        self._users: dict[Labels, int] = {}
        self._numbers_of: dict[Labels, int] = dict(reserved)

    def replace(self, changed: Mapping[str, Labels | None]) -> tuple[list[str], list[int]]:
        """The addresses whose number changed or went, and the numbers whose labels did. None: it has none here."""
        before = {address: self.numbers.get(address) for address in changed}
        for address, labels in changed.items():
            self._put(address, labels)
        if self._users.keys() - self._reserved.keys() != self._numbers_of.keys() - self._reserved.keys():
            moved = self._renumber()
            before.update((address, self.numbers[address]) for address in moved if address not in before)
        for address in before:
            if address in self._labels_of:
                self.numbers[address] = self._numbers_of[self._labels_of[address]]
            else:
                self.numbers.pop(address, None)
        old, numbered = self.labels, self._numbers_of.items()
        self.labels = {number: labels for labels, number in numbered if labels not in self._reserved}
        return (
            [address for address in sorted(before) if before[address] != self.numbers.get(address)],
            [number for number in sorted({*old, *self.labels}) if old.get(number) != self.labels.get(number)],
        )

    def _put(self, address: str, labels: Labels | None) -> None:
        old = self._labels_of.pop(address, None)
        if old is not None:
            self._users[old] -= 1
            if not self._users[old]:
                del self._users[old]
        if labels is not None:
            self._labels_of[address] = labels
            self._users[labels] = self._users.get(labels, 0) + 1

    def _renumber(self) -> list[str]:
        """The addresses of label sets that stay and have another number now, as two hashes collide."""
        old, self._numbers_of = self._numbers_of, numbers_of(self._users, self._scope, self._reserved)
        moved = {labels for labels, number in old.items() if self._numbers_of.get(labels, number) != number}
        return [address for address, labels in self._labels_of.items() if labels in moved] if moved else []
