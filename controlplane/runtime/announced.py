"""What this node has written of itself, in a file of its own: it is as new as the last endpoint, where a checkpoint is
as old as it may be, and no backup of etcd puts it back.

Belongs here: when the file is written, and reading it. Does not belong here: what is in it and what follows from it
(commands/announcing.py), the file's form (kvstore/checkpoint.py).
"""

from pathlib import Path

import msgspec
import structlog

from controlplane.commands.announcing import Announced, announced_of
from controlplane.model import NodeKey
from controlplane.projections.state import State
from controlplane.runtime.follower import Follower
from kvstore import checkpoint
from kvstore.errors import CheckpointDamaged

ANNOUNCED_FILE = "announced"
ANNOUNCED_SCHEMA = 1


class OwnFile:
    """`known`: what the file holds."""

    def __init__(self, directory: Path, where: NodeKey, follower: Follower) -> None:
        """Reads the file; one that cannot be used counts as none, which is said."""
        self._path = directory / ANNOUNCED_FILE
        self._where = where
        self._follower = follower
        self._logger = structlog.get_logger()
        self.known = self._load()

    @property
    def is_behind(self) -> bool:
        """The log held has less of this node's own records than there have been."""
        return self.known.is_lost or self.known.sequence > self._sequence(self._follower.state)

    def blocks(self) -> tuple[str, ...]:
        """The address blocks that this node's endpoints live in."""
        own = self._follower.state.nodes.get(self._where)
        return own.blocks if own and own.blocks else self.known.blocks

    def keep(self) -> None:
        """What the log says of this node now, if it has been compared and found whole. A file that cannot be written is
        said: the next restart of this node after a restore of etcd would not know what lives here."""
        follower = self._follower
        if follower.held or not follower.in_sync or follower.repairing:
            return
        if self.known.is_lost or self._sequence(follower.state) != self.known.sequence:
            self._save(announced_of(follower.state, self._where))

    def remember(self, lost: State) -> None:
        """What was held before the log was put back, where that is newer than the file."""
        if self._sequence(lost) > self.known.sequence:
            self._save(announced_of(lost, self._where))

    def mark_lost(self) -> None:
        """From now on this node's own sequence in the log says nothing: what is announced again counts anew."""
        if not self.known.is_lost:
            self._save(msgspec.structs.replace(self.known, is_lost=True))

    async def run(self) -> None:
        """Keep what changes, for ever."""
        while True:
            await self._follower.wait_moved()
            self.keep()

    def _sequence(self, state: State) -> int:
        return state.sequences.get(f"{self._where.cluster}/node.{self._where.node}", 0)

    def _save(self, fresh: Announced) -> None:
        self.known = fresh
        saved, position = msgspec.msgpack.encode(fresh), self._follower.state.position
        try:
            # Devices do not outlive a power cut, so the file need not either.
            checkpoint.save(self._path, position, ANNOUNCED_SCHEMA, saved, durable=False)
        except OSError as error:
            self._logger.warning("what this node has announced could not be kept", reason=str(error))

    def _load(self) -> Announced:
        try:
            found = checkpoint.load(self._path)
            if found.schema_version == ANNOUNCED_SCHEMA:
                return msgspec.msgpack.decode(found.saved, type=Announced)
            reason = f"its schema is {found.schema_version}"
        except FileNotFoundError:
            return Announced()
        except (CheckpointDamaged, OSError, msgspec.MsgspecError) as error:
            reason = str(error)
        self._logger.warning("what this node had announced is not known", reason=reason)
        return Announced()
