"""Where the history is that has left etcd, as the operators have recorded it.

Belongs here: reading their records, and saying where a person finds what this process cannot reach. Does not belong
here: the directories themselves (kvstore/archives.py), recording them (retention.py).
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import msgspec

from controlplane.history.at import ReadableLog
from controlplane.runtime.retention import Kept
from kvstore.api import EventLog
from kvstore.errors import LogError
from kvstore.etcd import EtcdLog


async def kept_of(log: ReadableLog) -> Sequence[Kept]:
    """What each cluster's operator published last. Raises LogError."""
    found = []
    for stored in await log.list("retention/"):
        try:
            found.append(msgspec.json.decode(stored.value, type=Kept))
        except msgspec.MsgspecError:
            continue  # of another version
    return found


async def recorded_archives(log: ReadableLog) -> Sequence[tuple[str, Path]]:
    """Clusters, and the directory that holds the history of each, if it is on this machine. Raises LogError."""
    return [(kept.cluster, Path(kept.archive)) for kept in await kept_of(log)]


def reaching(log: EventLog) -> ReadableLog:
    """The log for questions about the past: it looks for archives on this machine when etcd has no more. Not for
    following, where a checkpoint is nearer than old records. A log in memory forgets nothing."""
    return log.reaching(partial(recorded_archives, log)) if isinstance(log, EtcdLog) else log


async def whereabouts(log: ReadableLog) -> str:
    """Where older history is, and what to do to read it, in one sentence; "" if that is not known."""
    try:
        known = [kept for kept in await kept_of(log) if kept.archived_segments]
    except LogError:
        return ""
    if not known:
        return ""
    places = [
        f"of cluster {kept.cluster} in {kept.archive} on {kept.host or 'the host of its operator'}"
        for kept in known
    ]
    return (
        f"older history is in the archive {', '.join(places)}: ask the operator there with --socket, or give this "
        "process a copy or a mount of it with --archive-dir"
    )
