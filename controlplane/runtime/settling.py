"""The kernel work that nothing waits for, done while nothing waits.

Belongs here: when it is done. Does not belong here: what it is (datapath/kernel/stand_ins.py).
"""

import structlog

from controlplane.runtime.clock import Clock
from controlplane.runtime.endpoints import Endpoints
from controlplane.settings import AgentSettings
from datapath.errors import KernelError
from datapath.kernel.api import Kernel
from datapath.reconciler import KernelWorker


class Settling:
    """A node's. A step holds up every change of a device on the machine, so none is taken around the creation of an
    endpoint."""

    def __init__(
        self, kernel: Kernel, worker: KernelWorker, endpoints: Endpoints, clock: Clock, settings: AgentSettings
    ) -> None:
        self._kernel, self._worker = kernel, worker
        self._endpoints = endpoints
        self._clock = clock
        self._quiet_s = settings.settle_quiet_s
        self._logger = structlog.get_logger()

    async def run(self) -> None:
        """For ever. A step that fails is tried again later."""
        while True:
            await self._clock.sleep_s(self._quiet_s)
            try:
                await self._settle()
            except KernelError as error:
                self._logger.warning("an attachment stays provisional", reason=str(error))

    async def _settle(self) -> None:
        while self._endpoints.idle_s() >= self._quiet_s:
            if not await self._worker.call(self._kernel.settle):
                return
