"""Identities of what has no identity in the log: prefixes that policies name. Pure.

Belongs here: their numbers, which prefix has which, and how such numbers are made. Does not belong here: labels of
prefixes (policy/prefixes.py), nodes (nodes.py), rows (ipcache.py).

A number is a scope, here 1 << 24, plus 24 bits of a hash of the labels; of two label sets with the same hash the
second, in the order of the labels, takes the next free number. So numbers are a function of the state alone: no event
records them, every node of a cluster and every replay finds the same ones, and a change of policies moves a number
only where two hashes collide. Prefixes with equal labels share one number, so names with a thousand addresses cost one
row. The numbers do not fit the 24 bits of a tunnel key: the receiving node finds the identity of such a source by its
address.
"""

from collections.abc import Iterable, Mapping
from hashlib import blake2b

from controlplane.desired.policy_inputs import PolicyInputs
from controlplane.model import RESERVED_IDENTITIES, Labels
from controlplane.policy.prefixes import WORLD
from controlplane.projections.state import State
from datapath.abi.types import IDENTITY_SCOPE_PREFIX, IDENTITY_SCOPE_SHIFT

SCOPE = IDENTITY_SCOPE_PREFIX << IDENTITY_SCOPE_SHIFT
PLACES = 1 << IDENTITY_SCOPE_SHIFT
RESERVED: Mapping[Labels, int] = {(WORLD,): RESERVED_IDENTITIES["world"]}
HASH_BYTES = 3


class PrefixIdentities:
    """What `replace` was given last, with its numbers."""

    def __init__(self) -> None:
        self.numbers: dict[str, int] = {}
        """By prefix."""
        self.labels: dict[int, Labels] = {}
        """Of the numbers that are not reserved."""

    def replace(self, prefixes: Iterable[tuple[str, Labels]]) -> tuple[list[str], list[int]]:
        """The prefixes whose number changed or went, and the numbers whose labels did."""
        wanted = dict(prefixes)
        numbers = numbers_of(wanted.values(), SCOPE, RESERVED)
        old_numbers, old_labels = self.numbers, self.labels
        self.numbers = {prefix: numbers[labels] for prefix, labels in wanted.items()}
        self.labels = {number: labels for labels, number in numbers.items() if labels not in RESERVED}
        return (
            [each for each in sorted({*old_numbers, *wanted}) if old_numbers.get(each) != self.numbers.get(each)],
            [each for each in sorted({*old_labels, *self.labels}) if old_labels.get(each) != self.labels.get(each)],
        )


def prefix_identities(state: State, cluster: str) -> PrefixIdentities:
    """Of the prefixes that the policies of a cluster name, as its nodes number them."""
    inputs = PolicyInputs(cluster)
    inputs.fill(state)
    found = PrefixIdentities()
    found.replace(inputs.address_labels(state).prefixes())
    return found


def numbers_of(label_sets: Iterable[Labels], scope: int, reserved: Mapping[Labels, int]) -> dict[Labels, int]:
    """A number of the scope for each set, and those of `reserved`."""
    found = dict(reserved)
    taken: dict[int, None] = {}
    for labels in sorted(set(label_sets)):
        if labels in found:
            continue
        place = int.from_bytes(blake2b("\n".join(labels).encode(), digest_size=HASH_BYTES).digest())
        while place in taken:
            place = (place + 1) % PLACES
        taken[place] = None
        found[labels] = scope | place
    return found
