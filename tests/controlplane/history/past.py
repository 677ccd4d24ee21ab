"""A log in memory with a small mesh in it, and a Past over it.

Belongs here: what tests of the history build on. Does not belong here: what they prove.
"""

from controlplane.history.at import Past
from kvstore.memory import MemoryLog, MemoryStore
from tests.controlplane.random_mesh import Log
from tests.controlplane.small_mesh import add_endpoint, mesh


def stored(log: Log) -> MemoryLog:
    """The same records, behind the door that agents read through."""
    store = MemoryStore()
    store.records = list(log.records)
    store.revision = int(log.records[-1].revision)
    store.sequences = {f"{record.cluster}/{record.writer}": record.sequence for record in log.records}
    return MemoryLog(store)


def past_of(log: Log) -> Past:
    """Without anything held yet."""
    return Past(stored(log), lambda: int(log.records[-1].revision))


def shop() -> Log:
    """Workloads cart and db on east/n1, front on east/n2."""
    log = mesh()
    add_endpoint(log, "east", "n1", "cart", 11)
    add_endpoint(log, "east", "n1", "db", 12)
    add_endpoint(log, "east", "n2", "front", 13)
    return log
