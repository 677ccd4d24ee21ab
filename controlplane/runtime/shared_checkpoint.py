"""The checkpoint of the folded mesh that operators keep beside the log, for processes without one of their own.

Belongs here: taking the newest that can be trusted, and putting a fresh one. Does not belong here: its stored form
(kvstore/checkpoint_parts.py), when one is due (retention.py), a process's own file (checkpoints.py).
"""

import asyncio

import structlog

from controlplane.projections.state import State
from kvstore import checkpoint_parts
from kvstore.api import EventLog
from kvstore.checkpoint_parts import CheckpointManifest
from kvstore.errors import CheckpointDamaged
from kvstore.types import Session

CHECKPOINT_SCHEMA = 1
"""Of a state's saved bytes, in files and in etcd."""


async def shared_state(log: EventLog, above: int) -> State | None:
    """The newest checkpoint that an operator keeps in the log's store, above a revision; None if none can be used.

    Raises LogError.
    """
    for cluster, manifest in checkpoint_parts.newest(await checkpoint_parts.manifests(log), above):
        try:
            found = await checkpoint_parts.load(log, cluster, manifest)
            if found.schema_version == CHECKPOINT_SCHEMA:
                return await _loaded(found.saved)
        except (CheckpointDamaged, ValueError) as error:
            structlog.get_logger().warning("a checkpoint in etcd is not used", reason=str(error))
    return None


async def shared_state_at(log: EventLog, revision: int) -> State | None:
    """The newest of those at or before a revision. Raises LogError."""
    for cluster, manifest in checkpoint_parts.newest(await checkpoint_parts.manifests(log), 0):
        if manifest.position.revision > revision or manifest.schema_version != CHECKPOINT_SCHEMA:
            continue
        try:
            found = await checkpoint_parts.load(log, cluster, manifest)
            return await _loaded(found.saved)
        except (CheckpointDamaged, ValueError) as error:
            structlog.get_logger().warning("a checkpoint in etcd is not used", reason=str(error))
    return None


async def _loaded(saved: bytes) -> State:
    """A checkpoint belongs to the store that it was found in, also when that was restored from a backup and has got
    another id since."""
    state = await asyncio.to_thread(State.load, saved)
    state.store_id = 0
    return state


async def share_state(log: EventLog, session: Session, state: State, now_ns: int) -> CheckpointManifest:
    """Put the state as it is now. Raises LogError."""
    position, saved = state.position, state.save()
    return await checkpoint_parts.save(
        log, session, session.cluster, position, CHECKPOINT_SCHEMA, saved, now_ns
    )
