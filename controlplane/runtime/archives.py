"""Where the history is that has left etcd, as the operators have recorded it.

Belongs here: reading their records, and saying where a person finds what this process cannot reach. Does not belong
here: the directories themselves (kvstore/archives.py), recording them (retention.py).
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from controlplane.history.at import ReadableLog
from controlplane.runtime.archivist import ArchiveReport
from controlplane.runtime.reports import read_all_reports
from controlplane.runtime.retention import kept_of
from kvstore.api import EventLog
from kvstore.errors import LogError
from kvstore.etcd import EtcdLog


async def recorded_archives(log: ReadableLog) -> Sequence[tuple[str, Path]]:
    """Clusters, and the directories that hold the history of each, if they are on this machine. Raises LogError."""
    own = [(kept.cluster, Path(kept.archive)) for kept in await kept_of(log)]
    copies = [(each.cluster, Path(copy.directory)) for _, copy in await copies_of(log) for each in copy.holdings]
    return [*own, *copies]


async def copies_of(log: ReadableLog) -> Sequence[tuple[str, ArchiveReport]]:
    """Who keeps a copy of the history of all clusters, and what is in it. Raises LogError."""
    kept = [(f"operator {each.cluster}", each.copy) for each in await kept_of(log) if each.copy]
    nodes = [(f"node {each.cluster}/{each.node}", each.archive) for each in await read_all_reports(log) if each.archive]
    return [*kept, *nodes]


def reaching(log: EventLog) -> ReadableLog:
    """The log for questions about the past: it looks for archives on this machine when etcd has no more. Not for
    following, where a checkpoint is nearer than old records. A log in memory forgets nothing."""
    return log.reaching(partial(recorded_archives, log)) if isinstance(log, EtcdLog) else log


async def whereabouts(log: ReadableLog) -> str:
    """Where older history is, and what to do to read it, in one sentence; "" if that is not known."""
    try:
        known = [kept for kept in await kept_of(log) if kept.archived_segments]
        copies = [(name, copy) for name, copy in await copies_of(log) if copy.holdings]
    except LogError:
        return ""
    places = [
        f"of cluster {kept.cluster} in {kept.archive} on {kept.host or 'the host of its operator'}"
        for kept in known
    ]
    directories = {(kept.host, kept.archive) for kept in known}
    places += [
        f"of {name} in {copy.directory} on {copy.host}"
        for name, copy in copies
        if (copy.host, copy.directory) not in directories
    ]
    if not places:
        return ""
    return (
        f"older history is in the archive {', '.join(places)}: ask the process there with --socket, give this one a "
        "copy or a mount of it with --archive-dir, or let it keep its own from now on with --archive-keep on"
    )
