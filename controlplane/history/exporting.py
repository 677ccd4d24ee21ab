"""Making a capsule from a running mesh, and checking one against what nodes reported.

Belongs here: what goes into a capsule, and recomputing its digests. Does not belong here: the file (capsule.py).
"""

from collections.abc import Sequence

import msgspec

from controlplane.events import SCHEMA_VERSION
from controlplane.history.at import Moment, Past, time_of
from controlplane.history.capsule import Capsule, Manifest, Report
from controlplane.history.flows import FlowSummary, within
from controlplane.history.replay import encoded_rows
from controlplane.projections.state import State

EQUAL, DIFFERENT, OUTSIDE = "equal", "different", "outside"


class NodeCheck(msgspec.Struct, frozen=True):
    """`result`: "equal", "different" or "outside" (reported at a revision that the capsule does not hold).

    `tables`: those that differ.
    """

    cluster: str
    node: str
    realized: int
    result: str
    tables: list[str]


async def export(
    past: Past, since: Moment, until: int, reports: Sequence[Report], cluster: str, node: str, version: str,
    made_ns: int, flows: Sequence[FlowSummary] = (),
) -> Capsule:  # fmt: skip
    """Raises LogError."""
    records = [record async for record in past.records(since.revision, until)]
    manifest = Manifest(
        version=version,
        schema_version=SCHEMA_VERSION,
        cluster=cluster,
        node=node,
        made_ns=made_ns,
        since=since.revision,
        since_ns=since.time_ns,
        until=until,
        until_ns=time_of(records[-1]) if records else since.time_ns,
        records=len(records),
    )
    seen = [within(each, manifest.since_ns, max(manifest.until_ns, made_ns)) for each in flows]
    return Capsule(manifest, since.state.save(), since.origins, records, reports, seen)


def check(capsule: Capsule) -> list[NodeCheck]:
    """Each node's reported digests against those of rows derived anew. Raises CapsuleDamaged."""
    wanted: dict[int, list[Report]] = {}
    for report in capsule.reports:
        wanted.setdefault(report.realized, []).append(report)
    found = [
        NodeCheck(each.cluster, each.node, each.realized, OUTSIDE, [])
        for each in capsule.reports
        if not capsule.manifest.since <= each.realized <= capsule.manifest.until
    ]
    state, place = capsule.state(), 0
    for revision in sorted(wanted):
        if not capsule.manifest.since <= revision <= capsule.manifest.until:
            continue
        while place < len(capsule.records) and capsule.records[place].revision <= revision:
            state.apply(capsule.records[place])
            place += 1
        found += [checked(state, report) for report in wanted[revision]]
    return sorted(found, key=lambda each: (each.cluster, each.node))


def checked(state: State, report: Report) -> NodeCheck:
    """One node's, in the state at the revision that it reported."""
    rows = encoded_rows(state, report.cluster, report.node)
    digests = rows.digests()
    tables = [table for table in sorted(report.digests) if digests.get(table) != report.digests[table]]
    return NodeCheck(report.cluster, report.node, report.realized, DIFFERENT if tables else EQUAL, tables)


def moments_of(capsule: Capsule) -> tuple[Moment, Moment]:
    """The first and the last moment that the capsule can tell of. Raises CapsuleDamaged."""
    manifest = capsule.manifest
    first = Moment(manifest.since, manifest.since_ns, capsule.state(), capsule.origins)
    state, origins = first.state.copy(), first.origins.copy()
    for record in capsule.records:
        origins.put(record, state.apply(record))
    return first, Moment(manifest.until, manifest.until_ns, state, origins)
