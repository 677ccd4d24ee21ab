"""From the follower's changes to the reconciler's offers.

Belongs here: when rows are derived, and from which state. Does not belong here: deriving (desired/), writing rows.
"""

import structlog

from controlplane.desired.derive import Deriver
from controlplane.runtime.follower import Follower
from controlplane.runtime.relabelling import Relabelling
from controlplane.runtime.telemetry import Counters
from datapath.reconciler import Reconciler
from datapath.tables import Desired


class Feed:
    """One node's. Everything that came while rows were derived goes with the next offer."""

    def __init__(
        self,
        follower: Follower,
        deriver: Deriver,
        reconciler: Reconciler,
        relabelling: Relabelling,
        counters: Counters,
    ) -> None:
        self._follower = follower
        self._deriver = deriver
        self._reconciler = reconciler
        self._relabelling = relabelling
        self._counters = counters
        self._offered_in_sync = False
        self._logger = structlog.get_logger()

    def start(self) -> None:
        """Offer all rows of the state held. Without being in sync nothing is said to be complete, so nothing is
        pruned: what the kernel holds beyond it may be right."""
        self._follower.take_changes()
        self._offer_all()

    async def run(self) -> None:
        """Offer what changes, for ever."""
        while True:
            await self._wait_work()
            replaced, changes = self._follower.take_changes()
            if replaced or (self._follower.in_sync and not self._offered_in_sync):
                self._offer_all()
            else:
                self._reconciler.offer(self._deriver.update(self._follower.state, changes))
                self._relabelling.offer([change for applied in changes for change in applied])
                self._counters.add("derivations_total")

    async def _wait_work(self) -> None:
        if self._follower.in_sync and not self._offered_in_sync:
            return
        if self._offered_in_sync:
            await self._follower.wait_changes()
        else:
            await self._follower.wait_moved()

    def _offer_all(self) -> None:
        desired = self._deriver.full(self._follower.state)
        self._relabelling.offer(None)
        in_sync = self._follower.in_sync
        self._reconciler.offer(desired if in_sync else Desired(desired.generation, False, desired.tables))
        self._offered_in_sync = in_sync
        self._counters.add("full_derivations_total")
        self._logger.info("offered the whole desired state", generation=desired.generation, in_sync=in_sync)
