"""How long to wait before the next try.

Belongs here: the one formula. Does not belong here: sleeping, clocks, chance; the caller passes the jitter.
"""


def delay_s(attempt: int, jitter: float, *, first_s: float = 0.05, longest_s: float = 1.0) -> float:
    """Seconds to wait after failed try `attempt` (from 0): doubling, capped, spread over the upper half.

    `jitter` is in [0, 1): 0 waits half of the full delay, values near 1 all of it. Raises ValueError outside
    that.
    """
    if attempt < 0:
        raise ValueError(f"attempt {attempt}: must be 0 or more")
    if not 0.0 <= jitter < 1.0:
        raise ValueError(f"jitter {jitter}: must be at least 0 and below 1")
    full = min(first_s * 2.0 ** min(attempt, 60), longest_s)
    return full * (0.5 + jitter / 2)
