"""The local checkpoint of a process: the folded state in one file, so that a restart folds only what came after.

Belongs here: when it is written, and which one is trusted at the start. Does not belong here: the file's form
(kvstore/checkpoint.py), the state's bytes (projections/state.py).
"""

import asyncio
import os
from contextlib import suppress
from pathlib import Path

import structlog

from controlplane.projections.folding import Folding
from controlplane.projections.state import State
from controlplane.runtime.clock import Clock
from controlplane.runtime.follower import Follower
from controlplane.runtime.shared_checkpoint import CHECKPOINT_SCHEMA, shared_state
from controlplane.settings import CommonSettings
from kvstore import checkpoint
from kvstore.api import EventLog
from kvstore.errors import CheckpointDamaged, HistoryTruncated, LogError, LogRewound, LogUnavailable
from kvstore.types import Revision

CHECKPOINT_FILE = "checkpoint"
START_FILE = "checkpoint.start"
"""The checkpoint that this process started from: the near past is folded from it while the log is away."""


class Checkpoints:
    """One file. `revision` is that of the last one loaded or written, 0: none."""

    def __init__(self, directory: Path) -> None:
        self.revision = 0
        self._path = directory / CHECKPOINT_FILE
        self._logger = structlog.get_logger()

    def load(self) -> State | None:
        """The state saved last; None where there is none or it cannot be trusted, which is said in the log."""
        state = self._load(self._path)
        if state is not None:
            self.revision = state.revision
            self._keep_start()
        return state

    def start(self) -> State | None:
        """What `load` gave when the process started; None where it is not there any more."""
        return self._load(self._path.with_name(START_FILE))

    def _keep_start(self) -> None:
        """The file is replaced, never changed, so a second name for it costs nothing and stays as it is."""
        kept = self._path.with_name(START_FILE)
        with suppress(OSError):
            kept.unlink(missing_ok=True)
            os.link(self._path, kept)

    def _load(self, path: Path) -> State | None:
        try:
            found = checkpoint.load(path)
        except FileNotFoundError:
            return None
        except (CheckpointDamaged, OSError) as error:
            self._logger.warning("checkpoint is not used", reason=str(error))
            return None
        if found.schema_version != CHECKPOINT_SCHEMA:
            self._logger.warning("checkpoint is not used", reason=f"its schema is {found.schema_version}")
            return None
        try:
            state = State.load(found.saved)
        except ValueError as error:
            self._logger.warning("checkpoint is not used", reason=str(error))
            return None
        return state

    async def save(self, state: State) -> None:
        """Write the state as it is now. Raises OSError."""
        if state.revision == self.revision:
            return
        position, saved = state.position, state.save()
        await asyncio.to_thread(checkpoint.save, self._path, position, CHECKPOINT_SCHEMA, saved)
        self.revision = position.revision

    async def run(self, follower: Follower, clock: Clock, settings: CommonSettings) -> None:
        """Save now and then, for ever, whenever what is held is in sync."""
        while True:
            await clock.sleep_s(clock.jitter(settings.checkpoint_s))
            await self.save_if_trusted(follower)

    async def save_if_trusted(self, follower: Follower) -> None:
        """Nothing is saved of a state that is being repaired."""
        if not follower.in_sync or follower.repairing:
            return
        try:
            await self.save(follower.state)
        except OSError as error:
            self._logger.warning("checkpoint could not be written", reason=str(error))

    async def refold(self, log: EventLog, error: LogError) -> State:
        """A state folded from records read again by range: from this checkpoint, or from the first record where the
        log is another one or an older one than the checkpoint's. Raises LogError."""
        if isinstance(error, LogRewound):
            self._path.with_name(START_FILE).unlink(missing_ok=True)  # of a past that the log does not have
        start = None if isinstance(error, LogRewound) else self.load()
        if isinstance(error, HistoryTruncated) and (start is None or start.revision < error.low):
            start = await shared_state(log, start.revision if start else 0) or start
        try:
            return await fold(log, start or State())
        except LogUnavailable:
            raise
        except LogError:
            # The records from there on are not all there: the checkpoint in etcd may stand behind what is missing.
            shared = await shared_state(log, start.revision if start else 0)
            if shared is None and start is None:
                raise
            return await fold(log, shared or State())


async def fold(log: EventLog, state: State, through: Revision | None = None) -> State:
    """Apply every record after the state's position, up to the head seen at the start. Raises LogError."""
    applied = 0
    with Folding(state) as folding:
        async for record in log.read(state.position, through):
            folding.apply(record)
            applied += 1
            if applied % 512 == 0:
                await asyncio.sleep(0)
    return state
