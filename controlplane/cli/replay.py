"""`meshlog log replay`, the slow half: it opens the log itself, so that no agent's belief has a part in the result.

Belongs here: opening and closing the log around controlplane.history.replay. Imported only when it runs.
"""

import asyncio
from collections.abc import Sequence
from typing import Any

from controlplane.cli.errors import CommandFailed
from controlplane.history.replay import ReplayResult, replay
from kvstore.errors import LogError
from kvstore.etcd import EtcdLog


def replay_digests(endpoints: Sequence[str], through: int | None) -> dict[str, Any]:
    """{"revision", "records", "events", "nodes": "cluster/node" -> table -> digest}. Raises CommandFailed."""
    try:
        result = asyncio.run(_replay(endpoints, through))
    except LogError as error:
        raise CommandFailed(str(error)) from None
    return {
        "revision": result.revision,
        "records": result.records,
        "events": result.events,
        "state_digest": result.state_digest,
        "nodes": result.digests,
    }


async def _replay(endpoints: Sequence[str], through: int | None) -> ReplayResult:
    log = await EtcdLog.connect(endpoints)
    try:
        return await replay(log, through)
    finally:
        await log.close()
