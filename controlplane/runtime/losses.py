"""What this process knew and a log that was put back to a backup does not hold: kept until it is mended or dismissed.

Belongs here: the list in its file, over restarts. Does not belong here: comparing (history/loss.py), endpoints, which a
node announces again by itself (recovery.py).
"""

import os
from collections.abc import Sequence
from pathlib import Path

import msgspec
import structlog

from controlplane.history.loss import LostObject, lost_objects, still_lost
from controlplane.projections.state import State
from controlplane.runtime.follower import Follower

LOSSES_FILE = "lost.json"
LOSSES_MAX = 10_000
"""Objects in the list; more are counted only."""
SHOWN_MAX = 5


class _Kept(msgspec.Struct, frozen=True):
    objects: list[LostObject] = []
    left_out: int = 0


class Losses:
    """One process's."""

    def __init__(self, directory: Path, follower: Follower) -> None:
        """Reads what an earlier run has kept."""
        self._path = directory / LOSSES_FILE
        self._follower = follower
        self._logger = structlog.get_logger()
        self._kept = self._load()
        self._seen: tuple[int, int] = (-1, -1)
        follower.on_rewind.append(self._rewound)

    @property
    def left_out(self) -> int:
        """How many more there were than are listed."""
        return self._kept.left_out

    def open(self) -> Sequence[LostObject]:
        """About which nothing has happened yet. What is mended is forgotten, for a later restore may bring it back."""
        state = self._follower.state
        if self._kept.objects and self._follower.in_sync and self._seen != (id(state), state.revision):
            self._seen = (id(state), state.revision)
            left = list(still_lost(self._kept.objects, state))
            if len(left) != len(self._kept.objects):
                self._keep(_Kept(left, self._kept.left_out if left else 0))
        return self._kept.objects

    def problems(self) -> list[str]:
        """In words."""
        objects = self.open()
        if not objects:
            return []
        more = len(objects) + self.left_out - SHOWN_MAX
        shown = ", ".join(f"{each.text} ({each.what})" for each in objects[:SHOWN_MAX])
        shown += f" and {more} more" if more > 0 else ""
        told = f"etcd was put back to a backup, and the log does not hold as they were: {shown}"
        return [f"{told}; `meshlog log lost` says how to put them back"]

    def dismiss(self) -> int:
        """The log is right as it is. How many were forgotten."""
        count = len(self._kept.objects) + self._kept.left_out
        self._keep(_Kept())
        return count

    def _rewound(self, before: State, after: State) -> None:
        fresh = lost_objects(before, after)
        keys = {each.key for each in fresh}
        older = [each for each in still_lost(self._kept.objects, after) if each.key not in keys]
        objects = [*fresh, *older]
        self._keep(_Kept(objects[:LOSSES_MAX], self._kept.left_out + len(objects[LOSSES_MAX:])))
        self._logger.error("etcd was put back to a backup", lost=len(fresh), first=[each.text for each in fresh[:5]])

    def _keep(self, kept: _Kept) -> None:
        self._kept, self._seen = kept, (-1, -1)
        try:
            if not kept.objects:
                self._path.unlink(missing_ok=True)
                return
            fresh = self._path.with_name(f".{self._path.name}.{os.getpid()}")
            fresh.write_bytes(msgspec.json.encode(kept))
            os.replace(fresh, self._path)
        except OSError as error:
            self._logger.warning("what the log has lost could not be kept", reason=str(error))

    def _load(self) -> _Kept:
        try:
            return msgspec.json.decode(self._path.read_bytes(), type=_Kept)
        except FileNotFoundError:
            return _Kept()
        except (OSError, msgspec.MsgspecError) as error:
            self._logger.warning("what the log had lost is not known", reason=str(error))
            return _Kept()
