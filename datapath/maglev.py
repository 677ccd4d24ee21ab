"""Maglev hashing: which backend stands in which slot of a set's lookup table, the same on every node.

Belongs here: the algorithm of Eisenbud et al., "Maglev: A Fast and Reliable Software Network Load Balancer", NSDI 2016,
section 3.4, with weights. Does not belong here: which sets have a table, how it is cut into rows (desired/). Pure.

Each backend has a permutation of the slots, from two hashes of its name. In turns each takes its next slot that is
free, until none is. A backend's weight is its share of turns.
"""

from collections.abc import Iterator, Sequence
from hashlib import blake2b

BACKENDS_MAX = 65535


def lookup_table(names: Sequence[bytes], weights: Sequence[int], size: int, seed: bytes) -> bytes:
    """The table's `size` slots, each the index of a name in 16 bits of the host's order.

    Names are distinct, and their order breaks ties; weights are above 0; `size` is a prime number. Raises ValueError
    for more names than slots, or than 16 bits can tell.
    """
    import numpy as np  # not needed where nothing is balanced so, and an agent's start does not wait for it

    if len(names) > min(size, BACKENDS_MAX):
        raise ValueError(f"{len(names)} backends do not fit a table of {size} slots")
    if not names:
        return bytes(2 * size)
    starts = [_hashes(name, size, seed) for name in names]
    slots, owners = _fill(starts, weights, size)
    table = np.zeros(size, dtype=np.uint16)
    table[slots] = owners
    return table.tobytes()


def _hashes(name: bytes, size: int, seed: bytes) -> tuple[int, int]:
    """Where a permutation starts, and how far its next slot is."""
    digest = blake2b(name, digest_size=16, key=seed).digest()
    offset = int.from_bytes(digest[:8], "little") % size
    return offset, int.from_bytes(digest[8:], "little") % (size - 1) + 1


def _rounds(weights: Sequence[int]) -> Iterator[list[int]]:
    """Who has a turn in each round, without end: everyone as often as its weight is of the greatest."""
    greatest = max(weights)
    everyone = list(range(len(weights)))
    if min(weights) == greatest:
        while True:
            yield everyone
    credit = [0] * len(weights)
    while True:
        turn = []
        for index in everyone:
            credit[index] += weights[index]
            if credit[index] >= greatest:
                credit[index] -= greatest
                turn.append(index)
        yield turn


def _fill(starts: Sequence[tuple[int, int]], weights: Sequence[int], size: int) -> tuple[list[int], list[int]]:
    """Slots in the order in which they are taken, and who takes each."""
    taken = bytearray(size)
    at = [offset for offset, _ in starts]
    skips = [skip for _, skip in starts]
    slots: list[int] = []
    owners: list[int] = []
    for everyone in _rounds(weights):
        turn = everyone[: size - len(slots)]
        for index in turn:
            slot, skip = at[index], skips[index]
            while taken[slot]:
                slot += skip
                if slot >= size:
                    slot -= size
            taken[slot] = 1
            at[index] = slot
            slots.append(slot)
        owners += turn
        if len(slots) == size:
            break
    return slots, owners
