"""Folds a fixed history and prints what came of it: run in processes of their own, with hash seeds of their own."""

from hashlib import blake2b

from controlplane.desired.derive import Deriver
from controlplane.projections.state import State
from datapath import codec
from datapath.digest import digest_of
from tests.controlplane.random_mesh import Step, history

LENGTH = 400


def script() -> list[Step]:
    """Numbers as good as random, and always the same: a linear congruential generator (Numerical Recipes)."""
    numbers, seed = [], 1
    for _ in range(LENGTH * 4):
        seed = (seed * 1_664_525 + 1_013_904_223) % 2**32
        numbers.append(seed >> 16)
    return [
        (a % 22, b % 6, c % 4, d % 4) for a, b, c, d in zip(*(iter(numbers),) * 4, strict=True)
    ]  # no cluster leaves: a history that ends with something says more


def fingerprint(state: State) -> str:
    """One line for the saved bytes, one for each table of each node."""
    lines = [f"saved {blake2b(state.save(), digest_size=16).hexdigest()}"]
    for key in sorted(state.nodes):
        tables = Deriver(*key).full(state).tables
        lines += [
            f"{key.cluster}/{key.node} {name} {len(rows)} {digest_of(codec.encode_rows(name, rows))}"
            for name, rows in tables.items()
        ]
    return "\n".join(lines)


if __name__ == "__main__":
    print(fingerprint(history(script()).state))
