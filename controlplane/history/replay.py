"""The log folded again from its first record, and what every node's kernel should therefore hold.

Belongs here: the fold, and the digests of its rows. Does not belong here: comparing them with a running mesh.
"""

from collections.abc import Mapping

import msgspec

from controlplane.desired.derive import Deriver
from controlplane.history.at import ReadableLog
from controlplane.projections.folding import Folding
from controlplane.projections.state import State
from datapath.codec import encode_rows
from datapath.digest import digest_of
from datapath.tables import TABLES
from kvstore.types import Revision


class EncodedRows(msgspec.Struct, frozen=True):
    """What a node's kernel should hold at `generation`: table -> key -> row."""

    generation: int
    tables: Mapping[str, Mapping[bytes, bytes]]

    def digests(self) -> dict[str, str]:
        """Table -> 32 hexadecimal digits."""
        return {table: digest_of(rows) for table, rows in self.tables.items()}


class ReplayResult(msgspec.Struct, frozen=True):
    """`digests`: "cluster/node" -> table -> 32 hexadecimal digits. `state_digest` is of the folded state."""

    revision: int
    records: int
    events: int
    digests: dict[str, dict[str, str]]
    state_digest: str


def encoded_rows(state: State, cluster: str, node: str) -> EncodedRows:
    """Derived from nothing but the state."""
    desired = Deriver(cluster, node).full(state)
    return EncodedRows(
        desired.generation, {table: encode_rows(table, desired.tables.get(table, {})) for table in TABLES}
    )


async def replay(log: ReadableLog, through: int | None = None, start: State | None = None) -> ReplayResult:
    """Fold every record (after `start`'s, where it is given; it is changed) up to `through`, or to the head seen now.

    Raises kvstore.errors.LogError; controlplane.codec.MalformedBatch is counted as no events, as the state does.
    """
    state = State() if start is None else start
    records = 0
    with Folding(state) as folding:
        async for record in log.read(state.position, None if through is None else Revision(through)):
            folding.apply(record)
            records += 1
    digests = {
        f"{cluster}/{node}": encoded_rows(state, cluster, node).digests()
        for cluster, node in sorted(state.nodes)
    }
    return ReplayResult(int(state.position.revision), records, folding.events, digests, state.digest())
