"""From the follower's changes to the reconciler's offers.

Belongs here: when rows are derived, and from which state. Does not belong here: deriving (desired/), writing rows.
"""

from itertools import chain

import structlog

from controlplane.desired.derive import Deriver
from controlplane.desired.turns import turn_of
from controlplane.runtime.follower import Follower
from controlplane.runtime.relabelling import Relabelling
from controlplane.runtime.telemetry import Counters
from datapath.reconciler import Reconciler
from datapath.tables import Desired


class Feed:
    """One node's. Everything that came while rows were derived goes with the next offer, but for what asks for a turn
    of its own."""

    def __init__(
        self,
        follower: Follower,
        deriver: Deriver,
        reconciler: Reconciler,
        relabelling: Relabelling,
        counters: Counters,
    ) -> None:
        self._follower = follower
        self.deriver = deriver
        self._reconciler = reconciler
        self._relabelling = relabelling
        self._counters = counters
        self._offered_in_sync = False
        follower.on_turn = self._offer_turn
        self._logger = structlog.get_logger()

    def start(self) -> None:
        """Offer all rows of the state held, if that can do no harm.

        A state that is not in sync may be older than what the kernel holds: then the kernel keeps what is pinned.
        Only into an empty kernel, as after a reboot, old rows are better than none; nothing is pruned for them.
        """
        if self._may_prune or self._reconciler.was_empty:
            self._follower.take_changes()
            self._offer_all()
        else:
            self._logger.warning(
                "not in sync: the kernel keeps what is pinned", revision=self._follower.applied_revision,
                reason=self._follower.held or "the log is away",
            )

    async def run(self) -> None:
        """Offer what changes, for ever."""
        while True:
            if not self._offered_in_sync:
                while not self._may_prune:
                    await self._follower.wait_moved()
                self._follower.take_changes()
                self._offer_all()
                continue
            await self._follower.wait_changes()
            self._offer_changes(ends_turn=False)

    def _offer_turn(self) -> None:
        """What has moved is to be realized before what comes now (desired/turns.py)."""
        if self._offered_in_sync:
            self._offer_changes(ends_turn=True)

    def _offer_changes(self, ends_turn: bool) -> None:
        replaced, changes = self._follower.take_changes()
        if replaced:
            self._offered_in_sync = False
            return
        kind = turn_of(chain.from_iterable(changes))
        first, *others = self.deriver.turns(self._follower.state, changes)
        self._reconciler.offer(first, kind, ends_turn=ends_turn, leads_to=others)
        self._relabelling.offer([change for applied in changes for change in applied])
        self._counters.add("derivations_total")

    @property
    def _may_prune(self) -> bool:
        """The state is that of the log, and what this node has written is in it."""
        return self._follower.in_sync and not self._follower.held

    def _offer_all(self) -> None:
        desired = self.deriver.full(self._follower.state)
        self._relabelling.offer(None)
        in_sync = self._may_prune
        self._reconciler.offer(desired if in_sync else Desired(desired.generation, False, desired.tables))
        self._offered_in_sync = in_sync
        self._counters.add("full_derivations_total")
        self._logger.info("offered the whole desired state", generation=desired.generation, in_sync=in_sync)
